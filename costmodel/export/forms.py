"""Other forms of calls, for a step that is recorded once and runs elsewhere.

Layers that work in chunks run in one piece, what a runtime has no kernel for is written with what it has, and random
numbers come from a counter, so that the same step draws the same numbers in every runtime. Results and gradients are
those of the calls that they stand for (a test compares them), but for the random numbers.

    one bit per element     y = f(x);  dx = dy s1 where the bit is set, else dy s0;  bits packed eight to a byte
    batch norm              y = x a + (b - m a), a = s r, r = 1 / sqrt(variance + eps)
                            dx = a (dy - db / n - (x - m) r ds / n), ds = sum(dy (x - m) r), db = sum(dy)
    pools, interpolation    linear along rows and along columns: y = R x C^T;  dx = R^T dy C
    max pool                keeps the pixel of each output as int32
    dropout                 y = x k / (1 - p), k = hash(element, step, call) < 1 - p
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from ..errors import ModelError
from ..layers.activations import wants_gradient
from ..layers.convolution import pointwise_input_gradient
from ..layers.dropout import dropout as kept_dropout
from ..layers.functions import first_order
from ..layers.masks import OneBit, masked_function
from ..layers.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from ..rules.reductions import pair

_aten = torch.ops.aten
_BITS = (128, 64, 32, 16, 8, 4, 2, 1)
_LOW = (1 << 31) - 1  # the numbers that are hashed have 31 bits, so that no product overflows 64


class Forms(TorchFunctionMode):
    """While active, calls run in these forms.

    step: how many steps were made, int64 of no dimensions: what random numbers depend on. random_only: only what draws
    random numbers; everything else runs as ever.
    """

    def __init__(self, step: Tensor, random_only: bool = False):
        super().__init__()
        self.step = step
        self.table: dict[Callable, Callable] = {
            **({} if random_only else _FORMS),
            F.dropout: self.dropout,
            kept_dropout: self.dropout,
            torch.Tensor.bernoulli_: self.bernoulli,
        }
        self.in_place = {} if random_only else _IN_PLACE
        self.drew = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Run one call."""
        form: Any = self.table.get(function, function)
        if function in self.in_place and args[0]._is_view():
            form = self.in_place[function]  # as in `_written`
        return form(*args, **(kwargs or {}))

    def bits(self, shape: torch.Size, share: float) -> Tensor:
        """Return random numbers, true with probability `share`: of this step and of this call."""
        self.drew = True
        call = _ordinal()
        element = torch.arange(math.prod(shape), dtype=torch.int64)
        mixed = _hashed(element * 2 + 1 + self.step * 7_919 + call)
        return (_hashed(mixed + self.step) < int(share * (_LOW + 1))).view(shape)

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Return dropout of the same arguments."""
        if not training or p == 0:
            return input
        if p == 1:
            return F.dropout(input, p, True, inplace)
        out = _Gated.apply(input, self.bits(input.shape, 1 - p), 1 / (1 - p))
        return _written(input, out) if inplace else out

    def bernoulli(self, input: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
        """Fill a tensor with ones and zeros."""
        if isinstance(p, Tensor):
            raise ModelError("the network draws random bits of probabilities in a tensor, which cannot be recorded")
        return input.copy_(self.bits(input.shape, p))


def gradients_of(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return a loss's gradients, zeros where it does not depend on a leaf; backward runs under the present modes.

    Going back from a tensor, PyTorch takes the modes off, and a segment that runs again there would run without its
    forms. It does not going back from the edge of the graph that the tensor stands for.
    """
    edges = [get_gradient_edge(leaf) for leaf in leaves]
    found = torch.autograd.grad(get_gradient_edge(loss), edges, allow_unused=True)
    return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]


def _hashed(numbers: Tensor) -> Tensor:
    """Return numbers of 31 bits that look random. Source of the shape: xorshift-multiply, as in MurmurHash3's fmix."""
    for factor in (0x45D9F3B, 0x2C1B3C6D, 0x297A2D39):
        numbers = (numbers & _LOW) * factor & _LOW
        numbers = numbers ^ torch.bitwise_right_shift(numbers, 15)
    return numbers


def _ordinal() -> int:
    """Return a number for this call, from PyTorch's generator: a call that runs again gets its number again."""
    with _disable_current_modes():
        return int(torch.randint(1 << 30, (), dtype=torch.int64))


class _Gated(torch.autograd.Function):
    """y = x f where a bit is set, else 0."""

    @staticmethod
    def forward(ctx, x: Tensor, bits: Tensor, factor: float) -> Tensor:
        ctx.factor, ctx.shape = factor, x.shape
        ctx.save_for_backward(pack(bits) if x.requires_grad else None)
        return torch.where(bits, x * factor, 0.0)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        bits = unpack(ctx.saved_tensors[0], ctx.shape)
        return torch.where(bits, grad * ctx.factor, 0.0), None, None


