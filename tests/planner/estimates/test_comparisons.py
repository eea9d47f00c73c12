"""Which of two measured ways is more accurate: their difference, its error, and what ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tasks import NETWORKS

from costmodel import Way, trace
from planner.choosing.axes import axes
from planner.choosing.candidates import price_all
from planner.choosing.recommend import choose
from planner.estimates.accuracy import Setting
from planner.estimates.runs import difference, measured_runs
from planner.evidence.rows import Row, pack, unpack

MODEL = "net"
SETTING = Setting(MODEL, 224, 8, 5)


def row(method, outcomes=None, percent=None, seed=0, blocks=None, **more):
    """One run: its outcomes, or its accuracy alone."""
    if outcomes is not None:
        percent, more = 100 * np.mean(outcomes), more | {"test_images": len(outcomes), "correct": pack(outcomes)}
    return Row(model=MODEL, method=method, trained_blocks=blocks, dataset="mine", top1_percent=percent, seed=seed,
               source="own", **more)  # fmt: skip


def compared(*rows):
    """The difference between full and last, after some runs."""
    runs = measured_runs(rows, "mine", SETTING)
    return difference(runs[Way("full")], runs[Way("last")])


# --- outcomes ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_outcomes_are_written_and_read(outcomes):
    assert unpack(pack(outcomes), len(outcomes)).tolist() == outcomes


@pytest.mark.parametrize(
    ("text", "said"),
    [("ff", "1 bytes are not"), ("f", "hexadecimal"), ("zz", "hexadecimal"), ("ffff", "it says 100 % right")],
)
def test_outcomes_that_do_not_fit_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        row("last", percent=75.0, test_images=16, correct=text)


def test_outcomes_need_the_number_of_images():
    with pytest.raises(ValueError, match="needs test_images"):
        row("last", percent=100.0, correct="ff")


# --- the error of a difference ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_two_single_runs_differ_by_mcnemar(pairs):
    """Source: McNemar 1947; with b images right by the one alone and c by the other, var = (b + c - (b - c)^2 / n)."""
    ours, theirs = zip(*pairs, strict=True)
    n, b, c = len(pairs), sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    found = compared(row("full", ours), row("last", theirs))
    assert found.value == pytest.approx(100 * (b - c) / n, abs=1e-9)
    assert found.standard_error == pytest.approx(100 * math.sqrt(b + c - (b - c) ** 2 / n) / n, abs=1e-9)


def test_what_both_get_right_is_no_doubt():
    same = [True] * 60 + [False] * 40
    assert compared(row("full", same), row("last", same)).standard_error == 0
    apart = compared(row("full", percent=60.0, test_images=100), row("last", percent=60.0, test_images=100))
    assert apart.standard_error == pytest.approx(math.sqrt(2 * 60 * 40 / 100))  # as of two test sets


def test_the_error_is_that_of_repeated_experiments():
    """Runs with a scatter, on images of which some are harder: the stated error against that of 400 experiments."""
    generator = np.random.default_rng(0)
    images, seeds = 300, 3

    def experiment():
        hard = generator.normal(0, 1.5, images)
        rows = []
        for method, strength in (("full", 1.3), ("last", 1.0)):
            for seed in range(seeds):
                logits = strength + generator.normal(0, 0.15) - hard + generator.normal(0, 0.5, images)
                rows.append(row(method, generator.random(images) < 1 / (1 + np.exp(-logits)), seed=seed))
        return compared(*rows)

    found = [experiment() for _ in range(400)]
    really = np.std([each.value for each in found])
    stated = math.sqrt(np.mean([each.standard_error**2 for each in found]))
    # Run by run, an image's luck counts in both parts, so that the stated error is rather too large.
    assert really <= stated * 1.1 and stated <= really * 1.5
    independent = math.sqrt(2 * 0.7 * 0.3 / images) * 100
    assert stated < independent * 1.2


def test_without_a_repeated_run_the_scatter_is_left_out():
    ours, theirs = [True] * 9 + [False], [True] * 8 + [False] * 2
    once = compared(row("full", ours), row("last", theirs))
    again = compared(row("full", ours), row("last", theirs), row("last", [True] * 4 + [False] * 6, seed=1))
    assert once.half == pytest.approx(1.645 * once.standard_error)
    assert again.half > 6 * again.standard_error * 0.9  # Student's t of one degree of freedom


# --- what ties --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph():
    return trace(NETWORKS["mobilenet_v2"](), 32)


def decide(graph, methods, *runs):
    """Choose among some methods, blocks up to a depth of 3."""
    rows = [each.model_copy(update={"model": graph.model, "file": "own.csv"}) for each in runs]
    priced = price_all([graph], axes(methods, (1, 2, 3), evidence=rows))
    return choose(priced, 10**9), priced


def images(right, of=1000, shift=0):
    return np.roll([True] * right + [False] * (of - right), shift)


def apart(graph, *runs):
    """By how much full is expected above bias, and the error of that."""
    answer, priced = decide(graph, ("last", "full", "bias"), *runs)
    ends = (next(c for c in priced if c.way.method == method) for method in ("full", "bias"))
    return answer, answer.scale.difference(*ends)


def test_the_same_images_settle_what_intervals_leave_open(graph):
    """A point apart on 1,000 images: known better where one gets 10 more right than where they err on others."""
    ends = row("last", images(500)), row("full", images(830))
    answer, same = apart(graph, *ends, row("bias", images(820)))
    assert answer.scale.name == "accuracy" and answer.chosen.way.method == "full" and same.value > 0.25
    _, others = apart(graph, *ends, row("bias", images(820, shift=500)))
    assert others.standard_error > 1.5 * same.standard_error
    answer, _ = apart(graph, row("last", images(500)), row("full", images(820)), row("bias", images(830)))
    assert answer.chosen.way.method == "bias"


def test_what_was_measured_far_below_is_not_taken_for_being_cheap(graph):
    runs = [row("last", images(n, 100), seed=seed) for seed, n in enumerate((60, 64))]
    runs += [row("full", images(n, 100), seed=seed) for seed, n in enumerate((80, 74))]
    rows = [each.model_copy(update={"model": graph.model, "file": "own.csv"}) for each in runs]
    answer = choose(price_all([graph], axes(evidence=rows)), 10**9)
    assert answer.scale.value(answer.chosen) > 72


def test_a_difference_is_the_same_from_both_sides():
    runs = [row("full", percent=90.0), row("full", percent=80.0, seed=1)]
    one = measured_runs(runs, "mine", SETTING)[Way("full")]
    other = measured_runs([row("last", percent=84.0)], "mine", SETTING)[Way("last")]
    assert difference(one, other).half == difference(other, one).half > 30


def test_that_nothing_is_known_is_no_reason_to_take_it(graph):
    """Two runs that lie far apart make every interval wide; what was never run must not win by that."""
    rows = [row("last", images(600)), row("full", images(900)), row("blocks", images(700), blocks=1)]
    rows += [row("blocks", images(905), blocks=3), row("blocks", images(860), blocks=3, seed=1)]
    answer, _ = decide(graph, ("last", "full", "blocks"), *rows)
    chosen = answer.chosen.recovery
    assert chosen.accuracy_kind == "measured"
    assert chosen.accuracy_percent >= 88
