"""Ten training steps in a process of their own, for hard_limit.py; prints what it held before the first and at the end.

    python hard_limit_worker.py '{"model": ..., "way": ..., "schedule": ..., ...}' arena

It imports what a training program needs, and no more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from costmodel import Arena, Step, schedule_from, trace, way_from
from costmodel.checking.steps import runner

STEPS = 10


def anonymous(pid: int | str = "self") -> int:
    """Return a process's anonymous resident bytes; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line for line in text.splitlines() if line.startswith("RssAnon")]
    return 1024 * int(found[0].split()[1]) if found else 0


def main() -> None:
    given, allocator = json.loads(sys.argv[1]), sys.argv[2]
    graph, schedule = trace(given["model"], given["resolution"]), schedule_from(given["schedule"])
    step = Step(graph, way_from(given["way"]), given["batch"], schedule, optimizer=given["optimizer"])
    run = runner(step, Arena(allocator).step)
    start = anonymous()
    losses = [run() for _ in range(STEPS)]
    print(json.dumps({"start": start, "end": anonymous(), "losses": losses}))


if __name__ == "__main__":
    main()
