"""The sub-network of which most accuracy is expected within a budget: exact dynamic programming over the blocks.

Blocks are added from the last to the first. Of what stands already, four numbers matter: the accuracy that it adds, the
bytes that are there all the time (weights, buffers, state), the bytes of its gradients, and the most that its own
moments take beyond what the blocks before keep,

    most[b] = max(forward[b], backward[b] + gradients behind b, kept[b] + most[behind b])

(`costmodel.zoo.block_prices`). What is worse in all four than another is dropped, and what cannot reach the best that
is known to fit: for each block still to come, its start and kept bytes come on top, whatever the moment of the peak, so
that the most accuracy for those bytes alone is a bound. It is known from a dynamic programme of its own, over two
numbers. Each schedule is a search of its own.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from costmodel import BlockPrices, Design, LayerGraph, Schedule, Step, Subnetwork, Way, supernetwork, trace, way
from costmodel.errors import InfeasibleError, InputError, shortened
from costmodel.reading import read_file
from costmodel.units import format_bytes
from costmodel.zoo.elastic import DEPTHS, EXPANSIONS, KERNELS, split_name

from ..estimates.subnetworks import LEAST, Quality, SubnetworkAccuracy, fit

# The unit of accuracy in which sub-networks are told apart, in points. Assumption: far below any predictor's error.
UNIT_POINTS = 0.01
_TRIED_FIRST = 3000  # sub-networks at random: the best that fits is what the search has to beat
_REPEATS = 8
_BUDGETS = 12  # of a frontier
_MOBILETL_BLOCKS = (
    8  # Source: benchmarks/results/decision_quality.md: more gains little, and every sub-network has them
)


@dataclass(frozen=True)
class Found:
    """A sub-network with its prices. schedule: with which it fits; peak_bytes: what it takes so."""

    chosen: Subnetwork
    expected_percent: float
    schedule: Schedule
    peak_bytes: int
    total_flops: int


_VALUE, _START, _GRADIENT, _MOST = range(4)


@dataclass(frozen=True)
class _Labels:
    """Ways to end a network. numbers: accuracy in units, start bytes, gradient bytes, `most`: [labels, 4].

    paths: the option of each block of the super-network, [labels, blocks]; -1 where there is none.
    """

    numbers: np.ndarray
    paths: np.ndarray

    def take(self, which: np.ndarray) -> _Labels:
        """Return some of them."""
        return _Labels(self.numbers[which], self.paths[which])


def _joined(several: Sequence[_Labels]) -> _Labels:
    return _Labels(np.concatenate([x.numbers for x in several]), np.concatenate([x.paths for x in several]))


class Search:
    """The search in one super-network: prices of its blocks, and what they add to the accuracy."""

    def __init__(self, prices: BlockPrices, accuracy: SubnetworkAccuracy):
        self.prices, self.accuracy, self.design = prices, accuracy, prices.design
        self.tried = list(dict.fromkeys(_tried(self.design)))
        self.known = prices.price(self.tried)
        self.units = {key: round(value / UNIT_POINTS) for key, value in accuracy.values.items()}
        self.tried_units = np.array([self._units(chosen) for chosen in self.tried])

    def _units(self, chosen: Subnetwork) -> int:
        blocks = zip(self.design.places_of(chosen), chosen.kernels, chosen.expansions, strict=True)
        return sum(self.units[*place, kernel, expansion] for place, kernel, expansion in blocks)

    def best(self, ram_bytes: int) -> Found:
        """Return the sub-network of the highest expected accuracy that fits, and the schedule with the fewest FLOPs.

        Errors: InfeasibleError, naming the least, if none fits.
        """
        fits = self.known.peaks.min(axis=0) <= ram_bytes
        chosen: Subnetwork | None = None
        units = -(2**60)
        if fits.any():
            at = int(np.where(fits, self.tried_units, -(2**60)).argmax())
            chosen, units = self.tried[at], int(self.tried_units[at])
        for s in range(len(self.prices.schedules)):
            budget = ram_bytes
            for _ in range(_REPEATS):
                found = _Programme(self, s, budget, units).solve()
                if found is None:
                    break
                excess = int(self.prices.price([found]).peaks[s, 0]) - ram_bytes
                if excess <= 0:
                    chosen, units = found, self._units(found)
                    break
                budget -= excess  # of the update's temporary memory, which the programme leaves out
        if chosen is None:
            least = int(self.known.peaks.min())
            raise InfeasibleError(
                f"no sub-network fits in {format_bytes(ram_bytes)}: the least of those tried takes "
                f"{format_bytes(least)} ({least} bytes); allow more, or take a smaller batch, resolution or width"
            )
        prices = self.prices.price([chosen])
        s = next(s for s in range(len(prices.schedules)) if prices.peaks[s, 0] <= ram_bytes)
        return Found(
            chosen, self.accuracy.percent(chosen), prices.schedules[s], int(prices.peaks[s, 0]),
            int(prices.total_flops[0]),
        )  # fmt: skip

    def frontier(self, budgets: Sequence[int]) -> list[Found]:
        """Return the best for each budget that something fits in, each sub-network once."""
        found: dict[Subnetwork, Found] = {}
        for budget in budgets:
            try:
                one = self.best(budget)
            except InfeasibleError:
                continue
            found.setdefault(one.chosen, one)
        return list(found.values())


def _tried(design: Design) -> Iterator[Subnetwork]:
    """Yield sub-networks that together have every block in every place, and others at random."""
    for depths in product(DEPTHS, repeat=len(design.elastic)):
        for kernel, expansion in product(KERNELS, EXPANSIONS):
            yield design.subnetwork(depths, (kernel,), (expansion,))
    randomness = random.Random(0)
    yield from (design.draw(randomness) for _ in range(_TRIED_FIRST))


class _Programme:
    """One dynamic programme: a schedule, a budget, and the units of accuracy that are to be beaten."""

    def __init__(self, search: Search, s: int, budget: int, to_beat: int):
        self.search, self.budget, self.to_beat = search, budget, to_beat
        self.prices, self.design = search.prices, search.design
        self.schedule = self.prices.schedules[s]
        self.several = self.schedule.images_per_pass(self.prices.step.batch) < self.prices.step.batch
        self.table = np.stack(self.prices.rows)
        self.at = {name: self.prices.columns[f"{name}_{s}"] for name in ("kept", "forward", "backward")}
        self.at |= {name: self.prices.columns[name] for name in ("start", "gradient")}
        assert self.prices.constant is not None  # its parts are known
        self.constant = self.prices.constant[1 + s]
        self.horizon = max(self.prices.marks, default=0)
        self.options = list(product(KERNELS, EXPANSIONS))
        self.bounds = self._bounds()

    def of(self, name: str, key: tuple[int, ...]) -> int:
        """Return a number of a part."""
        return int(self.table[self.prices.row_of[key], self.at[name]])

    def _bounds(self) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """Return, by (stage, place), what can stand before that block: bytes of start and kept, and the most accuracy.

        Both rise. Of a block's prices at different places from the end the least counts.
        """
        stem = min(self._above(key) for key in self.prices.alike((-1,)))
        open_ones = np.array([stem]), np.zeros(1, np.int64)
        found = {}
        for stage, each in enumerate(self.design.stages):
            ends = []
            for place in range(each.most_blocks):
                found[stage, place] = open_ones
                added = []
                for block in self.options:
                    known = self.prices.alike(self.prices.key(stage, place, *block, 0)[:-1])
                    size = min(self._above(key) for key in known)
                    added.append((open_ones[0] + size, open_ones[1] + self.search.units[stage, place, *block]))
                open_ones = _rising(added)
                if place + 1 in self._depths(stage):
                    ends.append(open_ones)
            open_ones = _rising(ends)
        return found

    def _above(self, key: tuple[int, ...]) -> int:
        """Return what a part adds to the peak wherever that is behind it."""
        return self.of("start", key) + self.of("kept", key)

    def _depths(self, stage: int) -> tuple[int, ...]:
        return DEPTHS if self.design.stages[stage].most_blocks > 1 else (1,)

    def solve(self) -> Subnetwork | None:
        """Return the best sub-network that fits and beats what is known; None if there is none."""
        tail, count = (-2,), self.design.most_blocks
        gradient = 0 if self.schedule.inplace_update else self.of("gradient", tail)
        most = max(self.of("forward", tail), self.of("backward", tail))
        start = self.of("start", tail) + self.constant
        nothing = _Labels(np.array([[0, start, gradient, most]]), np.full((1, count), -1, np.int8))
        ends = {0: nothing}  # by the blocks behind, as far as they matter
        slot = count
        for stage in reversed(range(len(self.design.stages))):
            going: dict[int, _Labels] = {}
            for place in reversed(range(self.design.stages[stage].most_blocks)):
                slot -= 1
                if place + 1 in self._depths(stage):
                    going = {
                        behind: _joined([each[behind] for each in (going, ends) if behind in each])
                        for behind in going.keys() | ends.keys()
                    }
                going = self._before(going, stage, place, slot)
            ends = going
        best, found = self.to_beat, None
        for behind, labels in ends.items():
            fits = np.flatnonzero(self._peak(labels, (-1, self.prices.tier(behind))) <= self.budget)
            values = labels.numbers[fits, _VALUE]
            if len(fits) and values.max() > best:
                best, found = int(values.max()), labels.paths[fits[values.argmax()]]
        return None if found is None else self._subnetwork(found.tolist())

    def _peak(self, labels: _Labels, stem: tuple[int, ...]) -> np.ndarray:
        """Return the peak of whole networks, but for the temporary memory of the update."""
        start = labels.numbers[:, _START] + self.of("start", stem)
        gradients = labels.numbers[:, _GRADIENT] + self.of("gradient", stem)
        over = self._over(labels, stem)
        if self.schedule.inplace_update:
            return start + over
        return start + (over + gradients if self.several else np.maximum(over, gradients))

    def _over(self, labels: _Labels, key: tuple[int, ...]) -> np.ndarray:
        """Return the most that a part and all behind it take beyond what the parts before keep."""
        behind = 0 if self.several else labels.numbers[:, _GRADIENT]  # none where updates are in place
        own = np.maximum(self.of("forward", key), self.of("backward", key) + behind)
        return np.maximum(own, self.of("kept", key) + labels.numbers[:, _MOST])

    def _before(self, going: dict[int, _Labels], stage: int, place: int, slot: int) -> dict[int, _Labels]:
        """Return the labels with one more block before each. slot: its place in the super-network."""
        found: dict[int, list[_Labels]] = {}
        for behind, labels in going.items():
            for number, (kernel, expansion) in enumerate(self.options):
                key = self.prices.key(stage, place, kernel, expansion, behind)
                if key not in self.prices.row_of:
                    continue
                own = [self.search.units[stage, place, kernel, expansion], self.of("start", key),
                       0 if self.schedule.inplace_update else self.of("gradient", key)]  # fmt: skip
                numbers, paths = labels.numbers.copy(), labels.paths.copy()
                numbers[:, :_MOST] += own
                numbers[:, _MOST] = self._over(labels, key)
                paths[:, slot] = number
                found.setdefault(min(behind + 1, self.horizon), []).append(_Labels(numbers, paths))
        return {behind: self._pruned(_joined(several), stage, place) for behind, several in found.items()}

    def _pruned(self, labels: _Labels, stage: int, place: int) -> _Labels:
        """Return the labels without those that cannot win, and those that another is better than."""
        sizes, values = self.bounds[stage, place]
        value, start, gradient, most = labels.numbers.T
        total = start + gradient if self.several else start
        at = np.searchsorted(sizes, self.budget - total - most, side="right") - 1
        hopeful = (at >= 0) & (value + values[np.maximum(at, 0)] > self.to_beat)
        labels = labels.take(np.flatnonzero(hopeful))
        value, start, gradient, most = labels.numbers.T
        costs = (-value, start + gradient, most) if self.several else (-value, start, gradient, most)
        return labels.take(_undominated(np.stack(costs, axis=1)))

    def _subnetwork(self, path: Sequence[int]) -> Subnetwork:
        """Return the sub-network of a label's path."""
        depths, slot = [], 0
        for each in self.design.stages:
            depths.append(sum(number >= 0 for number in path[slot : slot + each.most_blocks]))
            slot += each.most_blocks
        blocks = [self.options[number] for number in path if number >= 0]
        elastic = (depth for depth, each in zip(depths, self.design.stages, strict=True) if each.most_blocks > 1)
        return Subnetwork(tuple(elastic), *(tuple(each) for each in zip(*blocks, strict=True)))


