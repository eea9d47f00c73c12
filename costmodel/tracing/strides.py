"""What calls copy because of the order of their arguments in memory; shapes and strides tell, so meta tensors do.

Source: linear in aten/src/ATen/native/Linear.cpp, should_fold and _matmul_impl in LinearAlgebra.cpp of PyTorch 2.15.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
