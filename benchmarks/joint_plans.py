"""What is recommended for eight budgets on four networks: with plain steps, and with way and schedule together.

    python benchmarks/joint_plans.py --date 2026-11-21 --machine "2-core x86-64 virtual machine" [--resume]

224 pixels, batch 8, SGD, default levers. Each new plan is applied to the real network and trained for two steps: the
peak above the step's start, measured by the profiler with one thread, against the plan's. Writes
benchmarks/results/joint_plans.csv, a row as it comes, and joint_plans.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas
import torch
from verifying import versions

from costmodel import InfeasibleError, verify
from costmodel.units import format_count
from planner import recommend

NETWORKS = (
    "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large",
    "zoo:proxylessnas_mobile",
)  # fmt: skip
BUDGETS_MB = (24, 32, 48, 64, 96, 128, 192, 256)
RESULTS = Path(__file__).parent / "results"


def row(network: str, budget_mb: int) -> dict:
    """Return what is recommended, plainly and jointly, and what the joint plan's step measures."""
    found: dict = {"network": network, "budget_mb": budget_mb}
    try:
        before = recommend(network, budget_mb * 10**6, schedules="none").chosen
        found |= {
            "plain_way": before.label, "plain_peak_bytes": before.peak_bytes, "plain_flops": before.total_flops,
            "plain_recovery": before.recovery.value,
        }  # fmt: skip
    except InfeasibleError:
        found["plain_way"] = ""
    try:
        now = recommend(network, budget_mb * 10**6).chosen
    except InfeasibleError:
        return {**found, "way": ""}
    found |= {
        "way": now.label, "schedule": now.step.schedule.label(now.batch), "peak_bytes": now.peak_bytes,
        "flops": now.total_flops, "recovery": now.recovery.value,
    }  # fmt: skip
    result = verify(network, now.way, accounting="lean", schedule=now.step.schedule)
    return found | {
        "saved_agree": result.saved.agrees, "flops_agree": result.forward.agrees and result.backward.agrees,
        "peak_difference": result.peak.relative_difference,
    }  # fmt: skip


def table(rows: pandas.DataFrame, date: str, machine: str) -> str:
    """Return the page."""
    measured = rows[rows["way"].fillna("") != ""]
    worst = measured["peak_difference"].abs().max()
    lines = [
        "# Plans for eight budgets: plain steps, and way and schedule together", "",
        f"{date}; {versions()}; {machine}. 224 x 224, batch 8, SGD; expected recovery by priors alone.", "",
        f"{len(measured)} plans applied and measured: saved bytes equal in {int(measured['saved_agree'].sum())}, "
        f"FLOPs in {int(measured['flops_agree'].sum())}; the peak is at most {100 * worst:.2f} % off.", "",
        "| network | budget | plainly | peak, MB | GFLOPs | recovery | together | schedule | peak, MB | GFLOPs "
        "| recovery | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in rows.to_dict("records"):
        cells = [one["network"].rpartition(":")[2], f"{one['budget_mb']} MB"]
        for way, prefix in ((one.get("plain_way"), "plain_"), (one.get("way"), "")):
            fits = isinstance(way, str) and way
            cells.append(way if fits else "nothing fits")
            if not prefix:
                cells.append((one["schedule"] or "plain") if fits and isinstance(one["schedule"], str) else "")
            cells += [
                f"{one[f'{prefix}peak_bytes'] / 1e6:.1f}", format_count(int(one[f"{prefix}flops"])).removesuffix(" G"),
                f"{one[f'{prefix}recovery']:.3f}",
            ] if fits else ["", "", ""]  # fmt: skip
        agrees = isinstance(one.get("way"), str) and one["way"]
        cells.append(f"{100 * one['peak_difference']:+.3f} %" if agrees else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Recommend, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "joint_plans.csv"
    rows = pandas.read_csv(path).to_dict("records") if options.resume and path.exists() else []
    done = {(each["network"], each["budget_mb"]) for each in rows}
    for network in NETWORKS:
        for budget in BUDGETS_MB:
            if (network, budget) not in done:
                rows.append(row(network, budget))
                print(rows[-1], flush=True)
                pandas.DataFrame(rows).to_csv(path, index=False)
    (RESULTS / "joint_plans.md").write_text(table(pandas.DataFrame(rows), options.date, options.machine))


if __name__ == "__main__":
    main()
