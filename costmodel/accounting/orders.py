"""In which order of memory gradients come, on a CPU: a kernel copies what lies in another order than it wants.

The engine hands on what a backward returns. A view's gradient is a view of it; what is computed element by element lies
as the gradient that came; most kernels give what is laid out as their input, and some what lies as its dimensions
stand. Source: the kernels in aten/src/ATen/native of PyTorch 2.15, FunctionsManual.cpp in torch/csrc/autograd; measured
(tests/costmodel/accounting/test_orders.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graph.layer_graph import LayerGraph
from ..graph.memory_order import (
    Sizes,
    channels_last,
    dense_as,
    inverse,
    lies_as,
    permuted,
    strides_of,
    suggested,
    suggests_channels_last,
    viewed,
)
from ..graph.values import Layer, Tensor
from ..rules.linear import small_factor
from .convolutions import uses_channels_last
from .gradients import Wanted

_CONVOLUTIONS = (
    "conv1d", "conv2d", "conv3d", "standardized_conv2d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
)  # fmt: skip

Order = Callable[[Layer, Tensor, Sizes], Sizes]  # layer, argument, the result's gradient's strides -> the argument's


def _convolution(layer: Layer, x: Tensor, given: Sizes) -> Sizes:
    return channels_last(x.shape) if uses_channels_last(layer) else ()


def _plain(layer: Layer, x: Tensor, given: Sizes) -> Sizes:
    return ()


def _as_input(layer: Layer, x: Tensor, given: Sizes) -> Sizes:
    return suggested(x.shape, x.strides)


def _as_given(layer: Layer, x: Tensor, given: Sizes) -> Sizes:
    return dense_as(x.shape, given) if x.shape == layer.output.shape else ()


def _given(layer: Layer, x: Tensor, given: Sizes) -> Sizes:
    return given if x.shape == layer.output.shape else ()


def _part(layer: Layer, x: Tensor, given: Sizes) -> Sizes:
    """A part of the result's gradient, with its strides."""
    return given or strides_of(layer.output.shape)


def _multiplied(layer: Layer, x: Tensor, given: Sizes) -> Sizes:
    """Of a batch of matrices that one matrix multiplies from the left: both were transposed for it."""
    left, right = layer.inputs.values()
    if x is right and small_factor(left.shape, right.shape) == "input":
        order = (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2)
        return strides_of(x.shape, order)
    return ()


def _reshaped(layer: Layer, x: Tensor, given: Sizes) -> Sizes:
    return viewed(layer.output.shape, given, x.shape) or ()


def _numbers(layer: Layer) -> list[int]:
    """Return the numbers among a call's arguments, in order."""
    found: list[Any] = []
    for value in layer.attributes.values():
        if type(value) is int:
            found.append(value)
        elif isinstance(value, tuple | list):
            found.extend(value)
    return found


def _permuted(layer: Layer, x: Tensor, given: Sizes) -> Sizes:
    if not given:
        given = strides_of(layer.output.shape)
    count = len(x.shape)
    order: list[int] = list(range(count))
    if layer.op == "permute":
        order = [number % count for number in _numbers(layer)]
    elif layer.op == "movedim":
        if len(_numbers(layer)) != 2:  # several dimensions at once
            return ()
        order.insert(_numbers(layer)[1] % count, order.pop(_numbers(layer)[0] % count))
    else:
        first, second = (-2, -1) if layer.op in ("T", "mT") else _numbers(layer)[:2]
        order[first], order[second] = order[second], order[first]
    return permuted(given, inverse(order))


ORDERS: dict[str, Order] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(("layer_norm", "linear", "softmax", "bmm", "scaled_dot_product_attention"), _plain),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "T", "mT", "movedim"), _permuted),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"), _reshaped),
    **dict.fromkeys(
        ("batch_norm", "group_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate"), _as_input
    ),
    "matmul": _multiplied,
    "cat": _part,
    **dict.fromkeys(("add", "contiguous", "clone"), _given),
    **dict.fromkeys(("mean", "sum", "expand", "getitem", "narrow", "select", "chunk", "split", "unbind"), _plain),
}


def gradient_orders(graph: LayerGraph, wanted: Wanted) -> dict[int, Sizes]:
    """Return the strides of the gradient of each tensor that has one, by the tensor's id.

    wanted: by layer index, the arguments whose gradient is computed.
    """
    found: dict[int, Sizes] = {}
    for index in reversed(wanted):
        layer = graph.layers[index]
        given = found.get(layer.output.id, ())
        for role in wanted[index]:
            tensor = layer.inputs[role]
            if tensor.kind != "activation":
                continue
            found.setdefault(tensor.id, ORDERS.get(layer.op, _as_given)(layer, tensor, given))
    return found


_POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
_INDEX_BYTES = 8

# What kernels want in one order: their input, and the gradient that comes.
_WANTED: dict[str, Callable[[Layer, Tensor], Sizes]] = {
    **dict.fromkeys(
        _CONVOLUTIONS,
        lambda layer, tensor: channels_last(tensor.shape) if uses_channels_last(layer) else (),
    ),
    "layer_norm": lambda layer, tensor: (),
    **dict.fromkeys((*_POOLS, "group_norm"), lambda layer, tensor: suggested(layer.input.shape, layer.input.strides)),
}


def order_copies(
    layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int, gradient: Sizes
) -> tuple[int, int]:
    """Return the bytes of the copies that a call makes of its input and of the gradient that comes, for their order.

    In forward and in backward.
    """
    if layer.op not in _WANTED:
        return 0, 0
    x, y = layer.input, layer.output

    def copied(tensor: Tensor, strides: Sizes) -> int:
        as_wanted = lies_as(tensor.shape, strides, _WANTED[layer.op](layer, tensor))
        return 0 if as_wanted else tensor.bytes(batch, float_bytes)

    # Of a learned call the copy of its input was seen.
    forward = copied(x, x.strides) if layer.learned is None else 0
    if not wanted:
        return forward, 0
    if layer.op in _POOLS:
        return forward, _pooled(layer, batch, float_bytes, gradient)
    return forward, forward + copied(y, gradient)


def _pooled(layer: Layer, batch: int, float_bytes: int, gradient: Sizes) -> int:
    """Return the bytes of a pool's backward where the gradient comes in another order of memory than the input has.

    It works in the gradient's order: the indices of the largest are copied into it, and its result out of it.
    """
    x, y = layer.input, layer.output
    if suggests_channels_last(x.shape, x.strides) == suggests_channels_last(y.shape, gradient):
        return 0
    indices = batch * _INDEX_BYTES * y.elements if layer.op == "max_pool2d" else 0
    return indices + x.bytes(batch, float_bytes)
