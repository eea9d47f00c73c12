"""Calls of a forward pass, recorded so that they can be made again without the network's code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from .nested import leaves, mapped


@dataclass(frozen=True)
class Slot:
    """Stands in a tape for the n-th tensor that was made, or, below 0, for one that came from outside."""

    number: int


@dataclass
class Entry:
    """One call: what ran, with slots in place of tensors, and which slots its results fill (None: no new tensor).

    reads: the numbers of the tensors that it reads.
    """

    run: Callable
    args: tuple
    kwargs: dict[str, Any]
    reads: list[int]
    results: list[int | None]
    with_gradient: bool
    random_state: torch.Tensor | None
    layer: int | None

    def filled(self, found: Callable[[Any], Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return the arguments; found: what to put in place of slots and of the network's own tensors."""
        places = self._places
        if places is None:
            return mapped(found, self.args), mapped(found, self.kwargs)
        args, kwargs = list(self.args), dict(self.kwargs)
        for place in places[0]:
            args[place] = found(args[place])
        for name in places[1]:
            kwargs[name] = found(kwargs[name])
        return args, kwargs

    @cached_property
    def _places(self) -> tuple[list[int], list[str]] | None:
        """Which arguments are slots or tensors; None where some are inside others."""
        args = [place for place, value in enumerate(self.args) if isinstance(value, _CHANGES)]
        kwargs = [name for name, value in self.kwargs.items() if isinstance(value, _CHANGES)]
        inside = sum(isinstance(value, _CHANGES) for value in leaves((self.args, self.kwargs)))
        return (args, kwargs) if inside == len(args) + len(kwargs) else None


_CHANGES = (Slot, torch.Tensor)


class Tape:
    """Calls that can be made again. outside: the tensors that they start from, but for the network's own (by id).

    copy_of: by the id of a copy, which of the network's own tensors it stands for; that one is noted, so that no copy
    is held.
    """

    def __init__(self, own: frozenset[int]):
        self.own = own
        self.entries: list[Entry] = []
        self.outside: list[Any] = []  # tensors, or None where nobody asks for one again
        self.copy_of: dict[int, torch.Tensor] = {}
        self.numbers = WeakIdKeyDictionary()  # of the tensors that are alive
        self.count = 0
        self.last_use: dict[int, int] = {}

    def record(
        self, run: Callable, args: Sequence[Any], kwargs: dict[str, Any], draws: bool = False,
        layer: int | None = None,
    ) -> Any:  # fmt: skip
        """Make a call and note it; return its result. draws: whether it draws random numbers."""
        given = mapped(self._slot, tuple(args)), mapped(self._slot, kwargs)
        state = torch.get_rng_state() if draws else None
        result = run(*args, **kwargs)
        values = leaves(result)
        if result is not None and not any(isinstance(value, torch.Tensor) for value in values):
            return result  # a size, or the like
        place, results = len(self.entries), [self._result(value) for value in values]
        if result is not None and not any(number is not None for number in results):
            return result  # something of the network's own, such as a count of batches: it moves once
        reads = [slot.number for slot in leaves(given) if isinstance(slot, Slot)]
        self.last_use |= dict.fromkeys([*reads, *(number for number in results if number is not None)], place)
        self.entries.append(Entry(run, given[0], given[1], reads, results, torch.is_grad_enabled(), state, layer))
        return result

    def _slot(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) in self.own:
            return value
        if id(value) in self.copy_of:
            return self.copy_of[id(value)]
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
        make: Callable[[Entry, Sequence, dict[str, Any]], Any] = lambda entry, args, kwargs: entry.run(*args, **kwargs),
    ) -> torch.Tensor | None:  # fmt: skip
        """Make the calls again, from other tensors in place of the outside ones; return the wanted tensor, if any.

        own: what to use of the network's own tensors. enough: asked after each call whether to stop. make: makes a
        call. A tensor is dropped after the last call that reads it.
        """
        made: dict[int, Any] = {-1 - number: tensor for number, tensor in enumerate(outside)}
        outside = ()

        def found(value: Any) -> Any:
            if isinstance(value, Slot):
                return made[value.number]
            return own(value) if isinstance(value, torch.Tensor) else value

        for place, entry in enumerate(self.entries):
            args, kwargs = entry.filled(found)
            if entry.random_state is None and entry.with_gradient == torch.is_grad_enabled():
                result = leaves(make(entry, args, kwargs))
            else:
                with torch.set_grad_enabled(entry.with_gradient), random_state_of(entry.random_state):
                    result = leaves(make(entry, args, kwargs))
            del args, kwargs
            made |= {number: value for number, value in zip(entry.results, result, strict=True) if number is not None}
            del result
            if enough():
                break
            for number in {*entry.reads, *entry.results}:
                if number in made and self.last_use[number] == place and number != wanted:
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


def address(tensor: torch.Tensor) -> int:
    """Return what tells a tensor's memory from other memory that is there at the same time."""
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata
