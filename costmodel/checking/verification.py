"""Predicted next to measured on this machine: saved bytes, peak and FLOPs of real training steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..accounting.eager import EAGER
from ..accounting.lean import LEAN
from ..answers.footprint import Footprint, footprint
from ..errors import InputError, ModelError
from ..graph.layer_graph import LayerGraph
from ..tracing.models import build
from ..tracing.tracer import trace
from ..training.applied import apply
from .measuring import loss_of, peak_bytes, prepare, saved_bytes_by_module, step_flops

# Not in the model: reductions' scratchpads per thread, 0-dimensional tensors, the rounding of CUDA's allocator.
# `lean` unpacks masks piece by piece, a few hundred kilobytes at a time.
PEAK_TOLERANCE = {("eager", "cpu"): 0.005, ("lean", "cpu"): 0.01, ("eager", "cuda"): 0.01, ("lean", "cuda"): 0.01}

# Assumption: the scratchpads of a reduction over two threads; measured, up to 130 kB in MobileNetV2's first layers.
PEAK_SLACK_BYTES = 2**18


@dataclass(frozen=True)
class Check:
    """One quantity, predicted and measured; `tolerance` is relative to the measured one, `slack` in its unit."""

    quantity: str
    unit: str
    predicted: int
    measured: int
    tolerance: float
    slack: int = 0

    @property
    def relative_difference(self) -> float:
        """(predicted - measured) / measured."""
        return (self.predicted - self.measured) / max(1, self.measured)

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return abs(self.predicted - self.measured) <= self.tolerance * self.measured + self.slack


@dataclass(frozen=True)
class Verification:
    """The checks of one configuration, and where saved bytes differ: (module, predicted, measured).

    What several layers keep stands with the first of them.
    """

    footprint: Footprint
    checks: tuple[Check, ...]
    differing_modules: tuple[tuple[str, int, int], ...]

    @property
    def agrees(self) -> bool:
        """Whether every check agrees."""
        return all(check.agrees for check in self.checks)


def verify(
    model: str | torch.nn.Module,
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

    model: as in `trace`; of a module a copy trains. progress: called with what is being done.

    Errors: InputError for an accounting that no torch model realises, ModelError if the model cannot train so.
    """
    if accounting not in (EAGER.name, LEAN.name):
        raise InputError(f"accounting {accounting!r} cannot be verified by running a network; allowed: eager, lean")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("this machine has no CUDA device; leave out --device cuda")
    progress("tracing")
    graph = trace(model, resolution, classes)
    kernels = f"{'onednn' if accounting == EAGER.name else 'layers'}, {torch.get_num_threads()} threads"
    if device != "cpu":
        kernels = "none"
    predicted = footprint(graph, method, blocks, batch, optimizer, accounting, kernels=kernels)
    progress("building the network")
    network = _network(model, graph, classes, predicted, resolution).to(device)
    image = graph.input.shape[1:]
    images = torch.randn(batch, *image, device=device)
    try:
        progress("measuring saved bytes")
        by_module = saved_bytes_by_module(network, images)
        progress("counting FLOPs")
        forward, backward = step_flops(network, images)
        progress("measuring the peak")
        peak = _second_step_peak(network, images, optimizer, device)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{graph.model} cannot be trained with batch {batch}: {' '.join(str(error).split())[:300]}"
        ) from error
    checks = (
        Check("saved for backward", "bytes", predicted.saved_bytes, sum(by_module.values()), 0),
        Check(
            "peak above the step's start", "bytes", predicted.peak_bytes - predicted.moments[0].total_bytes, peak,
            PEAK_TOLERANCE[accounting, device], PEAK_SLACK_BYTES,
        ),
        Check("forward", "FLOPs", predicted.forward_flops, forward, 0),
        Check("backward", "FLOPs", predicted.backward_flops, backward, 0),
    )  # fmt: skip
    return Verification(predicted, checks, tuple(_differences(predicted, by_module)))


def _network(
    model: str | torch.nn.Module, graph: LayerGraph, classes: int | None, predicted: Footprint, resolution: int
) -> torch.nn.Module:
    """Return the torch model that keeps the books: stock PyTorch, or with this package's layers."""
    network = build(graph.model, classes) if isinstance(model, str) else copy.deepcopy(model)
    if graph.classes != (classes or graph.classes):
        raise ModelError(f"{graph.model} cannot be built with {classes} classes")
    if predicted.accounting == EAGER.name:
        if any(layer.in_place_of for layer in predicted.graph.layers):
            raise InputError(f"method {predicted.method!r} needs this package's layers; use --accounting lean")
        return prepare(network, predicted.graph, predicted.assignment)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the function changes does not matter here
        return apply(network, predicted.method, predicted.blocks, resolution).train()


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


def _differences(predicted: Footprint, measured: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """Yield the modules whose saved bytes differ."""
    expected: dict[str, int] = {}
    for saved in predicted.books.saved.values():
        module = predicted.graph.layers[min(saved.uses)].module
        expected[module] = expected.get(module, 0) + saved.bytes(predicted.batch)
    for module in expected | measured:
        if expected.get(module, 0) != measured.get(module, 0):
            yield module or "the network itself", expected.get(module, 0), measured.get(module, 0)
