"""`lean`: the least that an exact backward needs, without recomputing across layers.

For each gradient one of the alternatives of its rule is kept. Gradients that have no choice come first; then those
alternatives that together add the fewest bits to what is kept by then (of equals the first named): choices that could
share a tensor are tried in all combinations, or, if these are more than `MOST_COMBINATIONS`, one after the other. A
layer whose storage the method decides (MobileTL's mask) keeps that instead. A convolution's weight that is computed
from parameters alone (a standardised one) is computed again in backward.

Source of the needs: `rules/`. The torch layers of `costmodel.layers` keep exactly this.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer
from ..methods.assignment import Assignment, KeptInput
from ..rules.facts import Alternative, Dense, Facts, Private
from .books import Accounting, Books, Key, Ledger, dense_key
from .gradients import Wanted

MOST_COMBINATIONS = 10_000

Choice = tuple[int, str, tuple[Alternative, ...]]


def _keep(graph: LayerGraph, assignment: Assignment, facts: Sequence[Facts], wanted: Wanted) -> Books:
    ledger = Ledger(graph)
    recomputed = dict.fromkeys(index for index in wanted if index in graph.weight_computations)
    open_choices: list[Choice] = []
    for index, roles in wanted.items():
        if index in recomputed:
            _keep_ingredients(ledger, graph.layers[index])
            continue
        for role, alternatives in _options(graph.layers[index], roles, facts[index], assignment.kept_inputs.get(index)):
            if len(alternatives) != 1:
                open_choices.append((index, role, alternatives))
                continue
            for item in alternatives[0]:
                if not _recomputable(graph, item):
                    ledger.keep(graph.layers[index], role, item)
    for group in _groups(open_choices):
        for (index, role, _), alternative in zip(group, _cheapest(ledger, group), strict=True):
            for item in alternative:
                ledger.keep(graph.layers[index], role, item)
    return ledger.close(tuple(recomputed))


def _keep_ingredients(ledger: Ledger, layer: Layer) -> None:
    """Enter what a layer of a weight is computed again from, but for parameters and buffers."""
    for role, tensor in layer.inputs.items():
        if tensor.kind == "constant":
            ledger.keep(layer, role, Dense(tensor))


def _options(
    layer: Layer, roles: tuple[str, ...], facts: Facts, instead: KeptInput | None
) -> list[tuple[str, tuple[Alternative, ...]]]:
    """Return what could be kept, by role; for all roles at once where no more is known."""
    if facts.together:
        return [(" ".join(roles), (facts.kept_together(layer, roles),))]
    return [(role, _alternatives(layer, role, facts, instead)) for role in roles]


def _alternatives(layer: Layer, role: str, facts: Facts, instead: KeptInput | None) -> tuple[Alternative, ...]:
    """Return what could be kept for a gradient: what the rule says, or what the method keeps instead."""
    alternatives = facts.needs[role]
    if instead is not None and role == instead.role:
        own = _instead(layer, role, instead)
        alternatives = (own, *alternatives) if instead.exact else (own,)
    return tuple(each for each in alternatives if not _overwritten(layer, each)) or alternatives


def _instead(layer: Layer, role: str, kept: KeptInput) -> Alternative:
    """Return what a method keeps of a layer's input."""
    given = layer.inputs["input" if role == "weight" else role]
    items = [Private(kept.kind, kept.elements_of(given.elements), kept.bits, given.batched)]
    return (*items, Private("bitmap", kept.extra_bits, 1, given.batched)) if kept.extra_bits else tuple(items)


def _groups(choices: list[Choice]) -> list[list[Choice]]:
    """Return the choices in groups: those in different groups name no tensor in common."""
    names: list[set[Key]] = []
    group_of: dict[Key, list[int]] = {}  # a group is a list of places in `choices`, the latest last
    for place, (_, _, alternatives) in enumerate(choices):
        named = {
            dense_key(item.tensor) for alternative in alternatives for item in alternative if isinstance(item, Dense)
        }
        names.append(named | {Key("layer", place, "a choice of its own")})
        touched = {group[-1]: group for key in named if (group := group_of.get(key))}
        group, *others = [touched[last] for last in sorted(touched)] or [[]]
        for other in others:
            group += other
            group_of |= {key: group for member in other for key in names[member]}
        group.append(place)
        group_of |= dict.fromkeys(names[place], group)
    groups = {group[-1]: group for group in group_of.values()}
    return [[choices[place] for place in groups[last]] for last in sorted(groups)]


def _cheapest(ledger: Ledger, group: list[Choice]) -> tuple[Alternative, ...]:
    """Return an alternative for each choice of the group: those that together add the fewest bits."""

    def bits(combination: tuple[Alternative, ...]) -> int:
        added = {
            dense_key(item.tensor) if isinstance(item, Dense) else (index, item.label): ledger.cost(item)
            for (index, _, _), alternative in zip(group, combination, strict=False)
            for item in alternative
        }
        return sum(added.values())

    alternatives = [choice[2] for choice in group]
    if math.prod(map(len, alternatives)) <= MOST_COMBINATIONS:
        return min(itertools.product(*alternatives), key=bits)
    chosen: tuple[Alternative, ...] = ()
    for options in alternatives:
        chosen = (*chosen, min(options, key=lambda option: bits((*chosen, option))))
    return chosen


def _overwritten(layer: Layer, alternative: Alternative) -> bool:
    """Whether it names a value that a later call overwrites in place: to keep it would take a copy."""
    return any(
        isinstance(item, Dense) and item.tensor.overwritten and not (layer.inplace and item.tensor is layer.input)
        for item in alternative
    )


def _recomputable(graph: LayerGraph, item: Dense | Private) -> bool:
    maker = graph.producer.get(item.tensor.id) if isinstance(item, Dense) else None
    return maker is not None and maker.index in graph.weight_computations


LEAN = Accounting(
    "lean",
    "the least that an exact backward needs; what this package's layers keep",
    "costmodel/rules, checked against gradients and saved tensors in the tests",
    _keep,
    is_carried_out=True,
)
