"""How many candidates a second are priced in bulk, and how long a recommendation takes as a whole process.

    python benchmarks/sweep.py --date 2026-11-20 --machine '2-core x86-64 virtual machine'

A sweep is timed from traced networks to the finished frame, its estimates of the accuracy included; `first` has the
closed forms of every way to work out, `again` finds them with the graph. Writes benchmarks/results/sweep.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from costmodel import OPTIMIZERS, footprint
from costmodel.kept import answers_of
from planner.choosing.axes import axes
from planner.choosing.candidates import trace_all
from planner.choosing.frames import sweep

THREE = ("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "zoo:proxylessnas_mobile")
METHODS = ("full", "last", "norm", "bias", "blocks", "mobiletl")
SWEEPS = (
    ("MobileNetV2, 6 methods, all depths, 6 batches", THREE[:1], {"methods": METHODS, "batch": (1, 2, 4, 8, 16, 32)}),
    (
        "three networks, all methods and depths, 64 batches, 2 optimizers, 2 precisions of frozen weights",
        THREE,
        {"batch": range(1, 65), "optimizer": ("sgd", "adam"), "frozen_dtype": ("float32", "float16")},
    ),
    (
        "three networks, all methods and depths, 256 batches, 4 optimizers, 3 precisions",
        THREE,
        {"batch": range(1, 257), "optimizer": tuple(OPTIMIZERS), "frozen_dtype": ("float32", "float16", "int8")},
    ),
)
RECOMMEND = ("recommend", *THREE, "--device", "raspberry-pi-zero-2w", "--batch", "8")
REPEATS = 5


def seconds(call) -> tuple[float, object]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def process(folder: str) -> float:
    """Return the seconds of one recommendation as a whole process, with its cache in `folder`."""
    command = [sys.executable, "-c", "from planner.interface.cli import main; main()", *RECOMMEND]
    environment = {**os.environ, "COSTMODEL_CACHE": folder}
    took, done = seconds(lambda: subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False))
    assert done.returncode == 0
    return took


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    options = parser.parse_args()
    lines = [
        "# Candidates per second, and a recommendation as a whole process",
        "",
        f"{options.date}; {options.machine}; one core. Written by `python benchmarks/sweep.py`.",
        "",
        "| sweep | candidates | first, s | again, s | candidates per second, again |",
        "|---|---|---|---|---|",
    ]
    for name, models, space in SWEEPS:
        graphs = [graph for graph in trace_all(list(models))]
        for graph in graphs:
            answers_of(graph).clear()
        first, frame = seconds(lambda graphs=graphs, space=space: sweep(graphs, axes(**space)))
        again = statistics.median(
            seconds(lambda graphs=graphs, space=space: sweep(graphs, axes(**space)))[0] for _ in range(REPEATS)
        )
        lines.append(f"| {name} | {len(frame):,} | {first:.2f} | {again:.3f} | {len(frame) / again:,.0f} |")
        print(lines[-1], flush=True)
    (graph,) = trace_all(THREE[0])
    one = statistics.median(seconds(lambda: footprint(graph, "mobiletl", 5, batch=8))[0] for _ in range(20))
    lines += ["", f"One `footprint` of MobileNetV2 that is asked for again takes {1e3 * one:.1f} ms."]
    with tempfile.TemporaryDirectory() as folder:
        cold = process(folder)
        warm = statistics.median(process(folder) for _ in range(REPEATS))
    lines += [
        f"`planner {' '.join(RECOMMEND)}` takes {warm:.2f} s as a whole process, {cold:.2f} s with an empty cache "
        "(wanted: under 2 s and under 8 s).",
    ]
    print(*lines[-2:], sep="\n")
    (Path(__file__).parent / "results" / "sweep.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
