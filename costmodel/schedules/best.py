"""The schedule that fits a budget with the fewest FLOPs, or takes the least memory within a number of FLOPs.

The trained part of a network is a chain of links between places that one tensor passes (its blocks, where it has
some). Each run of links is a segment that keeps everything, makes cheap work again, runs again, or both; what it takes
alone is known from the simulation of its layers (`step.timeline.alone`). Exact dynamic programming over the chain: a
label is what is kept so far and what was done again; of two labels at a place the one that is worse in both is dropped.
Source of the scheme: Beaumont et al., Optimal checkpointing for heterogeneous chains, arXiv 1911.13214.

The winner is replayed by the simulation of the whole step, which is what its answer says. Where variables of the
network's code hold a tensor longer than its links need it, the chain's sum is too low; then less is asked of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import NamedTuple

from ..accounting.kernels import as_kernels
from ..accounting.requirements import Requirements
from ..accounting.table import ACCOUNTINGS
from ..answers.footprint import footprint
from ..errors import InfeasibleError, InputError, unknown
from ..graph.blocks import parts
from ..graph.layer_graph import LayerGraph
from ..graph.passages import passages
from ..kept import kept
from ..methods.table import values_per_norm, way_of
from ..methods.way import Options, Way
from ..step.optimizers import OPTIMIZERS
from ..step.regions import CHEAP, can_be_cut, prefix_end, segment
from ..step.schedule import MODES, PLAIN, Schedule
from ..step.step import Step
from ..step.timeline import Alone, Carried, alone
from ..units import format_bytes

LEVERS = ("prefix", "inplace", "cheap", "recompute", "micro-batch")
MOST_FLOPS = 1.33  # where neither a budget nor a number is given; Source: the price of running everything once again
_LONGEST = 5  # links that run again together
_REPLAYS = 8


@dataclass(frozen=True)
class _Option:
    """A run of links in one mode: where it ends, what it takes, and the FLOPs and element-wise work done again."""

    end: int
    mode: str
    alone: Alone
    flops: int
    elementwise: int


class _Label(NamedTuple):
    """A way of carrying out the links up to a place: the cost of what is done again, and the bytes kept.

    place: the link that comes next. number: tells equal ones apart.
    """

    flops: int
    elementwise: int
    kept: int
    number: int
    place: int
    before: _Label | None = None
    option: _Option | None = None


class Chain:
    """The trained part of a network as links, for one step but for its segments."""

    def __init__(self, step: Step, modes: Collection[str]):
        self.step, self.required = step, step.requirements
        self.starts = links(self.required)
        self.ends = [*self.starts[1:], len(self.required.graph.layers)]
        kernels = step.kernels or ACCOUNTINGS.find(step.accounting).kernels
        self.carried = Carried(
            replace(step.schedule, prefix_batch=None, segments=()), step.precision, as_kernels(kernels),
            OPTIMIZERS.find(step.optimizer), step.micro_batch, step.passes,
        )  # fmt: skip
        plain = footprint(replace(step, schedule=replace(step.schedule, segments=())))
        self.base_flops = plain.total_flops
        self.start_bytes = plain.moments[0].total_bytes
        of_chain = {layer.name for layer in self.required.graph.layers[self.starts[0] :]}
        in_place = step.schedule.inplace_update  # then updates are part of the links' backward
        others = [m for m in plain.moments if m.phase in ("start", "end", *(() if in_place else ("update",)))]
        others += [m for m in plain.moments if m.phase == "forward" and m.layer not in of_chain]
        self.floor = max(moment.total_bytes for moment in others)
        self.options = [list(self._options(first, modes)) for first in range(len(self.starts))]
        gradients = [next(o.alone.gradients for o in each if o.mode == "") for each in self.options]
        self.held = held = sum(gradients) if step.passes > 1 else 0  # from the second pass on they are there
        if step.schedule.inplace_update:
            self.later = [0] * len(gradients)
        else:
            self.later = [held or sum(gradients[place + 1 :]) for place in range(len(gradients))]

    def _options(self, first: int, modes: Collection[str]) -> Iterator[_Option]:
        required = self.required
        place = self.starts[first]
        before = passages(required.graph)[place]
        counted = any(
            min(saved.uses) < place for saved in required.books.saved.values() if saved.storage is before.storage
        )
        for last in range(first, min(first + _LONGEST, len(self.starts))):
            part = range(place, self.ends[last])
            if last == first:
                yield _Option(last + 1, "", alone(required, self.carried, part, None, counted), 0, 0)
            for mode in modes:
                if mode == "cheap" and last > first:
                    continue
                try:
                    own = segment(required, part.start, part.stop - 1, mode)
                except InputError:  # nothing to gain
                    continue
                again = [*own.rerun]
                again += [index for each in own.demands.values() for demand in each for index in demand.layers]
                facts = [required.facts[index] for index in again]
                batch = self.step.batch
                yield _Option(
                    last + 1, mode, alone(required, self.carried, part, own, counted),
                    batch * sum(each.forward_flops for each in facts),
                    batch * sum(each.forward_elementwise for each in facts),
                )  # fmt: skip

    def solve(self, budget: int, most_flops: float = float("inf")) -> _Label | None:
        """Return the cheapest way that fits; most_flops: done again, at most.

        Labels are taken up in the order of their cost, so that the first at the end is the best, and one at a place
        counts only if it keeps less than those before.
        """
        if self.floor > budget:
            return None
        room = [
            [(budget - self.start_bytes - max(o.alone.forward + self.held, o.alone.backward + self.later[o.end - 1]), o)
             for o in options]
            for options in self.options
        ]  # fmt: skip
        open_ones, number = [_Label(0, 0, 0, 0, 0)], 0
        least_kept = [float("inf")] * (len(self.starts) + 1)
        while open_ones:
            label = heappop(open_ones)
            if label.place == len(self.starts):
                return label
            if label.kept >= least_kept[label.place]:
                continue
            least_kept[label.place] = label.kept
            for spare, option in room[label.place]:
                flops, own = label.flops + option.flops, label.kept + option.alone.kept
                if label.kept <= spare and flops <= most_flops and own < least_kept[option.end]:
                    number += 1
                    heappush(
                        open_ones,
                        _Label(flops, label.elementwise + option.elementwise, own, number, option.end, label, option),
                    )
        return None

    def peak_of(self, label: _Label) -> int:
        """Return the most memory that a way through the chain takes, by the sum of its links."""
        peak = self.floor
        while label.before is not None and label.option is not None:
            option, label = label.option, label.before
            own = max(option.alone.forward + self.held, option.alone.backward + self.later[option.end - 1])
            peak = max(peak, self.start_bytes + label.kept + own)
        return peak

    def schedule(self, label: _Label) -> Schedule:
        """Return the schedule of a way through the chain."""
        found = []
        while label.before is not None and label.option is not None:
            option, label = label.option, label.before
            if option.mode:
                found.append((self.starts[label.place], self.ends[option.end - 1] - 1, option.mode))
        return replace(self.step.schedule, segments=tuple(reversed(found)))


@kept
def links(required: Requirements) -> tuple[int, ...]:
    """Return where the links of the trained part begin: at blocks, or, without any, before what is no cheap work.

    Errors: InputError where there is nothing to cut.
    """
    graph, end = required.graph, prefix_end(required)
    if not can_be_cut(required):
        raise InputError(
            f"{required.way.label} on {graph.model} computes weights, or has layers of its own: no part of it can run "
            "again; the levers inplace and micro-batch remain"
        )
    places = passages(graph)
    begins = [block.first for block in parts(graph).blocks] + [parts(graph).tail.start]
    if not parts(graph).blocks:
        begins = [place for place in places if graph.layers[place].op not in CHEAP]
    first = end if end in places else 0
    return tuple(sorted({first, *(place for place in begins if place in places and place > first)}))


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
        schedule = self.schedule
        levers = (schedule.micro_batch is not None, schedule.inplace_update, schedule.prefix_batch is not None)
        return self.total_flops, self.elementwise_flops, sum(levers), self.peak_bytes


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
    where no norm takes statistics of the batch.

    Errors: InfeasibleError, naming the least, if no schedule fits; InputError for an unknown lever.
    """
    for lever in allow:
        if lever not in LEVERS:
            raise unknown("lever", lever, LEVERS)
    step = _step(what, method, blocks, batch, options, optimizer, accounting)
    plain = Scheduled.of(step)
    most = (most_flops or (MOST_FLOPS if ram_bytes is None else float("inf"))) * plain.total_flops
    if ram_bytes is None:
        return min(_least(step, most, allow, plain), key=lambda each: (each.peak_bytes, each.order)).schedule
    fitting = [each for each in _within(step, ram_bytes, most, allow, plain) if each.peak_bytes <= ram_bytes]
    if fitting:
        return _simplest(step, min(fitting, key=lambda each: each.order), ram_bytes).schedule
    least = min(_least(step, most, allow, plain), key=lambda each: each.peak_bytes)
    if least.peak_bytes <= ram_bytes:
        return least.schedule
    raise InfeasibleError(
        f"no schedule of {step.way.label} on {step.graph.model} fits in {format_bytes(ram_bytes)}: the least is "
        f"{format_bytes(least.peak_bytes)} ({least.peak_bytes} bytes), {least.schedule.label(step.batch)}; allow that "
        "much, or train less, or take a smaller batch or resolution"
    )


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
) -> list[Scheduled]:
    """Return the schedules of a step that no other is better than in memory and FLOPs, those with fewest FLOPs first.

    The arguments are those of `best_schedule`; each schedule comes with what the simulation of the step says of it.

    Errors: those of `best_schedule`, but for budgets.
    """
    step = _step(what, method, blocks, batch, options, optimizer, accounting)
    found = [Scheduled.of(step), *(Scheduled.of(replace(step, schedule=each)) for each in free_schedules(step, allow))]
    for chain in _chains(step, allow):
        label = chain.solve(found[0].peak_bytes)
        while label is not None:
            found.append(Scheduled.of(replace(step, schedule=chain.schedule(label))))
            label = chain.solve(chain.peak_of(label) - 1)
    on: list[Scheduled] = []
    for each in sorted(found, key=lambda each: each.order):
        if not on or each.peak_bytes < on[-1].peak_bytes:
            on.append(each)
    return on


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
    for without in ({"prefix_batch": None}, {"inplace_update": False}):
        other = replace(found.schedule, **without)
        if (
            step.schedule == PLAIN
            and other != found.schedule
            and (simpler := Scheduled.of(replace(step, schedule=other))).peak_bytes <= ram_bytes
        ):
            found = simpler
    return found


