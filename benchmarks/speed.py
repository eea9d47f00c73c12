"""How long an answer takes: tracing against one plain forward pass on the meta device, a second question, a cold start.

    python benchmarks/speed.py --date 2026-11-20 --machine '2-core x86-64 virtual machine'

Both are timed in turn in one process, on one thread, so that what else the machine does hits both alike; the ratio is
the median of the rounds' own ratios. The plain forward pass is the same network, already built, in train mode, without
gradients, at the batch size that tracing uses. A cold start is a process of its own, from its beginning to its end.
Writes benchmarks/results/speed.md; exit code 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

from costmodel import footprint
from costmodel.graph.values import TRACE_BATCH
from costmodel.tracing.tracer import trace

MODEL = "mobilenet_v2"
MOST_FORWARD_PASSES = 2.0
MOST_SECONDS_OF_A_SECOND_ANSWER = 5e-3
MOST_OF_THE_IMPORTS = 0.25
COMMAND = ("-c", "from costmodel.interface.cli import main; main()", "footprint")
METHOD = ("--method", "mobiletl", "--blocks", "5")
IMPORTS = "import torch, torchvision"
COLD = {
    IMPORTS: ("-c", IMPORTS),
    "known network": (*COMMAND, f"torchvision:{MODEL}", *METHOD),
    "known network, with other classes": (*COMMAND, f"torchvision:{MODEL}", *METHOD, "--classes", "10"),
    "network traced before": (*COMMAND, "torchvision:mnasnet1_3", *METHOD),  # not shipped, so from the cache
    "unknown network, to be traced": (*COMMAND, f"torchvision:{MODEL}", *METHOD, "--fresh"),
    "costmodel --help": (*COMMAND[:2], "--help"),
}
# What is done first after the imports; each prints its seconds.
FIRST = {
    "plain forward pass": f"""
import time, torch, torchvision
with torch.device("meta"):
    model = torchvision.models.get_model("{MODEL}").train()
images = torch.empty({TRACE_BATCH}, 3, 224, 224, device="meta")
start = time.perf_counter()
with torch.no_grad():
    model(images)
print(time.perf_counter() - start)
""",
    "trace": f"""
from costmodel import trace
import time, torch, torchvision, costmodel.tracing.tracer
start = time.perf_counter()
trace("torchvision:{MODEL}", fresh=True)
print(time.perf_counter() - start)
""",
}
QUESTIONS = (("full", None), ("last", None), ("bias", None), ("blocks", 5), ("mobiletl", 5), ("mobiletl", 17))
RESULT = Path(__file__).parent / "results" / "speed.md"


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cold_seconds(rounds: int) -> dict[str, list[float]]:
    """Return how long each process, and what is done first in one, takes; the first round fills caches only."""
    times: dict[str, list[float]] = {name: [] for name in (*COLD, *FIRST)}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "COSTMODEL_CACHE": cache}
        for _ in range(rounds + 1):
            for name, arguments in COLD.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
                times[name].append(time.perf_counter() - start)
            for name, program in FIRST.items():
                done = subprocess.run(
                    [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                times[name].append(float(done.stdout))
    return {name: values[1:] for name, values in times.items()}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True, help="the day of the run")
    parser.add_argument("--machine", required=True, help="such as '2-core x86-64 virtual machine'")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--cold-rounds", type=int, default=9)
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
    cold = cold_seconds(given.cold_rounds)
    shares = {
        name: statistics.median(value / one for value, one in zip(values, cold[IMPORTS], strict=True))
        for name, values in cold.items()
        if name in COLD
    }
    middle = {name: statistics.median(values) for name, values in cold.items()}
    added = middle["trace"] / middle["plain forward pass"]
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
            f"A process of its own, from start to end (mobiletl, 5 blocks; medians of {given.cold_rounds}):",
            "",
            "| | ms | of the imports |",
            "|---|---|---|",
            *(f"| {name} | {1e3 * middle[name]:.0f} | {shares[name]:.2f} |" for name in COLD),
            "",
            f"Behind the imports of a process that traces, building, tracing and caching take "
            f"{1e3 * middle['trace']:.0f} ms, {added:.2f} times a plain forward pass behind the same imports "
            f"({1e3 * middle['plain forward pass']:.0f} ms).",
            "",
            f"Limits: {MOST_FORWARD_PASSES:.0f} forward passes for a trace, "
            f"{1e3 * MOST_SECONDS_OF_A_SECOND_ANSWER:.0f} ms for a second `footprint` on the same graph, a "
            "quarter of the imports for a known network.",
            "",
        ]
    )
    print(text)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text)
    missed = (
        max(*ratios.values(), added) > MOST_FORWARD_PASSES,
        slowest > MOST_SECONDS_OF_A_SECOND_ANSWER,
        max(share for name, share in shares.items() if name.startswith("known")) > MOST_OF_THE_IMPORTS,
    )
    sys.exit(any(missed))


if __name__ == "__main__":
    main()
