"""The planner on real networks: the frontier, the pick, why nothing fits, and the command line."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import costmodel
from costmodel import InfeasibleError, InputError
from costmodel.tracing.tracer import trace
from planner.choosing.candidates import candidates
from planner.choosing.frames import to_frame
from planner.choosing.naming import short_names
from planner.choosing.pareto import non_dominated
from planner.choosing.reasons import NOT_RANKED
from planner.choosing.recommend import choose, recommend
from planner.choosing.scale import TIE, Scale
from planner.estimates.accuracy import Estimate
from planner.interface import cli

SMALL = "torchvision:mobilenet_v3_small"
NORMLESS = "torchvision:squeezenet1_1"  # no norm and no blocks: norm and bias are unknown, blocks and mobiletl left out
UNKNOWN = Estimate(None, None, None, "unknown", "", "nothing", "none")


@pytest.fixture(scope="module")
def small():
    return candidates(SMALL, resolution=96)


@pytest.fixture(scope="module")
def both(small):
    return small + candidates(NORMLESS, resolution=96)


# --- frontier ---------------------------------------------------------------------------------------------------------

COST = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1.0, 2.0, np.inf, np.nan]) | st.floats(allow_nan=True)


@given(st.integers(1, 4).flatmap(lambda m: st.lists(st.lists(COST, min_size=m, max_size=m), min_size=1, max_size=25)))
def test_frontier_is_its_definition(rows):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    expected = [not np.isnan(row).any() and not any(dominates(other, row) for other in rows) for row in rows]
    assert non_dominated(rows).tolist() == expected


def test_frontier_keeps_every_one_of_a_tie_and_no_unknown():
    assert non_dominated([[1, 2], [1, 2], [2, 1], [2, 2], [0, np.nan]]).tolist() == [True, True, True, False, False]
    assert non_dominated(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("costs", [[1.0, 2.0], [[]], np.zeros((2, 2, 2))])
def test_frontier_refuses_what_is_no_table(costs):
    with pytest.raises(ValueError, match="needed is"):
        non_dominated(costs)


# --- candidates -------------------------------------------------------------------------------------------------------


def test_every_method_and_depth_is_priced_as_footprint_prices_it(small):
    graph = trace(SMALL, resolution=96)
    count = costmodel.block_count(graph)
    expected = {
        (name, k)
        for name, method in costmodel.METHODS.items()
        if not method.options
        for k in (range(1, count + 1) if method.takes_blocks else [None])
    }
    assert {(candidate.way.method, candidate.way.blocks) for candidate in small} == expected
    assert len(small) == len(expected)
    for candidate in small:
        cost = costmodel.footprint(graph, candidate.way.method, candidate.way.blocks, batch=8)
        assert candidate.peak_bytes == cost.peak_bytes == sum(cost.memory_bytes.values()) - cost.peak_bytes
        assert candidate.total_flops == cost.total_flops >= candidate.forward_flops + candidate.backward_flops
        assert (candidate.peak_layer, candidate.peak_phase) == (cost.peak.layer, cost.peak.phase)


def test_a_network_without_blocks_and_norms_has_unknowns(both):
    own = {candidate.way.method: candidate.recovery.kind for candidate in both if candidate.model == NORMLESS}
    assert set(own) == {name for name, m in costmodel.METHODS.items() if not m.min_blocks and not m.options}
    assert {method for method, kind in own.items() if kind != "unknown"} == {"full", "last"}


def test_a_model_named_twice_counts_once(small):
    assert len(candidates([SMALL, "mobilenet_v3_small", SMALL], resolution=96)) == len(small)
    with pytest.raises(InputError, match="no model was given"):
        candidates([])


def test_frame_holds_every_number(both):
    frame = to_frame(both)
    assert len(frame) == len(both)
    for candidate, row in zip(both, frame.to_dict("records"), strict=True):
        assert row["peak_bytes"] == candidate.peak_bytes
        assert row["transient_bytes"] == candidate.memory_bytes["transient"]
        value = candidate.recovery.value
        assert np.isnan(row["recovery"]) if value is None else row["recovery"] == value
        assert (row["recovery_kind"] == "unknown") == (value is None)


# --- the pick ---------------------------------------------------------------------------------------------------------


def promises(c):
    """What candidates of two networks are compared by: percent on a typical data set; None if unknown."""
    return c.recovery.typical_percent


def with_promise(c, percent):
    """The candidate with another promise; the recovery follows."""
    if percent is None:
        return replace(c, recovery=UNKNOWN)
    value = percent / 100
    guess = replace(c.recovery, value=value, low=value, high=value, kind="prior", typical_percent=percent,
                    expected_percent=percent, believed=None)  # fmt: skip
    return replace(c, recovery=guess)


def brute_force(priced, limits):
    """The pick by its definition, one candidate after the other; nothing of the planner's own comparisons is used."""

    def cost(c):
        return c.total_flops / c.batch, c.peak_bytes, c.trained_parameters

    def broken(c):
        numbers = {
            "memory": c.peak_bytes, "flops": c.total_flops / c.batch,
            "flash": c.memory_bytes["weights"] + c.memory_bytes["buffers"],
        }  # fmt: skip
        value = c.recovery.value
        if "recovery" in limits and (value is None or value < limits["recovery"]):
            return True
        return any(numbers[name] > limit for name, limit in limits.items() if name in numbers)

    fits = [c for c in priced if not broken(c)]
    known = [c for c in fits if promises(c) is not None]
    if not fits:
        return None
    if not known:
        return min(fits, key=cost)
    most = max(map(promises, known))
    return min((c for c in known if most - promises(c) <= 0.25), key=lambda c: (*cost(c), -promises(c)))


