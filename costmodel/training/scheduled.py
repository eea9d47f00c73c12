"""A forward pass that is carried out by a schedule: the frozen prefix in pieces, segments that run again in backward.

The network's own code runs, call by call, under the tracker of `replacing`; where a call belongs to the prefix or to a
segment is known from the graph. Calls are recorded as they are made (a tape), so that they can be made again without
the network's code: hooks fire once, and any Python may stand between them.

Prefix: the network sees stand-ins that have the shape of the whole batch and no memory; each call runs on the first
piece. Where the prefix ends the tape runs on the other pieces, and the network goes on with all results.

Segment: its calls run as ever, but of what they would keep only a ticket is kept. The first ticket that backward asks
for makes the tape run again from the segment's input, in the same autocast and with the same random numbers, and what
its calls keep then is handed out. Running statistics are passed as copies there, so that they move once.

Source of the idea of tickets: torch.utils.checkpoint, use_reentrant=False.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import ModelError
from ..step.regions import RANDOM, Segment
from ..tracing.calls import argument_names
from .replacing import Call, Replacement, Replacing, TrainingPlan


@dataclass(frozen=True)
class _Slot:
    """Stands in a tape for the n-th tensor that was made, or, below 0, for one that came from outside."""

    number: int


@dataclass
class _Entry:
    """One call: what ran, with slots in place of tensors, and which slots its results fill (None: no new tensor)."""

    run: Callable
    args: tuple
    kwargs: dict[str, Any]
    results: list[int | None]
    with_gradient: bool
    random_state: torch.Tensor | None
    layer: int | None


def _is_slot(value: Any) -> bool:
    return isinstance(value, _Slot)


class Tape:
    """Calls that can be made again. outside: the tensors that they start from, but for the network's own (by id)."""

    def __init__(self, own: frozenset[int]):
        self.own = own
        self.entries: list[_Entry] = []
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
        used = [slot.number for slot in tree_leaves(given, is_leaf=_is_slot) if _is_slot(slot)]
        self.last_use |= dict.fromkeys([*used, *(number for number in results if number is not None)], place)
        self.entries.append(_Entry(run, given[0], given[1], results, torch.is_grad_enabled(), state, layer))
        return result

    def _slot(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) in self.own:
            return value
        if value not in self.numbers:
            self.outside.append(value)
            self.numbers[value] = _Slot(-len(self.outside))
        return self.numbers[value]

    def _result(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor) or id(value) in self.own:
            return None
        if value not in self.numbers:
            self.numbers[value] = _Slot(self.count)
            self.count += 1
        return self.numbers[value].number

    def replay(
        self, outside: Iterable[torch.Tensor], own: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
        enough: Callable[[], bool] = lambda: False, wanted: int | None = None,
        make: Callable[[_Entry, tuple, dict[str, Any]], Any] = lambda entry, args, kwargs: entry.run(*args, **kwargs),
    ) -> torch.Tensor | None:  # fmt: skip
        """Make the calls again, from other tensors in place of the outside ones; return the wanted tensor, if any.

        own: what to use of the network's own tensors. enough: asked after each call whether to stop. make: makes a
        call. A tensor is dropped after the last call that reads it.
        """
        made: dict[int, Any] = {-1 - number: tensor for number, tensor in enumerate(outside)}
        outside = ()

        def found(value: Any) -> Any:
            if _is_slot(value):
                return made[value.number]
            return own(value) if isinstance(value, torch.Tensor) else value

        for place, entry in enumerate(self.entries):
            args, kwargs = tree_map(found, (entry.args, entry.kwargs), is_leaf=_is_slot)
            with torch.set_grad_enabled(entry.with_gradient), _random_state(entry.random_state):
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
def _random_state(state: torch.Tensor | None) -> Iterator[None]:
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        yield


class _Enough(Exception):
    """All that a segment's calls keep is there."""


class _Ticket:
    """Kept in place of a tensor: the how-manieth of a segment's."""

    __slots__ = ("number", "segment")

    def __init__(self, segment: _Segment, number: int):
        self.segment, self.number = segment, number


@dataclass(frozen=True)
class _Own:
    """What is the network's own, and the autocast that it runs in: ids of tensors and buffers, addresses of memory."""

    tensors: frozenset[int]
    buffers: frozenset[int]
    storages: frozenset[int]
    autocast: dict[str, Any]


