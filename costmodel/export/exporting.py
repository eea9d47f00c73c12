"""A network and its training step as a folder with which a device trains: program, manifest, runner.

Everything is made and checked in memory first, so that a refusal leaves nothing behind.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, ModelError, missing_package, unknown
from ..step.schedule import Schedule
from ..training.applied import Applied
from .comparing import Check, compare, tolerated
from .recording import record
from .saved import MANIFEST, MANIFEST_VERSION, PROGRAM, WEIGHTS

if TYPE_CHECKING:
    from .lowering import Program


@dataclass(frozen=True)
class Export:
    """A program and what was asked for.

    weights: the network's state dict at the start. process_bytes: of a runner with a delegate, measured here, where the
    system tells; without one they are predicted (`process_of`).
    """

    program: Program
    check: Check | None
    optimizer: str
    delegate: str
    batch: int
    resolution: int
    classes: int
    learning_rate: float
    weights: dict[str, Tensor]
    process_bytes: int | None = None

    def manifest(
        self, plan: Mapping[str, Any] | None = None, predicted: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Return what goes with the program as plain values; plan: what was exported; predicted: bytes, by name."""
        return {
            "version": MANIFEST_VERSION,
            "made_with": {name: version(name) for name in ("finetune-planner", "torch", "executorch")}
            | {"python": platform.python_version()},
            "plan": None if plan is None else dict(plan),
            "predicted": None if predicted is None else dict(predicted),
            "inputs": {"batch": self.batch, "channels": 3, "resolution": self.resolution, "classes": self.classes},
            "optimizer": self.optimizer,
            "delegate": self.delegate,
            "program": {
                "file": PROGRAM,
                "sha256": hashlib.sha256(self.program.content).hexdigest(),
                "crc32": zlib.crc32(self.program.content),
                "bytes": len(self.program.content),
                "arena_bytes": dict(self.program.arena_bytes),
                "state_bytes": self.program.state_bytes,
                "process_bytes": self.process_bytes,
            },
            "state": [
                {"name": name, "shape": list(shape), "dtype": dtype}
                for name, shape, dtype in self.program.state
            ],
            "check": None if self.check is None else {**asdict(self.check), "agrees": self.check.agrees},
        }  # fmt: skip

    def write(self, folder: str | Path, manifest: Mapping[str, Any] | None = None) -> None:
        """Write program, manifest (its own if none is given), starting weights, runner and instructions to a folder.

        The folder is new or empty.

        Errors: InputError if there is something in the folder, or it cannot be written.
        """
        require_new(folder)
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / PROGRAM).write_bytes(self.program.content)
            (target / MANIFEST).write_text(json.dumps(manifest or self.manifest(), indent=2) + "\n", encoding="utf-8")
            torch.save(self.weights, target / WEIGHTS)
            with resources.as_file(resources.files("costmodel.export") / "runner") as runner:
                for file in sorted(runner.iterdir()):
                    if file.is_file():
                        shutil.copyfile(file, target / file.name)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write {str(target)!r}: {getattr(error, 'strerror', None) or error}") from error


def require_new(folder: str | Path) -> None:
    """Raise InputError for a path where something is already, but for an empty folder."""
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is not empty; give --out a folder that does not exist yet")


def export_step(
    network: torch.nn.Module,
    optimizer: str,
    batch: int,
    resolution: int,
    *,
    delegate: str = "none",
    schedule: Schedule | None = None,
    learning_rate: float = 0.01,
    check_steps: int = 10,
) -> Export:
    """Return an applied network's training step as a program, checked against PyTorch over some steps.

    network: what `costmodel.apply` returned. schedule: whose micro-batches the step takes; default: that which the
    network was applied with, of which the program has the prefix and segments in any case. Updates are made as soon as
    a gradient is there. delegate: none or xnnpack. learning_rate: of the check. check_steps: 0 for no check.

    Errors: InputError for a network that is not applied or arguments that do not exist; ModelError, naming them, for
    operations that the runtime has not, and if the program does not train as PyTorch does.
    """
    if not isinstance(network, Applied):
        raise InputError("only an applied network can be exported; use costmodel.apply(model, ...) first")
    schedule = schedule or network.training_plan.schedule
    if schedule.cache is not None:
        raise InputError("a step from cached prefixes cannot be exported; apply the network with another schedule")
    micro_batch = schedule.images_per_pass(batch)
    network = copy.deepcopy(network).train()
    try:
        from .lowering import DELEGATES, lower
        from .resident import process_bytes
        from .running import Running
    except ModuleNotFoundError as error:
        raise missing_package(error, "export_step") or error from error
    if delegate not in DELEGATES:
        raise unknown("delegate", delegate, DELEGATES)
    recording = record(network, optimizer, batch, resolution, micro_batch)
    program = lower(recording, delegate)
    check = None
    if check_steps:
        names = [name for name, *_ in program.state]
        try:
            check = compare(Running(program.content, names), network, recording, optimizer, learning_rate, check_steps)
        except RuntimeError as error:
            raise ModelError(f"the runtime cannot run the program: {error}; nothing was written") from error
    if check is not None and not check.agrees:
        raise ModelError(
            f"the program does not train as PyTorch does: in one of {check.steps} single steps losses differ by "
            f"{check.loss_difference:.1e}, predictions by {check.logit_difference:.1e}, statistics by "
            f"{check.statistics_difference:.1e}, and the change of {check.tensor} by {check.change_difference:.1%}, "
            f"where {tolerated(check.rounding):.1%} would be rounding; nothing was written; please report it with the "
            "network"
        )
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    process = None if delegate == "none" else process_bytes(program.content, program.calls, batch, resolution, delegate)
    return Export(
        program, check, optimizer, delegate, batch, resolution, recording.classes, learning_rate, weights, process
    )
