"""A training step for a runtime without Python."""
