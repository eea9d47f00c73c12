"""What fine-tuning a network costs: the public API on one page.

    graph = trace("torchvision:mobilenet_v2")
    print(footprint(graph, method="mobiletl", blocks=5, batch=8))

Only `build`, `replace_head`, `verify`, `apply`, `restore`, and `trace` of a network whose trace is not stored, load
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .accounting.kernels import Kernels
from .accounting.table import ACCOUNTINGS
from .answers.footprint import Footprint, footprint
from .answers.price import Prices, price
from .errors import CostModelError, InfeasibleError, InputError, ModelError, UnknownOperationError
from .graph.blocks import block_count, parts
from .graph.layer_graph import LayerGraph
from .graph.values import Layer, Tensor
from .methods.assignment import Assignment
from .methods.method import Method
from .methods.table import METHODS, register_method, way
from .methods.way import Way
from .rules.table import RULES
from .step.optimizers import OPTIMIZERS
from .step.precision import Precision
from .step.schedule import Schedule
from .step.step import Step

if TYPE_CHECKING:
    from .checking.verification import verify
    from .traces.stored import trace
    from .tracing.models import build, replace_head
    from .training.applied import apply, restore

# What loads torch is imported when it is first asked for.
_LATER = {
    "apply": "training.applied",
    "build": "tracing.models",
    "replace_head": "tracing.models",
    "restore": "training.applied",
    "trace": "traces.stored",
    "verify": "checking.verification",
}


def __getattr__(name: str):
    if name in _LATER:
        value = getattr(import_module(f".{_LATER[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ACCOUNTINGS",
    "METHODS",
    "OPTIMIZERS",
    "RULES",
    "Assignment",
    "CostModelError",
    "Footprint",
    "InfeasibleError",
    "InputError",
    "Kernels",
    "Layer",
    "LayerGraph",
    "Method",
    "ModelError",
    "Precision",
    "Prices",
    "Schedule",
    "Step",
    "Tensor",
    "UnknownOperationError",
    "Way",
    "apply",
    "block_count",
    "build",
    "footprint",
    "parts",
    "price",
    "register_method",
    "replace_head",
    "restore",
    "trace",
    "verify",
    "way",
]
