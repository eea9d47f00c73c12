"""Convolutions and matrix products.

n image, o output channel, i input channel, p output pixel, k kernel pixel, g groups:

    conv2d   y[n,o,p] = sum_{i in group(o), k} x[n,i,p+k] W[o,i,k] + b[o]
    linear   y[n,o]   = sum_i x[n,i] W[o,i] + b[o]

    dx needs W, dW needs x, db needs nothing; dx and dW cost the forward pass each, whatever the groups.
    Source: torch/utils/flop_counter.py (conv_flop_count, and mm_flop for linear); its convolution-backward formula
    multiplies the weight gradient of a grouped convolution by the number of groups, which is not followed here.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..graph.values import Layer
from ..units import FLOPS_PER_MAC
from .facts import NOTHING, Alternative, Facts, dense


def _weighted(layer: Layer, macs: int) -> Facts:
    x, weight = layer.inputs["input"], layer.inputs["weight"]
    needs: dict[str, tuple[Alternative, ...]] = {"input": (dense(weight),), "weight": (dense(x),)}
    bias, bias_additions = {}, 0
    if "bias" in layer.inputs:
        needs["bias"] = NOTHING
        bias_additions = layer.output.elements
        bias = {"bias": bias_additions}
    flops = FLOPS_PER_MAC * macs
    return Facts(needs, flops, {"input": flops, "weight": flops}, bias_additions, bias)


def convolution(layer: Layer) -> Facts:
    """Return the facts of conv1d, conv2d and conv3d: macs = outputs x (i/g) x kernel.

    Also of one that standardises its weight: it is standardised again in backward, so that nothing more is kept; that
    arithmetic (about six operations per weight and pass, whatever the batch) is not counted.
    """
    return _weighted(layer, layer.output.elements * math.prod(layer.inputs["weight"].shape[1:]))


def linear(layer: Layer) -> Facts:
    """Return the facts of linear: macs = outputs x inputs. More than two dimensions are multiplied as a matrix."""
    known = _weighted(layer, layer.output.elements * layer.inputs["weight"].shape[-1])
    return replace(known, views_gradient=len(layer.input.shape) > 2)


def matmul(layer: Layer) -> Facts:
    """Return the facts of y = a b: da needs b, db needs a."""
    (left, a), (right, b) = layer.inputs.items()
    flops = FLOPS_PER_MAC * layer.output.elements * a.shape[-1]
    is_view = layer.op == "matmul" and len(layer.output.shape) > 2  # of a product of batches of matrices
    needs = {left: (dense(b),), right: (dense(a),)}
    return Facts(needs, flops, {left: flops, right: flops}, views_gradient=is_view)


def small_factor(left: tuple[int, ...], right: tuple[int, ...]) -> str:
    """Return which factor of a product of batches of matrices, by their shapes, is one matrix: 'input', 'other' or ''.

    PyTorch multiplies the other factor by it as one matrix, too, if the small one wants a gradient.
    """
    if len(left) == len(right) == 3 and left[0] != right[0]:
        return "input" if left[0] == 1 else "other"
    if len(left) > 2 and len(right) <= 2:
        return "other"
    return "input" if len(right) > 2 and len(left) <= 2 else ""
