"""How far off the prior is: every published recovery predicted without the data set that it was measured on.

For each published method, network and data set, all rows of the data set are taken away from the published ones but
last and full, which stand for the user's two anchors. The recovery and the accuracy that `accuracy.estimate` gives are
then held against the truth. Networks other than the one with the largest table are predicted twice: from their own
other data sets, and as a network that was never seen.

Where last and full lie close (Pets: 1.7 points), the measured recovery is noisy: the sampling error of the test images
alone moves it by 0.3. The recovery's interval knows nothing of that; the accuracy's does. With nine data sets a method
that misses one holds 89 %, so the wanted 90 % is asked of all predictions together.

Assumption: accuracies were measured on the standard test split of the data set (`evidence/data/test_sets.csv`).

The curve over depth cannot be checked so: it rests on one number, and without that number's data set nothing is left.
Nor can `bias`, which borrows from TinyTL. `tinytl-lb-random-init` is no method of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from costmodel import METHODS

from ..evidence.rows import Row, published, standard_test_sets
from .accuracy import estimate
from .estimated import Estimate
from .intervals import Interval
from .prior import FULL, LAST, recoveries
from .setting import Setting

UNSEEN = "a network not seen"
WANTED_COVERAGE = 0.9


@dataclass(frozen=True)
class LeftOut:
    """One prediction without the data set, and what was measured on it. `unseen`: without the network too."""

    method: str
    model: str
    dataset: str
    unseen: bool
    predicted: Estimate
    recovery: float
    top1_percent: float

    @property
    def recovery_error(self) -> float:
        """Predicted less measured recovery."""
        return _found(self.predicted.known).value - self.recovery

    @property
    def points_error(self) -> float:
        """Predicted less measured accuracy, in percentage points."""
        return _found(self.predicted.known_accuracy).value - self.top1_percent

    @property
    def covered(self) -> bool:
        """Whether the accuracy that was measured lies in the interval."""
        interval = _found(self.predicted.known_accuracy)
        return interval.low <= self.top1_percent <= interval.high

    @property
    def recovery_covered(self) -> bool:
        """Whether the recovery's interval, which knows of no sampling error, holds the measured recovery."""
        interval = _found(self.predicted.known)
        return interval.low <= self.recovery <= interval.high

    def to_dict(self) -> dict:
        """Return fields, errors and whether the intervals hold, by name."""
        derived = ("recovery_error", "points_error", "recovery_covered", "covered")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def _found(interval: Interval | None) -> Interval:
    assert interval is not None  # other data sets tell the recovery, and the two anchors the accuracy
    return interval


@dataclass(frozen=True)
class Summary:
    """Left-out predictions taken together: mean absolute errors, and how many lie in their intervals."""

    name: str
    count: int
    recovery_error: float
    points_error: float
    covered: int
    recovery_covered: int

    @property
    def coverage(self) -> float:
        """The share that lies in the intervals of the accuracy."""
        return self.covered / self.count


def leave_one_out(rows: Sequence[Row] | None = None) -> list[LeftOut]:
    """Return the prediction of each published recovery without its data set. rows: the published ones if None."""
    rows = published() if rows is None else tuple(rows)
    found = []
    for method in (name for name, entry in METHODS.items() if entry.anchor is None):
        groups = recoveries(method, rows)
        largest = max(groups, key=lambda setting: len(groups[setting]), default=None)
        for setting, measured in groups.items():
            for dataset, recovery in measured.items():
                for unseen in (False, True)[: 1 if setting == largest else 2]:
                    found.append(_predict(method, setting, dataset, recovery, unseen, rows))
    return found


def _predict(method: str, setting: tuple, dataset: str, recovery: float, unseen: bool, rows: Sequence[Row]) -> LeftOut:
    _, model, resolution, batch = setting
    name = UNSEEN if unseen else model
    others = [row for row in rows if row.dataset != dataset]
    here = {row.method: row for row in rows if (row.setting, row.dataset) == (setting, dataset)}
    anchors = [
        here[end].model_copy(update={"model": name, "test_images": standard_test_sets().get(dataset)})
        for end in (LAST, FULL)
    ]
    guess = estimate(method, None, Setting(name, resolution, batch), others, anchors)
    measured = here[method].top1_percent
    assert measured is not None  # the recovery comes from it
    return LeftOut(method, model, dataset, unseen, guess, recovery, measured)


def summaries(found: Sequence[LeftOut]) -> list[Summary]:
    """Return a summary of each method, seen and unseen networks apart, and one of all."""
    parts: dict[str, list[LeftOut]] = {}
    for one in found:
        parts.setdefault(f"{one.method}, {UNSEEN}" if one.unseen else one.method, []).append(one)
    parts["all"] = list(found)
    return [
        Summary(
            name,
            len(part),
            fmean(abs(one.recovery_error) for one in part),
            fmean(abs(one.points_error) for one in part),
            sum(one.covered for one in part),
            sum(one.recovery_covered for one in part),
        )
        for name, part in parts.items()
        if part
    ]


def markdown(found: Sequence[LeftOut]) -> str:
    """Return the summaries as a table for the docs."""
    lines = [
        "| method | predictions | mean error: recovery | accuracy | held by the 90 % interval: recovery | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for one in summaries(found):
        lines.append(
            f"| {one.name} | {one.count} | {one.recovery_error:.2f} | {one.points_error:.1f} points "
            f"| {one.recovery_covered} | {one.covered} ({100 * one.coverage:.0f} %) |"
        )
    return "\n".join(lines)
