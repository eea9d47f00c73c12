"""What a schedule means for a network that is trained in a way: the frozen prefix, and the segments that run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..accounting.books import Key, dense_key
from ..accounting.requirements import Requirements
from ..errors import InputError
from ..graph.passages import passages
from ..graph.values import Tensor
from ..kept import kept
from ..rules.table import operation
from ..units import Count, over_batch
from .schedule import Schedule

# What draws random numbers: in pieces it would draw others.
RANDOM = frozenset({"dropout", "feature_dropout", "alpha_dropout", "bernoulli", "rand", "rand_like", "randn"})


@dataclass(frozen=True, eq=False)
class Segment:
    """The layers `first` to `last`, which keep their input for backward and run again there.

    input: the one tensor that passes before `first`. kept: what the layers would keep, and have again when they ran
    again. needed_by: the layers that use something of it. inner: the storages that are made inside.
    """

    first: int
    last: int
    input: Tensor
    kept: tuple[Key, ...]
    needed_by: frozenset[int]
    inner: frozenset[int]

    @property
    def stop(self) -> int:
        """The last layer that runs again: behind it nothing is kept. It is also whose backward asks first."""
        return max(self.needed_by)

    @property
    def release(self) -> int:
        """The layer whose backward is the last to need the segment's input."""
        return min(self.needed_by)


@dataclass(frozen=True, eq=False)
class Regions:
    """A network cut up by a schedule: layers below `prefix` run in pieces (0: none do); segments run again."""

    prefix: int
    prefix_output: Tensor | None
    segments: tuple[Segment, ...]

    @cached_property
    def segment_of(self) -> Mapping[int, Segment]:
        """The segment of each layer that is in one."""
        return {index: one for one in self.segments for index in range(one.first, one.last + 1)}


@kept
def prefix_end(required: Requirements) -> int:
    """Return the first layer that does not belong to the frozen prefix, which one tensor passes; 0 if there is none.

    The prefix may run in pieces: nothing in it trains, takes statistics of the batch, or is random.
    """
    graph, frozen = required.graph, required.assignment.frozen_statistics
    most = min(required.wanted, default=0)
    for layer in graph.layers[:most]:
        own_statistics = operation(layer, layer.index in frozen) == "batch_norm"
        drawn = (t for t in layer.inputs.values() if t.kind == "constant" and t.storage.id not in graph.resident_storages)
        if own_statistics or layer.op in RANDOM or any(drawn):
            most = layer.index
            break
    if not can_be_cut(required):
        return 0
    return max((place for place in passages(graph) if 0 < place <= most), default=0)


def can_be_cut(required: Requirements) -> bool:
    """Whether no weight is computed from parameters, and no layer was put in by the method: these are not cut up."""
    return not any(layer.output.kind == "derived" or layer.in_place_of or layer.ordinal < 0 for layer in required.graph.layers)


@kept
def regions(required: Requirements, schedule: Schedule) -> Regions:
    """Return the network cut up. Errors: InputError for a schedule of another network or way, with what fits."""
    graph, end = required.graph, prefix_end(required)
    if schedule.prefix_batch is not None and not end:
        raise InputError(
            f"prefix_batch does not fit {required.way.label} on {graph.model}: there is no frozen prefix that could run "
            "in pieces; leave it out"
        )
    segments, before = [], 0
    for first, last in schedule.recompute:
        if first < before:
            raise InputError(f"the segments of recompute must not overlap, as layers {first} to {last} do; make it anew")
        segments.append(_segment(required, first, last))
        before = last + 1
    if schedule.prefix_batch is None:
        return Regions(0, None, tuple(segments))
    return Regions(end, passages(graph)[end], tuple(segments))


@kept
def _segment(required: Requirements, first: int, last: int) -> Segment:
    graph, places = required.graph, passages(required.graph)
    ends = first in places and (last + 1 in places or last + 1 == len(graph.layers))
    if not ends or not first <= last or first < prefix_end(required) or not can_be_cut(required):
        raise InputError(
            f"layers {first} to {last} of {graph.model} are no segment that {required.way.label} can recompute: the "
            "schedule is of another network or way; make it with costmodel.best_schedule"
        )
    layers = graph.layers[first : last + 1]
    inner = {tensor.storage.id for layer in layers for tensor in layer.outputs} - {places[first].storage.id}
    keys, needed_by = [], set()
    for layer in layers:
        for key in required.books.by_layer.get(layer.index, ()):
            saved = required.books.saved[key]
            if key != dense_key(places[first]) and (saved.storage is None or saved.storage.id in inner):
                needed_by.add(layer.index)
                keys.append(key)
    if not needed_by:
        raise InputError(
            f"layers {first} to {last} of {graph.model} keep nothing that could be recomputed for {required.way.label}; "
            "leave them out"
        )
    return Segment(first, last, places[first], tuple(dict.fromkeys(keys)), frozenset(needed_by), frozenset(inner))


def recomputed_flops(required: Requirements, schedule: Schedule, batch: Count, passes: Count) -> tuple[Count, Count]:
    """Return the FLOPs of what runs again for an update, and of its element-wise work."""
    flops: Count = 0 * batch
    elementwise: Count = 0 * batch
    for index in again(required, schedule):
        times = batch if required.graph.layers[index].output.batched else passes
        flops = flops + times * required.facts[index].forward_flops
        elementwise = elementwise + times * required.facts[index].forward_elementwise
    return flops, elementwise


def again(required: Requirements, schedule: Schedule) -> tuple[int, ...]:
    """Return the layers that run again in backward."""
    if not schedule.recompute:
        return ()
    cut = regions(required, schedule)
    return tuple(index for one in cut.segments for index in range(one.first, one.stop + 1))


def saved_bytes(required: Requirements, schedule: Schedule, micro_batch: Count, float_bytes: int) -> Count:
    """Return the bytes that one forward pass keeps for backward: of segments that run again, their input."""
    if not schedule.recompute:
        return required.saved_bytes(micro_batch, float_bytes)
    cut, found = regions(required, schedule), {}
    for key, saved in required.books.saved.items():
        owners = (cut.segment_of.get(index) for index in saved.uses)
        if any(segment is None or key not in segment.kept for segment in owners):
            found[key if saved.storage is None else saved.storage.id] = saved.bytes(micro_batch, float_bytes)
    for segment in cut.segments:
        storage = segment.input.storage
        found.setdefault(storage.id, storage.bytes(micro_batch, float_bytes))
    total = over_batch(0, False, micro_batch)
    for size in found.values():
        total = total + size
    return total
