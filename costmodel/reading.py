"""What is read from outside: files within limits, and what is wrong with them as one line for people."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from .errors import InputError

# Assumption: a hundred times the largest of its kind that was seen; a larger one is something else, or meant to harm.
MOST_BYTES = {
    "plan": 2**17,
    "manifest": 2**17,
    "training's record": 2**24,
    "device file": 2**17,
    "calibration": 2**20,
    "evidence": 2**26,
    "trace": 2**26,
    "network's file": 2**24,
    "image": 2**28,
    "weights": 2**34,
    "database": 2**36,
}


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


def read_file(path: str | os.PathLike, kind: str) -> bytes:
    """Return the content of a file from outside. kind: a key of MOST_BYTES, for the limit and for messages.

    Errors: InputError if there is none, if it cannot be read, is larger than its kind may be, or is not a regular file:
    a FIFO waits for a writer, a device need not end.
    """
    try:
        descriptor = _open(path, kind)
        with open(descriptor, "rb") as file:
            content = file.read(MOST_BYTES[kind] + 1)  # a file may grow, and those of /proc state no size
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, kind, getattr(error, "strerror", None) or error) from error
    if len(content) > MOST_BYTES[kind]:
        raise _unreadable(path, kind, _too_large(kind))
    return content


def check_file(path: str | os.PathLike, kind: str) -> None:
    """Raise InputError where `read_file` would, without reading: for files that a library opens by their path."""
    try:
        os.close(_open(path, kind))
    except (OSError, ValueError) as error:
        raise _unreadable(path, kind, getattr(error, "strerror", None) or error) from error


def _open(path: str | os.PathLike, kind: str) -> int:
    """Return the descriptor of a regular file within its limit; opening a FIFO must not wait."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    status = os.fstat(descriptor)
    reason = None
    if not stat.S_ISREG(status.st_mode):
        reason = f"it is {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}"
    elif status.st_size > MOST_BYTES[kind]:
        reason = _too_large(kind)
    if reason:
        os.close(descriptor)
        raise _unreadable(path, kind, reason)
    return descriptor


def _too_large(kind: str) -> str:
    return f"it is larger than {MOST_BYTES[kind]:,} bytes"


def _unreadable(path: str | os.PathLike, kind: str, reason: object) -> InputError:
    return InputError(f"cannot read the {kind} {str(Path(path))!r}: {reason}")
