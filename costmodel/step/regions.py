"""What a schedule means for a network that is trained in a way: the frozen prefix, and the segments that run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..accounting.requirements import Requirements
from ..errors import InputError
from ..graph.passages import passages
from ..graph.values import Tensor
from ..kept import kept
from ..units import Count, over_batch
from .schedule import Schedule
from .segments import Segment, checkpoints, own_segments, prefix_end, segment


@dataclass(frozen=True, eq=False)
class Regions:
    """A network cut up by a schedule: layers below `prefix` run apart (0: none do); segments run again.

    cached: the layers below `prefix` do not run in a step, which starts from what they gave once.
    """

    prefix: int
    prefix_output: Tensor | None
    segments: tuple[Segment, ...]
    cached: bool = False

    @cached_property
    def segment_of(self) -> Mapping[int, Segment]:
        """The segment of each layer that is in one."""
        return {index: one for one in self.segments for index in range(one.first, one.last + 1)}


@kept
def regions(required: Requirements, schedule: Schedule) -> Regions:
    """Return the network cut up. Errors: InputError for a schedule of another network or way, with what fits."""
    if checkpoints(required.graph):
        return Regions(0, None, own_segments(required, schedule))
    graph, end = required.graph, prefix_end(required)
    if schedule.has_prefix and not end:
        lever, does = ("prefix_batch", "run in pieces") if schedule.cache is None else ("cache", "be cached")
        raise InputError(
            f"{lever} does not fit {required.way.label} on {graph.model}: there is no frozen prefix that could {does}; "
            "leave it out"
        )
    segments, before = [], 0
    for first, last, mode in schedule.segments:
        if first < before:
            raise InputError(f"segments must not overlap, as layers {first} to {last} do; make the schedule again")
        segments.append(segment(required, first, last, mode))
        before = last + 1
    if not schedule.has_prefix:
        return Regions(0, None, tuple(segments))
    return Regions(end, passages(graph)[end], tuple(segments), schedule.cache is not None)


def recomputed_flops(required: Requirements, schedule: Schedule, batch: Count, passes: Count) -> tuple[Count, Count]:
    """Return the FLOPs of what runs again for an update, and of its element-wise work."""
    flops: Count = 0 * batch
    elementwise: Count = 0 * batch
    for index in again(required, schedule):
        times = batch if required.graph.layers[index].output.batched else passes
        flops = flops + times * required.facts[index].forward_flops
        elementwise = elementwise + times * required.facts[index].forward_elementwise
    return flops, elementwise


def skipped_flops(required: Requirements, schedule: Schedule, batch: Count, passes: Count) -> tuple[Count, Count]:
    """Return the FLOPs of an update that need not be done since a cache has their results, and element-wise ones."""
    flops: Count = 0 * batch
    elementwise: Count = 0 * batch
    for index in range(skipped(required, schedule)):
        times = batch if required.graph.layers[index].output.batched else passes
        flops = flops + times * required.facts[index].forward_flops
        elementwise = elementwise + times * required.facts[index].forward_elementwise
    return flops, elementwise


def skipped(required: Requirements, schedule: Schedule) -> int:
    """Return how many layers, from the first on, do not run in a step, since a cache has their results."""
    return regions(required, schedule).prefix if schedule.cache is not None else 0


def again(required: Requirements, schedule: Schedule) -> tuple[int, ...]:
    """Return the layers that run again in backward, as often as they do."""
    return tuple(index for one in regions(required, schedule).segments for index in one.again)


def saved_bytes(required: Requirements, schedule: Schedule, micro_batch: Count, float_bytes: int) -> Count:
    """Return the bytes that one forward pass keeps for backward: of segments that run again, their input."""
    cut, found = regions(required, schedule), {}
    if not cut.segments:
        return required.saved_bytes(micro_batch, float_bytes)
    for key, saved in required.books.saved.items():
        owners = (cut.segment_of.get(index) for index in saved.uses)
        if any(segment is None or key not in segment.absent for segment in owners):
            found[key if saved.storage is None else saved.storage.id] = saved.bytes(micro_batch, float_bytes)
    for one in cut.segments:
        for tensor in one.inputs if one.runs_again else ():
            found.setdefault(tensor.storage.id, tensor.storage.bytes(micro_batch, float_bytes))
    total = over_batch(0, False, micro_batch)
    for size in found.values():
        total = total + size
    return total
