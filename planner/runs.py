"""The user's own runs: the accuracy that was measured of each method at each depth on one data set.

A measured accuracy is the mean of its runs. Its interval holds a further run, tested on other images of the kind:

- mean +- t s sqrt(1 + 1/n), with s^2 pooled over all of the user's repeated runs on the data set. Assumption: runs
  scatter equally, whatever the method. Without repeated runs this part is not known and left out.
- the sampling error of a test set of `test_images` images (Wilson's interval). Left out if it is not given.

Both are added in squares; if neither is known, low and high are the value itself, and the text says that the width is
not known. Runs that were stopped early count only where there is no other of the method and depth: the value is what
they had reached, and high is no less than what they could still have reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from costmodel.errors import InputError, unknown

from .estimate import Setting
from .evidence import Row
from .intervals import Interval, combine, share, student_t

Key = tuple[str, int | None]  # a method and its depth


@dataclass(frozen=True)
class Measured:
    """The user's runs of one method at one depth. `accuracy` in percent; `spread`: where its interval comes from."""

    accuracy: Interval
    runs: int
    test_images: int | None
    source: str
    spread: str


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


def concerns(row: Row, setting: Setting) -> bool:
    """Whether a row is of this network; one that states no resolution or batch counts for every one."""
    return (
        row.model in (setting.model, setting.name)
        and row.resolution in (None, setting.resolution)
        and row.batch in (None, setting.batch)
    )


def measured_runs(own: Sequence[Row], dataset: str | None, setting: Setting) -> dict[Key, Measured]:
    """Return the user's runs of this network on the data set, by method and depth."""
    grouped: dict[Key, list[Row]] = {}
    for row in own:
        if row.dataset != dataset or row.top1_percent is None or not concerns(row, setting):
            continue
        if row.method in ("blocks", "mobiletl") and not 1 <= (row.trained_blocks or 0) <= setting.block_count:
            raise InputError(
                f"{row.file}, line {row.line}, column trained_blocks: {row.trained_blocks}: {setting.model} has only "
                f"{setting.block_count} blocks"
            )
        grouped.setdefault((row.method, row.trained_blocks), []).append(row)
    grouped = {key: [row for row in group if row.reachable_percent is None] or group for key, group in grouped.items()}
    samples = {
        key: [row.top1_percent for row in group] for key, group in grouped.items() if group[0].reachable_percent is None
    }
    freedom = sum(len(values) - 1 for values in samples.values())
    squares = sum((value - fmean(values)) ** 2 for values in samples.values() for value in values)
    deviation = math.sqrt(squares / freedom) if freedom else None
    return {key: _measured(group, deviation, freedom) for key, group in grouped.items()}


def _measured(group: Sequence[Row], deviation: float | None, freedom: int) -> Measured:
    mean, n = fmean(row.top1_percent for row in group), len(group)
    images = min((row.test_images for row in group if row.test_images), default=None)
    parts, said = [Interval.exact(mean)], []
    if deviation is not None:
        half = student_t(freedom) * deviation * math.sqrt(1 + 1 / n)
        parts.append(Interval(0.0, -half, half))
        said.append(f"the spread of repeated runs ({freedom} degrees of freedom)")
    if images:
        parts.append(sampling_error(mean, images))
        said.append(f"the sampling error of {images} test images")
    spread = f"90 %, from {' and '.join(said)}" if said else "width not known: no repeated runs, no test_images"
    accuracy = combine(lambda *terms: math.fsum(terms), *parts).within(0.0, 100.0)
    reachable = max((row.reachable_percent for row in group if row.reachable_percent is not None), default=None)
    if reachable is not None:
        accuracy = replace(accuracy, high=max(accuracy.high, reachable))
        spread += f"; stopped early, when {reachable:.1f} % was the most that it could still reach"
    return Measured(accuracy, n, images, ", ".join(sorted({row.source for row in group})), spread)


def sampling_error(percent: float, images: int) -> Interval:
    """Return the error, in points, of an accuracy that is measured on so many test images."""
    measured = share(min(max(percent, 0.0), 100.0), images)
    return Interval(0.0, measured.low - measured.value, measured.high - measured.value)
