"""Calls on the meta device, quickly: those that keep their input's shape are not worked out again and again.

PyTorch works the result of a batch norm or an activation out in Python there, a millisecond or two each, though nothing
but its shape is known: the input's. So each is run once for every set of options, which are thereby checked; later
calls get an empty tensor, or, in place, their input. What could differ from a real call (another layout, dtype, tensor
class, numbers of channels that do not match) is run as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from .calls import argument_names

SAME_SHAPE = frozenset(
    (
        F.batch_norm, F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish, F.relu6,
        F.selu, F.silu, F.softplus,
    )
)  # fmt: skip
_TENSORS = (torch.Tensor, torch.nn.Parameter)


class QuickCalls:
    """Runs the calls of one forward pass on the meta device."""

    def __init__(self) -> None:
        self._checked: set[tuple] = set()

    def __call__(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return what `function(*args, **kwargs)` returns, and raise what it raises."""
        if function not in SAME_SHAPE:
            return function(*args, **kwargs)
        given = dict(zip(argument_names(function), args, strict=False)) | kwargs
        x = given.pop("input", None)
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        if not (_plain(x) and x.dim() > 1 and all(_plain(y) and y.shape == x.shape[1:2] for y in tensors.values())):
            return function(*args, **kwargs)
        # A batch norm refuses a single value per channel, so that case is one of its own.
        options = (function, x.numel() == x.shape[1], *((k, k in tensors or repr(given[k])) for k in given))
        if options not in self._checked:
            result = function(*args, **kwargs)
            self._checked.add(options)
            return result
        return x if given.get("inplace") else torch.empty(x.shape, device="meta")  # quicker than empty_like


def _plain(value: Any) -> bool:
    return (
        type(value) in _TENSORS
        and value.is_meta
        and value.dtype is torch.float32
        and value.is_contiguous()
        and not value.requires_grad
    )
