"""The best schedule of short chains against the integer program of benchmarks/schedule_optimum.py."""

from __future__ import annotations

import pytest
from networks import traced
from schedule_optimum import budgets, peak_bytes, runs_of, solve

from costmodel import Schedule, Step, way
from costmodel.schedules.chain import Chain
from costmodel.step.schedule import MODES


@pytest.mark.parametrize(("name", "one"), [
    ("torchvision:mobilenet_v3_small", way("blocks", 5)), ("torchvision:resnet18", way("full")),
])  # fmt: skip
def test_highs_finds_nothing_better(name, one):
    chain = Chain(Step(traced(name), one, schedule=Schedule(inplace_update=True)), tuple(MODES))
    runs = runs_of(chain)
    assert len(runs) > 50
    for budget in budgets(chain):
        chosen = solve(chain, runs, budget)
        assert sum(option.flops for _, option in chosen) == chain.steps.flops[chain.fitting(budget)]
        assert peak_bytes(chain, chosen) <= budget
    assert solve(chain, runs, chain.peak_bytes[0] - 1024) is None
    assert chain.fitting(chain.peak_bytes[0] - 1) is None
