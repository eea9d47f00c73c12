"""Predicted next to measured on this machine: saved bytes, peak and FLOPs of real training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .accounting.eager import EAGER
from .errors import InputError, ModelError
from .footprint import Footprint, footprint
from .graph import LayerGraph
from .measure import loss_of, peak_bytes, prepare, saved_bytes_by_call, step_flops
from .models import build
from .tracer import trace

# Not in the model: reductions' scratchpads per thread, 0-dimensional tensors, the rounding of CUDA's allocator.
PEAK_TOLERANCE = {"cpu": 0.005, "cuda": 0.01}


@dataclass(frozen=True)
class Check:
    """One quantity, predicted and measured; `tolerance` is relative to the measured one."""

    quantity: str
    unit: str
    predicted: int
    measured: int
    tolerance: float

    @property
    def relative_difference(self) -> float:
        """(predicted - measured) / measured."""
        return (self.predicted - self.measured) / max(1, self.measured)

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return abs(self.predicted - self.measured) <= self.tolerance * self.measured


@dataclass(frozen=True)
class Verification:
    """The checks of one configuration, and the layers whose saved bytes differ: (layer, predicted, measured)."""

    footprint: Footprint
    checks: tuple[Check, ...]
    differing_layers: tuple[tuple[str, int, int], ...]

    @property
    def agrees(self) -> bool:
        """Whether every check agrees."""
        return all(check.agrees for check in self.checks)


def verify(
    model: str,
    method: str = "full",
    blocks: int | None = None,
    batch: int = 8,
    resolution: int = 224,
    classes: int | None = None,
    accounting: str = "eager",
    optimizer: str = "sgd",
    device: str = "cpu",
    progress: Callable[[str], None] = lambda stage: None,
) -> Verification:
    """Build the model, train it for real steps on this machine, and compare with the prediction.

    progress: called with what is being done.

    Errors: InputError for an accounting that no torch model realises, ModelError if the model cannot train so.
    """
    if accounting != EAGER.name:
        raise InputError(f"accounting {accounting!r} cannot be verified by running a network; allowed: eager")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("this machine has no CUDA device; leave out --device cuda")
    progress("tracing")
    graph = trace(model, resolution, classes)
    predicted = footprint(graph, method, blocks, batch, optimizer, accounting)
    progress("building the network")
    network = prepare(build(graph.model, classes).to(device), predicted.graph, predicted.assignment)
    image = graph.input.shape[1:]
    images = torch.randn(batch, *image, device=device)
    try:
        progress("measuring saved bytes")
        by_call = saved_bytes_by_call(network, images)
        progress("counting FLOPs")
        forward, backward = step_flops(network, images)
        progress("measuring the peak")
        peak = _second_step_peak(network, images, optimizer, device)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{model} cannot be trained with batch {batch}: {' '.join(str(error).split())[:300]}"
        ) from error
    checks = (
        Check("saved for backward", "bytes", predicted.saved_bytes, sum(by_call.values()), 0),
        Check(
            "peak above the step's start", "bytes", predicted.peak_bytes - predicted.moments[0].total_bytes, peak,
            PEAK_TOLERANCE[device],
        ),
        Check("forward", "FLOPs", predicted.forward_flops, forward, 0),
        Check("backward", "FLOPs", predicted.backward_flops, backward, 0),
    )  # fmt: skip
    return Verification(predicted, checks, tuple(_differences(graph, predicted, by_call)))


def _second_step_peak(network: torch.nn.Module, images: torch.Tensor, optimizer: str, device: str) -> int:
    """Return the peak of the second step, when the optimizer's state exists."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rate = 1e-6
    update = {
        "sgd": lambda: torch.optim.SGD(trained, rate),
        "momentum": lambda: torch.optim.SGD(trained, rate, momentum=0.9),
        "adam": lambda: torch.optim.Adam(trained, rate),
        "adamw": lambda: torch.optim.AdamW(trained, rate),
    }[optimizer]()

    def step() -> None:
        loss_of(network(images)).backward()
        update.step()
        update.zero_grad(set_to_none=True)

    step()
    return peak_bytes(step, device)


def _differences(graph: LayerGraph, predicted: Footprint, by_call: dict[tuple[str, str, int], int]):
    expected: dict[tuple[str, str, int], int] = {}
    names = {(layer.module, layer.op, layer.ordinal): layer.name for layer in graph.layers}
    for saved in predicted.books.saved.values():
        layer = graph.layers[min(saved.uses)]
        key = (layer.module, layer.op, layer.ordinal)
        expected[key] = expected.get(key, 0) + saved.bytes(predicted.batch)
    for key in expected | by_call:
        if expected.get(key, 0) != by_call.get(key, 0):
            yield names.get(key, "/".join(map(str, key))), expected.get(key, 0), by_call.get(key, 0)
