"""The model of accuracies against brute force: its algebra, its regimes, what is unknown, and how networks compare."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import costmodel
from costmodel import Way, way
from planner.estimates import fitting
from planner.estimates.accuracy import Setting, estimate, estimates
from planner.estimates.anchored import FULL, LAST, Level, expect
from planner.estimates.backbones import NETWORK_DEVIATION, REFERENCE, shift
from planner.estimates.intervals import _T95, Interval
from planner.estimates.logits import logit, per_point, percent
from planner.estimates.model import Belief, Components, Model, Place, components, published_model
from planner.estimates.observations import observations
from planner.estimates.runs import Measured
from planner.estimates.terms import prior, terms
from planner.evidence.rows import imagenet_top1, observed, parse, published

PROXYLESS = Setting("zoo:proxylessnas_mobile", 224, 8, 20)
OTHER = Setting("torchvision:mobilenet_v2", 224, 8, 17)


# --- the model's algebra ----------------------------------------------------------------------------------------------

SMALL = """source,model,method,trained_blocks,depth_of,dataset,top1_percent,test_images
p,net,last,,,a,60,4000
p,net,full,,,a,90,4000
p,net,blocks,2,10,a,80,4000
p,net,blocks,5,10,a,86,4000
p,net,mobiletl,2,10,a,81,4000
p,net,norm,,,a,78,4000
p,other,last,,,b,50,4000
p,other,full,,,b,70,4000
p,other,blocks,3,8,b,64,4000
p,other,norm,,,b,62,4000
q,net,last,,,b,55,4000
q,net,full,,,b,75,4000
q,net,norm,,,b,64,4000
"""
PARTS = Components(0.2, 0.1, 0.12, 0.08, 0.09, 0.05, 0.03, 0.07)


def conditioned(model: Model, ways: list, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """The same belief by brute force: every coefficient and deviation a variable of its own, conditioned."""
    found, parts = list(model.seen), model.components
    rows = [(each.terms, place_of(each), each.cell, each.gap) for each in found]
    rows += [(each, place, "new", 1.0) for each in ways]
    names = list(model.coefficients)
    columns, spread = [], []

    def add(values, deviation):
        columns.append(values)
        spread.append(deviation**2)

    for name in names:
        add([gap * sum(v for n, v in t.coefficients if n == name) for t, _, _, gap in rows], prior(name)[1])
    for kind, deviation in (("network", parts.network), ("data_set", parts.data_set)):
        for key in {where(kind, p) for _, p, _, _ in rows}:
            add([gap * t.shortfall * (where(kind, p) == key) for t, p, _, gap in rows], deviation)
    for key in {(p.few_shot, "depth" if t.has_depth else t.family) for t, p, _, _ in rows}:
        add([gap * t.shortfall * ((p.few_shot, "depth" if t.has_depth else t.family) == key) for t, p, _, gap in rows],
            parts.method)  # fmt: skip
    for cell in {c for _, _, c, _ in rows}:
        for depth, deviation in ((True, parts.cell_depth), (False, parts.cell_flat)):
            add([gap * t.shortfall * (c == cell) * (t.has_depth is depth) for t, _, c, gap in rows], deviation)
    for number, (t, _, _, gap) in enumerate(rows):
        own = np.zeros(len(rows))
        own[number] = gap * (t.shortfall > 0) if number >= len(found) else gap
        add(own, parts.own)
    matrix = np.array(columns).T
    joint = matrix * np.array(spread) @ matrix.T
    noise = np.array([each.variance + parts.full_data**2 for each in found])
    seen, new = slice(0, len(found)), slice(len(found), None)
    mean = np.array([gap * (t.offset + sum(v * prior(n)[0] for n, v in t.coefficients)) for t, _, _, gap in rows])
    solved = np.linalg.solve(joint[seen, seen] + np.diag(noise), joint[seen, new]).T
    above = np.array([each.above_last for each in found])
    return mean[new] + solved @ (above - mean[seen]), joint[new, new] - solved @ joint[seen, new]


def place_of(each) -> Place:
    return Place(each.cell.model, each.cell.dataset, each.cell.few_shot)


def where(kind: str, place: Place) -> object:
    return place.network if kind == "network" else (place.few_shot, place.data_set)


@pytest.mark.parametrize("place", [Place("net", "", False), Place("new", "a", False), Place("new", "", False)])
def test_the_closed_form_is_what_conditioning_gives(place):
    model = Model(parse(SMALL, "small.csv"), PARTS)
    ways = [terms(each, Setting("x", 224, 8, 12)) for each in (way("blocks", 1), way("mobiletl", 4), way("norm"))]
    found = model.belief(ways, place)
    mean, covariance = conditioned(model, ways, place)
    assert found.mean == pytest.approx(mean, abs=1e-5)
    assert found.covariance == pytest.approx(covariance, abs=1e-5)


def test_the_components_are_those_that_fit_best():
    """Each of them a tenth larger or smaller fits no better; the file belongs to the evidence that is there."""
    import json

    stored = json.loads(fitting.COMPONENTS_FILE.read_text(encoding="utf-8"))
    assert stored["fitted_to"] == fitting.digest(observed())

    def cost(parts: Components) -> float:
        logarithms = np.log(list(asdict(parts).values()))
        penalty = 0.5 * (((logarithms - fitting._PRIOR_MEAN) / fitting._PRIOR_DEVIATION) ** 2).sum()
        return penalty - Model(observed(), parts).likelihood()

    best = components()
    for name, value in asdict(best).items():
        for factor in (0.8, 1.25):
            assert cost(replace(best, **{name: value * factor})) > cost(best) - 0.01, (name, factor)


def test_what_runs_tell_is_what_sampling_gives():
    """A million draws of the prior, weighted by how well they explain three runs, against the iterated filter."""
    belief = Belief(np.array([0.7, 0.8]), np.array([[0.04, 0.03], [0.03, 0.04]]))
    level = Level(0.5, 1.0, 1.5, 0.7)
    runs = {LAST: 62.0, FULL: 86.0, 0: 74.0}
    measured = {number: Measured(Interval.exact(value), 1, None, "", "") for number, value in runs.items()}
    found = expect(belief, 0.05, level, measured, 1.0)
    generator = np.random.default_rng(0)
    count = 1_000_000
    last, gap = (
        level.last + level.last_deviation * generator.normal(size=count),
        1.5 + 0.7 * generator.normal(size=count),
    )
    recovery = generator.multivariate_normal(belief.mean, belief.covariance, count)
    above = 0.05 * generator.normal(size=(count, 2))
    logits = {LAST: last, FULL: last + gap, 0: last + gap * recovery[:, 0] + above[:, 0]}
    weight = np.zeros(count)
    for number, value in runs.items():
        weight -= 0.5 * ((float(logit(value)) - logits[number]) / float(per_point(value))) ** 2
    weight = np.exp(weight - weight.max())
    other = last + gap * recovery[:, 1] + above[:, 1]
    mean = np.average(other, weights=weight)
    deviation = math.sqrt(np.average((other - mean) ** 2, weights=weight))
    assert found.logits[1] == pytest.approx(mean, abs=0.15 * deviation)
    assert found.deviation(1) == pytest.approx(deviation, rel=0.15)
    assert found.training_more_helps


def test_a_gap_within_its_error_is_said():
    belief = Belief(np.array([0.7]), np.array([[0.04]]))
    measured = {n: Measured(Interval.exact(v), 1, 100, "", "") for n, v in ((LAST, 80.0), (FULL, 82.0))}
    assert not expect(belief, 0.05, Level(0.5, 1.0, 1.5, 0.7), measured, 0.3).training_more_helps


def test_logits_there_and_back():
    values = np.array([0.5, 10.0, 50.0, 99.0])
    assert percent(logit(values)) == pytest.approx(values)
    step = (logit(values + 1e-4) - logit(values - 1e-4)) / 2e-4
    assert per_point(values) == pytest.approx(step, rel=1e-4)


# --- what is expected -------------------------------------------------------------------------------------------------


def test_observations_by_hand():
    norm = [each for each in observations(published()) if each.way == Way("norm")]
    cars = next(e for e in norm if e.cell.dataset == "cars" and e.cell.model == "proxylessnas_mobile")
    # last 50.9, norm 77.9, full 90.2
    assert cars.gap == pytest.approx(math.log(90.2 / 9.8) - math.log(50.9 / 49.1))
    assert cars.above_last == pytest.approx(math.log(77.9 / 22.1) - math.log(50.9 / 49.1))


def test_one_block_reaches_most_of_the_way_as_mobiletl_shows():
    """MobileTL's curves: 0.7 of the way from last to full with one block, on six data sets."""
    values = [estimate("mobiletl", k, PROXYLESS).value for k in (1, 2, 3, 4)]
    assert 0.6 < values[0] < 0.85 and values == sorted(values) and values[-1] > 0.8


