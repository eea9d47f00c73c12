"""The user's own accuracies: CSV files, and databases of `planner measure`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from costmodel import METHODS
from costmodel.errors import InputError, unknown
from costmodel.reading import read_file

from .rows import Row, parse, refusal


def load(path: str | Path) -> tuple[Row, ...]:
    """Return the rows of the user's own CSV file, or of a database of `planner measure` (runs.db, postgresql://...).

    Errors: InputError if the file cannot be read, lacks a column that is needed, has an unknown one, or has a bad or
    repeated row: among them a method that this package does not know, and one without the depth that it needs; for a
    database that cannot be read or holds no finished runs.
    """
    if "://" in str(path) or Path(path).suffix in (".db", ".sqlite", ".sqlite3"):
        from .database import measured  # which loads optuna

        return measured(str(path))
    try:
        text = read_file(path, "evidence").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: byte {error.start} is not UTF-8 text") from error
    rows = parse(text, str(path))
    for row in rows:
        _check_own(row)
    if rows and max(row.top1_percent or 0.0 for row in rows) <= 1.0:
        row = rows[0]
        raise refusal(
            row, "top1_percent", f"it looks like a fraction; write percent, {100 * (row.top1_percent or 0):g}"
        )
    return rows


def load_all(paths: Sequence[str | Path]) -> tuple[Row, ...]:
    """Return the rows of several files or databases, as `load` does each.

    Errors: InputError also for a run that stands in two of them: it would count as repeated.
    """
    found: list[Row] = []
    for path in paths:
        known = {row.run: row for row in found}
        for row in load(path):
            if first := known.get(row.run):
                raise InputError(
                    f"{row.file}, line {row.line}: {row.method!r} on {row.dataset!r} repeats {first.file}, line "
                    f"{first.line}; give each run its own seed and each data set its own name, or remove one"
                )
            found.append(row)
    return tuple(found)


def _check_own(row: Row) -> None:
    if row.method not in METHODS:
        raise InputError(f"{row.file}, line {row.line}, column method: {unknown('method', row.method, METHODS)}")
    if row.top1_percent is None:
        raise refusal(row, "top1_percent", "your own rows need the accuracy itself, in percent")
    if METHODS[row.method].takes_blocks and not row.trained_blocks:
        reason = f"method {row.method!r} needs its number of trained blocks, 1 or more"
        raise refusal(row, "trained_blocks", reason)
