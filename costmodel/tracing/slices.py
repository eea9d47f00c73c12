"""Writing in place through a view of a tensor that is read again: autograd makes it a write to the whole tensor.

PyTorch's `CopySlices` computes the gradient of the tensor that the view is of, and other views of it are taken anew
when they are read. Source: torch/csrc/autograd/functions/tensor.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .calls import operation_name


class StaleRead(Exception):
    """A tensor is read after a view of it was overwritten in place: the trace must follow such writes."""


def write_slice_(
    base: torch.Tensor, size: tuple, stride: tuple, offset: int, function: Callable, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Run an in-place function on a view of a tensor; return the tensor."""
    function(base.as_strided(size, stride, offset), *args, **kwargs)
    return base


def as_write(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Callable, tuple] | None:
    """Return a call that works in place on a view as one on the whole tensor; None if it is no such call."""
    op, in_place = operation_name(function)
    if not (in_place or kwargs.get("inplace")) or op in ("setitem", "write_slice") or not args:
        return None
    view = args[0]
    if view._base is None:
        return None
    return write_slice_, (view._base, *place(view), function, *args[1:])


def place(view: torch.Tensor) -> tuple[tuple, tuple, int]:
    """Return where in the memory of the whole tensor a view is: its sizes, strides, and offset."""
    return tuple(view.shape), view.stride(), int(view.storage_offset())
