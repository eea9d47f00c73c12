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

from collections.abc import Iterable, Mapping

from ..accounting.books import Saved
from ..accounting.requirements import Requirements
from ..graph.values import Layer, Tensor
from ..kept import kept
from ..units import Count, over_batch
from .optimizers import Optimizer
from .precision import Precision


def update_bytes(trained: Mapping[str, int], optimizer: Optimizer) -> int:
    """Return the bytes that an update moves; trained: bytes of each trained parameter."""
    return sum(3 * size + 2 * optimizer.state_bytes(size) for size in trained.values())


def pass_bytes(
    required: Requirements, precision: Precision, micro_batch: Count, again: tuple[int, ...] = (), first: int = 0
) -> Count:
    """Return the bytes that one forward and backward pass moves.

    again: the layers that run again in backward. first: the layer that runs first, if a cache has what those before it
    give.
    """
    tally = _tally(required, precision, again, first)
    packed = over_batch(0, False, micro_batch)
    for saved in tally.packed:
        packed = packed + saved.bytes(micro_batch, precision.activation_bytes)
    return tally.each * micro_batch + tally.once + packed


@kept
def _tally(required: Requirements, precision: Precision, again: tuple[int, ...], first: int) -> _Tally:
    return _Tally(required, precision, again, first)


class _Tally:
    """What one pass moves: of every image, once for all of them, and of bits that are packed over the whole batch."""

    def __init__(self, required: Requirements, precision: Precision, again: tuple[int, ...], first: int):
        self.required, self.precision = required, precision
        self.each = self.once = 0
        self.packed: list[Saved] = []
        graph, books = required.graph, required.books
        for layer in (*graph.layers[first:], *(graph.layers[index] for index in (*books.recomputed, *again))):
            if not layer.is_view:
                self.move(layer.inputs.values())
                self.move(layer.outputs)
        for saved in books.saved.values():
            if saved.storage is None:
                self.move_saved(saved)
        for index, roles in required.wanted.items():
            self.backward(graph.layers[index], roles)

    def backward(self, layer: Layer, roles: tuple[str, ...]) -> None:
        required = self.required
        passed = required.facts[layer.index].passes_gradient if len(layer.outputs) == 1 else ()
        computed = [layer.inputs[role] for role in roles if role not in passed]
        if not computed:
            return
        self.move(layer.outputs)
        for key in required.books.by_layer.get(layer.index, ()):
            self.move_saved(required.books.saved[key])
        if any(tensor.kind != "parameter" for tensor in computed):
            self.move(layer.parameters.values())
        gradients = (required.trained_elements[tensor.name] for tensor in computed if tensor.kind == "parameter")
        self.once += self.precision.gradient_bytes * sum(gradients)
        self.move(tensor for tensor in computed if tensor.kind != "parameter")

    def move(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.kind == "parameter":
                trains = tensor.name in self.required.assignment.trained
                self.once += self.precision.stored_bytes(tensor, trains)
            elif tensor.batched:
                self.each += tensor.bytes(1, self.precision.activation_bytes)
            else:
                self.once += tensor.bytes(1)

    def move_saved(self, saved: Saved) -> None:
        size, odd_bits = divmod(saved.total_bits(1, self.precision.activation_bytes), 8)
        if odd_bits:
            self.packed.append(saved)
        elif saved.batched:
            self.each += size
        else:
            self.once += size
