"""The last n convolutions and the head train; plainly, or with filtered gradients.

Gradient filtering replaces the output's gradient, and the convolution's input, by their means over patches of r x r
output pixels, so that of the input one value per patch and channel is kept:

    N x in x ceil(H_out / r) x ceil(W_out / r)

Source: Yang, Li, Marculescu: Efficient On-device Training via Gradient Filtering, CVPR 2023 (arXiv 2301.00330),
section 3; the head trains and batch norms use their running statistics (configs/cls of SLDGroup/GradientFilter-CVPR23).
Assumption: norms' scales and shifts stay frozen too.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..assignment import Assignment, Storage
from ..blocks import CONVOLUTIONS, parts
from ..graph import Layer, LayerGraph
from .method import Method, Training, batch_norms, head_parameters, parameters_of, whole_number

DEFAULT_CONVOLUTIONS, DEFAULT_PATCH = 2, 2


def convolutions(graph: LayerGraph) -> list[Layer]:
    """Return the convolutions of activations, in the order of execution."""
    return [layer for layer in graph.layers if layer.op in CONVOLUTIONS and layer.output.kind == "activation"]


def _last(graph: LayerGraph, options: Mapping[str, object]) -> list[Layer]:
    every = convolutions(graph)
    count = whole_number("convolutions", options["convolutions"], 1, len(every), graph.model)
    return every[-count:]


def _last_convs(graph: LayerGraph, options: Mapping[str, object]) -> Training:
    trained = parameters_of(graph, _last(graph, options)) | head_parameters(graph, parts(graph))
    return graph, Assignment(frozenset(trained), frozenset(batch_norms(graph)))


def _gradient_filter(graph: LayerGraph, options: Mapping[str, object]) -> Training:
    graph, plain = _last_convs(graph, options)
    patch = whole_number("patch", options["patch"], 1, None, graph.model)
    storages = {
        layer.index: Storage("pooled", 32, patch == 1, role="weight", elements=_patches(layer, patch))
        for layer in _last(graph, options)
    }
    return graph, Assignment(plain.trained, plain.frozen_statistics, storages)


def _patches(layer: Layer, patch: int) -> int:
    """Return the input channels times the patches of the output, per image."""
    count = layer.inputs["input"].shape[1]
    for size in layer.output.shape[2:]:
        count *= -(-size // patch)
    return count


LAST_CONVS = Method(
    "last-convs",
    "the last n convolutions and the head train; running statistics (option convolutions)",
    "the baseline of Gradient Filtering, CVPR 2023 (arXiv 2301.00330)",
    False,
    _last_convs,
    options={"convolutions": DEFAULT_CONVOLUTIONS},
)
GRADIENT_FILTER = Method(
    "gradient-filter",
    "as last-convs, but inputs are kept as means of r x r patches (options convolutions, patch)",
    "Yang et al.: Gradient Filtering, CVPR 2023 (arXiv 2301.00330)",
    False,
    _gradient_filter,
    options={"convolutions": DEFAULT_CONVOLUTIONS, "patch": DEFAULT_PATCH},
    has_layers=False,
)
