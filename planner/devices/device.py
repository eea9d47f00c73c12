"""Devices to train on: one TOML file each, every number with its source.

What a device leaves for training is its RAM less what the system holds and less the process's own part (interpreter,
torch, torchvision, threads; measured by benchmarks/process_memory.py). On bare metal there is no such process, and
`system` is what the firmware holds. A device of one's own is a copy of template.toml, given by its path.
"""

from __future__ import annotations

import reprlib
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from costmodel import POLICIES, Floor, StepTime, native_floor
from costmodel.errors import InputError, unknown
from costmodel.reading import first_problem, read_file
from costmodel.units import format_bytes, format_count, parse_bytes

from .budget import ProcessBudget

FOLDER = files("planner.devices")
_TEMPLATE = "template"
Numbers = TypeVar("Numbers", float, NDArray)  # one number, or several that are worked out at once


def _bytes(value: object) -> int:
    try:
        return parse_bytes(cast("str | int", value))  # anything else is read as its text
    except InputError as error:
        raise ValueError(str(error)) from None


ByteCount = Annotated[int, BeforeValidator(_bytes)]
# Assumption: a million times the fastest accelerator of today, 1e15 a second, is none.
Rate = Annotated[float, Field(gt=0, le=1e21, allow_inf_nan=False, strict=True)]
Error = Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Quantity(_Table):
    source: Annotated[str, Field(pattern=r"^(Source|Assumption): \S")]


class Memory(_Quantity):
    """An amount of memory: bytes, or a text such as '512 MiB'."""

    bytes: ByteCount


class Peak(_Quantity):
    """The most float32 operations per second of the processor that trains."""

    flops_per_second: Rate


class Bandwidth(_Quantity):
    """The most bytes per second between that processor and its memory."""

    bytes_per_second: Rate


class StepTimes(_Quantity):
    """Times of a step that were fitted on the device: what `costmodel calibrate --toml` prints there.

    seconds: of one FLOP, byte or call, by feature. The rest is as in `costmodel.StepTime`.
    """

    allocator: Literal[tuple(POLICIES)]  # pyright: ignore[reportInvalidTypeForm]  # the table's names
    threads: Annotated[int, Field(ge=1, le=1024)]
    spread: Error
    median_error: Error
    worst_error: Error
    seconds: dict[str, Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]]

    @model_validator(mode="after")
    def _has_known_features(self) -> Self:
        try:
            _ = self.step_time
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def step_time(self) -> StepTime:
        """The model."""
        own = self.model_dump(exclude={"seconds", "source"})
        return StepTime.from_features(self.seconds, basis=self.source, **own)


_PROCESSES = {"python": "Python with torch", "executorch": "ExecuTorch's runtime"}


