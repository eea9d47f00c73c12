"""Training under a hard memory limit: does a plan survive exactly the memory that is predicted of the process?

    python benchmarks/hard_limit.py --date 2026-11-22 --machine '2-core x86-64 virtual machine' [--resume]

A configuration is a network, a way, a schedule, an optimizer, a batch and a resolution, drawn at random (SEED). Each is
made a plan, and `planner train` trains it for an epoch of STEPS steps in a memory cgroup:

    survives    whether it survives the predicted process_bytes as the hard limit, with the arena
    anonymous   its most anonymous resident memory there, sampled every two milliseconds; of every third configuration
                also with tight and default malloc, without a limit
    smallest    of every fifth configuration the smallest limit that it survives with the arena, to 2 %

Where no memory cgroup can be made, only the sampled memory is there. Writes results/hard_limit.csv as it goes, and
results/hard_limit.md.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from verifying import RESULTS, TWELVE, Rows, arguments, versions

from costmodel import Step, best_schedule, block_count, footprint, trace, way
from costmodel.checking.floor import CLASSES, measure_floors
from costmodel.machine.process import Floor, library_of, process_of
from planner.choosing.plan import Plan
from planner.estimates.estimated import Estimate
from planner.interface.sample import make_images

SEED, COUNT, STEPS = 17, 60, 6
COMPARED = 3  # of every so many the other allocators are measured, too
SEARCHED = 5  # of every so many the smallest limit is searched
CGROUPS = Path("/sys/fs/cgroup/memory")
ALLOCATORS = ("arena", "tight", "default")
COLUMNS = (
    "number", "model", "way", "step", "schedule", "floor_bytes", "step_bytes", "process_bytes", "survives_prediction",
    *(f"{name}_anonymous_bytes" for name in ALLOCATORS), "smallest_limit_bytes",
)  # fmt: skip
KEY = ("number",)


def configurations() -> Iterator[dict]:
    """Yield what decides a configuration."""
    draw = random.Random(SEED)
    for number in range(COUNT):
        model = TWELVE[number % len(TWELVE)]
        batch, resolution = draw.choice((2, 4, 8)), draw.choice((96, 128, 160, 192))
        method = draw.choice(("full", "bias", "norm", "blocks", "blocks", "mobiletl"))
        optimizer = draw.choice(("sgd", "sgd", "adam"))
        kind = draw.choice(("plain", "plain", "best"))
        depth, most = draw.random(), draw.choice((1.0, 1.1, 1.33))
        yield {"number": number, "model": model, "batch": batch, "resolution": resolution, "method": method,
               "depth": depth, "optimizer": optimizer, "kind": kind, "most": most}  # fmt: skip


def step_of(one: dict) -> Step:
    graph = trace(one["model"], one["resolution"], CLASSES)
    depth = None
    if one["method"] in ("blocks", "mobiletl"):
        depth = 1 + int(one["depth"] * block_count(graph))
    step = Step(graph, way(one["method"], depth), one["batch"], optimizer=one["optimizer"])
    if one["kind"] == "best":
        schedule = best_schedule(step, most_flops=one["most"])
        step = Step(graph, step.way, step.batch, schedule, optimizer=step.optimizer)
    return step


def cgroup(limit: int | None) -> Path | None:
    """Return a new memory cgroup with a limit; None where that is not allowed, or none is asked for."""
    if limit is None:
        return None
    path = CGROUPS / f"hard-limit-{os.getpid()}"
    try:
        path.mkdir()
        (path / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        return None
    return path


@cache
def can_limit() -> bool:
    """Whether this machine lets a memory cgroup be made."""
    group = cgroup(1 << 40)
    if group is not None:
        group.rmdir()
    return group is not None


def anonymous(pid: int) -> int:
    """Return a process's anonymous resident bytes; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+)", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def run(place: Path, allocator: str, limit: int | None = None) -> int | None:
    """Train the plan of a folder; return the most anonymous bytes that the process held, None if it was killed."""
    group = cgroup(limit)

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    with TemporaryDirectory() as out:
        command = [sys.executable, "-m", "planner", "train", str(place / "plan.json"), "--data", str(place)]
        command += ["--weights", "random", "--lr", "1e-6", "--epochs", "1", "--out", out, "--allocator", allocator]
        try:
            done = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=enter
            )
            most = 0
            while done.poll() is None:
                most = max(most, anonymous(done.pid))
                time.sleep(0.002)
            _, said = done.communicate()
        finally:
            if group is not None:
                group.rmdir()
    if done.returncode == -9:
        return None
    if done.returncode:
        raise RuntimeError(said[-2000:])
    return most


