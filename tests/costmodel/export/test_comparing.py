"""When a program agrees with PyTorch: within rounding, as far as that has grown by each step."""

from __future__ import annotations

import pytest

from costmodel.export.comparing import Check


def check(apart: tuple[float, ...], rounding: tuple[float, ...] | None, weights: float = 0.0) -> Check:
    """Return a check whose losses are so far apart at each step; rounding: of PyTorch's own losses, and of weights."""
    own = tuple(2.0 for _ in apart)
    losses = tuple(one + more for one, more in zip(own, apart, strict=True))
    largest = None if rounding is None else max(rounding)
    return Check(len(apart), losses, own, max(apart), weights, 0.0, largest, rounding, True)


@pytest.mark.parametrize(("apart", "rounding", "weights", "agrees"), [
    ((1e-6, 5e-4), None, 1e-5, True),
    ((1e-6, 2e-3), None, 1e-5, False),
    ((1e-6, 5e-4), None, 1e-3, False),
    ((1e-6, 2e-3), (1e-6, 3e-4), 1e-3, True),  # ten times 3e-4 are allowed, of weights, too
    ((2e-3, 2e-3), (1e-6, 3e-4), 1e-3, False),  # rounding had not grown by the first step
    ((1e-6, 2e-3, 2e-3), (1e-6, 3e-4, 1e-5), 1e-3, True),  # nor does it shrink again
    ((float("nan"), 1e-6), None, 1e-5, False),
])  # fmt: skip
def test_agreement(apart, rounding, weights, agrees):
    assert check(apart, rounding, weights).agrees is agrees


def test_steps_count_until_rounding_has_grown():
    assert check((0.0,) * 4, (7e-7, 1.2e-6, 2.8e-5, 2.3e-4)).comparable_steps == 3
    assert check((0.0,) * 4, (7e-7, 2e-4, 2.8e-5, 2.3e-4)).comparable_steps == 1
    assert check((0.0,) * 4, None).comparable_steps == 4
