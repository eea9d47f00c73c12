"""The best sub-network within a budget, carried out by one schedule: exact dynamic programming over the blocks.

Blocks are added from the last to the first. Of what stands already, four numbers matter: the accuracy that it adds, the
bytes that are there all the time (weights, buffers, state), the bytes of its gradients, and the most that its own
moments take beyond what the blocks before keep,

    most[b] = max(forward[b], backward[b] + gradients behind b, kept[b] + most[behind b])

(`costmodel.BlockPrices`). What is worse in all four than another is dropped, and what cannot reach the best that is
known to fit: for each block still to come, its start and kept bytes come on top, whatever the moment of the peak, so
that the most accuracy for those bytes alone is a bound. It is known from a dynamic programme of its own, over two
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from costmodel import BlockPrices, Subnetwork
from costmodel.graph.elastic import DEPTHS, EXPANSIONS, KERNELS

_CHUNK = 512  # rows that are compared at once

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


class Programme:
    """One dynamic programme.

    units: what each block adds to the accuracy, by (stage, place, kernel, expansion), in whole units. s: the number of
    the schedule. to_beat: units that are known to fit in `budget` bytes. The update's temporary memory is left out.
    """

    def __init__(
        self, prices: BlockPrices, units: Mapping[tuple[int, int, int, int], int], s: int, budget: int, to_beat: int
    ):
        self.prices, self.units, self.budget, self.to_beat = prices, units, budget, to_beat
        self.design = prices.design
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
                    added.append((open_ones[0] + size, open_ones[1] + self.units[stage, place, *block]))
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
                own = [self.units[stage, place, kernel, expansion], self.of("start", key),
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
