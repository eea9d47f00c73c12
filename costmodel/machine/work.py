"""What a step has a machine do, in counts that take time: FLOPs, bytes and calls, by pass and by kind of operation.

    forward     the forward pass, and what runs again in backward
    input       the gradients of activations
    weight      the gradients of parameters

A call's bytes are those of what it reads and writes, each once (as in `costmodel.step.traffic`). `mask`: elements whose
bit is packed in forward and unpacked in backward. `update`: bytes of the optimizer. `pass`, `step`: once each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..accounting.requirements import Requirements
from ..graph.blocks import CONVOLUTIONS, NORMS, is_depthwise
from ..graph.values import Layer, Tensor
from ..kept import kept
from ..rules.facts import Dense
from ..step.optimizers import OPTIMIZERS
from ..step.precision import Precision
from ..step.regions import again, regions, skipped
from ..step.schedule import Schedule
from ..step.sizes import trained_bytes
from ..step.step import Step
from ..step.traffic import update_bytes

PASSES = ("forward", "input", "weight")
# image: a convolution of an image of up to 3 channels, whose copies and blocks of channels are others. grouped: one in
# groups of several channels. linear: a product of matrices.
KINDS = ("pointwise", "depthwise", "dense", "grouped", "image", "linear", "norm", "pooling", "elementwise")
_BY_ELEMENT = ("norm", "pooling", "elementwise")  # whose FLOPs are those of element-wise work
MEASURES = ("flops", "bytes", "calls")
FEATURES = (
    *((phase, kind, measure) for phase in PASSES for kind in KINDS for measure in MEASURES),
    ("forward", "mask", "elements"), ("update", "", "bytes"), ("pass", "", "calls"), ("step", "", "calls"),
)  # fmt: skip
_PLACE = {feature: place for place, feature in enumerate(FEATURES)}
_IMAGE_CHANNELS = 3
_PRODUCTS = {"linear", "matmul", "bmm"}
Vector = NDArray[np.float64]


def kind_of(layer: Layer) -> str:
    """Return the kind of a layer: what its time follows."""
    if layer.op in _PRODUCTS:
        return "linear"
    if layer.op not in CONVOLUTIONS:
        return "norm" if layer.op in NORMS else "pooling" if "pool" in layer.op else "elementwise"
    weight = layer.inputs["weight"]
    if layer.input.shape[1] <= _IMAGE_CHANNELS:
        return "image"
    if layer.attributes.get("groups", 1) > 1:
        return "depthwise" if is_depthwise(layer) else "grouped"
    return "pointwise" if {*weight.shape[2:]} == {1} else "dense"


@dataclass(frozen=True, eq=False)
class _Tally:
    """Counts of each image, of each pass, and of each piece of the prefix beside the first: [features]."""

    each: Vector
    once: Vector
    piece: Vector


def work(step: Step) -> Vector:
    """Return the counts of one update by a step: [features], in the order of FEATURES."""
    required, schedule = step.requirements, step.schedule
    tally = _tally(required, schedule, step.precision)
    in_pieces = schedule.prefix_batch is not None and schedule.cache is None
    pieces = max(1, step.micro_batch // schedule.prefix_batch) if in_pieces and schedule.prefix_batch else 1
    found = step.batch * tally.each + step.passes * (tally.once + (pieces - 1) * tally.piece)
    trained = trained_bytes(required, step.precision)
    found[_PLACE["update", "", "bytes"]] = update_bytes(trained, OPTIMIZERS.find(step.optimizer))
    found[_PLACE["pass", "", "calls"]] = step.passes
    found[_PLACE["step", "", "calls"]] = 1
    return found


@kept
def _tally(required: Requirements, schedule: Schedule, precision: Precision) -> _Tally:
    counting = _Counting(required, precision)
    graph, cached = required.graph, skipped(required, schedule)
    end = regions(required, schedule).prefix
    for layer in graph.layers[cached:]:
        counting.forward(layer, in_pieces=layer.index < end)
    for index in (*required.books.recomputed, *again(required, schedule)):
        counting.forward(graph.layers[index])
    for index, roles in required.wanted.items():
        counting.backward(graph.layers[index], roles)
    for key, saved in required.books.saved.items():
        if key.of == "layer" and saved.bits <= 2:
            counting.add("forward", "mask", "elements", saved.elements, saved.batched)
    return _Tally(counting.each, counting.once, counting.piece)


class _Counting:
    """Adds up the work of calls."""

    def __init__(self, required: Requirements, precision: Precision) -> None:
        self.required, self.float_bytes = required, precision.activation_bytes
        self.each, self.once, self.piece = np.zeros((3, len(FEATURES)))

    def add(self, phase: str, kind: str, measure: str, count: float, batched: bool) -> None:
        (self.each if batched else self.once)[_PLACE[phase, kind, measure]] += count

    def move(self, phase: str, kind: str, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            self.add(phase, kind, "bytes", tensor.bytes(1, self.float_bytes), tensor.batched)

    def forward(self, layer: Layer, in_pieces: bool = False) -> None:
        if layer.is_view:
            return
        facts, kind, batched = self.required.facts[layer.index], kind_of(layer), layer.output.batched
        flops = facts.forward_elementwise if kind in _BY_ELEMENT else facts.forward_flops
        before = self.once.copy() if in_pieces else None
        self.add("forward", kind, "flops", flops, batched)
        self.move("forward", kind, [*layer.inputs.values(), *layer.outputs])
        self.add("forward", kind, "calls", 1, False)
        if before is not None:
            self.piece += self.once - before

    def backward(self, layer: Layer, roles: tuple[str, ...]) -> None:
        facts, kind, batched = self.required.facts[layer.index], kind_of(layer), layer.output.batched
        passed = facts.passes_gradient if len(layer.outputs) == 1 else ()
        for phase in ("input", "weight"):
            mine = [
                role for role in roles
                if role not in passed and (layer.inputs[role].kind == "parameter") == (phase == "weight")
            ]  # fmt: skip
            if not mine:
                continue
            counted = facts.backward_elementwise if kind in _BY_ELEMENT else facts.backward_flops
            self.add(phase, kind, "flops", sum(counted.get(role, 0) for role in mine), batched)
            self.move(phase, kind, [*layer.outputs, *self.read(layer, mine), *(layer.inputs[role] for role in mine)])
            self.add(phase, kind, "calls", 1, False)

    def read(self, layer: Layer, roles: list[str]) -> list[Tensor]:
        """Return the arguments that the gradients of some roles are computed from."""
        needs = [item for role in roles for item in self.required.facts[layer.index].needs[role][0]]
        return list({item.tensor.id: item.tensor for item in needs if isinstance(item, Dense)}.values())