def check(priced, ram_bytes):
    """The whole recommendation against its definition."""
    expected = brute_force(priced, {"memory": ram_bytes})
    if expected is None:
        with pytest.raises(InfeasibleError):
            choose(priced, ram_bytes)
        return
    answer = choose(priced, ram_bytes)
    assert answer.chosen == expected
    value = -1.0 if promises(expected) is None else promises(expected)
    better = [c for c in priced if c.peak_bytes > ram_bytes and promises(c) is not None and promises(c) > value + TIE]
    if better:
        assert answer.next_better.peak_bytes == min(candidate.peak_bytes for candidate in better)
        most = max(map(promises, better))
        assert most - promises(answer.best_unfit) <= 0.25
        assert answer.best_unfit.peak_layer in " ".join(answer.reasons)
    else:
        assert answer.next_better is None and answer.best_unfit is None
    for cheap in answer.cheaper:
        assert promises(cheap) < value
        assert cheap.peak_bytes < expected.peak_bytes or cheap.total_flops < expected.total_flops
    assert all(promises(c) is None and c.peak_bytes <= ram_bytes for c in answer.unknown)
    everything = "\n".join((*answer.reasons, *answer.notes))
    assert all(method in everything for method in {candidate.way.method for candidate in priced})


@given(data=st.data())
@settings(deadline=None)
def test_pick_is_brute_force_for_any_budget(both, data):
    peaks = [candidate.peak_bytes for candidate in both]
    exact = st.sampled_from(peaks).flatmap(lambda peak: st.sampled_from([peak - 1, peak, peak + 1]))
    check(both, data.draw(exact | st.integers(1, 2 * max(peaks))))


def test_pick_is_brute_force_for_a_thousand_budgets_and_constraints(both):
    """Real prices and estimates, and the same with random values and intervals; limits on any of four objectives."""
    random = np.random.default_rng(0)
    feasible = 0
    for trial in range(1000):
        priced = both
        if trial % 2:
            values = random.uniform(50, 100, len(both)).round(random.integers(0, 2))
            priced = [with_promise(c, value) for c, value in zip(both, values.tolist(), strict=True)]
        most = {"memory": [c.peak_bytes for c in both], "flops": [c.total_flops / 8 for c in both],
                "flash": [c.flash_bytes for c in both], "recovery": [0.0, 1.0]}  # fmt: skip
        names = random.choice(list(most), random.integers(1, 5), replace=False)
        limits = {name: float(random.uniform(0.9 * min(most[name]), 1.1 * max(most[name]))) for name in names}
        expected = brute_force(priced, limits)
        if expected is None:
            with pytest.raises(InfeasibleError):
                choose(priced, limits)
            continue
        feasible += 1
        found = choose(priced, limits).chosen
        assert found == expected, (limits, found.label, expected.label)
    assert 300 < feasible < 1000


