"""A plan as a folder that trains on a device without Python, its data, and the weights that come back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from costmodel import InputError, footprint, import_state, native_floor, process_of, trace

from ..choosing.plan import Plan
from .images import Images, list_folder, read_folder
from .weights import load_weights, make_network

if TYPE_CHECKING:
    from costmodel import Export

MAGIC = b"FTPDATA1"


@dataclass(frozen=True)
class ExportedPlan:
    """A plan as a program. arena_bytes, process_bytes: what was predicted of it, whatever the plan's accounting."""

    plan: Plan
    export: Export
    arena_bytes: int
    process_bytes: int

    def manifest(self) -> dict[str, Any]:
        """Return what goes with the program as plain values."""
        predicted = {"arena_bytes": self.arena_bytes, "process_bytes": self.process_bytes}
        return self.export.manifest(self.plan.model_dump(mode="json"), predicted)

    def write(self, folder: str | Path) -> None:
        """Write everything to a new or empty folder. Errors: those of `Export.write`."""
        self.export.write(folder, self.manifest())


def export_plan(
    plan: Plan, weights: str | None, delegate: str = "none", learning_rate: float | None = None
) -> ExportedPlan:  # fmt: skip
    """Return a plan's network, with its weights, as a program that trains it as planned.

    weights: as in `planner measure`. learning_rate: of the check's ten steps; default: 0.001 for Adam, else 0.01.

    Errors: those of `load_weights`, `Plan.apply` and `costmodel.export_step`.
    """
    from costmodel import export_step  # which loads the runtime

    graph = trace(plan.model, plan.resolution, plan.classes)
    network, _ = make_network(graph, load_weights(graph.model, weights), seed=0)
    rate = learning_rate or (0.001 if plan.optimizer.startswith("adam") else 0.01)
    step = replace(plan.step(graph), accounting="executorch")
    cost, floor = footprint(step), native_floor("executorch")
    assert floor is not None
    made = export_step(
        plan.apply(network), plan.optimizer, plan.batch, plan.resolution, delegate=delegate, learning_rate=rate,
        schedule=plan.schedule,
    )  # fmt: skip
    return ExportedPlan(plan, made, cost.arena_bytes, process_of(step, floor).bytes)


@dataclass(frozen=True)
class Prepared:
    """Files of images that a runner reads: how many images each has; notes: what is odd in the folder."""

    images: dict[str, int]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def prepare_data(folder: str | Path, resolution: int, out: str | Path, strict: bool = False) -> Prepared:
    """Write the images of a folder, split as `planner measure` splits them, as train.bin and test.bin.

    Errors: InputError for a folder without images, or an `out` that cannot be written.
    """
    listed = list_folder(folder)
    data = read_folder(listed, resolution, strict=strict)
    target = Path(out)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, part in (("train", data.train), ("test", data.test)):
            (target / f"{name}.bin").write_bytes(packed(part, len(listed.classes)))
        (target / "classes.txt").write_text("\n".join(listed.classes) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write the data to {str(target)!r}: {reason}") from error
    return Prepared({"train": len(data.train), "test": len(data.test)}, listed.classes, data.notes)


def packed(images: Images, classes: int) -> bytes:
    """Return images as the runner reads them: header, labels (int32), pixels (bytes), little-endian."""
    return _file(torch.stack(images.pixels), images.labels, classes, images.mean.flatten(), images.deviation.flatten())


def packed_tensors(images: torch.Tensor, labels: Sequence[int], classes: int) -> bytes:
    """Return tensors (N x 3 x H x W, float32, as the network gets them) as the runner reads them."""
    return _file(images.float(), labels, classes, torch.zeros(3), torch.ones(3))


def _file(
    images: torch.Tensor, labels: Sequence[int], classes: int, mean: torch.Tensor, deviation: torch.Tensor
) -> bytes:
    count, channels, height, width = images.shape
    is_float = images.dtype == torch.float32
    header = struct.pack(
        "<8s6I6f", MAGIC, count, channels, height, width, classes, is_float, *mean.tolist(), *deviation.tolist()
    )
    return header + torch.tensor(labels, dtype=torch.int32).numpy().tobytes() + images.contiguous().numpy().tobytes()


def save_weights(folder: str | Path, state: str | Path, out: str | Path) -> tuple[int, int]:
    """Write what a runner saved as a state dict; return how many tensors it has, and after how many steps.

    Errors: those of `costmodel.import_state`; InputError if `out` cannot be written.
    """
    weights, rest = import_state(folder, state)
    try:
        torch.save(weights, out)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot write {str(out)!r}: {error}") from error
    return len(weights), int(rest["step"])
