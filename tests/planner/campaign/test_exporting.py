"""From a plan to a trained network on the native runner, by the commands that the documentation shows."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from costmodel import EXECUTORCH_RUNTIME_BYTES, InputError
from planner.campaign.exporting import MAGIC, packed_tensors, prepare_data
from planner.devices.device import device
from planner.interface.cli import app
from planner.interface.exporting import without_python

SIDE, CLASSES = 16, 2
MODEL = Path(__file__).parents[2] / "support" / "tiny_network.py"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Return a folder of bright and of dark images, 20 of each."""
    folder = tmp_path_factory.mktemp("photos")
    source = np.random.default_rng(0)
    for label, level in (("bright", 200), ("dark", 55)):
        (folder / label).mkdir()
        for number in range(20):
            pixels = np.clip(source.normal(level, 30, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def test_data_files_hold_the_images(photos, tmp_path):
    found = prepare_data(photos, SIDE, tmp_path)
    assert found.classes == ("bright", "dark")
    assert found.images == {"train": 32, "test": 8}  # a fifth of each class is for testing
    content = (tmp_path / "train.bin").read_bytes()
    magic, count, channels, height, width, classes, is_float = struct.unpack_from("<8s6I", content)
    assert (magic, count, channels, height, width, classes, is_float) == (MAGIC, 32, 3, SIDE, SIDE, 2, 0)
    labels = np.frombuffer(content, "<i4", 32, 8 + 24 + 24)
    pixels = np.frombuffer(content, np.uint8, offset=8 + 24 + 24 + 4 * 32).reshape(32, 3, SIDE, SIDE)
    for label, image in zip(labels, pixels, strict=True):
        assert (image.mean() > 128) == (label == 0)


def test_tensors_are_stored_as_they_are():
    images = torch.randn(3, 3, 4, 4)
    content = packed_tensors(images, [0, 1, 1], 2)
    assert len(content) == 8 + 24 + 24 + 3 * 4 + images.numel() * 4
    assert np.array_equal(np.frombuffer(content, "<f4", offset=8 + 24 + 24 + 12), images.flatten().numpy())


@pytest.mark.parametrize(("command", "said"), [
    (["export", "{plan}", "--to", "onnx", "--out", "{out}"], "unknown runtime"),
    (["prepare-data", "{out}/nothing", "--resolution", "16", "--out", "{out}"], "subfolder"),
    (["import-weights", "{out}", "{plan}", "--out", "{out}/x"], "not an exported folder"),
])  # fmt: skip
def test_errors_say_what_is_wrong(command, said, tmp_path):
    filled = [word.format(plan=tmp_path / "plan.json", out=tmp_path / "out") for word in command]
    result = CliRunner().invoke(app, filled)
    assert result.exit_code != 0
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()


def space(**given) -> dict:
    """Return the axes that matter for a runtime."""
    return {"accounting": "lean", "frozen_dtype": ["float32"], "schedules": None, **given}


def recommended(*options: str) -> dict:
    """Return the plain values of a recommendation for the small network."""
    result = CliRunner().invoke(
        app, ["recommend", f"{MODEL}:make", "--resolution", "32", "--batch", "4", "--json", *options]
    )
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout)


def test_a_budget_is_of_the_whole_native_process():
    """Arena, state, weights and calls take what is left of 9.6 MB beside the runtime."""
    found = recommended("--ram", "9.6MB", "--runtime", "executorch")
    process = found["process"]
    assert process["floor"]["bytes"] == EXECUTORCH_RUNTIME_BYTES and process["floor"]["what"] == "the runtime"
    assert found["held_against"] == "process" and process["bytes"] <= 9_600_000
    assert found["chosen"]["accounting"] == "executorch"
    assert found["chosen"]["peak_bytes"] == process["step_bytes"]
    assert found["chosen"]["segments"]  # without a schedule less would train
    plain = recommended("--ram", "9.6MB", "--runtime", "executorch", "--schedules", "none")
    assert found["chosen"]["recovery"]["value"] > plain["chosen"]["recovery"]["value"]


def test_the_runtime_alone_may_be_more_than_a_budget():
    result = CliRunner().invoke(app, ["recommend", f"{MODEL}:make", "--ram", "1MB", "--runtime", "executorch"])
    assert "--ram is 1.00 MB, and the process takes 9.00 MB before any step" in str(result.exception)


@pytest.mark.parametrize(("given", "allocator", "named"), [
    ({"accounting": "eager"}, "arena", "--accounting eager"),
    ({}, "tight", "--allocator tight"),
    ({"frozen_dtype": ["float32", "int8"]}, "arena", "--frozen-dtype int8"),
    ({"schedules": ["cache"]}, "arena", "cache"),
])  # fmt: skip
def test_what_an_exported_step_does_not_have_is_refused(given, allocator, named):
    with pytest.raises(InputError, match=named):
        without_python(space(**given), None, allocator)


def test_a_native_runtime_leaves_more_of_a_device_and_bare_metal_is_told(capsys):
    pi, axes = device("raspberry-pi-zero-2w"), space()
    native = without_python(axes, pi, "arena")
    assert axes["accounting"] == "executorch"
    assert native.training_ram_bytes == pi.training_ram_bytes + pi.process.bytes - EXECUTORCH_RUNTIME_BYTES
    assert "ExecuTorch" in native.explain() and not capsys.readouterr().err
    axes = space()
    assert without_python(axes, device("stm32h743"), "arena") == device("stm32h743")
    assert axes["accounting"] == "executorch-flash"
    assert "in principle" in capsys.readouterr().err


def test_a_microcontroller_reads_frozen_weights_from_flash():
    """Its flash is a limit, too; what does not train takes none of its RAM."""
    found = recommended("--device", "stm32h743", "--method", "last")
    chosen = found["chosen"]
    assert (
        chosen["accounting"] == "executorch-flash"
        and chosen["memory_bytes"]["weights"] == 4 * chosen["trained_parameters"]
    )
    assert found["limits"]["flash"] == device("stm32h743").flash.bytes
    with pytest.raises(AssertionError, match=r"nothing keeps flash 1\.00 kB"):
        recommended("--device", "stm32h743", "--flash", "1kB")


BOARD = """
name = "A board with 64 MB"
processor = "CPU"
runtime = "executorch"
ram = {bytes = "64 MB", source = "Source: its data sheet"}
system = {bytes = "30 MB", source = "Assumption: a small Linux"}
process = {bytes = "9 MB", source = "Assumption: as on x86-64"}
peak = {flops_per_second = 1e9, source = "Assumption: one core"}
bandwidth = {bytes_per_second = 1e9, source = "Assumption: one core"}
"""


def test_a_board_that_cannot_hold_python_gets_an_answer(tmp_path):
    """64 - 30 = 34 MB are left for the process; no option need name the runtime."""
    (tmp_path / "board.toml").write_text(BOARD)
    found = recommended("--device", str(tmp_path / "board.toml"))
    assert found["chosen"]["accounting"] == "executorch" and found["process"]["bytes"] <= 34_000_000


def _run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_plan_to_a_network_that_the_runner_trained(photos, tmp_path):
    executorch = pytest.importorskip("executorch", reason="needs: pip install 'finetune-planner[executorch]'")
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("needs CMake and a C++ compiler")
    plan, out, state, weights = (tmp_path / name for name in ("plan.json", "out", "state", "weights.pt"))
    for command in (
        ["recommend", f"{MODEL}:make", "--ram", "64MB", "--runtime", "executorch", "--classes", str(CLASSES),
         "--resolution", str(SIDE), "--batch", "4", "--method", "full", "--norm-statistics", "own",
         "--save", str(plan)],
        ["export", str(plan), "--weights", "random", "--out", str(out)],
        ["prepare-data", str(photos), "--resolution", str(SIDE), "--out", str(tmp_path / "data")],
    ):  # fmt: skip
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output + str(result.exception)
    prefix = next(iter(executorch.__path__))
    _run("cmake", "-S", out, "-B", out / "build", f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Debug")
    _run("cmake", "--build", out / "build")
    runner, program = out / "build" / "runner", out / "program.pte"
    trained = _run(runner, "train", program, tmp_path / "data/train.bin", "--epochs", 6, "--lr", 0.05, "--save", state)
    losses = [float(line.split()[3]) for line in trained.splitlines() if line.startswith("epoch")]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert "accuracy 100.00 % of 8" in _run(runner, "test", program, tmp_path / "data/test.bin", "--state", state)
    result = CliRunner().invoke(app, ["import-weights", str(out), str(state), "--out", str(weights)])
    assert result.exit_code == 0 and "after 48 steps" in result.output  # 6 epochs of 32 / 4
    assert torch.load(weights, weights_only=True).keys() == torch.load(out / "weights.pt", weights_only=True).keys()
    again = subprocess.run([runner, "test", program, out / "program.pte"], capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "no data file" in again.stderr
