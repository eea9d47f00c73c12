"""Places in one arena for blocks of memory that live for a time: no two that live at once overlap.

Blocks are placed one after the other, each at the lowest place that is free for as long as it lives. The order decides;
several are tried, and then what lies highest is placed earlier, as long as that helps. No plan can be smaller than the
most bytes that live at one moment (`least_bytes`).

Source of first fit by size: Pisarchyk, Lee: Efficient Memory Management for Deep Neural Net Inference
(arXiv 2001.03288), 'greedy by size'.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROUNDS = 40  # of placing what lies highest earlier, in each order. Assumption: a bound on time; each is one first fit


class Block(NamedTuple):
    """A block of `size` bytes that lives from moment `first` to moment `last`, both included."""

    size: int
    first: int
    last: int


def least_bytes(blocks: Sequence[Block]) -> int:
    """Return the most bytes that live at one moment."""
    changes: dict[int, int] = {}
    for block in blocks:
        changes[block.first] = changes.get(block.first, 0) + block.size
        changes[block.last + 1] = changes.get(block.last + 1, 0) - block.size
    most = now = 0
    for moment in sorted(changes):
        now += changes[moment]
        most = max(most, now)
    return most


def place(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Return the offset of each block, and the bytes of the arena."""
    least = least_bytes(blocks)
    best: tuple[list[int], int] = ([], -1)
    for key in _ORDERS:
        order = sorted(range(len(blocks)), key=lambda number, key=key: key(blocks[number]))
        for _ in range(ROUNDS):
            offsets = _first_fit(blocks, order)
            total = max((offset + blocks[number].size for number, offset in enumerate(offsets)), default=0)
            improved = best[1] < 0 or total < best[1]
            if improved:
                best = offsets, total
            if total <= least:
                return best
            top = [number for number in order if offsets[number] + blocks[number].size == total]
            if top == order[: len(top)]:
                break
            order = top + [number for number in order if number not in top]
    return best


_ORDERS: tuple[Callable[[Block], tuple[int, ...]], ...] = (
    lambda block: (-block.size, block.first),
    lambda block: (-block.size * (block.last - block.first + 1), block.first),
    lambda block: (block.first - block.last, -block.size),
    lambda block: (block.first, -block.size),
)


def _first_fit(blocks: Sequence[Block], order: Sequence[int]) -> list[int]:
    offsets = [0] * len(blocks)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last; by offset
    for number in order:
        size, first, last = blocks[number]
        offset = 0
        for start, end, begins, ends in placed:
            if begins > last or ends < first:
                continue
            if start - offset >= size:
                break
            offset = max(offset, end)
        offsets[number] = offset
        insort(placed, (offset, offset + size, first, last))
    return offsets
