"""Arithmetic between tensors, and with numbers.

    y = a + b    needs nothing;            y = a b    da needs b, db needs a
    y = a / b    da needs b, db needs a and b;   y = c + k a b  (addcmul) da needs b, db needs a
    A gradient of a broadcast argument is summed over the pixels or images that it was spread over.

Assumption (element-wise FLOPs): one per operation and element of the result.
"""

from __future__ import annotations

from ..graph.values import Layer
from .facts import NOTHING, Facts, activations, dense


def _facts(layer: Layer, needs: dict, operations: int = 1, passes: frozenset[str] = frozenset()) -> Facts:
    count = operations * layer.output.elements
    return Facts(
        needs,
        forward_elementwise=count,
        backward_elementwise={role: 0 if role in passes else count for role in needs},
        passes_gradient=passes,
    )


def add(layer: Layer) -> Facts:
    """Return the facts of a sum or difference."""
    roles = activations(layer)
    same_size = frozenset(role for role in roles if layer.inputs[role].shape == layer.output.shape)
    if layer.op == "sub":
        same_size -= {"other"}  # its gradient changes sign
    return _facts(layer, dict.fromkeys(roles, NOTHING), passes=same_size)


def mul(layer: Layer) -> Facts:
    """Return the facts of a product, by a tensor (a squeeze-excite gate, a layer scale) or a number."""
    roles = list(layer.inputs)
    if len(roles) == 1:
        return _facts(layer, {roles[0]: NOTHING})
    left, right = roles
    needs = {left: (dense(layer.inputs[right]),), right: (dense(layer.inputs[left]),)}
    return _facts(layer, {role: needs[role] for role in activations(layer)})


def div(layer: Layer) -> Facts:
    """Return the facts of a quotient."""
    roles = list(layer.inputs)
    if len(roles) == 1:
        return _facts(layer, {roles[0]: NOTHING})
    (left, a), (right, b) = layer.inputs.items()
    needs = {left: (dense(b),), right: (dense(a, b),)}
    return _facts(layer, {role: needs[role] for role in activations(layer)}, 2)


def addcmul(layer: Layer) -> Facts:
    """Return the facts of c + a b."""
    a, b = layer.inputs["tensor1"], layer.inputs["tensor2"]
    needs = {"input": NOTHING, "tensor1": (dense(b),), "tensor2": (dense(a),)}
    same_size = frozenset({"input"} if layer.inputs["input"].shape == layer.output.shape else ())
    return _facts(layer, {role: needs[role] for role in activations(layer)}, 2, same_size)


def power(layer: Layer) -> Facts:
    """Return the facts of y = x ** k: dx = k x ** (k - 1) dy, and of a tensor k also dk = y log x dy.

    With a tensor PyTorch keeps y for either gradient, and this package has no layer that keeps less.
    """
    roles = list(layer.inputs)
    if len(roles) == 1:
        return _facts(layer, {roles[0]: (dense(layer.input),)})
    (base, x), (exponent, k) = layer.inputs.items()
    needs = dict.fromkeys((base, exponent), (dense(x, k, layer.output),))
    return _facts(layer, {role: needs[role] for role in activations(layer)}, 2)
