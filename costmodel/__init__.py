"""What fine-tuning a network costs: the public API on one page.

    graph = trace("torchvision:mobilenet_v2")
    print(footprint(graph, method="mobiletl", blocks=5, batch=8))

Only `build`, `replace_head`, `verify`, `apply`, `restore`, `export_step`, `import_state`, and `trace` of a network
whose trace is not stored, load torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from .accounting.executorch import RUNTIME_BYTES as EXECUTORCH_RUNTIME_BYTES
from .accounting.kernels import Kernels
from .accounting.table import ACCOUNTINGS, register_rule, whole_step
from .answers.footprint import Footprint, footprint
from .answers.price import Prices, price
from .errors import (
    CostModelError,
    InfeasibleError,
    InputError,
    MissingPackageError,
    ModelError,
    UnknownOperationError,
    missing_package,
)
from .graph.blocks import block_count, body_digest, parts
from .graph.elastic import Design, Subnetwork
from .graph.layer_graph import LayerGraph
from .graph.values import Layer, Tensor
from .machine.process import POLICIES, Floor, Process, kernels_of, native_floor, process_of
from .machine.step_time import Seconds, StepTime
from .methods.assignment import Assignment
from .methods.last_convolutions import convolutions
from .methods.method import Method
from .methods.table import METHODS, anchor, register_method, values_per_norm, way, way_from
from .methods.way import Way, read_options
from .rules.table import RULES
from .schedules.best import (
    LEVERS,
    MOST_FLOPS,
    ON_DEMAND,
    Frontier,
    Scheduled,
    best_schedule,
    nearest_schedule,
    schedule_frontier,
)
from .schedules.block_prices import BlockPrices, SubnetworkPrices
from .step.cache import CacheCost
from .step.optimizers import OPTIMIZERS
from .step.precision import Precision, precision_from
from .step.schedule import PLAIN, Schedule, schedule_from
from .step.step import Step

if TYPE_CHECKING:
    from .checking.measuring import peak_bytes
    from .checking.verification import Verification, check_peak, verify
    from .export.exporting import Export, export_step
    from .export.saved import import_state
    from .interface.summary import Summary, summary
    from .machine.calibration import calibration
    from .traces.stored import trace
    from .tracing.models import build, replace_head, supernetwork
    from .training.applied import apply, restore
    from .training.arena.arena import Arena
    from .training.cache import cached_prefix
    from .training.optimizers import make_optimizer, update_in_place
    from .zoo.once_for_all import SuperNetwork

# What loads torch is imported when it is first asked for.
_LATER = {
    "Arena": "training.arena.arena",
    "Export": "export.exporting",
    "Summary": "interface.summary",
    "SuperNetwork": "zoo.once_for_all",
    "Verification": "checking.verification",
    "apply": "training.applied",
    "calibration": "machine.calibration",
    "build": "tracing.models",
    "cached_prefix": "training.cache",
    "check_peak": "checking.verification",
    "peak_bytes": "checking.measuring",
    "export_step": "export.exporting",
    "import_state": "export.saved",
    "make_optimizer": "training.optimizers",
    "replace_head": "tracing.models",
    "restore": "training.applied",
    "summary": "interface.summary",
    "supernetwork": "tracing.models",
    "trace": "traces.stored",
    "update_in_place": "training.optimizers",
    "verify": "checking.verification",
}


def __getattr__(name: str):
    if name == "__version__":
        return version("finetune-planner")
    if name in _LATER:
        try:
            value = getattr(import_module(f".{_LATER[name]}", __name__), name)
        except ModuleNotFoundError as error:
            raise missing_package(error, f"costmodel.{name}") or error from error
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ACCOUNTINGS",
    "EXECUTORCH_RUNTIME_BYTES",
    "LEVERS",
    "METHODS",
    "MOST_FLOPS",
    "ON_DEMAND",
    "OPTIMIZERS",
    "PLAIN",
    "POLICIES",
    "RULES",
    "Arena",
    "Assignment",
    "BlockPrices",
    "CacheCost",
    "CostModelError",
    "Design",
    "Export",
    "Floor",
    "Footprint",
    "Frontier",
    "InfeasibleError",
    "InputError",
    "Kernels",
    "Layer",
    "LayerGraph",
    "Method",
    "MissingPackageError",
    "ModelError",
    "Precision",
    "Prices",
    "Process",
    "Schedule",
    "Scheduled",
    "Seconds",
    "Step",
    "StepTime",
    "Subnetwork",
    "SubnetworkPrices",
    "Summary",
    "SuperNetwork",
    "Tensor",
    "UnknownOperationError",
    "Verification",
    "Way",
    "anchor",
    "apply",
    "best_schedule",
    "block_count",
    "body_digest",
    "build",
    "cached_prefix",
    "calibration",
    "check_peak",
    "convolutions",
    "export_step",
    "footprint",
    "import_state",
    "kernels_of",
    "make_optimizer",
    "native_floor",
    "nearest_schedule",
    "parts",
    "peak_bytes",
    "precision_from",
    "price",
    "process_of",
    "read_options",
    "register_method",
    "register_rule",
    "replace_head",
    "restore",
    "schedule_from",
    "schedule_frontier",
    "summary",
    "supernetwork",
    "trace",
    "update_in_place",
    "values_per_norm",
    "verify",
    "way",
    "way_from",
    "whole_step",
]
