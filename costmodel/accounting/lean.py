"""`lean`: the least that an exact backward needs, without recomputing across layers.

For each gradient one of the alternatives of its rule is kept. Gradients that have no choice come first; then, layer by
layer, the alternative that adds the fewest bits to what is kept by then (of equals the first named). A layer whose
storage the method decides (MobileTL's mask) keeps that instead. What is computed from parameters alone (a standardised
weight) is computed again in backward.

The choice is greedy; the tests compare it with an exhaustive search on small networks. Source of the needs: `rules/`.
The torch layers of `costmodel.layers` keep exactly this.
"""

from __future__ import annotations

from ..assignment import Assignment
from ..gradients import Wanted
from ..graph import LayerGraph
from ..rules import Alternative, Dense, Facts, Private
from .books import Accounting, Books, Ledger


def _keep(graph: LayerGraph, assignment: Assignment, facts: list[Facts], wanted: Wanted) -> Books:
    ledger = Ledger(graph)
    recomputed = tuple(index for index in wanted if graph.layers[index].output.kind == "derived")
    again = set(recomputed)
    open_choices: list[tuple[int, str, tuple[Alternative, ...]]] = []
    for index, roles in wanted.items():
        if index in again:
            continue
        layer = graph.layers[index]
        storage = assignment.storages.get(index)
        for role in roles:
            alternatives = facts[index].needs[role]
            if storage is not None:
                given = layer.inputs[role]
                mask = (Private(storage.kind, given.elements, storage.bits, given.batched),)
                alternatives = (mask, *alternatives) if storage.exact else (mask,)
            if len(alternatives) > 1:
                open_choices.append((index, role, alternatives))
                continue
            for item in alternatives[0]:
                if not _recomputable(item):
                    ledger.keep(layer, role, item)
    for index, role, alternatives in open_choices:
        cheapest = min(alternatives, key=lambda alternative: sum(map(ledger.cost, alternative)))
        for item in cheapest:
            ledger.keep(graph.layers[index], role, item)
    return ledger.close(recomputed)


def _recomputable(item: Dense | Private) -> bool:
    return isinstance(item, Dense) and item.tensor.kind == "derived"


LEAN = Accounting(
    "lean",
    "the least that an exact backward needs; what this package's layers keep",
    "costmodel/rules, checked against gradients and saved tensors in the tests",
    _keep,
)
