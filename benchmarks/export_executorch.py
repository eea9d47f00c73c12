"""Plans as programs of ExecuTorch: do they train as PyTorch does, natively, in the memory that is predicted?

    python benchmarks/export_executorch.py --date 2026-11-22 --machine '2-core x86-64 virtual machine' [--resume]

For each row, a way and a schedule: the step is exported, which compares it with PyTorch's one step at a time. Then both
train ten steps from one start, each on its own: how far losses and weights drift apart, and, where that is more than
1e-4, how far PyTorch in single precision drifts from itself in double. The C++ runner is built with and without XNNPACK
and trains the same batches in a process of its own; its weights are imported and compared, its resident memory is what
the system says. It trains again in a memory cgroup whose hard limit is the predicted memory of the process.

Predicted, from the traced network alone: the arena by the accounting `executorch`, and the process: arena, state,
weights, and the images, which are mapped; with XNNPACK what the export measured in a process of its own. Needs the
extra `executorch`, CMake and a C++ compiler.
Writes results/export_executorch.csv row by row and results/export_executorch.md.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import executorch
import torch
from hard_limit import can_limit, cgroup
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from verifying import RESULTS, Rows, arguments, versions

from costmodel import (
    EXECUTORCH_RUNTIME_BYTES,
    Schedule,
    Step,
    Way,
    apply,
    best_schedule,
    build,
    export_step,
    footprint,
    import_state,
    trace,
    way,
)
from costmodel.export.forms import Forms
from costmodel.export.running import Running
from costmodel.training.optimizers import make_optimizer
from planner.campaign.exporting import packed_tensors

RESOLUTION, BATCH, CLASSES, STEPS = 96, 8, 10, 10
# Of untrained weights: at 0.01 PyTorch's own losses in single and double precision are 2e-3 apart after ten steps
# (MobileNetV2, mobiletl 3), at 0.001 less than 4e-5.
RATE = 0.001
V2, V3, MCUNET = "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "zoo:mcunet_5fps"
# How a step is carried out: as one pass, the frozen prefix two images at a time, in passes of 4 images, or by the
# schedule that takes least memory in 1.33 times the FLOPs.
PLAIN, PIECES, PASSES, BEST = "plain", "prefix 2", "micro-batch 4", "best 1.33"
SCHEDULES = {PLAIN: Schedule(), PIECES: Schedule(prefix_batch=2), PASSES: Schedule(micro_batch=4)}
ROWS: tuple[tuple[str, Way, str, str, str], ...] = (
    (MCUNET, way("mobiletl", 3), PLAIN, "sgd", "none"),
    (V2, way("mobiletl", 3), PLAIN, "sgd", "none"),
    (V2, way("mobiletl", 3), PLAIN, "sgd", "xnnpack"),
    (V2, way("last"), PLAIN, "sgd", "xnnpack"),
    (MCUNET, way("full"), BEST, "sgd", "none"),
    (V3, way("mobiletl", 3), PLAIN, "sgd", "none"),
    ("zoo:proxylessnas_mobile_w03", way("mobiletl", 3), PLAIN, "adam", "none"),
    (V2, way("bias"), PLAIN, "sgd", "none"),
    (MCUNET, way("blocks", 3), PIECES, "momentum", "none"),
    (V2, way("blocks", 3), PLAIN, "sgd", "none"),
    ("zoo:proxylessnas_mobile_tinytl", way("tinytl-lb"), PLAIN, "sgd", "none"),
    (V2, way("last"), PLAIN, "sgd", "none"),
    (V3, way("blocks", 3), BEST, "momentum", "none"),
    (V2, way("full"), PLAIN, "sgd", "none"),
    (V2, way("mobiletl", 5), PLAIN, "momentum", "none"),
    (MCUNET, way("bias"), PASSES, "sgd", "none"),
    (V2, way("mobiletl", 3), PIECES, "sgd", "none"),
    (V2, way("full"), BEST, "sgd", "none"),
)
COLUMNS = (
    "network", "way", "schedule", "optimizer", "delegate", "arena_bytes",
    "state_bytes", "program_bytes", "steps", "loss_difference", "weight_difference", "rounding", "imported_difference",
    "process_bytes", "resident_bytes", "survives_prediction", "step_seconds",
    "portable_step_seconds", "torch_step_seconds", "export_seconds",
)  # fmt: skip
KEY = COLUMNS[:5]
SAID = {"True": "yes", "False": "no"}
BATCH_BYTES = BATCH * 4 * 3 * RESOLUTION**2  # of images
LIMITED_STEPS = 3  # under a hard limit, where the system may read pages of the program's file again in every step


def step_of(model: str, one: Way, schedule: str, optimizer: str) -> Step:
    """Return a row's step, priced by the books of the runtime."""
    graph = trace(model, RESOLUTION, CLASSES)
    found = SCHEDULES.get(schedule) or best_schedule(Step(graph, one, BATCH, optimizer=optimizer), most_flops=1.33)
    return Step(graph, one, BATCH, found, optimizer=optimizer, accounting="executorch")


