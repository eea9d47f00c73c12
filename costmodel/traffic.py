"""Bytes moved between memory and processor in one training step: what a roofline time is computed from.

    forward    each layer reads its arguments (activations, parameters, constants), writes its results, and what else
               is kept for backward (masks, statistics, clones)
    backward   each layer with a wanted gradient reads the gradients of its results, what was kept for it, and its
               parameters if the gradient of another argument is wanted; it writes each wanted gradient. What is
               computed again is a forward pass of that layer.
    update     reads each trained weight, its gradient and its state, and writes weight and state

Forward and backward happen once per micro-batch, the update once. Views move nothing, nor do gradients that are the
result's own.

Assumption: everything named is read or written in full, once, and caches hold nothing from one layer to the next.
Kernels that read an argument twice (batch statistics), copy to another layout or add up gradients move more; caches
larger than a layer's data save traffic. Neither is counted, nor is the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .accounting import Books
from .gradients import Wanted
from .graph import Layer, LayerGraph, Tensor
from .optimizers import Optimizer
from .rules import Facts


def update_bytes(trained: Mapping[str, int], optimizer: Optimizer) -> int:
    """Return the bytes that an update moves; trained: bytes of each trained parameter."""
    return sum(3 * size + 2 * optimizer.state_bytes(size) for size in trained.values())


def pass_bytes(
    graph: LayerGraph,
    facts: Sequence[Facts],
    wanted: Wanted,
    books: Books,
    stored: Mapping[str, int],
    trained: Mapping[str, int],
    micro_batch: int,
    float_bytes: int = 4,
) -> int:
    """Return the bytes that one forward and backward pass moves.

    stored: bytes of each parameter as it is kept. trained: bytes of each trained parameter, in float32. float_bytes: of
    one activation. micro_batch may be a numpy integer array; so is the answer then.
    """

    def size(tensors: Iterable[Tensor]) -> int:
        total = 0
        for tensor in tensors:
            if tensor.kind == "parameter":
                total = total + stored[tensor.name]
            else:
                total = total + tensor.bytes(micro_batch, float_bytes if tensor.batched else 4)
        return total

    def forward(layer: Layer) -> int:
        return 0 if layer.is_view else size(layer.inputs.values()) + size(layer.outputs)

    total = 0
    for layer in graph.layers:
        total = total + forward(layer)
    for index in books.recomputed:
        total = total + forward(graph.layers[index])
    for saved in books.saved.values():
        if saved.storage is None:
            total = total + saved.bytes(micro_batch, float_bytes)
    for index, roles in wanted.items():
        layer = graph.layers[index]
        passed = facts[index].passes_gradient if len(layer.outputs) == 1 else ()
        computed = [layer.inputs[role] for role in roles if role not in passed]
        if not computed:
            continue
        total = total + size(layer.outputs)
        for key in books.by_layer.get(index, ()):
            total = total + books.saved[key].bytes(micro_batch, float_bytes)
        if any(tensor.kind != "parameter" for tensor in computed):
            total = total + size(layer.parameters.values())
        for tensor in computed:
            total = total + (trained[tensor.name] if tensor.kind == "parameter" else size((tensor,)))
    return total
