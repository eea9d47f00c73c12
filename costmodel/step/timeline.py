"""One training step, or a part of one -> its moments: the memory at each, and where it is the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from ..accounting.books import Again, Execution, Part, dense_key
from ..accounting.kernels import Kernels
from ..accounting.requirements import Requirements
from ..accounting.table import ACCOUNTINGS
from ..errors import InputError
from ..graph.passages import passages
from ..units import Count
from .optimizers import OPTIMIZERS, Optimizer
from .precision import Precision
from .regions import Regions, regions
from .schedule import PLAIN, Schedule
from .segments import Segment
from .simulation import CATEGORIES, GRADIENTS, SAVED, TRANSIENT, Gradient, Moment, Simulation
from .sizes import prefix_bytes, sizes, trained_bytes
from .step import Step


@dataclass(frozen=True)
class Carried(Generic[Count]):
    """How a step is carried out, for one number of images per pass or for several at once.

    passes: forward and backward passes (micro-batches) whose gradients are added before the update.
    """

    schedule: Schedule
    precision: Precision
    kernels: Kernels
    optimizer: Optimizer
    micro_batch: Count
    passes: int
    first_step: bool = False


def moments(step: Step) -> list[Moment[int]]:
    """Return the memory of a training step, moment by moment, from before its first layer to after its update."""
    optimizer, kernels = OPTIMIZERS.find(step.optimizer), step.kernels or ACCOUNTINGS.find(step.accounting).kernels
    carried = Carried(step.schedule, step.precision, kernels, optimizer, step.micro_batch, step.passes, step.first_step)
    return simulate(step.requirements, carried)


def simulate(required: Requirements, carried: Carried[Count]) -> list[Moment[Count]]:
    """Return the memory of a step, moment by moment, or the accounting's own timeline in its place."""
    if ACCOUNTINGS.find(required.accounting).timeline is not None:
        return _own_timeline(required, carried)
    schedule, optimizer = carried.schedule, carried.optimizer
    found = sizes(required, carried.precision, carried.kernels, carried.micro_batch)
    cut, piece, cached = regions(required, schedule), None, (0, 0)
    if schedule.cache is not None:
        piece = sizes(required, carried.precision, carried.kernels, schedule.prefix_batch or 1)
        cached = prefix_bytes(required, carried.precision, cut.prefix)
    elif schedule.prefix_batch is not None:
        images: Any = np.minimum(carried.micro_batch, schedule.prefix_batch)
        if np.any(np.asarray(carried.micro_batch) % images):
            raise InputError(
                f"prefix_batch {schedule.prefix_batch} does not divide the {carried.micro_batch} images of a pass; "
                "take 1, or another divisor"
            )
        images = images if isinstance(carried.micro_batch, np.ndarray) else int(images)
        piece = sizes(required, carried.precision, carried.kernels, images)
    run = Simulation(required, found, optimizer, cut, piece)
    run.start({name: optimizer.state_bytes(size) for name, size in found.trained.items()}, carried.first_step, cached)
    # From the second micro-batch on every pass is the same: gradients are there and are added to.
    for _ in range(min(carried.passes, 2)):
        run.forward()
        run.backward(run.loss(), schedule.inplace_update)
        run.leave()
    if not schedule.inplace_update:
        run.update_all()
    run.now[GRADIENTS] = 0
    run.mark("end", "")
    return run.moments


@dataclass(frozen=True)
class Alone:
    """What a part of the network takes by itself, in bytes.

    kept: from its forward until its backward, but for its result. forward, backward: the most at any moment, with what
    it reads; backward without the gradients of the parameters behind. gradients: of its parameters, in the end.
    """

    kept: int
    forward: int
    backward: int
    gradients: int


def alone(
    required: Requirements, carried: Carried[int], part: range, segment: Segment | None, given_is_kept: bool
) -> Alone:
    """Return what the layers of a part take by themselves; given_is_kept: what it reads is counted by the part before.

    segment: how the part makes things again, if it does.
    """
    if ACCOUNTINGS.find(required.accounting).part is not None:
        return _own_part(required, carried, part, segment, given_is_kept)
    found = sizes(required, carried.precision, carried.kernels, carried.micro_batch)
    run = _Part(required, found, carried.optimizer, Regions(0, None, () if segment is None else (segment,)), part=part)
    graph, in_place = required.graph, carried.schedule.inplace_update
    before, behind = passages(graph)[part.start], passages(graph).get(part.stop)
    if carried.passes > 1:
        run.gradients = dict(found.trained)
    run.live[before.storage.id] = size = (
        0 if given_is_kept or before.kind == "input" else before.storage.bytes(found.batch, found.float_bytes)
    )
    run.now[SAVED if before.storage.id in run.kept else TRANSIENT] += size
    run.run(part)
    pending: dict[int, Gradient] = {}
    if behind is None:
        pending = run.loss()
        kept_bytes = run.now[SAVED]
    else:
        id_ = behind.storage.id
        is_saved_here = any(dense_key(behind) in required.books.by_layer.get(index, ()) for index in part)
        if id_ in run.live and not is_saved_here:
            run.now[SAVED if id_ in run.kept else TRANSIENT] -= run.live.pop(id_)
        kept_bytes = run.now[SAVED]
        readers = graph.consumers[behind.id]
        if any(one.inputs[role] is behind for one in readers for role in required.wanted.get(one.index, ())):
            pending[behind.id] = Gradient(behind.bytes(found.batch, found.float_bytes))
            run.now[TRANSIENT] += pending[behind.id].bytes
    forward, run.most = run.most, 0
    run.mark("backward", "")
    run.backward(pending, in_place, part)
    own = {t.name for index in part for t in graph.layers[index].parameters.values()} & found.trained.keys()
    return Alone(kept_bytes, forward, run.most, sum(found.trained[name] for name in own))


