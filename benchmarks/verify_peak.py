"""Peak memory of a training step: what `eager` predicts, next to the profiler's memory events on this CPU.

    python benchmarks/verify_peak.py --date 2026-11-20 --machine '2-core x86-64 virtual machine' [--resume]

The twelve inverted-residual networks by full, last, norm, bias and blocks 1, 3, 5 (plain SGD), and MobileNetV3-Small
by other loops: momentum, Adam, their first step, two micro-batches, updates inside backward. Batch 8, 224 x 224. The
peak is that of the second step (of the first for `first step`), above what is allocated when the step begins: weights,
buffers, the images, the optimizer's state. Goal: within 0.5 %.

Writes benchmarks/results/verify_peak.csv (a row per configuration, as they come; --resume skips those that are there)
and verify_peak.md. Exit code 1 if a prediction is off by more than the goal. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import gc
import re
import sys
import time

import torch
from verifying import RESULTS, TWELVE, Rows, arguments, build, settings, versions

from costmodel import footprint
from costmodel.checking.measuring import loss_of, peak_bytes, prepare
from costmodel.tracing.tracer import trace

GOAL = 0.005
BATCH = 8
RESOLUTION = 224
OTHER_LOOPS = "torchvision:mobilenet_v3_small"
# name -> options of the footprint; what the real loop does follows from them
LOOPS = {
    "momentum": {"optimizer": "momentum"},
    "adam": {"optimizer": "adam"},
    "adam, first step": {"optimizer": "adam", "first_step": True},
    "momentum, first step": {"optimizer": "momentum", "first_step": True},
    "two micro-batches": {"micro_batch": BATCH // 2},
    "update inside backward": {"inplace_update": True},
    "adam inside backward": {"optimizer": "adam", "inplace_update": True},
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 1e-6),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 1e-6, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, 1e-6),
}
COLUMNS = (
    "model", "method", "blocks", "loop", "predicted_bytes", "measured_bytes", "difference_bytes",
    "difference_percent", "without_kernels_bytes", "phase", "layer",
)  # fmt: skip


def measured_peak(network: torch.nn.Module, images: torch.Tensor, micro_batches: int, options: dict) -> int:
    """Return the peak of a real step in the loop that the options mean."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    make = OPTIMIZERS[options.get("optimizer", "sgd")]
    hooks = []
    if options.get("inplace_update"):
        for parameter in trained:
            own = make([parameter])

            def update(parameter: torch.Tensor, own=own) -> None:
                own.step()
                own.zero_grad()

            hooks.append(parameter.register_post_accumulate_grad_hook(update))
    together = make(trained)

    def step() -> None:
        for _ in range(micro_batches):
            loss_of(network(images)).backward()
        if not hooks:
            together.step()
            together.zero_grad()

    if not options.get("first_step"):
        step()
    peak = peak_bytes(step)
    for hook in hooks:
        hook.remove()
    network.zero_grad()
    return peak


