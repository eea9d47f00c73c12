"""The user's own runs: the accuracy that was measured of each method at each depth on one data set.

A measured accuracy is the mean of its runs. Its interval holds a further run, tested on other images of the kind:

- mean +- t s sqrt(1 + 1/n), with s^2 pooled over all of the user's repeated runs on the data set. Assumption: runs
  scatter equally, whatever the method. Without repeated runs this part is not known and left out.
- the sampling error of a test set of `test_images` images (Wilson's interval). Left out if it is not given.

Both are added in squares; if neither is known, low and high are the value itself, and the text says that the width is
not known. A run that was stopped early, because it was worse than others, counts beside whole runs with the most that
it could still have reached: left out, it would make the mean of the others too good. Alone it counts with what it had
reached, and high is no less than what it could still have reached.

Two ways that were tested on the same images are not compared by these intervals: most images are right, or wrong, with
both. Their difference has a standard error of its own (`difference`), from the images that tell the two apart.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from costmodel import Way
from costmodel.errors import InputError, unknown
from costmodel.units import counted

from ..evidence.rows import Row
from .intervals import Z95, Difference, Interval, combine, share, student_t
from .observations import sampling_points
from .setting import Setting


@dataclass(frozen=True)
class Measured:
    """The user's runs of one method at one depth. `accuracy` in percent; `spread`: where its interval comes from.

    deviation: of one run, in points, and its degrees of freedom; None if no run was repeated. correct: how often each
    test image was classified right, from 0 to 1; None where that was not recorded. stopped: all runs ended early.
    """

    accuracy: Interval
    runs: int
    test_images: int | None
    source: str
    spread: str
    deviation: float | None = None
    freedom: int = 0
    correct: np.ndarray | None = None
    stopped: bool = False

    @property
    def scatter(self) -> float:
        """The standard error, in points, that is due to the runs; 0 if it is not known."""
        return 0.0 if self.deviation is None else self.deviation / math.sqrt(self.runs)

    @property
    def sampling(self) -> float:
        """The standard error, in points, that is due to the test images; 0 if their number is not known."""
        return sampling_points(self.accuracy.value, self.test_images) if self.test_images else 0.0

    @property
    def standard_error(self) -> float:
        """The standard error of the mean accuracy, in points."""
        return math.hypot(self.scatter, self.sampling)


def data_set(own: Sequence[Row], dataset: str | None = None) -> str | None:
    """Return the data set that the user's rows are about: the one named, or the only one; None if there are no rows.

    Errors: InputError if it is not among them, or if there are several and none is named.
    """
    names = sorted({row.dataset for row in own})
    if dataset is not None and names and dataset not in names:
        raise unknown("data set", dataset, names)
    if dataset is None and len(names) > 1:
        raise InputError(f"the evidence holds the data sets {', '.join(names)}; name the one that it is about")
    return dataset or (names[0] if names else None)


def is_of_network(row: Row, setting: Setting) -> bool:
    """Whether a row is of this network, at whatever resolution; its library may be left out."""
    return row.model in (setting.model, setting.name)


def concerns(row: Row, setting: Setting) -> bool:
    """Whether a row is of this network; one that states no resolution or batch counts for every one."""
    return (
        is_of_network(row, setting)
        and row.resolution in (None, setting.resolution)
        and row.batch in (None, setting.batch)
    )


def elsewhere(own: Sequence[Row], dataset: str | None, setting: Setting) -> list[Row]:
    """Return the user's runs of this network on the data set that are at another resolution or batch."""
    return [
        row for row in own
        if row.dataset == dataset and is_of_network(row, setting) and not concerns(row, setting)
    ]  # fmt: skip


def unused(own: Sequence[Row], dataset: str | None, settings: Sequence[Setting]) -> list[str]:
    """Return which of the user's rows do not tell of these networks and resolutions as they are, and why."""
    found: dict[str, int] = {}
    names = sorted({name for each in settings for name in (each.model, each.name)})
    for row in own:
        reason = ""
        if row.dataset != dataset:
            reason = f"of the data set {row.dataset!r}"
        elif not any(is_of_network(row, each) for each in settings):
            near = difflib.get_close_matches(row.model, names, n=1)
            reason = f"of the network {row.model!r}" + (f" (is {near[0]} meant?)" if near else "")
        elif not any(concerns(row, each) for each in settings):
            reason = (
                f"at {row.resolution or 'any'} pixels, batch {row.batch or 'any'}: they tell less, and widen intervals"
            )
        if reason:
            found[reason] = found.get(reason, 0) + 1
    return [f"{count} of {len(own)} rows of your evidence are {reason}" for reason, count in found.items()]


