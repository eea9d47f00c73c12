"""Schedules carried out: saved bytes, peak and FLOPs as predicted, and the same training, in real steps on this CPU.

    python benchmarks/verify_schedules.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' [--resume]

The twelve inverted-residual networks by full, norm, bias, blocks 1, 3, 5 and all, mobiletl 3, 5 and all, each with the
prefix image by image, updates in place, cheap work again, segments recomputed, the prefix's outputs from a cache, and
the best schedule at 1.00, 1.10 and 1.33 times the FLOPs (batch 4, 128 x 128, SGD, one thread); by full and all blocks
also stock layers by the best schedule at 1.33. Saved bytes and FLOPs must be equal; the peak of the second step, above
what is allocated when it begins, within 0.5 %. `apart`: how far weights and running statistics are from those of the
plain schedule after three steps, in parts of the largest, dropout and stochastic depth drawing the same: 0 is to the
bit. The prefix in pieces takes sums in another order, which batch statistics of four images magnify: there it is
measured in float64. A cache is compared with the prefix image by image.

Writes results/verify_schedules.csv (a row per configuration, as they come; --resume skips those that are there) and
verify_schedules.md. Exit code 1 if a prediction misses. Takes about an hour on one core.
"""

from __future__ import annotations

import copy
import re
import sys
from tempfile import TemporaryDirectory

import torch
from verifying import RESULTS, TWELVE, Rows, arguments, versions

from costmodel import (
    CostModelError,
    Schedule,
    Step,
    Way,
    apply,
    best_schedule,
    block_count,
    footprint,
    trace,
    verify,
    way,
)
from costmodel import build as build_with_weights
from costmodel.checking.measuring import loss_of
from costmodel.step.segments import prefix_end
from costmodel.training.cache import cached_prefix
from costmodel.training.optimizers import update_in_place

RESOLUTION, BATCH, GOAL_PERCENT = 128, 4, 0.5
LEVERS = {
    "prefix": ("prefix",), "in place": ("inplace",), "cheap": ("cheap",), "recompute": ("recompute",),
}  # fmt: skip
ALL = ("prefix", "inplace", "cheap", "recompute")
BEST = {"best 1.00": 1.0, "best 1.10": 1.1, "best 1.33": 1.33}
CACHED, STOCK = "cached", "stock 1.33"  # STOCK: by PyTorch's own layers, in parts of their own plain step
KINDS = (*LEVERS, CACHED, *BEST, STOCK)
COLUMNS = (
    "model", "way", "levers", "schedule", "saved_bytes", "measured_saved_bytes", "peak_bytes", "measured_peak_bytes",
    "difference_percent", "plain_peak_bytes", "flops", "measured_flops", "times_flops", "apart", "agrees", "refused",
)  # fmt: skip


def ways(count: int) -> list[Way]:
    found = [way(name) for name in ("full", "norm", "bias")]
    return found + [way(name, k) for name, depths in (("blocks", (1, 3, 5, count)), ("mobiletl", (3, 5, count)))
                    for k in dict.fromkeys(depths) if k <= count]  # fmt: skip


def schedules(graph, one: Way) -> dict[str, Schedule]:
    """Return the schedules to verify, by what they do; those that do nothing new are left out."""
    if one.method == "full" or one == way("blocks", block_count(graph)):
        stock = {STOCK: best_schedule(graph, one, batch=BATCH, most_flops=1.33, allow=ALL, accounting="eager")}
    else:
        stock = {}
    found: dict[str, Schedule] = {}
    for name, allow in (*LEVERS.items(), *((name, ALL) for name in BEST)):
        most = BEST.get(name, 1.33)
        schedule = best_schedule(graph, one, batch=BATCH, most_flops=most, allow=allow)
        if schedule != Schedule() and schedule not in found.values():
            found[name] = schedule
    if prefix_end(Step(graph, one).requirements):
        found[CACHED] = Schedule(cache="float32", inplace_update=True)
    return found | stock


