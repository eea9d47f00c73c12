"""`gradient-filter`: the memory that Gradient Filtering's tables print.

    bytes = the inputs of the trained convolutions, N x in x H x W x 4 each;
    with patches of r x r output pixels N x in x ceil(H_out / r) x ceil(W_out / r) x 4

Printed in KiB and MiB (powers of 1024). It leaves out norms (their statistics and scales are frozen), activations, the
head's input, parameters, gradients and the optimizer; a tensor that two convolutions read counts twice.

Source: Yang et al.: Gradient Filtering, CVPR 2023 (arXiv 2301.00330), Table 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.blocks import CONVOLUTIONS
from ..graph.layer_graph import LayerGraph
from ..methods.assignment import Assignment
from ..rules.facts import Facts
from ..units import FLOAT_BITS
from .books import Accounting, Books, Key, Saved, all_at_once
from .gradients import Wanted


def _keep(graph: LayerGraph, assignment: Assignment, facts: Sequence[Facts], wanted: Wanted) -> Books:
    saved, by_layer = {}, {}
    for index, roles in wanted.items():
        layer = graph.layers[index]
        if layer.op not in CONVOLUTIONS or "weight" not in roles:
            continue
        x, instead, key = layer.inputs["input"], assignment.kept_inputs.get(index), Key("layer", index, "input")
        elements, bits, extra, what = x.elements, FLOAT_BITS, 0, "input"
        if instead is not None:
            elements, bits, extra, what = instead.elements_of(elements), instead.bits, instead.extra_bits, instead.kind
        follows = bits == FLOAT_BITS
        saved[key] = Saved(
            key, what, x.shape_text, elements, bits, x.batched, follows, None, {index: ("weight",)}, extra
        )  # fmt: skip
        by_layer[index] = [key]
    return Books(saved, by_layer)


GRADIENT_FILTER = Accounting(
    "gradient-filter",
    "Gradient Filtering's tables: the inputs of the trained convolutions, and nothing else",
    "Yang et al. (arXiv 2301.00330), Table 2",
    _keep,
    timeline=all_at_once,
    whole_step=False,
    leaves_out="norms, activations, the head, parameters, gradients, the optimizer",
)
