"""The user's own runs: measured, interpolated, and recovery turned into accuracy by two anchors."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel import InputError, Way
from planner.estimates.accuracy import Setting, data_set, estimate
from planner.estimates.intervals import Interval, combine, further_value, share
from planner.estimates.runs import measured_runs, unused
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
    assert "width not known" in guess.accuracy_interval and "own.csv" in guess.accuracy_rests_on


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
    converted = replace(NETWORK, converted=frozenset({Way("tinytl-b")}))
    own = [LAST, FULL]
    assert estimate("tinytl-b", None, converted, own=own).accuracy_kind == "unknown"
    guess = estimate("tinytl-b", None, converted, own=[*own, run("tinytl-b", 75.0)])
    assert (guess.kind, guess.value, guess.accuracy_percent) == ("measured", pytest.approx(0.25), 75.0)
    # but it tells nothing of other ways: what it recovers on such a network is not known
    more, plain = (estimate("blocks", 5, converted, own=rows) for rows in ([*own, run("tinytl-b", 75.0)], own))
    assert accuracy(more) == accuracy(plain)


def test_last_and_full_that_cannot_be_told_apart_give_no_recovery():
    own = [run("last", 80.0, test_images=100), run("full", 81.0, test_images=100), run("norm", 80.5)]
    guess = estimate("norm", None, NETWORK, own=own)
    assert (guess.kind, guess.value) == ("prior", estimate("norm", None, NETWORK).value)
    assert (guess.accuracy_kind, guess.accuracy_percent) == ("measured", 80.5)
    assert not guess.believed.expected.training_more_helps


# --- by depth ---------------------------------------------------------------------------------------------------------


def test_between_two_depths():
    own = [LAST, FULL, run("blocks", 80.0, 3, test_images=4000), run("blocks", 86.0, 6, test_images=4000)]
    three, four, six = (estimate("blocks", k, NETWORK, own=own) for k in (3, 4, 6))
    assert (four.kind, four.accuracy_kind) == ("interpolated", "interpolated")
    assert three.expected_percent < four.accuracy_percent < six.expected_percent
    assert estimate("blocks", 7, NETWORK, own=own).accuracy_kind == "prior"


def test_a_depth_that_was_measured_moves_its_neighbours():
    plain = estimate("blocks", 8, NETWORK, own=[LAST, FULL])
    for measured in (89.8, 75.0):
        own = [LAST, FULL, run("blocks", measured, 3)]
        moved = estimate("blocks", 8, NETWORK, own=own).accuracy_percent
        assert (moved > plain.accuracy_percent) == (
            measured > estimate("blocks", 3, NETWORK, own=own[:2]).accuracy_percent
        )
        width = estimate("blocks", 4, NETWORK, own=own)
        before = estimate("blocks", 4, NETWORK, own=own[:2])
        assert (
            width.accuracy_high_percent - width.accuracy_low_percent
            < before.accuracy_high_percent - before.accuracy_low_percent
        )


def test_a_run_that_went_wrong_tells_nothing_of_others():
    own = [LAST, FULL, run("blocks", 12.0, 3)]
    guess, plain = (estimate("blocks", 4, NETWORK, own=rows) for rows in (own, own[:2]))
    assert guess.accuracy_percent == plain.accuracy_percent
    assert estimate("blocks", 3, NETWORK, own=own).accuracy_percent == 12.0


def test_a_row_deeper_than_the_network_is_refused():
    with pytest.raises(InputError, match=r"own\.csv, line 2, column trained_blocks: 18: .* has only 17 blocks"):
        estimate("last", None, NETWORK, own=[run("blocks", 80.0, 18)])


# --- anchors ----------------------------------------------------------------------------------------------------------


def test_last_and_full_turn_recovery_into_accuracy():
    guess = estimate("norm", None, NETWORK, own=[LAST, FULL])
    assert (guess.kind, guess.accuracy_kind) == ("prior", "prior")
    assert 70 < guess.accuracy_low_percent < guess.accuracy_percent < guess.accuracy_high_percent < 90
    assert guess.value == pytest.approx((guess.accuracy_percent - 70) / 20)
    # between the logits it is what evidence says of a typical data set
    logits = [math.log(p / (100 - p)) for p in (70.0, guess.accuracy_percent, 90.0)]
    among = estimate("norm", None, NETWORK).believed.expected
    typical = (among.logits[0] - among.last[0]) / among.gap[0]
    assert (logits[1] - logits[0]) / (logits[2] - logits[0]) == pytest.approx(typical, abs=0.01)


@pytest.mark.parametrize("own", [[LAST], [FULL], [run("norm", 80.0)], [LAST, run("bias", 76.0)]])
def test_fewer_runs_tell_less(own):
    """What a typical gap is leads from any run to the others; the two ends tell most."""
    with_both = estimate("blocks", 5, NETWORK, own=[LAST, FULL])
    guess = estimate("blocks", 5, NETWORK, own=own)
    assert guess.accuracy_kind == "prior"
    narrow, wide = (each.accuracy_high_percent - each.accuracy_low_percent for each in (with_both, guess))
    assert wide > narrow
    assert guess.value == estimate("blocks", 5, NETWORK).value  # of recovery they say nothing


def test_another_resolution_tells_less():
    at_96 = [run("last", 60.0, resolution=96), run("full", 85.0, resolution=96)]
    here = estimate("blocks", 5, NETWORK, own=[LAST, FULL])
    near, far = (estimate("blocks", 5, replace(NETWORK, resolution=pixels), own=at_96) for pixels in (112, 224))
    widths = [each.accuracy_high_percent - each.accuracy_low_percent for each in (here, near, far)]
    assert widths == sorted(widths) and "another resolution" in far.accuracy_rests_on
    assert 60 < near.accuracy_percent < 90


def test_rows_that_do_not_apply_are_named():
    rows = [
        LAST,
        run("full", 80.0, model="mobilnet_v2"),
        run("norm", 80.0, resolution=96),
        run("bias", 1.0, dataset="yours"),
    ]
    said = unused(rows, "mine", [NETWORK])
    assert len(said) == 3
    assert any("'mobilnet_v2' (is mobilenet_v2 meant?)" in text for text in said)
    assert any("at 96 pixels" in text for text in said) and any("data set 'yours'" in text for text in said)


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
@given(st.lists(st.tuples(st.integers(1, 17), st.floats(-2, 2)), unique_by=lambda pair: pair[0], max_size=5))
def test_accuracy_does_not_fall_with_depth(pairs):
    """Where what was measured does not, and is within 2 points of what was to be expected."""
    own = [run("last", 20.0), run("full", 80.0)]
    depths = sorted(k for k, _ in pairs)
    values = sorted(estimate("blocks", k, NETWORK, own=own).accuracy_percent + off for k, off in pairs)
    own += [run("blocks", value, k) for k, value in zip(depths, values, strict=True)]
    guesses = [estimate("blocks", k, NETWORK, own=own) for k in range(1, 18)]
    others = [guess.accuracy_percent for guess in guesses if guess.accuracy_kind != "measured"]
    assert others == sorted(others)
