"""Bytes, bits and FLOPs, and the only conversions between numbers and text.

1 MAC (multiply-accumulate) = 2 FLOPs. Decimal prefixes are powers of 1000 (MB), binary prefixes powers of 1024 (MiB).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, shortened

Counts = NDArray[np.int64]
Count = TypeVar("Count", int, Counts)  # one number, or several that are worked out at once

FLOPS_PER_MAC = 2

BYTES_PER_ELEMENT = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex128": 16, "complex64": 8,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
FLOAT_BYTES = BYTES_PER_ELEMENT["float32"]  # what networks are traced in, and compute in unless something else is said
FLOAT_BITS = 8 * FLOAT_BYTES

_UNITS = {
    "B": 1,
    "KB": 1000, "MB": 1000**2, "GB": 1000**3,
    "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3,
}  # fmt: skip
_MOST_BYTES = 2.0**63
_MOST_CHARACTERS = 40  # of an amount; what is longer is none, and would be searched for long


def bytes_of_bits(bits: Count) -> Count:
    """Return the whole bytes that `bits` packed bits take (one tensor is packed as a whole)."""
    return -(-bits // 8)


def over_batch(each: int, batched: bool, batch: Count) -> Count:
    """Return what is there `each` time, for every image of the batch or, if not `batched`, once."""
    return each * batch if batched else each + 0 * batch


def scale_of(unit: str) -> int:
    """Return the bytes of a unit such as 'MB' or 'KiB'.

    Errors: InputError for an unknown unit.
    """
    if unit.upper() not in _UNITS:
        raise InputError(f"unknown unit of bytes {unit!r}; allowed: B, KB, MB, GB, KiB, MiB, GiB")
    return _UNITS[unit.upper()]


def parse_bytes(text: str | int) -> int:
    """Return the bytes that a text such as '64MB', '1.5 GiB' or '300000' means.

    A bare number counts bytes; KB, MB, GB are powers of 1000; KiB, MiB, GiB powers of 1024; case does not matter.

    Errors: InputError if the text is none of these, or not positive.
    """
    text = text if isinstance(text, str) and len(text) <= _MOST_CHARACTERS else shortened(text, _MOST_CHARACTERS)
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = match and _UNITS.get(match[2].upper() or "B")
    if not match or not unit or float(match[1]) * unit < 1:
        raise InputError(
            f"cannot read {text!r} as a positive number of bytes; "
            "write a number and one of B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (powers of 1024), such as 64MB"
        )
    if float(match[1]) * unit > _MOST_BYTES:
        raise InputError(f"{text!r} is more bytes than can be counted; write a number such as 64MB")
    return int(Decimal(match[1]) * unit)  # through a float 2.01 MB would be 2,009,999 bytes


def _scaled(value: float, suffixes: tuple[str, ...]) -> str:
    """Return `value` with three significant digits or more and a power-of-1000 suffix."""
    power = 0
    while abs(value) >= 999.5 and power < len(suffixes) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f} {suffixes[power]}".rstrip()


def format_bytes(count: float) -> str:
    """Return bytes as text, such as '64.0 MB' (1 MB = 1e6 bytes)."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def format_count(count: float) -> str:
    """Return a count (FLOPs, parameters) as text, such as '601 M' (1 M = 1e6)."""
    return _scaled(count, ("", "k", "M", "G", "T", "P"))


def counted(number: int, what: str) -> str:
    """Return a number of things as text: '1 block', '2 blocks'."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """Return a time as text, such as '35 ms' or '2.1 h'."""
    units = (("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3))
    unit, size = next(((unit, size) for unit, size in units if seconds >= size), units[-1])
    return f"{seconds / size:.3g} {unit}"
