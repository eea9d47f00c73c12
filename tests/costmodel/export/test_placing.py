"""A plan of an arena: nothing that lives at once overlaps, and it is as small as can be where that is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from costmodel.export.placing import Block, least_bytes, place

blocks = st.lists(
    st.builds(
        lambda size, first, length: Block(size, first, first + length),
        st.integers(1, 1000), st.integers(0, 30), st.integers(0, 15),
    ),
    max_size=25,
)  # fmt: skip


@given(blocks)
def test_what_lives_at_once_does_not_overlap(given_blocks):
    offsets, total = place(given_blocks)
    for one, (block, offset) in enumerate(zip(given_blocks, offsets, strict=True)):
        assert 0 <= offset <= total - block.size
        for other in range(one):
            apart = given_blocks[other].last < block.first or given_blocks[other].first > block.last
            above = offsets[other] >= offset + block.size or offsets[other] + given_blocks[other].size <= offset
            assert apart or above


@given(blocks)
def test_the_arena_is_no_smaller_than_what_lives_at_once(given_blocks):
    most = max(
        (sum(block.size for block in given_blocks if block.first <= moment <= block.last) for moment in range(50)),
        default=0,
    )
    assert least_bytes(given_blocks) == most
    assert place(given_blocks)[1] >= most


def test_blocks_that_follow_each_other_take_one_place():
    chain = [Block(100, moment, moment) for moment in range(10)]
    assert place(chain) == ([0] * 10, 100)


def test_placing_what_lies_highest_earlier_helps():
    """First fit in the four orders that are tried comes to 19, 20, 20 and 20 bytes; 16 live at once."""
    found = [Block(4, 4, 9), Block(2, 6, 10), Block(6, 8, 11), Block(9, 3, 3), Block(1, 1, 2), Block(3, 2, 6),
             Block(4, 4, 10)]  # fmt: skip
    assert place(found)[1] == least_bytes(found) == 16


def test_no_blocks_take_nothing():
    assert place([]) == ([], 0)
