"""Evidence -> the accuracy to expect of a candidate, with interval and kind."""

from .accuracy import estimate
from .estimated import Estimate
from .setting import Setting

__all__ = ["Estimate", "Setting", "estimate"]
