"""Normalisations.

n image, c channel, p pixel; m mean, r reciprocal standard deviation, h the normalised input:

    h[n,c,p] = (x[n,c,p] - m) r,    y = s[c] h + b[c]

    dx (own statistics) = s r (dy - mean(dy) - h mean(dy h)): needs h, that is x, m and r, even when only b trains
    dx (frozen statistics) = s r dy: needs parameters and buffers only
    ds = sum(dy h): needs x (and m, r);  db = sum(dy): needs nothing
    m and r are per channel (batch norm), per image and group (group norm) or per row (layer norm), in the input's type.

Assumption (element-wise FLOPs): per element, mean 1, variance 3, normalising 2, scale 1, shift 1; backward: shift 1,
scale 2 (and 2 to normalise again), input 5 with own statistics, 1 with frozen ones.
"""

from __future__ import annotations

import math

from ..graph.values import Layer
from .facts import NOTHING, Facts, Private, dense

_FORWARD_OWN, _FORWARD_FROZEN = 8, 4
_BACKWARD_OWN = {"input": 5, "weight": 4, "bias": 1}
_BACKWARD_FROZEN = {"input": 1, "weight": 4, "bias": 1}


def _norm(layer: Layer, statistics: int, batched: bool) -> Facts:
    kept = (*dense(layer.inputs["input"]), Private("statistics", 2 * statistics, layer.input.bits, batched))
    return _facts(layer, (kept,), (kept,), _FORWARD_OWN, _BACKWARD_OWN)


def _facts(layer: Layer, for_input, for_weight, forward: int, backward: dict[str, int]) -> Facts:
    roles = {"input": for_input, "weight": for_weight, "bias": NOTHING}
    needs = {role: alternatives for role, alternatives in roles.items() if role in layer.inputs}
    count = layer.output.elements
    return Facts(
        needs,
        forward_elementwise=forward * count,
        backward_elementwise={role: backward[role] * count for role in needs},
    )


def batch_norm(layer: Layer) -> Facts:
    """Return the facts of batch norm with the statistics of its batch: one mean and deviation per channel."""
    return _norm(layer, layer.inputs["input"].shape[1], batched=False)


def frozen_batch_norm(layer: Layer) -> Facts:
    """Return the facts of batch norm with its running statistics: an affine map of each channel."""
    return _facts(layer, NOTHING, (dense(layer.inputs["input"]),), _FORWARD_FROZEN, _BACKWARD_FROZEN)


def group_norm(layer: Layer) -> Facts:
    """Return the facts of group norm: one mean and deviation per image and group."""
    return _norm(layer, layer.attributes["num_groups"], batched=True)


def layer_norm(layer: Layer) -> Facts:
    """Return the facts of layer norm: one mean and deviation per row."""
    return _norm(layer, layer.output.elements // math.prod(layer.attributes["normalized_shape"]), batched=True)
