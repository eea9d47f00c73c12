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

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

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
from ..step.schedule import MODES, Schedule
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


@dataclass(frozen=True)
class _Label:
    """A way of carrying out the links up to a place: bytes kept, and the cost of what is done again."""

    kept: int
    flops: int
    elementwise: int
    before: _Label | None = None
    option: _Option | None = None

    @property
    def cost(self) -> tuple[int, int]:
        """What is to be least: FLOPs, of equals element-wise work."""
        return self.flops, self.elementwise


class Chain:
    """The trained part of a network as links, for one step but for its segments."""

    def __init__(self, step: Step, modes: Collection[str]):
        self.step, self.required = step, step.requirements
        self.starts = links(self.required)
        self.ends = [*self.starts[1:], len(self.required.graph.layers)]
        kernels = step.kernels or ACCOUNTINGS.find(step.accounting).kernels
        self.carried = Carried(
            step.schedule, step.precision, as_kernels(kernels), OPTIMIZERS.find(step.optimizer), step.micro_batch,
            step.passes,
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
        gradients = [next(o.alone.gradients for o in each if o.mode == "" ) for each in self.options]
        held = sum(gradients) if step.passes > 1 else 0
        self.forward_extra = held
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
        """Return the cheapest way that fits; most_flops: done again, at most."""
        if self.floor > budget:
            return None
        labels: list[list[_Label]] = [[] for _ in range(len(self.starts) + 1)]
        labels[0] = [_Label(0, 0, 0)]
        for place, options in enumerate(self.options):
            mine = _undominated(labels[place])
            for option in options:
                own, last = option.alone, option.end - 1
                room = budget - self.start_bytes - max(own.forward + self.forward_extra, own.backward + self.later[last])
                for label in mine:
                    if label.kept > room:
                        break
                    if label.flops + option.flops <= most_flops:
                        labels[option.end].append(
                            _Label(label.kept + own.kept, label.flops + option.flops,
                                   label.elementwise + option.elementwise, label, option)
                        )  # fmt: skip
        return min(labels[-1], key=lambda label: label.cost, default=None)

    def schedule(self, label: _Label) -> Schedule:
        """Return the schedule of a way through the chain."""
        found = []
        while label.before is not None and label.option is not None:
            option = label.option
            start = self._start_of(label)
            if option.mode:
                found.append((start, self.ends[option.end - 1] - 1, option.mode))
            label = label.before
        return replace(self.step.schedule, segments=tuple(reversed(found)))

    def _start_of(self, label: _Label) -> int:
        before = label.before
        return self.starts[0 if before is None or before.option is None else before.option.end]


def _undominated(labels: Sequence[_Label]) -> list[_Label]:
    """Return the labels that no other is better than in what is kept and in cost, those that keep least first."""
    found: list[_Label] = []
    for label in sorted(labels, key=lambda label: (label.kept, label.cost)):
        if not found or label.cost < found[-1].cost:
            found.append(label)
    return found


@kept
def links(required: Requirements) -> tuple[int, ...]:
    """Return where the links of the trained part begin: at blocks, or where there are none before what is no cheap work.

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

    what: a traced network, with method, blocks and options as in `footprint`, or a `Step`, whose own schedule plays no
    part. most_flops: at most so many times the plain step's FLOPs; without ram_bytes, the least memory within that
    (1.33 if neither is given). allow: which of `LEVERS` may be used: the frozen prefix image by image, updates in place,
    cheap work done again, segments recomputed, and micro-batches, where no norm takes statistics of the batch.

    Errors: InfeasibleError, naming the least, if no schedule fits; InputError for an unknown lever.
    """
    for lever in allow:
        if lever not in LEVERS:
            raise unknown("lever", lever, LEVERS)
    step = what
    if isinstance(step, LayerGraph):
        way = method if isinstance(method, Way) else way_of(step, method, blocks, options)
        step = Step(step, way, batch, optimizer=optimizer, accounting=accounting)
    step = replace(step, schedule=Schedule())
    plain = Scheduled.of(step)
    most = (most_flops or (MOST_FLOPS if ram_bytes is None else float("inf"))) * plain.total_flops
    if ram_bytes is None:
        return min(_least(step, most, allow, plain), key=lambda each: (each.peak_bytes, each.order)).schedule
    fitting = [each for each in _within(step, ram_bytes, most, allow, plain) if each.peak_bytes <= ram_bytes]
    if fitting:
        return min(fitting, key=lambda each: each.order).schedule
    least = min(_least(step, most, allow, plain), key=lambda each: each.peak_bytes)
    if least.peak_bytes <= ram_bytes:
        return least.schedule
    raise InfeasibleError(
        f"no schedule of {step.way.label} on {step.graph.model} fits in {format_bytes(ram_bytes)}: the least is "
        f"{format_bytes(least.peak_bytes)} ({least.peak_bytes} bytes), {least.schedule.label(step.batch)}; allow that "
        "much, or train less, or take a smaller batch or resolution"
    )


def _bases(step: Step, allow: Collection[str]) -> Iterator[Schedule]:
    """Yield schedules without segments: all that cost no FLOPs."""
    prefixes = [1, None] if "prefix" in allow and prefix_end(step.requirements) else [None]
    is_exact = values_per_norm(step.graph, step.way) is None
    smaller = [n for n in range(step.batch - 1, 0, -1) if step.batch % n == 0]
    for prefix in prefixes:
        if "inplace" in allow:
            yield Schedule(inplace_update=True, prefix_batch=prefix)
        yield Schedule(prefix_batch=prefix)
        for micro in smaller if "micro-batch" in allow and is_exact else ():
            yield Schedule(micro, prefix_batch=None if prefix is None else min(prefix, micro))


def _chains(step: Step, allow: Collection[str]) -> Iterator[Chain]:
    modes = [mode for mode in MODES if {"cheap": {"cheap"}, "both": {"cheap", "recompute"}}.get(
        mode.partition("-")[0], {"recompute"}) <= {*allow}]  # fmt: skip
    if not modes or not can_be_cut(step.requirements):
        return
    for schedule in _bases(step, allow):
        yield Chain(replace(step, schedule=schedule), modes)


def _within(
    step: Step, ram_bytes: int, most: float, allow: Collection[str], plain: Scheduled
) -> Iterator[Scheduled]:
    """Yield schedules for a budget; they may miss it."""
    yield plain
    free = [Scheduled.of(replace(step, schedule=schedule)) for schedule in _bases(step, allow)]
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
    yield from (Scheduled.of(replace(step, schedule=schedule)) for schedule in _bases(step, allow))
    for chain in _chains(step, allow):
        low, high, best = chain.floor - 1, plain.peak_bytes, None
        while high - low > _CLOSE_BYTES:
            middle = (low + high) // 2
            label = chain.solve(middle, most - chain.base_flops)
            low, high, best = (middle, high, best) if label is None else (low, middle, label)
        if best is not None:
            yield Scheduled.of(replace(step, schedule=chain.schedule(best)))


_CLOSE_BYTES = 1024  # how near to the least a search comes
