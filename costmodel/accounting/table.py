"""The accountings: one file each, one table. Every entry runs through the same battery of tests."""

from __future__ import annotations

from ..errors import InputError
from ..rules.table import RULES, Rule
from ..table import Table
from .books import Accounting
from .eager import EAGER, KEEPS, Keeps
from .executorch import EXECUTORCH, EXECUTORCH_FLASH
from .gradient_filter import GRADIENT_FILTER
from .lean import LEAN
from .mcunetv3 import MCUNETV3
from .mobiletl_figure1 import MOBILETL_FIGURE1
from .tinytl import TINYTL

_ALL = (LEAN, EAGER, EXECUTORCH, EXECUTORCH_FLASH, TINYTL, GRADIENT_FILTER, MOBILETL_FIGURE1, MCUNETV3)
ACCOUNTINGS: Table[Accounting] = Table("accounting", ((books.name, books) for books in _ALL))


def register_rule(operation: str, rule: Rule, eager: Keeps | None = None) -> None:
    """Add an operation that the package does not know: what its gradients need, its FLOPs, and what PyTorch keeps.

    operation: its name, as an error or `costmodel layers` shows it. rule: a function `Layer -> Facts`. eager: (layer,
    roles whose gradient is wanted) -> what stock PyTorch keeps for backward; without it the books `eager` refuse it.

    >>> import costmodel
    >>> from costmodel.rules.facts import Facts, dense
    >>> def softsign(layer):  # y = x / (1 + |x|), dx = dy / (1 + |x|)^2: needs x
    ...     count = layer.output.elements
    ...     return Facts({"input": (dense(layer.input),)}, forward_elementwise=3 * count,
    ...                  backward_elementwise={"input": 4 * count})
    >>> costmodel.register_rule("softsign", softsign, eager=lambda layer, wanted: dense(layer.input))

    Errors: InputError if there is a rule for the operation.
    """
    RULES.add(operation, rule)
    if eager is not None:
        KEEPS.add(operation, eager)


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
