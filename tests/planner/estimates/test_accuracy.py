"""Recovery from published accuracies: the numbers re-derived by hand from the CSV, the curve's relations, unknown."""

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

import costmodel
from planner.estimates.accuracy import Setting, estimate
from planner.estimates.intervals import _T95, Interval
from planner.estimates.prior import depth_curves, prediction, recoveries
from planner.evidence.rows import parse, published

PROXYLESS = Setting("zoo:proxylessnas_mobile", 224, 8, 20)
OTHER = Setting("torchvision:mobilenet_v2", 224, 8, 17)
TABLE_2 = ("TinyTL, NeurIPS 2020 (arXiv 2007.11622)", "proxylessnas_mobile", 224, 8)
INCEPTION = ("TinyTL, NeurIPS 2020 (arXiv 2007.11622)", "inception_v3", None, 8)


def test_recovery_by_hand():
    norm = recoveries("norm", published())
    # flowers102: last 90.1, norm 94.3, full 96.8: 4.2 of 6.7; pets: 91.3, 92.2, 93.0: 0.9 of 1.7
    assert norm[TABLE_2]["flowers102"] == pytest.approx(4.2 / 6.7)
    assert norm[TABLE_2]["pets"] == pytest.approx(0.9 / 1.7)
    # inception_v3 states no resolution; cars: last 55.0, norm 81.0, full 91.3
    assert set(norm) == {TABLE_2, INCEPTION}
    assert norm[INCEPTION]["cars"] == pytest.approx(26.0 / 36.3)
    # a method without its own last and full in the same setting has no recovery
    assert recoveries("last-convs", published()) == {}


def test_published_estimate_by_hand():
    guess = estimate("norm", None, PROXYLESS)
    # (norm - last) / (full - last): flowers102, cars, cub200, food101, pets, aircraft, cifar10, cifar100, celeba
    by_hand = [4.2 / 6.7, 27 / 39.3, 3 / 7.7, 8.3 / 15.9, 0.9 / 1.7, 23.2 / 41.1, 8.9 / 11.2, 11.4 / 15.3, 1.7 / 2.7]
    mean = sum(by_hand) / 9
    assert guess.value == pytest.approx(mean) == pytest.approx(0.610, abs=5e-4)
    # 90 % for one further data set: t(8) = 1.860, s = 0.1244, 1.860 * 0.1244 * sqrt(10/9) = 0.2439
    assert guess.low == pytest.approx(mean - 0.2439, abs=1e-4)
    assert guess.high == pytest.approx(mean + 0.2439, abs=1e-4)
    assert guess.kind == "prior" and "carried over" not in guess.rests_on
    assert "Table 2" in guess.source and "9 published data sets" in guess.rests_on


def test_another_network_makes_a_prior_with_a_wider_interval():
    own, other = estimate("norm", None, PROXYLESS), estimate("norm", None, OTHER)
    assert other.kind == "prior"
    assert other.value == own.value
    # network to network, same data set, norm on ProxylessNAS-Mobile less Inception-v3:
    # flowers102 4.2/6.7 - 5.9/11.8 = 0.1269, cars 27/39.3 - 26/36.3 = -0.0292, aircraft 23.2/41.1 - 24.8/39.6 = -0.0618
    # mean square 0.006927; 1.860 * sqrt(0.1244^2 * 10/9 + 0.006927) = 0.2889
    assert other.high - other.value == pytest.approx(0.2889, abs=1e-4)
    assert other.value - other.low == pytest.approx(0.2889, abs=1e-4)
    assert "carried over to torchvision:mobilenet_v2" in other.rests_on
    for changed in (Setting(PROXYLESS.model, 160, 8, 20), Setting(PROXYLESS.model, 224, 4, 20)):
        assert "carried over" in estimate("norm", None, changed).rests_on


def test_the_same_network_in_another_setting_is_nearer_than_another_network():
    guess = estimate("norm", None, Setting("torchvision:inception_v3", 299, 8))
    # flowers102 (90.4 - 84.5) / (96.3 - 84.5), cars 26 / 36.3, aircraft (70.7 - 45.9) / (85.5 - 45.9)
    assert guess.value == pytest.approx((5.9 / 11.8 + 26 / 36.3 + 24.8 / 39.6) / 3)
    assert guess.kind == "prior" and "inception_v3 at unstated pixels" in guess.rests_on


def test_bias_rests_on_tinytl_b_and_says_so():
    for setting in (PROXYLESS, OTHER):
        guess = estimate("bias", None, setting)
        # tinytl-b: (93.5-90.1)/6.7, (73.4-50.9)/39.3, 2/7.7, 6.8/15.9, 0.8/1.7, 18.3/41.1, 7.8/11.2, 10/15.3, 1.7/2.7
        by_hand = [
            3.4 / 6.7,
            22.5 / 39.3,
            2 / 7.7,
            6.8 / 15.9,
            0.8 / 1.7,
            18.3 / 41.1,
            7.8 / 11.2,
            10 / 15.3,
            1.7 / 2.7,
        ]
        assert guess.value == pytest.approx(sum(by_hand) / 9) == pytest.approx(0.518, abs=5e-4)
        assert guess.kind == "prior"
        assert "tinytl-b (group norm and weight standardization" in guess.rests_on


def test_ends_are_definitions():
    for method, value in (("last", 0.0), ("full", 1.0)):
        guess = estimate(method, None, OTHER)
        assert (guess.value, guess.low, guess.high, guess.kind) == (value, value, value, "definition")


