"""The predicted time of a step on networks that the calibration has not seen, against simpler predictions.

    python benchmarks/predicted_time.py --date 2026-11-22 --machine '2-core x86-64 virtual machine' [--threads 1]

The steps that `costmodel calibrate` times, in the arena; each network's are predicted by a fit to the other networks':

    model       time per FLOP, per byte and per call, by kind of operation and pass (costmodel/machine/step_time.py)
    FLOPs       one time per FLOP
    roofline    the larger of FLOPs at this machine's peak and bytes at its bandwidth: a lower bound, nothing fitted

The peak is that of a matrix product, the bandwidth that of a copy, both measured here. Nothing else should run
meanwhile. Writes results/predicted_time.csv and results/predicted_time.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from verifying import RESULTS, Rows, versions

from costmodel import footprint
from costmodel.checking.timing import configurations, prepare, timed
from costmodel.machine.step_time import Sample, fit, leave_networks_out

COLUMNS = ("network", "step", "seconds", "model_seconds", "flops_seconds", "roofline_seconds")


def best_seconds(run: Callable[[], object], count: int = 10) -> float:
    """Return the least seconds of some runs."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def peaks() -> tuple[float, float]:
    """Return this machine's FLOPs per second of a matrix product, and bytes per second of a copy."""
    square, source = torch.randn(2048, 2048), torch.zeros(64_000_000)
    flops = 2 * len(square) ** 3 / best_seconds(partial(torch.matmul, square, square))
    return flops, 2 * source.nbytes / best_seconds(partial(torch.empty_like(source).copy_, source))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    arena, threads = prepare("arena", given.threads)
    flops_per_second, bytes_per_second = peaks()
    steps = configurations()
    samples = list(timed(steps, arena, lambda number, what: print(number, what, flush=True)))
    costs = [footprint(step) for step in steps]
    by_flops = [Sample(one.network, one.what, np.array([cost.total_flops]), one.seconds)
                for one, cost in zip(samples, costs, strict=True)]  # fmt: skip
    model, flops = (
        {(one.network, one.what): value for one, value in leave_networks_out(each)} for each in (samples, by_flops)
    )
    rows = Rows(RESULTS / "predicted_time.csv", COLUMNS, COLUMNS[:2], resume=False)
    for one, cost in zip(samples, costs, strict=True):
        key = one.network, one.what
        roofline = max(cost.total_flops / flops_per_second, cost.moved_bytes / bytes_per_second)
        values = (one.seconds, model[key], flops[key], roofline)
        rows.add(dict(zip(COLUMNS, (*key, *(f"{value:.5f}" for value in values)), strict=True)))
    fitted = fit(samples, "arena", threads, "this machine")
    lines = [
        "# Predicted time of a step", "",
        f"{given.date}; {versions()}; {given.machine}, in the arena. Written by `python benchmarks/predicted_time.py`, "
        "whose first lines say what is what; a row per step stands in `predicted_time.csv`.", "",
        f"{len(samples)} steps of {len({one.network for one in samples})} networks, "
        f"{1e3 * min(one.seconds for one in samples):.0f} to {1e3 * max(one.seconds for one in samples):.0f} ms. Each "
        "network's are predicted by a fit to the others'. The roofline's peak: "
        f"{flops_per_second / 1e9:.0f} GFLOPs/s, {bytes_per_second / 1e9:.1f} GB/s.", "",
        "| prediction | median error | 90 % of the errors are below | worst error |", "|---|---|---|---|",
    ]  # fmt: skip
    for name in ("model", "flops", "roofline"):
        errors = [abs(float(row[f"{name}_seconds"]) / float(row["seconds"]) - 1) for row in rows.rows]
        lines.append(
            f"| {'FLOPs' if name == 'flops' else name} | {np.median(errors):.1%} | {np.quantile(errors, 0.9):.1%} | "
            f"{max(errors):.1%} |"
        )
    lines += ["", f"The interval that answers carry ({fitted.basis}) is a factor of {np.exp(fitted.spread):.2f}.", ""]
    (RESULTS / "predicted_time.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
