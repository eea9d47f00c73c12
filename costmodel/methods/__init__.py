"""Training methods: one file per family, one table. Every entry runs through the same battery of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..assignment import Assignment
from ..errors import InputError, unknown
from ..graph import LayerGraph
from .method import Method, Training
from .tinytl import TINYTL_B, TINYTL_L, TINYTL_LB
from .top_blocks import BLOCKS, MOBILETL
from .whole_network import BIAS, FULL, LAST, NORM

METHODS: dict[str, Method] = {
    method.name: method for method in (FULL, LAST, NORM, BIAS, BLOCKS, MOBILETL, TINYTL_B, TINYTL_L, TINYTL_LB)
}


def method(name: str) -> Method:
    """Return the method of that name.

    Errors: InputError for an unknown name, with the near ones.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


Trained = Callable[[str], bool] | Iterable[str]


def assign(
    graph: LayerGraph, name: str | None, blocks: int | None = None, trained: Trained | None = None
) -> tuple[str, LayerGraph, Assignment]:
    """Return the method's name, the graph that it trains, and what is done with it.

    name, blocks: a method (default: full) and its depth. trained: instead, which parameters train (their names, or a
    function of the name), all batch norms using the batch's statistics, as after a plain `model.train()`.

    Errors: InputError for names, depths or combinations that do not exist.
    """
    if trained is None:
        name = name or "full"
        return (name, *method(name)(graph, blocks))
    if name is not None or blocks is not None:
        raise InputError("give either method (and blocks) or trained, not both")
    if callable(trained):
        return "custom", graph, Assignment(frozenset(filter(trained, graph.parameters)))
    names = frozenset([trained] if isinstance(trained, str) else trained)
    for missing in sorted(names - graph.parameters.keys()):
        raise unknown(f"parameter of {graph.model}", missing, graph.parameters)
    return "custom", graph, Assignment(names)


__all__ = ["METHODS", "Method", "Trained", "Training", "assign", "method"]