def build_runner(folder: Path, out: Path, delegate: str) -> Path:
    """Build the runner of an exported folder, unless it is there."""
    prefix, on = Path(next(iter(executorch.__path__))), "ON" if delegate == "xnnpack" else "OFF"
    if not (out / "runner").exists():
        for command in (
            ["cmake", "-S", str(folder), "-B", str(out), f"-DCMAKE_PREFIX_PATH={prefix}", f"-DXNNPACK={on}"],
            ["cmake", "--build", str(out)],
        ):
            subprocess.run(command, check=True, capture_output=True)
    return out / "runner"


def native(runner: Path, folder: Path, data: Path, *further: str, limit: int | None = None) -> tuple[int, float] | None:
    """Train in a process of the runner; return its peak resident bytes and the seconds of a step; None if killed."""
    group = cgroup(limit)

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    options = ["--lr", str(RATE), "--constant-lr", "--in-order", "--save", str(folder / "trained.state")]
    try:
        done = subprocess.run(
            [runner, "train", folder / "program.pte", data, *options, *further],
            capture_output=True, text=True, preexec_fn=enter, check=False,
        )  # fmt: skip
    finally:
        if group is not None:
            group.rmdir()
    if done.returncode == -9:
        return None
    resident = re.search(r"peak resident (\d+) kB", done.stdout)
    seconds = re.search(r"seconds per step ([\d.]+)", done.stdout)
    assert resident and seconds, done.stdout + done.stderr
    return 1024 * int(resident[1]), float(seconds[1])


def network_of(model: str) -> nn.Module:
    """Return an untrained network whose running statistics are those of random images, as a trained one's would be."""
    torch.manual_seed(0)
    network = build(model, CLASSES).train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the statistics are those of all images
    with torch.no_grad():
        network(torch.randn(4 * BATCH, 3, RESOLUTION, RESOLUTION))
    for norm, own in zip(norms, momentum, strict=True):
        norm.momentum = own
    return network


def train(
    network: nn.Module, images: Tensor, labels: Tensor, optimizer: str, size: int
) -> tuple[list[float], list[float]]:
    """Train with PyTorch, with the random numbers of the program; return the losses and the seconds of each step."""
    network.train()
    update, times, losses = make_optimizer(optimizer, network, RATE), [], []
    for number, (x, y) in enumerate(zip(images.split(BATCH), labels.split(BATCH), strict=True)):
        begin, loss = time.perf_counter(), torch.zeros(())
        torch.manual_seed(0)  # as when the step was recorded
        for some, own in zip(x.split(size), y.split(size), strict=True):
            with Forms(torch.tensor(number), random_only=True):
                part = nn.functional.cross_entropy(network(some), own) * (size / BATCH)
                torch.autograd.backward(get_gradient_edge(part))  # as in `costmodel.export.forms.gradients_of`
            loss = loss + part.detach()
        update.step()
        update.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - begin)
        losses.append(float(loss))
    return losses, times


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of weights and statistics, as a share of a tensor's largest value, or of 1."""
    both = [(value, other[name]) for name, value in one.items() if name in other and value.is_floating_point()]
    return max(float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in both)


