"""Ways of keeping the books: one file each, one table. Every entry runs through the same battery of tests."""

from __future__ import annotations

from ..errors import InputError
from ..table import Table
from .books import Accounting
from .eager import EAGER
from .gradient_filter import GRADIENT_FILTER
from .lean import LEAN
from .mcunetv3 import MCUNETV3
from .mobiletl_figure1 import MOBILETL_FIGURE1
from .tinytl import TINYTL

ACCOUNTINGS: Table[Accounting] = Table(
    "accounting",
    ((books.name, books) for books in (LEAN, EAGER, TINYTL, GRADIENT_FILTER, MOBILETL_FIGURE1, MCUNETV3)),
)


def whole_step(name: str, purpose: str) -> Accounting:
    """Return an accounting that follows a whole training step, which `purpose` needs.

    Errors: InputError for another one, that says which do.
    """
    books = ACCOUNTINGS.find(name)
    if not books.whole_step:
        allowed = ", ".join(each.name for each in ACCOUNTINGS.values() if each.whole_step)
        raise InputError(
            f"the accounting {name!r} leaves parts of a training step out, so it {purpose}; allowed: {allowed}"
        )
    return books
