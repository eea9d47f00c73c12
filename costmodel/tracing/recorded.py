"""What a trace records, while it is recorded: the memory that tensors live in, their values, and the calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..graph.learned import Learned
from ..graph.values import Storage, Tensor


@dataclass(eq=False)
class Store:
    """The memory of one or more tensors; `memory` keeps its address from being used again."""

    id: int
    memory: Any
    dtype: torch.dtype
    held_until: int = -1
    writes: int = 0
    live: int = 0
    result: Storage | None = None


@dataclass(eq=False)
class Value:
    """What a tensor holds, until it is overwritten. kind, strides: as of `graph.values.Tensor`. watch: tells of its
    death.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    store: Store
    version: int
    name: str
    strides: tuple[int, ...]
    is_view: bool = False
    watch: Any = None
    result: Tensor | None = None


@dataclass(eq=False)
class Call:
    """One differentiable call, its arguments by role."""

    module: str
    op: str
    ordinal: int
    inputs: dict[str, Value]
    attributes: dict[str, Any]
    inplace: bool
    outputs: list[Value] | None = None
    learned: Learned | None = None
    beside: tuple[Value, ...] = ()
    checkpoint: int | None = None


def kinds(inputs: dict[str, Value]) -> set[str]:
    """Return what kinds of values a call reads."""
    return {value.kind for value in inputs.values()}


def counts(shape: tuple[int, ...], batch: int) -> int:
    """Return how many sizes the batch divides."""
    return sum(size > 0 and size % batch == 0 for size in shape)


def grows(shape: tuple[int, ...], batch: int) -> bool:
    """Return whether the batch divides a size."""
    return any(size and size % batch == 0 for size in shape)


def plain_value(value: Any) -> Any:
    """Return an argument as a plain value; what is torch's own, such as a dtype, as text."""
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)(plain_value(item) for item in value)
    if isinstance(value, dict):
        return {plain_value(key): plain_value(item) for key, item in value.items()}
    if value is None or value is Ellipsis:
        return value
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, slice):
        return slice(*(plain_value(item) for item in (value.start, value.stop, value.step)))
    return str(value)