Target = tuple[int, int]  # a slot, and the call that wrote it last


class _Late:
    """Kept in place of a tensor that cheap work makes again; the tensor itself where it turns out to be another."""

    __slots__ = ("cheap", "target", "tensor")

    def __init__(self, cheap: _Cheap, tensor: torch.Tensor | None):
        self.cheap, self.tensor, self.target = cheap, tensor, (-1, -1)

    def becomes(self, target: Target) -> None:
        """Let go of the tensor: it is made again when it is asked for."""
        self.tensor, self.target = None, target
        self.cheap.left[target] += 1

    def get(self) -> torch.Tensor:
        """Return the tensor."""
        return self.cheap.take(self.target) if self.tensor is None else self.tensor


class _Cheap:
    """A segment's cheap work, recorded; of its results nothing is kept: they are made again from what else is there."""

    def __init__(self, own: _Own, segment: Segment):
        self.own, self.segment, self.tape = own, segment, Tape(own.tensors)
        self.results: dict[int, tuple[weakref.ref[torch.Tensor], Target]] = {}  # by address
        self.late: list[_Late] | None = None  # of the present call
        self.left: Counter[Target] = Counter()  # how often each will be asked for
        self.made: dict[Target, torch.Tensor] = {}

    def run(self, run: Callable, args: tuple, kwargs: dict[str, Any], draws: bool, layer: int | None) -> Any:
        """Make a call; cheap ones are recorded."""
        if layer not in self.segment.cheap and layer not in self.segment.not_cloned:
            return run(*args, **kwargs)
        given = next(value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor))
        before = self._find(given) if layer in self.segment.not_cloned else None
        self.late = []
        if layer in self.segment.cheap:
            result = self.tape.record(run, args, kwargs, draws, layer)
            place = len(self.tape.entries) - 1
            for value, number in zip(tree_leaves(result), self.tape.entries[place].results, strict=True):
                if number is not None:
                    self.results[_address(value)] = weakref.ref(value), (number, place)
        else:
            result = run(*args, **kwargs)
            self.results.pop(_address(result), None)  # it is overwritten
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
        known = self.results.get(_address(tensor))
        alive = None if known is None else known[0]()
        if known is None or alive is None or _address(alive) != _address(tensor) or alive.shape != tensor.shape:
            return None
        return known[1]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | _Late:
        """Return what is kept of a tensor."""
        if _address(tensor) in self.own.storages:
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
        needed = {slot for each in open_ones for slot in self._starts(each)}
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
            wanted |= dict.fromkeys(_slots(entry), place - 1)
        return chain[::-1]

    def _starts(self, target: Target) -> set[int]:
        """Return the slots from outside that a result is made from."""
        return {slot for place in self._chain(target) for slot in _slots(self.tape.entries[place]) if slot < 0}

    def _make(self, target: Target) -> None:
        chain, entries = self._chain(target, self.made), self.tape.entries
        values: dict[int, Any] = {number: value for (number, _), value in self.made.items()}
        values |= {-1 - number: tensor for number, tensor in enumerate(self.tape.outside)}

        def found(value: Any) -> Any:
            if _is_slot(value):
                given = values[value.number]
                if given is None:
                    raise ModelError(
                        "a segment with cheap work done again can run backward once; apply without segments to keep "
                        "the graph (retain_graph=True)"
                    )
                return given
            is_buffer = isinstance(value, torch.Tensor) and id(value) in self.own.buffers
            return value.clone() if is_buffer else value

        for step, place in enumerate(chain):
            entry, later = entries[place], chain[step + 1 :]
            overwrites = {number for number in entry.results if number is not None} & {*_slots(entry)}
            for number in overwrites & {number for number, _ in self.made}:
                values[number] = values[number].clone()
            args, kwargs = tree_map(found, (entry.args, entry.kwargs), is_leaf=_is_slot)
            with torch.no_grad(), torch.autocast(**self.own.autocast), _random_state(entry.random_state):
                result = tree_leaves(entry.run(*args, **kwargs))
            del args, kwargs
            for number, value in zip(entry.results, result, strict=True):
                if number is None:
                    continue
                values[number] = value
                is_final = not any(number in entries[other].results for other in later)
                if (number, place) == target or (self.left[number, place] > 0 and is_final):
                    self.made[number, place] = value
            value = result = None
            used_later = {slot for other in later for slot in _slots(entries[other])}
            for number in [number for number in values if number >= 0 and number not in used_later]:
                del values[number]


