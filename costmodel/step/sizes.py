"""The bytes of a step that do not follow from the order of its calls: weights, gradients, copies, working memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic

import numpy as np

from ..accounting.books import CAST_WEIGHT
from ..accounting.kernels import Call, Kernels
from ..accounting.orders import gradient_orders
from ..accounting.requirements import Requirements
from ..graph.values import Layer, element_bytes
from ..kept import kept
from ..rules.table import operation
from ..units import FLOAT_BYTES, Count
from .precision import Precision


@dataclass(frozen=True)
class Sizes(Generic[Count]):
    """What a step takes in bytes apart from its layers.

    batch: images per pass, one number or several. float_bytes: of one number of an activation. weights_bytes: of all
    parameters as they are stored. trained: bytes of each trained parameter's gradient. copied: by layer, the bytes of
    the copy of its weights that it makes to compute with (from int8, or in fp16 under autocast). working: by layer,
    what its kernels need beside that, forward and backward.
    """

    batch: Count
    float_bytes: int
    weights_bytes: int
    buffers_bytes: int
    trained: dict[str, int]
    copied: dict[int, int]
    working: dict[int, tuple[Count, Count]]


def sizes(required: Requirements, precision: Precision, kernels: Kernels, micro_batch: Count) -> Sizes[Count]:
    """Return the sizes of a step of these images per pass. Errors: InputError for kernels that do not exist."""
    return Sizes(
        micro_batch, precision.activation_bytes, weights_bytes(required, precision), _buffers_bytes(required),
        trained_bytes(required, precision), _copied(required, precision),
        _working(required, precision, kernels, micro_batch),
    )  # fmt: skip


@kept
def weights_bytes(required: Requirements, precision: Precision) -> int:
    """Return the bytes of all parameters as they are stored."""
    trained = required.assignment.trained
    return sum(precision.stored_bytes(each, name in trained) for name, each in required.graph.parameters.items())


@kept
def _buffers_bytes(required: Requirements) -> int:
    return sum(tensor.bytes(1) for tensor in required.graph.buffers.values())


@kept
def names_before(required: Requirements, end: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the parameters and of the buffers that only layers before `end` use."""
    graph = required.graph
    parameters, modules = (set(), set()), (set(), set())
    for layer in graph.layers:
        parameters[layer.index >= end].update(tensor.name for tensor in layer.parameters.values())
        modules[layer.index >= end].add(layer.module)
    own = modules[False] - modules[True]
    return (
        tuple(name for name in graph.parameters if name in parameters[False] - parameters[True]),
        tuple(name for name in graph.buffers if name.rpartition(".")[0] in own),
    )


def prefix_bytes(required: Requirements, precision: Precision, end: int) -> tuple[int, int]:
    """Return the bytes of the parameters and of the buffers that only layers before `end` use."""
    graph, trained = required.graph, required.assignment.trained
    parameters, buffers = names_before(required, end)
    return (
        sum(precision.stored_bytes(graph.parameters[name], name in trained) for name in parameters),
        sum(graph.buffers[name].bytes(1) for name in buffers),
    )


@kept
def trained_bytes(required: Requirements, precision: Precision) -> dict[str, int]:
    """Return the bytes of each trained parameter's gradient."""
    parameters = required.graph.parameters
    return {
        name: element_bytes(parameters[name].dtype, precision.gradient_bytes) * count
        for name, count in required.trained_elements.items()
    }


@kept
def _copied(required: Requirements, precision: Precision) -> dict[int, int]:
    """Return, by layer, the bytes of the copy of its weights that it makes to compute with."""
    trained, copied = required.assignment.trained, {}

    def is_copied(layer: Layer) -> bool:
        weight = layer.inputs.get("weight")
        if weight is None or weight.kind != "parameter" or len(weight.shape) < 2:
            return False
        converts = precision.reduces(weight, weight.name in trained) and precision.frozen != precision.activations
        return layer.op == "standardized_conv2d" or converts or precision.activation_bytes != FLOAT_BYTES

    is_reduced, by_layer = precision.activation_bytes != FLOAT_BYTES, required.books.by_layer
    for layer in filter(is_copied, required.graph.layers):
        if is_reduced and any(key.label == CAST_WEIGHT for key in by_layer.get(layer.index, ())):
            continue  # it is kept
        copied[layer.index] = layer.inputs["weight"].elements * precision.activation_bytes
    return copied


def _working(
    required: Requirements, precision: Precision, kernels: Kernels, micro_batch: Count
) -> dict[int, tuple[Count, Count]]:
    if kernels.library == "none":
        return {}
    books, found = required.books, {}
    orders = gradient_orders(required.graph, required.wanted)
    for layer in required.graph.layers:
        call = Call(
            layer, required.wanted.get(layer.index, ()), 1, _float_bytes(layer, precision),
            any(key.label == "mask" for key in books.by_layer.get(layer.index, ())), kernels.threads,
            operation(layer, layer.index in required.assignment.frozen_statistics) == "frozen_batch_norm",
            orders.get(layer.output.id, ()),
        )  # fmt: skip
        found[layer.index] = _at_each(kernels, call, micro_batch)
    return found


def _float_bytes(layer: Layer, precision: Precision) -> int:
    """Return the bytes of one number that a layer computes with."""
    given = layer.input.dtype
    return element_bytes(given, precision.activation_bytes) if "float" in given else precision.activation_bytes


def _at_each(kernels: Kernels, call: Call, batch: Count) -> tuple[Count, Count]:
    """Return the working memory of a call at a batch, or at each of several."""
    if isinstance(batch, np.ndarray):
        forward, backward = np.array([kernels.working(replace(call, batch=int(one))) for one in batch]).T
        return forward, backward
    return kernels.working(replace(call, batch=batch))
