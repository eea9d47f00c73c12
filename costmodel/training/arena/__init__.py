"""A training step's tensors in one piece of memory that is planned, stays mapped, and is no larger than it must be."""
