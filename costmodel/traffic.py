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

from .accounting import Books, Saved
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

    each = once = packed = 0  # of every image, of every pass, and of bits that are packed over the whole batch

    def move(tensors: Iterable[Tensor]) -> None:
        nonlocal each, once
        for tensor in tensors:
            if tensor.kind == "parameter":
                once += stored[tensor.name]
            elif tensor.batched:
                each += tensor.bytes(1, float_bytes)
            else:
                once += tensor.bytes(1)

    def move_saved(saved: Saved) -> None:
        nonlocal each, once, packed
        size, odd_bits = divmod(saved.total_bits(1, float_bytes), 8)
        if odd_bits:
            packed = packed + saved.bytes(micro_batch, float_bytes)
        elif saved.batched:
            each += size
        else:
            once += size

    def forward(layer: Layer) -> None:
        if not layer.is_view:
            move(layer.inputs.values())
            move(layer.outputs)

    for layer in graph.layers:
        forward(layer)
    for index in books.recomputed:
        forward(graph.layers[index])
    for saved in books.saved.values():
        if saved.storage is None:
            move_saved(saved)
    for index, roles in wanted.items():
        layer = graph.layers[index]
        passed = facts[index].passes_gradient if len(layer.outputs) == 1 else ()
        computed = [layer.inputs[role] for role in roles if role not in passed]
        if not computed:
            continue
        move(layer.outputs)
        for key in books.by_layer.get(index, ()):
            move_saved(books.saved[key])
        if any(tensor.kind != "parameter" for tensor in computed):
            move(layer.parameters.values())
        once += sum(trained[tensor.name] for tensor in computed if tensor.kind == "parameter")
        move(tensor for tensor in computed if tensor.kind != "parameter")
    return each * micro_batch + once + packed
