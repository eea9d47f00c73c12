"""The schedule that fits a budget with the fewest FLOPs, or takes the least memory within a number of FLOPs.

The chain of the trained part (`chain`) tells for every budget the cheapest segments. The winner is replayed by the
simulation of the whole step, which is what its answer says. Where variables of the network's code hold a tensor longer
than its links need it, the chain's sum is too low; then less is asked of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from ..accounting.table import ACCOUNTINGS
from ..answers.footprint import footprint
from ..errors import InfeasibleError, unknown
from ..graph.layer_graph import LayerGraph
from ..methods.table import values_per_norm, way_of
from ..methods.way import Options, Way
from ..step.schedule import MODES, PLAIN, Schedule
from ..step.segments import can_be_cut, prefix_end
from ..step.step import Step
from ..units import Counts, format_bytes
from .chain import Chain

LEVERS = ("prefix", "inplace", "cheap", "recompute", "micro-batch")
# Levers that are used only where they are named: a cache needs storage, and images that are not augmented.
ON_DEMAND = ("cache",)
MOST_FLOPS = 1.33  # where neither a budget nor a number is given; Source: the price of running everything once again
_REPLAYS = 32  # each is nearer; Assumption: misses of an eighth of the peak are the largest (ProxylessNAS: 7 %)
_ONE_BY_ONE = 24  # so few steps are replayed in turn: their peaks need not fall from one to the next


@dataclass(frozen=True)
class Scheduled:
    """A schedule with what the simulation of the whole step says of it."""

    schedule: Schedule
    peak_bytes: int
    total_flops: int
    elementwise_flops: int

    @classmethod
    def of(cls, step: Step) -> Scheduled:
        """Return what the simulation says of a step."""
        found = footprint(step)
        return cls(step.schedule, found.peak_bytes, found.total_flops, found.flops["elementwise"]["backward"])

    @property
    def order(self) -> tuple:
        """What is to be least: FLOPs, then element-wise work, then what is done out of the ordinary."""
        return self.total_flops, self.elementwise_flops, self.levers, self.peak_bytes

    @property
    def levers(self) -> int:
        """How many things are out of the ordinary, but for segments."""
        return levers_of(self.schedule)


def levers_of(schedule: Schedule) -> int:
    """Return how many things of a schedule are out of the ordinary, but for segments."""
    return sum((schedule.micro_batch is not None, schedule.inplace_update, schedule.prefix_batch is not None))


@dataclass(frozen=True, eq=False)
class Frontier(Sequence[Scheduled]):
    """The schedules of a step that no other is better than in memory and FLOPs, those with fewest FLOPs first.

    peak_bytes, total_flops: of each, by the sum of its links. An item is what the simulation of the whole step says,
    which is asked when the item is; its peak is higher where variables of the network's code hold a tensor longer than
    its links need it. origins: the schedule of each, or the chain that knows it, with its number there.
    """

    step: Step
    peak_bytes: Counts
    total_flops: Counts
    origins: Sequence[tuple[Schedule | Chain, int]]

    def __len__(self) -> int:
        return len(self.origins)

    @overload
    def __getitem__(self, index: int) -> Scheduled: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scheduled]: ...
    def __getitem__(self, index: int | slice) -> Scheduled | list[Scheduled]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return Scheduled.of(replace(self.step, schedule=self.schedule(index)))

    def schedule(self, index: int) -> Schedule:
        """Return the schedule alone."""
        origin, number = self.origins[index]
        return origin if isinstance(origin, Schedule) else origin.schedule(number)


def best_schedule(
    what: LayerGraph | Step,
    method: Way | str | None = None,
    blocks: int | None = None,
    batch: int = 8,
    ram_bytes: int | None = None,
    most_flops: float | None = None,
    allow: Collection[str] = LEVERS,
    *,
    options: Options | None = None,
    optimizer: str = "sgd",
    accounting: str = "lean",
) -> Schedule:
    """Return the schedule of a step that fits in `ram_bytes` with the fewest FLOPs; all are exact.

    what: a traced network, with method, blocks and options as in `footprint`, or a `Step`, whose own micro-batch,
    prefix and updates stay as they are, if it has any. most_flops: at most so many times the plain step's FLOPs;
    without ram_bytes, the least memory within that (1.33 if neither is given). allow: which of `LEVERS` may be used:
    the frozen prefix image by image, updates in place, cheap work done again, segments recomputed, and micro-batches,
    where no norm takes statistics of the batch; "cache", which has to be named, lets the frozen prefix's outputs be
    stored.

    Errors: InfeasibleError, naming the least, if no schedule fits; InputError for an unknown lever.
    """
    for lever in allow:
        if lever not in LEVERS + ON_DEMAND:
            raise unknown("lever", lever, LEVERS + ON_DEMAND)
    step = _step(what, method, blocks, batch, options, optimizer, accounting)
    found = nearest_schedule(step, ram_bytes, most_flops, allow)
    if ram_bytes is None or found.peak_bytes <= ram_bytes:
        return found.schedule
    raise InfeasibleError(
        f"no schedule of {step.way.label} on {step.graph.model} fits in {format_bytes(ram_bytes)}: the least is "
        f"{format_bytes(found.peak_bytes)} ({found.peak_bytes} bytes), {found.schedule.label(step.batch)}; allow that "
        "much, or train less, or take a smaller batch or resolution"
    )


def nearest_schedule(
    step: Step, ram_bytes: int | None, most_flops: float | None = None, allow: Collection[str] = LEVERS
) -> Scheduled:
    """Return the schedule that `best_schedule` would; where none fits, the one that takes the least memory.

    The step's own micro-batch, prefix and updates stay as they are, if it has any; its segments are left out.
    """
    step = replace(step, schedule=replace(step.schedule, segments=()))
    plain = Scheduled.of(step)
    most = (most_flops or (MOST_FLOPS if ram_bytes is None else float("inf"))) * plain.total_flops
    if ram_bytes is None:
        least = min(_least(step, most, allow, plain), key=lambda each: (each.peak_bytes, each.order))
        return _in_larger_pieces(step, least, least.peak_bytes)
    fitting = [each for each in _within(step, ram_bytes, most, allow, plain) if each.peak_bytes <= ram_bytes]
    if fitting:
        simplest = _simplest(step, min(fitting, key=lambda each: each.order), ram_bytes)
        return _in_larger_pieces(step, simplest, ram_bytes)
    return min(_least(step, most, allow, plain), key=lambda each: each.peak_bytes)


def schedule_frontier(
    what: LayerGraph | Step,
    method: Way | str | None = None,
    blocks: int | None = None,
    batch: int = 8,
    allow: Collection[str] = LEVERS,
    *,
    options: Options | None = None,
    optimizer: str = "sgd",
    accounting: str = "lean",
) -> Frontier:
    """Return the schedules of a step that no other is better than in memory and FLOPs, those with fewest FLOPs first.

    The arguments are those of `best_schedule`. All depths of a method, and all ways of a network, share what they have
    in common: the first question takes longest.

    Errors: those of `best_schedule`, but for budgets.
    """
    step = _step(what, method, blocks, batch, options, optimizer, accounting)
    free = [
        Scheduled.of(replace(step, schedule=each))
        for each in dict.fromkeys([step.schedule, *free_schedules(step, allow)])
    ]
    columns = [[(each.peak_bytes, each.total_flops, each.elementwise_flops, each.levers, 0)] for each in free]
    chains = list(_chains(step, allow))
    columns += [
        np.stack([
            each.peak_bytes, each.total_flops, each.elementwise_flops,
            np.full(each.steps.spare.size, levers_of(each.step.schedule)), np.arange(each.steps.spare.size),
        ], axis=1)
        for each in chains
    ]  # fmt: skip
    origin = np.repeat(np.arange(len(columns)), [len(each) for each in columns])
    peak, flops, elementwise, levers, number = np.concatenate(columns).T
    order = np.lexsort((peak, levers, elementwise, flops))
    least = np.minimum.accumulate(peak[order])
    on = order[np.diff(least, prepend=least[0] + 1) < 0]
    origins = (*(each.schedule for each in free), *chains)
    return Frontier(
        step, peak[on], flops[on], [(origins[one], int(n)) for one, n in zip(origin[on], number[on], strict=True)]
    )


def _step(
    what: LayerGraph | Step, method: Way | str | None, blocks: int | None, batch: int, options: Options | None,
    optimizer: str, accounting: str,
) -> Step:  # fmt: skip
    """Return the step that is meant, without segments."""
    if isinstance(what, Step):
        return replace(what, schedule=replace(what.schedule, segments=()))
    way = method if isinstance(method, Way) else way_of(what, method, blocks, options)
    return Step(what, way, batch, optimizer=optimizer, accounting=accounting)


def _simplest(step: Step, found: Scheduled, ram_bytes: int) -> Scheduled:
    """Return a schedule with those levers left out that it does not need."""
    for without in ({"cache": None}, {"prefix_batch": None}, {"inplace_update": False}):
        other = replace(found.schedule, **without)
        if (
            step.schedule == PLAIN
            and other != found.schedule
            and (simpler := Scheduled.of(replace(step, schedule=other))).peak_bytes <= ram_bytes
            and simpler.total_flops <= found.total_flops
        ):
            found = simpler
    return found


def _in_larger_pieces(step: Step, found: Scheduled, ram_bytes: int) -> Scheduled:
    """Return a schedule with the frozen prefix in the largest pieces that fit: fewer calls take less time."""
    piece, images = found.schedule.prefix_batch, step.schedule.images_per_pass(step.batch)
    if step.schedule != PLAIN or piece is None or found.schedule.micro_batch is not None:
        return found
    for larger in range(images // 2, piece, -1):
        if images % larger == 0:
            other = Scheduled.of(replace(step, schedule=replace(found.schedule, prefix_batch=larger)))
            if other.peak_bytes <= ram_bytes:
                return other
    return found


def free_schedules(step: Step, allow: Collection[str]) -> Iterator[Schedule]:
    """Yield schedules without segments, which cost no FLOPs, that no other is better than in every part of a step.

    To update in place is never worse. The prefix in pieces collects its results, which may be more than it saves.
    """
    if step.schedule != PLAIN:
        yield step.schedule
        return
    has_prefix = prefix_end(step.requirements) > 0
    # Books of exported steps count calls, of which small pieces take more, and update in place anyway.
    exported = ACCOUNTINGS.find(step.accounting).follows_schedules
    in_place = "inplace" in allow and not exported
    is_exact = values_per_norm(step.graph, step.way) is None
    smaller = [n for n in range(step.batch - 1, 0, -1) if step.batch % n == 0]
    if "cache" in allow and has_prefix:
        yield Schedule(inplace_update=in_place, cache="float32")
    pieces = ([1, *reversed(smaller[:-1])] if exported else [1]) if "prefix" in allow and has_prefix else []
    for prefix in (*pieces, None):
        yield Schedule(inplace_update=in_place, prefix_batch=prefix)
        for micro in smaller if "micro-batch" in allow and is_exact else ():
            if prefix is None or micro % prefix == 0:
                yield Schedule(micro, prefix_batch=prefix)


def _chains(step: Step, allow: Collection[str]) -> Iterator[Chain]:
    modes = tuple(mode for mode in MODES if {"cheap": {"cheap"}, "both": {"cheap", "recompute"}}.get(
        mode.partition("-")[0], {"recompute"}) <= {*allow})  # fmt: skip
    if not modes or not can_be_cut(step.requirements):
        return
    for schedule in free_schedules(step, allow):
        yield Chain(replace(step, schedule=schedule), modes)


def _within(step: Step, ram_bytes: int, most: float, allow: Collection[str], plain: Scheduled) -> Iterator[Scheduled]:
    """Yield schedules for a budget; they may miss it."""
    yield plain
    free = [Scheduled.of(replace(step, schedule=schedule)) for schedule in free_schedules(step, allow)]
    yield from free
    if min(each.peak_bytes for each in (plain, *free)) <= ram_bytes:
        return  # nothing need be done again
    for chain in _chains(step, allow):
        yield from _replayed(chain, ram_bytes, most)


def _replayed(chain: Chain, ram_bytes: int, most: float) -> Iterator[Scheduled]:
    """Yield the cheapest steps of a chain's frontier for a budget, replayed, until one fits that is next to a miss."""
    budget, missed = ram_bytes, None
    for _ in range(_REPLAYS):
        number = chain.fitting(budget)
        if number is None or chain.total_flops[number] > most:
            return
        found = Scheduled.of(replace(chain.step, schedule=chain.schedule(number)))
        yield found
        if found.peak_bytes <= ram_bytes:
            break
        missed, budget = number, min(budget, int(chain.peak_bytes[number])) - (found.peak_bytes - ram_bytes)
    else:
        return
    while missed is not None and missed - number > 1:  # what was taken off may have been too much
        between = missed - 1 if missed - number <= _ONE_BY_ONE else (missed + number) // 2
        found = Scheduled.of(replace(chain.step, schedule=chain.schedule(between)))
        yield found
        missed, number = (missed, between) if found.peak_bytes <= ram_bytes else (between, number)


def _least(step: Step, most: float, allow: Collection[str], plain: Scheduled) -> Iterator[Scheduled]:
    """Yield schedules that take little within a number of FLOPs."""
    yield plain
    yield from (Scheduled.of(replace(step, schedule=schedule)) for schedule in free_schedules(step, allow))
    for chain in _chains(step, allow):
        if (number := chain.within(most)) is not None:
            yield Scheduled.of(replace(step, schedule=chain.schedule(number)))
