"""The planner's command line over every axis: what is asked for, what comes out, and one line where it cannot be."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel import InputError
from planner.choosing.axes import axes
from planner.choosing.candidates import candidates, trace_all
from planner.choosing.frames import sweep, to_frame
from planner.choosing.objectives import DEFAULT, OBJECTIVES
from planner.choosing.plan import Plan
from planner.devices.device import device
from planner.interface import cli
from planner.interface.space import numbers

MODEL = "torchvision:mobilenet_v3_small"


@pytest.fixture
def planner(command):
    return functools.partial(command, main=cli.main)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=4))
def test_numbers_are_single_lists_or_ranges(parts):
    text = ",".join(f"{first}-{first + more}:{step}" if more else str(first) for first, more, step in parts)
    expected = [n for first, more, step in parts for n in (range(first, first + more + 1, step) if more else [first])]
    assert numbers(text, "--batch") == expected


@pytest.mark.parametrize("text", ["", "x", "1-", "-", "5-1", "1-5:0", "1,,2", "1.5", "1e3", "9" * 12])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(InputError, match="is not a number, list"):
        numbers(text, "--batch")


def test_axes_of_the_command_line_are_those_of_the_api(planner):
    code, text, _ = planner(
        "candidates", MODEL, "--batch", "4,8", "--micro-batch", "2-4:2", "--optimizer", "sgd,adam",
        "--resolution", "96", "--frozen-dtype", "float16", "--method", "bias,blocks", "--blocks", "1-2", "--json",
    )  # fmt: skip
    expected = candidates(
        MODEL, batch=[4, 8], micro_batch=[2, 4], optimizer=["sgd", "adam"], resolution=96, frozen_dtype="float16",
        methods=["bias", "blocks"], blocks=[1, 2],
    )  # fmt: skip
    assert code == 0 and len(expected) == 2 * 2 * 2 * 5  # blocks with running statistics, too: passes are small
    assert json.loads(text) == [candidate.to_dict() for candidate in expected]


def test_a_sweep_holds_the_same_numbers_as_candidates(planner, tmp_path):
    import pandas

    space = {"batch": range(1, 3), "optimizer": ["sgd", "adam"], "device": device("raspberry-pi-4-1gb")}
    frame = sweep(trace_all([MODEL, "timm:tinynet_e"], 96), axes(**space))
    rows = to_frame(candidates([MODEL, "timm:tinynet_e"], resolution=96, **space))
    assert len(frame) == len(rows) and set(frame.columns) <= set(rows.columns)
    for column in frame.columns:
        given, expected = frame[column].astype(object), rows[column].astype(object)
        assert given.where(given.notna(), None).tolist() == expected.where(expected.notna(), None).tolist(), column
    for name in ("c.csv", "c.parquet"):
        asked = ("--resolution", "96", "--batch", "1-2", "--optimizer", "sgd,adam")
        code, out, _ = planner("sweep", MODEL, "--out", str(tmp_path / name), *asked)
        assert code == 0 and out.startswith("wrote 212 candidates to ")
    first, second = pandas.read_csv(tmp_path / "c.csv"), pandas.read_parquet(tmp_path / "c.parquet")
    assert first["peak_bytes"].tolist() == second["peak_bytes"].tolist()
    assert (second["peak_bytes"] > 0).all() and len(second) == 212  # with running statistics, too: passes are small


def test_a_device_leaves_less_than_its_ram_and_says_so(planner, tmp_path):
    path = tmp_path / "plan.json"
    code, out, err = planner(
        "recommend", MODEL, "--resolution", "96", "--device", "raspberry-pi-zero-2w", "--save", str(path)
    )
    pi = device("raspberry-pi-zero-2w")
    assert (code, err) == (0, "") and "roofline" in out and "interpreter and libraries" in out
    assert 0 < Plan.load(path).peak_bytes <= pi.training_ram_bytes < pi.ram.bytes


def test_the_time_of_epochs_and_the_room_for_a_cache_are_said(planner):
    asked = [
        "recommend", MODEL, "--device", "raspberry-pi-4-1gb", "--ram", "12MB", "--resolution", "96", "--images", "2000",
        "--epochs", "3", "--schedules", "cache,inplace", "--method", "last,blocks",
    ]  # fmt: skip
    found = json.loads(planner(*asked, "--json")[1])
    step, epoch, training = (found[name] for name in ("step_seconds", "epoch_seconds", "training_seconds"))
    assert epoch["value"] == 250 * step["value"] and training["value"] == 3 * epoch["value"]  # 2,000 / 8 steps
    assert step["kind"] == epoch["kind"] == "lower bound" and step["basis"] == "roofline"
    assert found["plan"]["schedule"]["cache"] == "float32" and found["cache_bytes"] % 2000 == 0
    text = " ".join(planner(*asked)[1].split())
    assert "epoch of 2,000" in text and "3 epochs" in text and "per image," in text and "for all" in text


def test_limits_are_kept(planner):
    code, text, _ = planner(
        "recommend", MODEL, "--resolution", "96", "--device", "raspberry-pi-4-1gb", "--min-recovery", "0.5",
        "--max-flops", "50e6", "--flash", "11MB", "--max-epoch-seconds", "100", "--images", "10000", "--json",
    )  # fmt: skip
    answer = json.loads(text)
    assert code == 0 and set(answer["limits"]) == {"memory", "flops", "recovery", "flash", "time"}
    chosen = answer["chosen"]
    assert chosen["total_flops"] / 8 <= 50e6 and chosen["recovery"]["value"] >= 0.5
    assert chosen["step_seconds"] / 8 * 10_000 <= 100


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "no limit was given"),
        (["--device", "raspberry-pi-9"], 2, "unknown device 'raspberry-pi-9'"),
        (["--device", "raspberry-pi-zero-2w", "--ram", "1GB"], 2, "is more than the device leaves"),
        (["--ram", "1GB", "--max-epoch-seconds", "5"], 2, "need --images, the number of images of an epoch"),
        (["--ram", "1GB", "--images", "9", "--max-epoch-seconds", "5"], 2, "--max-epoch-seconds needs --device"),
        (["--ram", "1GB", "--storage", "1GB"], 2, "need --images"),
        (["--ram", "1GB", "--images", "0"], 2, "images must be a whole number of 1 or more, not 0"),
        (["--ram", "1GB", "--images", "9", "--epochs", "0"], 2, "epochs must be a whole number of 1 or more, not 0"),
        (["--ram", "1GB", "--max-flops", "-5"], 2, "must be a positive number, not -5"),
        (["--ram", "1GB", "--objective", "beauty"], 2, "unknown objective 'beauty'"),
        (["--ram", "1GB", "--batch", "8", "--micro-batch", "3"], 2, "no micro-batch of 3 divides a batch of 8"),
        (["--ram", "1GB", "--method", "magic"], 2, "unknown method 'magic'"),
        (["--ram", "1GB", "--blocks", "99"], 2, "no network has 99 blocks"),
        (["--ram", "1GB", "--frozen-dtype", "int4"], 2, "int4"),
        (["--ram", "1GB", "--min-accuracy", "80"], 3, "is not known of any candidate"),
        (["--ram", "1GB", "--max-flops", "1"], 3, "the nearest is last"),
        (["--ram", "1GB", "--max-flops", "30e6", "--min-recovery", "0.999"], 3, "at once, though each one alone"),
        (["--ram", "9MB"], 3, "the smallest footprint is last"),
        (["--ram", "1GB", "--evidence", "none.csv"], 2, "cannot read the evidence 'none.csv'"),
    ],
)
def test_what_cannot_be_is_one_line(planner, arguments, code, said):
    if "--blocks" in arguments:
        arguments = [*arguments, "--method", "blocks"]
    found, out, err = planner("recommend", MODEL, "--resolution", "96", *arguments)
    assert (found, out) == (code, "")
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_own_evidence_is_used_and_said(planner, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "model,method,trained_blocks,dataset,top1_percent,test_images\n"
        f"{MODEL},last,,mine,70,2000\n{MODEL},full,,mine,90,2000\n{MODEL},mobiletl,3,mine,88,2000\n"
    )
    code, text, _ = planner(
        "recommend", MODEL, "--resolution", "96", "--ram", "20MB", "--evidence", str(path), "--json"
    )
    answer = json.loads(text)
    assert code == 0 and answer["compared_by"] == "accuracy"
    measured = next(c for c in answer["candidates"] if (c["method"], c["blocks"]) == ("mobiletl", 3))
    assert measured["recovery"]["accuracy_percent"] == 88 and measured["recovery"]["accuracy_kind"] == "measured"
    code, out, _ = planner(
        "recommend", MODEL, "--resolution", "96", "--ram", "26MB", "--evidence", str(path), "--schedules", "none"
    )
    assert (
        "88.0 % (" in out
        and "prior: your runs on mine of last (70 %), full (90 %), mobiletl, k = 3"
        in " ".join(out.replace("│", " ").split())
        and "is the cheapest within 0.25 points of the best that fits" in " ".join(out.split())
    )
    path.write_text(path.read_text() + f"{MODEL},norm,,mine,190,2000\n")
    code, out, err = planner("recommend", MODEL, "--ram", "20MB", "--evidence", str(path))
    assert (code, out) == (2, "") and "mine.csv, line 5, column top1_percent: '190'" in err


def test_devices_are_listed_with_their_sources(planner):
    code, out, _ = planner("devices")
    assert code == 0 and "raspberry-pi-zero-2w" in out and "stm32f746" in out
    code, out, _ = planner("devices", "esp32-s3")
    assert code == 0 and "Source:" in out and "Assumption:" in out


def test_help_names_every_objective():
    documented = cli.recommend_command.__annotations__["objective"]
    assert all(name in documented.__metadata__[0].help for name in OBJECTIVES)
    assert ",".join(DEFAULT) == "memory,flops,recovery"


@pytest.mark.parametrize(
    ("arguments", "rows_of", "column"),
    [
        (("recommend", MODEL, "--resolution", "96", "--ram", "20MB", "--schedules", "none"), None, "role"),
        (("candidates", MODEL, "--resolution", "96"), list, "peak_bytes"),
        (("devices",), list, "training_ram_bytes"),
        (("devices", "jetson-nano"), None, "source"),
    ],
)
def test_every_table_is_json_and_csv_too(planner, arguments, rows_of, column):
    code, text, err = planner(*arguments, "--json")
    answer = json.loads(text)
    assert (code, err) == (0, "") and (rows_of is None or isinstance(answer, rows_of))
    code, text, err = planner(*arguments, "--csv")
    rows = list(csv.DictReader(text.splitlines()))
    assert (code, err) == (0, "") and rows and all(row[column] for row in rows)
    assert rows_of is None or len(rows) == len(answer)


def test_json_says_how_sure_the_choice_is_and_what_makes_it_surer(planner):
    _, text, _ = planner("recommend", MODEL, "--resolution", "96", "--ram", "20MB", "--schedules", "none", "--json")
    answer = json.loads(text)
    rivals, fitting = len(answer["rivals"]), len([c for c in answer["candidates"] if c["peak_bytes"] <= 20e6])
    assert answer["how_sure"].startswith(f"{rivals} of the {fitting} candidates that fit could be better")
    assert answer["to_be_surer"] == f"planner measure {MODEL} --data YOUR_IMAGES --ram 20MB --resolution 96"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_off_or_wider_than_the_terminal(planner, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    other = "torchvision:mobilenet_v2"
    for arguments in (
        ("recommend", MODEL, other, "--resolution", "96", "--ram", "20MB"), ("candidates", MODEL, "--resolution", "96"),
        ("devices",), ("devices", "raspberry-pi-zero-2w"),
    ):  # fmt: skip
        code, out, _ = planner(*arguments)
        lines = [line for line in out.splitlines() if not line.startswith("to be surer:")]  # a command to be copied
        assert code == 0 and max(map(len, lines)) <= width and "…" not in out
        assert [line for line in lines if line != line.rstrip()] == []
        number = re.compile(r"\d$")
        split = [(a, b) for a, b in itertools.pairwise(lines) if number.search(a.rstrip(" │")) and
                 re.match(r"[ │]*(MB|kB|GB|MFLOPs|GFLOPs|%)\b", b)]  # fmt: skip
        assert split == []
    assert "docs.printercow.com/guide/32bit-vs-64bit.html" in out and "documentation, Processors" in out
