"""Networks made ready by `apply`: saved bytes and peak that `lean` predicts, next to those of real steps on this CPU.

    python benchmarks/verify_lean.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' [--resume]

The twelve inverted-residual networks and three whose weights are standardised, by full, last, norm, bias, blocks 5,
mobiletl 5 and tinytl-lb (batch 4, 160 x 160, SGD), and three of them with one image and with one thread. Saved bytes
must be equal; the peak of the second step, above what is allocated when it begins, within 1 %.

Writes results/verify_lean.csv (a row per configuration, as they come; --resume skips those that are there) and
verify_lean.md. Exit code 1 if a prediction misses. Takes about three minutes on two cores.
"""

from __future__ import annotations

import re
import sys

import torch
from verifying import RESULTS, TWELVE, Rows, arguments, versions

from costmodel import CostModelError, verify

STANDARDIZED = ("timm:resnetv2_50x1_bit", "timm:nfnet_l0", "zoo:proxylessnas_mobile_tinytl")
WAYS = (
    ("full", None), ("last", None), ("norm", None), ("bias", None), ("blocks", 5), ("mobiletl", 5), ("tinytl-lb", None),
)  # fmt: skip
CONDITIONS = {"": (4, 2), "one image": (1, 2), "one thread": (4, 1)}  # batch, threads
ALL_CONDITIONS = ("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "zoo:proxylessnas_mobile_tinytl")
RESOLUTION, GOAL_PERCENT = 160, 1.0
COLUMNS = (
    "model", "method", "blocks", "condition", "saved_bytes", "measured_saved_bytes", "peak_bytes",
    "measured_peak_bytes", "difference_percent", "phase", "layer", "refused",
)  # fmt: skip


def measure(model: str, rows: Rows) -> None:
    """Verify a network by every method under its conditions."""
    for condition, (batch, threads) in CONDITIONS.items():
        for method, blocks in WAYS:
            row = {"model": model, "method": method, "blocks": blocks, "condition": condition}
            if row in rows or (condition and model not in ALL_CONDITIONS):
                continue
            torch.set_num_threads(threads)
            try:
                found = verify(model, method, blocks, batch, RESOLUTION, accounting="lean")
            except CostModelError as error:
                rows.add(row | {"refused": str(error)})
                continue
            saved, peak = found.checks[:2]
            rows.add(row | {
                "saved_bytes": saved.predicted, "measured_saved_bytes": saved.measured, "peak_bytes": peak.predicted,
                "measured_peak_bytes": peak.measured, "difference_percent": f"{100 * peak.relative_difference:.4f}",
                "phase": found.footprint.peak.phase, "layer": found.footprint.peak.layer,
            })  # fmt: skip
            print(*row.values(), f"{100 * peak.relative_difference:+.4f} %", flush=True)


def misses(row: dict[str, str]) -> bool:
    """Whether a prediction is not what was measured."""
    return row["saved_bytes"] != row["measured_saved_bytes"] or abs(float(row["difference_percent"])) > GOAL_PERCENT


def report(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the summary."""
    done = [row for row in rows if not row["refused"]]
    same = sum(row["saved_bytes"] == row["measured_saved_bytes"] for row in done)
    near = sum(abs(int(row["peak_bytes"]) - int(row["measured_peak_bytes"])) <= 1024 for row in done)
    worst = max(done, key=lambda row: abs(float(row["difference_percent"])))
    ways = list(dict.fromkeys((row["method"], row["blocks"]) for row in rows))
    lines = [
        "# Networks made ready by `apply`: `lean` predicted, and measured",
        "",
        f"{date}; {versions()}; {machine}. {RESOLUTION} x {RESOLUTION}, batch 4, SGD, train mode; two threads but for "
        "`one thread`. Written by `python benchmarks/verify_lean.py`; bytes stand in `verify_lean.csv`. Another "
        "version or processor is unverified until somebody runs the script there.",
        "",
        f"{len(done)} configurations: bytes kept for backward are equal in {same}; the peak differs by at most 1,024 "
        f"bytes in {near}, and most in {worst['model']}, {worst['method']}: {worst['difference_percent']} % "
        "(a scratchpad of oneDNN, see verify_peak.md).",
        "",
        "(predicted - measured) / measured of the peak, in percent; `-` where the method cannot train the network so:",
        "",
        "| network | " + " | ".join(f"{method} {blocks}".strip() for method, blocks in ways) + " |",
        "|---" * (len(ways) + 1) + "|",
    ]
    for model, condition in dict.fromkeys((row["model"], row["condition"]) for row in rows):
        own = {
            (row["method"], row["blocks"]): "-" if row["refused"] else f"{float(row['difference_percent']):+.3f}"
            for row in rows if (row["model"], row["condition"]) == (model, condition)
        }  # fmt: skip
        name = f"{model}, {condition}" if condition else model
        lines.append(f"| {name} | " + " | ".join(own.get(way, "") for way in ways) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Verify everything and write both tables."""
    given = arguments(__doc__)
    rows = Rows(RESULTS / "verify_lean.csv", COLUMNS, ("model", "method", "blocks", "condition"), given.resume)
    for model in (*TWELVE, *STANDARDIZED):
        if re.search(given.only, model):
            measure(model, rows)
    torch.set_num_threads(2)
    (RESULTS / "verify_lean.md").write_text(report(rows.rows, given.date, given.machine))
    sys.exit(any(misses(row) for row in rows.rows if not row["refused"]))


if __name__ == "__main__":
    main()
