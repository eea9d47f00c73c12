"""The smallest hard memory limit that ten training steps survive, against the memory predicted of the process.

    python benchmarks/hard_limit.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' [--resume]

A configuration is a network, a way, a schedule, a batch and a resolution, drawn at random (SEED). Each runs ten steps
in a fresh process:

    anonymous   its most anonymous resident memory, sampled every millisecond, without a limit, for each allocator
    limit       whether it survives the predicted process_bytes as the hard limit of a memory cgroup, with the arena,
                and the smallest limit that it survives, of some around its anonymous memory

Where no memory cgroup can be made, only the sampled memory is there. Writes results/hard_limit.csv as it goes, and
results/hard_limit.md.
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
WORKER = Path(__file__).with_name("hard_limit_worker.py")
CGROUPS = Path("/sys/fs/cgroup/memory")
COLUMNS = (
    "number", "model", "way", "step", "schedule", "floor_bytes", "step_bytes", "process_bytes", "arena_anonymous_bytes",
    "default_anonymous_bytes", "start_anonymous_bytes", "survives_prediction", "arena_limit_bytes",
)  # fmt: skip
KEY = ("number",)


def configurations() -> Iterator[dict]:
    """Yield the configurations, as what `worker` takes."""
    draw = random.Random(SEED)
    for number in range(COUNT):
        model = TWELVE[number % len(TWELVE)]
        batch, resolution = draw.choice((4, 8, 16)), draw.choice((96, 128, 160, 192))
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
            time.sleep(0.001 if limit is None else 0.05)
        out, err = done.communicate()
    finally:
        if group is not None:
            group.rmdir()
    if done.returncode == -9:
        return None
    if done.returncode:
        raise RuntimeError(err[-2000:])
    return {"most": most, **json.loads(out.splitlines()[-1])}


def smallest_limit(given: dict, predicted: int, seen: int) -> tuple[bool, int | None]:
    """Return whether the steps survive the predicted limit, and the smallest one that they were seen to survive.

    seen: the anonymous memory without a limit, near which the smallest limit lies.
    """
    survives = run(given, "arena", predicted) is not None
    tried = [*((seen * percent) // 100 for percent in (97, 99, 101, 103)), predicted]
    found = [limit for limit in tried if limit > predicted or not survives or limit < predicted]
    for limit in sorted(found):
        if run(given, "arena", limit) is not None:
            return survives, limit
    return survives, predicted if survives else None


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
    seen = {allocator: run(given, allocator) for allocator in ("arena", "default")}
    survives, limit = smallest_limit(given, found.bytes, seen["arena"]["most"]) if can_limit() else (None, None)
    rows.add({
        "number": one["number"], "model": one["model"], "way": step.way.label, "step": step.label,
        "schedule": step.schedule.label(step.batch), "floor_bytes": floor.bytes, "step_bytes": found.step_bytes,
        "process_bytes": found.bytes, **{f"{name}_anonymous_bytes": each["most"] for name, each in seen.items()},
        "start_anonymous_bytes": seen["arena"]["start"], "survives_prediction": survives, "arena_limit_bytes": limit,
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