@given(data=st.data())
@settings(deadline=None)
def test_pick_is_brute_force_with_ties_and_unknowns(both, data):
    """Real prices, any recovery: ties, ties within the tolerance, and unknown ones."""
    value = st.sampled_from([None, 50.0, 80.0, 80.2, 80.25, 80.3, 100.0])
    values = data.draw(st.lists(value, min_size=len(both), max_size=len(both)))
    priced = [with_promise(c, value) for c, value in zip(both, values, strict=True)]
    check(priced, data.draw(st.integers(1, 2 * max(candidate.peak_bytes for candidate in both))))


def test_more_memory_never_promises_less(both):
    budgets = sorted({candidate.peak_bytes for candidate in both})
    promised = [promises(choose(both, budget).chosen) for budget in budgets]
    assert promised == sorted(promised)
    assert max(p for c in both if (p := promises(c)) is not None) - promised[-1] <= 0.25


def test_a_tie_goes_to_the_cheaper(small):
    priced = [with_promise(c, 90.0 if c.way.method in ("full", "blocks") else 70.0) for c in small]
    answer = choose(priced, max(candidate.peak_bytes for candidate in small))
    assert (answer.chosen.way.method, answer.chosen.way.blocks) == ("blocks", 1)
    assert any(reason.startswith("full takes") and "is the same" in reason for reason in answer.reasons)
    for ahead, method in ((0.2, "blocks"), (0.3, "full")):
        ranked = [with_promise(c, 90.0 + ahead) if c.way.method == "full" else c for c in priced]
        assert choose(ranked, 10**9).chosen.way.method == method


def test_what_cannot_train_is_no_candidate():
    """At 32 pixels MobileNetV3's last norms see one number per channel and image."""
    small, method = "torchvision:mobilenet_v3_small", ("full", "blocks", "bias", "last")
    one, two = (
        recommend(small, 64_000_000, batch=n, resolution=32, methods=method, norm_statistics="own") for n in (1, 2)
    )
    graph = trace(small, resolution=32)
    assert costmodel.values_per_norm(graph, costmodel.way("full")) == 1
    assert costmodel.values_per_norm(graph, costmodel.way("bias")) is None
    assert {c.way.method for c in one.untrainable} == {"full", "blocks"} and not two.untrainable
    assert {c.way.method for c in one.candidates} == {"bias", "last"}
    assert any("cannot train: full; blocks, k = 1" in note for note in one.notes)
    network = costmodel.apply(costmodel.build(small), "full").train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.zeros(1, 3, 32, 32))
    network(torch.zeros(2, 3, 32, 32))
    with pytest.raises(InfeasibleError, match="nothing can train here"):
        recommend(small, 64_000_000, batch=1, resolution=32, methods=["full"], norm_statistics="own")


def test_small_batches_do_not_win(small):
    answer = recommend(SMALL, 10**9, batch=range(1, 17), resolution=96)
    assert answer.chosen.batch >= 8
    assert {c.recovery.kind for c in answer.candidates if c.batch < 8 and c.way.method == "blocks"} == {"unknown"}
    alone = recommend(SMALL, 10**9, batch=4, resolution=96)
    assert any("batches of 8 or more" in note for note in alone.notes)