def smallest_limit(place: Path, seen: int, most: int) -> int:
    """Return the smallest limit that the training survives, of some around the anonymous memory that was seen."""
    for percent in (97, 99, 101, 103):
        limit = seen * percent // 100
        if limit < most and run(place, "arena", limit) is not None:
            return limit
    return most


def measure(one: dict, rows: Rows, floors: dict[str, Floor]) -> None:
    step = step_of(one)
    floor = floors[library_of(one["model"])]
    found = process_of(step, floor, "arena", torch.get_num_threads())
    seen: dict[str, int | None] = dict.fromkeys(ALLOCATORS)
    with TemporaryDirectory() as folder:
        place, limit = Path(folder), None
        Plan.of_step(step, footprint(step), Estimate.unknown("nothing")).save(place / "plan.json")
        make_images(place, STEPS * step.batch, one["resolution"], CLASSES)
        inside = run(place, "arena", found.bytes if can_limit() else None)
        seen["arena"] = inside or run(place, "arena")
        assert seen["arena"] is not None  # without a limit nothing is killed
        if one["number"] % COMPARED == 0:
            seen |= {name: run(place, name) for name in ALLOCATORS[1:]}
        if can_limit() and inside is not None and one["number"] % SEARCHED == 0:
            limit = smallest_limit(place, inside, found.bytes)
    rows.add({
        "number": one["number"], "model": one["model"], "way": step.way.label, "step": step.label,
        "schedule": step.schedule.label(step.batch), "floor_bytes": floor.bytes, "step_bytes": found.step_bytes,
        "process_bytes": found.bytes, "survives_prediction": inside is not None if can_limit() else None,
        **{f"{name}_anonymous_bytes": seen[name] for name in ALLOCATORS}, "smallest_limit_bytes": limit,
    })  # fmt: skip
    print({name: value for name, value in rows.rows[-1].items()}, flush=True)


def table(rows: Rows, date: str, machine: str) -> str:
    """Return the results for people."""

    def ratios(name: str) -> list[float]:
        return [int(row[name]) / int(row["process_bytes"]) for row in rows.rows if row[name]]

    survived = [row for row in rows.rows if row["survives_prediction"] == "True"]
    lines = [
        "# Training under a hard memory limit", "",
        f"{date}; {versions()}; {machine}, {torch.get_num_threads()} thread(s). Written by `python "
        "benchmarks/hard_limit.py`; a row per configuration stands in `hard_limit.csv`.", "",
        f"{len(survived)} of {len(rows.rows)} plans, drawn at random, are trained by `planner train` for an epoch "
        "under a memory cgroup of exactly the predicted `process_bytes`.", "",
        "In parts of the predicted process (floor, step with kernels, what the arena may hold):", "",
        "| | configurations | median | least | most |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, what in (
        ("smallest_limit_bytes", "smallest limit survived, arena"),
        *((f"{name}_anonymous_bytes", f"anonymous memory, {name}") for name in ALLOCATORS),
    ):  # fmt: skip
        if found := ratios(name):
            lines.append(f"| {what} | {len(found)} | {median(found):.2f} | {min(found):.2f} | {max(found):.2f} |")
    lines += ["", "Killed under the prediction:", ""]
    lines += [
        f"- {row['model']}, {row['way']}, {row['step']}, {row['schedule']}: predicted "
        f"{int(row['process_bytes']) / 1e6:.0f} MB, anonymous {int(row['arena_anonymous_bytes']) / 1e6:.0f} MB"
        for row in rows.rows if row not in survived
    ] or ["None."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    options = arguments(__doc__)
    rows = Rows(RESULTS / "hard_limit.csv", COLUMNS, KEY, options.resume)
    open_ones = [
        one for one in configurations()
        if {"number": one["number"]} not in rows and (not options.only or re.search(options.only, one["model"]))
    ]  # fmt: skip
    floors = measure_floors() if open_ones else {}
    for one in open_ones:
        measure(one, rows, floors)
        (RESULTS / "hard_limit.md").write_text(table(rows, options.date, options.machine))


if __name__ == "__main__":
    main()