def _slots(entry: _Entry) -> list[int]:
    return [slot.number for slot in tree_leaves((entry.args, entry.kwargs), is_leaf=_is_slot) if _is_slot(slot)]


class _Segment:
    """A segment in one forward pass that runs again as a whole."""

    def __init__(self, own: _Own, segment: Segment):
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
        storage = _address(tensor)
        if storage in self.own.storages or any(storage == _address(given) for given in self.tape.outside):
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
        there = {*self.own.storages, *map(_address, self.tape.outside)}
        cheap = _Cheap(self.own, self.segment)
        constants = WeakIdKeyDictionary()
        copies: list[torch.Tensor] = []  # held, so that no address is used again

        def own(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in self.own.buffers:
                return tensor
            copies.append(tensor.clone())  # running statistics move once
            there.add(_address(copies[-1]))
            return copies[-1]

        def pack(tensor: torch.Tensor) -> None:
            if _address(tensor) not in there and tensor not in constants:
                self.found[len(self.found)] = cheap.pack(tensor.detach())
                if len(self.found) == self.count and not cheap.is_running:
                    raise _Enough  # what the present call computes is not needed

        def make(entry: _Entry, args: tuple, kwargs: dict[str, Any]) -> Any:
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
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                constants[value] = True


def _address(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


def _never(kept: Any) -> torch.Tensor:
    raise AssertionError("what a second run keeps is handed out by tickets")


def _unpack(kept: Any) -> torch.Tensor:
    if not isinstance(kept, _Ticket | _Late):
        return kept
    if torch.is_grad_enabled():
        raise ModelError(
            "what a segment makes again cannot be differentiated twice (create_graph=True); apply without segments"
        )
    return kept.get() if isinstance(kept, _Late) else kept.segment.take(kept.number)


class _Count(int):
    """A number that grows with the batch, as the network sees it: of the whole batch, or some times that."""

    def __mul__(self, other: Any) -> Any:
        """Stay a count under products with whole numbers."""
        return _Count(int(self) * other) if isinstance(other, int) else int(self) * other

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        """Stay a count under division without rest."""
        exact = isinstance(other, int) and other and not int(self) % other
        return _Count(int(self) // other) if exact else int(self) // other


def _counted(whole: Any, piece: Any) -> Any:
    """Return sizes of the whole batch; those that are others for a piece of it as counts."""
    if isinstance(whole, torch.Size):
        return torch.Size([_counted(*each) for each in zip(whole, piece, strict=True)])
    is_number = isinstance(whole, int) and not isinstance(whole, bool)
    return _Count(whole) if is_number and whole != piece else whole


class _Prefix:
    """The frozen prefix in one forward pass, `piece` images at a time."""

    def __init__(self, own: frozenset[int], images: list[torch.Tensor], piece: int):
        self.tape, self.images, self.piece = Tape(own), images, min(piece, len(images[0]))
        self.first = {id(each): each[:piece] for each in images}
        self.results = WeakIdKeyDictionary()  # of the first piece, by the stand-in that the network sees

    def run(self, run: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Make a call on the first piece; return stand-ins of its results."""
        stand_ins: dict[int, torch.Tensor] = {}

        def real(value: Any) -> Any:
            if isinstance(value, _Count):
                return int(value) * self.piece // len(self.images[0])
            if not isinstance(value, torch.Tensor):
                return value
            found = self.first.get(id(value))
            if found is None:
                found = self.results.get(value)
            if found is not None:
                stand_ins[id(found)] = value
            return value if found is None else found

        def stand_in(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or id(value) in self.tape.own:
                return value
            if id(value) not in stand_ins:
                shown = value.new_empty(()).expand(self._whole(value), *value.shape[1:])
                self.results[shown] = value
                return shown
            return stand_ins[id(value)]

        inner = tree_map(real, (args, kwargs))
        with torch.no_grad():
            result = self.tape.record(run, *inner)
        if not any(isinstance(value, torch.Tensor) for value in tree_leaves(result)):
            return _counted(run(*args, **kwargs), result)  # a size
        return tree_map(stand_in, result)

    def _whole(self, value: torch.Tensor) -> int:
        """Return the first dimension of all images together."""
        return len(value) * len(self.images[0]) // self.piece

    def finish(self, stand_in: torch.Tensor) -> torch.Tensor:
        """Run the other pieces; return the tensor that a stand-in stands for, of all images."""
        first = self.results[stand_in]
        number = self.tape.numbers[first].number
        whole = torch.empty_like(first.new_empty(()).expand(stand_in.shape), memory_format=_memory_format(first))
        whole[: len(first)].copy_(first)
        each_image, batch = len(first) // self.piece, len(self.images[0])
        whole_of = {id(self.first[id(each)]): each for each in self.images}
        given = [(each, whole_of.get(id(each))) for each in self.tape.outside]
        self.results.clear()
        del first
        with torch.no_grad():
            for start in range(self.piece, batch, self.piece):
                start = min(start, batch - self.piece)  # all pieces have one size: the last may run some images again
                pieces = [own if all_ is None else all_[start : start + self.piece] for own, all_ in given]
                made = self.tape.replay(pieces, wanted=number)
                assert made is not None  # it was asked for
                whole[start * each_image : start * each_image + len(made)].copy_(made)
                del made
        return whole


def _memory_format(tensor: torch.Tensor) -> torch.memory_format:
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


class ScheduledPass(Replacing):
    """One forward pass of an applied network by its schedule. inputs: what it is called with."""

    def __init__(
        self, network: nn.Module, plan: TrainingPlan, replacements: dict[Call, Replacement], inputs: Any
    ):  # fmt: skip
        super().__init__(network, plan, replacements)
        self.regions = plan.regions
        buffers, own = list(network.buffers()), [*network.parameters(), *network.buffers()]
        images = [value for value in tree_leaves(inputs) if isinstance(value, torch.Tensor)]
        self.own = _Own(
            frozenset(map(id, own)), frozenset(map(id, buffers)), frozenset(map(_address, own)),
            _autocast(images[0].device.type),
        )  # fmt: skip
        self.in_segment: Segment | None = None
        self.segment: _Segment | _Cheap | None = None
        self.collected = WeakIdKeyDictionary()  # what the prefix came to, by the stand-in that the network holds
        self.prefix = None
        if plan.schedule.prefix_batch is not None:
            self.prefix = _Prefix(self.own.tensors, images, plan.schedule.prefix_batch)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Run one call where it belongs."""
        kwargs = kwargs or {}
        call = self.locate(function)
        index = self.plan.places.get(call)
        run = _runner(function, self.replacements.get(call))
        if self.prefix is not None:
            if index is None or index < self.regions.prefix:
                return self.prefix.run(run, args, kwargs)
            self._leave_prefix(args, kwargs)
        args, kwargs = tree_map(self._whole, (args, kwargs))
        if index is not None:
            segment = self.regions.segment_of.get(index)
            self._enter(segment if segment is not None and index < segment.plain_from else None)
        if self.segment is None:
            return run(*args, **kwargs)
        with torch.autograd.graph.saved_tensors_hooks(self.segment.pack, _unpack):
            return self.segment.run(run, args, kwargs, call[1] in RANDOM, index)

    def _whole(self, value: Any) -> Any:
        return self.collected.get(value, value) if isinstance(value, torch.Tensor) else value

    def _leave_prefix(self, args: tuple, kwargs: dict[str, Any]) -> None:
        prefix, self.prefix = self.prefix, None
        assert prefix is not None  # it is left once
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and value in prefix.results:
                self.collected[value] = prefix.finish(value)
                return

    def _enter(self, segment: Segment | None) -> None:
        if segment is not self.in_segment:
            self.in_segment, self.segment = segment, None
            if segment is not None:
                self.segment = (_Segment if segment.runs_again else _Cheap)(self.own, segment)


def _runner(function: Callable, replacement: Replacement | None) -> Callable:
    """Return what makes a call, and can make it again without the network."""
    if replacement is None:
        return function
    names = argument_names(function)
    return lambda *args, **kwargs: replacement({**dict(zip(names, args, strict=False)), **kwargs})


def _autocast(device: str) -> dict[str, Any]:
    return {
        "device_type": device, "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device), "cache_enabled": torch.is_autocast_cache_enabled(),
    }  # fmt: skip
