"""What the autograd functions of these layers share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from ..errors import ModelError


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