def _own_part(
    required: Requirements, carried: Carried[int], part: range, segment: Segment | None, given_is_kept: bool
) -> Alone:
    """Return what the layers of a part take by the accounting's own timeline."""
    books, graph, places = ACCOUNTINGS.find(required.accounting), required.graph, passages(required.graph)
    assert books.part is not None  # who calls this has looked
    how = Execution(
        carried.micro_batch, carried.precision.activation_bytes, required.wanted, optimizer=carried.optimizer.name,
        again=_again(() if segment is None else (segment,)),
    )  # fmt: skip
    result = places.get(part.stop)
    saved = required.books.saved.get(dense_key(result)) if result else None
    counts_result = saved is not None and any(use in part for use in saved.uses) and max(saved.uses) >= part.stop
    taken = books.part(
        graph, required.assignment, required.books, how,
        Part(part, places[part.start], given_is_kept, result, counts_result),
    )  # fmt: skip
    trained = trained_bytes(required, carried.precision)
    own = {t.name for index in part for t in graph.layers[index].parameters.values()} & trained.keys()
    return Alone(*taken, sum(trained[name] for name in own))


def alone_at_least(required: Requirements, carried: Carried[int], segment: Segment, given_is_kept: bool) -> Alone:
    """Return what a segment that runs again takes at least, without simulating it: less than `alone`, or as much.

    When it has run again all that it keeps then is there, with its input and the gradient that it was run for.
    """
    batch, float_bytes = carried.micro_batch, carried.precision.activation_bytes
    (before,) = segment.inputs
    given = 0 if given_is_kept or before.kind == "input" else before.storage.bytes(batch, float_bytes)
    made = {
        saved.storage or key: (saved.storage or saved).bytes(batch, float_bytes)
        for key in segment.absent - segment.dropped
        for saved in (required.books.saved[key],)
    }
    gradient = required.graph.layers[segment.stop].output.bytes(batch, float_bytes)
    return Alone(given, 0, given + sum(made.values()) + gradient, 0)


class _Part(Simulation[int]):
    """A part of a step, of which only the most memory counts."""

    most = 0

    def mark(self, phase: str, layer: str, extra: int = 0) -> None:
        self.most = max(self.most, sum(self.now) + extra)


def _own_timeline(required: Requirements, carried: Carried[Count]) -> list[Moment[Count]]:
    """Return the moments of books that follow no step of their own.

    Where they are those of a whole step, what the optimizer keeps is added, and the gradients that passes add up.

    Errors: InputError for a schedule that cuts the network up, if the books follow none, and for a cache.
    """
    books, schedule = ACCOUNTINGS.find(required.accounting), carried.schedule
    assert books.timeline is not None  # who calls this has looked
    more: dict[str, int] = {}
    if books.whole_step:
        if schedule.cache is not None or (schedule.is_cut and not books.follows_schedules):
            lever = "prefix from a cache" if books.follows_schedules else "prefix in pieces and no segments"
            raise InputError(f"the accounting {books.name!r} prices no {lever}; take lean")
        trained = trained_bytes(required, carried.precision)
        more["optimizer"] = sum(map(carried.optimizer.state_bytes, trained.values()))
        if carried.passes > 1 and not books.follows_schedules:
            more["gradients"] = sum(trained.values())
    each = [
        books.timeline(required.graph, required.assignment, required.books, how)
        for how in _executions(required, carried)
    ]
    found: list[Moment[Any]] = []
    for instants in zip(*each, strict=True):
        phase, layer, _ = instants[0]
        whole = [more | by_category for _, _, by_category in instants]
        rows = [[one.get(name, 0) for one in whole] for name in CATEGORIES]
        several = isinstance(carried.micro_batch, np.ndarray)
        by_category: Any = np.array(rows) if several else tuple(row[0] for row in rows)  # `Count`, as in `now`
        found.append(Moment(phase, layer, by_category))
    return found


def _executions(required: Requirements, carried: Carried[Count]) -> list[Execution]:
    """Return how a step is carried out, for each batch."""
    follows = ACCOUNTINGS.find(required.accounting).follows_schedules
    cut = regions(required, carried.schedule if follows else PLAIN)
    again = _again(cut.segments)
    batches = np.atleast_1d(carried.micro_batch).tolist()
    piece = carried.schedule.prefix_batch or max(batches)
    return [
        Execution(
            batch, carried.precision.activation_bytes, required.wanted, carried.passes, carried.optimizer.name,
            cut.prefix, min(batch, piece), 1 + (max(batches) > piece), again,
        )
        for batch in batches
    ]  # fmt: skip


def _again(segments: Sequence[Segment]) -> dict[int, tuple[Again, ...]]:
    """Return what runs again before the backward of each layer."""
    again: dict[int, tuple[Again, ...]] = {}
    for segment in segments:
        if segment.runs_again:
            again[segment.stop] = (Again(tuple(segment.rerun), keeps=True),)
        for index, demands in segment.demands.items():
            again[index] = again.get(index, ()) + tuple(Again(each.layers, keeps=False) for each in demands)
    return again
