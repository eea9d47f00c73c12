"""A trained-to-be network as a folder with which a device trains it: program, manifest, runner.

Everything is made and checked in memory first, so that a refusal leaves nothing behind.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, ModelError, needs
from ..step.schedule import PLAIN, Schedule
from ..training.applied import Applied
from ..training.optimizers import make_optimizer
from .forms import Forms
from .recording import STEP, Recording, record

try:
    from .lowering import Program, lower
    from .running import Running
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "executorch":
        raise
    raise needs("executorch", "export") from None

PROGRAM, MANIFEST, WEIGHTS = "program.pte", "manifest.json", "weights.pt"
MANIFEST_VERSION = 1
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-3, 1e-4


@dataclass(frozen=True)
class Check:
    """The program beside PyTorch, step by step on the same random images.

    loss_difference, weight_difference, logit_difference: the largest; of weights and statistics as a share of the
    tensor's largest value. right: whether as many images were classified right at each step.
    """

    steps: int
    losses: tuple[float, ...]
    torch_losses: tuple[float, ...]
    loss_difference: float
    weight_difference: float
    logit_difference: float
    right: bool

    @property
    def agrees(self) -> bool:
        """Whether the differences are those of rounding."""
        return self.loss_difference <= LOSS_TOLERANCE and self.weight_difference <= WEIGHT_TOLERANCE


@dataclass(frozen=True)
class Export:
    """A program and what was asked for. weights: the network's state dict at the start."""

    program: Program
    check: Check | None
    optimizer: str
    delegate: str
    batch: int
    resolution: int
    classes: int
    learning_rate: float
    weights: dict[str, Tensor]

    def manifest(self, plan: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what goes with the program as plain values; plan: what was exported."""
        return {
            "version": MANIFEST_VERSION,
            "made_with": {name: version(name) for name in ("finetune-planner", "torch", "executorch")}
            | {"python": platform.python_version()},
            "plan": None if plan is None else dict(plan),
            "inputs": {"batch": self.batch, "channels": 3, "resolution": self.resolution, "classes": self.classes},
            "optimizer": self.optimizer,
            "delegate": self.delegate,
            "program": {
                "file": PROGRAM,
                "sha256": hashlib.sha256(self.program.content).hexdigest(),
                "bytes": len(self.program.content),
                "arena_bytes": dict(self.program.arena_bytes),
                "state_bytes": self.program.state_bytes,
            },
            "state": [
                {"name": name, "shape": list(shape), "dtype": dtype}
                for name, shape, dtype in self.program.state
            ],
            "check": None if self.check is None else {**asdict(self.check), "agrees": self.check.agrees},
        }  # fmt: skip

    def write(self, folder: str | Path, plan: Mapping[str, Any] | None = None) -> None:
        """Write program, manifest, starting weights, runner and instructions to a new or empty folder.

        Errors: InputError if there is something in the folder, or it cannot be written.
        """
        target = Path(folder)
        try:
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise InputError(f"{target} is not empty; give --out a folder that does not exist yet")
            target.mkdir(parents=True, exist_ok=True)
            (target / PROGRAM).write_bytes(self.program.content)
            (target / MANIFEST).write_text(json.dumps(self.manifest(plan), indent=2) + "\n", encoding="utf-8")
            torch.save(self.weights, target / WEIGHTS)
            with resources.as_file(resources.files("costmodel.export") / "runner") as runner:
                for file in sorted(runner.iterdir()):
                    if file.is_file():
                        shutil.copyfile(file, target / file.name)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write {str(target)!r}: {getattr(error, 'strerror', None) or error}") from error


def export_step(
    network: torch.nn.Module,
    optimizer: str,
    batch: int,
    resolution: int,
    *,
    delegate: str = "none",
    learning_rate: float = 0.01,
    check_steps: int = 10,
) -> Export:
    """Return an applied network's training step as a program, checked against PyTorch over some steps.

    network: what `costmodel.apply` returned; its schedule is carried out in the program. delegate: none or xnnpack.
    learning_rate: that a run starts with by default, and that the check takes. check_steps: 0 for no check.

    Errors: InputError for a network that is not applied or arguments that do not exist; ModelError, naming them, for
    operations that the runtime has not, and if the program trains otherwise than PyTorch.
    """
    if not isinstance(network, Applied):
        raise InputError("only an applied network can be exported; use costmodel.apply(model, ...) first")
    schedule = _schedule(network)
    network = copy.deepcopy(network).train()
    recording, drew = record(network, optimizer, batch, resolution, schedule.images_per_pass(batch))
    program = lower(recording, delegate)
    check = _check(network, recording, program, optimizer, learning_rate, check_steps, drew) if check_steps else None
    if check is not None and not check.agrees:
        raise ModelError(
            f"the program trains otherwise than PyTorch: after {check.steps} steps losses differ by up to "
            f"{check.loss_difference:.1e} and weights by {check.weight_difference:.1e}, more than rounding; nothing "
            "was written; please report it with the network"
        )
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    return Export(program, check, optimizer, delegate, batch, resolution, recording.classes, learning_rate, weights)


def _schedule(network: Applied) -> Schedule:
    return getattr(network.training_plan, "schedule", PLAIN)


def _check(
    network: Applied, recording: Recording, program: Program, optimizer: str, rate: float, steps: int, drew: bool
) -> Check:
    """Train both on the same random images."""
    running = Running(program.content, [name for name, *_ in program.state])
    reference = copy.deepcopy(network).train()
    update = make_optimizer(optimizer, reference, rate)
    source = torch.Generator().manual_seed(0)
    x, y = recording.inputs[:2]
    images = torch.randn(x.shape, generator=source)
    losses, torch_losses, right = [], [], True
    for number in range(steps):
        images = torch.randn(x.shape, generator=source)
        labels = torch.randint(recording.classes, y.shape, generator=source)
        loss, hits = running.step(images, labels, rate)
        torch_loss, torch_hits = _torch_step(reference, images, labels, recording.micro_batch, number, drew)
        update.step()
        update.zero_grad(set_to_none=True)
        losses.append(loss)
        torch_losses.append(torch_loss)
        right &= hits == torch_hits
    state, own = running.state(), {**reference.state_dict()}
    shared = [name for name in state if name in own and own[name].is_floating_point()]
    reference.eval()
    with torch.no_grad():
        logits = reference(images)
    return Check(
        steps, tuple(losses), tuple(torch_losses),
        max(abs(one - two) for one, two in zip(losses, torch_losses, strict=True)),
        max(_apart(state[name], own[name]) for name in shared),
        _apart(running.predict(images), logits), right,
    )  # fmt: skip


def _apart(one: Tensor, two: Tensor) -> float:
    """Return the largest difference as a share of the largest value, or of 1 if that is larger."""
    apart = float((one - two).abs().max() / max(1.0, float(two.abs().max())))
    return apart if apart == apart else float("inf")  # what is no number is not equal


def _torch_step(
    network: Applied, images: Tensor, labels: Tensor, micro_batch: int, number: int, drew: bool
) -> tuple[float, int]:
    """Run forward and backward; return the loss, and how many images were right.

    drew: the network draws random numbers, which then are those that the program draws in its step of that number.
    """
    total, right, passes = 0.0, 0, len(images) // micro_batch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        counter = torch.tensor(number)
        for x, y in zip(images.split(micro_batch), labels.split(micro_batch), strict=True):
            with Forms(counter, random_only=True) if drew else nullcontext():
                out = network(x)
                loss = F.cross_entropy(out, y)
                (loss / passes).backward()
            total += float(loss.detach()) / passes
            right += int((out.argmax(1) == y).sum())
    return total, right


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of an exported folder. Errors: InputError if there is none that this package reads."""
    path = Path(folder) / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no exported folder: cannot read {path}: {error}") from error
    if not isinstance(found, dict) or found.get("version") != MANIFEST_VERSION:
        raise InputError(f"{path} is no manifest of version {MANIFEST_VERSION}; export the plan anew")
    return found


MAGIC = b"FTPSTATE"
_DTYPES = {"float32": torch.float32, "int64": torch.int64}


def import_state(folder: str | Path, state: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what a runner wrote as a state dict of the whole network, and apart from it the optimizer's state.

    folder: what was exported. state: the runner's file: MAGIC, the program's sha256 (32 bytes), the tensors in the
    manifest's order, little-endian.

    Errors: InputError for a file that is none, is of another program, or has another length.
    """
    manifest = read_manifest(folder)
    try:
        content = Path(state).read_bytes()
        weights = torch.load(Path(folder) / WEIGHTS, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot read what is to be imported: {error}") from error
    head = MAGIC + bytes.fromhex(manifest["program"]["sha256"])
    if not content.startswith(MAGIC):
        raise InputError(f"{state} was not written by a runner: it does not begin with {MAGIC.decode()}")
    if not content.startswith(head):
        raise InputError(f"{state} was written by the runner of another program than {folder}/{PROGRAM}")
    entries = [(entry["name"], torch.Size(entry["shape"]), _DTYPES[entry["dtype"]]) for entry in manifest["state"]]
    wanted = sum(shape.numel() * dtype.itemsize for _, shape, dtype in entries)
    if len(content) - len(head) != wanted:
        raise InputError(f"{state} has {len(content) - len(head):,} bytes of tensors, and {wanted:,} belong there")
    rest: dict[str, Tensor] = {}
    place = len(head)
    for name, shape, dtype in entries:
        size = shape.numel() * dtype.itemsize
        value = torch.frombuffer(bytearray(content[place : place + size]), dtype=dtype).view(shape)
        (weights if name in weights else rest)[name] = value
        place += size
    assert STEP in rest  # every program counts its steps
    return weights, rest
