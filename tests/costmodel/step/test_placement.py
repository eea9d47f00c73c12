"""Places for blocks with known lifetimes: none overlap, and how near to the least the whole comes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from costmodel.step.placement import ALIGNMENT, Blocks, overlapping, place


def blocks_of(rows: list[tuple[int, int, int]], turn: int) -> Blocks:
    """Return blocks from (bytes, start, end)."""
    return Blocks(*np.array(rows, np.int64).reshape(-1, 3).T, turn)


@st.composite
def any_blocks(draw) -> Blocks:
    turn = draw(st.integers(2, 40))
    rows = []
    for _ in range(draw(st.integers(0, 25))):
        start = draw(st.integers(0, turn - 1))
        rows.append((draw(st.integers(1, 1000)), start, start + draw(st.integers(1, turn - 1))))
    return blocks_of(rows, turn)


def most_live(blocks: Blocks) -> int:
    """Return the most bytes that live at one time, counted instant by instant."""
    rows = list(zip(blocks.bytes.tolist(), blocks.start.tolist(), blocks.end.tolist(), strict=True))
    return max(
        sum(size for size, start, end in rows if start <= now < end or start <= now + blocks.turn < end)
        for now in range(blocks.turn)
    )


@given(any_blocks())
def test_no_two_blocks_overlap_and_the_least_is_counted_right(blocks):
    found = place(blocks)
    assert overlapping(blocks, found.places) == []
    assert blocks.live_bytes == most_live(blocks)
    assert found.live_bytes <= found.bytes <= sum(-(-size // ALIGNMENT) * ALIGNMENT for size in blocks.bytes.tolist())
    assert not (found.places % ALIGNMENT).any()


def test_neighbours_in_time_share_a_place():
    # 64 bytes in [0, 2), 128 in [2, 4), 64 in [1, 3): at 1 live 128, at 2 live 192 bytes
    blocks = blocks_of([(64, 0, 2), (128, 2, 4), (64, 1, 3)], 4)
    assert blocks.live_bytes == 192
    assert place(blocks).bytes == 192


def test_a_block_that_lives_on_into_the_next_turn():
    # [3, 6) of a turn of 4 is [3, 4) and [0, 2): it meets [0, 1) and not [2, 3)
    blocks = blocks_of([(64, 3, 6), (64, 0, 1), (64, 2, 3)], 4)
    assert blocks.meet().tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert (blocks.live_bytes, place(blocks).bytes) == (128, 128)


def test_the_verifier_sees_what_is_wrong():
    blocks = blocks_of([(64, 0, 2), (64, 1, 3), (64, 3, 5)], 4)
    assert overlapping(blocks, np.array([0, 0, 0])) == [(0, 1), (0, 2)]  # the third wraps to [0, 1)
    assert overlapping(blocks, np.array([0, 63, 64])) == [(0, 1)]
    assert overlapping(blocks, np.array([0, 64, 64])) == []


def test_no_blocks_take_nothing():
    found = place(blocks_of([], 1))
    assert (found.bytes, found.live_bytes) == (0, 0)
