"""Convolutions that keep their input only if their weight trains, and their weight only if their input's gradient is
wanted; of the weight always the parameter itself, which is there in any case.

    y[n,o,p] = sum_{i in group(o), k} x[n,i,p+k] W[o,i,k] + b[o];   dx needs W, dW needs x, db needs nothing

dx alone is computed as a transposed convolution, which asks for no x. `convolution_backward` asks for one even where
it only looks at its shape, and oneDNN makes a copy of whatever stands in for it (measured: a zero-stride stand-in of an
8 x 16 x 112 x 112 input costs its 6 MiB again, and in channels-last 80 MiB and 20 times the time; the transposed
convolution costs nothing, is as fast and gives the same bits). On a CPU dx of a pointwise convolution is a matrix
product: measured, 0.3 to 0.9 times the time, and none of the memory in which oneDNN puts dy into its own order (36 MiB
for 8 x 96 x 112 x 112). Stock PyTorch computes a bias gradient together with dW and so needs x for it; here it is a
sum.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .activations import wants_gradient

_CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """Return torch.nn.functional.conv1d of the same arguments."""
    return _convolution(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """Return torch.nn.functional.conv2d of the same arguments."""
    return _convolution(2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """Return torch.nn.functional.conv3d of the same arguments."""
    return _convolution(3, input, weight, bias, stride, padding, dilation, groups)


def standardized_conv2d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, eps: float = 1e-5
) -> Tensor:
    """Return conv2d with the standardised weight, which is computed again in backward.

    Source: Qiao et al.: Weight Standardization (arXiv 1903.10520); see `standardize` for the formula.
    """
    return _convolution(2, input, weight, bias, stride, padding, dilation, groups, eps)


def standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return (W - mean) / (deviation + eps), mean and deviation per output channel.

    The deviation is the unbiased one. Source: the networks of TinyTL, class MyConv2d in ofa/utils/my_modules.py of
    mit-han-lab/once-for-all; eps = 1e-5 in tinytl_fgvc_train.py of mit-han-lab/tinyml.
    """
    shape = (-1, *(1,) * (weight.dim() - 1))
    centred = weight - weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    return centred / (centred.flatten(1).std(1).view(shape) + eps)


def _convolution(dims: int, x, weight, bias, stride, padding, dilation, groups, eps: float | None = None) -> Tensor:
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    bias = None if bias is None else bias.to(x.dtype)
    if x.dim() == dims + 1:  # one image without a batch
        return _convolution(dims, x[None], weight, bias, stride, padding, dilation, groups, eps)[0]
    if not wants_gradient(x, weight, bias):
        return _CONVOLUTIONS[dims](x, _prepare(weight, x.dtype, eps), bias, stride, padding, dilation, groups)
    stride, dilation = _tuple(stride, dims), _tuple(dilation, dims)
    return _Convolution.apply(x, weight, bias, stride, padding, dilation, groups, eps)


def _tuple(value, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _prepare(weight: Tensor, dtype: torch.dtype, eps: float | None) -> Tensor:
    """Return the weight that is convolved with: standardised, in the input's precision."""
    return (weight if eps is None else standardize(weight, eps)).to(dtype)


def _paddings(padding, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding of both sides, and what 'same' adds at the far side of an even kernel."""
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        return tuple(t // 2 for t in total), tuple(t % 2 for t in total)
    return _tuple(padding, len(kernel)), (0,) * len(kernel)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, groups, eps):
        wants_x, wants_weight, _ = ctx.needs_input_grad[:3]
        ctx.arguments = (stride, *_paddings(padding, weight.shape[2:], dilation), dilation, groups, eps)
        ctx.x_shape, ctx.weight_shape, ctx.weight_dtype = x.shape, weight.shape, weight.dtype
        needs_weight = wants_x or (wants_weight and eps is not None)
        ctx.save_for_backward(x if wants_weight else None, weight if needs_weight else None)
        convolve = _CONVOLUTIONS[len(stride)]
        return convolve(x, _prepare(weight, x.dtype, eps), bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        device = grad.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return *_gradients(ctx, grad), *(None,) * 5


def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, weight and bias, where wanted."""
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    stride, padding, far, dilation, groups, eps = ctx.arguments
    x, weight = ctx.saved_tensors
    if not wants_weight:
        dx = None
        if wants_x:
            dx = _input_gradient(
                grad, _prepare(weight, grad.dtype, eps), ctx.x_shape, stride, padding, far, dilation, groups
            )
        return dx, None, grad.sum([0, *range(2, grad.dim())]) if wants_bias else None

    with torch.enable_grad():  # to go back through the standardisation
        weight = (
            _stand_in(grad, ctx.weight_shape) if weight is None else weight.detach().requires_grad_(eps is not None)
        )
        used = _prepare(weight, grad.dtype, eps)
    outputs = [wants_x, True, wants_bias]
    x = _pad_far(x, far)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad, x, used.detach(), [grad.shape[1]], stride, padding, dilation, False, [0] * len(stride), groups, outputs
    )
    if eps is not None:
        (dweight,) = torch.autograd.grad(used, weight, dweight)
    return _crop(dx, ctx.x_shape), dweight.to(ctx.weight_dtype), dbias


def _input_gradient(grad, weight, x_shape, stride, padding, far, dilation, groups) -> Tensor:
    sizes = [size + more for size, more in zip(x_shape[2:], far, strict=True)]
    none = [0] * len(stride)
    if grad.device.type == "cpu" and groups == 1 and set((*weight.shape[2:], *stride)) == {1} and not any(padding):
        return _pointwise_input_gradient(grad, weight.flatten(1))
    if grad.is_cuda and groups == x_shape[1] > 1:
        # Depthwise kernels of their own, which look at the shape of x only.
        x = _stand_in(grad, (*x_shape[:2], *sizes))
        outputs = [True, False, False]
        dx, _, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, none, groups, outputs
        )
    else:
        # What a stride skips at the far end: a transposed convolution cannot know it.
        rest = [
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(
                sizes, grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
            )
        ]
        dx = torch.ops.aten.convolution(grad, weight, None, stride, padding, dilation, True, rest, groups)
    return _crop(dx, x_shape)


def _pointwise_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Return dx[n,i,p] = sum_o W[o,i] dy[n,o,p] of a pointwise convolution, in the memory order of dy."""
    if grad.dim() == 4 and grad.is_contiguous(memory_format=torch.channels_last):
        return (grad.permute(0, 2, 3, 1) @ weight).permute(0, 3, 1, 2)
    pixels = torch.matmul(weight.t(), grad.flatten(2))
    return pixels.view(grad.shape[0], -1, *grad.shape[2:])


def _stand_in(grad: Tensor, shape) -> Tensor:
    """Return something of this shape that takes no memory, for a function that looks at the shape only."""
    return grad.new_empty(1).expand(shape)


def _pad_far(x: Tensor, far: tuple[int, ...]) -> Tensor:
    amounts = [amount for more in reversed(far) for amount in (0, more)]
    return torch.constant_pad_nd(x, amounts) if any(far) else x


def _crop(x: Tensor | None, shape) -> Tensor | None:
    return x if x is None or x.shape == shape else x[tuple(slice(size) for size in shape)]
