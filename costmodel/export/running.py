"""Running a program through the runtime's Python binding: the same runtime, kernels and arena as on a device."""

# pyright: reportMissingImports=false
# The types of the runtime's package are checked where the extra is installed.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from executorch.runtime import Runtime

from .lowering import PREDICT_METHOD, STATE_METHOD, STEP_METHOD


class Running:
    """A program that is loaded. state: the names of what `state` returns."""

    def __init__(self, file: str | Path | bytes, state: Sequence[str]):
        self.program = Runtime.get().load_program(file)
        self.names = tuple(state)
        # Loading a method gives buffers their first values, so that all are loaded before the first step.
        self.methods: dict[str, Any] = {
            name: self.program.load_method(name) for name in (STEP_METHOD, PREDICT_METHOD, STATE_METHOD)
        }

    def step(self, x: torch.Tensor, y: torch.Tensor, learning_rate: float) -> tuple[float, int]:
        """Train on a batch; return its loss, and how many images were right before the update."""
        loss, right = self.methods[STEP_METHOD].execute([x.contiguous(), y, torch.tensor(learning_rate)])
        return float(loss), int(right)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of one image, 1 x C x H x W."""
        return self.methods[PREDICT_METHOD].execute([x.contiguous()])[0].clone()

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of what training changes, by name."""
        _, *values = self.methods[STATE_METHOD].execute([])
        return {name: value.clone() for name, value in zip(self.names, values, strict=True)}

    def restore(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set what training changes, by name."""
        method = self.methods[STATE_METHOD]._method
        method([])
        _, *inside = method.get_outputs(clone_outputs=False)  # the state itself, not copies
        for name, tensor in zip(self.names, inside, strict=True):
            tensor.copy_(values[name])
