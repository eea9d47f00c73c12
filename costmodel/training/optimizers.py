"""PyTorch's optimizers as `costmodel.OPTIMIZERS` prices them: with PyTorch's defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..table import Table

Maker = Callable[[Iterable[torch.nn.Parameter], float], torch.optim.Optimizer]

TORCH_OPTIMIZERS: Table[Maker] = Table("optimizer", {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, rate),
    "momentum": lambda parameters, rate: torch.optim.SGD(parameters, rate, momentum=0.9),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, rate),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, rate),
})  # fmt: skip


def make_optimizer(name: str, network: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimizer of that name for what of a network asks for gradients.

    Errors: InputError for an unknown name, with the near ones.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return TORCH_OPTIMIZERS.find(name)(trained, learning_rate)
