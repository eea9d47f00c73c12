"""Packing of small numbers into bytes: 1-bit masks eight to a byte, 2- and 4-bit indices four and two to a byte.

A tensor is packed as one flat sequence in the order of its memory, the whole batch at once, and rounded up to a byte.
The first value takes the highest bits of its byte.

One machine word holds as many values, a byte each, as one packed byte does. A product with MAGIC moves them next to
each other into the word's highest byte, and the same product moves them apart again:

    1 bit    eight values in an int64        MAGIC = sum of 2^(9 j), j = 0..7
    2 bits   four values in an int32         MAGIC = sum of 2^(10 j), j = 0..3
    4 bits   two values in an int16          MAGIC = sum of 2^(12 j), j = 0..1

No two terms of the product meet in one bit, so nothing is carried. That runs on every device, with all threads, and
needs no memory but the values' own. Measured on two cores of a Xeon with AVX-512, 9.6 million values: packing and
unpacking take 1.5 and 2 times as long as NumPy's packbits and unpackbits on one core, and together 1/15 of a ReLU's
forward and backward pass; what matters is how the mask is made and applied (see `masks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

MAGIC = {1: 0x8040201008040201 - (1 << 64), 2: 0x40100401, 4: 0x1001}
_WORD = {1: torch.int64, 2: torch.int32, 4: torch.int16}
_APART = {1: (7, 0x0101010101010101), 2: (6, 0x03030303), 4: (4, 0x0F0F)}


def packed_bytes(count: int, bits: int = 1) -> int:
    """Return the bytes that `count` values of `bits` bits take."""
    return -(-count * bits // 8)


def padded(count: int, bits: int = 1) -> int:
    """Return `count`, rounded up to whole packed bytes."""
    per_byte = 8 // bits
    return -(-count // per_byte) * per_byte


def flat(tensor: Tensor) -> Tensor:
    """Return a dense tensor's elements in the order of its memory, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def pack_into(packed: Tensor, values: Tensor, bits: int = 1) -> None:
    """Pack `values` (flat; uint8 or bool; whole packed bytes) into `packed`. The values are overwritten."""
    if bits == 8:
        packed.copy_(values)
        return
    values.view(_WORD[bits]).mul_(MAGIC[bits])
    packed.copy_(values.view(torch.uint8).view(-1, 8 // bits)[:, -1])


def unpack(packed: Tensor, count: int, bits: int = 1) -> Tensor:
    """Return the first `count` values of `packed`: flat, uint8."""
    if bits == 8:
        return packed[:count]
    shift, field = _APART[bits]
    words = packed.to(_WORD[bits]).mul_(MAGIC[bits]).bitwise_right_shift_(shift).bitwise_and_(field)
    return words.view(torch.uint8)[:count]


def pack(values: Tensor, bits: int = 1) -> Tensor:
    """Return `values` (flat; uint8, below 2^bits; or bool) packed: uint8, `packed_bytes(count, bits)` of them."""
    count = values.numel()
    whole = values.new_zeros(padded(count, bits))
    whole[:count] = values
    packed = values.new_empty(packed_bytes(count, bits), dtype=torch.uint8)
    pack_into(packed, whole, bits)
    return packed
