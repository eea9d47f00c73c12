"""Plans as programs of ExecuTorch: do they train as PyTorch does, natively, in the memory that is predicted?

    python benchmarks/export_executorch.py --date 2026-11-21 --machine '2-core x86-64 virtual machine'

For each row: the step is exported, and compared with PyTorch over ten steps (losses, weights, statistics); the C++
runner is built once and trains the same ten batches in a process of its own; its weights are imported and compared, its
resident memory is what the system says. Predicted of it: arenas + program + one batch in the runner + the runtime
(`EXECUTORCH_RUNTIME_BYTES`). Needs the extra `executorch`, CMake and a C++ compiler.
Writes results/export_executorch.csv row by row (a rerun goes on) and results/export_executorch.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import executorch
import torch
from verifying import RESULTS, versions

from costmodel import EXECUTORCH_RUNTIME_BYTES, Way, apply, build, export_step, footprint, import_state, trace, way
from costmodel.step.simulation import CATEGORIES
from costmodel.training.optimizers import make_optimizer
from planner.campaign.exporting import packed_tensors

RESOLUTION, BATCH, CLASSES, STEPS, RATE = 96, 8, 10, 10, 0.01
V2 = "torchvision:mobilenet_v2"
ROWS: tuple[tuple[str, Way, str, str], ...] = (
    ("zoo:mcunet_5fps", way("mobiletl", 3), "sgd", "none"),
    ("torchvision:mobilenet_v3_small", way("mobiletl", 3), "sgd", "none"),
    (V2, way("last"), "sgd", "none"),
    (V2, way("last"), "sgd", "xnnpack"),
    (V2, way("mobiletl", 3), "sgd", "none"),
    (V2, way("mobiletl", 3), "sgd", "xnnpack"),
    (V2, way("bias"), "sgd", "none"),
    (V2, way("blocks", 3), "sgd", "none"),
    (V2, way("mobiletl", 5), "momentum", "none"),
    (V2, way("full"), "sgd", "none"),
    ("zoo:proxylessnas_mobile_w03", way("mobiletl", 3), "adam", "none"),
    ("zoo:proxylessnas_mobile_tinytl", way("tinytl-lb"), "sgd", "none"),
)
COLUMNS = (
    "network", "way", "optimizer", "delegate", "predicted_arena_bytes", "arena_bytes", "state_bytes", "program_bytes",
    "loss_difference", "weight_difference", "rounding", "imported_difference", "resident_bytes",
    "predicted_resident_bytes", "step_seconds", "torch_step_seconds", "export_seconds",
)  # fmt: skip
ARENA = [CATEGORIES.index(name) for name in ("input", "saved_activations", "transient")]


def build_runner(folder: Path) -> Path:
    """Build the runner of an exported folder."""
    prefix = Path(next(iter(executorch.__path__)))
    for command in (
        ["cmake", "-S", str(folder), "-B", str(folder / "build"), f"-DCMAKE_PREFIX_PATH={prefix}", "-DXNNPACK=ON"],
        ["cmake", "--build", str(folder / "build")],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return folder / "build" / "runner"


def native(runner: Path, folder: Path, images: torch.Tensor, labels: torch.Tensor) -> tuple[int, float]:
    """Train on the images in a process of the runner; return its peak resident bytes and the seconds of a step."""
    (folder / "data.bin").write_bytes(packed_tensors(images, labels.tolist(), CLASSES))
    options = ["--lr", str(RATE), "--constant-lr", "--in-order", "--save", str(folder / "trained.state")]
    done = subprocess.run(
        [runner, "train", folder / "program.pte", folder / "data.bin", *options],
        check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    resident = re.search(r"peak resident (\d+) kB", done.stdout)
    seconds = re.search(r"seconds per step ([\d.]+)", done.stdout)
    assert resident and seconds, done.stdout
    return 1024 * int(resident[1]), float(seconds[1])


def measure(model: str, one: Way, optimizer: str, delegate: str, runner: Path | None, folder: Path) -> dict:
    """Return a row; build the runner in `folder` if there is none yet."""
    torch.manual_seed(0)
    network = build(model, CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after a training
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    network = apply(network, one, resolution=RESOLUTION)
    start = time.perf_counter()
    rate = 0.001 if optimizer.startswith("adam") else RATE
    export = export_step(
        network, optimizer, BATCH, RESOLUTION, delegate=delegate, learning_rate=rate, check_steps=STEPS
    )
    seconds = time.perf_counter() - start
    export.write(folder)
    runner = runner or build_runner(folder)

    source = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS * BATCH, 3, RESOLUTION, RESOLUTION, generator=source)
    labels = torch.randint(CLASSES, (STEPS * BATCH,), generator=source)
    resident, step_seconds = native(runner, folder, images, labels)
    imported, _ = import_state(folder, folder / "trained.state")
    network.train()
    update = make_optimizer(optimizer, network, RATE)
    times = []
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        begin = time.perf_counter()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        update.step()
        update.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - begin)
    own = network.state_dict()
    apart = max(
        float((imported[name] - value).abs().max() / max(1.0, float(value.abs().max())))
        for name, value in own.items() if value.is_floating_point()
    )  # fmt: skip
    check, program = export.check, export.program
    assert check is not None
    graph = trace(model, RESOLUTION, CLASSES)
    predicted = footprint(graph, one.method, one.blocks, BATCH, optimizer, "executorch")
    arena = max(sum(moment.by_category[place] for place in ARENA) for moment in predicted.moments)
    data_bytes = images.nbytes + labels.nbytes
    counted = program.arena_bytes["step"] + program.state_bytes + len(program.content)
    return {
        "network": model, "way": one.label, "optimizer": optimizer, "delegate": delegate,
        "predicted_arena_bytes": arena, "arena_bytes": program.arena_bytes["step"],
        "state_bytes": program.state_bytes, "program_bytes": len(program.content),
        "loss_difference": check.loss_difference, "weight_difference": check.weight_difference,
        "rounding": check.rounding, "imported_difference": apart, "resident_bytes": resident,
        "predicted_resident_bytes": counted + images.nbytes // STEPS + data_bytes + EXECUTORCH_RUNTIME_BYTES,
        "step_seconds": step_seconds, "torch_step_seconds": sorted(times)[len(times) // 2], "export_seconds": seconds,
    }  # fmt: skip


def table(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Plans as programs of ExecuTorch",
        "",
        f"{date}; {versions()}, executorch {version('executorch')}; {machine}. {RESOLUTION} x {RESOLUTION}, batch "
        f"{BATCH}, {CLASSES} classes, {STEPS} steps of random images, learning rate {RATE} (of Adam a tenth in the "
        "check). Written by `python benchmarks/export_executorch.py`. Weights: the largest difference as a share of a "
        "tensor's largest value; `imported` are those that the C++ runner trained. Times were taken on a machine that "
        "did other work.",
        "",
        "| network | way | optimizer | delegate | arena, predicted | arena | off | state | program | losses differ by "
        "| weights | imported | resident | predicted | step | PyTorch's |",
        "|---" * 16 + "|",
    ]
    for row in rows:
        arena, predicted = int(row["arena_bytes"]), int(row["predicted_arena_bytes"])
        cells = [
            row["network"], row["way"], row["optimizer"], row["delegate"], f"{predicted:,}", f"{arena:,}",
            f"{100 * (predicted / arena - 1):+.1f} %", f"{int(row['state_bytes']):,}", f"{int(row['program_bytes']):,}",
            f"{float(row['loss_difference']):.1e}", f"{float(row['weight_difference']):.1e}",
            f"{float(row['imported_difference']):.1e}", f"{int(row['resident_bytes']) / 1e6:.1f} MB",
            f"{int(row['predicted_resident_bytes']) / 1e6:.1f} MB", f"{float(row['step_seconds']):.3f} s",
            f"{float(row['torch_step_seconds']):.3f} s",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    given = parser.parse_args()
    path = RESULTS / "export_executorch.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    done = {(row["network"], row["way"], row["optimizer"], row["delegate"]) for row in rows}
    with tempfile.TemporaryDirectory() as temporary:
        runner = None
        for number, (model, one, optimizer, delegate) in enumerate(ROWS):
            if (model, one.label, optimizer, delegate) in done:
                continue
            folder = Path(temporary, str(number))
            row = measure(model, one, optimizer, delegate, runner, folder)
            runner = runner or folder / "build" / "runner"
            rows.append({name: str(value) for name, value in row.items()})
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            (RESULTS / "export_executorch.md").write_text(table(rows, given.date, given.machine))
            print(row, flush=True)


if __name__ == "__main__":
    main()
