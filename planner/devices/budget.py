"""Memory for a whole training process, and what of it is left for the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel import (
    POLICIES,
    CacheCost,
    Floor,
    InputError,
    Kernels,
    Process,
    Seconds,
    Step,
    StepTime,
    calibration,
    footprint,
    kernels_of,
    process_of,
)  # fmt: skip
from costmodel.errors import require_count
from costmodel.units import format_bytes

if TYPE_CHECKING:
    from .device import Device


@dataclass(frozen=True)
class ProcessBudget:
    """The memory that a training process may take.

    process_bytes: all of it. floor: what is there beside the step. allocator: a name in `costmodel.POLICIES`. given: by
    which option.

    Errors: InputError for an unknown allocator, and where nothing is left for the step.
    """

    process_bytes: int
    floor: Floor
    allocator: str = "arena"
    given: str = "--process-ram"

    def __post_init__(self) -> None:
        POLICIES.find(self.allocator)
        if self.step_bytes < 1:
            raise InputError(
                f"{self.given} is {format_bytes(self.process_bytes)}, and the process takes "
                f"{format_bytes(self.floor.bytes)} before any step ({self.floor.kind}); allow more"
            )

    @property
    def step_bytes(self) -> int:
        """The most that a step may take, kernels' working memory included."""
        return POLICIES[self.allocator].step_bytes(self.process_bytes, self.floor)

    def kernels(self, accounting: str) -> Kernels:
        """Return the kernels whose working memory counts."""
        return kernels_of(accounting)

    def of(self, step: Step) -> Process:
        """Return the memory of a process that trains by a step."""
        return process_of(step, self.floor, self.allocator)

    def explain(self) -> str:
        """Return in one line what a step is held against."""
        kept = POLICIES[self.allocator].most_kept
        held = f", and of the rest {kept / (1 + kept):.0%} for what malloc holds ({self.allocator})" if kept else ""
        return (
            f"{format_bytes(self.step_bytes)} for the step: {format_bytes(self.process_bytes)} for the process "
            f"({self.given}), less {format_bytes(self.floor.bytes)} for {self.floor.what} "
            f"({self.floor.kind}){held}"
        )


@dataclass(frozen=True)
class Epochs:
    """How much is trained: images of an epoch, and epochs.

    Errors: InputError for a number that is no whole number of 1 or more.
    """

    images: int
    count: int = 1

    def __post_init__(self) -> None:
        require_count("images", self.images)
        require_count("epochs", self.count)


@dataclass(frozen=True)
class Held:
    """What of a step is held against which memory, and its time.

    process: of the whole training process (None on bare metal, where there is none). against: what the step was held
    against, in words. is_process: whether that is the process. seconds: of one update. batch: its images. epochs: of
    the training, if they were given. cache: what storing the frozen layers' outputs takes, if they are stored.
    """

    process: Process | None
    against: str
    is_process: bool
    seconds: Seconds
    batch: int
    epochs: Epochs | None = None
    cache: CacheCost | None = None

    @classmethod
    def of(
        cls, step: Step, budget: ProcessBudget | None, target: Device | None, model: StepTime | None, allocator: str,
        epochs: Epochs | None = None,
    ) -> Held:  # fmt: skip
        """Return it of a step.

        budget: of the process, if the step was held against one; target: the device, if it is of one; model: what
        predicts times; epochs: how much is trained.
        """
        if target is not None and target.process is None:
            process = None
        elif budget is not None:
            process = budget.of(step)
        else:
            process = process_of(step, calibration().floor_of(step), allocator)
        against = budget.explain() if budget else target.explain() if target else "the step's own memory (--ram)"
        seconds = _seconds(step, process, budget, target, model)
        return cls(process, against, budget is not None, seconds, step.batch, epochs, CacheCost.of(step))

    @property
    def epoch_seconds(self) -> Seconds | None:
        """The time of an epoch of whole batches; None where its images were not given."""
        return self.epochs and self.seconds.times(max(1, self.epochs.images // self.batch))

    @property
    def training_seconds(self) -> Seconds | None:
        """The time of all epochs, without filling a cache and without evaluation."""
        return self.epochs and self.epoch_seconds and self.epoch_seconds.times(self.epochs.count)

    @property
    def cache_bytes(self) -> int | None:
        """The storage of the cache of all images; None without a cache, or where the images were not given."""
        return self.cache.bytes_per_image * self.epochs.images if self.cache and self.epochs else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return {
            "held_against": "process" if self.is_process else "step",
            "process_bytes": None if self.process is None else self.process.bytes,
            "process": None if self.process is None else self.process.to_dict(),
            "step_seconds": vars(self.seconds),
            **self._of_epochs(),
        }

    def _of_epochs(self) -> dict[str, Any]:
        if self.epochs is None or self.epoch_seconds is None or self.training_seconds is None:
            return {}
        return {
            "images": self.epochs.images, "epochs": self.epochs.count, "epoch_seconds": vars(self.epoch_seconds),
            "training_seconds": vars(self.training_seconds), "cache_bytes": self.cache_bytes,
        }  # fmt: skip


def _seconds(
    step: Step, process: Process | None, budget: ProcessBudget | None, target: Device | None, model: StepTime | None
) -> Seconds:
    if budget is not None and process is not None and process.bytes > budget.process_bytes:
        return Seconds.would_swap(f"the process takes {format_bytes(process.bytes)} of {budget.explain()}")
    if model is not None:
        return model.predict(step)
    if target is None:
        return Seconds.unknown("no device was given, and this machine is not calibrated (costmodel calibrate)")
    answer = footprint(step)
    return Seconds.at_least(target.step_seconds(float(answer.total_flops), float(answer.moved_bytes)), "roofline")
