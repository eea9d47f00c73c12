"""Whether the best schedule is the best: the same question to a solver of integer programs (HiGHS), and the time.

    python benchmarks/schedule_optimum.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' [--resume]

The twelve inverted-residual networks (batch 8, 224 x 224, SGD) by full, blocks and mobiletl at five and all blocks;
five budgets each, at equal distances between the least memory and that of the least FLOPs. HiGHS is told what each run
of links takes in each mode, every one simulated, and the rule of the chain; it knows nothing of the dynamic
programming, or of the runs that this leaves out by their lower bounds. Its choice is rounded, and counted and priced
again. FLOPs must be equal.

Times are process times on one thread: of the whole frontier, from the links on (`frontier`), and of HiGHS for one
budget, which starts when every run of links is simulated.

Writes results/schedule_optimum.csv (a row per budget, as they come; --resume skips those that are there) and
schedule_optimum.md. Exit code 1 if an optimum differs. Takes about ten minutes.
"""

from __future__ import annotations

import re
import statistics
import sys
import time

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array
from verifying import RESULTS, TWELVE, Rows, arguments, versions

from costmodel import LayerGraph, Schedule, Step, Way, block_count, trace, way
from costmodel.schedules.chain import Chain, Option
from costmodel.step.schedule import MODES

BUDGETS, MB, MFLOPS = 5, 1e6, 1e6
COLUMNS = (
    "model", "way", "links", "runs", "budget_bytes", "flops", "flops_of_highs", "peak_of_highs", "frontier_ms",
    "highs_ms", "agrees",
)  # fmt: skip

Run = tuple[int, Option]  # the place where it begins


def runs_of(chain: Chain) -> list[Run]:
    """Return every run of links in every mode, simulated."""
    return [(first, option) for first in range(len(chain.starts)) for option in chain.every_option(first)]


def solve(chain: Chain, runs: list[Run], budget: int) -> list[Run] | None:
    """Return the runs with the least FLOPs that fit in the budget; None if there are none.

    A binary variable x per run; at each place as many runs begin as end; and what is kept by the runs that ended before
    a place, with what the run that begins there takes, is at most the budget.
    """
    if chain.floor > budget:  # what the rest of the step takes
        return None
    places = len(chain.starts)
    flow, memory = lil_array((places, len(runs))), lil_array((places, len(runs)))
    for column, (first, option) in enumerate(runs):
        behind = first + option.count
        flow[first, column] += 1
        if behind < places:
            flow[behind, column] -= 1
        memory[first, column] += chain.own_bytes(first, option) / MB
        for place in range(behind, places):
            memory[place, column] += option.alone.kept / MB
    begins = np.eye(1, places)[0]
    answer = milp(
        np.array([option.flops / MFLOPS for _, option in runs]), integrality=np.ones(len(runs)), bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(flow.tocsr(), begins, begins),
            LinearConstraint(memory.tocsr(), -np.inf, (budget - chain.always) / MB),
        ],
        options={"mip_rel_gap": 0},
    )  # fmt: skip
    return [run for run, chosen in zip(runs, answer.x, strict=True) if chosen > 0.5] if answer.success else None


def peak_bytes(chain: Chain, chosen: list[Run]) -> int:
    """Return the most memory of a way through the chain, added up anew."""
    peak, kept = chain.floor, 0
    for first, option in chosen:
        peak = max(peak, chain.always + kept + chain.own_bytes(first, option))
        kept += option.alone.kept
    return peak


def ways(graph: LayerGraph) -> list[Way]:
    """Return the ways to ask for."""
    count = block_count(graph)
    return [way("full"), *(way(name, k) for name in ("blocks", "mobiletl") for k in (5, count))]


def budgets(chain: Chain) -> list[int]:
    """Return budgets from one that the least memory just fits in to one in which no matrix product is done again."""
    least, most = int(chain.peak_bytes[0]), int(chain.peak_bytes[np.argmin(chain.steps.flops)])
    return sorted({int(least + share * (most - least)) for share in np.linspace(0, 1, BUDGETS)})


def compare(model: str, rows: Rows) -> None:
    """Ask both for every way and budget of a network."""
    for one in ways(trace(model)):
        graph = trace(model)  # with nothing worked out yet
        step = Step(graph, one, schedule=Schedule(inplace_update=True))
        begin = time.process_time()
        chain = Chain(step, tuple(MODES))
        seconds = time.process_time() - begin
        runs: list[Run] = []
        for budget in budgets(chain):
            row = {"model": model, "way": one.label, "budget_bytes": budget}
            if row in rows:
                continue
            runs = runs or runs_of(chain)
            begin = time.process_time()
            chosen = solve(chain, runs, budget)
            of_highs = time.process_time() - begin
            number = chain.fitting(budget)
            assert chosen is not None and number is not None  # both fit: the budget is a peak, or above one
            flops = sum(option.flops for _, option in chosen)
            rows.add(row | {
                "links": len(chain.starts), "runs": len(runs), "flops": chain.steps.flops[number],
                "flops_of_highs": flops, "peak_of_highs": peak_bytes(chain, chosen),
                "frontier_ms": f"{1e3 * seconds:.0f}", "highs_ms": f"{1e3 * of_highs:.0f}",
                "agrees": flops == chain.steps.flops[number],
            })  # fmt: skip
        print(model, one.label, len(chain.starts), f"{seconds:.3f} s", flush=True)


def report(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the summary."""
    lines = [
        "# The best schedule and the optimum of an integer program",
        "",
        f"{date}; {versions()}; {machine}. 224 x 224, batch 8, SGD, updates in place. Written by `python "
        "benchmarks/schedule_optimum.py`; every budget stands in `schedule_optimum.csv`.",
        "",
        f"{len(rows)} questions (network, way, budget): the FLOPs done again are equal in "
        f"{sum(row['agrees'] == 'True' for row in rows)}. Frontier: building the chain and all its steps, every budget "
        "at once; HiGHS: one budget, when every run of links is simulated.",
        "",
        "| network | way | links | runs of links | budgets equal | frontier, ms | HiGHS per budget, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, label in dict.fromkeys((row["model"], row["way"]) for row in rows):
        own = [row for row in rows if (row["model"], row["way"]) == (model, label)]
        of_highs = [float(row["highs_ms"]) for row in own]
        lines.append(
            f"| {model} | {label} | {own[0]['links']} | {own[0]['runs']} "
            f"| {sum(row['agrees'] == 'True' for row in own)} of {len(own)} | {own[0]['frontier_ms']} "
            f"| {statistics.median(of_highs):.0f} (to {max(of_highs):.0f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare everything and write both tables."""
    given = arguments(__doc__)
    Chain(Step(trace(TWELVE[-1], 128)), tuple(MODES))  # what is loaded on first use
    rows = Rows(RESULTS / "schedule_optimum.csv", COLUMNS, ("model", "way", "budget_bytes"), given.resume)
    for model in TWELVE:
        if re.search(given.only, model):
            compare(model, rows)
    (RESULTS / "schedule_optimum.md").write_text(report(rows.rows, given.date, given.machine))
    sys.exit(any(row["agrees"] != "True" for row in rows.rows))


if __name__ == "__main__":
    main()