def measure(model: str, one: Way, schedule: str, optimizer: str, delegate: str, folder: Path) -> dict:
    """Return a row."""
    network = network_of(model)
    step = step_of(model, one, schedule, optimizer)
    network = apply(network, one, resolution=RESOLUTION, schedule=step.schedule)
    start = time.perf_counter()
    export = export_step(
        network, optimizer, BATCH, RESOLUTION, delegate=delegate, learning_rate=RATE, check_steps=STEPS
    )
    seconds = time.perf_counter() - start
    export.write(folder)
    runner = build_runner(folder, folder.parent / f"build-{delegate}", delegate)

    source = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS * BATCH, 3, RESOLUTION, RESOLUTION, generator=source)
    labels = torch.randint(CLASSES, (STEPS * BATCH,), generator=source)
    files = {}
    for steps in (LIMITED_STEPS, STEPS):
        files[steps] = folder / f"{steps}.bin"
        files[steps].write_bytes(packed_tensors(images[: steps * BATCH], labels[: steps * BATCH].tolist(), CLASSES))
    survives = None
    if can_limit():
        limit = (export.process_bytes or predicted_bytes(step)) + LIMITED_STEPS * BATCH_BYTES
        survives = native(runner, folder, files[LIMITED_STEPS], limit=limit) is not None
    portable = native(runner, folder, files[LIMITED_STEPS], "--portable")
    found = native(runner, folder, files[STEPS])
    assert found is not None and portable is not None  # without a limit nothing is killed
    imported, _ = import_state(folder, folder / "trained.state")
    program, double = export.program, copy.deepcopy(network).double()
    running = Running(program.content, [name for name, *_ in program.state])
    batches = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    program_losses = [running.step(x, y, RATE)[0] for x, y in batches]
    losses, times = train(network, images, labels, optimizer, step.micro_batch)
    own, rounding = network.state_dict(), None
    weight_difference = apart(running.state(), own)
    if weight_difference > 1e-4:
        train(double, images.double(), labels, optimizer, step.micro_batch)
        rounding = apart({name: value.double() for name, value in own.items()}, double.state_dict())
    return {
        "network": model, "way": one.label, "schedule": schedule, "optimizer": optimizer, "delegate": delegate,
        "arena_bytes": program.arena_bytes["step"], "state_bytes": program.state_bytes,
        "program_bytes": len(program.content), "steps": STEPS,
        "loss_difference": max(abs(a - b) for a, b in zip(program_losses, losses, strict=True)),
        "weight_difference": weight_difference, "rounding": rounding, "imported_difference": apart(imported, own),
        "process_bytes": export.process_bytes, "resident_bytes": found[0], "survives_prediction": survives,
        "step_seconds": found[1], "portable_step_seconds": portable[1],
        "torch_step_seconds": sorted(times)[len(times) // 2], "export_seconds": seconds,
    }  # fmt: skip


def predicted_bytes(step: Step) -> int:
    """Return the predicted memory of the runner's process, without its images."""
    return footprint(step).peak_bytes + EXECUTORCH_RUNTIME_BYTES


def table(rows: Rows, date: str, machine: str) -> str:
    """Return the results as Markdown."""
    images = STEPS * BATCH_BYTES
    lines = [
        "# Plans as programs of ExecuTorch",
        "",
        f"{date}; {versions()}, executorch {version('executorch')}; {machine}. {RESOLUTION} x {RESOLUTION}, batch "
        f"{BATCH}, {CLASSES} classes, {STEPS} steps of random images, learning rate {RATE}. "
        "Written by `python benchmarks/export_executorch.py`. Weights: the largest difference as a share of a "
        "tensor's largest value; `imported` are those that the C++ runner trained. `survives`: "
        f"{LIMITED_STEPS} steps in a memory cgroup limited to the predicted memory of the process. `off` of the "
        f"process is a share of its memory without the images, {images / 1e6:.1f} MB. Before, every export was "
        "compared with PyTorch's one step at a time, each begun from PyTorch's state. Here both train on their own: in "
        "untrained networks that train in full, rounding grows tenfold from step to step. `rounding`: PyTorch's "
        "weights after ten steps in single beside those in double precision, where the program's differ by more than "
        "1e-4. Times of a step: the "
        "runner with its own convolutions, with those of the runtime (`--portable`), and PyTorch (eager, the same way "
        "and schedule), on one core of a machine that did other work on its other core. Of XNNPACK, whose "
        "packed weights and working memory lie outside the arena, the process is what the export measured.",
        "",
        "| network | way | schedule | optimizer | delegate | arena, predicted | arena | off | state | program "
        "| steps compared | losses differ by | weights | rounding | imported | resident, predicted | resident | off "
        "| survives | step | with portable kernels | PyTorch's |",
        "|---" * 22 + "|",
    ]
    known = {(model, one.label, *rest): (model, one, *rest) for model, one, *rest in ROWS}
    for row in rows.rows:
        model, one, schedule, optimizer, delegate = known[tuple(row[name] for name in KEY)]
        step = step_of(model, one, schedule, optimizer)
        arena, predicted = int(row["arena_bytes"]), footprint(step).arena_bytes
        resident, process = int(row["resident_bytes"]), int(row["process_bytes"] or predicted_bytes(step)) + images
        off = f"{100 * (predicted / arena - 1):+.2f} %" if delegate == "none" else "-"
        cells = [
            model, one.label, schedule, optimizer, delegate, f"{predicted:,}", f"{arena:,}",
            off, f"{int(row['state_bytes']):,}",
            f"{int(row['program_bytes']):,}", row["steps"], f"{float(row['loss_difference']):.1e}",
            f"{float(row['weight_difference']):.1e}", f"{float(row['rounding']):.1e}" if row["rounding"] else "",
            f"{float(row['imported_difference']):.1e}", f"{process / 1e6:.1f} MB", f"{resident / 1e6:.1f} MB",
            f"{100 * (process - resident) / (resident - images):+.1f} %", SAID.get(row["survives_prediction"], "-"),
            *(f"{float(row[name]):.3f} s" for name in ("step_seconds", "portable_step_seconds", "torch_step_seconds")),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = arguments(__doc__)
    rows = Rows(RESULTS / "export_executorch.csv", COLUMNS, KEY, options.resume)
    with tempfile.TemporaryDirectory() as temporary:
        for number, (model, one, *rest) in enumerate(ROWS):
            row = dict(zip(KEY, (model, one.label, *rest), strict=True))
            if row in rows or not re.search(options.only, " ".join(row.values())):
                continue
            rows.add(measure(model, one, *rest, Path(temporary, str(number))))
            print(rows.rows[-1], flush=True)
    (RESULTS / "export_executorch.md").write_text(table(rows, options.date, options.machine))


if __name__ == "__main__":
    main()
