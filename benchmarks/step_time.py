"""Time of one training step: an applied model against stock PyTorch with the same trained set, pair by pair in one run.

    python benchmarks/step_time.py --date 2026-11-20 --machine '2-core x86-64 virtual machine'

Both models have the same weights; which of the two goes first alternates. Medians of the pairs' ratios
count; absolute times are for orientation. Writes benchmarks/results/step_time_<device>.md.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from costmodel import apply, footprint, trace
from costmodel.checking.measuring import loss_of, prepare
from costmodel.tracing.models import build

NETWORKS = ("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small")
METHODS = (("full", None), ("last", None), ("norm", None), ("bias", None), ("blocks", 5), ("mobiletl", 5))
BATCH, RESOLUTION = 8, 224
NOTES = (
    "Where the time goes, where the ratio is above 1: MobileNetV3-Small computes little per activation, and its "
    "activations fit in the cache. Of the 10 ms that `mobiletl 5` and `norm` take longer there, following the calls "
    "(a Python function around each of 197) takes 3 ms, making and packing masks in two or three passes over an "
    "activation 4 to 5 ms where stock PyTorch makes one in place, and backward the unpacking of these, 2 to 3 ms. "
    "Tried without gain: comparing in NumPy in place of PyTorch's own backward functions, larger pieces. A fused "
    "kernel would do it in one pass. MobileNetV2, whose activations do not fit in the cache, gains what is not written."
)


def stepper(model: nn.Module, images: torch.Tensor) -> Callable[[], float]:
    """Return what runs one step and says how many seconds it took."""
    update = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 1e-6)

    def step() -> float:
        start = time.perf_counter()
        loss_of(model(images)).backward()
        update.step()
        update.zero_grad(set_to_none=True)
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def compare(name: str, method: str, blocks: int | None, pairs: int, device: str) -> tuple[float, float, list[float]]:
    """Return the median seconds of a stock and an applied step, and the ratios of the pairs."""
    images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION, device=device)
    plan = footprint(trace(name, RESOLUTION), method, blocks, BATCH)
    stock = build(name)
    applied = apply(copy.deepcopy(stock), method, blocks, RESOLUTION).train().to(device)
    prepare(stock, plan.graph, plan.assignment).to(device)
    steps = (stepper(stock, images), stepper(applied, images))
    for _ in range(2):
        [step() for step in steps]
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        first, second = steps if pair % 2 == 0 else steps[::-1]
        one, two = first(), second()
        times.append((one, two) if pair % 2 == 0 else (two, one))
    ratios = [ours / theirs for theirs, ours in times]
    return statistics.median(t for t, _ in times), statistics.median(o for _, o in times), ratios


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return
    warnings.simplefilter("ignore")
    lines = [
        "# Step time: applied model against stock PyTorch",
        "",
        f"{options.date}; torch {torch.__version__}; {options.machine}; {torch.get_num_threads()} threads; "
        f"batch {BATCH}, {RESOLUTION} x {RESOLUTION}, SGD; {options.pairs} pairs. "
        "Written by `python benchmarks/step_time.py`.",
        "",
        "| network | method | stock, ms | applied, ms | ratio (median of pairs) | lowest to highest |",
        "|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        for method, blocks in METHODS:
            theirs, ours, ratios = compare(name, method, blocks, options.pairs, options.device)
            label = method if blocks is None else f"{method} {blocks}"
            lines.append(
                f"| {name} | {label} | {theirs * 1e3:.0f} | {ours * 1e3:.0f} | {statistics.median(ratios):.2f} | "
                f"{min(ratios):.2f} to {max(ratios):.2f} |"
            )
            print(lines[-1], flush=True)
    lines += ["", NOTES]
    path = Path(__file__).parent / "results" / f"step_time_{options.device}.md"
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
