"""From a plan to a trained network on the native runner, by the commands that the documentation shows."""

from __future__ import annotations

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


def test_a_runtime_takes_its_part_of_the_budget():
    space = {"accounting": "lean"}
    assert without_python(space, None, 64_000_000) == (None, 64_000_000 - EXECUTORCH_RUNTIME_BYTES)
    assert space == {"accounting": "executorch"}
    with pytest.raises(InputError, match="less than the runtime takes by itself"):
        without_python(space, None, 1_000_000)
    with pytest.raises(InputError, match="its own accounting"):
        without_python({"accounting": "eager"}, None, None)


def test_a_native_runtime_leaves_more_of_a_device_and_bare_metal_is_told(capsys):
    pi = device("raspberry-pi-zero-2w")
    native, _ = without_python({"accounting": "lean"}, pi, None)
    assert native.training_ram_bytes == pi.training_ram_bytes + pi.process.bytes - EXECUTORCH_RUNTIME_BYTES
    assert "ExecuTorch" in native.explain() and not capsys.readouterr().err
    micro, _ = without_python({"accounting": "lean"}, device("stm32h743"), None)
    assert micro == device("stm32h743")
    assert "in principle" in capsys.readouterr().err


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
