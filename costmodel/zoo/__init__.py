"""Backbones that no library carries."""