def verify(model: str, rows: Rows) -> None:
    """Add the rows of one network that are not there yet."""
    graph, network = trace(model, RESOLUTION), None
    wanted = [(method, depth, "sgd", {}) for method, depth in settings(graph)]
    if model == OTHER_LOOPS:
        wanted += [("full", None, loop, options) for loop, options in LOOPS.items()]
    for method, depth, loop, options in wanted:
        row = {"model": model, "method": method, "blocks": depth, "loop": loop}
        if row in rows:
            continue
        network = network or build(model)
        start = time.perf_counter()
        predicted = footprint(graph, method, depth, BATCH, accounting="eager", **options)
        least = footprint(graph, method, depth, BATCH, accounting="eager", kernels="none", **options)
        before = predicted.moments[0].total_bytes
        prepare(network, predicted.graph, predicted.assignment)
        images = torch.randn(predicted.micro_batch, *graph.input.shape[1:])
        measured = measured_peak(network, images, BATCH // predicted.micro_batch, options)
        difference = predicted.peak_bytes - before - measured
        row |= {
            "predicted_bytes": predicted.peak_bytes - before, "measured_bytes": measured,
            "difference_bytes": difference, "difference_percent": f"{100 * difference / measured:.4f}",
            "without_kernels_bytes": least.peak_bytes - before, "phase": predicted.peak.phase,
            "layer": predicted.peak.layer,
        }  # fmt: skip
        rows.add(row)
        print(f"{model:34} {method:6} {depth or '':2} {loop:24} {row['difference_percent']:>8} %  "
              f"{time.perf_counter() - start:5.1f} s", flush=True)  # fmt: skip


def _percent(row: dict[str, str]) -> float:
    return float(row["difference_percent"])


def report(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the summary."""
    plain = [row for row in rows if row["loop"] == "sgd"]
    worst = max(plain, key=lambda row: abs(_percent(row)))
    few = sum(abs(int(row["difference_bytes"])) <= 64 for row in plain)
    columns = list(dict.fromkeys((row["method"], row["blocks"]) for row in plain))
    lines = [
        "# Peak of a training step: `eager` predicted, and measured",
        "",
        f"{date}; {versions()}; {machine}. Batch {BATCH}, {RESOLUTION} x {RESOLUTION}, train mode. Written by "
        "`python benchmarks/verify_peak.py`; bytes stand in `verify_peak.csv`. Another version or processor (64-bit "
        "Arm, for one) is unverified until somebody runs the script there.",
        "",
        f"{len(plain)} configurations of {len({row['model'] for row in plain})} networks: the largest difference is "
        f"{_percent(worst):+.3f} % ({worst['model']}, {worst['method']} {worst['blocks']}).".replace(" )", ")"),
        f"In {few} of them it is at most 64 bytes.",
        "",
        "(predicted - measured) / measured, in percent:",
        "",
        "| network | " + " | ".join(f"{method} {blocks}".strip() for method, blocks in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for model in dict.fromkeys(row["model"] for row in plain):
        cells = {(row["method"], row["blocks"]): f"{_percent(row):+.3f}" for row in plain if row["model"] == model}
        lines.append(f"| {model} | " + " | ".join(cells.get(column, "") for column in columns) + " |")
    lines += [
        "", f"## Other loops: {OTHER_LOOPS}, full", "",
        "| loop | predicted bytes | measured bytes | difference | % |", "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {row['loop']} | {int(row['predicted_bytes']):,} | {int(row['measured_bytes']):,} | "
        f"{int(row['difference_bytes']):+,} | {_percent(row):+.4f} |"
        for row in rows if row["model"] == OTHER_LOOPS and row["method"] == "full"
    ]  # fmt: skip
    lines += ["", "## What the kernels need", "",
              "The share of the measured peak that is oneDNN's copies (`kernels=\"onednn\"` less `\"none\"`): "
              + _kernel_shares(plain) + ".", ""]  # fmt: skip
    lines += ["## What remains", "", *REMAINDER]
    return "\n".join(lines) + "\n"


def _kernel_shares(rows: list[dict[str, str]]) -> str:
    shares: dict[str, list[float]] = {}
    for row in rows:
        name = f"{row['method']} {row['blocks']}".strip()
        extra = int(row["predicted_bytes"]) - int(row["without_kernels_bytes"])
        shares.setdefault(name, []).append(100 * extra / int(row["measured_bytes"]))
    return ", ".join(f"{name} {min(each):.0f} to {max(each):.0f} %" for name, each in shares.items())


REMAINDER = (
    "Outside the model, because no layer's shape tells:",
    "",
    "- 8 to 64 bytes: scalars, such as the number that the loss is divided by.",
    "- The bias's own copy where a convolution's bias trains: a number per channel.",
    "- Adam inside backward: which of two gradients of one layer comes first. The model lets both be there at once.",
    "- Scratchpads of oneDNN's weight gradients: kilobytes, for a dense convolution of 5 x 5 on maps of a few pixels "
    "eight times its weights (1.0 % for FBNet-C with TinyTL's lite residuals at 160 x 160, batch 4).",
    "- With one thread PyTorch computes pointwise convolutions of fewer than 16 images with kernels of its own: "
    '`Kernels("onednn", 1)`, tested in tests/costmodel/accounting/test_kernels.py.',
)


def main() -> None:
    """Verify everything and write both tables."""
    given = arguments(__doc__)
    rows = Rows(RESULTS / "verify_peak.csv", COLUMNS, ("model", "method", "blocks", "loop"), given.resume)
    for model in TWELVE:
        if re.search(given.only, model):
            verify(model, rows)
            gc.collect()
    text = report(rows.rows, given.date, given.machine)
    (RESULTS / "verify_peak.md").write_text(text)
    sys.exit(any(abs(_percent(row)) > 100 * GOAL for row in rows.rows))


if __name__ == "__main__":
    main()
