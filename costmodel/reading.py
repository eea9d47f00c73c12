"""What is read from outside: pydantic's complaint as one line for people."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError


class Problem(NamedTuple):
    """What is wrong first: at which key, what was given there, why. kind: pydantic's name for it."""

    key: str
    given: object
    reason: str
    kind: str


def first_problem(error: ValidationError) -> Problem:
    """Return the first thing that pydantic found wrong; key '' is the whole."""
    first = error.errors()[0]
    key, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return Problem(key, first["input"], reason, first["type"])
