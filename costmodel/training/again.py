"""Segments of a forward pass that keep less and make it again in backward.

A segment that runs again: of what its calls would keep only a ticket is kept. The first ticket that backward asks for
makes the tape run again from the segment's input, in the same autocast and with the same random numbers, and what its
calls keep then is handed out. Running statistics are passed as copies there, so that they move once.

Cheap work: of what norms, activations and sums give nothing is kept; it is made again, when it is asked for, from what
else is there.

Source of the idea of tickets: torch.utils.checkpoint, use_reentrant=False.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import ModelError
from ..step.segments import Segment
from .nested import leaves, tensors
from .tape import Entry, Slot, Tape, address, random_state_of


class _Enough(Exception):
    """All that a segment's calls keep is there."""


class _Ticket:
    """Kept in place of a tensor: the how-manieth of a segment's."""

    __slots__ = ("number", "segment")

    def __init__(self, segment: SegmentAgain, number: int):
        self.segment, self.number = segment, number


@dataclass(frozen=True)
class Own:
    """What is the network's own, and the autocast that it runs in: ids of tensors and buffers, addresses of memory."""

    tensors: frozenset[int]
    buffers: frozenset[int]
    storages: frozenset[int]
    autocast: dict[str, Any]


Target = tuple[int, int]  # a slot, and the call that wrote it last


class _Late:
    """Kept in place of a tensor that cheap work makes again; the tensor itself where it turns out to be another."""

    __slots__ = ("cheap", "target", "tensor")

    def __init__(self, cheap: CheapWork, tensor: torch.Tensor | None):
        self.cheap, self.tensor, self.target = cheap, tensor, (-1, -1)

    def becomes(self, target: Target) -> None:
        """Let go of the tensor: it is made again when it is asked for."""
        self.tensor, self.target = None, target
        self.cheap.left[target] += 1

    def get(self) -> torch.Tensor:
        """Return the tensor."""
        return self.cheap.take(self.target) if self.tensor is None else self.tensor


class CheapWork:
    """A segment's cheap work, recorded; of its results nothing is kept: they are made again from what else is there."""

    def __init__(self, own: Own, segment: Segment):
        self.own, self.segment, self.tape = own, segment, Tape(own.tensors)
        self.results: dict[int, tuple[weakref.ref[torch.Tensor], Target]] = {}  # by address
        self.late: list[_Late] | None = None  # of the present call
        self.left: Counter[Target] = Counter()  # how often each will be asked for
        self.made: dict[Target, torch.Tensor] = {}
        self.starts: dict[Target, frozenset[int]] = {}

    def run(self, run: Callable, args: Sequence[Any], kwargs: dict[str, Any], draws: bool, layer: int | None) -> Any:
        """Make a call; cheap ones are recorded."""
        if layer not in self.segment.cheap and layer not in self.segment.not_cloned:
            return run(*args, **kwargs)
        given = tensors((args, kwargs))[0]
        before = self._find(given) if layer in self.segment.not_cloned else None
        self.late = []
        if layer in self.segment.cheap:
            result = self.tape.record(run, args, kwargs, draws, layer)
            place = len(self.tape.entries) - 1
            for value, number in zip(leaves(result), self.tape.entries[place].results, strict=True):
                if number is not None:
                    self.results[address(value)] = weakref.ref(value), (number, place)
        else:
            result = run(*args, **kwargs)
            self.results.pop(address(result), None)  # it is overwritten
        late, self.late = self.late, None
        for each in late:
            assert each.tensor is not None  # until it becomes a target
            target = self._find(each.tensor)
            if target is None and before is not None and each.tensor.shape == given.shape:
                target = before  # the copy that a call in place makes of its input
            if target is not None:
                each.becomes(target)
        return result

    @property
    def is_running(self) -> bool:
        """Whether a call is being recorded, of which it is not yet known what it keeps."""
        return self.late is not None

    def _find(self, tensor: torch.Tensor) -> Target | None:
        """Return which result a tensor is; an address may be used again when a result is gone."""
        known = self.results.get(address(tensor))
        alive = None if known is None else known[0]()
        if known is None or alive is None or address(alive) != address(tensor) or alive.shape != tensor.shape:
            return None
        return known[1]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | _Late:
        """Return what is kept of a tensor."""
        if address(tensor) in self.own.storages:
            return tensor
        if self.late is not None:
            self.late.append(_Late(self, tensor))
            return self.late[-1]
        target = self._find(tensor)
        if target is None:
            return tensor
        late = _Late(self, None)
        late.becomes(target)
        return late

    def take(self, target: Target) -> torch.Tensor:
        """Return a result, made again unless it is there; it is gone when it was asked for as often as it was kept."""
        if target not in self.made:
            self._make(target)
        self.left[target] -= 1
        if self.left[target] > 0:
            return self.made[target]
        value = self.made.pop(target)
        open_ones = [each for each, count in self.left.items() if count > 0]
        needed = {slot for each in open_ones for slot in self._starts_of(each)}
        for number in range(len(self.tape.outside)):
            if -1 - number not in needed:
                self.tape.outside[number] = None
        return value

    def _chain(self, target: Target, made: Collection[Target] = ()) -> list[int]:
        """Return the calls, in order, that make a result; those whose results are there already are left out."""
        wanted, chain = dict([target]), []
        for place in range(target[1], -1, -1):
            entry = self.tape.entries[place]
            mine = [number for number in entry.results if number is not None and wanted.get(number, -1) >= place]
            if not mine:
                continue
            if any((number, place) in made for number in mine):
                wanted = {number: at for number, at in wanted.items() if number not in mine}
                continue
            chain.append(place)
            wanted |= dict.fromkeys(entry.reads, place - 1)
        return chain[::-1]

    def _starts_of(self, target: Target) -> frozenset[int]:
        """Return the slots from outside that a result is made from."""
        if target not in self.starts:
            reads = (slot for place in self._chain(target) for slot in self.tape.entries[place].reads)
            self.starts[target] = frozenset(slot for slot in reads if slot < 0)
        return self.starts[target]

    def _make(self, target: Target) -> None:
        chain, entries = self._chain(target, self.made), self.tape.entries
        values: dict[int, Any] = {number: value for (number, _), value in self.made.items()}
        values |= {-1 - number: tensor for number, tensor in enumerate(self.tape.outside)}

        def found(value: Any) -> Any:
            if isinstance(value, Slot):
                given = values[value.number]
                if given is None:
                    raise ModelError(
                        "a segment that recomputes norms and activations can run backward once; apply without segments "
                        "to keep the graph (retain_graph=True)"
                    )
                return given
            is_buffer = isinstance(value, torch.Tensor) and id(value) in self.own.buffers
            return value.clone() if is_buffer else value

        for step, place in enumerate(chain):
            entry, later = entries[place], chain[step + 1 :]
            overwrites = {number for number in entry.results if number is not None} & {*entry.reads}
            for number in overwrites & {number for number, _ in self.made}:
                values[number] = values[number].clone()
            args, kwargs = entry.filled(found)
            with torch.no_grad(), torch.autocast(**self.own.autocast), random_state_of(entry.random_state):
                result = leaves(entry.run(*args, **kwargs))
            del args, kwargs
            for number, value in zip(entry.results, result, strict=True):
                if number is None:
                    continue
                values[number] = value
                is_final = not any(number in entries[other].results for other in later)
                if (number, place) == target or (self.left[number, place] > 0 and is_final):
                    self.made[number, place] = value
            value = result = None
            used_later = {slot for other in later for slot in entries[other].reads}
            for number in [number for number in values if number >= 0 and number not in used_later]:
                del values[number]


