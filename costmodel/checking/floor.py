"""What a training process holds beside the step: interpreter, libraries, kernels loaded on first use. Measured here.

A fresh process trains a small network on a few images by `planner train`, in the arena. Its anonymous pages, less the
predicted peak of that step with its kernels' working memory, and those pages of files that a further step uses
(`Referenced` after /proc/self/clear_refs), are the floor. Anonymous pages must stay in RAM where there is no swap; of
pages of files the system drops those that are not in use. A loop of one's own holds some megabytes less.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version

import torch

from ..accounting.kernels import Kernels
from ..answers.footprint import footprint
from ..errors import ModelError, one_line
from ..machine.process import Floor
from ..step.step import Step
from ..traces.stored import trace
from ..units import format_bytes

# By the library that builds the network, which adds its own modules: a network of it.
MODELS = {"torchvision": "torchvision:mobilenet_v2", "timm": "timm:mobilenetv2_100"}
BATCH, RESOLUTION, CLASSES = 2, 96, 2
PROGRAM = "planner.interface.sample"  # run, not imported: this package stands below it
# Larger networks have more modules and a longer trace. Source: benchmarks/results/hard_limit.md: without it three of 60
# plans, on EfficientNet-B0 and FBNet-C, were killed under the predicted memory.
_SPREAD_BYTES = 4_000_000
_SECONDS = 300  # of a run, on the slowest board


def parse(smaps: str) -> dict[str, int]:
    """Return bytes by kind from the text of /proc/PID/smaps; USS are private pages, PSS counts shared ones in part."""
    found: dict[str, int] = dict.fromkeys(("anonymous", "files", "files_in_use", "uss", "pss"), 0)
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)[1:]:
        size = {name: 1024 * int(kib) for name, kib in re.findall(r"^(\w+): +(\d+) kB$", mapping, re.MULTILINE)}
        files = size["Rss"] - size["Anonymous"]
        found["anonymous"] += size["Anonymous"]
        found["files"] += files
        found["files_in_use"] += min(files, size["Referenced"])
        found["uss"] += size["Private_Clean"] + size["Private_Dirty"]
        found["pss"] += size["Pss"]
    return found


def measure_floors(runs: int = 3, libraries: Iterable[str] = tuple(MODELS)) -> dict[str, Floor]:
    """Return the floor of a training process of this installation, by the library that builds the network.

    runs: fresh processes of each, whose median counts. libraries: those that are not installed are left out.

    Errors: ModelError where the system does not tell (it takes Linux), or the process fails.
    """
    return {
        library: _floor(library, MODELS[library], runs)
        for library in libraries
        if importlib.util.find_spec(library) is not None
    }


def _floor(library: str, model: str, runs: int) -> Floor:
    found = [_run(model) for _ in range(runs)]
    threads = torch.get_num_threads()
    step = Step(trace(model, RESOLUTION, CLASSES), batch=BATCH, kernels=Kernels("layers", threads))
    own = [one["anonymous"] + one["files_in_use"] for one in found]
    return Floor(
        int(statistics.median(own)) - footprint(step).peak_bytes + _SPREAD_BYTES,
        "measured",
        f"torch {version('torch')}, {library} {version(library)}, Python {platform.python_version()}, {threads} "
        f"threads: `planner train` here (anonymous pages and files in use, median of {runs}), less its step, "
        f"and {format_bytes(_SPREAD_BYTES)} for larger networks",
    )


def _run(model: str) -> dict[str, int]:
    if not os.path.exists("/proc/self/smaps"):
        raise ModelError("this system does not say what memory a process holds (/proc/self/smaps); measure it on Linux")
    command = [sys.executable, "-m", PROGRAM, model, str(BATCH), str(RESOLUTION), str(CLASSES)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment)
    if done.returncode:
        raise ModelError(f"a small training process fails here: {one_line(done.stderr[-300:])}")
    held = [parse(text) for text in json.loads(done.stdout.splitlines()[-1])]
    *_, after_step, _ = held  # the last is of the end
    return {**after_step, "anonymous": max(one["anonymous"] for one in held)}
