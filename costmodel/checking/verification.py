"""Predicted next to measured on this machine: saved bytes, peak and FLOPs of real training steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..accounting.eager import EAGER
from ..accounting.kernels import NO_KERNELS, Kernels
from ..accounting.lean import LEAN
from ..answers.footprint import Footprint, footprint
from ..errors import InputError, ModelError
from ..graph.layer_graph import LayerGraph
from ..methods.table import Trained, way_of
from ..methods.way import Options, Way
from ..step.precision import Precision
from ..step.regions import regions
from ..step.schedule import PLAIN, Schedule
from ..step.segments import RANDOM, checkpoints
from ..step.simulation import CATEGORIES
from ..step.step import Step
from ..tracing.inputs import Inputs, Shapes, Spec
from ..tracing.models import build
from ..tracing.tracer import has_classes, inputs_of, trace
from ..training.applied import apply, refuse_stock
from ..training.cache import cached_prefix
from ..training.optimizers import make_optimizer, update_in_place
from .measuring import Loss, kept_bytes, loss_of, peak_bytes, prepare, result_of, saved_bytes_by_module, step_flops

# Not in the model: reductions' scratchpads per thread, 0-dimensional tensors, the rounding of CUDA's allocator.
# `lean` unpacks masks piece by piece, a few hundred kilobytes at a time.
PEAK_TOLERANCE = {("eager", "cpu"): 0.005, ("lean", "cpu"): 0.01, ("eager", "cuda"): 0.01, ("lean", "cuda"): 0.01}

# With several threads. Assumption: the scratchpads of a reduction over two; measured, up to 130 kB in MobileNetV2's
# first layers. They are as large as weights, so no more than a share of a small network's peak.
PEAK_SLACK_BYTES, PEAK_SLACK_SHARE = 2**18, 0.02

_LEARNING_RATE = 1e-6  # so small that no weight leaves its range in a few steps


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
    """What one configuration takes, predicted and measured: saved bytes, the peak above the step's start, FLOPs.

    differing_modules: where saved bytes differ: (module, predicted, measured). What several layers keep stands with the
    first of them.
    """

    footprint: Footprint
    saved: Check
    peak: Check
    forward: Check
    backward: Check
    differing_modules: tuple[tuple[str, int, int], ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks."""
        return self.saved, self.peak, self.forward, self.backward

    @property
    def agrees(self) -> bool:
        """Whether every check agrees."""
        return all(check.agrees for check in self.checks)


def verify(
    model: str | torch.nn.Module,
    method: Way | str | None = None,
    blocks: int | None = None,
    batch: int = 8,
    resolution: Any = 224,
    classes: int | None = None,
    accounting: str = "eager",
    optimizer: str = "sgd",
    device: str = "cpu",
    progress: Callable[[str], None] = lambda stage: None,
    *,
    options: Options | None = None,
    trained: Trained | None = None,
    frozen_dtype: str = "float32",
    schedule: Schedule = PLAIN,
    input: Shapes | None = None,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
) -> Verification:
    """Build the model, train it for real steps on this machine, and compare with the prediction.

    model, resolution, input, loss, targets: as in `trace`; of a module a copy trains. method: a `Way`, or the name of a
    method, with blocks, options and trained as in `footprint`. frozen_dtype, schedule, accounting: as in `apply`.
    progress: called with what is being done.

    Errors: InputError for an accounting that no torch model realises, ModelError if the model cannot train so.
    """
    if accounting not in (EAGER.name, LEAN.name):
        raise InputError(f"accounting {accounting!r} cannot be verified by running a network; allowed: eager, lean")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("this machine has no CUDA device; leave out --device cuda")
    if loss is not None and (accounting == LEAN.name or schedule.is_cut):
        raise InputError("a loss is stock PyTorch's own step: verify it with --accounting eager and without a schedule")
    progress("tracing")
    graph = trace(model, resolution, classes, input=input, loss=loss, targets=targets)
    way = method if isinstance(method, Way) else way_of(graph, method, blocks, options, trained)
    library = "onednn" if accounting == EAGER.name else "layers"
    kernels = Kernels(library, torch.get_num_threads()) if device == "cpu" else NO_KERNELS
    precision = Precision(frozen=frozen_dtype)
    predicted = footprint(Step(graph, way, batch, schedule, precision, optimizer, accounting, kernels=kernels))
    progress("building the network")
    network = _network(model, graph, classes, predicted, (resolution, input)).to(device)
    one_pass = _examples(network, graph, resolution, input, targets).random(predicted.micro_batch, device)
    if schedule.cache is not None:
        progress("filling the cache")
        (images,) = one_pass.args
        one_pass = Inputs((_from_cache(network, schedule, images),), {})
    loss_of_step = loss_of if loss is None else _with_targets(loss, one_pass.targets)
    try:
        progress("measuring saved bytes")
        kept_with = (lambda outputs: outputs) if loss is None else loss_of_step
        by_module = {} if schedule.segments else saved_bytes_by_module(network, one_pass, kept_with)
        saved = kept_bytes(network, one_pass) if schedule.segments else sum(by_module.values())
        progress("counting FLOPs")
        passes = predicted.step.passes
        forward, backward = (passes * count for count in step_flops(network, one_pass, loss_of_step))
        progress("measuring the peak")
        step = _second_step(network, one_pass, loss_of_step, predicted.step)
        peak = check_peak(predicted, peak_bytes(step, device), device)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{graph.model} cannot be trained with batch {batch}: {' '.join(str(error).split())[:300]}"
        ) from error
    return Verification(
        predicted,
        Check("saved for backward", "bytes", _measurable(predicted), saved, 0, _saved_slack(predicted)),
        peak,
        Check("forward", "FLOPs", predicted.forward_flops, forward, 0),
        Check("backward", "FLOPs", predicted.total_flops - predicted.forward_flops, backward, 0),
        () if schedule.segments or checkpoints(graph) else tuple(_differences(predicted, by_module)),
    )