def test_unseen_networks_and_data_sets_widen_the_interval():
    known, other = estimate("norm", None, PROXYLESS), estimate("norm", None, replace(PROXYLESS, model="a:b"))
    assert other.high - other.low > known.high - known.low
    assert "none is of a:b" in other.rests_on and "none is of" not in known.rests_on
    assert known.kind == "prior" and "TinyTL" in known.source


def test_few_images_are_a_regime_of_their_own():
    many, few = (estimate("blocks", 2, replace(OTHER, images_per_class=n)) for n in (1000, 10))
    assert many == estimate("blocks", 2, OTHER) and few.value != many.value
    assert few.high - few.low > many.high - many.low


def test_ends_are_definitions():
    for method, value in (("last", 0.0), ("full", 1.0)):
        guess = estimate(method, None, OTHER)
        assert (guess.value, guess.low, guess.high, guess.kind) == (value, value, value, "definition")


def test_what_has_no_basis_is_unknown():
    without_norm = Setting("torchvision:vgg11", has_norm=False)
    small = replace(OTHER, images_per_norm={way("blocks", 3): 4})
    for guess in (
        estimate("norm", None, without_norm),
        estimate("norm", None, replace(OTHER, classifies=False)),
        estimate("blocks", 3, replace(OTHER, classifies=False)),
        estimate("bias", None, without_norm),
        estimate("lora", None, OTHER),
        estimate("last-convs", None, OTHER),
        estimate("norm", None, OTHER, rows=[row for row in published() if row.method != "norm"]),
        estimate("tinytl-b", None, replace(OTHER, converted=frozenset({way("tinytl-b")}))),
        estimate("blocks", 3, small),
    ):
        assert (guess.value, guess.low, guess.high, guess.kind) == (None, None, None, "unknown")
        assert guess.rests_on and not guess.source
    assert "fewer than 8 images at once" in estimate("blocks", 3, small).rests_on


