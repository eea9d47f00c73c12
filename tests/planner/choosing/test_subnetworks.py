"""The search among sub-networks against all of them, and the predictor that it trusts."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from costmodel import BlockPrices, InputError, Step, footprint, trace, way
from costmodel.errors import InfeasibleError
from costmodel.graph.elastic import DEPTHS, EXPANSIONS, KERNELS, Design, Stage, Subnetwork
from costmodel.zoo.once_for_all import Static
from planner.choosing.subnetworks import Search, plan_without_data
from planner.estimates import logits
from planner.estimates.subnetworks import SubnetworkAccuracy, fit

# One elastic stage and one block behind: 9 x (9^2 + 9^3 + 9^4) = 66,339 sub-networks, few enough to look at all.
DESIGN = Design(
    16, 8, "relu6", "relu6", (Stage(16, 2), Stage(24, 1, most_blocks=1)), ((32, "relu6", True, False),), 1e-5,
    norm="group",
)  # fmt: skip


def graph_of(chosen: Subnetwork):
    return trace(Static(DESIGN, chosen, 4), 24)


def everything() -> list[Subnetwork]:
    settings = list(product(KERNELS, EXPANSIONS))
    found = []
    for depth in DEPTHS:
        for blocks in product(settings, repeat=depth + 1):
            kernels, expansions = zip(*blocks, strict=True)
            found.append(Subnetwork((depth,), kernels, expansions))
    return found


@pytest.fixture(scope="module")
def every():
    return everything()


def accuracy(seed: int, observations: int = 60) -> SubnetworkAccuracy:
    """Return a predictor whose blocks differ much; what they add is a sum of what each choice adds."""
    random_ = np.random.default_rng(seed)
    drawn = random.Random(seed)
    chosen = [DESIGN.draw(drawn) for _ in range(observations)]
    part = random_.normal(0.02, 0.04, (2, 4, 8, 7))
    weight = {
        (stage, place, k, e): part[stage, place, k, 0] + part[stage, place, 0, e]
        for stage, place, k, e in product((0, 1), range(4), KERNELS, EXPANSIONS)
    }

    def percent(one: Subnetwork) -> float:
        blocks = zip(DESIGN.places_of(one), one.kernels, one.expansions, strict=True)
        return float(
            logits.percent(-0.4 + sum(weight[*place, kernel, expansion] for place, kernel, expansion in blocks))
        )

    return fit(DESIGN, [(one, percent(one)) for one in chosen])


@pytest.mark.parametrize(
    ("trained", "optimizer"),
    [(way("tinytl-lb"), "sgd"), (way("mobiletl", 2), "adam")],
    ids=["tinytl-lb", "mobiletl"],
)
def test_the_search_finds_the_best_of_all(every, trained, optimizer):
    prices = BlockPrices(DESIGN, Step(graph_of(DESIGN.smallest), trained, optimizer=optimizer), graph_of)
    guess = accuracy(1)
    search = Search(prices, guess)
    # What the search starts from must not be the answer: it knows next to nothing.
    search.tried, search.known = search.tried[:3], prices.price(search.tried[:3])
    search.tried_units = search.tried_units[:3]
    peaks = prices.price(every).peaks.min(axis=0)
    units = np.array([search._units(one) for one in every])
    assert len(every) == 66_339
    for share in (0.02, 60):
        budget = int(np.percentile(peaks, share))
        found = search.best(budget)
        best = units[peaks <= budget].max()
        assert search._units(found.chosen) == best
        assert found.peak_bytes <= budget
        step = replace(prices.step, graph=graph_of(found.chosen), schedule=found.schedule)
        assert footprint(step).peak_bytes == found.peak_bytes
    with pytest.raises(InfeasibleError, match="no sub-network fits"):
        search.best(int(peaks.min()) - 1)


def test_a_sum_of_blocks_is_found_again():
    """Of accuracies that are such a sum, with little noise, others are predicted."""
    guess = accuracy(2, 120)
    assert guess.quality.observations == 120
    assert guess.quality.error_points < 0.1 * guess.quality.constant_error_points
    assert guess.quality.rank_correlation > 0.99


def test_what_is_expected_of_the_best_is_no_more_than_all():
    """Nearly all sub-networks are right nearly always; a sum in percent would expect 101 of the best."""
    drawn = random.Random(3)
    chosen = [DESIGN.draw(drawn) for _ in range(40)]
    blocks = [len(one.kernels) for one in chosen]
    guess = fit(DESIGN, [(one, 93 + count + sum(one.kernels) / 20) for one, count in zip(chosen, blocks, strict=True)])
    found = [guess.percent(one) for one in (DESIGN.largest, DESIGN.smallest)]
    assert 85 < found[1] < found[0] < 100


def test_noise_predicts_nothing():
    random_, drawn = np.random.default_rng(0), random.Random(0)
    found = fit(DESIGN, [(DESIGN.draw(drawn), float(random_.normal(50, 5))) for _ in range(100)]).quality
    assert abs(found.rank_correlation) < 0.35
    assert found.error_points > 0.9 * found.constant_error_points


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="too few"):
        fit(DESIGN, [(DESIGN.smallest, 50.0)] * 19)


# --- without data -----------------------------------------------------------------------------------------------------


def write(path, rows):
    path.write_text("\n".join(["subnetwork,top1_percent", *(f'"{name}",{percent}' for name, percent in rows)]) + "\n")
    return str(path)


def test_a_frontier_from_known_accuracies(tmp_path):
    from repository import ROOT

    model = f"{ROOT / 'tests' / 'support' / 'tiny_elastic.py'}:make"
    from tiny_elastic import DESIGN as TINY

    drawn = random.Random(5)
    chosen = [TINY.draw(drawn) for _ in range(21)]
    # Larger is better: half a point for each block, a tenth for each step of kernel or expansion.
    rows = [(one.text, 50 + len(one.kernels) / 2 + (sum(one.kernels) + sum(one.expansions)) / 10) for one in chosen]
    found = plan_without_data(model, write(tmp_path / "known.csv", rows), None, way("bias"), 16, 3)
    peaks = [one.peak_bytes for one in found.best]
    assert len(peaks) > 2 and peaks == sorted(peaks)
    accuracies = [one.expected_percent for one in found.best]
    assert accuracies == sorted(accuracies)
    with pytest.raises(InfeasibleError):
        plan_without_data(model, str(tmp_path / "known.csv"), 1000, way("bias"), 16, 3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("d=2,k=3,e=3", "high")], "line 2: top1_percent"),
        ([("d=2,k=3,e=3", "170")], "line 2: top1_percent"),
        ([("d=9", "70")], "line 2: d has 9"),
        ([("d=2,k=3,e=3", "70")] * 19, "20 are needed"),
        ([], "columns subnetwork and top1_percent"),
    ],
)
def test_a_file_of_accuracies_that_cannot_be_used_is_refused(tmp_path, rows, said):
    with pytest.raises(InputError, match=said):
        plan_without_data("zoo:ofa_proxyless", write(tmp_path / "known.csv", rows))
