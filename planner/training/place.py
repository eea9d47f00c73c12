"""Where a training is: what a checkpoint tells beside weights and the optimizer's state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from .trained import Epoch, StepMemory


@dataclass
class Place:
    """The next step, what the epoch came to so far, and what the epochs before did.

    epoch: from 1. step: of the epoch, from 0; after its last one the held-out images are next. loss, right: sums over
    the epoch's steps. memory: of a step, once it was measured.
    """

    epoch: int = 1
    step: int = 0
    loss: float = 0.0
    right: int = 0
    history: list[Epoch] = field(default_factory=list)
    memory: StepMemory | None = None

    @property
    def best(self) -> Epoch:
        """The most accurate epoch; of equals the one with the lower loss, then the earlier."""
        return max(self.history, key=lambda epoch: (epoch.accuracy_percent, -epoch.test_loss, -epoch.number))

    def ends(self, epoch: Epoch) -> None:
        """Go on to the next epoch; epoch: what this one came to."""
        self.history.append(epoch)
        self.epoch, self.step, self.loss, self.right = self.epoch + 1, 0, 0.0, 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        memory = None if self.memory is None else self.memory.model_dump()
        return {**vars(self), "history": [epoch.model_dump() for epoch in self.history], "memory": memory}

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Self:
        """Return what `to_dict` made plain."""
        memory = saved["memory"]
        return cls(**{
            **saved, "history": [Epoch(**each) for each in saved["history"]],
            "memory": None if memory is None else StepMemory(**memory),
        })  # fmt: skip