def pack(bits: Tensor) -> Tensor:
    """Return bits (bool) eight to a byte, the first in the highest place."""
    flat = bits.reshape(-1)
    if missing := -flat.numel() % 8:
        flat = torch.cat([flat, torch.zeros(missing, dtype=torch.bool)])
    return (flat.view(-1, 8) * torch.tensor(_BITS, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Return the bits (bool) that `pack` was given."""
    bits = torch.bitwise_and(packed.view(-1, 1), torch.tensor(_BITS, dtype=torch.uint8)).ne(0).view(-1)
    return bits[: math.prod(shape)].view(shape) if bits.numel() != math.prod(shape) else bits.view(shape)


class _OneBit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, function: OneBit) -> Tensor:
        ctx.save_for_backward(pack(function.passes.bits(x)))
        ctx.slopes = function.slopes
        out = torch.full_like(x, 0.0)
        function.forward(x, out)
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        bits = unpack(ctx.saved_tensors[0], grad.shape)
        inside, outside = (grad if slope == 1 else grad * slope if slope else 0.0 for slope in ctx.slopes)
        return torch.where(bits, inside, outside), None


_IN_PLACE: dict[Callable, Callable] = {
    getattr(torch.Tensor, name): getattr(torch, operation)
    for operation, names in {
        "add": ("add_", "__iadd__"), "sub": ("sub_", "__isub__"), "mul": ("mul_", "__imul__"),
        "div": ("div_", "__itruediv__"),
    }.items()
    for name in names
}  # fmt: skip


def _written(x: Tensor, out: Tensor) -> Tensor:
    """Return what a call in place returns, written into its input.

    Into a view, such as flattened features, autograd writes through strides, which the runtime has no kernel for: there
    the result itself is returned. What reads the whole tensor later misses it, which the comparison with PyTorch finds.
    """
    return out if x._is_view() else x.copy_(out)


def one_bit(x: Tensor, function: OneBit, inplace: bool = False) -> Tensor:
    """Return `masked_function` of the same arguments."""
    out = _OneBit.apply(x, function)
    return _written(x, out) if inplace else out


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        n = x.numel() // x.shape[1]
        over = (0, *range(2, x.dim()))
        mean = x.mean(over)
        centred = x - _channels(mean, x)
        variance = (centred * centred).sum(over) / n
        r = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, mean, r, weight)
        ctx.mark_non_differentiable(mean, variance)
        a = r if weight is None else r * weight
        shift = -mean * a if bias is None else bias - mean * a
        return x * _channels(a, x) + _channels(shift, x), mean, variance

    @staticmethod
    @first_order
    def backward(ctx, dy, _mean, _variance):
        x, mean, r, weight = ctx.saved_tensors
        over = (0, *range(2, x.dim()))
        n = x.numel() // x.shape[1]
        db = dy.sum(over)
        ds = (dy * (x - _channels(mean, x))).sum(over) * r
        a = r if weight is None else r * weight
        dx = None
        if ctx.needs_input_grad[0]:  # x - m first: where a mean is large beside the deviation, sums would cancel
            centred = (x - _channels(mean, x)) * _channels(a * r * ds / n, x)
            dx = dy * _channels(a, x) - centred - _channels(a * db / n, x)
        return dx, ds if ctx.needs_input_grad[1] else None, db if ctx.needs_input_grad[2] else None, None


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 2))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return torch.nn.functional.batch_norm of the same arguments."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if wants_gradient(input, weight, bias):
        out, mean, variance = _BatchNorm.apply(input, weight, bias, eps)
    else:
        out, mean, variance = _BatchNorm.forward(_Discard(), input, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        n = input.numel() // input.shape[1]
        with torch.no_grad():
            running_mean.copy_(running_mean * (1 - momentum) + mean * momentum)
            running_var.copy_(running_var * (1 - momentum) + variance * (momentum * n / max(n - 1, 1)))
    return out


class _Discard:
    """A context for a forward pass that nothing follows."""

    def save_for_backward(self, *_tensors: Tensor | None) -> None:
        """Keep nothing."""

    mark_non_differentiable = save_for_backward


class _Separable(torch.autograd.Function):
    """y = R x C^T of the last two dimensions; R and C are constants."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.matrices = rows, columns
        return _both_sides(x, rows, columns)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        rows, columns = ctx.matrices
        return _both_sides(grad, rows.T, columns.T), None, None


def _both_sides(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return R x C^T. The columns' matrix is the product's second operand, so that no copy of x is made for it."""
    n, c, h, w = x.shape
    along = torch.mm(x.reshape(n * c * h, w), columns.T.contiguous()).view(n * c, h, columns.shape[0])
    return torch.bmm(rows.expand(n * c, *rows.shape), along).view(n, c, rows.shape[0], columns.shape[0])


def _matrix(size: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the matrix of a map along one dimension: `function` maps 1 x size x size x 1, all columns at once.

    `contiguous` would leave the strides of a single row or column in the wrong order, which the runtime refuses.
    """
    with _disable_current_modes(), torch.no_grad():
        columns = function(torch.eye(size).view(1, size, size, 1)).squeeze(3).squeeze(0)
        return columns.T.clone(memory_format=torch.contiguous_format)


def averaged(
    input: Tensor, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
) -> Tensor:
    """Return avg_pool2d of the same arguments."""
    if not wants_gradient(input):
        return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if divisor_override is not None:
        raise ModelError("avg_pool2d with divisor_override cannot be recorded below a trained layer")
    sizes = zip(*(pair(value) for value in (kernel_size, stride or kernel_size, padding)), strict=True)
    matrices = [
        _matrix(size, lambda x, k=k, s=s, p=p: F.avg_pool2d(x, (k, 1), (s, 1), (p, 0), ceil_mode, count_include_pad))
        for size, (k, s, p) in zip(input.shape[2:], sizes, strict=True)
    ]
    return _Separable.apply(input, *matrices)


def averaged_to(input: Tensor, output_size) -> Tensor:
    """Return adaptive_avg_pool2d of the same arguments."""
    wanted = [given if size is None else size for size, given in zip(pair(output_size), input.shape[2:], strict=True)]
    if wanted == [1, 1]:
        return input.mean((2, 3), keepdim=True)
    matrices = [
        _matrix(size, lambda x, out=out: F.adaptive_avg_pool2d(x, (out, 1)))
        for size, out in zip(input.shape[2:], wanted, strict=True)
    ]
    return _Separable.apply(input, *matrices)


def interpolated(input, size=None, scale_factor=None, mode="nearest", align_corners=None, **other) -> Tensor:
    """Return torch.nn.functional.interpolate of the same arguments."""
    arguments = {"mode": mode, "align_corners": align_corners, **other}
    stock = F.interpolate
    if not wants_gradient(input) or input.dim() != 4:
        return stock(input, size, scale_factor, **arguments)
    sizes = (None, None) if size is None else pair(size)
    factors = (None, None) if scale_factor is None else pair(scale_factor)
    matrices = [
        _matrix(
            given,
            lambda x, out=out, by=by: stock(
                x, None if out is None else (out, 1), None if by is None else (by, 1.0), **arguments
            ),
        )
        for given, out, by in zip(input.shape[2:], sizes, factors, strict=True)
    ]
    return _Separable.apply(input, *matrices)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, arguments: tuple) -> Tensor:
        y, pixels = _aten.max_pool2d_with_indices(x, *arguments)
        ctx.arguments, ctx.shape = arguments, x.shape
        ctx.save_for_backward(pixels.to(torch.int32))
        return y

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        pixels = ctx.saved_tensors[0].to(torch.int64)
        x = torch.full(ctx.shape, 0.0)  # of which only the shape counts
        return _aten.max_pool2d_with_indices_backward(grad, x, *ctx.arguments, pixels), None


def max_pooled(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False, keep="indices"
) -> Tensor:
    """Return max_pool2d of the same arguments."""
    if return_indices or not wants_gradient(input):
        found: Any = F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return found  # or a pair of tensors, where the caller asks for the indices
    sizes = [list(pair(size)) for size in (kernel_size, stride or kernel_size, padding, dilation)]
    return _MaxPool.apply(input, (*sizes, ceil_mode))


def _transposed_pointwise(grad: Tensor, weight: Tensor) -> Tensor:
    """Return dx of a pointwise convolution without a copy of the weight for each image."""
    filters = weight.view(*weight.shape, *(1,) * (grad.dim() - 2))
    none, one = [0] * (grad.dim() - 2), [1] * (grad.dim() - 2)
    return _aten.convolution(grad, filters, None, one, none, one, True, none, 1)


_FORMS: dict[Callable, Callable] = {
    masked_function: one_bit,
    F.batch_norm: batch_norm,
    avg_pool2d: averaged,
    F.avg_pool2d: averaged,
    adaptive_avg_pool2d: averaged_to,
    F.adaptive_avg_pool2d: averaged_to,
    F.interpolate: interpolated,
    max_pool2d: max_pooled,
    pointwise_input_gradient: _transposed_pointwise,
}
