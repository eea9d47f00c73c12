"""Observed accuracies, each with its source: the rows of a CSV file, every one checked.

A file with a bad row is refused whole, with the file, line, column and value in one line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from costmodel.errors import InputError

PUBLISHED = files(__name__) / "data" / "accuracy_published.csv"

Name = Annotated[str, Field(min_length=1)]
Points = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Row(BaseModel):
    """One observed accuracy: a method on a network and a data set.

    `top1_percent` is the accuracy; `points_below_full` stands in its place where a source only states the distance to
    training everything, in percentage points. `trained_blocks` (or layers) is empty for methods without a depth,
    `resolution` and `batch` where the source does not state them. `memory_mb` is the source's own figure, counted
    by its own `memory_convention`: a record, not used here. `line` is the row's place in its file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Name
    locator: str
    model: Name
    method: Name
    trained_blocks: Annotated[int, Field(ge=0)] | None
    resolution: Annotated[int, Field(gt=0)] | None
    batch: Annotated[int, Field(gt=0)] | None
    dataset: Name
    top1_percent: Points | None
    points_below_full: Points | None
    memory_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    memory_convention: str
    line: int = 0

    @model_validator(mode="after")
    def _has_accuracy(self) -> Self:
        if (self.top1_percent is None) == (self.points_below_full is None):
            raise ValueError("a row needs one of top1_percent and points_below_full, not both")
        return self

    @property
    def setting(self) -> tuple[str, str, int | None, int | None]:
        """What rows must share to be compared: source, model, resolution, batch."""
        return self.source, self.model, self.resolution, self.batch


COLUMNS = tuple(name for name in Row.model_fields if name != "line")
_OPTIONAL = {"trained_blocks", "resolution", "batch", "top1_percent", "points_below_full", "memory_mb"}


def load(path: str | Path) -> tuple[Row, ...]:
    """Return the rows of a CSV file with the columns `COLUMNS`.

    Errors: InputError if the file cannot be read, lacks or adds a column, or has a bad or repeated row.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: byte {error.start} is not UTF-8 text") from error
    return parse(text, str(path))


@cache
def published() -> tuple[Row, ...]:
    """Return the published accuracies that come with the package."""
    return parse(PUBLISHED.read_text(encoding="utf-8"), PUBLISHED.name)


def parse(text: str, name: str) -> tuple[Row, ...]:
    """Return the rows of CSV text; `name` stands for the file in errors (InputError)."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    first_line: dict[tuple, int] = {}
    try:
        _check_header(reader.fieldnames or (), name)
        for cells in reader:
            row = _row(cells, name, reader.line_num)
            key = (*row.setting, row.method, row.trained_blocks, row.dataset)
            if key in first_line:
                raise InputError(
                    f"{name}, line {row.line}, column method: {row.method!r} on {row.dataset!r} repeats "
                    f"line {first_line[key]}; remove one of the two"
                )
            first_line[key] = row.line
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: not a CSV file ({error})") from error
    return tuple(rows)


def _check_header(header: Sequence[str], name: str) -> None:
    wrong = [f"lacks {column!r}" for column in COLUMNS if column not in header]
    wrong += [f"has an unknown column {column!r}" for column in header if column not in COLUMNS]
    wrong += [f"repeats {column!r}" for column in COLUMNS if list(header).count(column) > 1]
    if wrong:
        raise InputError(f"{name}, line 1: {', '.join(wrong)}; the columns are {', '.join(COLUMNS)}")


def _row(cells: dict, name: str, line: int) -> Row:
    if None in cells or None in cells.values():
        given = sum(cell is not None for key, cell in cells.items() if key) + len(cells.get(None, ()))
        raise InputError(f"{name}, line {line}: {given} values for {len(COLUMNS)} columns")
    values = {key: None if key in _OPTIONAL and not cell.strip() else cell for key, cell in cells.items()}
    try:
        return Row(**values, line=line)
    except ValidationError as error:
        problem = error.errors()[0]
        column = str(problem["loc"][0]) if problem["loc"] else "top1_percent"
        reason = problem["msg"].removeprefix("Value error, ")
        raise InputError(f"{name}, line {line}, column {column}: {cells[column]!r}: {reason}") from error
