"""Torch layers that keep for backward what the accounting `lean` says, and no more."""
