"""Norms that keep less.

Batch norm with frozen statistics m, r = 1 / sqrt(variance + eps):  y[n,c,p] = (x[n,c,p] - m[c]) r[c] s[c] + b[c].

    dx = s r dy: parameters and buffers only;  ds = sum(dy (x - m) r): needs x;  db = sum(dy): nothing

dx is the same map without m and b, so PyTorch's own forward pass computes it: in one go, in any precision and memory
order (stock PyTorch's backward allocates dx twice over).

Any norm of which the shift alone trains, at the first trained layer: db = sum(dy) needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import wants_gradient
from .functions import first_order


def frozen_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return torch.nn.functional.batch_norm(..., training=False) to the last bit.

    Keeps the input if `weight` trains; else parameters and buffers only. input: N x C x any.
    """
    if not wants_gradient(input, weight, bias):
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    return _FrozenBatchNorm.apply(input, running_mean, running_var, weight, bias, eps)


class _FrozenBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, variance, weight, bias, eps):
        ctx.eps = eps
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, mean, variance, weight)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        x, mean, variance, weight = ctx.saved_tensors
        wants_x, _, _, wants_weight, wants_bias = ctx.needs_input_grad[:5]
        dx = dweight = dbias = None
        if wants_x:
            dx = F.batch_norm(grad, torch.zeros_like(mean), variance, weight, None, False, 0.0, ctx.eps)
        if wants_weight or wants_bias:
            # Where x was not kept, only db is asked for: any x of the right shape does.
            given, outputs = grad if x is None else x, [False, wants_weight, wants_bias]
            _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
                grad, given, weight, mean, variance, None, None, False, ctx.eps, outputs
            )
        return dx, None, None, dweight, dbias, None


def norm_of_trained_shift(norm: Callable[..., Tensor], arguments: dict) -> Tensor:
    """Return norm(**arguments), a norm of which the shift alone trains and whose input wants no gradient.

    norm: batch_norm, group_norm or layer_norm of torch.nn.functional, its arguments by name. Keeps nothing, where stock
    PyTorch keeps the input and statistics.
    """
    bias = arguments["bias"]
    if not wants_gradient(bias):
        return norm(**arguments)
    return _TrainedShift.apply(bias, norm, arguments)


class _TrainedShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx, bias: Tensor, norm: Callable[..., Tensor], arguments: dict) -> Tensor:
        out = norm(**arguments)
        trailing = "normalized_shape" in arguments  # layer norm; the others have channels second
        ctx.summed = tuple(range(out.dim() - bias.dim())) if trailing else (0, *range(2, out.dim()))
        ctx.dtype = bias.dtype
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        return grad.sum(ctx.summed).to(ctx.dtype), None, None
