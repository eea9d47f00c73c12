"""The folder that a training writes to: whatever moment it is killed at, it can go on from there.

    plan.json            the plan
    run.json             what the training depends on: plan, images, weights, course
    checkpoint.pt        where it is, while it goes on
    cache/               the outputs of the frozen prefix, if the schedule has a cache
    weights.safetensors  the state dict of the best epoch
    trained.json         its classes, preprocessing and accuracy

Every file is written beside its place, and then put there at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from costmodel.errors import InputError
from costmodel.reading import check_file, first_problem, read_file

from ..choosing.plan import Plan
from .trained import TRAINED, WEIGHTS, Trained

try:
    import fcntl
except ImportError:  # Windows: nothing tells there that a second training writes to the folder
    fcntl = None

PLAN, RUN, CHECKPOINT, CACHE = "plan.json", "run.json", "checkpoint.pt", "cache"
_LOCK, _PART = ".lock", ".part"
_PARTS = TypeAdapter(dict[str, str])


class Folder:
    """The folder of one training, held by one process."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @contextmanager
    def held(self) -> Iterator[Folder]:
        """Hold the folder, which is made if there is none.

        Errors: InputError if another process holds it, if it cannot be made, or has something else in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot write to the folder {str(self.path)!r}: {reason}") from error
        try:
            self._lock(lock)
            others = [each.name for each in self.path.iterdir() if each.name != _LOCK and each.suffix != _PART]
            if others and not (self.path / RUN).exists():
                raise InputError(
                    f"{self.path} holds {sorted(others)[0]!r} and was not made by planner train; give another --out"
                )
            yield self
        finally:
            os.close(lock)

    def _lock(self, lock: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process trains into {self.path}; wait, or give another --out") from None

    def check(self, parts: Mapping[str, str]) -> None:
        """Raise InputError, with what differs, if the folder's training depends on something else."""
        if not (self.path / RUN).exists():
            return
        try:
            before = _PARTS.validate_json(read_file(self.path / RUN, "training's record"))
        except ValidationError as error:
            raise InputError(f"{self.path / RUN} is damaged; give another --out, or delete the folder") from error
        differs = [f"{name} ({before[name]}, now {now})" for name, now in parts.items() if before.get(name, now) != now]
        if differs:
            raise InputError(
                f"{self.path} holds a training that differs in {', '.join(differs)}; give the same to go on, or "
                "another --out"
            )

    def begin(self, plan: Plan, parts: Mapping[str, str]) -> None:
        """Note what the training depends on. Errors: those of `check`."""
        self.check(parts)
        if not (self.path / RUN).exists():
            self._write(PLAN, lambda path: plan.save(path))
            self._write(RUN, lambda path: path.write_text(json.dumps(dict(parts), indent=2) + "\n", encoding="utf-8"))

    def keep_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write where the training is."""
        self._write(CHECKPOINT, lambda path: torch.save(dict(state), path))

    def checkpoint(self) -> dict[str, Any] | None:
        """Return where the training was; None if there is no checkpoint. Errors: InputError for a damaged one."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        check_file(path, "weights")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises of every kind
            raise InputError(f"{path} is damaged; delete it to train from the start again") from error

    def keep_best(self, state: Mapping[str, torch.Tensor]) -> None:
        """Write the weights of the best epoch."""
        self._write(WEIGHTS, lambda path: save_file(dict(state), path))

    def keep_trained(self, trained: Trained) -> None:
        """Write what the weights come with."""
        text = trained.model_dump_json(indent=2) + "\n"
        self._write(TRAINED, lambda path: path.write_text(text, encoding="utf-8"))

    def finish(self) -> None:
        """Remove what was needed to go on."""
        for name in (CHECKPOINT, CHECKPOINT + _PART):
            (self.path / name).unlink(missing_ok=True)

    def trained(self) -> Trained | None:
        """Return what the trained network comes with; None if no epoch is over.

        Errors: InputError for a file that something else has changed.
        """
        path = self.path / TRAINED
        if not path.exists():
            return None
        try:
            return Trained.model_validate_json(read_file(path, "training's record"))
        except ValidationError as error:
            problem = first_problem(error)
            raise InputError(f"{path} is damaged: {problem.key or 'it'}: {problem.reason}") from error

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the state dict of the best epoch. Errors: InputError if it cannot be read."""
        path = self.path / WEIGHTS
        check_file(path, "weights")
        try:
            return load_file(path)
        except Exception as error:  # safetensors has errors of its own
            raise InputError(f"{path} is damaged: {error}") from error

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """Put a file in its place at once, and on the disk."""
        beside = self.path / f"{name}{_PART}"
        try:
            write(beside)
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            beside.replace(self.path / name)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise


class PixelFile:
    """Pixels in a file that is mapped into memory, so that the system can take the memory back; it has no name.

    Errors: OSError if the disk cannot take so many bytes.
    """

    def __init__(self, folder: Path, size: int):
        file = TemporaryFile(dir=folder)  # noqa: SIM115  # the map holds it
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        self.pixels = torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,)))
        self.used = 0

    def keep(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return an image's pixels, kept in the file."""
        place = self.pixels[self.used : self.used + pixels.numel()].view(pixels.shape)
        self.used += pixels.numel()
        return place.copy_(pixels)
