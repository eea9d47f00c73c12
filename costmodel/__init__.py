"""What fine-tuning a network costs: the public API on one page.

    graph = trace("torchvision:mobilenet_v2")
    print(footprint(graph, method="mobiletl", blocks=5, batch=8))

Only `build`, `replace_head`, `verify`, `apply`, `restore`, and `trace` of a network whose trace is not stored, load
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .accounting import ACCOUNTINGS
from .blocks import block_count, parts
from .bulk import price
from .errors import CostModelError, InfeasibleError, InputError, ModelError, UnknownOperationError
from .footprint import Footprint, footprint
from .graph import Layer, LayerGraph, Tensor
from .methods import METHODS
from .optimizers import OPTIMIZERS
from .rules import RULES

if TYPE_CHECKING:
    from .models import build, replace_head
    from .traces import trace
    from .trainable import apply, restore
    from .verification import verify

_LAZY = {
    "build": "models", "replace_head": "models", "trace": "traces", "verify": "verification", "apply": "trainable",
    "restore": "trainable",
}  # fmt: skip


def __getattr__(name: str):
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ACCOUNTINGS",
    "METHODS",
    "OPTIMIZERS",
    "RULES",
    "CostModelError",
    "Footprint",
    "InfeasibleError",
    "InputError",
    "Layer",
    "LayerGraph",
    "ModelError",
    "Tensor",
    "UnknownOperationError",
    "apply",
    "block_count",
    "build",
    "footprint",
    "parts",
    "price",
    "replace_head",
    "restore",
    "trace",
    "verify",
]
