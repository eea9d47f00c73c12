"""What the autograd functions of these layers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd.function import once_differentiable


def first_order(backward: Callable[..., Any]) -> Any:
    """Return a `backward` that is not differentiated again.

    `Any`, because torch annotates `backward` as one that takes any number of gradients; ours take those there are.
    """
    return once_differentiable(backward)