def measured_runs(own: Sequence[Row], dataset: str | None, setting: Setting) -> dict[Way, Measured]:
    """Return the user's runs of this network on the data set, by way."""
    grouped: dict[Way, list[Row]] = {}
    for row in own:
        if row.dataset != dataset or row.top1_percent is None or not concerns(row, setting):
            continue
        if row.way.blocks is not None and not 1 <= row.way.blocks <= setting.block_count:
            raise InputError(
                f"{row.file}, line {row.line}, column trained_blocks: {row.trained_blocks}: {setting.model} has only "
                f"{counted(setting.block_count, 'block')}"
            )
        grouped.setdefault(row.way, []).append(row)
    whole = [[_percent(row) for row in group if row.reachable_percent is None] for group in grouped.values()]
    samples = [values for values in whole if values]
    freedom = sum(len(values) - 1 for values in samples)
    squares = sum((value - fmean(values)) ** 2 for values in samples for value in values)
    deviation = math.sqrt(squares / freedom) if freedom else None
    return {key: _measured(group, deviation, freedom) for key, group in grouped.items()}


def _percent(row: Row) -> float:
    assert row.top1_percent is not None  # rows without it are left out above
    return row.top1_percent


def _measured(group: Sequence[Row], deviation: float | None, freedom: int) -> Measured:
    stopped = [(_percent(row), row.reachable_percent) for row in group if row.reachable_percent is not None]
    n, alone = len(group), len(stopped) == len(group)
    # By how much runs that were stopped may count too high.
    gap = 0.0 if alone else sum(most - reached for reached, most in stopped) / n
    mean = fmean(map(_percent, group)) + gap
    images = min((row.test_images for row in group if row.test_images), default=None)
    parts, said = [Interval(mean, mean - gap, mean)], []
    if deviation is not None:
        half = student_t(freedom) * deviation * math.sqrt(1 + 1 / n)
        parts.append(Interval(0.0, -half, half))
        said.append(f"the spread of repeated runs ({freedom} degrees of freedom)")
    if images:
        parts.append(sampling_error(mean, images))
        said.append(f"the sampling error of {images} test images")
    spread = f"90 %, from {' and '.join(said)}" if said else "width not known: no repeated runs, no test_images"
    accuracy = combine(lambda *terms: math.fsum(terms), *parts).within(0.0, 100.0)
    if stopped:
        reachable = max(most for _, most in stopped)
        spread += f"; stopped early, when {reachable:.1f} % was the most that it could still reach"
        spread += "" if alone else ", which is what it counts with"
        if alone:
            accuracy = replace(accuracy, high=max(accuracy.high, reachable))
    source = "; ".join(sorted({row.source for row in group}))
    alike = [each for row in group if (each := row.outcomes) is not None and len(each) == images]
    correct = np.mean(alike, axis=0) if len(alike) == n else None
    return Measured(accuracy, n, images, source, spread, deviation, freedom, correct, alone)


def difference(one: Measured, other: Measured) -> Difference:
    """Return by how many points of expected accuracy one is above the other, with its error.

    Two parts, added in squares: that of the runs' scatter, s sqrt(1/n + 1/m), and that of the test images. The latter
    is that of the mean, over the images, of the difference in how often each is right; where this is not recorded, that
    of two test sets that have nothing to do with each other, which is wider. What is not known is left out.
    """
    scatter = math.hypot(one.scatter, other.scatter)
    if one.correct is not None and other.correct is not None and len(one.correct) == len(other.correct):
        apart = 100 * (one.correct - other.correct)
        sampling = math.sqrt(apart.var() / len(apart))
    else:
        sampling = math.hypot(one.sampling, other.sampling)
    half = math.hypot(
        *(student_t(each.freedom) * each.scatter for each in (one, other) if each.freedom), Z95 * sampling
    )
    return Difference(one.accuracy.value - other.accuracy.value, math.hypot(scatter, sampling), half)


def sampling_error(percent: float, images: int) -> Interval:
    """Return the error, in points, of an accuracy that is measured on so many test images."""
    measured = share(min(max(percent, 0.0), 100.0), images)
    return Interval(0.0, measured.low - measured.value, measured.high - measured.value)
