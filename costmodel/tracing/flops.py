"""PyTorch's FLOP counter, with its formula for the backward of a convolution replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def _convolution_backward_flops(
    grad_shape, x_shape, w_shape, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, mask,
    out_shape=None, **_,
) -> int:  # fmt: skip
    """The forward pass's FLOPs once for the input's gradient and once for the weight's.

    PyTorch's own formula multiplies the weight gradient of a grouped convolution by the number of groups.
    """
    return (mask[0] + mask[1]) * conv_flop_count(x_shape, w_shape, grad_shape, transposed)


@contextmanager
def corrected_flop_counter() -> Iterator[FlopCounterMode]:
    """Count FLOPs of convolutions and matrix products, forward and backward, right for grouped convolutions."""
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        yield counter
