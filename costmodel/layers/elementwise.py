"""Calls whose backward needs a number or a shape only, of which stock PyTorch keeps a tensor.

scale   y = k x: stock keeps k as a tensor of 8 bytes
pad     reflected or replicated borders: stock keeps the input
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import wants_gradient
from .functions import first_order


def scale(input: Tensor, factor: float, divide: bool = False, inplace: bool = False) -> Tensor:
    """Return input x factor, or input / factor; keeps nothing."""
    if wants_gradient(input):
        return _Scale.apply(input, factor, divide, inplace)
    return _scaled(input, factor, divide, inplace)


def _scaled(x: Tensor, factor: float, divide: bool, inplace: bool) -> Tensor:
    if divide:
        return x.div_(factor) if inplace else x / factor
    return x.mul_(factor) if inplace else x * factor


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float, divide: bool, inplace: bool) -> Tensor:
        ctx.arguments = (factor, divide)
        if inplace:
            ctx.mark_dirty(x)
        return _scaled(x, factor, divide, inplace)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        return _scaled(grad, *ctx.arguments, inplace=False), None, None, None


def pad(input: Tensor, pad: list[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Return torch.nn.functional.pad of the same arguments; keeps nothing."""
    if mode == "constant" or not wants_gradient(input):
        return F.pad(input, pad, mode, value)
    return _Pad.apply(input, tuple(pad), mode)


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, pad: tuple[int, ...], mode: str) -> Tensor:
        ctx.shape, ctx.pad, ctx.mode = x.shape, pad, mode
        return F.pad(x, pad, mode)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        # The map is linear and does not depend on x: differentiate it at any x of that shape.
        with torch.enable_grad():
            x = grad.new_zeros(ctx.shape).requires_grad_()
            padded = F.pad(x, ctx.pad, ctx.mode)
        return torch.autograd.grad(padded, x, grad)[0], None, None
