"""Training methods: one file per family, one table. Every entry runs through the same battery of tests."""

from __future__ import annotations

from ..errors import unknown
from .method import Method, Training
from .tinytl import TINYTL_B, TINYTL_L, TINYTL_LB
from .top_blocks import BLOCKS, MOBILETL
from .whole_network import BIAS, FULL, LAST, NORM

METHODS: dict[str, Method] = {
    method.name: method for method in (FULL, LAST, NORM, BIAS, BLOCKS, MOBILETL, TINYTL_B, TINYTL_L, TINYTL_LB)
}


def method(name: str) -> Method:
    """Return the method of that name.

    Errors: InputError for an unknown name, with the near ones.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


__all__ = ["METHODS", "Method", "Training", "method"]
