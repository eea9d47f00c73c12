"""Activations that keep for backward what `lean` says: one bit per element, or a tensor that is kept anyway.

`keep` says what: 'mask' (ceil(elements / 8) bytes), 'output' or 'input' (the tensor, which costs nothing where a
neighbouring layer keeps it too). Everything else is as in the functions of the same names in torch.nn.functional;
results and gradients equal theirs to the last bit.

    relu, leaky_relu     the bit: x > 0
    hardtanh, relu6      the bit: min < x < max
    hardsigmoid          the bit: -3 < x < 3
    sigmoid, tanh        the output or the input
    masked               any of these and more: exact in forward; backward passes the gradient where x > threshold
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, unknown
from .functions import first_order
from .masks import Above, Between, OneBit, masked_function

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """A function and what it may keep.

    stock(x, inplace): PyTorch's own call. forward(x, out): writes the result. ways: by what is kept, the form that
    keeps a mask, or (grad, kept tensor) -> gradient, or None where the stock call keeps just that.
    """

    stock: Callable[[Tensor, bool], Tensor]
    forward: Callable[[Tensor, Tensor], object]
    ways: dict[str, OneBit | Callable[[Tensor, Tensor], Tensor] | None]

    def __call__(self, x: Tensor, inplace: bool, keep: str) -> Tensor:
        """Return the result, keeping `keep` if a gradient is wanted."""
        if keep not in self.ways or (inplace and keep == "input"):
            raise InputError(
                f"cannot keep {keep!r} of this activation{' in place' if inplace else ''}; "
                f"it can keep: {', '.join(way for way in self.ways if not (inplace and way == 'input'))}"
            )
        way = self.ways[keep]
        if way is None or not wants_gradient(x):
            return self.stock(x, inplace)
        if isinstance(way, OneBit):
            return masked_function(x, way, inplace)
        return _Kept.apply(x, self.forward, way, keep, inplace)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records a call with these arguments."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _Kept(torch.autograd.Function):
    """Keeps its input or its output; `backward_of` is the gradient given that."""

    @staticmethod
    def forward(ctx, x: Tensor, forward: Callable, backward_of: Callable, keep: str, inplace: bool) -> Tensor:
        out = x if inplace else torch.empty_like(x)
        forward(x, out)
        if inplace:
            ctx.mark_dirty(x)
        ctx.backward_of = backward_of
        ctx.save_for_backward(out if keep == "output" else x)
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):
        return ctx.backward_of(grad, *ctx.saved_tensors), None, None, None, None


def _gate(grad: Tensor, bit: Tensor, out: Tensor) -> None:
    """Write the gradient where the bit is set, else 0 (also for an infinite gradient)."""
    _aten.threshold_backward.grad_input(grad, bit, 0, grad_input=out)


def relu(input: Tensor, inplace: bool = False, keep: str = "mask") -> Tensor:
    """Return max(x, 0); keeps one bit per element ('mask'), its output or its input."""
    return _RELU(input, inplace, keep)


def _relu_into(x: Tensor, out: Tensor) -> None:
    torch.clamp_min(x, 0, out=out)


_RELU = Activation(
    lambda x, inplace: F.relu(x, inplace),
    _relu_into,
    {
        "mask": OneBit(_relu_into, Above(0), _gate),
        "output": None,
        "input": lambda grad, x: _aten.threshold_backward(grad, x, 0),
    },
)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False, keep: str = "mask") -> Tensor:
    """Return x where x > 0, else slope x; keeps one bit per element, its output (slope >= 0) or its input."""

    def forward(x: Tensor, out: Tensor) -> None:
        _aten.leaky_relu.out(x, negative_slope, out=out)

    def slope(grad: Tensor, bit: Tensor, out: Tensor) -> None:
        _aten.leaky_relu_backward.grad_input(grad, bit, negative_slope, False, grad_input=out)

    def from_output(grad: Tensor, y: Tensor) -> Tensor:
        return _aten.leaky_relu_backward(grad, y, negative_slope, True)

    ways = {
        "mask": OneBit(forward, Above(0), slope, slopes=(1.0, negative_slope)),
        "output": from_output,
        "input": None,
    }
    return Activation(lambda x, inplace: F.leaky_relu(x, negative_slope, inplace), forward, ways)(input, inplace, keep)


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False, keep: str = "mask"
) -> Tensor:
    """Return x between the bounds; keeps one bit per element, its output or its input."""

    def forward(x: Tensor, out: Tensor) -> None:
        _aten.hardtanh.out(x, min_val, max_val, out=out)

    def from_output(grad: Tensor, y: Tensor) -> Tensor:
        return _aten.hardtanh_backward(grad, y, min_val, max_val)

    ways = {"mask": OneBit(forward, Between(min_val, max_val), _gate), "output": from_output, "input": None}
    return Activation(lambda x, inplace: F.hardtanh(x, min_val, max_val, inplace), forward, ways)(input, inplace, keep)


def relu6(input: Tensor, inplace: bool = False, keep: str = "mask") -> Tensor:
    """Return x between 0 and 6; keeps one bit per element, its output or its input."""
    return hardtanh(input, 0.0, 6.0, inplace, keep)


def hardsigmoid(input: Tensor, inplace: bool = False, keep: str = "mask") -> Tensor:
    """Return (x + 3) / 6 between 0 and 1; keeps one bit per element or its input (not its output, rounded near 1)."""
    return _HARDSIGMOID(input, inplace, keep)


def _hardsigmoid_slope(grad: Tensor, bit: Tensor, out: Tensor) -> None:
    x = bit.sub_(1).mul_(3)  # 0 where the bit is set, else -3
    _aten.hardsigmoid_backward.grad_input(grad, x, grad_input=out)


def _hardsigmoid_into(x: Tensor, out: Tensor) -> None:
    _aten.hardsigmoid.out(x, out=out)


_HARDSIGMOID = Activation(
    lambda x, inplace: F.hardsigmoid(x, inplace),
    _hardsigmoid_into,
    {
        "mask": OneBit(_hardsigmoid_into, Between(-3, 3), _hardsigmoid_slope, slopes=(1 / 6, 0.0)),
        "input": None,
    },
)


def sigmoid(input: Tensor, keep: str = "input") -> Tensor:
    """Return 1 / (1 + exp(-x)); keeps its input (the result is computed again in backward) or its output."""
    return _SIGMOID(input, False, keep)


def tanh(input: Tensor, keep: str = "input") -> Tensor:
    """Return tanh(x); keeps its input (the result is computed again in backward) or its output."""
    return _TANH(input, False, keep)


_SIGMOID = Activation(
    lambda x, inplace: torch.sigmoid(x),
    lambda x, out: _aten.sigmoid.out(x, out=out),
    {"output": None, "input": lambda grad, x: _aten.sigmoid_backward(grad, _aten.sigmoid(x))},
)
_TANH = Activation(
    lambda x, inplace: torch.tanh(x),
    lambda x, out: _aten.tanh.out(x, out=out),
    {"output": None, "input": lambda grad, x: _aten.tanh_backward(grad, _aten.tanh(x))},
)


# By name: forward(x, out, *the function's own arguments), and whether it is the same however the tensor is cut.
MASKED: dict[str, tuple[Callable[..., object], bool]] = {
    "relu": (_relu_into, True),
    "leaky_relu": (lambda x, out, slope=0.01: _aten.leaky_relu.out(x, slope, out=out), True),
    "hardsigmoid": (_hardsigmoid_into, True),
    "hardswish": (lambda x, out: _aten.hardswish.out(x, out=out), True),
    "silu": (lambda x, out: _aten.silu.out(x, out=out), False),
    "gelu": (lambda x, out, approximate="none": _aten.gelu.out(x, approximate=approximate, out=out), False),
    "mish": (lambda x, out: _aten.mish.out(x, out=out), False),
    "sigmoid": (lambda x, out: _aten.sigmoid.out(x, out=out), False),
    "tanh": (lambda x, out: _aten.tanh.out(x, out=out), False),
}


def masked(
    function: str, input: Tensor, threshold: float = 0.0, arguments: tuple = (), inplace: bool = False
) -> Tensor:
    """Return function(input, *arguments), exact; backward passes the gradient where the input is above `threshold`.

    Keeps ceil(elements / 8) bytes. hardtanh and relu6 use their exact test, min < x < max, in place of the threshold.
    arguments: the function's own, such as ('tanh',) of gelu. Source: MobileTL (arXiv 2212.03246), where the derivative
    is "a signed function". Errors: InputError for a function that is neither in MASKED nor one of these two.
    """
    if function in ("hardtanh", "relu6"):
        return (hardtanh if function == "hardtanh" else relu6)(input, *arguments, inplace=inplace)
    if function not in MASKED:
        raise unknown("function to mask", function, (*MASKED, "hardtanh", "relu6"))
    forward, divisible = MASKED[function]

    def own(x: Tensor, out: Tensor) -> None:
        forward(x, out, *arguments)

    if wants_gradient(input):
        return masked_function(input, OneBit(own, Above(threshold), _gate, divisible), inplace)
    out = input if inplace else torch.empty_like(input)
    own(input, out)
    return out
