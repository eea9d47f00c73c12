"""The error on data sets left out: by hand, complete, and what the README says of it."""

import json
import re
import sys
from pathlib import Path

import pytest
from repository import ROOT

from planner import evidence
from planner.estimates.accuracy import Setting, estimate
from planner.estimates.prior import recoveries
from planner.estimates.validation import UNSEEN, WANTED_COVERAGE, leave_one_out, markdown, summaries
from planner.evidence import published
from planner.interface import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found():
    return leave_one_out()


def test_every_published_recovery_is_predicted_once(found):
    expected = {
        (method, setting[1], dataset)
        for method in ("norm", "tinytl-b", "tinytl-l", "tinytl-lb")
        for setting, measured in recoveries(method, published()).items()
        for dataset in measured
    }
    assert len(expected) == 39  # four methods on nine data sets, norm on three of Inception-v3
    seen = [(one.method, one.model, one.dataset) for one in found if not one.unseen]
    assert len(seen) == len(set(seen)) and set(seen) == expected
    assert {(one.model, one.dataset) for one in found if one.unseen} == {
        ("inception_v3", dataset) for dataset in ("flowers102", "cars", "aircraft")
    }


def test_one_prediction_by_hand(found):
    one = next(one for one in found if (one.method, one.dataset) == ("norm", "cars") and not one.unseen)
    # without cars (27 / 39.3): flowers102, cub200, food101, pets, aircraft, cifar10, cifar100, celeba
    others = [4.2 / 6.7, 3 / 7.7, 8.3 / 15.9, 0.9 / 1.7, 23.2 / 41.1, 8.9 / 11.2, 11.4 / 15.3, 1.7 / 2.7]
    mean = sum(others) / 8
    assert one.predicted.value == pytest.approx(mean)
    assert one.recovery_error == pytest.approx(mean - 27 / 39.3)
    # last 50.9, full 90.2, truth 77.9
    assert one.points_error == pytest.approx(50.9 + 39.3 * mean - 77.9)
    # half width: recovery 1.895 * 0.1293 * sqrt(9/8) = 0.2599 of 39.3 points, 10.21; sampling errors of 8041 images:
    # last 0.92 (1 - 0.6), full 0.55 * 0.6, itself 0.80: 10.25 with all of them
    half = one.predicted.accuracy_high_percent - one.predicted.accuracy_percent
    assert half == pytest.approx(10.25, abs=0.05)


def test_the_left_out_data_set_is_not_used(found):
    for one in found:
        rows = [row for row in published() if row.dataset != one.dataset]
        setting = next(s for s in recoveries(one.method, published()) if s[1] == one.model)
        name = UNSEEN if one.unseen else one.model
        assert one.predicted.value == estimate(one.method, None, Setting(name, *setting[2:]), rows).value


def test_intervals_hold_what_they_promise(found):
    *_, together = summaries(found)
    assert together.count == len(found) == 42
    assert together.coverage >= WANTED_COVERAGE
    assert together.recovery_covered / together.count >= WANTED_COVERAGE


def test_the_curve_over_depth_has_nothing_to_leave_out():
    rows = [row for row in published() if row.dataset != "cifar10"]
    assert estimate("mobiletl", 5, Setting("torchvision:net", block_count=11), rows).kind == "unknown"


def test_readme_says_what_the_command_gives(found):
    table = re.search(r"<!-- planner evidence check --markdown -->\n(.*?)\n<!-- end -->", README, re.DOTALL)[1]
    assert table == markdown(found)


def test_the_readme_s_own_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs.csv").write_text(re.search(r"<!-- runs.csv -->\n```csv\n(.*?)```", README, re.DOTALL)[1])
    code = re.search(r"<!-- own runs -->\n```python\n(.*?)```", README, re.DOTALL)[1]
    names: dict = {}
    exec(code, names)
    own, network, guess = names["own"], names["network"], names["guess"]
    assert own == evidence.load("runs.csv")
    for k, percent, kind in ((3, "88.0", "measured"), (5, "88.8", "interpolated")):
        one = estimate("blocks", k, network, own=own)
        assert (f"{one.accuracy_percent:.1f}", one.accuracy_kind) == (percent, kind)
        assert f"# {percent}, {kind}" in code
    said = f"({guess.accuracy_percent:.1f}, {guess.accuracy_low_percent:.1f}, {guess.accuracy_high_percent:.1f})"
    assert f"# {said}, {guess.accuracy_kind}" in code


@pytest.fixture
def check(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["planner", "evidence", "check", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, capsys.readouterr().out

    return call


def test_the_command(check, found):
    code, text = check()
    assert code == 0
    assert text.count("missed") == sum(not one.covered for one in found) > 0
    assert "all: 42 predictions" in text and "rests on one number" in text
    assert all(one.dataset in text for one in found)
    assert check("--markdown") == (0, markdown(found) + "\n")
    _, text = check("--json")
    assert json.loads(text) == [json.loads(json.dumps(one.to_dict())) for one in found]


def test_the_command_fails_when_intervals_are_too_narrow(check, monkeypatch):
    monkeypatch.setattr("planner.estimates.validation.WANTED_COVERAGE", 0.99)
    assert check("--markdown")[0] == 1
