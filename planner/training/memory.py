"""The memory that a training takes: of one step, planned, predicted and measured; and of the process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from costmodel import Footprint, Kernels, LayerGraph, Step, check_peak, footprint

from ..choosing.plan import Plan
from .trained import StepMemory


def predicted(plan: Plan, graph: LayerGraph) -> Footprint:
    """Return what a step of the plan takes on this machine, by the books that the training keeps."""
    kernels = Kernels("layers", torch.get_num_threads())
    return footprint(
        Step(graph, plan.way, plan.batch, plan.schedule, plan.precision, plan.optimizer, "lean", kernels=kernels)
    )


def measured(plan: Plan, cost: Footprint, step: Callable[[], None]) -> StepMemory:
    """Make a step, and return its peak. cost: as predicted. step: from the second one on; its images are there."""
    check = check_peak(cost, step)
    start = cost.start.total_bytes
    return StepMemory(
        planned_bytes=plan.peak_bytes,
        predicted_bytes=start + check.predicted,
        measured_bytes=start + check.measured,
        agrees=check.agrees,
    )


def process_bytes() -> int | None:
    """Return the most memory that this process has held, as the system counts it; None where it does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # Source: getrusage(2) of macOS and Linux
