"""What the autograd functions of these layers share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from ..errors import ModelError

Layer = TypeVar("Layer", bound=Callable[..., Any])


def autocast_is_on(device: torch.device) -> bool:
    """Whether autocast is on for a device, some of which (meta) have none."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def in_autocast(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the precision that autocast computes products in, if it is on where the tensor is."""
    if autocast_is_on(x.device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def first_order(backward: Callable[..., Any]) -> Any:
    """Return a `backward` that is not differentiated again: what that would need was not kept.

    It is refused where the graph of derivatives is asked for, since autograd would take what it does not see for
    constant. `Any`, because torch annotates `backward` as one that takes any number of gradients; ours take those there
    are.
    """

    @wraps(backward)
    def once(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise ModelError(
                "second derivatives (create_graph=True) need what an applied network does not keep; take them of the "
                "stock network: costmodel.restore(model)"
            )
        return backward(ctx, *gradients)

    return once


def overridable(layer: Layer) -> Layer:
    """Let torch function modes see the calls of a layer, as they see those of torch.nn.functional.

    layer: takes a tensor first. `costmodel.export` puts other forms in place of layers so.
    """

    @wraps(layer)
    def seen(input, *args, **kwargs):
        if has_torch_function_unary(input):
            return handle_torch_function(seen, (input,), input, *args, **kwargs)
        return layer(input, *args, **kwargs)

    return seen  # pyright: ignore[reportReturnType]  # it takes and returns the same
