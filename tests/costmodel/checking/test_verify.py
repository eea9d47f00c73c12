"""`costmodel verify`: agreement, a real mismatch and where it is named, bad input; the benchmark that needs a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from repository import ROOT

from costmodel import InputError, ModelError, verify, way
from costmodel.accounting import eager
from costmodel.checking.verification import Check

BENCHMARKS = ROOT / "benchmarks"
SMALL = "timm:mobilenetv2_050"
OPTIONS = ["--batch", "2", "--resolution", "64"]

avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the working memory of convolutions is known for AVX-512 alone",
)


# --- agreement --------------------------------------------------------------------------------------------------------


@avx512
@pytest.mark.parametrize(("method", "blocks", "optimizer"), [("full", None, "adam"), ("last", None, "momentum")])
def test_a_real_network_agrees(method, blocks, optimizer):
    stages = []
    result = verify(
        "torchvision:mobilenet_v2",
        method,
        blocks,
        batch=4,
        resolution=96,
        classes=7,
        optimizer=optimizer,
        progress=stages.append,
    )
    assert result.agrees and result.differing_modules == ()
    assert [check.unit for check in result.checks] == ["bytes", "bytes", "FLOPs", "FLOPs"]
    saved, peak, forward, backward = result.checks
    assert saved.predicted == saved.measured == result.footprint.saved_bytes
    assert saved.tolerance == forward.tolerance == backward.tolerance == 0 and peak.tolerance == 0.005
    assert forward.measured == result.footprint.forward_flops and backward.measured == result.footprint.backward_flops
    assert result.footprint.method == method and result.footprint.graph.classes == 7
    assert len(stages) == len(set(stages)) > 3


@avx512
def test_exit_code_0(command):
    code, out, err = command("verify", SMALL, "--method", "last", "--batch", "2", "--resolution", "96")
    assert code == 0, out + err
    assert out.count("agrees") == 4 and "DIFFERS" not in out and "saved bytes that differ" not in out


@avx512
def test_json(command):
    code, out, _ = command("verify", SMALL, "--method", "last", *OPTIONS, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["agrees"] is True and answer["modules"] == []
    assert [row["agrees"] for row in answer["checks"]] == [True] * 4
    assert all(isinstance(row["measured"], int) for row in answer["checks"])


@avx512
@pytest.mark.parametrize(
    "what",
    [
        {"method": "last-convs", "options": {"convolutions": 4}},
        {"method": way("blocks", 2, {"norm_statistics": "running"})},
        {"trained": lambda name: name.startswith("classifier") or name.endswith("bn3.bias")},
        {"method": "mobiletl", "blocks": 2, "frozen_dtype": "float16", "accounting": "lean"},
    ],
    ids=["option", "Way", "trained", "frozen float16"],
)
@pytest.mark.parametrize("accounting", ["eager", "lean"])
def test_all_that_apply_takes_is_verified(what, accounting):
    result = verify(SMALL, **{"batch": 4, "resolution": 64, "accounting": accounting} | what)
    assert result.agrees, result.checks
    assert result.footprint.step.precision.frozen == what.get("frozen_dtype", "float32")


def test_stock_pytorch_computes_with_no_frozen_halves():
    with pytest.raises(InputError, match="use the accounting lean"):
        verify(SMALL, "bias", frozen_dtype="float16")


@avx512
def test_options_on_the_command_line(command):
    arguments = ["--method", "last-convs", "--option", "convolutions=3", "--accounting", "lean"]
    code, out, _ = command("verify", SMALL, *arguments, *OPTIONS)
    assert code == 0 and "last-convs, convolutions 3" in out


# --- mismatches -------------------------------------------------------------------------------------------------------


def _forgets_the_input(layer, wanted):
    return iter(())


def test_a_mismatch_is_found_and_named(monkeypatch):
    """Books that forget what ReLU6 keeps, as if another version of PyTorch had begun to keep it."""
    monkeypatch.setitem(eager.KEEPS._entries, "hardtanh", _forgets_the_input)
    result = verify(SMALL, "blocks", 1, batch=2, resolution=64)
    assert not result.agrees and not result.checks[0].agrees
    assert result.checks[0].predicted < result.checks[0].measured
    # Block 17 has two ReLU6 (inside timm's norm layers) and the tail one.
    assert {name for name, _, _ in result.differing_modules} == {"blocks.6.0.bn1.act", "blocks.6.0.bn2.act", "bn2.act"}
    for name, predicted, measured in result.differing_modules:
        assert predicted < measured, name
    missing = sum(measured - predicted for _, predicted, measured in result.differing_modules)
    assert missing == result.checks[0].measured - result.checks[0].predicted
    assert result.checks[2].agrees and result.checks[3].agrees  # FLOPs are another matter


def test_exit_code_1(command, monkeypatch):
    monkeypatch.setitem(eager.KEEPS._entries, "hardtanh", _forgets_the_input)
    code, out, _ = command("verify", SMALL, "--method", "blocks", "--blocks", "1", *OPTIONS)
    assert code == 1 and "DIFFERS" in out and "saved bytes that differ" in out and "bn2" in out
    code, out, _ = command("verify", SMALL, "--method", "blocks", "--blocks", "1", *OPTIONS, "--json")
    answer = json.loads(out)
    assert code == 1 and answer["agrees"] is False
    assert "bn2.act" in [name for name, _, _ in answer["modules"]]


def test_too_much_is_a_mismatch_too(monkeypatch):
    monkeypatch.setitem(eager.KEEPS._entries, "add", eager.KEEPS["relu"])
    result = verify("torchvision:resnet18", "blocks", 1, batch=2, resolution=64)
    assert not result.checks[0].agrees and result.checks[0].predicted > result.checks[0].measured


def test_a_check_compares_with_its_tolerance():
    assert Check("peak", "bytes", 1005, 1000, 0.005).agrees and not Check("peak", "bytes", 1006, 1000, 0.005).agrees
    assert Check("peak", "bytes", 995, 1000, 0.005).agrees and not Check("peak", "bytes", 994, 1000, 0.005).agrees
    assert Check("saved", "bytes", 7, 7, 0).agrees and not Check("saved", "bytes", 7, 8, 0).agrees
    assert Check("peak", "bytes", 990, 1000, 0.005).relative_difference == -0.01
    assert Check("saved", "bytes", 0, 0, 0).agrees and Check("saved", "bytes", 5, 0, 0).relative_difference == 5


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no_such_network"], "no_such_network"),
        ([SMALL, "--method", "ful"], "did you mean 'full'"),
        ([SMALL, "--method", "blocks", *OPTIONS], "from 1 to 17"),
        ([SMALL, "--accounting", "tinytl", *OPTIONS], "eager"),
        ([SMALL, "--batch", "0", "--resolution", "64"], "batch"),
        ([SMALL, "--optimizer", "adamax", *OPTIONS], "adam"),
        ([SMALL, "--device", "tpu"], "tpu"),
    ],
)
def test_exit_code_2(command, arguments, text):
    code, out, err = command("verify", *arguments)
    assert code == 2 and text in err and "Traceback" not in err and out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_bad_input():
    with pytest.raises(InputError, match="no CUDA device"):
        verify(SMALL, device="cuda")


def test_a_batch_that_cannot_train_is_said():
    """Batch norm after the global pool, on one value per channel."""
    with pytest.raises(ModelError, match=r"batch 1.*more than 1 value per channel"):
        verify("timm:mobilenetv4_conv_small", batch=1, resolution=64)


# --- another version --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["compare", SMALL, "--method", "last"], ["footprint", SMALL, "--accounting", "eager"]], ids=str
)
def test_another_version_is_said_once(command, monkeypatch, arguments):
    monkeypatch.setattr(eager, "version", lambda package: "2.99.0")
    code, out, err = command(*arguments, "--resolution", "64")
    assert code == 0 and err.count("2.99.0") == 1 and "costmodel verify" in err and "2.99.0" not in out
    json.loads(command(*arguments, "--resolution", "64", "--json")[1])


def test_lean_is_no_matter_of_version(command, monkeypatch):
    monkeypatch.setattr(eager, "version", lambda package: "2.99.0")
    assert command("footprint", SMALL, "--resolution", "64")[2] == ""


# --- the benchmark that needs a GPU -----------------------------------------------------------------------------------


def test_without_a_gpu_the_benchmark_says_so_and_leaves_with_0(tmp_path):
    tables = BENCHMARKS / "results" / "verify_cuda.csv", BENCHMARKS / "results" / "verify_cuda.md"
    before = [path.exists() and path.read_bytes() for path in tables]
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / "verify_cuda.py"), "--date", "2026-11-20"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # hides a GPU that may be there
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) == 1 and "no CUDA device" in result.stdout
    assert before == [path.exists() and path.read_bytes() for path in tables]
