"""Nested arguments gone through as PyTorch's own pytree does, but for sizes, which are leaves."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from costmodel.training.nested import leaves, mapped, tensors

Pair = namedtuple("Pair", "one other")
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.sampled_from([torch.ones(2), torch.Size([2, 3]), torch.float32, "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner)
        | st.dictionaries(st.sampled_from("abc"), inner).map(OrderedDict)
        | st.tuples(inner, inner).map(lambda both: Pair(*both))
    ),
    max_leaves=8,
)


@given(VALUES)
def test_as_pytree(value):
    found, expected = leaves(value), pytree.tree_leaves(value)
    assert all(one is other for one, other in zip(found, expected, strict=True))
    marked, theirs = mapped(id, value), pytree.tree_map(id, value)
    assert marked == theirs and type(marked) is type(theirs)
    assert len(tensors(value)) == sum(isinstance(leaf, torch.Tensor) for leaf in expected)


def test_what_torch_returns_has_leaves():
    largest = torch.ones(2, 3).max(dim=1)
    assert [tuple(leaf.shape) for leaf in leaves(largest)] == [(2,), (2,)]
    assert type(mapped(lambda leaf: leaf + 1, largest)) is type(largest)
