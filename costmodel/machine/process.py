"""What the operating system sees of a training process: its floor, the step, and what the allocator holds beside it.

    process = floor + step's peak + held        held = kept x step's peak

The peak is that of the live tensors, with kernels' working memory. What the allocator keeps of freed memory depends on
its policy; for each a factor was measured, the typical and the highest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..accounting.kernels import NO_KERNELS, Kernels
from ..accounting.table import ACCOUNTINGS
from ..answers.footprint import footprint
from ..step.step import Step
from ..table import Table
from ..units import format_bytes


@dataclass(frozen=True)
class Floor:
    """Bytes of a training process beside the step: interpreter, libraries, what they keep.

    kind: measured (on that machine) or assumed (carried over from another). source: how, or from where. what: whose
    they are.
    """

    bytes: int
    kind: Literal["measured", "assumed"]
    source: str
    what: str = "interpreter and libraries"


# Where nothing was measured. Source: benchmarks/results/process_memory.md, a CPU build of PyTorch on x86-64, Linux.
ASSUMED = Floor(
    279_000_000, "assumed", "as measured with a CPU build of PyTorch 2.13 on x86-64 (costmodel calibrate measures it)"
)


def native_floor(accounting: str) -> Floor | None:
    """Return the floor of a process that carries an accounting's steps out without Python; None where it needs Python.

    Errors: InputError for an unknown accounting.
    """
    books = ACCOUNTINGS.find(accounting)
    if books.runtime_bytes is None:
        return None
    return Floor(books.runtime_bytes, "measured", f"costmodel/accounting/{books.name}.py", "the runtime")


def library_of(model: str) -> str:
    """Return the library whose modules a network's process loads: timm's are larger than torchvision's."""
    return "timm" if model.startswith("timm:") else "torchvision"


@dataclass(frozen=True)
class Policy:
    """How an allocator deals with freed memory.

    kept: bytes that it holds for each byte of the step's peak, typically; most_kept: the most that was measured.
    source: where.
    """

    name: str
    summary: str
    kept: float
    most_kept: float
    source: str

    def step_bytes(self, process_bytes: int, floor: Floor) -> int:
        """Return the most that a step may take, with its kernels, in a process of so many bytes; 0 or less: nothing."""
        return int((process_bytes - floor.bytes) / (1 + self.most_kept))


# What is held outside the arena (small tensors, a library's own) is in the floor, and varies by a few megabytes.
POLICIES: Table[Policy] = Table("allocator", ((each.name, each) for each in (
    Policy(
        "arena", "costmodel.Arena: every block at its planned place", 0.0, 0.02,
        "benchmarks/results/process_allocators.md",
    ),
    Policy(
        "tight", "malloc that gives freed memory back at once (mallopt); two to three times as slow", 0.0, 0.05,
        "benchmarks/results/process_allocators.md",
    ),
    Policy(
        "default", "glibc's malloc as it is", 1.0, 2.0,
        "benchmarks/results/process_allocators.md",
    ),
)))  # fmt: skip


@dataclass(frozen=True)
class Process:
    """The memory of a training process.

    step_bytes: the step's peak with kernels' working memory. held_bytes: what the allocator holds beside it, typically;
    most_held_bytes: the most that was measured.
    """

    floor: Floor
    policy: Policy
    step_bytes: int
    held_bytes: int
    most_held_bytes: int

    @property
    def bytes(self) -> int:
        """What the process takes: with the most that the allocator was seen to hold, so that a limit of it is kept."""
        return self.floor.bytes + self.step_bytes + self.most_held_bytes

    @property
    def typical_bytes(self) -> int:
        """What it takes with what the allocator typically holds."""
        return self.floor.bytes + self.step_bytes + self.held_bytes

    @property
    def text(self) -> str:
        """The sum for people."""
        held = f" + {format_bytes(self.most_held_bytes)} that malloc may hold" if self.most_held_bytes else ""
        return (
            f"{format_bytes(self.bytes)} = {format_bytes(self.floor.bytes)} {self.floor.what} "
            f"({self.floor.kind}) + {format_bytes(self.step_bytes)} step with kernels{held}, allocator "
            f"{self.policy.name}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return {
            "bytes": self.bytes, "typical_bytes": self.typical_bytes, "floor": vars(self.floor),
            "step_bytes": self.step_bytes, "held_bytes": self.held_bytes, "most_held_bytes": self.most_held_bytes,
            "allocator": self.policy.name, "allocator_source": self.policy.source,
        }  # fmt: skip


def process_of(step: Step, floor: Floor = ASSUMED, allocator: str = "arena", threads: int = 2) -> Process:
    """Return the memory of a process that trains by a step.

    threads: that compute; a few kernels need memory for each. The step's kernels are its own if it names any, else
    `kernels_of`.

    Assumption: kernels' working memory is that of x86 with AVX-512 (`costmodel.accounting.kernels`); on Arm it was not
    measured.

    Errors: InputError for an allocator that does not exist, and those of `footprint`.
    """
    policy = POLICIES.find(allocator)
    peak = footprint(replace(step, kernels=step.kernels or kernels_of(step.accounting, threads))).peak_bytes
    return Process(floor, policy, peak, round(policy.kept * peak), round(policy.most_kept * peak))


def kernels_of(accounting: str, threads: int = 2) -> Kernels:
    """Return whose kernels compute a step of an accounting: its own, or for `lean` those of this package's layers.

    None of them for books with a timeline of their own.
    """
    books = ACCOUNTINGS.find(accounting)
    if books.timeline is not None:
        return books.kernels
    return Kernels("layers" if books.kernels == NO_KERNELS else books.kernels.library, threads)