def test_unknown_is_not_picked_and_it_is_said(both):
    own = [candidate for candidate in both if candidate.model == NORMLESS]
    bias = next(candidate for candidate in own if candidate.way.method == "bias")
    answer = choose(own, bias.peak_bytes)
    assert answer.chosen.way.method == "last"
    assert bias in answer.unknown
    assert any(
        "accuracy is unknown: norm; bias; tinytl-b: no published network without norm layers" in note
        for note in answer.notes
    )


def test_only_unknown_ones_left_is_said(small):
    priced = [replace(candidate, recovery=UNKNOWN) for candidate in small]
    answer = choose(priced, max(candidate.peak_bytes for candidate in small))
    assert answer.chosen.peak_bytes == min(candidate.peak_bytes for candidate in small)
    assert any("no candidate that fits has a known accuracy" in note for note in answer.notes)


def test_several_models_say_what_is_compared():
    answer = recommend([SMALL, NORMLESS], 10**9, resolution=96)
    assert answer.scale.name == "typical" and answer.chosen.model == SMALL  # 67.7 % against 58.2 %
    assert any("mobilenet_v3_small 67.7 %, squeezenet1_1 58.2 %" in note for note in answer.notes)
    unnamed = [replace(c, recovery=replace(c.recovery, typical_percent=None)) for c in answer.candidates]
    assert NOT_RANKED in choose(unnamed, 10**9).notes
    half = [replace(c, recovery=replace(c.recovery, typical_percent=None)) if c.model == SMALL else c
            for c in answer.candidates]  # fmt: skip
    assert choose(half, 10**9).chosen.model == NORMLESS
    assert any(f"{SMALL}: the network's accuracy on ImageNet is not known" in n for n in choose(half, 10**9).notes)
    assert {candidate.model for candidate in answer.best_per_model} == {SMALL, NORMLESS}
    assert NOT_RANKED not in recommend(SMALL, 10**9, resolution=96).notes
    # at 96 pixels the smallest footprint of SqueezeNet is below MobileNetV3-Small's
    least = min(candidate.peak_bytes for candidate in answer.candidates if candidate.model == SMALL)
    tight = choose(answer.candidates, least - 1)
    assert tight.chosen.model == NORMLESS
    assert any(reason.startswith(f"nothing fits on {SMALL}: its smallest footprint, last") for reason in tight.reasons)


def test_an_impossible_budget_names_the_smallest(small):
    least = min(small, key=lambda candidate: candidate.peak_bytes)
    with pytest.raises(InfeasibleError, match=rf"smallest footprint is {least.way.method} .*{least.peak_bytes} bytes"):
        choose(small, least.peak_bytes - 1)
    assert choose(small, least.peak_bytes).chosen.peak_bytes == least.peak_bytes
    for budget in (0, -1):
        with pytest.raises(InputError, match="must be a positive number"):
            recommend(SMALL, budget, resolution=96)


def test_text_of_recoveries_and_names():
    texts = [Scale("recovery").text(value) for value in (-np.inf, 0.0, 0.99949, 0.9996, 1.0)]
    assert texts == ["unknown", "0.000", "0.999", ">0.999", "1.000"]
    assert Scale("accuracy").text(84.25) == "84.2 %"
    assert short_names(["a:x", "a:y"]) == {"a:x": "x", "a:y": "y"}
    assert short_names(["a:x", "b:x"]) == {"a:x": "a:x", "b:x": "b:x"}


# --- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def planner(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["planner", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return call


def test_recommend_prints_one_configuration_and_why(planner, small):
    code, out, err = planner("recommend", SMALL, "--ram", "26MB", "--resolution", "96", "--schedules", "none")
    assert (code, err) == (0, "")
    pick = choose(small, 26_000_000)
    assert f"{pick.chosen.way.method}, the last k = {pick.chosen.way.blocks} blocks" in out
    said = [
        "peak memory", "saved activations", "forward", "backward", "parameters", "expected recovery", "prior",
        "it rests on", "how sure", "to be surer: planner measure", "alternatives", "lacks", "cheaper", "why",
        pick.best_unfit.peak_layer,
    ]  # fmt: skip
    words = " ".join(out.replace("│", " ").split())
    assert [part for part in said if part not in words] == []


