"""Calls without a rule: what was seen when the tracer ran them (`costmodel.graph.learned`).

What is kept is known for each set of wanted gradients, without alternatives. Element-wise arithmetic is not counted.
"""

from __future__ import annotations

from ..graph.learned import Held, Learned
from ..graph.values import Layer
from .facts import Dense, Facts, Private


def facts(layer: Layer, seen: Learned) -> Facts:
    """Return the facts of a learned layer."""
    kept = {pattern.wanted: tuple(_item(layer, held) for held in pattern.kept) for pattern in seen.patterns}
    alone = {pattern.wanted[0]: pattern for pattern in seen.patterns if len(pattern.wanted) == 1}
    return Facts(
        {role: (kept[role,],) for role in alone},
        seen.forward_flops,
        {role: pattern.backward_flops for role, pattern in alone.items()},
        passes_gradient=frozenset(role for role, pattern in alone.items() if role in pattern.passes_gradient),
        together=kept,
        together_flops={pattern.wanted: pattern.backward_flops for pattern in seen.patterns},
    )


def _item(layer: Layer, held: Held) -> Dense | Private:
    if held.of == "input":
        return Dense(layer.inputs[held.name])
    if held.of == "output":
        return Dense(layer.outputs[int(held.name)])
    return Private(held.name, held.elements, held.bits, held.batched)
