"""The pick for a native runtime: way and schedule together, against every schedule of every way of a small network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest

import costmodel
from costmodel import (
    MOST_FLOPS,
    InfeasibleError,
    InputError,
    LayerGraph,
    Schedule,
    Step,
    footprint,
    values_per_norm,
    way,
)  # fmt: skip
from costmodel.schedules.chain import links
from costmodel.step.schedule import MODES
from costmodel.step.segments import segment
from planner import recommend
from planner.choosing.scale import scale_of

MODEL = f"{Path(__file__).parents[2] / 'support' / 'tiny_network.py'}:make"
SIDE, BATCH, ACCOUNTING = 32, 4, "executorch"
WAYS = (way("last"), way("mobiletl", 1), way("mobiletl", 2), way("blocks", 1))


@cache
def graph() -> LayerGraph:
    """Return the traced network."""
    return costmodel.trace(MODEL, SIDE)


def segments(step: Step, place: int = 0) -> Iterator[tuple[tuple[int, int, str], ...]]:
    """Yield every set of segments of a step."""
    starts = links(step.requirements)
    if place == len(starts):
        yield ()
        return
    yield from segments(step, place + 1)
    ends = (*starts[1:], len(step.graph.layers))
    for behind, mode in product(range(place + 1, len(starts) + 1), MODES):
        one = (starts[place], ends[behind - 1] - 1, mode)
        try:
            segment(step.requirements, *one)
        except InputError:
            continue
        yield from ((one, *others) for others in segments(step, behind))


@cache
def everything(one: costmodel.Way) -> tuple[tuple[int, int, int], ...]:
    """Return FLOPs, element-wise work and peak of every schedule of a way."""
    step, found = Step(graph(), one, BATCH, accounting=ACCOUNTING), []
    micro_batches = (None, 1, 2) if values_per_norm(graph(), one) is None else (None,)  # which change no result
    for micro, piece, cut in product(micro_batches, (None, 1, 2), segments(step)):
        try:
            cost = footprint(replace(step, schedule=Schedule(micro, prefix_batch=piece, segments=cut)))
        except InputError:  # no frozen prefix, or none of so many images
            continue
        found.append((cost.total_flops, cost.flops["elementwise"]["backward"], cost.peak_bytes))
    return tuple(found)


def cheapest(one: costmodel.Way, budget: float) -> tuple[int, int] | None:
    """Return FLOPs and element-wise work of the cheapest schedule of a way that fits; None if none does."""
    most_flops = MOST_FLOPS * everything(one)[0][0]  # the first is the plain step
    return min((cost[:2] for cost in everything(one) if cost[2] <= budget and cost[0] <= most_flops), default=None)


PEAKS = (280_000, 290_000, 330_000, 360_000, 400_000, 450_000, 480_000, 560_000, 640_000, 760_000, 1_100_000)


@pytest.mark.parametrize("budget", PEAKS)
def test_way_and_schedule_are_those_of_brute_force(budget):
    fits = {one: cost for one in WAYS if (cost := cheapest(one, budget)) is not None}
    asked = {"resolution": SIDE, "batch": BATCH, "accounting": ACCOUNTING, "methods": WAYS}
    if not fits:
        least = min(cost[2] for one in WAYS for cost in everything(one))
        with pytest.raises(InfeasibleError, match=f"{least} bytes"):
            recommend(MODEL, budget, **asked)
        return
    answer = recommend(MODEL, budget, **asked)
    expected = {candidate.way: candidate for candidate in answer.candidates}
    scale = scale_of(answer.candidates)
    top = max((expected[one] for one in fits), key=scale.value)
    tied = [one for one in fits if scale.tied(expected[one], top)]
    assert answer.chosen.peak_bytes <= budget
    assert answer.chosen.way == min(tied, key=lambda one: fits[one])
    found = footprint(answer.chosen.step)
    assert (found.total_flops, found.flops["elementwise"]["backward"]) == fits[answer.chosen.way]


def test_budgets_tell_ways_apart():
    """Else the test above would say nothing."""
    assert len({tuple(cheapest(one, budget) is not None for one in WAYS) for budget in PEAKS}) >= 4
