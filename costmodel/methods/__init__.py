"""Training methods: one file per family, one table. Every entry runs through the same battery of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..assignment import Assignment
from ..errors import InputError, unknown
from ..graph import LayerGraph
from .last_convolutions import GRADIENT_FILTER, LAST_CONVS
from .method import Method, Training
from .sparse import BACK_RAZOR, SPARSE_UPDATE
from .tinytl import TINYTL_B, TINYTL_L, TINYTL_LB
from .top_blocks import BLOCKS, MOBILETL
from .whole_network import BIAS, FULL, LAST, NORM

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        FULL, LAST, NORM, BIAS, BLOCKS, MOBILETL, TINYTL_B, TINYTL_L, TINYTL_LB,
        LAST_CONVS, GRADIENT_FILTER, SPARSE_UPDATE, BACK_RAZOR,
    )
}  # fmt: skip


def method(name: str) -> Method:
    """Return the method of that name.

    Errors: InputError for an unknown name, with the near ones.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


Trained = Callable[[str], bool] | Iterable[str]


def assign(
    graph: LayerGraph,
    name: str | None,
    blocks: int | None = None,
    trained: Trained | None = None,
    options: Mapping[str, object] | None = None,
) -> tuple[str, LayerGraph, Assignment]:
    """Return the method's name, the graph that it trains, and what is done with it.

    name, blocks, options: a method (default: full), its depth and what else it lets one choose. trained: instead, which
    parameters train (their names, or a function of the name), all batch norms using the batch's statistics, as after a
    plain `model.train()`.

    Errors: InputError for names, depths or combinations that do not exist.
    """
    if trained is None:
        name = name or "full"
        return (name, *method(name)(graph, blocks, options))
    if name is not None or blocks is not None or options:
        raise InputError("give either method (with blocks or options) or trained, not both")
    if callable(trained):
        return "custom", graph, Assignment(frozenset(filter(trained, graph.parameters)))
    names = frozenset([trained] if isinstance(trained, str) else trained)
    for missing in sorted(names - graph.parameters.keys()):
        raise unknown(f"parameter of {graph.model}", missing, graph.parameters)
    return "custom", graph, Assignment(names)


__all__ = ["METHODS", "Method", "Trained", "Training", "assign", "method"]
