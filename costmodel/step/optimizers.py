"""Optimizers: what each keeps between steps, needs while it updates, and computes.

Source: torch/optim/sgd.py, adam.py and adamw.py, their single-tensor form, which is the default on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..table import Table


@dataclass(frozen=True)
class Optimizer:
    """One optimizer with PyTorch's defaults (no weight decay but for adamw).

    state_per_parameter: float32 numbers kept per trained number. state_per_tensor: bytes kept per trained tensor (the
    step count). temporary_per_parameter: float32 numbers per number of the tensor being updated.
    flops_per_parameter: element-wise operations per trained number. Assumption: one per arithmetic operation.
    """

    name: str
    state_per_parameter: int
    state_per_tensor: int
    temporary_per_parameter: int
    flops_per_parameter: int

    def state_bytes(self, size: int) -> int:
        """Return the bytes kept for a trained tensor of `size` bytes."""
        return self.state_per_parameter * size + self.state_per_tensor


OPTIMIZERS: Table[Optimizer] = Table("optimizer", (
    (optimizer.name, optimizer)
    for optimizer in (
        Optimizer("sgd", 0, 0, 0, 2),
        Optimizer("momentum", 1, 0, 0, 4),
        # sqrt(v), then its quotient: two temporaries at a time
        Optimizer("adam", 2, 4, 2, 12),
        Optimizer("adamw", 2, 4, 2, 13),
    )
))  # fmt: skip
STATELESS = Optimizer("none", 0, 0, 0, 0)  # for what is added by any optimizer later
