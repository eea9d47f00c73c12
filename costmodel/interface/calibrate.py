"""`costmodel calibrate`: what a training process and its steps take on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..units import format_bytes
from . import options as given
from .running import terminal

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..machine.calibration import KeptStepTime
    from ..machine.step_time import StepTime

_LEAST_NETWORKS = 3  # one is left out, and two make a fit


def calibrate(
    threads: Annotated[int | None, typer.Option(help="Threads that compute; default: as many as torch uses.")] = None,
    allocator: given.AllocatorName = "arena",
    seconds: Annotated[float, typer.Option(help="Stop timing steps after so many.")] = 90.0,
    toml: Annotated[bool, typer.Option("--toml", help="Print what to add to a device file.")] = False,
    as_json: given.Json = False,
) -> None:
    """Measure this machine, in about two minutes: what a training process holds, how long steps take.

    Nothing else should run meanwhile. Predicted times, and what is said of the process, rest on it from then on.
    """
    from ..checking.floor import measure_floors
    from ..machine import calibration

    if threads is not None and not 1 <= threads <= 1024:
        raise InputError(f"--threads must be 1 to 1024, not {threads}")
    found = calibration.calibration()
    with _bar() as bar:
        task = bar.add_task("the process", total=None)
        floors = {
            name: calibration.KeptFloor(bytes=floor.bytes, kind=floor.kind, source=floor.source)
            for name, floor in measure_floors().items()
        }
        found = found.model_copy(update={"floors": floors})
        calibration.keep(found)
        model = _fitted(allocator, threads, seconds, lambda text: bar.update(task, description=text))
    found = found.with_step_time(model)
    file = calibration.keep(found)
    if as_json:
        print(json.dumps(found.model_dump(), indent=2))
    elif toml:
        print(in_toml(calibration.KeptStepTime.of(model)))
    else:
        for name, floor in found.floors.items():
            print(f"process that trains a network of {name}: {format_bytes(floor.bytes)} beside the step")
        print(
            f"time of a step ({model.allocator}, {model.threads} threads): off by {model.median_error:.0%} (median), "
            f"{model.worst_error:.0%} (worst) on networks left out"
        )
        print(f"wrote {file}")


def _bar() -> Progress:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), transient=True,
        console=terminal(stderr=True),
    )  # fmt: skip


def _fitted(allocator: str, threads: int | None, seconds: float, tell: Callable[[str], None]) -> StepTime:
    """Return the model of the steps that can be timed within some seconds."""
    from ..checking.timing import configurations, prepare, timed
    from ..machine.calibration import machine_name
    from ..machine.step_time import fit

    arena, used = prepare(allocator, threads)
    samples, start = [], time.monotonic()
    steps = list(configurations())

    def progress(number: int, what: str) -> None:
        tell(f"steps, {number + 1} of {len(steps)}: {what}")

    for sample in timed(steps, arena, progress):
        samples.append(sample)
        if time.monotonic() - start > seconds:
            break
    networks = len({sample.network for sample in samples})
    if networks < _LEAST_NETWORKS:
        raise InputError(
            f"in {seconds:g} seconds steps of {networks} networks were timed, and {_LEAST_NETWORKS} are needed; give "
            "more --seconds"
        )
    return fit(samples, allocator, used, f"steps timed on {machine_name()}")


def in_toml(kept: KeptStepTime) -> str:
    """Return a model as a table of a device file."""
    lines = ["[[calibration]]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in kept.model_dump(exclude={"seconds", "basis"}).items()]
    lines += [f"source = {json.dumps('Source: ' + kept.basis)}", "", "[calibration.seconds]"]
    lines += [f"{json.dumps(name)} = {value:.4g}" for name, value in kept.seconds.items()]
    return "\n".join(lines)
