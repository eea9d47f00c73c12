"""Dropout that keeps one bit per element: y = x m / (1 - p), where each m is 1 with probability 1 - p, else 0."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import wants_gradient
from .elementwise import scale
from .functions import first_order
from .masks import run_backward
from .packing import flat, pack


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Return what torch.nn.functional.dropout returns after the same seed; keeps ceil(elements / 8) bytes."""
    if training and p == 1:
        return scale(input, 0.0, inplace=inplace)
    if not training or not 0 < p < 1 or not wants_gradient(input):
        return F.dropout(input, p, training, inplace)
    return _Dropout.apply(input, p, inplace)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float, inplace: bool) -> Tensor:
        if x.is_cuda:
            out, kept = torch.ops.aten.native_dropout(x, p, True)
        else:
            kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p)
            out = kept.to(x.dtype).div_(1 - p).mul_(x)
        if inplace:
            ctx.mark_dirty(x)
            out = x.copy_(out)
        ctx.p, ctx.strides = p, kept.stride()
        ctx.save_for_backward(pack(flat(kept)))
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        (packed,) = ctx.saved_tensors
        return run_backward(_scale(ctx.p), grad, packed, ctx.strides), None, None


def _scale(p: float) -> Callable[[Tensor, Tensor, Tensor], None]:
    def backward(grad: Tensor, bit: Tensor, out: Tensor) -> None:
        torch.mul(grad, bit.div_(1 - p), out=out)

    return backward
