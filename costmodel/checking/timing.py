"""Training steps timed on this machine, from which `costmodel calibrate` fits how long any step takes."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from ..errors import CostModelError, InputError
from ..graph.blocks import block_count
from ..machine.step_time import Sample
from ..machine.work import work
from ..methods.table import way
from ..step.step import Step
from ..traces.stored import trace
from ..training.arena.arena import Arena
from .steps import runner

# Networks that torchvision or this package builds, two or more for every kind of operation, so that a network that is
# left out has its like among the others; and ways that differ in what backward does.
NETWORKS = (
    "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0", "torchvision:mnasnet1_0", "torchvision:mnasnet0_5", "torchvision:shufflenet_v2_x1_0",
    "torchvision:shufflenet_v2_x0_5", "torchvision:resnet18", "torchvision:resnet34", "torchvision:regnet_x_400mf",
    "torchvision:regnet_y_400mf", "torchvision:squeezenet1_0", "torchvision:squeezenet1_1", "zoo:proxylessnas_mobile",
)  # fmt: skip
WAYS = (("full", None), ("bias", None), ("blocks", 0.5), ("last", None))  # depth: in parts of all blocks
SIZES = ((8, 128), (4, 192))  # batch, resolution
_WARM, _TIMED = 5, 7  # steps; with an arena the first few are rehearsals


def prepare(allocator: str, threads: int | None) -> tuple[Arena, int]:
    """Have this process allocate by a policy, a name in `POLICIES`, and compute with some threads (None: torch's own).

    Return the arena of the policy, and the number of threads.

    Errors: InputError for an unknown name, and where this machine cannot do it.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    arena = Arena(allocator)
    if arena.policy != allocator:
        raise InputError(f"the allocator {allocator!r} does not work on this machine; take --allocator default")
    return arena, torch.get_num_threads()


def configurations(networks: tuple[str, ...] = NETWORKS) -> list[Step]:
    """Return the steps to time: every network by several ways, at one size or another, in a mixed order."""
    found = []
    for number, network in enumerate(networks):
        for place, (method, share) in enumerate(WAYS):
            batch, resolution = SIZES[(number + place) % len(SIZES)]
            graph = trace(network, resolution)
            depth = None if share is None else max(1, round(share * block_count(graph)))
            try:
                step = Step(graph, way(method, depth), batch)
                _ = step.requirements
            except CostModelError:  # the way does not apply to the network
                continue
            found.append(step)
    random.Random(0).shuffle(found)  # so that the first ones are of many networks
    return found


def timed(
    steps: list[Step], arena: Arena, progress: Callable[[int, str], None] = lambda number, what: None
) -> Iterator[Sample]:
    """Yield each step with the median of its times; arena: in which they run."""
    for number, step in enumerate(steps):
        progress(number, f"{step.graph.model}, {step.way.label}")
        run = runner(step, partial(arena.step, "calibration", number))  # every step is of its own kind
        yield Sample(step.graph.model, f"{step.way.label}, {step.label}", work(step), seconds_of(run))


def seconds_of(run: Callable[[], float], warm: int = _WARM, count: int = _TIMED) -> float:
    """Return the median seconds of a step."""
    for _ in range(warm):
        run()
    found = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)
