"""What `costmodel calibrate` found out about this machine, kept in a file: floors of the process, times of steps.

One file per machine and version of torch. A file that cannot be read is treated as missing.
"""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..reading import read_file
from ..step.step import Step
from ..units import counted
from .folder import cache_folder
from .process import ASSUMED, Floor, library_of, native_floor
from .step_time import StepTime

VERSION = 1
Finite = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeptFloor(_Record):
    """A `Floor`."""

    bytes: Bytes
    kind: Literal["measured", "assumed"]
    source: str

    @property
    def floor(self) -> Floor:
        """The value."""
        return Floor(self.bytes, self.kind, self.source)


class KeptStepTime(_Record):
    """A `StepTime`; seconds: of one FLOP, byte or call by feature, such as 'forward pointwise flops'."""

    allocator: str
    threads: Annotated[int, Field(ge=1)]
    spread: Finite
    median_error: Finite
    worst_error: Finite
    basis: str
    seconds: dict[str, Finite]

    @classmethod
    def of(cls, model: StepTime) -> KeptStepTime:
        """Return what to keep of a model."""
        own = {name: getattr(model, name) for name in cls.model_fields if name != "seconds"}
        return cls(**own, seconds=model.by_feature())

    @property
    def step_time(self) -> StepTime:
        """The value. Errors: InputError for a feature that does not exist."""
        return StepTime.from_features(self.seconds, **self.model_dump(exclude={"seconds"}))


class Calibration(_Record):
    """What is known of a machine. floors: by library that builds the network."""

    version: Literal[1] = VERSION
    machine: str
    floors: dict[str, KeptFloor] = Field(default_factory=dict)
    step_times: tuple[KeptStepTime, ...] = ()

    def floor(self, model: str) -> Floor:
        """Return the floor of a process that trains a network, or what is assumed."""
        found = self.floors.get(library_of(model))
        return ASSUMED if found is None else found.floor

    def floor_of(self, step: Step) -> Floor:
        """Return the floor of a process that trains by a step: of a native runtime, if its accounting is of one."""
        return native_floor(step.accounting) or self.floor(step.graph.model)

    def step_time(self, allocator: str = "arena", threads: int | None = None) -> StepTime | None:
        """Return the times that were fitted for an allocator and a number of threads (any if None); None if none."""
        for one in self.step_times:
            if one.allocator == allocator and threads in (None, one.threads):
                return one.step_time
        return None

    def with_step_time(self, model: StepTime) -> Calibration:
        """Return the calibration with a model in place of the one for the same allocator and number of threads."""
        others = [one for one in self.step_times if (one.allocator, one.threads) != (model.allocator, model.threads)]
        return self.model_copy(update={"step_times": (*others, KeptStepTime.of(model))})


def machine_name() -> str:
    """Return what tells this machine and its torch from others, for people."""
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "no torch"
    return f"{platform.node() or 'machine'}, {platform.machine()}, {counted(os.cpu_count() or 1, 'core')}, {torch}"


def path() -> Path:
    """Return the file of this machine's calibration; it need not exist."""
    return cache_folder("calibration") / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', machine_name())}.json"


def calibration() -> Calibration:
    """Return this machine's calibration; an empty one if nothing was measured."""
    empty = Calibration(machine=machine_name())
    if not path().exists():
        return empty
    try:
        return Calibration.model_validate_json(read_file(path(), "calibration"))
    except (InputError, ValidationError):  # damaged, or of another format
        return empty


def keep(found: Calibration) -> Path:
    """Write this machine's calibration; return the file. Errors: InputError if it cannot be written."""
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        path().write_text(found.model_dump_json(indent=1), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the calibration to {str(path())!r}: {error.strerror or error}") from error
    return path()
