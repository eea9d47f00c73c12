"""One call of a trace, run by itself on tensors of its own, at another batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from .calls import has_gradient, named_tensors, operation_name

BATCHES, THIRD_BATCH = (2, 3), 5
# Assumption: arguments of more bytes per image take too long to compute with; their call runs on the meta device,
# where PyTorch takes the same path but for attention.
MOST_BYTES = 2**24
_FEW = 2**16  # elements that are drawn at random; more are all the same number
ON_META = frozenset({"scaled_dot_product_attention"})  # there it is not computed by the flash kernel


@dataclass(frozen=True)
class TracedCall:
    """A call on tensors of a trace, with the trace's batch."""

    function: Callable
    args: tuple
    kwargs: dict[str, Any]
    batch: int


def attention(result: torch.Tensor, call: TracedCall) -> tuple[torch.Tensor, str]:
    """Return the result of attention as a CPU lays it out, and the kernel that computes it there: 'flash' or 'math'.

    On the meta device it is always computed as products of matrices ('math'). Source: PyTorch's own choice; the flash
    kernel's result has the memory order of the queries (aten/src/ATen/native/transformers/attention.cpp).
    """
    run = Alone(call, BATCHES[0], "cpu", fill=False)
    chosen = torch._fused_sdp_choice(*run.args, **run.kwargs)  # pyright: ignore[reportPrivateImportUsage]
    if chosen != torch.nn.attention.SDPBackend.FLASH_ATTENTION.value:
        return result, "math"
    query = named_tensors(call.function, call.args, call.kwargs)["query"]
    return torch.empty_like(query), "flash"


class Alone:
    """The arguments of a call at another batch, on tensors of their own."""

    def __init__(self, call: TracedCall, batch: int, device: str, fill: bool = True):
        self.traced_batch, self.batch, self.device, self.fill = call.batch, batch, device, fill
        self.made: dict[int, torch.Tensor] = {}  # by the traced tensor
        self.args, self.kwargs = tree_map(self._other, (call.args, call.kwargs))

    def _size(self, value: int) -> int:
        return value // self.traced_batch * self.batch if value % self.traced_batch == 0 else value

    def _other(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in self.made:
                self.made[id(value)] = self._tensor(value)
            return self.made[id(value)]
        if isinstance(value, torch.Size):
            return torch.Size(map(self._size, value))
        return self._size(value) if type(value) is int else value

    def _tensor(self, traced: torch.Tensor) -> torch.Tensor:
        sizes, strides = [*map(self._size, traced.shape)], [*map(self._size, traced.stride())]
        extent = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True) if size)
        if not self.fill:
            memory = torch.empty(extent, dtype=traced.dtype, device=self.device)
        elif not has_gradient(traced) or self.device == "meta":
            memory = torch.zeros(extent, dtype=traced.dtype, device=self.device)
        elif extent > _FEW:
            memory = torch.full((extent,), 0.5, dtype=traced.dtype)
        else:
            memory = torch.rand(extent, generator=torch.Generator().manual_seed(0), dtype=traced.dtype)
        laid_out = memory.as_strided(sizes, strides)
        return laid_out.conj() if traced.is_conj() else laid_out  # conjugated when it is read


def device_of(call: TracedCall) -> str:
    """Return where a call is observed."""
    return "meta" if operation_name(call.function)[0] in ON_META or bytes_per_image(call) > MOST_BYTES else "cpu"


def bytes_per_image(call: TracedCall) -> int:
    """Return the bytes of a call's arguments, of one image."""
    tensors = [value for value in tree_leaves((call.args, call.kwargs)) if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() // call.batch for tensor in tensors)


def address(tensor: torch.Tensor) -> int:
    """Return where a tensor's memory is."""
    return tensor.untyped_storage()._cdata
