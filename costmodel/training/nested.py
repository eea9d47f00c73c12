"""Nested arguments and results of calls: tuples, lists and dicts, gone through fast.

A step goes through thousands of them. What else may be nested is left to `torch.utils._pytree`, which takes five times
as long (`benchmarks/schedule_time.py` shows what it adds up to).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils import _pytree as pytree


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Return a value in which every leaf is changed, its nesting as it was; a size is a leaf."""
    kind = type(value)
    if kind is tuple:
        return tuple([mapped(change, each) for each in value])
    if kind is list:
        return [mapped(change, each) for each in value]
    if kind is dict:
        return {name: mapped(change, each) for name, each in value.items()}
    return pytree.tree_map(change, value) if _is_nested(kind) else change(value)


@cache
def _is_nested(kind: type) -> bool:
    """Whether values of a type, which is none of Python's own, have leaves inside."""
    is_named_tuple = issubclass(kind, tuple) and kind is not torch.Size
    return is_named_tuple or kind in pytree.SUPPORTED_NODES


def leaves(value: Any) -> list[Any]:
    """Return the leaves of a value, in order; a size is a leaf."""
    kind = type(value)
    if kind in (tuple, list, dict):
        inside = value.values() if kind is dict else value
        return [leaf for each in inside for leaf in leaves(each)]
    return pytree.tree_leaves(value) if _is_nested(kind) else [value]


def tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a value."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]
