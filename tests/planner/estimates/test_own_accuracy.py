"""The user's own runs: measured, interpolated, and recovery turned into accuracy by two anchors."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel import InputError
from planner.estimates.accuracy import Setting, data_set, estimate
from planner.estimates.intervals import Interval, combine, further_value, share
from planner.estimates.runs import measured_runs
from planner.evidence.rows import Row

NETWORK = Setting("torchvision:mobilenet_v2", 224, 8, 17)


def run(method: str, percent: float, k: int | None = None, **more) -> Row:
    return Row(**{"model": "mobilenet_v2", "method": method, "trained_blocks": k, "dataset": "mine",
                  "top1_percent": percent, "source": "own.csv", "file": "own.csv", "line": 2} | more)  # fmt: skip


def accuracy(guess) -> Interval:
    return Interval(guess.accuracy_percent, guess.accuracy_low_percent, guess.accuracy_high_percent)


LAST, FULL = run("last", 70.0), run("full", 90.0)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_wilson_by_hand():
    # 80 of 100: z = 1.645, z^2 = 2.706; middle (0.8 + 0.01353) / 1.02706 = 0.79210;
    # half 1.645 / 1.02706 sqrt(0.8 0.2 / 100 + 2.706 / 40000) = 0.06540
    assert share(80.0, 100).ends == pytest.approx((72.669, 85.750), abs=2e-3)
    assert share(100.0, 50).high == 100.0 and share(100.0, 50).low < 100.0


def test_errors_add_in_squares():
    both = combine(lambda a, b: a - b, Interval(5, 2, 6), Interval(1, 0, 5))
    # down: a -3, b -4; up: a +1, b +1
    assert both == Interval(4, 4 - 5, pytest.approx(4 + math.sqrt(2)))


# --- measured ---------------------------------------------------------------------------------------------------------


def test_a_measured_accuracy_is_given_back():
    own = [LAST, FULL, run("mobiletl", 86.0, 5)]
    guess = estimate("mobiletl", 5, NETWORK, own=own)
    # recovery (86 - 70) / (90 - 70)
    assert (guess.kind, guess.value) == ("measured", pytest.approx(0.8))
    assert (guess.accuracy_kind, accuracy(guess)) == ("measured", Interval.exact(86.0))
    assert "width not known" in guess.accuracy_interval and guess.source == "own.csv"


def test_ends_stay_definitions_and_are_measured_too():
    for method, recovery, percent in (("last", 0.0, 70.0), ("full", 1.0, 90.0)):
        guess = estimate(method, None, NETWORK, own=[LAST, FULL])
        assert (guess.kind, guess.value, guess.accuracy_kind) == ("definition", recovery, "measured")
        assert guess.accuracy_percent == percent


def test_repeated_runs_give_the_spread():
    own = [run("last", value, seed=seed) for seed, value in enumerate((69.0, 70.0, 71.0))]
    guess = estimate("last", None, NETWORK, own=own)
    # s = 1, 2 degrees of freedom: 2.920 sqrt(1 + 1/3) = 3.372
    assert accuracy(guess).ends == pytest.approx((70 - 3.372, 70 + 3.372), abs=1e-3)
    assert accuracy(guess).ends == pytest.approx(further_value([69.0, 70.0, 71.0]).ends)
    # one run of another method takes the spread over: 2.920 sqrt(2) = 4.129
    single = estimate("full", None, NETWORK, own=[*own, FULL])
    assert accuracy(single).ends == pytest.approx((90 - 4.129, 90 + 4.129), abs=2e-3)


def test_test_images_give_the_sampling_error():
    guess = estimate("last", None, NETWORK, own=[run("last", 80.0, test_images=100)])
    assert accuracy(guess).ends == pytest.approx(share(80.0, 100).ends)
    assert "100 test images" in guess.accuracy_interval


def test_tinytl_measured_on_a_converted_network_is_known():
    converted = Setting(NETWORK.model, 224, 8, 17, converted=True)
    own = [LAST, FULL]
    assert estimate("tinytl-b", None, converted, own=own).accuracy_kind == "unknown"
    guess = estimate("tinytl-b", None, converted, own=[*own, run("tinytl-b", 75.0)])
    assert (guess.kind, guess.value, guess.accuracy_percent) == ("measured", pytest.approx(0.25), 75.0)
    # but it is no anchor: what it recovers on such a network is not known
    assert estimate("blocks", 5, NETWORK, own=[LAST, run("tinytl-b", 75.0)]).accuracy_kind == "unknown"


def test_last_and_full_that_cannot_be_told_apart_give_no_recovery():
    own = [run("last", 80.0, test_images=100), run("full", 81.0, test_images=100), run("norm", 80.5)]
    guess = estimate("norm", None, NETWORK, own=own)
    assert (guess.kind, guess.value) == ("prior", estimate("norm", None, NETWORK).value)
    assert (guess.accuracy_kind, guess.accuracy_percent) == ("measured", 80.5)


# --- by depth ---------------------------------------------------------------------------------------------------------


def test_between_two_depths_by_hand():
    own = [LAST, FULL, run("blocks", 80.0, 3, test_images=400), run("blocks", 86.0, 6, test_images=400)]
    guess = estimate("blocks", 4, NETWORK, own=own)
    # a third of the way from 80 to 86; recovery 12 / 20
    assert (guess.kind, guess.accuracy_kind) == ("interpolated", "interpolated")
    assert (guess.value, guess.accuracy_percent) == pytest.approx((0.6, 82.0))
    assert accuracy(guess).ends == pytest.approx((share(80.0, 400).low, share(86.0, 400).high))


def test_beyond_what_was_measured_the_prior_is_held_to_it():
    plain = estimate("blocks", 8, NETWORK).value
    assert plain < 0.99  # the prior alone is below what three blocks reach here
    own = [LAST, FULL, run("blocks", 89.8, 3)]
    above, below = estimate("blocks", 8, NETWORK, own=own), estimate("blocks", 2, NETWORK, own=[LAST, FULL,
                                                                     run("blocks", 70.1, 3)])  # fmt: skip
    assert (above.kind, above.value, above.accuracy_percent) == ("prior", pytest.approx(0.99), pytest.approx(89.8))
    assert (below.kind, below.value, below.accuracy_percent) == ("prior", pytest.approx(0.005), pytest.approx(70.1))
    assert "not below what was measured at k = 3" in above.rests_on
    assert "not above what was measured at k = 3" in below.rests_on


def test_a_row_deeper_than_the_network_is_refused():
    with pytest.raises(InputError, match=r"own\.csv, line 2, column trained_blocks: 18: .* has only 17 blocks"):
        estimate("last", None, NETWORK, own=[run("blocks", 80.0, 18)])


# --- anchors ----------------------------------------------------------------------------------------------------------


def test_last_and_full_turn_recovery_into_accuracy():
    guess = estimate("norm", None, NETWORK, own=[LAST, FULL])
    plain = estimate("norm", None, NETWORK)
    assert (guess.value, guess.kind, guess.accuracy_kind) == (plain.value, "prior", "prior")
    for percent, recovery in zip(
        (guess.accuracy_percent, guess.accuracy_low_percent, guess.accuracy_high_percent),
        (plain.value, plain.low, plain.high),
        strict=True,
    ):
        assert percent == pytest.approx(70 + 20 * recovery)


def test_last_and_another_method_do_too():
    other = estimate("bias", None, NETWORK)
    wanted = estimate("norm", None, NETWORK)
    guess = estimate("norm", None, NETWORK, own=[LAST, run("bias", 76.0)])
    # 6 points are other.value of the way from last to full
    assert guess.accuracy_percent == pytest.approx(70 + 6 * wanted.value / other.value)
    full = estimate("full", None, NETWORK, own=[LAST, run("bias", 76.0)])
    assert full.accuracy_percent == pytest.approx(70 + 6 / other.value)
    # the least that bias may recover makes the most of full: 6 / other.low more than last
    assert full.accuracy_high_percent == pytest.approx(min(100.0, 70 + 6 / other.low))
    assert full.accuracy_low_percent == pytest.approx(70 + 6 / other.high)
    assert (full.kind, full.accuracy_kind) == ("definition", "prior")
    assert "bias (76 %), whose own recovery is taken to be" in full.accuracy_rests_on


def test_of_several_anchors_the_nearest_to_full_counts():
    own = [LAST, run("bias", 76.0), run("mobiletl", 88.0, 12)]
    guess = estimate("norm", None, NETWORK, own=own)
    expected = 70 + 18 * estimate("norm", None, NETWORK).value / estimate("mobiletl", 12, NETWORK).value
    assert guess.accuracy_percent == pytest.approx(expected)


@pytest.mark.parametrize("own", [[LAST], [FULL], [run("norm", 80.0)], [FULL, run("norm", 80.0)]])
def test_one_anchor_is_not_enough(own):
    guess = estimate("blocks", 5, NETWORK, own=own)
    assert (guess.accuracy_kind, guess.accuracy_percent) == ("unknown", None)
    assert "not measured" in guess.accuracy_rests_on
    assert guess.value == estimate("blocks", 5, NETWORK).value


# --- which rows count -------------------------------------------------------------------------------------------------


def test_only_runs_of_this_network_and_setting_count():
    others = [
        run("last", 1.0, model="mobilenet_v3_small"),
        run("last", 2.0, model="timm:mobilenet_v2"),
        run("last", 3.0, resolution=96),
        run("last", 4.0, batch=1),
    ]
    same = [run("last", 70.0, model="torchvision:mobilenet_v2", resolution=224, batch=8)]
    assert measured_runs(others, "mine", NETWORK) == {}
    assert estimate("last", None, NETWORK, own=others + same).accuracy_percent == 70.0


def test_the_data_set_is_the_only_one_or_named():
    both = [LAST, run("last", 50.0, dataset="yours")]
    assert data_set([LAST]) == "mine" and data_set(both, "yours") == "yours" and data_set([]) is None
    assert estimate("last", None, NETWORK, own=both, dataset="yours").accuracy_percent == 50.0
    with pytest.raises(InputError, match="holds the data sets mine, yours; name"):
        estimate("last", None, NETWORK, own=both)
    with pytest.raises(InputError, match="unknown data set 'yuors'; did you mean 'yours'"):
        estimate("last", None, NETWORK, own=both, dataset="yuors")


# --- properties -------------------------------------------------------------------------------------------------------

METHODS = [("last", None), ("full", None), ("norm", None), ("bias", None), ("tinytl-b", None)]
METHODS += [(method, k) for method in ("blocks", "mobiletl") for k in range(1, 18)]
PERCENT = st.floats(0, 100)
IMAGES = st.sampled_from([None, 20, 5000])


@st.composite
def evidence(draw, methods=METHODS):
    """Runs of some methods, some of them repeated."""
    rows = []
    for method, k in draw(st.lists(st.sampled_from(methods), unique=True, max_size=6)):
        for seed in range(draw(st.integers(1, 2))):
            rows.append(run(method, draw(PERCENT), k, seed=seed, test_images=draw(IMAGES)))
    return rows


@given(evidence(), st.sampled_from(METHODS))
def test_every_value_lies_in_its_interval(own, what):
    guess = estimate(*what, NETWORK, own=own)
    assert (guess.value is None) == (guess.kind == "unknown")
    assert (guess.accuracy_percent is None) == (guess.accuracy_kind == "unknown")
    if guess.value is not None:
        assert guess.low <= guess.value <= guess.high and math.isfinite(guess.high - guess.low)
    if guess.accuracy_percent is not None:
        assert 0 <= guess.accuracy_low_percent <= guess.accuracy_percent <= guess.accuracy_high_percent <= 100


@given(evidence())
def test_what_was_measured_comes_back(own):
    for row in own:
        guess = estimate(row.method, row.trained_blocks, NETWORK, own=own)
        same = [r.top1_percent for r in own if (r.method, r.trained_blocks) == (row.method, row.trained_blocks)]
        assert guess.accuracy_kind == "measured"
        assert guess.accuracy_percent == pytest.approx(sum(same) / len(same))


@given(evidence(), evidence(), st.sampled_from(METHODS))
def test_more_evidence_never_makes_the_known_unknown(own, more, what):
    before, after = (estimate(*what, NETWORK, own=rows) for rows in (own, own + more))
    if before.accuracy_kind != "unknown":
        assert after.accuracy_kind != "unknown"
    if estimate(*what, NETWORK).kind != "unknown":
        assert after.kind != "unknown"


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 17), PERCENT), unique_by=lambda pair: pair[0], max_size=5), st.booleans())
def test_neither_recovery_nor_accuracy_falls_with_depth(pairs, with_full):
    depths, values = sorted(k for k, _ in pairs), sorted(value for _, value in pairs)
    own = [run("last", 20.0), *(run("blocks", value, k) for k, value in zip(depths, values, strict=True))]
    own += [run("full", 80.0)] if with_full else [run("norm", 60.0)]
    guesses = [estimate("blocks", k, NETWORK, own=own) for k in range(1, 18)]
    for less, more in pairwise(guesses):
        assert less.value <= more.value + 1e-9
        assert less.accuracy_percent <= more.accuracy_percent + 1e-9
