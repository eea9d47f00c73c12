"""Element-wise functions of one tensor: y = f(x), dx = f'(x) dy.

What f' needs decides what is kept. Where f' takes two values, one bit per element says which (`mask`); an input or
output that is kept anyway serves as well.

    relu, leaky_relu            f' in {0 or slope, 1}: mask, or the sign of y, or x
    relu6, hardtanh             f' in {0, 1}: mask, or y strictly between its bounds, or x
    hardsigmoid                 f' in {0, 1/6}: mask, or x (y near its bounds is rounded to them)
    sigmoid, tanh               f' is a function of y, or of x
    exp, sqrt, rsqrt, softmax, log_softmax   f' is a function of y
    hardswish, silu, gelu, mish, glu f' is a function of x, and y does not determine x: x
    elu, celu, selu, softplus, log, abs, clamp   f' is a function of x; PyTorch has no layer that takes less
    prelu                       y = x or w x: dx needs x (its sign) and w, dw needs x

Assumption (element-wise FLOPs): one per arithmetic operation, comparison or transcendental function, per element.
"""

from __future__ import annotations

from collections.abc import Callable

from ..graph.values import Layer
from .facts import NOTHING, Facts, Private, dense

MASK = "mask"


def _facts(layer: Layer, alternatives, forward: int, backward: int) -> Facts:
    count = layer.output.elements
    return Facts(
        {"input": alternatives},
        forward_elementwise=forward * count,
        backward_elementwise={"input": backward * count},
    )


def two_slopes(forward: int, output_serves: bool = True) -> Callable[[Layer], Facts]:
    """Return the rule of a function whose derivative takes two values, which its input (or output) tells apart."""

    def rule(layer: Layer) -> Facts:
        mask = (Private(MASK, layer.input.elements, 1, layer.input.batched),)
        output = (dense(layer.output),) if output_serves else ()
        return _facts(layer, (mask, *output, dense(layer.input)), forward, 1)

    return rule


def of_output(forward: int, backward: int, input_serves: bool = True) -> Callable[[Layer], Facts]:
    """Return the rule of a function whose derivative is computed from its output (or its input)."""

    def rule(layer: Layer) -> Facts:
        alternatives = (dense(layer.output), dense(layer.input)) if input_serves else (dense(layer.output),)
        return _facts(layer, alternatives, forward, backward)

    return rule


def of_input(forward: int, backward: int) -> Callable[[Layer], Facts]:
    """Return the rule of a function whose derivative needs its input."""
    return lambda layer: _facts(layer, (dense(layer.input),), forward, backward)


def prelu(layer: Layer) -> Facts:
    """Return the facts of prelu, whose slope trains."""
    x, weight = layer.inputs["input"], layer.inputs["weight"]
    count = layer.output.elements
    return Facts(
        {"input": (dense(x, weight),), "weight": (dense(x),)},
        forward_elementwise=2 * count,
        backward_elementwise={"input": 2 * count, "weight": 2 * count},
    )


def dropout(layer: Layer) -> Facts:
    """Return the facts of y = x mask / (1 - p): one bit per element, and nothing where p is 1: all is zero."""
    if layer.attributes.get("p") == 1:
        return _facts(layer, NOTHING, 1, 1)
    return _facts(layer, ((Private(MASK, layer.input.elements, 1, layer.input.batched),),), 2, 1)
