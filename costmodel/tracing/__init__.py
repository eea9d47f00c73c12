"""Torch model -> graph."""
