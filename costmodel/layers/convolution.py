"""Convolutions that keep their input only if their weight trains; of the weight always the parameter itself, which is
there in any case.

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

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from .activations import wants_gradient
from .functions import first_order, in_autocast, overridable

Size = int | Sequence[int]  # one number, or one for each dimension

_CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def conv1d(
    input, weight, bias=None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups=1, compute=None,
    made=None,
) -> Tensor:  # fmt: skip
    """Return torch.nn.functional.conv1d of the same arguments; see `conv2d` for the last two."""
    return _convolution(1, input, weight, bias, stride, padding, dilation, groups, compute, made)


def conv2d(
    input, weight, bias=None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups=1, compute=None,
    made=None,
) -> Tensor:  # fmt: skip
    """Return torch.nn.functional.conv2d of the same arguments.

    compute: makes the weight of the tensors in `weight`, then a tuple; it runs again in backward, and what it makes is
    not kept. made: what it makes of them now, if that is there already.
    """
    return _convolution(2, input, weight, bias, stride, padding, dilation, groups, compute, made)


def conv3d(
    input, weight, bias=None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups=1, compute=None,
    made=None,
) -> Tensor:  # fmt: skip
    """Return torch.nn.functional.conv3d of the same arguments; see `conv2d` for the last two."""
    return _convolution(3, input, weight, bias, stride, padding, dilation, groups, compute, made)


def standardized_conv2d(
    input, weight, bias=None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups=1, eps: float = 1e-5
) -> Tensor:
    """Return conv2d with the standardised weight, which is computed again in backward.

    Source: Qiao et al.: Weight Standardization (arXiv 1903.10520); see `standardize` for the formula.
    """
    return conv2d(input, (weight,), bias, stride, padding, dilation, groups, partial(standardize, eps=eps))


def standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return (W - mean) / (deviation + eps), mean and deviation per output channel.

    The deviation is the unbiased one. Source: the networks of TinyTL, class MyConv2d in ofa/utils/my_modules.py of
    mit-han-lab/once-for-all; eps = 1e-5 in tinytl_fgvc_train.py of mit-han-lab/tinyml.
    """
    shape = (-1, *(1,) * (weight.dim() - 1))
    centred = weight - weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    return centred / (centred.flatten(1).std(1).view(shape) + eps)


def _convolution(
    dims: int, x, weight, bias, stride, padding, dilation, groups, compute: Callable | None, made: Tensor | None = None
) -> Tensor:
    x = in_autocast(x)
    bias = None if bias is None else bias.to(x.dtype)
    if x.dim() == dims + 1:  # one image without a batch
        return _convolution(dims, x[None], weight, bias, stride, padding, dilation, groups, compute, made)[0]
    weights = (weight,) if compute is None else tuple(weight)
    if not wants_gradient(x, bias, *weights):
        used = _prepare(weights, x.dtype, compute) if made is None else made.to(x.dtype)
        return _CONVOLUTIONS[dims](x, used, bias, stride, padding, dilation, groups)
    stride, dilation = _tuple(stride, dims), _tuple(dilation, dims)
    return _Convolution.apply(x, bias, stride, padding, dilation, groups, compute, made, *weights)


def _tuple(value, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _prepare(weights: Sequence[Tensor], dtype: torch.dtype, compute: Callable | None) -> Tensor:
    """Return the weight that is convolved with, in the input's precision."""
    return (weights[0] if compute is None else compute(*weights)).to(dtype)


def _paddings(padding, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding of both sides, and what 'same' adds at the far side of an even kernel."""
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        return tuple(t // 2 for t in total), tuple(t % 2 for t in total)
    return _tuple(padding, len(kernel)), (0,) * len(kernel)


_WEIGHTS = 8  # the place of the first weight among the arguments


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, stride, padding, dilation, groups, compute, made, *weights):
        wants_weight = any(ctx.needs_input_grad[_WEIGHTS:])
        used = _prepare(weights, x.dtype, compute) if made is None else made.to(x.dtype)
        ctx.arguments = (stride, *_paddings(padding, used.shape[2:], dilation), dilation, groups, compute)
        ctx.x_shape, ctx.weight_dtype = x.shape, weights[0].dtype
        needs_weight = ctx.needs_input_grad[0] or wants_weight  # for its own gradient, PyTorch looks at its shape
        ctx.save_for_backward(x if wants_weight else None, *(weights if needs_weight else ()))
        return _CONVOLUTIONS[len(stride)](x, used, bias, stride, padding, dilation, groups)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        device = grad.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            dx, dbias, dweights = _gradients(ctx, grad)
            return dx, dbias, *(None,) * (_WEIGHTS - 2), *dweights


def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, tuple[Tensor | None, ...]]:
    """Return the gradients of input, bias and weights, where wanted."""
    wants_x, wants_bias, *_ = ctx.needs_input_grad
    wants = ctx.needs_input_grad[_WEIGHTS:]
    stride, padding, far, dilation, groups, compute = ctx.arguments
    x, *weights = ctx.saved_tensors
    if not any(wants):
        dx = None
        if wants_x:
            used = _prepare(weights, grad.dtype, compute)
            dx = _input_gradient(grad, used, ctx.x_shape, stride, padding, far, dilation, groups)
        return dx, grad.sum([0, *range(2, grad.dim())]) if wants_bias else None, (None,) * len(wants)

    if compute is None:
        used = weights[0].to(grad.dtype)
    else:
        with torch.enable_grad():  # to go back through what made it
            weights = [weight.detach().requires_grad_(want) for weight, want in zip(weights, wants, strict=True)]
            used = _prepare(weights, grad.dtype, compute)
    outputs = [wants_x, True, wants_bias]
    x = _pad_far(x, far)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad, x, used.detach(), [grad.shape[1]], stride, padding, dilation, False, [0] * len(stride), groups, outputs
    )
    dweights = [dweight.to(ctx.weight_dtype)]
    if compute is not None:
        found = iter(torch.autograd.grad(used, [w for w in weights if w.requires_grad], dweight))
        dweights = [next(found) if want else None for want in wants]
    return None if dx is None else _crop(dx, ctx.x_shape), dbias, tuple(dweights)


def _input_gradient(grad, weight, x_shape, stride, padding, far, dilation, groups) -> Tensor:
    sizes = [size + more for size, more in zip(x_shape[2:], far, strict=True)]
    none = [0] * len(stride)
    if grad.device.type == "cpu" and groups == 1 and set((*weight.shape[2:], *stride)) == {1} and not any(padding):
        return pointwise_input_gradient(grad, weight.flatten(1))
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


@overridable
def pointwise_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
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


def _crop(x: Tensor, shape) -> Tensor:
    return x if x.shape == shape else x[tuple(slice(size) for size in shape)]