def test_recommend_json_holds_everything(planner, small):
    code, out, _ = planner("recommend", SMALL, "--ram", "26MB", "--resolution", "96", "--schedules", "none", "--json")
    answer, expected = json.loads(out), choose(small, 26_000_000)
    assert code == 0
    for name, value in json.loads(json.dumps(expected.to_dict())).items():
        if name not in ("plan", "reasons", "largest_batch"):
            assert answer[name] == value, name
    assert answer["plan"]["promises"]["peak_bytes"] == expected.chosen.peak_bytes
    assert set(expected.reasons) < set(answer["reasons"])
    assert answer["chosen"]["peak_bytes"] == expected.chosen.peak_bytes <= answer["limits"]["memory"]
    assert answer["chosen"]["recovery"]["kind"] == "prior"
    assert len(answer["candidates"]) == len(small)


def test_several_models_on_the_command_line(planner):
    code, out, _ = planner("recommend", SMALL, NORMLESS, "--ram", "1GB", "--resolution", "96")
    assert code == 0
    assert "compared on a typical data set" in " ".join(out.split())
    assert "squeezenet1_1" in out


def test_candidates_as_table_csv_and_json(planner, small):
    _, table, _ = planner("candidates", SMALL, "--resolution", "96")
    assert all(candidate.label in table for candidate in small)
    _, text, _ = planner("candidates", SMALL, "--resolution", "96", "--csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["peak_bytes"]) for row in rows] == [candidate.peak_bytes for candidate in small]
    _, text, _ = planner("candidates", SMALL, "--resolution", "96", "--json")
    assert json.loads(text) == [candidate.to_dict() for candidate in small]


def test_an_impossible_budget_leaves_3(planner, small):
    least = min(candidate.peak_bytes for candidate in small)
    code, out, err = planner("recommend", SMALL, "--ram", "1kB", "--resolution", "96")
    assert (code, out) == (3, "")
    assert err.startswith("error: nothing fits in 1.00 kB: the smallest footprint is last")
    assert f"{least} bytes" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((SMALL, "--ram", "64 bananas"), "cannot read '64 bananas'"),
        ((SMALL, "--ram", "64MB", "bananas"), "bananas"),
        ((SMALL, "--ram", "-5MB"), "cannot read '-5MB'"),
        ((SMALL, "--ram", "0"), "cannot read '0'"),
        ((SMALL, "--ram", "64MB", "--batch", "0"), "batch must be"),
        ((SMALL, "--ram", "64MB", "--optimizer", "adm"), "did you mean 'adam'"),
        ((SMALL, "--ram", "64MB", "--accounting", "leen"), "did you mean 'lean'"),
        ((SMALL, "--ram", "64MB", "--resolution", "0"), "resolution must be"),
        ((SMALL, "--ram", "64MB", "--classes", "0"), "classes must be"),
        (("torchvision:mobilenet_v3_smal", "--ram", "64MB"), "mobilenet_v3_small"),
    ],
)
def test_bad_input_is_one_line_and_2(planner, arguments, said):
    code, out, err = planner("recommend", *arguments)
    assert (code, out) == (2, "")
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_help_is_quick_to_load():
    program = (
        "import sys\nfrom planner.interface.cli import main\nsys.argv = ['planner', '--help']\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code\n"
        "print('loaded:', [name for name in ('torch', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "recommend" in done.stdout and "candidates" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_methods_that_change_what_a_network_computes_have_no_published_accuracy(small):
    kinds = {candidate.way.method: candidate.recovery.kind for candidate in small}
    assert kinds["tinytl-b"] == kinds["tinytl-l"] == kinds["tinytl-lb"] == "unknown"
    assert kinds["bias"] == "prior"


def test_books_that_leave_parts_out_are_not_held_against_a_budget():
    with pytest.raises(InputError, match="cannot be held against a memory budget; allowed: lean, eager"):
        recommend(SMALL, 64_000_000, accounting="tinytl")
