"""Pooling that keeps no input: average pools keep sizes only, max pool which pixel of its window each output is.

A window's pixels are numbered row by row, from its upper left corner; ceil(log2(pixels)) bits, rounded up to 1, 2, 4, 8
or 16, tell them apart. PyTorch's own backward functions ask for the input, but look at its shape and memory order
only: the gradient that they are about to write stands in for it. Images are worked on a few at a time, so that
PyTorch's 8-byte indices never exist for the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..rules.reductions import index_bits, pair
from .activations import wants_gradient
from .functions import first_order, overridable
from .masks import chunk_size
from .packing import flat, pack, unpack

_aten = torch.ops.aten


@overridable
def max_pool2d(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False, keep="indices"
) -> Tensor:
    """Return torch.nn.functional.max_pool2d of the same arguments.

    keep: 'indices' (outputs x `index_bits(kernel_size)` bits, rounded up to a byte) or 'input', for an input that
    another layer keeps anyway. With `return_indices` PyTorch's own function runs.
    """
    if keep not in ("indices", "input"):
        raise InputError(f"max_pool2d cannot keep {keep!r}; it can keep: indices, input")
    if return_indices or not wants_gradient(input):
        found = F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return cast(Tensor, found)  # or a pair of tensors, where the caller asks for the indices
    if input.dim() == 3:
        return max_pool2d(input[None], kernel_size, stride, padding, dilation, ceil_mode, keep=keep)[0]
    window = _Window(pair(kernel_size), pair(stride or kernel_size), pair(padding), pair(dilation), ceil_mode)
    return _MaxPool.apply(input, window, keep)


@overridable
def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
) -> Tensor:
    """Return torch.nn.functional.avg_pool2d of the same arguments; keeps nothing."""
    if not wants_gradient(input):
        return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if input.dim() == 3:
        arguments = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return avg_pool2d(input[None], *arguments)[0]
    sizes = [list(pair(size)) for size in (kernel_size, stride or kernel_size, padding)]
    return _AveragePool.apply(input, (*sizes, ceil_mode, count_include_pad, divisor_override))


@overridable
def adaptive_avg_pool2d(input: Tensor, output_size) -> Tensor:
    """Return torch.nn.functional.adaptive_avg_pool2d of the same arguments; keeps nothing."""
    wanted = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    height, width = (given if size is None else size for size, given in zip(wanted, input.shape[-2:], strict=True))
    sizes = (height, width)
    if sizes == (1, 1) or not wants_gradient(input):  # to one pixel it is a mean, which keeps nothing
        return F.adaptive_avg_pool2d(input, sizes)
    if input.dim() == 3:
        return adaptive_avg_pool2d(input[None], sizes)[0]
    return _AdaptiveAveragePool.apply(input, sizes)


class _Shape:
    """Shape and memory order of a 4-dimensional tensor."""

    def __init__(self, tensor: Tensor):
        self.sizes = tensor.shape
        last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        self.memory_format = torch.channels_last if last else torch.contiguous_format

    def new(self, like: Tensor, sizes=None) -> Tensor:
        """Return an empty tensor of these sizes, by default its own, in this memory order."""
        sizes = self.sizes if sizes is None else sizes
        return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=self.memory_format)


def _groups(tensor: Tensor) -> Iterator[slice]:
    """Yield slices of the batch with about a chunk of elements each."""
    images = max(1, chunk_size(tensor) // max(1, tensor[:1].numel()))
    for first in range(0, tensor.shape[0], images):
        yield slice(first, first + images)


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, arguments: tuple) -> Tensor:
        ctx.shape, ctx.arguments = _Shape(x), arguments
        return _aten.avg_pool2d(x, *arguments)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        dx = ctx.shape.new(grad)
        return _aten.avg_pool2d_backward.grad_input(grad, dx, *ctx.arguments, grad_input=dx), None


class _AdaptiveAveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, sizes: tuple[int, int]) -> Tensor:
        ctx.shape = _Shape(x)
        return F.adaptive_avg_pool2d(x, sizes)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        dx = ctx.shape.new(grad)
        for group in _groups(dx):  # there is no form that writes into dx
            dx[group] = _aten._adaptive_avg_pool2d_backward(grad[group], dx[group])
        return dx, None


class _Window:
    """The windows of a max pool, each argument as (height, width)."""

    def __init__(self, kernel, stride, padding, dilation, ceil_mode: bool):
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.arguments = (list(kernel), list(stride), list(padding), list(dilation), ceil_mode)
        self.bits = index_bits(kernel)

    def output_size(self, sizes) -> list[int]:
        """Return output height and width. Source: pooling_output_shape in ATen/native/Pool.h."""
        result = []
        for size, k, s, p, d in zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True):
            room = size + 2 * p - d * (k - 1) - 1
            out = (room + (s - 1 if self.arguments[-1] else 0)) // s + 1
            result.append(out - 1 if self.arguments[-1] and (out - 1) * s >= size + p else out)
        return result

    def corners(self, output_size, width: int, device) -> Tensor:
        """Return row x width + column of each window's first pixel, which may lie in the padding."""
        rows, columns = (
            torch.arange(out, device=device) * s - p
            for out, s, p in zip(output_size, self.stride, self.padding, strict=True)
        )
        return rows[:, None] * width + columns

    def offsets(self, width: int, device) -> Tensor:
        """Return row x width + column of each pixel of a window, from its first pixel, in the order of the numbers."""
        rows, columns = (torch.arange(k, device=device) * d for k, d in zip(self.kernel, self.dilation, strict=True))
        return (rows[:, None] * width + columns).flatten()

    def number(self, pixels: Tensor, width: int, numbers: Tensor) -> None:
        """Write which pixel of its window each pixel (row x width + column) is; `pixels` is overwritten."""
        offsets = self.offsets(width, pixels.device)
        table = numbers.new_zeros(self.dilation[0] * (self.kernel[0] - 1) * width + self.dilation[1] * self.kernel[1])
        table[offsets] = torch.arange(offsets.numel(), dtype=numbers.dtype, device=numbers.device)
        pixels.sub_(self.corners(pixels.shape[2:], width, pixels.device))
        torch.take(table, flat(pixels), out=flat(numbers))

    def pixel(self, numbers: Tensor, width: int) -> Tensor:
        """Return the pixel (row x width + column, int64) of each number: the reverse of `number`."""
        pixels = torch.empty_like(numbers, dtype=torch.int64)
        offsets = self.offsets(width, numbers.device)
        torch.take(offsets, flat(numbers).to(torch.int64), out=flat(pixels))
        return pixels.add_(self.corners(numbers.shape[2:], width, numbers.device))


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, window: _Window, keep: str) -> Tensor:
        shape = _Shape(x)
        y = shape.new(x, (*x.shape[:2], *window.output_size(x.shape[2:])))
        numbers = torch.empty_like(y, dtype=torch.uint8 if window.bits <= 8 else torch.int16)
        for group in _groups(x):
            pixels = torch.empty_like(y[group], dtype=torch.int64)
            _aten.max_pool2d_with_indices.out(x[group], *window.arguments, out=y[group], indices=pixels)
            if keep == "indices":
                window.number(pixels, x.shape[3], numbers[group])
        ctx.shape, ctx.window = shape, window
        ctx.numbers_shape, ctx.numbers_strides = numbers.shape, numbers.stride()
        ctx.save_for_backward(*((None, x) if keep == "input" else (_pack(numbers, window.bits), None)))
        return y

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        packed, x = ctx.saved_tensors
        window, dx = ctx.window, ctx.shape.new(grad)
        numbers = None if packed is None else _unpack(packed, ctx.numbers_shape, ctx.numbers_strides, window.bits)
        for group in _groups(dx):
            if numbers is None:
                _, pixels = _aten.max_pool2d_with_indices(x[group], *window.arguments)
            else:
                pixels = window.pixel(numbers[group], dx.shape[3])
            _aten.max_pool2d_with_indices_backward.grad_input(
                grad[group], dx[group], *window.arguments, pixels, grad_input=dx[group]
            )
        return dx, None, None


def _pack(numbers: Tensor, bits: int) -> Tensor:
    return pack(flat(numbers).view(torch.uint8), min(bits, 8))


def _unpack(packed: Tensor, shape, strides, bits: int) -> Tensor:
    count = shape.numel()
    values = packed.view(torch.int16) if bits == 16 else unpack(packed, count, bits)
    return values.as_strided(shape, strides)
