"""How long an answer takes: tracing against one plain forward pass on the meta device, and a second question.

    python benchmarks/speed.py --date 2026-11-20 --machine '2-core x86-64 virtual machine'

Both are timed in turn in one process, on one thread, so that what else the machine does hits both alike; the ratio is
the median of the rounds' own ratios. The plain forward pass is the same network, already built, in train mode, without
gradients, at the batch size that tracing uses. Writes benchmarks/results/speed.md; exit code 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

from costmodel import footprint, trace
from costmodel.graph import TRACE_BATCH

MODEL = "mobilenet_v2"
MOST_FORWARD_PASSES = 2.0
MOST_SECONDS_OF_A_SECOND_ANSWER = 5e-3
QUESTIONS = (("full", None), ("last", None), ("bias", None), ("blocks", 5), ("mobiletl", 5), ("mobiletl", 17))
RESULT = Path(__file__).parent / "results" / "speed.md"


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True, help="the day of the run")
    parser.add_argument("--machine", required=True, help="such as '2-core x86-64 virtual machine'")
    parser.add_argument("--rounds", type=int, default=41)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = torchvision.models.get_model(MODEL).train()
    images = torch.empty(TRACE_BATCH, 3, 224, 224, device="meta")

    def forward() -> None:
        with torch.no_grad():
            model(images)

    calls: dict[str, Callable[[], object]] = {
        "plain forward pass": forward,
        "trace of the same module": lambda: trace(model),
        "trace by name (builds the network too)": lambda: trace(f"torchvision:{MODEL}"),
    }
    graph = trace(model)
    for method, blocks in QUESTIONS:
        footprint(graph, method, blocks)  # the first answer works out what all others share
        name = f"second footprint: {method}{'' if blocks is None else f', {blocks} blocks'}"
        calls[name] = lambda method=method, blocks=blocks: footprint(graph, method, blocks)
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(given.rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = times["plain forward pass"]
    ratios = {
        name: statistics.median(value / one for value, one in zip(values, base, strict=True))
        for name, values in times.items()
        if "trace" in name
    }
    slowest = max(value for name, value in medians.items() if "footprint" in name)
    rows = [
        f"| {name} | {1e3 * medians[name]:.1f} | {f'{ratios[name]:.2f}' if name in ratios else ''} |" for name in times
    ]
    text = "\n".join(
        [
            "# How long an answer takes",
            "",
            f"{given.date}; torch {torch.__version__}, torchvision {torchvision.__version__}; {given.machine}, one "
            f"thread. {MODEL} at 224 x 224, batch {TRACE_BATCH}, on the meta device; medians of {given.rounds} rounds "
            "in which each line is timed once. Written by `python benchmarks/speed.py`.",
            "",
            "| | ms | forward passes |",
            "|---|---|---|",
            *rows,
            "",
            f"Limits: {MOST_FORWARD_PASSES:.0f} forward passes for a trace, "
            f"{1e3 * MOST_SECONDS_OF_A_SECOND_ANSWER:.0f} ms for a second `footprint` on the same graph.",
            "",
        ]
    )
    print(text)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text)
    sys.exit(max(ratios.values()) > MOST_FORWARD_PASSES or slowest > MOST_SECONDS_OF_A_SECOND_ANSWER)


if __name__ == "__main__":
    main()