@given(st.integers(1, 40), st.booleans())
def test_depth_relations(count, few):
    setting = Setting("torchvision:net", 224, 8, count, images_per_class=10 if few else None)
    for method in ("blocks", "mobiletl"):
        found = estimates([way(method, k) for k in range(1, count + 1)], setting)
        for guess in found:
            assert guess.low <= guess.value <= guess.high
        for less, more in pairwise(found):
            assert less.value <= more.value + 1e-9 and less.high - less.low >= more.high - more.low - 0.02


@pytest.mark.parametrize("k", [None, 0, 18])
def test_a_depth_the_network_does_not_have(k):
    with pytest.raises(ValueError, match="k from 1 to 17"):
        estimate("blocks", k, OTHER)


def test_every_way_of_a_question_is_known_together():
    """The difference of two depths is known better than either."""
    one, other = estimates([way("blocks", 3), way("blocks", 4)], OTHER)
    assert one.believed.expected is other.believed.expected
    points, error = one.believed.expected.difference(other.believed.number, one.believed.number)
    assert points > 0 and error < one.believed.expected.deviation(0) / float(per_point(one.expected_percent)) / 2


def test_which_network_and_baseline_mobiletl_means():
    """MobileTL: "36 % fewer FLOPs when fine-tuning 5 blocks": Small rather than Large, full rather than 5 blocks."""

    def fewer(model: str, method: str, blocks: int | None) -> float:
        graph = costmodel.trace(model, classes=10)
        flops = [costmodel.footprint(graph, *what).flops for what in (("mobiletl", 5), (method, blocks))]
        ours, theirs = (f["total"] + f["elementwise"]["forward"] + f["elementwise"]["backward"] for f in flops)
        return 100 * (1 - ours / theirs)

    small = fewer("torchvision:mobilenet_v3_small", "full", None)
    assert small == pytest.approx(36, abs=0.5)
    assert abs(fewer("torchvision:mobilenet_v3_large", "full", None) - 36) > 1
    assert fewer("torchvision:mobilenet_v3_small", "blocks", 5) < 5


# --- networks ---------------------------------------------------------------------------------------------------------

# Top-1 on ImageNet of the weights of their time. Source: torchvision's IMAGENET1K_V1; Sandler et al., CVPR 2018, Table
# 4; Zoph et al., CVPR 2018, Table 2; Cai et al., ICLR 2019, Table 2.
TABLE_3 = {"resnet50": 76.13, "mobilenet_v2_1.4": 74.7, "nasnet_a_mobile": 74.0, "proxylessnas_mobile": 74.6}
DATA_SETS = ("flowers102", "cars", "food101", "pets", "aircraft", "cifar10", "cifar100")


def test_networks_differ_by_their_top1_on_imagenet():
    top1 = imagenet_top1()
    reference = Setting(REFERENCE, 224)
    assert shift(reference) == 0
    better = Setting("torchvision:resnet50", 224)
    assert shift(better) == pytest.approx(float(logit(top1["torchvision:resnet50"]) - logit(top1[REFERENCE])))
    assert shift(replace(reference, resolution=448)) == pytest.approx(0.21 / math.log2(320 / 224))
    assert shift(Setting("my:net", 224)) is None


def test_the_published_relation_holds_in_tinytls_table_3():
    """Networks that are trained in full on the same data sets: their mean logits follow their top-1 on ImageNet."""
    full = {
        (row.model, row.dataset): row.top1_percent
        for row in published()
        if row.way == Way("full") and row.source.startswith("TinyTL") and row.resolution in (None, 224)
    }
    above = [np.mean([logit(full[name, data]) for data in DATA_SETS]) - logit(top1) for name, top1 in TABLE_3.items()]
    assert np.std(above, ddof=1) == pytest.approx(NETWORK_DEVIATION, abs=0.005)
    assert max(abs(each - np.mean(above)) for each in above) < 0.145


def test_the_published_model_is_made_once():
    assert published_model() is published_model()


@pytest.mark.parametrize("freedom", range(1, len(_T95) + 1))
def test_students_t_table(freedom):
    # The density of Student's t integrated from 0 to the table's value must be 0.45.
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    steps, end = 20000, _T95[freedom - 1]
    width = end / steps
    area = sum(scale * (1 + ((i + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps)) * width
    assert area == pytest.approx(0.45, abs=5e-5)