def trained(network: torch.nn.Module, schedule: Schedule, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the state after three steps."""
    torch.manual_seed(0)
    update = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.01)
    hooks = update_in_place(network, update) if schedule.inplace_update else None
    network.train()
    for _ in range(3):
        loss_of(network(images)).backward()
        if hooks is None:
            update.step()
            update.zero_grad(set_to_none=True)
    return {name: value.clone() for name, value in network.state_dict().items()}


def apart(network: torch.nn.Module, one: Way, schedule: Schedule, accounting: str) -> float:
    """Return how far training by a schedule leads away from the plain one, in parts of the largest value."""
    images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(1))
    if schedule.prefix_batch is not None:
        images, network = images.double(), copy.deepcopy(network).double()
    with_same_sums = Schedule() if schedule.cache is None else Schedule(prefix_batch=1)
    plain, other = (
        apply(copy.deepcopy(network), one, resolution=RESOLUTION, schedule=each, accounting=accounting)
        for each in (with_same_sums, schedule)
    )
    with TemporaryDirectory() as folder:
        given = images
        if schedule.cache is not None:
            cached = cached_prefix(other, schedule, [(images, torch.zeros(BATCH, dtype=torch.long))], folder)
            given = torch.stack([cached[number][0] for number in range(BATCH)])
        plain, other = trained(plain, Schedule(), images), trained(other, schedule, given)
    return max(
        ((other[name] - value).abs().max() / value.abs().max().clamp_min(1e-12)).item() for name, value in plain.items()
    )


def measure(model: str, rows: Rows) -> None:
    """Verify a network by every way and schedule."""
    graph, network = trace(model, RESOLUTION), build_with_weights(model)
    for one in ways(block_count(graph)):
        for name, schedule in schedules(graph, one).items():
            accounting = "eager" if name == STOCK else "lean"
            row = {"model": model, "way": one.label, "levers": name, "schedule": schedule.label(BATCH)}
            if row in rows:
                continue
            try:
                found = verify(network, one, None, BATCH, RESOLUTION, accounting=accounting, schedule=schedule)
                off = apart(network, one, schedule, accounting)
            except CostModelError as error:
                rows.add(row | {"refused": str(error)})
                continue
            saved, peak, forward, backward = found.checks
            today = footprint(Step(graph, one, BATCH, accounting=accounting))
            rows.add(row | {
                "saved_bytes": saved.predicted, "measured_saved_bytes": saved.measured, "peak_bytes": peak.predicted,
                "measured_peak_bytes": peak.measured, "difference_percent": f"{100 * peak.relative_difference:.4f}",
                "plain_peak_bytes": today.peak_bytes - today.moments[0].total_bytes,
                "flops": forward.predicted + backward.predicted, "measured_flops": forward.measured + backward.measured,
                "times_flops": f"{found.footprint.total_flops / today.total_flops:.4f}", "apart": f"{off:.1e}",
                "agrees": saved.agrees and forward.agrees and backward.agrees,
            })  # fmt: skip
            print(*row.values(), f"{100 * peak.relative_difference:+.4f} %, {off:.1e}", flush=True)


def misses(row: dict[str, str]) -> bool:
    """Whether a prediction is not what was measured."""
    return row["agrees"] != "True" or abs(float(row["difference_percent"])) > GOAL_PERCENT


def report(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the summary."""
    done = [row for row in rows if not row["refused"]]
    worst = max(done, key=lambda row: abs(float(row["difference_percent"])))
    bits = [row for row in done if float(row["apart"]) == 0]
    whole = [row for row in done if "frozen layers" not in row["schedule"] or row["levers"] == CACHED]
    pieces = [row for row in done if row not in whole]
    lines = [
        "# Schedules carried out: predicted, and measured",
        "",
        f"{date}; {versions()}; {machine}. {RESOLUTION} x {RESOLUTION}, batch {BATCH}, SGD, train mode. Written by "
        "`python benchmarks/verify_schedules.py`; every configuration stands in `verify_schedules.csv`.",
        "",
        f"{len(done)} configurations of {len({row['model'] for row in done})} networks: saved bytes and FLOPs equal in "
        f"{sum(row['agrees'] == 'True' for row in done)}; the peak within {GOAL_PERCENT} % in "
        f"{sum(abs(float(row['difference_percent'])) <= GOAL_PERCENT for row in done)}, most off in {worst['model']}, "
        f"{worst['way']}, {worst['levers']}: {worst['difference_percent']} %. After three steps weights and running "
        f"statistics are those of the plain schedule to the bit in {len(bits)}: in "
        f"{sum(row in bits for row in whole)} of {len(whole)} with the whole batch at once or a cache, in "
        f"{sum(row in bits for row in pieces)} of {len(pieces)} with the frozen layers in pieces (in float64).",
        "",
        "The peak above the step's start, measured, in parts of that of the plain schedule (predicted), and times the "
        "FLOPs:",
        "",
        f"| network | way | {' | '.join(KINDS)} |",
        "|---" * (2 + len(KINDS)) + "|",
    ]
    for model, label in dict.fromkeys((row["model"], row["way"]) for row in rows):
        own = {
            row["levers"]: f"{int(row['measured_peak_bytes']) / int(row['plain_peak_bytes']):.2f} "
            f"x{row['times_flops'][:4]}"
            for row in done if (row["model"], row["way"]) == (model, label)
        }  # fmt: skip
        lines.append(f"| {model} | {label} | " + " | ".join(own.get(name, "") for name in KINDS) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Verify everything and write both tables."""
    given = arguments(__doc__)
    torch.set_num_threads(1)
    rows = Rows(RESULTS / "verify_schedules.csv", COLUMNS, ("model", "way", "levers"), given.resume)
    for model in TWELVE:
        if re.search(given.only, model):
            measure(model, rows)
    (RESULTS / "verify_schedules.md").write_text(report(rows.rows, given.date, given.machine))
    sys.exit(any(misses(row) for row in rows.rows if not row["refused"]))


if __name__ == "__main__":
    main()
