"""What would make something fit where nothing does: which change to the question, and how far it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from costmodel import ACCOUNTINGS, CostModelError, LayerGraph, trace
from costmodel.units import FLOAT_BYTES, format_bytes

from .axes import Axes
from .candidate import Candidate

RESOLUTIONS = (160, 128, 96, 64, 32)
SMALL_NETWORK = "zoo:mcunet_5fps"  # the smallest that comes with the package
Try = Callable[[Sequence[LayerGraph], Axes], Candidate]


def ways_out(graphs: Sequence[LayerGraph], limits: Mapping[str, float], space: Axes, pick: Try) -> str:
    """Return what would help against a lack of memory, as text; empty if memory is not what lacks.

    pick: returns the pick of networks and axes, or raises InfeasibleError.
    """
    if "memory" not in limits:
        return ""
    least = space if space.methods is not None else replace(space, methods=("last",))  # which takes the least
    found = list(_found(graphs, least, pick, limits["memory"]))
    if space.device is not None and space.device.runtime == "bare metal":
        found.append(
            f"{space.device.name} runs without Python, and its {format_bytes(limits['memory'])} hold the float32 "
            "activations of small networks only: training in int8 is not priced here"
        )
    return f"; what would fit: {'; '.join(found)}" if found else "; nothing that was tried fits either"


def _found(graphs: Sequence[LayerGraph], space: Axes, pick: Try, most_bytes: float) -> Iterator[str]:
    """Yield what fits, the smallest change of each kind; most_bytes: no network with more weights in RAM is tried."""
    in_flash = ACCOUNTINGS.find(space.accounting).in_flash
    first = min(graphs, key=lambda graph: graph.parameter_count)
    steps: tuple[tuple[str, Iterator[tuple[str, Callable[[], tuple[list[LayerGraph], Axes]]]]], ...] = (
        ("batch", ((f"--batch {n}", lambda n=n: (list(graphs), replace(space, batches=(n,)))) for n in (4, 2, 1))),
        (
            "resolution",
            (
                (f"--resolution {n}", lambda n=n: ([trace(first.model, n, first.classes)], space))
                for n in RESOLUTIONS
                if n < first.resolution
            ),
        ),
        (
            "network",
            (
                (f"{SMALL_NETWORK} --resolution {n}", lambda n=n: ([trace(SMALL_NETWORK, n, first.classes)], space))
                for n in (first.resolution, *RESOLUTIONS)
                if n <= first.resolution
            ),
        ),
    )
    for kind, changes in steps:
        if kind == "batch" and min(space.batches) == 1:
            continue
        for said, changed in changes:
            try:
                networks, axes = changed()
                if not in_flash and min(FLOAT_BYTES * graph.parameter_count for graph in networks) > most_bytes:
                    continue
                chosen = pick(networks, axes)
            except CostModelError:
                continue
            yield f"{said} ({chosen.label} on {chosen.model}, {format_bytes(chosen.peak_bytes)})"
            break
