"""Blocks of memory with known lifetimes -> a place for each in one piece of memory, as small as can be.

Lifetimes are on a circle: a step's blocks may live on into the next step, which has the same blocks. A block of
`bytes` lives in [start, end); where end lies beyond the `turn`, it lives again from 0 to end - turn.

The places are a heuristic's: each block, in one of several orders, goes into the smallest gap that holds it among the
blocks that live at the same time; the best order is kept. How far that is from the least (`live_bytes`, below which no
placement can be) is part of the answer. Source: greedy by size, Pisarchyk and Lee, Efficient Memory Management for Deep
Neural Net Inference (arXiv 2001.03288), with more orders; dynamic storage allocation is NP-hard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..units import Counts

ALIGNMENT = 64  # of every place, in bytes. Source: c10::gAlignment


@dataclass(frozen=True, eq=False)
class Blocks:
    """bytes, start, end: [blocks]; every block lives for less than a turn, and starts within [0, turn)."""

    bytes: Counts
    start: Counts
    end: Counts
    turn: int

    def __len__(self) -> int:
        return len(self.bytes)

    @property
    def live_bytes(self) -> int:
        """The most bytes that live at one time."""
        change = np.zeros(self.turn + 1, np.int64)
        wrapped = self.end > self.turn
        np.add.at(change, self.start, self.bytes)
        np.subtract.at(change, np.minimum(self.end, self.turn), self.bytes)
        change[0] += self.bytes[wrapped].sum()
        np.subtract.at(change, (self.end - self.turn)[wrapped], self.bytes[wrapped])
        return int(np.cumsum(change)[: self.turn].max(initial=0))

    def meet(self) -> np.ndarray:
        """Return which blocks live at the same time: [blocks, blocks] of truth."""
        together = np.zeros((len(self), len(self)), bool)
        for shift in (-self.turn, 0, self.turn):
            starts, ends = self.start + shift, self.end + shift
            together |= (starts[None, :] < self.end[:, None]) & (self.start[:, None] < ends[None, :])
        return together


@dataclass(frozen=True, eq=False)
class Placement:
    """places: where each block begins, [blocks]. bytes: of the whole piece. live_bytes: the least that it could be."""

    places: Counts
    bytes: int
    live_bytes: int


def place(blocks: Blocks) -> Placement:
    """Return a place for every block such that no two that live at the same time overlap."""
    sizes = -(-blocks.bytes // ALIGNMENT) * ALIGNMENT
    blocks = Blocks(sizes, blocks.start, blocks.end, blocks.turn)
    least, together = blocks.live_bytes, blocks.meet()
    found: Placement | None = None
    for order in _orders(blocks):
        places = _in_order(order, sizes, together)
        total = int((places + sizes).max(initial=0))
        if found is None or total < found.bytes:
            found = Placement(places, total, least)
        if found.bytes == least:
            break
    assert found is not None  # there are orders
    return found


def _orders(blocks: Blocks) -> Iterator[Counts]:
    """Yield the orders that are tried, the one that is mostly the best first."""
    life = blocks.end - blocks.start
    wraps = blocks.end > blocks.turn
    for key in (-blocks.bytes, ~wraps * 1, -blocks.bytes * life, blocks.start, -life):
        yield np.lexsort((blocks.start, -blocks.bytes, key))


def _in_order(order: Counts, sizes: Counts, together: np.ndarray) -> Counts:
    places = np.zeros(len(sizes), np.int64)
    done = np.zeros(len(sizes), np.int64)  # the placed ones, the lowest first
    for count, block in enumerate(order):
        placed = done[:count]
        others = placed[together[block, placed]]
        places[block] = _smallest_gap(places[others], sizes[others], int(sizes[block]))
        where = np.searchsorted(places[placed], places[block])
        done[where + 1 : count + 1] = done[where:count].copy()
        done[where] = block
    return places


def _smallest_gap(starts: Counts, sizes: Counts, wanted: int) -> int:
    """Return where the smallest gap that holds a block begins; starts: of what is there, the lowest first."""
    ends = np.maximum.accumulate(np.concatenate(([0], starts + sizes)))
    gaps = starts - ends[:-1]
    holding = np.flatnonzero(gaps >= wanted)
    return int(ends[holding[gaps[holding].argmin()]]) if len(holding) else int(ends[-1])


def overlapping(blocks: Blocks, places: Counts) -> list[tuple[int, int]]:
    """Return the pairs of blocks that share memory at one time: none, if the places are right.

    Knows nothing of how places are found: it goes around the circle twice, and holds what lives in a sorted list.
    """
    events: list[tuple[int, int, int]] = []  # time, 0 for an end and 1 for a start, block
    for number, (start, end) in enumerate(zip(blocks.start.tolist(), blocks.end.tolist(), strict=True)):
        for shift in (0, blocks.turn):
            events += [(start + shift, 1, number), (end + shift, 0, number)]
    live: list[int] = []
    wrong: set[tuple[int, int]] = set()
    for _, begins, number in sorted(events):
        if not begins:
            live.remove(number)
            continue
        low, high = int(places[number]), int(places[number] + blocks.bytes[number])
        for other in live:
            if places[other] < high and low < places[other] + blocks.bytes[other]:
                wrong.add((min(number, other), max(number, other)))
        live.append(number)
    return sorted(wrong)
