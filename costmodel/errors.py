"""The errors a user can cause: one root class, one line each.

A message says what was given, what is allowed and what to do. The command lines print it without a traceback and
leave with `exit_code`; `--debug` shows the traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class CostModelError(Exception):
    """Root of every error that the user's input can cause."""

    exit_code = 2


class InputError(CostModelError):
    """A name, number or combination of options that does not exist or does not fit."""


class ModelError(CostModelError):
    """A network that cannot be built, run or followed."""


class UnknownOperationError(CostModelError):
    """An operation of the network for which no rule is known: never counted as zero."""


class InfeasibleError(CostModelError):
    """A request that is well formed, but that nothing satisfies."""

    exit_code = 3


# By the module that an import does not find: the extra of this package that brings it.
EXTRAS = {
    "torch": "torch", "torchvision": "torch", "timm": "timm", "matplotlib": "plots",
    "optuna": "measure", "sqlalchemy": "measure", "PIL": "measure", "safetensors": "measure",
    "executorch": "executorch",
    "psycopg": "postgresql", "pyarrow": "parquet", "scipy": "torch",
}  # fmt: skip


class MissingPackageError(CostModelError):
    """A question that takes a package which is not installed."""


def missing_package(error: ModuleNotFoundError, what: str = "this") -> MissingPackageError | None:
    """Return the error for a package that `what` needs and an extra brings; None for any other module."""
    name = (error.name or "").partition(".")[0]
    return needs(name, what) if name in EXTRAS else None


def needs(package: str, what: str) -> MissingPackageError:
    """Return the error for one of EXTRAS's packages, which `what` needs."""
    return MissingPackageError(f"{what} needs {package}: pip install 'finetune-planner[{EXTRAS[package]}]'")


# Assumption: larger ones are slips. At these limits together the bytes and FLOPs of the networks that are known stay
# below 2**63, which is what they are counted in.
MOST = {"resolution": 4096, "classes": 1_000_000, "batch": 65_536}
MOST_OTHERWISE = 2**31 - 1


def require_count(name: str, value: object) -> None:
    """Raise InputError unless a value is a whole number of 1 or more, and no more than MOST has for the name."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a whole number of 1 or more, not {value!r}")
    most = MOST.get(name, MOST_OTHERWISE)
    if value > most:
        raise InputError(f"{name} must be at most {most:,}, not {shortened(value)}")


def one_line(text: object) -> str:
    """Return a text on one line that every terminal takes: line breaks as spaces, other controls as escapes."""
    words = " ".join(part.strip() for part in str(text).splitlines())
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)


def shortened(value: object, most: int = 40) -> str:
    """Return a value as it is written, or its beginning if that is long."""
    if isinstance(value, int) and abs(value) >= 10**most:
        return f"a number of more than {most} digits"
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def nearest(given: str, allowed: Iterable[str], most: int = 3) -> list[str]:
    """Return the allowed names that are most like one that was given, the likeliest first.

    Capitals, signs and a library's name before a colon do not count: MobileNetV3 is near
    torchvision:mobilenet_v3_large. First come names that are the same then, those that begin with what was given, and
    those that have it in them; without such a name, those that differ in few letters.
    """

    def letters(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.rpartition(":")[2].lower())

    wanted, plain = letters(given), {name: letters(name) for name in allowed}
    holding = [name for name, text in plain.items() if len(wanted) > 2 and wanted in text]
    holding.sort(key=lambda name: (plain[name] != wanted, not plain[name].startswith(wanted)))
    close = difflib.get_close_matches(wanted, {*plain.values()}, n=most, cutoff=0.5)
    others = [name for text in close for name in plain if plain[name] == text]
    return (holding or others)[:most]


def unknown(kind: str, given: str, allowed: Iterable[str]) -> InputError:
    """Return the error for a name that does not exist, with the nearest names that do."""
    allowed = list(allowed)
    near = nearest(given, allowed)
    hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else "."
    listing = f" All: {', '.join(sorted(allowed))}" if len(allowed) <= 20 else ""
    return InputError(f"unknown {kind} {given!r}{hint}{listing}")
