"""Calls that move or rename elements: no arithmetic, and backward needs nothing.

A view's gradient is a view of the result's gradient; of a copy (cat, pad, a selection by slices) backward fills a new
tensor, except cat, whose gradients are slices of the result's.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.values import Layer
from .facts import NOTHING, Facts, activations, dense


def _moved(layer: Layer) -> list[str]:
    """Return the roles of the arguments whose elements are moved; of `other` (view_as) only the shape is read."""
    return [role for role in activations(layer) if role != "other"]


def same_elements(layer: Layer) -> Facts:
    """Return the facts of a call whose result has the input's elements, each once (reshape, permute, cat)."""
    return replace(copied(layer), views_gradient=True)


def copied(layer: Layer) -> Facts:
    """Return the facts of a copy; the gradient of its input is the result's."""
    roles = _moved(layer)
    return Facts(dict.fromkeys(roles, NOTHING), passes_gradient=frozenset(roles))


def some_elements(layer: Layer) -> Facts:
    """Return the facts of a call that drops, repeats or adds elements (slices, chunk, pad, expand)."""
    return Facts(dict.fromkeys(_moved(layer), NOTHING))


def selected(layer: Layer) -> Facts:
    """Return the facts of x[...]: where tensors say which elements, backward needs those tensors."""
    indices = [tensor for role, tensor in layer.inputs.items() if role != "input"]
    return Facts({"input": (dense(*indices),)})
