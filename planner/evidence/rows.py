"""Observed accuracies: the published ones that come with the package, and the user's own.

The user's own are in a CSV file, or in the database of `planner measure`. All have the same columns. A row needs
`model`, `method`, `dataset` and `top1_percent`, and `trained_blocks` if the method has a depth; every other column may
be left out. A file with a bad row is refused whole, with the file, line, column and value in one line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import cache, cached_property
from importlib.resources import files
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from costmodel import METHODS, Way, read_options, way
from costmodel.errors import InputError, shortened
from costmodel.reading import first_problem

DATA = files("planner.evidence") / "data"
PUBLISHED, CAMPAIGNS = DATA / "accuracy_published.csv", DATA / "accuracy_campaigns.csv"
TEST_SETS, IMAGENET = DATA / "test_sets.csv", DATA / "imagenet_top1.csv"
# Assumption: up to so many labelled images per class count as few; Meta-Dataset's episodes, which the few-shot rows are
# of, have about ten (Triantafillou et al., ICLR 2020, arXiv 1903.03096).
FEW_IMAGES_PER_CLASS = 20

_MOST_ROWS = 100_000  # Assumption: a hundred times those that come with the package


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has a control character, or something that is not text")
    return text


Text = Annotated[str, AfterValidator(_printable), Field(max_length=2000)]
Name = Annotated[Text, Field(min_length=1)]
Points = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Positive = Annotated[int, Field(gt=0, le=10**9)]  # Assumption: no count of images or blocks is larger


_ROUNDED_POINTS = 0.06  # an accuracy may be given to one decimal


def pack(correct: Sequence[bool]) -> str:
    """Return which images were classified right as hexadecimal digits: the first image is the highest bit."""
    return np.packbits(np.asarray(correct, bool)).tobytes().hex()


def unpack(text: str, count: int) -> np.ndarray:
    """Return the first `count` outcomes (bool) that `pack` wrote. Errors: ValueError if it is of another number."""
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise ValueError("these are not pairs of hexadecimal digits") from None
    if len(data) != -(-count // 8):
        raise ValueError(f"{len(data)} bytes are not the outcomes of {count} test images, which are {-(-count // 8)}")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).astype(bool)


def named_way(method: str, blocks: int | None, options: str = "") -> Way:
    """Return the way that evidence names; of a method that this package does not know, as it is written.

    Errors: InputError for a depth or option that the method does not have.
    """
    return way(method, blocks, read_options(options.split())) if method in METHODS else Way(method, blocks)


class Row(BaseModel):
    """One observed accuracy: a method on a network and a data set.

    `top1_percent` is the accuracy; `points_below_full` stands in its place where a source only states the distance to
    training everything, in percentage points. `trained_blocks` is empty for methods without a depth; `depth_of`: of how
    many blocks, or convolutions, that the network has (the planner's own graph tells where it is empty). `options` has
    what else was chosen of the method ("convolutions=4 patch=2"), `resolution` and `batch` are empty where not stated.
    `seed` tells repeated runs apart. `test_images`: how many images the accuracy was measured on. `correct`: which of
    them were classified right, as `pack` writes it; runs on the same images are then compared image by image.
    `reachable_percent`: of a run that was stopped early, the most that it could still have reached. `source`: the
    file's name if empty. `protocol`: what rows of different sources must share to be compared; the source if empty.
    `images_per_class`: labelled images to train with; `regime` says 'few-shot' where a source does not number them.
    `reading`: how a published number was read, 'printed', 'digitised' or 'by eye', with `error_points`. `identity`:
    what tells the study that a run is of from all others; `graph`: a digest of its network's layers, by which a network
    that has changed since is known. `optimizer`, `epochs`, `note`, and `memory_mb`, the source's own figure by its own
    `memory_convention`, are a record, not used here. `file` and `line` are the row's place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Name
    method: Name
    trained_blocks: Annotated[int, Field(ge=0, le=10**9)] | None = None
    depth_of: Positive | None = None
    dataset: Name
    top1_percent: Points | None = None
    points_below_full: Points | None = None
    options: Text = ""
    images_per_class: Positive | None = None
    regime: Literal["", "few-shot"] = ""
    resolution: Positive | None = None
    batch: Positive | None = None
    optimizer: Text = ""
    epochs: Positive | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    test_images: Positive | None = None
    correct: str = ""
    reachable_percent: Points | None = None
    source: Name
    locator: Text = ""
    protocol: Text = ""
    reading: Text = ""
    error_points: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    note: Text = ""
    memory_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    memory_convention: Text = ""
    identity: Text = ""
    graph: Text = ""
    file: str = ""
    line: int = 0

    @model_validator(mode="after")
    def _has_accuracy(self) -> Self:
        if (self.top1_percent is None) == (self.points_below_full is None):
            raise ValueError("a row needs one of top1_percent and points_below_full, not both")
        return self

    @field_validator("correct")
    @classmethod
    def _images_make_accuracy(cls, text: str, given: ValidationInfo) -> str:
        images, percent = given.data.get("test_images"), given.data.get("top1_percent")
        if text:
            if images is None or percent is None:
                raise ValueError("it needs test_images and top1_percent beside it")
            share = 100 * unpack(text, images).mean()
            if abs(share - percent) > _ROUNDED_POINTS:
                raise ValueError(f"it says {share:.4g} % right, top1_percent says {percent:g}")
        return text

    @field_validator("reachable_percent")
    @classmethod
    def _reaches_no_less(cls, percent: float | None, given: ValidationInfo) -> float | None:
        reached = given.data.get("top1_percent")
        if percent is not None and reached is not None and percent < reached:
            raise ValueError(f"the run has reached more, {reached:g}")
        return percent

    @property
    def outcomes(self) -> np.ndarray | None:
        """Whether each test image was classified right, if that is recorded."""
        return unpack(self.correct, self.test_images) if self.correct and self.test_images else None

    @cached_property
    def way(self) -> Way:
        """What trained; of a method that this package does not know, as it is written.

        Errors: InputError for a depth or option that the method does not have.
        """
        return named_way(self.method, self.trained_blocks, self.options)

    @property
    def run(self) -> tuple:
        """What tells one run from another."""
        return self.model, self.way, self.dataset, self.resolution, self.batch, self.protocol, self.seed

    @property
    def few_shot(self) -> bool:
        """Whether only a few labelled images per class were trained with."""
        return self.regime == "few-shot" or is_few(self.images_per_class)

    @property
    def cell(self) -> Cell:
        """What rows must share for their accuracies to be compared."""
        return Cell(self.protocol or self.source, self.model, self.resolution, self.batch, self.dataset, self.few_shot)


class Cell(NamedTuple):
    """A network on a data set, trained by one protocol: accuracies within it can be compared."""

    protocol: str
    model: str
    resolution: int | None
    batch: int | None
    dataset: str
    few_shot: bool


def is_few(images_per_class: int | None) -> bool:
    """Whether so many labelled images per class are few; None: not known, taken to be many."""
    return images_per_class is not None and images_per_class <= FEW_IMAGES_PER_CLASS


COLUMNS = tuple(name for name in Row.model_fields if name not in ("file", "line"))
_NEEDED = ("model", "method", "dataset")


@cache
def published() -> tuple[Row, ...]:
    """Return the published accuracies that come with the package."""
    return parse(PUBLISHED.read_text(encoding="utf-8"), PUBLISHED.name)


@cache
def campaigns() -> tuple[Row, ...]:
    """Return the accuracies that were measured with this package's own layers, on data that everybody can have."""
    return parse(CAMPAIGNS.read_text(encoding="utf-8"), CAMPAIGNS.name)


@cache
def observed() -> tuple[Row, ...]:
    """Return all accuracies that come with the package."""
    return (*published(), *campaigns())


@cache
def imagenet_top1() -> dict[str, float]:
    """Return the top-1 accuracy on ImageNet, in percent, of pre-trained networks, each row with its source."""
    rows = csv.DictReader(io.StringIO(IMAGENET.read_text(encoding="utf-8")))
    return {row["model"]: float(row["top1_percent"]) for row in rows}


@cache
def standard_test_sets() -> dict[str, int]:
    """Return the number of images in the standard test split of each published data set."""
    rows = csv.DictReader(io.StringIO(TEST_SETS.read_text(encoding="utf-8")))
    return {row["dataset"]: int(row["test_images"]) for row in rows}


def parse(text: str, name: str) -> tuple[Row, ...]:
    """Return the rows of CSV text; `name` stands for the file in errors (InputError)."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    first_line: dict[tuple, int] = {}
    try:
        header = reader.fieldnames or ()
        _check_header(header, name)
        for cells in reader:
            row = _row(cells, len(header), name, reader.line_num)
            key = (row.source, *row.run)
            if key in first_line:
                raise InputError(
                    f"{name}, line {row.line}, column method: {row.method!r} on {row.dataset!r} repeats "
                    f"line {first_line[key]}; remove one of the two, or give each run its seed"
                )
            first_line[key] = row.line
            rows.append(row)
            if len(rows) > _MOST_ROWS:
                raise InputError(f"{name} has more than {_MOST_ROWS:,} rows; give the runs of what you ask about")
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: not a CSV file ({error})") from error
    return tuple(rows)


def _check_header(header: Sequence[str], name: str) -> None:
    wrong = [f"lacks {column!r}" for column in _NEEDED if column not in header]
    if not {"top1_percent", "points_below_full"} & set(header):
        wrong.append("lacks 'top1_percent'")
    wrong += [f"has an unknown column {column!r}" for column in header if column not in COLUMNS]
    wrong += [f"repeats {column!r}" for column in COLUMNS if list(header).count(column) > 1]
    if wrong:
        needed = (*_NEEDED, "top1_percent")
        others = [column for column in COLUMNS if column not in needed]
        raise InputError(
            f"{name}, line 1: {', '.join(wrong)}; needed are {', '.join(needed)}; allowed are {', '.join(others)}"
        )


def _row(cells: dict, columns: int, name: str, line: int) -> Row:
    if None in cells or None in cells.values():
        given = sum(cell is not None for key, cell in cells.items() if key) + len(cells.get(None, ()))
        raise InputError(f"{name}, line {line}: {given} values for {columns} columns")
    values = {key: cell.strip() for key, cell in cells.items() if cell.strip() or key in _NEEDED}
    try:
        row = Row.model_validate({"source": name, **values, "file": name, "line": line})
    except ValidationError as error:
        problem = first_problem(error)
        column = problem.key.partition(".")[0] or "top1_percent"
        raise InputError(
            f"{name}, line {line}, column {column}: {shortened(cells.get(column, ''))}: {problem.reason}"
        ) from error
    if row.trained_blocks is not None and row.method in METHODS and not METHODS[row.method].takes_blocks:
        raise refusal(row, "trained_blocks", f"method {row.method!r} has no depth; leave it empty")
    try:
        _ = row.way
    except InputError as error:
        raise refusal(row, "options", str(error)) from None
    return row


def refusal(row: Row, column: str, reason: str) -> InputError:
    """Return the error for a value of a row, by its file, line and column."""
    value = getattr(row, column)
    return InputError(f"{row.file}, line {row.line}, column {column}: {('' if value is None else value)!r}: {reason}")
