"""Methods without a depth: everything, the head, the norms, the biases."""

from __future__ import annotations

from ..graph.blocks import parts
from ..graph.layer_graph import LayerGraph
from .assignment import Assignment
from .method import Chosen, Method, Training, batch_norms, below, head_parameters, norm_layers, parameters_of


def _full(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    return graph, Assignment(frozenset(parameters_of(graph, list(graph.layers))))


def _last(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    trained = head_parameters(graph, parts(graph))
    return graph, Assignment(frozenset(trained), frozenset(batch_norms(graph)))


def _norm(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    trained = head_parameters(graph, parts(graph)) | parameters_of(graph, norm_layers(graph), ("weight", "bias"))
    return graph, Assignment(frozenset(trained), frozenset(below(graph, trained)))


def _bias(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    trained = head_parameters(graph, parts(graph)) | parameters_of(graph, list(graph.layers), ("bias",))
    return graph, Assignment(frozenset(trained), frozenset(batch_norms(graph)))


FULL = Method(
    "full",
    "everything trains; batch norms use the batch's statistics",
    "the usual fine-tuning",
    _full,
    anchor="full",
)
LAST = Method(
    "last",
    "only the head trains; batch norms use their running statistics",
    "the usual linear probe",
    _last,
    anchor="last",
)
NORM = Method(
    "norm",
    "every norm's scale and shift and the head train; batch statistics",
    "Mudrakarta et al.: K for the Price of 1, ICLR 2019 (arXiv 1810.10703)",
    _norm,
    needs_norm=True,
)
# Assumption (evidence): biases trained with frozen batch norm recover what TinyTL's do on its network of group norm and
# weight standardization.
BIAS = Method(
    "bias",
    "every bias and norm shift and the head train; running statistics",
    "Cai et al.: TinyTL, NeurIPS 2020 (arXiv 2007.11622), section 3.1, on a batch-norm network",
    _bias,
    evidence="tinytl-b",
    needs_norm=True,
)
