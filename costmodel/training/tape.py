"""Calls of a forward pass, recorded so that they can be made again without the network's code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Slot:
    """Stands in a tape for the n-th tensor that was made, or, below 0, for one that came from outside."""

    number: int


@dataclass
class Entry:
    """One call: what ran, with slots in place of tensors, and which slots its results fill (None: no new tensor)."""

    run: Callable
    args: tuple
    kwargs: dict[str, Any]
    results: list[int | None]
    with_gradient: bool
    random_state: torch.Tensor | None
    layer: int | None


def is_slot(value: Any) -> bool:
    """Whether something stands for a tensor."""
    return isinstance(value, Slot)


class Tape:
    """Calls that can be made again. outside: the tensors that they start from, but for the network's own (by id)."""

    def __init__(self, own: frozenset[int]):
        self.own = own
        self.entries: list[Entry] = []
        self.outside: list[Any] = []  # tensors, or None where nobody asks for one again
        self.numbers = WeakIdKeyDictionary()  # of the tensors that are alive
        self.count = 0
        self.last_use: dict[int, int] = {}

    def record(
        self, run: Callable, args: tuple, kwargs: dict[str, Any], draws: bool = False, layer: int | None = None
    ) -> Any:
        """Make a call and note it; return its result. draws: whether it draws random numbers."""
        given = tree_map(self._slot, (args, kwargs))
        state = torch.get_rng_state() if draws else None
        result = run(*args, **kwargs)
        leaves = tree_leaves(result)
        if result is not None and not any(isinstance(value, torch.Tensor) for value in leaves):
            return result  # a size, or the like
        place, results = len(self.entries), [self._result(value) for value in leaves]
        if result is not None and not any(number is not None for number in results):
            return result  # something of the network's own, such as a count of batches: it moves once
        used = [slot.number for slot in tree_leaves(given, is_leaf=is_slot) if is_slot(slot)]
        self.last_use |= dict.fromkeys([*used, *(number for number in results if number is not None)], place)
        self.entries.append(Entry(run, given[0], given[1], results, torch.is_grad_enabled(), state, layer))
        return result

    def _slot(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) in self.own:
            return value
        if value not in self.numbers:
            self.outside.append(value)
            self.numbers[value] = Slot(-len(self.outside))
        return self.numbers[value]

    def _result(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor) or id(value) in self.own:
            return None
        if value not in self.numbers:
            self.numbers[value] = Slot(self.count)
            self.count += 1
        return self.numbers[value].number

    def replay(
        self, outside: Iterable[torch.Tensor], own: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
        enough: Callable[[], bool] = lambda: False, wanted: int | None = None,
        make: Callable[[Entry, tuple, dict[str, Any]], Any] = lambda entry, args, kwargs: entry.run(*args, **kwargs),
    ) -> torch.Tensor | None:  # fmt: skip
        """Make the calls again, from other tensors in place of the outside ones; return the wanted tensor, if any.

        own: what to use of the network's own tensors. enough: asked after each call whether to stop. make: makes a
        call. A tensor is dropped after the last call that reads it.
        """
        made: dict[int, Any] = {-1 - number: tensor for number, tensor in enumerate(outside)}
        outside = ()

        def found(value: Any) -> Any:
            if is_slot(value):
                return made[value.number]
            return own(value) if isinstance(value, torch.Tensor) else value

        for place, entry in enumerate(self.entries):
            args, kwargs = tree_map(found, (entry.args, entry.kwargs), is_leaf=is_slot)
            with torch.set_grad_enabled(entry.with_gradient), random_state_of(entry.random_state):
                result = tree_leaves(make(entry, args, kwargs))
            del args, kwargs
            made |= {number: value for number, value in zip(entry.results, result, strict=True) if number is not None}
            del result
            if enough():
                break
            for number in [number for number in made if self.last_use.get(number) == place and number != wanted]:
                del made[number]
        return None if wanted is None else made[wanted]


@contextmanager
def random_state_of(state: torch.Tensor | None) -> Iterator[None]:
    """Draw random numbers from a state of the generator in the block, if there is one."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        yield


def slots_of(entry: Entry) -> list[int]:
    """Return the numbers of the tensors that a call reads."""
    return [slot.number for slot in tree_leaves((entry.args, entry.kwargs), is_leaf=is_slot) if is_slot(slot)]


def address(tensor: torch.Tensor) -> int:
    """Return what tells a tensor's memory from other memory that is there at the same time."""
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata
