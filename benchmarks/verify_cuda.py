"""Peak memory of a training step on a GPU: predicted, next to what CUDA's allocator gave out.

    python benchmarks/verify_cuda.py --date 2026-11-20 [--resume]

The twelve inverted-residual networks by full, last, norm, bias and blocks 1, 3, 5; batch 32, 224 x 224, plain SGD.
Predicted: the `eager` books, kernels' working memory left out. Measured: the second step's
`torch.cuda.max_memory_allocated`, above what is allocated when it begins; cuDNN's workspaces are in it. Each algorithm
is the default one (`torch.backends.cudnn.benchmark` is off). Goal: within 1 %, workspaces apart; what CUDA keeps
otherwise than a CPU (dropout masks of one byte, the allocator's blocks of 512 bytes) is smaller than that.

Writes benchmarks/results/verify_cuda.csv and verify_cuda.md. On a machine without a GPU it says so and does nothing.
Exit code 1 if a prediction is above the measured peak by more than the goal, which no workspace explains.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys

import torch
from verifying import RESULTS, TWELVE, Rows, build, settings, versions

from costmodel import footprint
from costmodel.checking.measuring import loss_of, peak_bytes, prepare, saved_bytes
from costmodel.tracing.tracer import trace

GOAL = 0.01
BATCH = 32
RESOLUTION = 224
COLUMNS = (
    "model", "method", "blocks", "predicted_saved_bytes", "measured_saved_bytes", "predicted_bytes", "measured_bytes",
    "difference_percent",
)  # fmt: skip


def verify(model: str, rows: Rows) -> None:
    """Add the rows of one network that are not there yet."""
    graph = trace(model, RESOLUTION)
    wanted = [row for row in ({"model": model, "method": method, "blocks": depth} for method, depth in settings(graph))
              if row not in rows]  # fmt: skip
    if not wanted:
        return
    network = build(model).to("cuda")
    images = torch.randn(BATCH, *graph.input.shape[1:], device="cuda")
    for row in wanted:
        predicted = footprint(graph, row["method"], row["blocks"], BATCH, accounting="eager", kernels="none")
        prepare(network, predicted.graph, predicted.assignment)
        update = torch.optim.SGD([parameter for parameter in network.parameters() if parameter.requires_grad], 1e-6)

        def step(update=update) -> None:
            loss_of(network(images)).backward()
            update.step()
            update.zero_grad()

        step()
        measured = peak_bytes(step, "cuda")
        above = predicted.peak_bytes - predicted.moments[0].total_bytes
        row |= {
            "predicted_saved_bytes": predicted.saved_bytes, "measured_saved_bytes": saved_bytes(network, images),
            "predicted_bytes": above, "measured_bytes": measured,
            "difference_percent": f"{100 * (above - measured) / measured:.3f}",
        }  # fmt: skip
        rows.add(row)
        print(f"{model:34} {row['method']:6} {row['blocks'] or '':2} {row['difference_percent']:>8} %", flush=True)


def report(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the summary."""
    percents = [float(row["difference_percent"]) for row in rows]
    within = sum(abs(percent) <= 100 * GOAL for percent in percents)
    lines = [
        "# Peak of a training step on a GPU: `eager` predicted, and allocated",
        "",
        f"{date}; {versions()}; {machine}; CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}. Batch "
        f"{BATCH}, {RESOLUTION} x {RESOLUTION}. Written by `python benchmarks/verify_cuda.py`.",
        "",
        f"{within} of {len(rows)} within {GOAL:.0%}; "
        f"differences from {min(percents):+.2f} % to {max(percents):+.2f} %. "
        "Negative: more was allocated than predicted, cuDNN's workspaces included.",
        "",
        "| network | method | predicted bytes | allocated bytes | % | saved bytes, predicted - measured |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['method']} {row['blocks']} | {int(row['predicted_bytes']):,} | "
        f"{int(row['measured_bytes']):,} | {float(row['difference_percent']):+.2f} | "
        f"{int(row['predicted_saved_bytes']) - int(row['measured_saved_bytes']):+,} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Verify everything and write both tables, or say that there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True, help="the day of the run")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there, measure the rest")
    parser.add_argument("--only", default="", help="a regular expression: these models only")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device on this machine: nothing was measured or written")
        return
    rows = Rows(RESULTS / "verify_cuda.csv", COLUMNS, ("model", "method", "blocks"), given.resume)
    for model in TWELVE:
        if re.search(given.only, model):
            verify(model, rows)
            gc.collect()
            torch.cuda.empty_cache()
    (RESULTS / "verify_cuda.md").write_text(report(rows.rows, given.date, torch.cuda.get_device_name()))
    sys.exit(any(float(row["difference_percent"]) > 100 * GOAL for row in rows.rows))


if __name__ == "__main__":
    main()