class Device(_Table):
    """A device: its memory, who else needs of it, and how fast it computes.

    name: for people. processor: what trains, the CPU or the GPU. runtime: `python` (a process with torch, which needs
    `process` beside the training), `executorch` (one without Python) or `bare metal`. system: the operating system, or
    the firmware. flash: where weights that do not train stay on bare metal; no part of `ram`.
    """

    name: Text
    processor: Text
    runtime: Literal["python", "executorch", "bare metal"]
    ram: Memory
    system: Memory
    process: Memory | None = None
    flash: Memory | None = None
    peak: Peak
    bandwidth: Bandwidth
    calibration: tuple[StepTimes, ...] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if (self.runtime in _PROCESSES) != (self.process is not None):
            wanted = "needs" if self.runtime in _PROCESSES else "has no"
            raise ValueError(f"runtime {self.runtime!r} {wanted} [process]")
        if self.training_ram_bytes < 1:
            raise ValueError(f"nothing is left for training: {self._sum()}")
        return self

    @property
    def training_ram_bytes(self) -> int:
        """Bytes that are left for the training itself."""
        return self.ram.bytes - self.system.bytes - (self.process.bytes if self.process else 0)

    def without_python(self) -> Device:
        """Return the device with ExecuTorch's runtime in place of Python; one that has no Python stays what it is."""
        if self.runtime != "python":
            return self
        floor = native_floor("executorch")
        assert floor is not None
        runtime = Memory(bytes=floor.bytes, source=f"Source: {floor.source}")
        return self.model_copy(update={"runtime": "executorch", "process": runtime})

    def step_seconds(self, flops: Numbers, moved_bytes: Numbers) -> Numbers:
        """Return the roofline time of one step: the longer of computing at the peak and moving at full bandwidth.

        flops: of the step's convolutions and matrix products. moved_bytes: `Footprint.moved_bytes`. Both may be
        numpy arrays.

        Source: Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009, doi 10.1145/1498765.1498785.
        Assumption: computing and moving overlap fully, and each runs at its peak, which no kernel reaches: a step whose
        layers exchange their data through memory takes longer. A lower bound, not a forecast.
        """
        computing, moving = flops / self.peak.flops_per_second, moved_bytes / self.bandwidth.bytes_per_second
        seconds: Any = np.maximum(computing, moving)  # of numbers a number, which numpy's annotations leave open
        return seconds

    def step_time(self, allocator: str = "arena") -> StepTime | None:
        """Return the times of steps that were measured on the device with an allocator; None if none were."""
        return next((one.step_time for one in self.calibration if one.allocator == allocator), None)

    def budget(self, allocator: str = "arena") -> ProcessBudget | None:
        """Return the memory for a training process; None on bare metal, where there is none."""
        if self.process is None:
            return None
        kind = "measured" if self.process.source.startswith("Source") else "assumed"
        floor = Floor(self.process.bytes, kind, self.process.source)
        if self.runtime == "executorch":
            floor = replace(floor, what="the runtime")
        left = f"{self.name}: {format_bytes(self.ram.bytes)} RAM - {format_bytes(self.system.bytes)} {self._system}"
        return ProcessBudget(self.ram.bytes - self.system.bytes, floor, allocator, left)

    def explain(self) -> str:
        """Return in one line how the memory for training comes about."""
        return f"{self.name}: {self._sum()} = {format_bytes(self.training_ram_bytes)} for training"

    def quantities(self) -> list[tuple[str, str, str]]:
        """Return (what, value as text, source) of every number."""
        rows = [
            (what, format_bytes(memory.bytes), memory.source)
            for what, memory in (
                ("RAM", self.ram), (self._system, self.system), (_PROCESSES.get(self.runtime, ""), self.process),
                ("flash", self.flash),
            )
            if memory is not None
        ]  # fmt: skip
        return [
            *rows,
            (
                f"peak, float32, {self.processor}",
                f"{format_count(self.peak.flops_per_second)}FLOP/s",
                self.peak.source,
            ),
            ("memory bandwidth", f"{format_bytes(self.bandwidth.bytes_per_second)}/s", self.bandwidth.source),
        ]

    @property
    def _system(self) -> str:
        return "system" if self.runtime in _PROCESSES else "firmware (bare metal, no Python)"

    def _sum(self) -> str:
        parts = [f"{format_bytes(self.ram.bytes)} RAM", f"{format_bytes(self.system.bytes)} {self._system}"]
        if self.process:
            parts.append(f"{format_bytes(self.process.bytes)} {_PROCESSES[self.runtime]}")
        return " - ".join(parts)


def device_names() -> list[str]:
    """Return the names of the devices that come with the package."""
    stems = (entry.name.removesuffix(".toml") for entry in FOLDER.iterdir() if entry.name.endswith(".toml"))
    return sorted(stem for stem in stems if stem != _TEMPLATE)


def device(name: str | Path) -> Device:
    """Return the device of that name, or of the TOML file at that path (it ends in .toml, or has a folder in it).

    Errors: InputError for an unknown name, with the near ones; for a file that cannot be read or is not a device.
    """
    text = str(name)
    if isinstance(name, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        return _load(Path(name), text)
    if text not in device_names():
        raise unknown("device", text, device_names())
    return _load(FOLDER / f"{text}.toml", f"{text}.toml")


def _load(path, shown: str) -> Device:
    content = read_file(path, "device file")
    try:
        return Device.model_validate(tomllib.loads(content.decode()))
    except ValidationError as error:
        problem = _problem(error)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and numbers of thousands of digits
        problem = f"not a TOML file: {error}"
    raise InputError(f"device file {shown!r}: {problem}; planner/devices/template.toml shows how")


def _problem(error: ValidationError) -> str:
    """Return the first problem in one line: the key, its value, what is allowed."""
    key, given, reason, kind = first_problem(error)
    if kind == "missing":
        return f"lacks {key!r}"
    if kind == "extra_forbidden":
        table = (
            {"peak": Peak, "calibration": StepTimes, "bandwidth": Bandwidth}.get(key.partition(".")[0], Memory)
            if "." in key
            else Device
        )
        return f"unknown key {key!r}; allowed: {', '.join(table.model_fields)}"
    if kind == "string_pattern_mismatch":
        reason = "write 'Source: ...' or 'Assumption: ...'"
    return f"{key} = {reprlib.repr(given)}: {reason}" if key else reason
