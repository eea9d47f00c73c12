"""The order of tensors in memory: what calls copy because of it, and how a CPU lays out what the meta device does not.

Shapes and strides tell. Source: _conv_determine_backend_memory_format in aten/src/ATen/native/Convolution.cpp,
layer_norm.cpp; linear in Linear.cpp, should_fold and _matmul_impl in LinearAlgebra.cpp of PyTorch 2.15.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..graph.memory_order import channels_last, suggests_channels_last
from ..rules.linear import small_factor


def has_rows(tensor: Tensor) -> bool:
    """Whether a view of a tensor is the matrix whose rows are its last dimension (not if it was permuted, say)."""
    try:
        tensor.view(-1, tensor.shape[-1])
    except RuntimeError:
        return tensor.dim() < 3
    return True


def matmul_copies(left: Tensor, right: Tensor) -> tuple[str, ...]:
    """Return what of a matrix product is copied: 'folded', the larger factor as one matrix; 'input' and 'other', the
    factors as batches of matrices.
    """
    if min(left.dim(), right.dim()) == 0 or max(left.dim(), right.dim()) < 3:
        return ()
    copied = []
    small = small_factor(left.shape, right.shape)
    if small and not has_rows(right.mT if small == "input" else left):
        copied.append("folded")
    if min(left.dim(), right.dim()) > 1:
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        for name, factor in (("input", left), ("other", right)):
            spread = factor.expand(*batch, *factor.shape[-2:])
            matrices = spread.reshape(-1, *factor.shape[-2:])
            if matrices.untyped_storage()._cdata != factor.untyped_storage()._cdata:
                copied.append(name)
    return tuple(copied)


def _convolved(result: Tensor, given: Tensor, weight: Tensor, *others: Tensor) -> Tensor:
    if not any(suggests_channels_last(each.shape, each.stride()) for each in (given, weight)):
        return result
    return torch.empty_strided(result.shape, channels_last(result.shape), dtype=result.dtype, device="meta")


def _plain(result: Tensor, *given: Tensor) -> Tensor:
    return result if result.is_contiguous() else torch.empty(result.shape, dtype=result.dtype, device="meta")


# By operation: its result as a CPU lays it out, of the meta device's result and the tensors that the call is given.
LAID_OUT: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"), _convolved),
    "layer_norm": _plain,
}
