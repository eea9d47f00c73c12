"""Torch layers that keep for backward what the `lean` books say, and no more."""
