"""Plans as programs of ExecuTorch: do they train as PyTorch does, natively, in the memory that is predicted?

    python benchmarks/export_executorch.py --date 2026-11-21 --machine '2-core x86-64 virtual machine'

For each row: the step is exported, and compared with PyTorch over ten steps (losses, weights, statistics); the C++
runner is built once and trains the same ten batches in a process of its own; its weights are imported and compared, its
resident memory is what the system says. Predicted of it: arenas + program + one batch in the runner + the runtime
(`RUNTIME_BYTES`, measured with the smallest program). Needs the extra `executorch`, CMake and a C++ compiler.
Writes results/export_executorch.csv row by row (a rerun goes on) and results/export_executorch.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import executorch
import torch
from verifying import RESULTS, versions

from costmodel import OPTIMIZERS, Way, apply, build, export_step, footprint, import_state, trace, way
from costmodel.export.comparing import compare
from costmodel.export.recording import record
from costmodel.training.optimizers import make_optimizer
from planner.campaign.exporting import packed_tensors

RESOLUTION, BATCH, CLASSES, STEPS, RATE = 96, 8, 10, 10, 0.01
V2 = "torchvision:mobilenet_v2"
ROWS: tuple[tuple[str, Way, str, str], ...] = (
    ("zoo:mcunet_5fps", way("mobiletl", 3), "sgd", "none"),
    ("torchvision:mobilenet_v3_small", way("mobiletl", 3), "sgd", "none"),
    (V2, way("last"), "sgd", "none"),
    (V2, way("last"), "sgd", "xnnpack"),
    (V2, way("mobiletl", 3), "sgd", "none"),
    (V2, way("mobiletl", 3), "sgd", "xnnpack"),
    (V2, way("bias"), "sgd", "none"),
    (V2, way("blocks", 3), "sgd", "none"),
    (V2, way("mobiletl", 5), "momentum", "none"),
    (V2, way("full"), "sgd", "none"),
    ("zoo:proxylessnas_mobile_w03", way("mobiletl", 3), "adam", "none"),
    ("zoo:proxylessnas_mobile_tinytl", way("tinytl-lb"), "sgd", "none"),
)
COLUMNS = (
    "network", "way", "optimizer", "delegate", "predicted_arena_bytes", "arena_bytes", "state_bytes", "program_bytes",
    "loss_difference", "weight_difference", "rounding", "imported_difference", "resident_bytes",
    "predicted_resident_bytes", "step_seconds", "torch_step_seconds", "export_seconds",
)  # fmt: skip
RUNTIME_BYTES = 11_600_000  # Source: this benchmark; resident memory of the runner beyond what is counted, first row


def build_runner(folder: Path) -> Path:
    """Build the runner of an exported folder."""
    prefix = Path(next(iter(executorch.__path__)))
    for command in (
        ["cmake", "-S", str(folder), "-B", str(folder / "build"), f"-DCMAKE_PREFIX_PATH={prefix}", "-DXNNPACK=ON"],
        ["cmake", "--build", str(folder / "build")],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return folder / "build" / "runner"