def test_what_has_no_basis_is_unknown():
    without_norm = Setting("torchvision:vgg11", has_norm=False)
    for guess in (
        estimate("norm", None, without_norm),
        estimate("bias", None, without_norm),
        estimate("lora", None, OTHER),
        estimate("last-convs", None, OTHER),
        estimate("norm", None, OTHER, rows=()),
        estimate("mobiletl", 5, OTHER, rows=()),
        # the anchor alone says nothing without the distance from last to full on its data set
        estimate("blocks", 5, OTHER, rows=[row for row in published() if row.method == "mobiletl"]),
    ):
        assert (guess.value, guess.low, guess.high, guess.kind) == (None, None, None, "unknown")
        assert guess.rests_on and not guess.source


def test_depth_curve_by_hand():
    # cifar10: full - last = 97.1 - 85.9 = 11.2, so 0.6 points are 0.05357 of recovery.
    # Shortfall over all nine data sets / on cifar10: norm (1 - 0.6099) / (2.3 / 11.2) = 1.8998,
    # tinytl-b (1 - 0.5181) / (3.4 / 11.2) = 1.5874, tinytl-l (1 - 0.7075) / (1 / 11.2) = 3.2759,
    # tinytl-lb (1 - 0.7264) / (1.2 / 11.2) = 2.5537; mean 2.3292.
    shortfall = 2.3292 * 0.6 / 11.2
    assert shortfall == pytest.approx(0.12478, abs=1e-5)
    # half of it by depth: (1 - 5/11)^p = 0.06239, p = ln 0.06239 / ln (6/11) = 4.577
    exponent = math.log(shortfall / 2) / math.log(6 / 11)
    curves = depth_curves(published())
    assert curves["value"]["blocks"].exponent == pytest.approx(exponent, abs=1e-3)
    assert curves["high"]["blocks"].exponent == pytest.approx(exponent**2, abs=1e-2)
    small = Setting("torchvision:mobilenet_v3_small", 224, 8, 11)
    assert estimate("mobiletl", 5, small).value == pytest.approx(1 - shortfall, abs=1e-5)
    assert estimate("blocks", 5, small).value == pytest.approx(1 - shortfall / 2, abs=1e-5)
    # low: every block and the stem count the same: 5 of 12; of mobiletl (1 - 0.12478) of that
    assert estimate("blocks", 5, small).low == pytest.approx(5 / 12)
    assert estimate("mobiletl", 5, small).low == pytest.approx(5 / 12 * (1 - shortfall), abs=1e-5)
    assert estimate("mobiletl", 5, small).kind == "prior"
    assert "assumed curve" in estimate("mobiletl", 5, small).rests_on
    # on cifar10 itself 1 - 0.05357 was observed: inside the interval
    assert estimate("mobiletl", 5, small).low < 1 - 0.6 / 11.2 < estimate("mobiletl", 5, small).high


def test_the_curve_agrees_with_what_mobiletl_reports_against_tinytl():
    # TinyTL's strongest method on the eight data sets of both papers (not celeba); MobileTL reports more on six.
    values = recoveries("tinytl-lb", published())[TABLE_2]
    tinytl = fmean(value for name, value in values.items() if name != "celeba")
    curve = [estimate("mobiletl", k, PROXYLESS).value for k in range(1, 21)]
    assert curve[4] < tinytl < curve[5]  # k = 6, as the module's docstring says


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


@given(st.integers(1, 40), st.data())
def test_depth_relations(count, data):
    k = data.draw(st.integers(1, count))
    setting = Setting("torchvision:net", 224, 8, count)
    blocks, mobiletl = estimate("blocks", k, setting), estimate("mobiletl", k, setting)
    for guess in (blocks, mobiletl):
        assert 0 <= guess.low <= guess.value <= guess.high <= 1
    for name in ("value", "low", "high"):
        assert getattr(mobiletl, name) <= getattr(blocks, name)
        if k > 1:
            for method, now in (("blocks", blocks), ("mobiletl", mobiletl)):
                assert getattr(estimate(method, k - 1, setting), name) <= getattr(now, name)
    assert estimate("blocks", count, setting).value == 1
    assert estimate("mobiletl", count, setting).value < 1


@pytest.mark.parametrize("k", [None, 0, 18])
def test_a_depth_the_network_does_not_have(k):
    with pytest.raises(ValueError, match="k from 1 to 17"):
        estimate("blocks", k, OTHER)


def test_spread_that_is_not_known_leaves_everything_possible():
    assert prediction([0.6], 0.0) == Interval(0.6, 0.0, 1.0)
    assert prediction([0.6, 0.7, 0.8], None).ends == (0.0, 1.0)


def test_intervals_are_clipped_but_hold_the_mean():
    # 0.1 and 0.9: t(1) = 6.314, s = 0.566: far beyond both ends; 1.2, 1.21, 1.22: 1.21 +- 0.034, all above 1
    assert prediction([0.1, 0.9], 0.0).ends == (0.0, 1.0)
    assert prediction([1.2, 1.21, 1.22], 0.0).ends == pytest.approx((1.0, 1.21))


@pytest.mark.parametrize("freedom", range(1, len(_T95) + 1))
def test_students_t_table(freedom):
    # The density of Student's t integrated from 0 to the table's value must be 0.45.
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    steps, end = 20000, _T95[freedom - 1]
    width = end / steps
    area = sum(scale * (1 + ((i + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps)) * width
    assert area == pytest.approx(0.45, abs=5e-5)


def test_a_data_set_where_full_is_not_above_last_is_left_out():
    lines = [
        "source,model,method,dataset,top1_percent",
        "p,net,last,a,50", "p,net,norm,a,55", "p,net,full,a,60",
        "p,net,last,b,50", "p,net,norm,b,55", "p,net,full,b,50",
    ]  # fmt: skip
    rows = parse("\n".join(lines), "own.csv")
    assert recoveries("norm", rows) == {("p", "net", None, None): {"a": 0.5}}
