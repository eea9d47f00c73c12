"""Exact prices of any sub-network of an elastic super-network, from tables of its blocks.

One tensor passes between two blocks, so that what a step takes falls into parts: the stem with the fixed first block,
each elastic block, and the tail. Of a part p

    kept[p]            bytes that it keeps from its forward until its backward
    forward[p]         most bytes at any moment of its forward, beyond what the parts before keep
    backward[p]        the same of its backward, beyond that and the gradients of the parts behind
    gradient[p]        bytes of its parameters' gradients

and the peak of the step is, with what is there at its start (weights, buffers, input, optimizer's state),

    start + max over p of   sum(kept[<p]) + forward[p],   sum(kept[<p]) + backward[p] + sum(gradient[>p])

or what the update takes; from the second of several passes on all gradients are there, and with updates in place none.
The parts are read off simulations of whole steps. A part that occurs in several must be the same in all, or it is an
error: then the parts are not independent.

Schedules are those that cost no matrix product: several passes (micro-batches), and updates in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import numpy as np

from ..accounting.requirements import Requirements
from ..accounting.table import ACCOUNTINGS
from ..answers.footprint import Footprint, footprint
from ..errors import InputError, ModelError
from ..graph.blocks import parts
from ..graph.elastic import Design, Subnetwork
from ..graph.layer_graph import LayerGraph
from ..methods.table import METHODS
from ..schedules.best import MOST_FLOPS, free_schedules, levers_of
from ..step.optimizers import OPTIMIZERS
from ..step.precision import Precision
from ..step.schedule import PLAIN, Schedule
from ..step.simulation import SAVED, Moment
from ..step.sizes import trained_bytes
from ..step.step import Step
from ..units import Counts

LEVERS = ("inplace", "micro-batch")
# Of a part, whatever the schedule. The update goes through the parameters in their order, in which a part has one run,
# and a second one where the method adds layers.
_STATIC = (
    "start", "gradient", "trained", "forward_flops", "backward_flops",
    "first_0", "most_0", "last_0", "first_1", "most_1", "last_1",
)  # fmt: skip
_CARRIED = ("kept", "forward", "backward", "total_flops", "elementwise")  # of a part, for each schedule
_NEVER = -(2**60)  # no moment
# The first block of a stage has no skip, and the second one runs while its result is held; the others are alike.
_LAST_PLACE = 2
_ABSENT = 0  # the row of a block that is not there


@dataclass(frozen=True)
class SubnetworkPrices:
    """The prices of sub-networks, in columns in their order.

    saved_bytes, peak_bytes, FLOPs: of the plain step. least_bytes: of the peak with the schedule that takes the least
    memory; schedule: its place in `schedules`. peaks: of each schedule, [schedules, sub-networks].
    """

    schedules: tuple[Schedule, ...]
    saved_bytes: Counts
    peak_bytes: Counts
    forward_flops: Counts
    backward_flops: Counts
    total_flops: Counts
    trained_parameters: Counts
    least_bytes: Counts
    schedule: Counts
    peaks: Counts


class BlockPrices:
    """The table of a super-network's blocks for one kind of step; grows as sub-networks are asked for.

    step: of any sub-network. graph_of: a sub-network's trace; only those are traced that bring a new block.

    Errors: InputError for a step that cannot be taken apart so: of books without a timeline, in other precisions, or of
    a method whose blocks do not stand for themselves.
    """

    def __init__(self, design: Design, step: Step, graph_of: Callable[[Subnetwork], LayerGraph]):
        self.design, self.graph_of = design, graph_of
        self.step = step = replace(step, schedule=PLAIN)
        method = METHODS.get(step.way.method)
        unfit = ACCOUNTINGS[step.accounting].timeline is not None or step.precision != Precision() or step.first_step
        if unfit or method is None or method.depth_option or method.options:
            raise InputError(
                f"{step.way.label} by the accounting {step.accounting} cannot be priced block by block; take "
                "float32, the accounting lean or eager, and a method without options, or trace each sub-network"
            )
        # Where, counted from the end, a method treats blocks differently.
        depth = step.way.blocks
        self.marks = (*method.marks, *(() if depth is None else range(max(depth - 1, 0), depth + 2)))
        self.schedules = tuple(dict.fromkeys((PLAIN, *free_schedules(step, LEVERS))))
        self.columns = {name: number for number, name in enumerate(
            (*_STATIC, *(f"{name}_{s}" for s in range(len(self.schedules)) for name in _CARRIED))
        )}  # fmt: skip
        nothing = np.zeros(len(self.columns), np.int64)
        for s in range(len(self.schedules)):
            nothing[[self.columns[f"forward_{s}"], self.columns[f"backward_{s}"]]] = _NEVER
        self.rows: list[Counts] = [nothing]
        self.row_of: dict[tuple[int, ...], int] = {}
        # Bytes kept, and for each schedule bytes at a step's start, that belong to no part: of the images.
        self.constant: tuple[int, ...] | None = None

    def key(self, stage: int, place: int, kernel: int, expansion: int, behind: int) -> tuple[int, ...]:
        """Return what tells a block's price. behind: elastic blocks behind it."""
        return stage, min(place, _LAST_PLACE), kernel, expansion, self.tier(behind)

    def tier(self, behind: int) -> int:
        """Return what a block's number of blocks behind it matters for."""
        return sum(behind < mark for mark in self.marks)

    def alike(self, beginning: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the known keys that begin so: of a block, whatever stands behind it."""
        return [key for key in self.row_of if key[: len(beginning)] == beginning]

    def keys_of(self, chosen: Subnetwork) -> list[tuple[int, ...]]:
        """Return the keys of a sub-network's parts in their order: stem, blocks, tail."""
        places, count = self.design.places_of(chosen), len(chosen.kernels)
        blocks = zip(places, chosen.kernels, chosen.expansions, reversed(range(count)), strict=True)
        return [(-1, self.tier(count)), *(self.key(*place, k, e, behind) for place, k, e, behind in blocks), (-2,)]

    def add(self, chosen: Subnetwork) -> None:
        """Read off what one sub-network's parts take. Errors: ModelError if a known part takes something else here."""
        rows, constant = _read(replace(self.step, graph=self.graph_of(chosen)), self.schedules, self.columns)
        keys = self.keys_of(chosen)
        if len(rows) != len(keys):
            raise ModelError(f"{self.step.graph.model} has {len(rows) - 2} elastic blocks, not {len(keys) - 2}")
        if self.constant not in (None, constant):
            raise ModelError(f"a sub-network, {chosen.text}, keeps something that is part of no block")
        self.constant = constant
        for key, row in zip(keys, rows, strict=True):
            if key not in self.row_of:
                self.row_of[key] = len(self.rows)
                self.rows.append(row)
            elif not np.array_equal(self.rows[self.row_of[key]], row):
                differing = [name for name, at in self.columns.items() if self.rows[self.row_of[key]][at] != row[at]]
                raise ModelError(f"a block {key} of {chosen.text} takes another {differing[0]} than elsewhere")

    def price(self, many: Sequence[Subnetwork]) -> SubnetworkPrices:
        """Return the prices of sub-networks. Errors: those of `add`."""
        numbers = self._numbers(many)
        table = np.stack(self.rows)
        assert self.constant is not None  # something was added, if only for the stem
        kept, *start = self.constant

        def total(name: str) -> Counts:
            return table[:, self.columns[name]][numbers].sum(axis=1)

        peaks = np.stack([self._peaks(table, numbers, s) + start[s] for s in range(len(self.schedules))])
        flops = np.stack([total(f"total_flops_{s}") for s in range(len(self.schedules))])
        work = np.stack([total(f"elementwise_{s}") for s in range(len(self.schedules))])
        best = np.zeros(len(numbers), np.int64)
        every = np.arange(len(numbers))
        for s, schedule in enumerate(self.schedules):
            levers = np.array([levers_of(each) for each in self.schedules])
            mine = np.stack([peaks[s], flops[s], work[s], np.full(len(every), levers_of(schedule))])
            theirs = np.stack([peaks[best, every], flops[best, every], work[best, every], levers[best]])
            best = np.where((flops[s] <= MOST_FLOPS * flops[0]) & _before(mine, theirs), s, best)
        return SubnetworkPrices(
            self.schedules, total("kept_0") + kept, peaks[0], total("forward_flops"), total("backward_flops"), flops[0],
            total("trained"), peaks[best, every], best, peaks,
        )  # fmt: skip

    def _numbers(self, many: Sequence[Subnetwork]) -> Counts:
        """Return the rows of each sub-network's parts, [sub-networks, parts]; rows that are missing are added first."""
        stages = [stage for stage, each in enumerate(self.design.stages) for _ in range(each.most_blocks)]
        places = [place for each in self.design.stages for place in range(each.most_blocks)]
        depths = np.array([self.design.depths_of(chosen) for chosen in many], np.int64)
        present = np.array(places) < depths[:, stages]
        codes = np.zeros(present.shape, np.int64)
        kernels = np.fromiter(chain.from_iterable(each.kernels for each in many), np.int64)
        expansions = np.fromiter(chain.from_iterable(each.expansions for each in many), np.int64)
        behind = np.cumsum(present[:, ::-1], axis=1)[:, ::-1] - 1
        tiers = self._tiers(behind)
        codes[present] = (kernels * 10 + expansions) * (len(self.marks) + 1) + tiers[present]
        numbers = np.full((len(many), present.shape[1] + 2), _ABSENT, np.int64)
        count = present.sum(axis=1)
        numbers[:, 0] = self._rows_of([(-1, tier) for tier in self._tiers(count).tolist()], many)
        numbers[:, -1] = self._rows_of([(-2,)] * len(many), many)
        for column, (stage, place) in enumerate(zip(stages, places, strict=True), 1):
            values, inverse = np.unique(codes[:, column - 1], return_inverse=True)
            examples = [many[int(np.argmax(inverse == each))] for each in range(len(values))]
            keys = []
            for value in values.tolist():
                sizes, tier = divmod(value, len(self.marks) + 1)
                keys.append((stage, min(place, _LAST_PLACE), *divmod(sizes, 10), tier) if sizes else ())
            numbers[:, column] = self._rows_of(keys, examples)[inverse]
        return numbers

    def _tiers(self, behind: Counts) -> Counts:
        """Return the tier of each number of blocks behind."""
        return (behind[..., None] < np.array(self.marks, np.int64)).sum(axis=-1)

    def _rows_of(self, keys: Sequence[tuple[int, ...]], examples: Sequence[Subnetwork]) -> Counts:
        """Return the row of each key; examples: a sub-network with each."""
        for key, chosen in zip(keys, examples, strict=True):
            if key and key not in self.row_of:
                self.add(chosen)
        return np.array([self.row_of[key] if key else _ABSENT for key in keys], np.int64)

    def _peaks(self, table: Counts, numbers: Counts, s: int) -> Counts:
        """Return the peak of each sub-network with a schedule, without what is part of no block."""
        schedule, optimizer = self.schedules[s], OPTIMIZERS.find(self.step.optimizer)

        def of(name: str, part: int) -> Counts:
            return table[:, self.columns[name]][numbers[:, part]]

        every = range(numbers.shape[1])
        gradients = sum(of("gradient", part) for part in every)
        several = schedule.images_per_pass(self.step.batch) < self.step.batch
        there = gradients if several else 0
        behind = gradients
        kept, peak = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
        for part in every:
            behind = behind - of("gradient", part)
            later = 0 if schedule.inplace_update else there if several else behind
            peak = np.maximum(peak, kept + of(f"forward_{s}", part) + there)
            peak = np.maximum(peak, kept + of(f"backward_{s}", part) + later)
            kept = kept + of(f"kept_{s}", part)
        if not schedule.inplace_update:
            working = np.zeros(len(numbers), np.int64)
            before = np.zeros(len(numbers), np.int64)
            for run in (0, 1):
                for part in every:
                    first, last = of(f"first_{run}", part), of(f"last_{run}", part)
                    inner = np.maximum(of(f"most_{run}", part), first * optimizer.temporary_per_parameter + before)
                    working = np.maximum(working, np.where(first > 0, inner, 0))
                    before = np.where(first > 0, last, before)
            peak = np.maximum(peak, gradients + working)
        return peak + sum(of("start", part) for part in every)


def _before(mine: Counts, theirs: Counts) -> Counts:
    """Return where one comes before the other: [what counts, the more important first; sub-networks]."""
    found, equal = np.zeros(mine.shape[1], bool), np.ones(mine.shape[1], bool)
    for own, other in zip(mine, theirs, strict=True):
        found |= equal & (own < other)
        equal &= own == other
    return found


def _read(step: Step, schedules: Sequence[Schedule], columns: dict[str, int]) -> tuple[list[Counts], tuple[int, ...]]:
    """Return what each part of a step takes, and the bytes kept, and there at its start, that belong to no part."""
    required = step.requirements
    ranges = _ranges(required)
    of_layer = {required.graph.layers[index].name: part for part, each in enumerate(ranges) for index in each}
    rows = np.zeros((len(ranges), len(columns)), np.int64)
    _read_sizes(step, ranges, rows, columns)
    kept, starts = 0, []
    for s, schedule in enumerate(schedules):
        found = footprint(replace(step, schedule=schedule))
        _read_moments(found, of_layer, rows, columns, s)
        starts.append(found.moments[0].total_bytes - int(rows[:, columns["start"]].sum()))
        if s == 0:
            kept = found.saved_bytes - int(rows[:, columns["kept_0"]].sum())
        for part, each in enumerate(ranges):
            counts, passes = required.flops_of(each), found.step.passes
            kinds = {kind: step.batch * counts[0][kind] + passes * counts[1][kind] for kind in counts[0]}
            backward = kinds["backward_input"] + kinds["backward_weight"]
            rows[part, columns[f"total_flops_{s}"]] = kinds["forward"] + backward + kinds["recompute"]
            rows[part, columns[f"elementwise_{s}"]] = kinds["elementwise_backward"]
            if s == 0:
                rows[part, columns["forward_flops"]], rows[part, columns["backward_flops"]] = kinds["forward"], backward
    return list(rows), (kept, *starts)


def _ranges(required: Requirements) -> list[range]:
    """Return the layers of the stem with the first block, of each other block, and of the tail."""
    starts = [block.first for block in parts(required.graph).blocks[1:]]
    ends = [0, *starts, parts(required.graph).tail.start, len(required.graph.layers)]
    return [range(first, last) for first, last in pairwise(ends)]


def _read_sizes(step: Step, ranges: Sequence[range], rows: Counts, columns: dict[str, int]) -> None:
    """Fill in what the parameters and buffers of each part take."""
    required, optimizer = step.requirements, OPTIMIZERS.find(step.optimizer)
    graph, trained = required.graph, trained_bytes(required, step.precision)
    of_module = {
        graph.layers[index].module: part for part, each in enumerate(ranges) for index in each
    }  # fmt: skip
    for name, tensor in (*graph.parameters.items(), *graph.buffers.items()):
        part = of_module[name.rpartition(".")[0]]
        rows[part, columns["start"]] += tensor.bytes(1)
    runs = [0] * len(ranges)
    before, last_part = 0, -1
    for name, size in trained.items():
        part = of_module[name.rpartition(".")[0]]
        rows[part, columns["start"]] += optimizer.state_bytes(size)
        rows[part, columns["gradient"]] += size
        rows[part, columns["trained"]] += required.trained_elements[name]
        working = optimizer.temporary_per_parameter * size
        if part != last_part:
            run = runs[part]
            runs[part] += 1
            rows[part, columns[f"first_{run}"]] = size
            rows[part, columns[f"most_{run}"]] = working
        else:
            run, held = runs[part] - 1, before if working else 0
            most = columns[f"most_{run}"]
            rows[part, most] = max(rows[part, most], working + held)
        rows[part, columns[f"last_{run}"]] = size if working else 0
        before, last_part = size, part


def _read_moments(found: Footprint, of_layer: dict[str, int], rows: Counts, columns: dict[str, int], s: int) -> None:
    """Fill in what each part takes at most, from the last pass of a step with a schedule."""
    step, count = found.step, len(rows)
    start = found.moments[0].total_bytes
    first = found.graph.layers[0].name
    begin = max(n for n, moment in enumerate(found.moments) if (moment.phase, moment.layer) == ("forward", first))
    gradients = rows[:, columns["gradient"]]
    several, in_place = step.passes > 1, step.schedule.inplace_update
    kept = np.zeros(count + 1, np.int64)
    most = {"forward": np.full(count, _NEVER), "backward": np.full(count, _NEVER)}
    part = 0
    in_backward: list[tuple[int, Moment]] = []
    for moment in found.moments[begin:]:
        if moment.phase == "forward":
            part = of_layer[moment.layer]
            kept[part + 1 :] = moment.by_category[SAVED]
        elif moment.phase == "loss":
            part = count - 1
        elif moment.phase in ("backward", "recompute"):
            part = of_layer[moment.layer]
        elif moment.phase == "end" or not in_place:
            continue
        if moment.phase in ("forward", "loss"):
            held = kept[part] + (gradients.sum() if several else 0)
            most["forward"][part] = max(most["forward"][part], moment.total_bytes - start - held)
        else:
            in_backward.append((part, moment))
    for part, moment in in_backward:
        behind = 0 if in_place else gradients.sum() if several else gradients[part + 1 :].sum()
        held = kept[part] + behind
        most["backward"][part] = max(most["backward"][part], moment.total_bytes - start - held)
    rows[:, columns[f"kept_{s}"]] = np.diff(kept)
    for phase, values in most.items():
        rows[:, columns[f"{phase}_{s}"]] = values