def free_schedules(step: Step, allow: Collection[str]) -> Iterator[Schedule]:
    """Yield schedules without segments, which cost no FLOPs, that no other is better than in every part of a step.

    To update in place is never worse. The prefix in pieces collects its results, which may be more than it saves.
    """
    if step.schedule != PLAIN:
        yield step.schedule
        return
    prefixes = [1, None] if "prefix" in allow and prefix_end(step.requirements) else [None]
    is_exact = values_per_norm(step.graph, step.way) is None
    smaller = [n for n in range(step.batch - 1, 0, -1) if step.batch % n == 0]
    for prefix in prefixes:
        yield Schedule(inplace_update="inplace" in allow, prefix_batch=prefix)
        for micro in smaller if "micro-batch" in allow and is_exact else ():
            yield Schedule(micro, prefix_batch=None if prefix is None else min(prefix, micro))


def _chains(step: Step, allow: Collection[str]) -> Iterator[Chain]:
    modes = [mode for mode in MODES if {"cheap": {"cheap"}, "both": {"cheap", "recompute"}}.get(
        mode.partition("-")[0], {"recompute"}) <= {*allow}]  # fmt: skip
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
        budget = ram_bytes
        for _ in range(_REPLAYS):
            label = chain.solve(budget, most - chain.base_flops)
            if label is None:
                break
            found = Scheduled.of(replace(step, schedule=chain.schedule(label)))
            yield found
            if found.peak_bytes <= ram_bytes:
                break
            budget -= found.peak_bytes - ram_bytes


def _least(step: Step, most: float, allow: Collection[str], plain: Scheduled) -> Iterator[Scheduled]:
    """Yield schedules that take little within a number of FLOPs."""
    yield plain
    yield from (Scheduled.of(replace(step, schedule=schedule)) for schedule in free_schedules(step, allow))
    for chain in _chains(step, allow):
        low, high, best = chain.floor - 1, plain.peak_bytes, None
        while high - low > _CLOSE_BYTES:
            middle = (low + high) // 2
            label = chain.solve(middle, most - chain.base_flops)
            low, high, best = (middle, high, best) if label is None else (low, middle, label)
        if best is not None:
            yield Scheduled.of(replace(step, schedule=chain.schedule(best)))


_CLOSE_BYTES = 1024  # how near to the least a search comes
