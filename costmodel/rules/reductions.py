"""Pooling, means, norms over pixels, and resampling.

    average pool, mean, sum, nearest or bilinear resampling   linear: needs nothing; of a sum each pixel's gradient is
               the result's, which is spread over them without being copied
    max pool   which pixel of its window each output is: ceil(log2(kernel pixels)) bits, rounded up to 1, 2, 4, 8 or
               16 so that they pack into bytes; the input, if it is kept anyway, serves as well
    var        x and nothing else (the mean is computed again);   norm (L2)  x and y

Assumption (element-wise FLOPs): one per element of the larger of input and output; 3 for a variance.
"""

from __future__ import annotations

from ..graph.values import Layer
from .facts import NOTHING, Facts, Private, dense


def _facts(layer: Layer, alternatives, operations: int = 1) -> Facts:
    count = operations * max(layer.input.elements, layer.output.elements)
    return Facts({"input": alternatives}, forward_elementwise=count, backward_elementwise={"input": count})


def linear_map(layer: Layer) -> Facts:
    """Return the facts of a fixed linear map of its input."""
    return _facts(layer, NOTHING)


def total(layer: Layer) -> Facts:
    """Return the facts of a sum over some dimensions."""
    return Facts(
        {"input": NOTHING},
        forward_elementwise=layer.input.elements,
        passes_gradient=frozenset({"input"}),
        views_gradient=True,
    )


def pair(value: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    """Return (height, width) of an argument that may be one number for both."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def index_bits(kernel_size: int | tuple[int, int]) -> int:
    """Return the bits that tell a window's pixels apart, a power of two."""
    height, width = pair(kernel_size)
    needed = max(1, (height * width - 1).bit_length())
    return 1 << (needed - 1).bit_length()


def max_pool(layer: Layer) -> Facts:
    """Return the facts of max_pool2d."""
    indices = Private("indices", layer.output.elements, index_bits(layer.attributes["kernel_size"]))
    return _facts(layer, ((indices,), dense(layer.input)))


def variance(layer: Layer) -> Facts:
    """Return the facts of a variance over some dimensions."""
    return _facts(layer, (dense(layer.input),), 3)


def euclidean_norm(layer: Layer) -> Facts:
    """Return the facts of y = sqrt(sum x^2): dx = x dy / y."""
    return _facts(layer, (dense(layer.input, layer.output),), 2)
