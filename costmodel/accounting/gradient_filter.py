"""`gradient-filter`: the memory that Gradient Filtering's tables print.

    bytes = the inputs of the trained convolutions, N x in x H x W x 4 each;
    with patches of r x r output pixels N x in x ceil(H_out / r) x ceil(W_out / r) x 4

Printed in KiB and MiB (powers of 1024). It leaves out norms (their statistics and scales are frozen), activations, the
head's input, parameters, gradients and the optimizer; a tensor that two convolutions read counts twice.

Source: Yang et al.: Gradient Filtering, CVPR 2023 (arXiv 2301.00330), Table 2.
"""

from __future__ import annotations

from ..assignment import Assignment
from ..blocks import CONVOLUTIONS
from ..gradients import Wanted
from ..graph import LayerGraph
from ..rules import Facts
from .books import Accounting, Books, Instant, Saved

FLOAT_BITS = 32


def _keep(graph: LayerGraph, assignment: Assignment, facts: list[Facts], wanted: Wanted) -> Books:
    saved, by_layer = {}, {}
    for index, roles in wanted.items():
        layer = graph.layers[index]
        if layer.op not in CONVOLUTIONS or "weight" not in roles:
            continue
        x, storage, key = layer.inputs["input"], assignment.storages.get(index), ("input of", index)
        elements, bits, extra, what = x.elements, FLOAT_BITS, 0, "input"
        if storage is not None:
            elements, bits, extra, what = storage.elements_of(elements), storage.bits, storage.extra_bits, storage.kind
        follows = bits == FLOAT_BITS
        saved[key] = Saved(
            key, what, x.shape_text, elements, bits, x.batched, follows, None, {index: ("weight",)}, extra
        )  # fmt: skip
        by_layer[index] = [key]
    return Books(saved, by_layer)


def _timeline(graph: LayerGraph, assignment: Assignment, books: Books, batch: int, float_bytes: int) -> list[Instant]:
    """Return one moment, at which everything that the books have is there."""
    total = sum(saved.bytes(batch, float_bytes) for saved in books.saved.values())
    return [("forward", "", {"saved_activations": total})]


GRADIENT_FILTER = Accounting(
    "gradient-filter",
    "Gradient Filtering's tables: the inputs of the trained convolutions, and nothing else",
    "Yang et al. (arXiv 2301.00330), Table 2",
    _keep,
    timeline=_timeline,
    leaves_out="norms, activations, the head, parameters, gradients, the optimizer",
)
