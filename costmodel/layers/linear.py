"""Matrix products that keep no copies.

linear   y[n,o] = sum_i x[n,i] W[o,i] + b[o]: a frozen weight may be stored in fewer bits. It is cast to the input's
         precision for as long as it computes, in forward and again in backward; of the weight the parameter itself
         is kept, which is there in any case, and the input, however it lies in memory, only if the weight trains
matmul   y = a b: da = dy b', db = a' dy, each summed over what it was spread; a and b are kept as they are
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import wants_gradient
from .functions import first_order, in_autocast


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, copies_input: bool = False) -> Tensor:
    """Return torch.nn.functional.linear of the same arguments, computed in the input's precision.

    copies_input: whether stock PyTorch would copy the input for its order in memory, and keep the copy.
    """
    input = in_autocast(input)
    if weight.dtype == input.dtype and not copies_input:
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


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Return torch.matmul(input, other) of batches of matrices; keeps them as they are, not PyTorch's copies."""
    return _Matmul.apply(input, other) if wants_gradient(input, other) else torch.matmul(input, other)


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.shapes = a.shape, b.shape
        ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None)
        return torch.matmul(a, b)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        (a, b), (a_shape, b_shape) = ctx.saved_tensors, ctx.shapes
        return (
            torch.matmul(grad, b.mT).sum_to_size(a_shape) if b is not None else None,
            torch.matmul(a.mT, grad).sum_to_size(b_shape) if a is not None else None,
        )
