"""The memory that a training takes: of one step, planned, predicted and measured; and of the process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from costmodel import Arena, Footprint, Kernels, LayerGraph, Step, check_peak, footprint, peak_bytes

from ..choosing.plan import Plan
from .trained import StepMemory


def predicted(plan: Plan, graph: LayerGraph) -> Footprint:
    """Return what a step of the plan takes on this machine, by the books that the training keeps."""
    kernels = Kernels("layers", torch.get_num_threads())
    return footprint(
        Step(graph, plan.way, plan.batch, plan.schedule, plan.precision, plan.optimizer, "lean", kernels=kernels)
    )


def measured(plan: Plan, cost: Footprint, step: Callable[[], None], arena: Arena) -> StepMemory | None:
    """Make a step, and return its peak; None if the arena, where there is one, did not record it.

    cost: as predicted. step: from the second one on; its images are there. Without a planned arena PyTorch's profiler
    measures, which itself takes tens of megabytes of the process.
    """
    if arena.policy == "arena":
        step()
        peak = arena.recorded_peak_bytes
    else:
        peak = peak_bytes(step)
    if peak is None:
        return None
    check = check_peak(cost, peak)
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
