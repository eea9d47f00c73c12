"""Ways of keeping the books: one file each, one table. Every entry runs through the same battery of tests."""

from __future__ import annotations

from ..errors import unknown
from .books import Accounting, Books, Saved
from .eager import EAGER
from .gradient_filter import GRADIENT_FILTER
from .lean import LEAN
from .mcunetv3 import MCUNETV3
from .mobiletl_figure1 import MOBILETL_FIGURE1
from .tinytl import TINYTL

ACCOUNTINGS: dict[str, Accounting] = {
    accounting.name: accounting for accounting in (LEAN, EAGER, TINYTL, GRADIENT_FILTER, MOBILETL_FIGURE1, MCUNETV3)
}


def accounting(name: str) -> Accounting:
    """Return the accounting of that name.

    Errors: InputError for an unknown name, with the near ones.
    """
    if name not in ACCOUNTINGS:
        raise unknown("accounting", name, ACCOUNTINGS)
    return ACCOUNTINGS[name]


__all__ = ["ACCOUNTINGS", "Accounting", "Books", "Saved", "accounting"]
