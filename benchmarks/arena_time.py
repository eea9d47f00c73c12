"""Time of a training step in the planned arena, against stock PyTorch with default malloc and with tcmalloc.

    python benchmarks/arena_time.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' \\
        [--tcmalloc FILE] [--threads 1]

Every variant is a process of its own; they take turns, step by step, so that all see the same machine. Medians of
ROUNDS steps, and of the rounds' ratios to stock. On one thread the time is that of the processor (user and system, page
faults included), which other programs disturb less; on more it is that of the clock. tcmalloc is preloaded where its
library is given. Writes results/arena_time.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

CONFIGURATIONS = (
    ("torchvision:mobilenet_v2", "blocks", 5), ("torchvision:mobilenet_v2", "bias", None),
    ("torchvision:mobilenet_v2", "full", None), ("torchvision:mobilenet_v3_small", "mobiletl", 5),
    ("torchvision:mobilenet_v3_small", "full", None),
)  # fmt: skip
BATCH, RESOLUTION, ROUNDS, WARM = 8, 224, 7, 5
RESULT = Path(__file__).parent / "results" / "arena_time.md"


def worker(name: str, method: str, blocks: int | None, variant: str, threads: int) -> None:
    """Run a step for every line on standard input; print its seconds."""
    import time
    import warnings

    clock = time.process_time if threads == 1 else time.perf_counter

    import torch

    from costmodel import Arena, Step, apply, build, footprint, trace, way
    from costmodel.checking.measuring import loss_of, prepare

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = Step(trace(name, RESOLUTION), way(method, blocks), BATCH)
    network, plan = build(name), footprint(step)
    if variant.startswith("stock"):
        network = prepare(network, plan.graph, plan.assignment)
    else:
        network = apply(network, step.way, resolution=RESOLUTION).train()
    update = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1e-6)
    images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    arena = Arena("arena" if variant.endswith("arena") else "default")

    def run() -> None:
        loss_of(network(images)).backward()
        update.step()
        update.zero_grad(set_to_none=True)

    for _ in sys.stdin:
        start = clock()
        with arena.step():
            run()
        print(clock() - start, flush=True)


class Variant:
    """A process that makes steps when asked."""

    def __init__(self, configuration: tuple, variant: str, threads: int, tcmalloc: str | None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if "tcmalloc" in variant and tcmalloc:
            environment["LD_PRELOAD"] = tcmalloc
        command = [sys.executable, __file__, "--worker", json.dumps([*configuration, variant, threads])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def step(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None  # both are pipes
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(configuration: tuple, threads: int, tcmalloc: str | None) -> str:
    """Return a row of the table."""
    names = ["stock", "applied", "stock arena", "applied arena"]
    names += ["stock tcmalloc", "applied tcmalloc"] if tcmalloc else []
    variants = {name: Variant(configuration, name, threads, tcmalloc) for name in names}
    for _ in range(WARM):
        [variant.step() for variant in variants.values()]
    rounds = [{name: variant.step() for name, variant in variants.items()} for _ in range(ROUNDS)]
    for variant in variants.values():
        variant.close()
    cells = []
    for name in names:
        ratio = statistics.median(each[name] / each["stock"] for each in rounds)
        cells.append(f"{1e3 * statistics.median(each[name] for each in rounds):.0f} ({ratio:.2f})")
    name, method, blocks = configuration
    return f"| {name.partition(':')[2]} | {method}{'' if blocks is None else f' {blocks}'} | {threads} | " + " | ".join(
        [*cells, *["-"] * (6 - len(cells))]
    ) + " |"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date")
    parser.add_argument("--machine")
    parser.add_argument("--tcmalloc", help="the library's file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--worker", type=json.loads)
    given = parser.parse_args()
    if given.worker:
        worker(*given.worker)
        return
    import torch

    lines = [
        "# Time of a training step in the planned arena",
        "",
        f"{given.date}; torch {torch.__version__}; {given.machine}; batch {BATCH}, {RESOLUTION} x {RESOLUTION}, SGD. "
        f"Milliseconds, medians of {ROUNDS} rounds in which all variants take turns; in brackets the median ratio to "
        "stock PyTorch with default malloc. Written by `python benchmarks/arena_time.py`.",
        "",
        "| network | way | threads | stock | applied | stock, arena | applied, arena | stock, tcmalloc | applied, "
        "tcmalloc |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for threads in given.threads:
        for configuration in CONFIGURATIONS:
            lines.append(measure(configuration, threads, given.tcmalloc))
            print(lines[-1], flush=True)
            RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
