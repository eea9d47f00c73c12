"""Packing of small numbers into bytes: 1-bit masks eight to a byte, 2- and 4-bit indices four and two to a byte.

A tensor is packed as one flat sequence in the order of its memory, the whole batch at once, and rounded up to a byte.
The first value takes the highest bits of its byte.

On a CPU NumPy packs single bits, on the tensors' own memory. Everything else takes one product: a machine word holds
as many values, a byte each, as a packed byte does; a product with MAGIC moves them next to each other into the word's
highest byte, and the same product moves them apart again. No two terms of the product meet in one bit, so nothing is
carried:

    1 bit    eight values in an int64        MAGIC = sum of 2^(9 j), j = 0..7
    2 bits   four values in an int32         MAGIC = sum of 2^(10 j), j = 0..3
    4 bits   two values in an int16          MAGIC = sum of 2^(12 j), j = 0..1

Measured with 9.6 million bits on two cores (AVX-512): packing takes 0.02 and unpacking 0.02 of the time of a ReLU's
forward and backward pass with NumPy (one core), 0.03 and 0.04 with the product (both cores).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAGIC = {1: 0x8040201008040201 - (1 << 64), 2: 0x40100401, 4: 0x1001}
_WORD = {1: torch.int64, 2: torch.int32, 4: torch.int16}
_APART = {1: (7, 0x0101010101010101), 2: (6, 0x03030303), 4: (4, 0x0F0F)}


def packed_bytes(count: int, bits: int = 1) -> int:
    """Return the bytes that `count` values of `bits` bits take."""
    return -(-count * bits // 8)


def flat(tensor: Tensor) -> Tensor:
    """Return a dense tensor's elements in the order of its memory, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def pack(values: Tensor, bits: int = 1) -> Tensor:
    """Return `values` packed: uint8, `packed_bytes(count, bits)` of them.

    values: flat; bool or uint8, each below 2^bits. They may be overwritten. bits: 1, 2, 4 or 8.
    """
    if bits == 8:
        return values.view(torch.uint8)
    if bits == 1 and _is_plain(values):
        return torch.from_numpy(np.packbits(values.numpy()))
    per_byte = 8 // bits
    if values.numel() % per_byte:
        values = torch.cat([values, values.new_zeros(-values.numel() % per_byte)])
    values.view(_WORD[bits]).mul_(MAGIC[bits])
    return values.view(torch.uint8).view(-1, per_byte)[:, -1].clone(memory_format=torch.contiguous_format)


def unpack(packed: Tensor, count: int, bits: int = 1) -> Tensor:
    """Return the first `count` values of `packed`: flat, uint8."""
    if bits == 8:
        return packed[:count]
    if bits == 1 and _is_plain(packed):
        return torch.from_numpy(np.unpackbits(packed.numpy(), count=count))
    shift, field = _APART[bits]
    words = packed.to(_WORD[bits]).mul_(MAGIC[bits]).bitwise_right_shift_(shift).bitwise_and_(field)
    return words.view(torch.uint8)[:count]


def _is_plain(tensor: Tensor) -> bool:
    """Return whether NumPy can work on the tensor's memory (a fake tensor has none)."""
    return type(tensor) is Tensor and tensor.device.type == "cpu"
