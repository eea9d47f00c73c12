"""A real fine-tuning without Python, from start to end, against the same one in PyTorch.

    python benchmarks/export_digits.py --date 2026-11-22 --machine '2-core x86-64 virtual machine'

A small network of inverted residuals learns the handwritten digits 0 to 4 (scikit-learn's, 32 x 32) in PyTorch. Then it
is fine-tuned on 5 to 9 by the documented commands: `planner recommend --runtime executorch`, `export`, `prepare-data`;
the C++ runner trains and tests; `import-weights`. PyTorch trains the same network in the same way, from the same
weights, by the same recipe. Each seed is another order of the images; runner and PyTorch shuffle differently.
Writes results/export_digits.md. Needs the extra `executorch`, CMake, a C++ compiler and scikit-learn.
"""

from __future__ import annotations

import copy
import math
import re
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from digits_network import make
from export_executorch import build_runner
from PIL import Image
from torch import nn
from verifying import RESULTS, arguments, versions

RESOLUTION, BATCH, EPOCHS, RATE, SEEDS, CLASSES = 32, 8, 4, 0.02, 5, 5
WAY = ("mobiletl", 3)


def photos(folder: Path, digits: range) -> None:
    """Write images of some digits as a folder: by class, the first half to train with and the rest to test with."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for digit in digits:
        chosen = np.flatnonzero(data.target == digit)
        for place, number in enumerate(chosen):
            part = folder / ("train" if 2 * place < len(chosen) else "test") / str(digit)
            part.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((data.images[number] * 255 / 16).astype(np.uint8)).convert("RGB")
            image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BILINEAR).save(part / f"{number}.png")


def read(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images and labels of a file of `planner prepare-data`, as the runner reads them."""
    content = file.read_bytes()
    count, channels, height, width = np.frombuffer(content, "<u4", 4, 8).tolist()
    mean, deviation = np.frombuffer(content, "<f4", 6, 32).reshape(2, 1, 3, 1, 1)
    labels = np.frombuffer(content, "<i4", count, 56).astype(np.int64)
    pixels = np.frombuffer(content, np.uint8, offset=56 + 4 * count).reshape(count, channels, height, width)
    return torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / deviation), torch.from_numpy(labels)


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> None:
    """Train as the runner does: SGD, a learning rate that falls as a cosine, no batch that is not full."""
    source = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    steps, done = len(images) // BATCH, 0
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=source)
        for some in order[: steps * BATCH].split(BATCH):
            rate = RATE * 0.5 * (1 + math.cos(math.pi * done / (steps * epochs)))
            F.cross_entropy(network(images[some]), labels[some]).backward()
            with torch.no_grad():
                for parameter in trained:
                    parameter -= rate * parameter.grad
                    parameter.grad = None
            done += 1


def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return top-1 in percent."""
    with torch.no_grad():
        return 100 * float((network.eval()(images).argmax(1) == labels).float().mean())


def said(*command: object) -> str:
    """Run a command and return what it prints."""
    words = [sys.executable, "-m", "planner"] if command[0] == "planner" else [str(command[0])]
    done = subprocess.run([*words, *map(str, command[1:])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def main() -> None:
    from costmodel import apply, way

    given = arguments(__doc__)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, digits in (("before", range(5)), ("photos", range(5, 10))):
            photos(folder / name, digits)
            said("planner", "prepare-data", folder / name, "--resolution", RESOLUTION, "--out", folder / f"{name}.data")
        network = make().train()
        train(network, *read(folder / "before.data/train.bin"), epochs=6, seed=0)
        before = accuracy(network, *read(folder / "before.data/test.bin"))
        torch.save(network.state_dict(), folder / "weights.pt")

        plan, out = folder / "plan.json", folder / "device"
        model = f"{Path(__file__).resolve().with_name('digits_network.py')}:make"
        said("planner", "recommend", model, "--ram", "32MB", "--runtime", "executorch", "--classes", CLASSES,
             "--resolution", RESOLUTION, "--batch", BATCH, "--method", WAY[0], "--blocks", WAY[1],
             "--save", plan)  # fmt: skip
        said("planner", "export", plan, "--weights", folder / "weights.pt", "--out", out)
        runner = build_runner(out, folder / "build", "none")
        train_data, test_data = (folder / f"photos.data/{part}.bin" for part in ("train", "test"))
        start = make()
        start.load_state_dict(torch.load(out / "weights.pt", weights_only=True))
        untrained = accuracy(start, *read(test_data))
        rows, peak = [], ""
        for seed in range(SEEDS):
            state = folder / f"{seed}.state"
            told = said(runner, "train", out / "program.pte", train_data, "--epochs", EPOCHS, "--lr", RATE,
                        "--seed", seed, "--save", state)  # fmt: skip
            peak = re.findall(r"peak resident (\d+) kB", told)[0]
            tested = said(runner, "test", out / "program.pte", test_data, "--state", state)
            native = float(re.findall(r"accuracy ([\d.]+)", tested)[0])
            said("planner", "import-weights", out, state, "--out", folder / "trained.pt")
            imported = make()
            imported.load_state_dict(torch.load(folder / "trained.pt", weights_only=True))
            own = apply(copy.deepcopy(start), way(*WAY), resolution=RESOLUTION).train()
            train(own, *read(train_data), epochs=EPOCHS, seed=seed)
            rows.append((native, accuracy(imported, *read(test_data)), accuracy(own, *read(test_data))))
            print(rows[-1], flush=True)
    lines = [
        "# A fine-tuning without Python",
        "",
        f"{given.date}; {versions()}, executorch {version('executorch')}; {given.machine}. {RESOLUTION} x "
        f"{RESOLUTION}, batch {BATCH}, {EPOCHS} epochs, learning rate {RATE}, {WAY[0]} {WAY[1]}. Written by `python "
        f"benchmarks/export_digits.py`. The network knows the digits 0 to 4 ({before:.1f} %) and learns 5 to 9; before "
        f"that it has {untrained:.1f} %. Top-1 in percent on the other half of the digits. The runner's process took "
        f"at most {int(peak) / 1000:.1f} MB.",
        "",
        "| seed | the runner | its weights, imported, in PyTorch | trained by PyTorch |",
        "|---|---|---|---|",
        *(f"| {seed} | {native:.1f} | {back:.1f} | {own:.1f} |" for seed, (native, back, own) in enumerate(rows)),
        "| mean (deviation) | " + " | ".join(
            f"{statistics.mean(each):.1f} ({statistics.stdev(each):.1f})" for each in zip(*rows, strict=True)
        ) + " |",
    ]  # fmt: skip
    (RESULTS / "export_digits.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
