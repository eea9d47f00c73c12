"""How far off the expected accuracy is: every observed accuracy predicted without what it is most like.

Three things are left out, one after another: a data set with all that was observed on it, a network, and a source (all
cells of one protocol). Of each cell (a network on a data set) that was left out, last and full are given back as if the
user had measured them, and `accuracy.estimates` says what to expect of every other way; held against it is what was
observed. Methods that are known from what was left out alone cannot be predicted, and are not counted.

Assumption: accuracies were measured on the standard test split of the data set (`evidence/data/test_sets.csv`), where
the source does not say on how many images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from costmodel import Way

from ..evidence.rows import FEW_IMAGES_PER_CLASS, Cell, Row, observed, standard_test_sets
from .accuracy import ENDS, estimates
from .estimated import Estimate
from .intervals import Interval
from .observations import TEST_IMAGES, Observation, observations
from .setting import Setting

# The share that 90 % intervals may hold, of all that were left out of a kind: one that always holds is too wide.
HELD = (0.85, 0.98)
LEFT_OUT: dict[str, Callable[[Cell], object]] = {
    "data set": lambda cell: (cell.dataset, cell.few_shot),
    "network": lambda cell: cell.model,
    "source": lambda cell: cell.protocol,
}


@dataclass(frozen=True)
class LeftOut:
    """One prediction, and what was observed. left_out: 'data set', 'network' or 'source'."""

    left_out: str
    cell: Cell
    way: Way
    predicted: Estimate
    top1_percent: float

    @property
    def points_error(self) -> float:
        """Predicted less observed accuracy, in percentage points."""
        return self.interval.value - self.top1_percent

    @property
    def interval(self) -> Interval:
        """The accuracy that is expected, in percent."""
        known = self.predicted.known_accuracy
        assert known is not None  # the two ends of the scale were given
        return known

    @property
    def covered(self) -> bool:
        """Whether what was observed lies in the interval."""
        return self.interval.low <= self.top1_percent <= self.interval.high

    @property
    def width(self) -> float:
        """The width of the interval, in points."""
        return self.interval.high - self.interval.low

    def to_dict(self) -> dict:
        """Return plain values by name."""
        own = self.cell._asdict() | {"method": self.way.method, "way": self.way.label, "left_out": self.left_out}
        own |= {"predicted": self.predicted.to_dict(), "top1_percent": self.top1_percent}
        return own | {name: getattr(self, name) for name in ("points_error", "covered", "width")}


@dataclass(frozen=True)
class Summary:
    """Predictions taken together: mean absolute error in points, how many lie in their intervals, mean width."""

    left_out: str
    name: str
    count: int
    points_error: float
    covered: int
    width: float

    @property
    def coverage(self) -> float:
        """The share that lies in the intervals."""
        return self.covered / self.count


def leave_one_out(rows: Sequence[Row] | None = None) -> list[LeftOut]:
    """Return the prediction of each observed accuracy, by what was left out. rows: those of the package if None."""
    rows = observed() if rows is None else tuple(rows)
    seen, found = observations(rows), []
    for kind, group_of in LEFT_OUT.items():
        for group in dict.fromkeys(group_of(each.cell) for each in seen):
            others = [row for row in rows if group_of(row.cell) != group]
            own = [each for each in seen if group_of(each.cell) == group]
            for cell in dict.fromkeys(each.cell for each in own):
                found += _predict(kind, cell, [each for each in own if each.cell == cell], rows, others)
    return found


def _predict(
    kind: str, cell: Cell, seen: Sequence[Observation], rows: Sequence[Row], others: Sequence[Row]
) -> list[LeftOut]:
    """Return the predictions of one cell, from the other rows and from the cell's own last and full."""
    here = [row for row in rows if row.cell == cell]
    images = standard_test_sets().get(cell.dataset, TEST_IMAGES)
    ends = [row.model_copy(update={"test_images": row.test_images or images}) for row in here if row.way in ENDS]
    counts = {row.way: row.depth_of or 0 for row in here}
    per_class = FEW_IMAGES_PER_CLASS if cell.few_shot else None
    found = []
    for each in seen:
        count = counts[each.way]
        setting = Setting(
            cell.model, cell.resolution, cell.batch, count, convolution_count=count, images_per_class=per_class
        )
        guess = estimates([each.way], setting, others, ends, cell.dataset)[0]
        if guess.known_accuracy is not None:
            found.append(LeftOut(kind, cell, each.way, guess, each.percent))
    return found


def summaries(found: Sequence[LeftOut]) -> list[Summary]:
    """Return a summary of each method and of all, for each kind of thing that was left out."""
    parts: dict[tuple[str, str], list[LeftOut]] = {}
    for kind in dict.fromkeys(one.left_out for one in found):
        own = [one for one in found if one.left_out == kind]
        for name in sorted({one.way.method for one in own}):
            parts[kind, name] = [one for one in own if one.way.method == name]
        parts[kind, "all"] = own
    return [
        Summary(
            kind, name, len(part), fmean(abs(one.points_error) for one in part), sum(one.covered for one in part),
            fmean(one.width for one in part),
        )
        for (kind, name), part in parts.items()
    ]  # fmt: skip


def markdown(found: Sequence[LeftOut]) -> str:
    """Return the summaries as a table for the docs."""
    lines = [
        "| left out | method | predictions | mean error, points | in the 90 % interval | its mean width, points |",
        "|---|---|---|---|---|---|",
    ]
    for one in summaries(found):
        lines.append(
            f"| {one.left_out} | {one.name} | {one.count} | {one.points_error:.1f} | {100 * one.coverage:.0f} % "
            f"| {one.width:.1f} |"
        )
    return "\n".join(lines)
