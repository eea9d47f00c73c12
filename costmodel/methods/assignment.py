"""What a method decides: the single source of truth that the cost model prices and `apply` builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KeptInput:
    """How a layer's input is kept for backward, where that differs from what the exact gradient needs.

    kind: what is kept, such as 'mask'. bits: per element. exact: whether the gradient stays exact. threshold: a 1-bit
    mask passes the gradient where the input is above it; None is the function's own exact test. role: the gradient that
    it is kept for. elements: per image, how many are kept; None keeps all. extra_bits: per image, beside them (a bitmap
    of which they are).
    """

    kind: str
    bits: int
    exact: bool
    threshold: float | None = None
    role: str = "input"
    elements: int | None = None
    extra_bits: int = 0

    def elements_of(self, count: int) -> int:
        """Return how many of an input's `count` elements per image are kept."""
        return count if self.elements is None else self.elements


@dataclass(frozen=True)
class AddedModule:
    """A module that a method puts beside calls of the network, which hold no more of it than its name.

    container: the module of the network that holds it, and says what kind it is (`costmodel.layers.added`). name: in
    the container. entry, role: the call, and its argument, that the module reads, too. joint: the call to whose result
    it adds. options: what the module is made with. merges_into: the parameter that it can be added to when it is
    trained; none if empty.
    """

    container: str
    name: str
    entry: tuple[str, str, int]
    role: str
    joint: tuple[str, str, int]
    options: tuple[tuple[str, Any], ...]
    merges_into: str = ""


@dataclass(frozen=True)
class Assignment:
    """What trains, and how.

    trained: names of the parameters that train. frozen_statistics: indices of the batch norms that use their running
    statistics. kept_inputs: by layer index. trained_elements: where a part of a parameter trains, how many numbers.
    added: the modules that the method puts into the network.
    """

    trained: frozenset[str]
    frozen_statistics: frozenset[int] = frozenset()
    kept_inputs: Mapping[int, KeptInput] = field(default_factory=dict)
    trained_elements: Mapping[str, int] = field(default_factory=dict)
    added: tuple[AddedModule, ...] = ()
