"""A linear map whose frozen weight may be stored in fewer bits: y[n,o] = sum_i x[n,i] W[o,i] + b[o].

The weight is cast to the input's precision for as long as it computes, in forward and again in backward; of the weight
the parameter itself is kept, which is there in any case, and the input only if the weight trains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import wants_gradient
from .functions import first_order


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return torch.nn.functional.linear of the same arguments, computed in the input's precision."""
    if weight.dtype == input.dtype:
        return F.linear(input, weight, bias)
    if not wants_gradient(input, weight, bias):
        return F.linear(input, weight.to(input.dtype), bias)
    return _Linear.apply(input, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            grad @ weight.to(grad.dtype) if wants_x else None,
            (rows.T @ x.flatten(0, -2)).to(weight.dtype) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )
