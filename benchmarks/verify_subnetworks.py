"""Prices of sub-networks from tables of their blocks, next to a trace of each.

    python benchmarks/verify_subnetworks.py --date 2026-11-21 --machine '2-core x86-64 virtual machine'

1,000 random sub-networks, 250 of each of four super-networks and ways: saved bytes, peak, FLOPs, trained parameters,
and the peak and schedule that takes the least memory, as `footprint` and `best_schedule` say them of the sub-network's
own trace. Then 100,000 priced at once, timed. Rows are written as they come (`--resume` keeps them); exit code 1 if a
number differs.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace

from verifying import RESULTS, Rows, arguments, versions

from costmodel import BlockPrices, LayerGraph, Step, Subnetwork, best_schedule, footprint, supernetwork, trace, way
from costmodel.schedules.block_prices import LEVERS

CASES = (
    ("zoo:ofa_proxyless@norm=group", way("tinytl-lb"), 8, "sgd", "lean"),
    ("zoo:ofa_proxyless@w=1.3", way("bias"), 8, "adam", "lean"),
    ("zoo:ofa_mobilenet_v3@w=1.2", way("mobiletl", 8), 8, "adam", "lean"),
    ("zoo:ofa_mobilenet_v3", way("full"), 4, "momentum", "eager"),
)
EACH, MANY = 250, 100_000
RESOLUTION, CLASSES = 224, 102
NUMBERS = (
    "saved_bytes", "peak_bytes", "forward_flops", "backward_flops", "total_flops", "trained_parameters", "least_bytes",
)  # fmt: skip
COLUMNS = ("network", "method", "batch", "optimizer", "accounting", "subnetwork", *NUMBERS, "schedule", "differs")


def table(name: str, step: tuple) -> tuple[BlockPrices, Step]:
    """Return the empty table of a super-network's blocks, and a step of its smallest sub-network."""
    design = supernetwork(name, device="meta").design

    def graph_of(chosen: Subnetwork) -> LayerGraph:
        return trace(name + ("," if "@" in name else "@") + chosen.text, RESOLUTION, CLASSES)

    trained, batch, optimizer, accounting = step
    one = Step(graph_of(design.smallest), trained, batch, optimizer=optimizer, accounting=accounting)
    return BlockPrices(design, one, graph_of), one


def traced(prices: BlockPrices, chosen: Subnetwork) -> tuple[dict[str, int], str]:
    """Return what a trace of the sub-network says, and the schedule."""
    step = replace(prices.step, graph=prices.graph_of(chosen))
    plain, least = footprint(step), replace(step, schedule=best_schedule(step, allow=LEVERS))
    found = {name: getattr(plain, name) for name in NUMBERS[:-1]} | {"least_bytes": footprint(least).peak_bytes}
    return found, least.schedule.label(step.batch)


def verify(given) -> Rows:
    rows = Rows(RESULTS / "verify_subnetworks.csv", COLUMNS, COLUMNS[:6], given.resume)
    seconds: dict[str, float] = {}
    for name, *step in CASES:
        prices, _ = table(name, tuple(step))
        design = prices.design
        randomness = random.Random(0)
        chosen = [design.draw(randomness) for _ in range(EACH)]
        many = [design.draw(randomness) for _ in range(MANY)]
        found = prices.price(chosen)
        start = time.perf_counter()
        prices.price(many)
        seconds[name] = time.perf_counter() - start
        for number, one in enumerate(chosen):
            key = {"network": name, "method": step[0].label, "batch": step[1], "optimizer": step[2],
                   "accounting": step[3], "subnetwork": one.text}  # fmt: skip
            if key in rows:
                continue
            own = {column: int(getattr(found, column)[number]) for column in NUMBERS}
            schedule = found.schedules[found.schedule[number]].label(step[1])
            other, best = traced(prices, one)
            differs = [column for column in NUMBERS if own[column] != other[column]]
            differs += ["schedule"] if schedule != best else []
            rows.add({**key, **own, "schedule": schedule, "differs": " ".join(differs)})
            if not number % 25:
                write(given, rows, seconds)
        write(given, rows, seconds)
    return rows


def write(given, rows: Rows, seconds: dict[str, float]) -> None:
    """Write the table of what is verified so far."""
    lines = []
    for name, trained, batch, optimizer, accounting in CASES:
        mine = [row for row in rows.rows if row["network"] == name]
        equal = sum(not row["differs"] for row in mine)
        timed = f"{seconds[name]:.1f} s" if name in seconds else ""
        lines.append(
            f"| `{name}` | {trained.label}, {optimizer}, batch {batch}, {accounting} | {len(mine)} | {equal} | "
            f"{timed} |"
        )
    text = [
        "# Sub-networks priced from tables of their blocks", "", f"{given.date}, {given.machine}; {versions()}; "
        f"{RESOLUTION} x {RESOLUTION}, {CLASSES} classes; `benchmarks/verify_subnetworks.py`.", "",
        "Equal: saved bytes, peak, FLOPs, trained parameters, and least peak and schedule are those of the "
        f"sub-network's own trace, all of them. {EACH} of each are to be compared.", "",
        f"| super-network | step | random sub-networks | equal | {MANY:,} priced in |", "|---|---|---|---|---|", *lines,
    ]  # fmt: skip
    (RESULTS / "verify_subnetworks.md").write_text("\n".join(text) + "\n")


def main() -> None:
    if any(row["differs"] for row in verify(arguments(__doc__ or "")).rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
