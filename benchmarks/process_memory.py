"""What a training process needs beside the training's own memory: the interpreter, torch, kernels loaded on first use.

    python benchmarks/process_memory.py --date 2026-11-20 --machine '2-core x86-64 virtual machine'

To be run with a CPU build of PyTorch: a CUDA build's libraries weigh hundreds of megabytes more. Each stage is a fresh
process, run several times; medians of what /proc/self/smaps says. Resident pages are of two kinds:

    anonymous   heap, stacks, written parts of libraries: must stay in RAM (where there is no swap)
    files       code and constants of libraries: the kernel drops what is not in use, and reads it again when it is

The process's own part, which a device file calls `process`, is that of a small training by `planner train`, as
`costmodel calibrate` measures it (costmodel/checking/floor.py). Linux only.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import torchvision

from costmodel.checking.floor import BATCH, MODELS, RESOLUTION, measure_floors, parse

THREADS = 4
LIBRARY = "torchvision"
MODEL = MODELS[LIBRARY].partition(":")[2]
RESULT = Path(__file__).parent / "results" / "process_memory.md"

_TRAIN = f"""
import torch, torchvision
torch.set_num_threads({THREADS})
model = torchvision.models.{MODEL}().train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

def step():
    images, labels = torch.randn({BATCH}, 3, {RESOLUTION}, {RESOLUTION}), torch.zeros({BATCH}, dtype=torch.long)
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

for _ in range(3):
    step()
"""
STAGES = {
    "interpreter": "",
    "import torch": "import torch",
    "import torch, torchvision": "import torch, torchvision",
    "three tiny training steps": _TRAIN,
}
_REPORT = "print(open('/proc/self/smaps').read(), open('/proc/self/status').read(), sep='\\0')"


def measured(program: str) -> dict[str, int]:
    """Return what a fresh process holds after running a program, and the most it ever held (`peak`)."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{_REPORT}"],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
    )  # fmt: skip
    smaps, _, status = done.stdout.partition("\0")
    return {**parse(smaps), "peak": 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True, help="the day of the run")
    parser.add_argument("--machine", required=True, help="such as '2-core x86-64 virtual machine'")
    parser.add_argument("--note", default="", help="what a reader should know of this run")
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    rows = {}
    for stage, program in STAGES.items():
        runs = [measured(program) for _ in range(given.runs)]
        rows[stage] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    torch.set_num_threads(THREADS)
    floor = measure_floors(given.runs, [LIBRARY])[LIBRARY]

    def cells(row: dict[str, float]) -> str:
        return " | ".join(f"{row[name] / 1e6:.1f}" for name in ("anonymous", "files", "uss", "pss", "peak"))

    lines = [
        "# What a training process needs beside the training's own memory",
        "",
        f"{given.date}; torch {torch.__version__}, torchvision {torchvision.__version__}, Python "
        f"{platform.python_version()}; {given.machine}, {THREADS} threads; MB (1e6 bytes), medians of {given.runs} "
        f"fresh processes. {given.note} Written by `python benchmarks/process_memory.py`, whose first lines say what "
        "is what.",
        "",
        "| after | anonymous | files | USS | PSS | peak RSS |",
        "|---|---|---|---|---|---|",
        *(f"| {stage} | {cells(row)} |" for stage, row in rows.items()),
        "",
        f"The training step is {MODEL}, all of it trained by SGD, batch {BATCH}, {RESOLUTION} x {RESOLUTION}.",
        "",
        f"A process of `planner train`, less its step (`process` of the device files, to the megabyte above), in MB: "
        f"**{floor.bytes / 1e6:.1f}**",
        "",
        "Assumption of the device files: a CPU build of PyTorch on 64-bit Arm needs as much as this one on x86-64. It "
        "was not measured there; this script measures it. `import torchvision` loads torch._dynamo and sympy too: a "
        "program that builds its network without torchvision saves that line's difference.",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text)


if __name__ == "__main__":
    main()
