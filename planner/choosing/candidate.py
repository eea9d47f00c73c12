"""A candidate: one step of fine-tuning one network, priced, with the accuracy to expect of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costmodel import ACCOUNTINGS, CacheCost, Step, Way

from ..estimates.estimated import Estimate


@dataclass(frozen=True)
class Candidate:
    """One way to fine-tune one network: `peak_bytes` of memory in one step and FLOPs of one step.

    `memory_bytes` are the peak's parts by name, `peak` their sum. `cannot_train`: why not, empty if it can.
    """

    step: Step
    peak_bytes: int
    saved_bytes: int
    memory_bytes: dict[str, int]
    peak_layer: str
    peak_phase: str
    forward_flops: int
    backward_flops: int
    total_flops: int
    trained_parameters: int
    recovery: Estimate
    moved_bytes: int = 0
    step_seconds: float | None = None
    cannot_train: str = ""

    @property
    def model(self) -> str:
        """The network's full name."""
        return self.step.graph.model

    @property
    def way(self) -> Way:
        """What trains, and how."""
        return self.step.way

    @property
    def label(self) -> str:
        """The way's name, such as 'mobiletl, k = 5'."""
        return self.way.label

    @property
    def batch(self) -> int:
        """Images per update."""
        return self.step.batch

    @property
    def micro_batch(self) -> int:
        """Images per pass."""
        return self.step.micro_batch

    @property
    def resolution(self) -> int:
        """Height and width of the images in pixels."""
        return self.step.graph.resolution

    @property
    def flash_bytes(self) -> int:
        """Bytes of weights and buffers as they are stored."""
        if ACCOUNTINGS.find(self.step.accounting).in_flash:
            graph = self.step.graph
            return sum(tensor.bytes(1) for tensor in (*graph.parameters.values(), *graph.buffers.values()))
        return self.memory_bytes["weights"] + self.memory_bytes["buffers"]

    @property
    def cache(self) -> CacheCost | None:
        """What a cache of the frozen layers' outputs takes; None without one."""
        return CacheCost.of(self.step)

    @property
    def where(self) -> str:
        """Where the peak is, such as 'in backward at features.12.2'."""
        return f"in {self.peak_phase}" + (f" at {self.peak_layer}" if self.peak_layer else "")

    def to_dict(self) -> dict[str, Any]:
        """Return everything by name, the estimate as a mapping."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "step"}
        return {
            **self.step.to_dict(), **own, "memory_bytes": dict(self.memory_bytes), "recovery": self.recovery.to_dict(),
        }  # fmt: skip