def _examples(
    network: torch.nn.Module, graph: LayerGraph, resolution: Any, input: Shapes | None, targets: Any
) -> Inputs:
    """Return what the network is called with, without numbers."""
    given = inputs_of(network, resolution, input, targets)
    return (
        given
        if isinstance(given, Inputs)
        else Inputs((Spec(graph.input.shape, getattr(torch, graph.input.dtype)),), {})
    )


def _with_targets(loss: Callable[..., Any], targets: Any) -> Loss:
    return loss if targets is None else lambda outputs: loss(outputs, targets)


def _network(
    model: str | torch.nn.Module, graph: LayerGraph, classes: int | None, predicted: Footprint, given: tuple[Any, Any]
) -> torch.nn.Module:
    """Return the torch model that keeps the books: stock PyTorch, or with this package's layers.

    given: resolution and input, as in `trace`.
    """
    network = build(graph.model, classes) if isinstance(model, str) else copy.deepcopy(model)
    if not has_classes(graph, classes or graph.classes):
        raise ModelError(f"{graph.model} cannot be built with {classes} classes")
    schedule, frozen_dtype = predicted.step.schedule, predicted.step.precision.frozen
    if predicted.accounting == EAGER.name and not schedule.is_cut:
        refuse_stock(predicted.requirements, frozen_dtype)
        return prepare(network, predicted.graph, predicted.assignment)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the function changes does not matter here
        return apply(
            network, predicted.way, resolution=given[0], input=given[1], frozen_dtype=frozen_dtype, schedule=schedule,
            accounting=predicted.accounting,
        ).train()  # fmt: skip


def _from_cache(network: torch.nn.Module, schedule: Schedule, images: torch.Tensor) -> torch.Tensor:
    """Return what a step starts from in place of images."""
    labels = torch.zeros(len(images), dtype=torch.long)
    with TemporaryDirectory() as folder:
        cached = cached_prefix(network, schedule, [(images, labels)], folder)
        return torch.stack([cached[number][0] for number in range(len(cached))]).to(images.device)


def _measurable(predicted: Footprint) -> int:
    """Return the predicted bytes that the measurement sees.

    With segments that is the profiler: not of the input, which is there before, nor of the packed masks of this
    package's dropout, which are in NumPy's memory.
    """
    if not predicted.step.schedule.segments:
        return predicted.saved_bytes
    moment = next(moment for moment in predicted.moments if moment.phase == "loss")
    if predicted.accounting == EAGER.name:
        return moment.by_category[CATEGORIES.index("saved_activations")]
    cut = regions(predicted.requirements, predicted.step.schedule)
    absent = {key for one in cut.segments for key in one.absent}
    masks = sum(
        saved.bytes(predicted.micro_batch)
        for key, saved in predicted.books.saved.items()
        if key.of == "layer" and predicted.graph.layers[key.id].op == "dropout" and key not in absent
    )
    return moment.by_category[CATEGORIES.index("saved_activations")] - masks


def _saved_slack(predicted: Footprint) -> int:
    """Return the bytes of the random generator's state that segments with random calls keep."""
    if not predicted.step.schedule.segments:
        return 0
    cut = regions(predicted.requirements, predicted.step.schedule)
    layers = [predicted.graph.layers[index] for index in cut.segment_of]
    masks = {t.storage.id for layer in layers for t in layer.inputs.values() if t.kind == "constant"}
    draws = sum(layer.op in RANDOM for layer in layers) + len(masks - predicted.graph.resident_storages)
    return draws * torch.get_rng_state().numel()


def check_peak(predicted: Footprint, measured: int, device: str = "cpu") -> Check:
    """Return the peak of a training step above what is there when it starts, predicted and measured, in bytes.

    predicted: of the step, with the working memory of this machine's kernels. measured: of an update from the second
    one on, when the optimizer's state exists; its images are there before.
    """
    above_start = max(m.total_bytes for m in predicted.moments if m.phase != "fill") - predicted.start.total_bytes
    several = device != "cpu" or torch.get_num_threads() > 1
    slack = min(PEAK_SLACK_BYTES, int(PEAK_SLACK_SHARE * measured)) if several else 0
    tolerance = PEAK_TOLERANCE[predicted.accounting, device]
    return Check("peak above the step's start", "bytes", above_start, measured, tolerance, slack)


def _second_step(network: torch.nn.Module, one_pass: Inputs, loss: Loss, made: Step) -> Callable[[], None]:
    """Return what makes a step; the first one, which makes the optimizer's state, is done."""
    update = make_optimizer(made.optimizer, network, _LEARNING_RATE)
    if made.schedule.inplace_update:
        update_in_place(network, update)

    def step() -> None:
        for _ in range(made.passes):
            loss(result_of(network, one_pass)).sum().backward()
        update.step()
        update.zero_grad(set_to_none=True)

    step()
    return step


def _differences(predicted: Footprint, measured: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """Yield the modules whose saved bytes differ."""
    expected: dict[str, int] = {}
    for saved in predicted.books.saved.values():
        module = predicted.graph.layers[min(saved.uses)].module
        expected[module] = expected.get(module, 0) + saved.bytes(predicted.micro_batch)
    for module in expected | measured:
        if expected.get(module, 0) != measured.get(module, 0):
            yield module or "the network itself", expected.get(module, 0), measured.get(module, 0)
