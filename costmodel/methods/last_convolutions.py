"""The last n convolutions and the head train; plainly, or with filtered gradients.

Gradient filtering replaces the output's gradient, and the convolution's input, by their means over patches of r x r
output pixels, so that of the input one value per patch and channel is kept:

    N x in x ceil(H_out / r) x ceil(W_out / r)

Source: Yang, Li, Marculescu: Efficient On-device Training via Gradient Filtering, CVPR 2023 (arXiv 2301.00330),
section 3; the head trains and batch norms use their running statistics (configs/cls of SLDGroup/GradientFilter-CVPR23).
Assumption: norms' scales and shifts stay frozen too.
"""

from __future__ import annotations

from ..graph.blocks import CONVOLUTIONS, parts
from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer
from ..units import FLOAT_BITS
from .assignment import Assignment, KeptInput
from .method import (
    Chosen,
    Method,
    Option,
    Training,
    at_most,
    batch_norms,
    head_parameters,
    parameters_of,
    whole_number,
)


def convolutions(graph: LayerGraph) -> list[Layer]:
    """Return the convolutions of activations, in the order of execution."""
    return [layer for layer in graph.layers if layer.op in CONVOLUTIONS and layer.output.kind == "activation"]


def _last(graph: LayerGraph, chosen: Chosen) -> list[Layer]:
    every = convolutions(graph)
    return every[-at_most("convolutions", chosen["convolutions"], len(every), "convolutions", graph) :]


def _last_convs(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    trained = parameters_of(graph, _last(graph, chosen)) | head_parameters(graph, parts(graph))
    return graph, Assignment(frozenset(trained), frozenset(batch_norms(graph)))


def _gradient_filter(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    graph, plain = _last_convs(graph, blocks, chosen)
    patch = chosen["patch"]
    kept = {
        layer.index: KeptInput("pooled", FLOAT_BITS, patch == 1, role="weight", elements=_patches(layer, patch))
        for layer in _last(graph, chosen)
    }
    return graph, Assignment(plain.trained, plain.frozen_statistics, kept)


def _patches(layer: Layer, patch: int) -> int:
    """Return the input channels times the patches of the output, per image."""
    count = layer.inputs["input"].shape[1]
    for size in layer.output.shape[2:]:
        count *= -(-size // patch)
    return count


_CONVOLUTIONS = Option(
    "convolutions", "how many of the last convolutions train", 2, whole_number(), lambda graph: len(convolutions(graph))
)
_PATCH = Option("patch", "height and width of a patch, in output pixels", 2, whole_number())

LAST_CONVS = Method(
    "last-convs",
    "the last n convolutions and the head train; running statistics (option convolutions)",
    "the baseline of Gradient Filtering, CVPR 2023 (arXiv 2301.00330)",
    _last_convs,
    options=(_CONVOLUTIONS,),
    depth_option=_CONVOLUTIONS.name,
)
GRADIENT_FILTER = Method(
    "gradient-filter",
    "as last-convs, but inputs are kept as means of r x r patches (options convolutions, patch)",
    "Yang et al.: Gradient Filtering, CVPR 2023 (arXiv 2301.00330)",
    _gradient_filter,
    options=(_CONVOLUTIONS, _PATCH),
    has_layers=False,
)
