"""Methods that train the last k blocks, the tail and the head."""

from __future__ import annotations

from ..graph.blocks import ACTIVATIONS, parts
from ..graph.layer_graph import LayerGraph
from .assignment import Assignment, KeptInput
from .method import Chosen, Method, Training, batch_norms, norm_layers, parameters_of

# Source: MobileTL (arXiv 2212.03246): "a signed function"; the threshold is not stated there.
# Assumption: 0, the point where hard-swish and SiLU turn from near-constant to near-linear.
MASK_THRESHOLD = 0.0
# Their exact derivatives take two values, so that one bit is not an approximation.
_EXACT_IN_ONE_BIT = {"relu", "relu6", "hardtanh", "leaky_relu", "hardsigmoid"}


def _blocks(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    assert blocks is not None  # takes_blocks
    first = parts(graph).blocks[-blocks].first
    trained = parameters_of(graph, list(graph.layers[first:]))
    return graph, Assignment(frozenset(trained), frozenset(i for i in batch_norms(graph) if i < first))


def _mobiletl(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    assert blocks is not None  # takes_blocks
    _, plain = _blocks(graph, blocks, chosen)
    cut = parts(graph)
    tuned = cut.blocks[-blocks:]
    inner = [
        layer
        for layer in norm_layers(graph)
        if layer.index >= tuned[0].first
        and (block := cut.block_of(layer)) is not None
        and layer.index not in block.closing_norms
    ]
    masked = {
        layer.index: KeptInput("mask", 1, layer.op in _EXACT_IN_ONE_BIT, MASK_THRESHOLD)
        for block in tuned
        for layer in graph.layers[block.first : block.last + 1]
        if layer.op in ACTIVATIONS and layer.index not in block.squeeze
    }
    frozen = {layer.index for layer in inner} & batch_norms(graph)
    return graph, Assignment(
        plain.trained - parameters_of(graph, inner, ("weight",)), plain.frozen_statistics | frozen, masked
    )


BLOCKS = Method(
    "blocks",
    "the last k blocks, the tail and the head train; batch statistics there",
    "the usual partial fine-tuning",
    _blocks,
    takes_blocks=True,
    min_blocks=1,
)
MOBILETL = Method(
    "mobiletl",
    "as blocks, but inner norms train only their shift and activations keep one bit",
    "Chiang et al.: MobileTL, AAAI 2023 (arXiv 2212.03246)",
    _mobiletl,
    takes_blocks=True,
    min_blocks=1,
)