def _rising(several: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of bytes and accuracy, of which no other is better in both, by bytes."""
    sizes, values = (np.concatenate(each) for each in zip(*several, strict=True))
    order = np.lexsort((-values, sizes))
    sizes, values = sizes[order], values[order]
    best = np.maximum.accumulate(values)
    new = np.concatenate(([True], values[1:] > best[:-1]))
    return sizes[new], values[new]


def _undominated(costs: np.ndarray) -> np.ndarray:
    """Return the rows that no other is at most as large as in every column; one of equal ones."""
    order = np.lexsort(costs.T[::-1])
    kept: list[int] = []
    for first in range(0, len(order), _CHUNK):
        part = order[first : first + _CHUNK]
        others = costs[np.array(kept, np.int64)]
        part = part[~_beaten(costs[part], others)]
        own = costs[part]
        worse = (own[None, :, :] <= own[:, None, :]).all(axis=2)
        worse &= np.tri(len(part), k=-1, dtype=bool)  # only earlier ones: they are not larger in the first column
        kept += part[~worse.any(axis=1)].tolist()
    return np.array(kept, np.int64)


def _beaten(mine: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which rows another row is at most as large as in every column."""
    found = np.zeros(len(mine), bool)
    for first in range(0, len(others), 8 * _CHUNK):
        part = others[first : first + 8 * _CHUNK]
        below = np.ones((len(mine), len(part)), bool)
        for column in range(mine.shape[1]):
            below &= part[None, :, column] <= mine[:, None, column]
        found |= below.any(axis=1)
    return found


_CHUNK = 512


@dataclass(frozen=True)
class Frontier:
    """The best sub-networks by the accuracies that are given, the smallest first."""

    model: str
    batch: int
    best: tuple[Found, ...]
    quality: Quality

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        found = [
            {
                "subnetwork": one.chosen.text, "expected_percent": one.expected_percent, "peak_bytes": one.peak_bytes,
                "total_flops": one.total_flops, "schedule": one.schedule.to_dict(self.batch),
            }
            for one in self.best
        ]  # fmt: skip
        return {"model": self.model, "batch": self.batch, "predictor": asdict(self.quality), "frontier": found}


def plan_without_data(
    model: str, accuracies: str, ram_bytes: int | None = None, trained: Way | None = None, resolution: int = 224,
    classes: int | None = None, batch: int = 8, optimizer: str = "sgd",
) -> Frontier:  # fmt: skip
    """Return the frontier over a super-network's sub-networks by accuracies that are known of some, as on ImageNet.

    accuracies: a CSV file with columns subnetwork (d=...,k=...,e=...) and top1_percent. ram_bytes: the largest budget;
    that of the largest sub-network if None.

    Errors: InputError for a network that is not elastic, and a file that cannot be used; InfeasibleError if nothing
    fits.
    """
    design = supernetwork(model, classes, device="meta").design
    observed = _read(design, accuracies)
    accuracy = fit(design, observed)

    def graph_of(chosen: Subnetwork) -> LayerGraph:
        return trace(subnetwork_name(model, chosen), resolution, classes)

    way = trained or default_way(design)
    prices = BlockPrices(design, Step(graph_of(design.smallest), way, batch, optimizer=optimizer), graph_of)
    search = Search(prices, accuracy)
    least, most = int(search.known.peaks.min()), int(search.known.least_bytes.max())
    top = search.best(most if ram_bytes is None else ram_bytes)  # refused if nothing fits
    budgets = np.geomspace(least, top.peak_bytes, _BUDGETS)[:-1].round().astype(int).tolist()
    return Frontier(model, batch, (*search.frontier(budgets), top), accuracy.quality)


def default_way(design: Design) -> Way:
    """Return how sub-networks train: by TinyTL where they have its norm, else by MobileTL."""
    blocks = len(design.smallest.kernels) + 1
    return way("tinytl-lb") if design.norm == "group" else way("mobiletl", min(_MOBILETL_BLOCKS, blocks))


def subnetwork_name(model: str, chosen: Subnetwork) -> str:
    """Return the full name of a super-network's sub-network."""
    base, choice = split_name(model)
    parts = [part for part in (choice or "").split(",") if part.partition("=")[0] in ("w", "norm")]
    return f"{base}@{','.join([*parts, chosen.text])}"


def _read(design: Design, path: str) -> list[tuple[Subnetwork, float]]:
    """Return the accuracies in a file. Errors: InputError, naming the line, for what cannot be used."""
    text = read_file(path, "evidence").decode("utf-8-sig", errors="replace")
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not {"subnetwork", "top1_percent"} <= rows[0].keys():
        raise InputError(f"{path} needs a first line with the columns subnetwork and top1_percent, and rows")
    found = []
    for number, row in enumerate(rows, 2):
        try:
            percent = float(row["top1_percent"] or "")
            if not 0 <= percent <= 100:
                raise ValueError
        except (TypeError, ValueError):
            given = shortened(str(row["top1_percent"]))
            raise InputError(f"{path}, line {number}: top1_percent is {given}; it must be a number, 0 to 100") from None
        try:
            found.append((design.read((row["subnetwork"] or "").rpartition("@")[2])[1], percent))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    if len(found) < LEAST:
        raise InputError(f"{path} has {len(found)} sub-networks; {LEAST} are needed to predict others")
    return found
