"""Accuracies in percent and their logits, the scale on which differences between ways carry over best."""

from __future__ import annotations

import numpy as np

_LEAST = 0.2  # percent: what is further out counts as this, so that 0 and 100 % have a logit


def logit(percent: np.ndarray | float) -> np.ndarray:
    """Return the logit of an accuracy in percent."""
    p = np.clip(np.asarray(percent, float), _LEAST, 100 - _LEAST) / 100
    return np.log(p / (1 - p))


def percent(logits: np.ndarray | float) -> np.ndarray:
    """Return the accuracy in percent of a logit."""
    return 100 / (1 + np.exp(-np.asarray(logits, float)))


def per_point(percent: np.ndarray | float) -> np.ndarray:
    """Return by how much the logit grows with each point, at an accuracy in percent."""
    p = np.clip(np.asarray(percent, float), _LEAST, 100 - _LEAST) / 100
    return 0.01 / (p * (1 - p))
