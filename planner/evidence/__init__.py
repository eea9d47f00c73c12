"""Accuracies that were observed, each with its source."""

from .loading import load, load_all
from .rows import Row, pack, published

__all__ = ["Row", "load", "load_all", "pack", "published"]