class SegmentAgain:
    """A segment in one forward pass that runs again as a whole."""

    def __init__(self, own: Own, segment: Segment):
        self.own, self.segment, self.tape = own, segment, Tape(own.tensors)
        self.count = 0
        self.found: dict[int, torch.Tensor | _Late] = {}
        self.constants = WeakIdKeyDictionary()  # what is no layer's result: random masks, which stay

    def run(self, run: Callable, args: tuple, kwargs: dict[str, Any], draws: bool, layer: int | None) -> Any:
        """Make a call and record it."""
        result = self.tape.record(run, args, kwargs, draws, layer)
        _note_constants(self.constants, result, layer)
        return result

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | _Ticket:
        """Return what is kept of a tensor: itself if it is there in any case, else a ticket."""
        storage = address(tensor)
        if storage in self.own.storages or any(storage == address(given) for given in self.tape.outside):
            return tensor
        if tensor in self.constants:
            return tensor
        self.count += 1
        return _Ticket(self, self.count - 1)

    def take(self, number: int) -> torch.Tensor:
        """Return the tensor of a ticket, and forget it."""
        if number not in self.found:
            self._again()
        kept = self.found.pop(number)
        return kept.get() if isinstance(kept, _Late) else kept

    def _again(self) -> None:
        """Run the tape again, and note what its calls keep."""
        self.found.clear()
        there = {*self.own.storages, *map(address, self.tape.outside)}
        cheap = CheapWork(self.own, self.segment)
        constants = WeakIdKeyDictionary()
        copies: list[torch.Tensor] = []  # held, so that no address is used again

        def own(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in self.own.buffers:
                return tensor
            copies.append(tensor.clone())  # running statistics move once
            there.add(address(copies[-1]))
            cheap.tape.copy_of[id(copies[-1])] = tensor
            return copies[-1]

        def pack(tensor: torch.Tensor) -> None:
            if address(tensor) not in there and tensor not in constants:
                self.found[len(self.found)] = cheap.pack(tensor.detach())
                if len(self.found) == self.count and not cheap.is_running:
                    raise _Enough  # what the present call computes is not needed

        def make(entry: Entry, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            result = cheap.run(entry.run, args, kwargs, entry.random_state is not None, entry.layer)
            _note_constants(constants, result, entry.layer)
            return result

        outside = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in self.tape.outside]
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, _never)
        with torch.autocast(**self.own.autocast), hooks, suppress(_Enough):
            self.tape.replay(outside, own, lambda: len(self.found) >= self.count, make=make)
        if len(self.found) != self.count:
            raise ModelError(
                f"a segment kept {self.count} tensors in forward and {len(self.found)} when it ran again: its calls do "
                "not do the same twice; leave it out of the schedule"
            )


def _note_constants(constants: WeakIdKeyDictionary, result: Any, layer: int | None) -> None:
    if layer is None:
        for value in tensors(result):
            constants[value] = True


def _never(kept: Any) -> torch.Tensor:
    raise AssertionError("what a second run keeps is handed out by tickets")


def unpack(kept: Any) -> torch.Tensor:
    """Return what was kept, made again if it is a ticket. Errors: ModelError for a second derivative."""
    if not isinstance(kept, _Ticket | _Late):
        return kept
    if torch.is_grad_enabled():
        raise ModelError(
            "what a segment makes again cannot be differentiated twice (create_graph=True); apply without segments"
        )
    return kept.get() if isinstance(kept, _Late) else kept.segment.take(kept.number)
