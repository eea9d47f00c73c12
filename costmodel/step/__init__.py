"""One training step in time: allocations, peak, traffic, optimizers."""
