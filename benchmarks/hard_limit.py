"""The smallest hard memory limit that ten training steps survive, against the memory predicted of the process.

    python benchmarks/hard_limit.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' [--resume]

A configuration is a network, a way, a schedule, a batch and a resolution, drawn at random (SEED). Each runs ten steps
in a fresh process:

    survives    whether it survives the predicted process_bytes as the hard limit of a memory cgroup, with the arena
    anonymous   its most anonymous resident memory there, sampled every two milliseconds; of every third configuration
                also with default malloc, without a limit
    smallest    of every fifth configuration the smallest limit that it survives with the arena, to 2 %

Where no memory cgroup can be made, only the sampled memory is there. Writes results/hard_limit.csv as it goes.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from hard_limit_worker import anonymous
from verifying import RESULTS, TWELVE, Rows, arguments

from costmodel import Step, best_schedule, block_count, trace, way
from costmodel.checking.floor import measure_floors
from costmodel.machine.process import Floor, library_of, process_of

SEED, COUNT = 17, 60
COMPARED = 3  # of every so many default malloc's memory is measured, too
SEARCHED = 5  # of every so many the smallest limit is searched
WORKER = Path(__file__).with_name("hard_limit_worker.py")
CGROUPS = Path("/sys/fs/cgroup/memory")
COLUMNS = (
    "number", "model", "way", "step", "schedule", "floor_bytes", "step_bytes", "process_bytes", "survives_prediction",
    "arena_anonymous_bytes", "start_anonymous_bytes", "default_anonymous_bytes", "smallest_limit_bytes",
)  # fmt: skip
KEY = ("number",)


def configurations() -> Iterator[dict]:
    """Yield the configurations, as what `worker` takes."""
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
    graph = trace(one["model"], one["resolution"])
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


def run(given: dict, allocator: str, limit: int | None = None) -> dict | None:
    """Return what a worker held at most and said; None if it was killed."""
    group = cgroup(limit)

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, WORKER, json.dumps(given), allocator]
    try:
        done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=enter)
        most = 0
        while done.poll() is None:
            most = max(most, anonymous(done.pid))
            time.sleep(0.002)
        out, err = done.communicate()
    finally:
        if group is not None:
            group.rmdir()
    if done.returncode == -9:
        return None
    if done.returncode:
        raise RuntimeError(err[-2000:])
    return {"most": most, **json.loads(out.splitlines()[-1])}


def smallest_limit(given: dict, seen: int, most: int) -> int | None:
    """Return the smallest limit that the steps survive, of some around the anonymous memory that was seen."""
    for percent in (97, 99, 101, 103):
        limit = seen * percent // 100
        if limit < most and run(given, "arena", limit) is not None:
            return limit
    return most


@cache
def can_limit() -> bool:
    """Whether this machine lets a memory cgroup be made."""
    group = cgroup(1 << 40)
    if group is not None:
        group.rmdir()
    return group is not None


def measure(one: dict, rows: Rows, floors: dict[str, Floor]) -> None:
    step = step_of(one)
    given = {
        "model": one["model"], "resolution": one["resolution"], "batch": one["batch"], "optimizer": one["optimizer"],
        "way": step.way.to_dict(), "schedule": step.schedule.to_dict(step.batch) | {"batch": step.batch},
    }  # fmt: skip
    floor = floors[library_of(one["model"])]
    found = process_of(step, floor, "arena", torch.get_num_threads())
    arena = run(given, "arena", found.bytes if can_limit() else None)
    seen = arena or run(given, "arena")
    assert seen is not None  # without a limit nothing is killed
    default = run(given, "default") if one["number"] % COMPARED == 0 else None
    limit = None
    if can_limit() and arena is not None and one["number"] % SEARCHED == 0:
        limit = smallest_limit(given, seen["most"], found.bytes)
    rows.add({
        "number": one["number"], "model": one["model"], "way": step.way.label, "step": step.label,
        "schedule": step.schedule.label(step.batch), "floor_bytes": floor.bytes, "step_bytes": found.step_bytes,
        "process_bytes": found.bytes, "survives_prediction": arena is not None if can_limit() else None,
        "arena_anonymous_bytes": seen["most"], "start_anonymous_bytes": seen["start"],
        "default_anonymous_bytes": default and default["most"], "smallest_limit_bytes": limit,
    })  # fmt: skip
    print({name: value for name, value in rows.rows[-1].items()}, flush=True)


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


if __name__ == "__main__":
    main()
