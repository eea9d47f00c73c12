"""What a network is called with, and what its loss takes beside the result: tensors with a batch as one dimension.

Given are images' resolution, the shapes of one example (`(3, 320, 240)`, `"3x320x240"`, `"tokens=128:int64"`), or
example tensors as the network takes them, of any batch. Of example tensors the batch is the size that most of them
have in common, in the first dimension if it is there.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import InputError, require_count, unknown

Shape = Sequence[int] | str
Shapes = Shape | Sequence[Shape] | Mapping[str, Shape]

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
}
_TEXT = re.compile(r"(?:(?P<name>\w+)=)?(?P<sizes>\d+(?:x\d+)*)?(?::(?P<dtype>\w+))?")


@dataclass(frozen=True)
class Spec:
    """A tensor that a network is given: its shape in an example, and which dimension is the batch (None: none is)."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    batch_dimension: int | None = 0

    def of(self, batch: int) -> tuple[int, ...]:
        """Return the shape of a batch."""
        at = self.batch_dimension
        return self.shape if at is None else (*self.shape[:at], batch, *self.shape[at + 1 :])


@dataclass(frozen=True)
class Inputs:
    """The arguments of a network by position and by name, and what its loss is given; specs in place of tensors."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Any = None

    def of_type(self, dtype: torch.dtype) -> Inputs:
        """Return it with floats of another type."""

        def other(leaf: Any) -> Any:
            return replace(leaf, dtype=dtype) if isinstance(leaf, Spec) and leaf.dtype is torch.float32 else leaf

        return Inputs(*tree_map(other, (self.args, dict(self.kwargs), self.targets)))

    def meta(self, batch: int) -> Inputs:
        """Return it with tensors without numbers."""
        return self._filled(lambda spec: torch.empty(spec.of(batch), dtype=spec.dtype, device="meta"))

    def random(self, batch: int, device: str = "cpu") -> Inputs:
        """Return it with tensors of random numbers; whole numbers are 0, a token and a class of any network."""

        def fill(spec: Spec) -> torch.Tensor:
            if spec.dtype.is_floating_point:
                return torch.randn(spec.of(batch), dtype=spec.dtype, device=device)
            return torch.zeros(spec.of(batch), dtype=spec.dtype, device=device)

        return self._filled(fill)

    def _filled(self, fill: Callable[[Spec], torch.Tensor]) -> Inputs:
        args, kwargs, targets = tree_map(
            lambda leaf: fill(leaf) if isinstance(leaf, Spec) else leaf, (self.args, dict(self.kwargs), self.targets)
        )
        return Inputs(args, kwargs, targets)

    @property
    def leaves(self) -> list[Any]:
        """All specs or tensors, the network's first."""
        found = [*tree_leaves((self.args, dict(self.kwargs))), *tree_leaves(self.targets)]
        return [leaf for leaf in found if isinstance(leaf, Spec | torch.Tensor)]


def images(channels: int, resolution: int) -> Inputs:
    """Return square images."""
    return Inputs((Spec((1, channels, resolution, resolution)),), {})


def of_shapes(module: nn.Module, given: Shapes) -> Inputs:
    """Return the inputs of these shapes of one example: one, several by position, or by name.

    Errors: InputError for what is not a shape.
    """
    if isinstance(given, Mapping):
        return _called(module, {name: _spec(shape)[1] for name, shape in given.items()})
    several = isinstance(given, list | tuple) and given and isinstance(given[0], str | list | tuple)
    named = [_spec(shape) for shape in (given if several else [given])]
    if any(name for name, _ in named):
        return _called(module, {name: spec for name, spec in named if name}, tuple(s for name, s in named if not name))
    return Inputs(tuple(spec for _, spec in named), {})


def _spec(given: Any) -> tuple[str, Spec]:
    """Return the name (or '') and the spec of a shape without the batch, as numbers or as a text."""
    name, dtype = "", torch.float32
    if isinstance(given, str):
        found = _TEXT.fullmatch(given)
        if found is None:
            raise InputError(f"the input {given!r} is not a shape; write 3x320x240, 128:int64 or name=3x320x240")
        name, sizes = found["name"] or "", found["sizes"]
        given = [int(size[:20]) for size in sizes.split("x")] if sizes else []
        if found["dtype"]:
            if found["dtype"] not in _DTYPES:
                raise unknown("type of an input", found["dtype"], _DTYPES)
            dtype = _DTYPES[found["dtype"]]
    try:
        sizes = tuple(given)
    except TypeError:
        raise InputError(f"the input {given!r} is not a shape; write one example's sizes, as (3, 320, 240)") from None
    for size in sizes:
        require_count("a size of the input", size)
    return name, Spec((1, *sizes), dtype)


def of_examples(module: nn.Module, examples: Any, targets: Any = None) -> Inputs:
    """Return the inputs that example tensors stand for: a tensor, a tuple of arguments, or a dict.

    A dict holds arguments by name where the network's forward takes them so, else it is the one argument.

    Errors: InputError where there is no tensor.
    """
    tensors = [leaf for leaf in tree_leaves((examples, targets)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors:
        raise InputError("the inputs have no tensor; give what the network is called with: a tensor, tuple or dict")
    size = _common_size(tensors)

    def spec(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        shape = tuple(leaf.shape)
        return Spec(shape, leaf.dtype, shape.index(size) if size in shape else None)

    given, wanted = tree_map(spec, (examples, targets))
    if isinstance(given, Mapping):
        called = _called(module, given)
    else:
        called = Inputs(given if isinstance(given, tuple) else (given,), {})
    return Inputs(called.args, called.kwargs, wanted)


def _common_size(tensors: list[torch.Tensor]) -> int:
    """Return the size that most tensors have; of several the one that stands first in the first tensor."""
    counts = Counter(size for tensor in tensors for size in {*tensor.shape})
    most = max(counts[size] for size in tensors[0].shape)
    return next(size for size in tensors[0].shape if counts[size] == most)


def _called(module: nn.Module, by_name: Mapping[str, Any], args: tuple[Any, ...] = ()) -> Inputs:
    """Return a call with arguments by name, or with the dict of them where the network's forward has no such names."""
    parameters = inspect.signature(module.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if takes_any or by_name.keys() <= parameters.keys():
        return Inputs(args, dict(by_name))
    return Inputs((*args, dict(by_name)), {})
