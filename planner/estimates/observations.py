"""Evidence as the model of accuracies sees it: for each cell and way, how far its logit is from that of last.

A cell is a network on a data set, trained by one protocol. Only cells with a row of last and one of full tell a
recovery; the others, and methods that this package does not have, stay in the table as a record. Repeated runs count
as their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from costmodel import METHODS, Way, anchor

from ..evidence.rows import Cell, Row, standard_test_sets
from .logits import logit, per_point
from .setting import Setting
from .terms import Terms, terms

# Standard deviation of one run's accuracy over seeds, in points. Source: MCUNetV3 (arXiv 2206.15472), Table 2, three
# runs on eight data sets: 0.05 to 0.7, root mean square 0.3.
SEED_POINTS = 0.3
# Source: the 74 ways of benchmarks/results/decision_quality.md, three seeds each, 5 and 20 images per class: 1.3.
FEW_SHOT_SEED_POINTS = 1.3
# Of the sampling error of two ways that are tested on the same images this share is not common to both. Assumption:
# most images are right, or wrong, with both.
PAIRED_SHARE = 0.5
TEST_IMAGES = 3000  # Assumption: where a source does not say how many images it tests on


@dataclass(frozen=True)
class Observation:
    """One way in one cell. above_last, gap: logits of its accuracy, and of full's, less that of last's.

    variance: of above_last, from the scatter of runs, the test images and how the number was read.
    """

    cell: Cell
    way: Way
    terms: Terms
    last: float
    gap: float
    above_last: float
    variance: float
    percent: float


LAST, FULL = anchor("last"), anchor("full")


def observations(rows: Iterable[Row]) -> tuple[Observation, ...]:
    """Return what rows tell of recoveries: one observation for each cell and way that is not an anchor."""
    found = []
    for cell, ways in cells(rows).items():
        if LAST not in ways or FULL not in ways:
            continue
        last, full = (float(logit(_mean(ways[end]))) for end in (LAST, FULL))
        for way, own in ways.items():
            seen = _terms(way, own[0], cell)
            if seen is None or way in (LAST, FULL):
                continue
            percent = _mean(own)
            found.append(
                Observation(cell, way, seen, last, full - last, float(logit(percent)) - last, _variance(own), percent)
            )
    return tuple(found)


def cells(rows: Iterable[Row]) -> dict[Cell, dict[Way, list[Row]]]:
    """Return the rows with an accuracy by cell and way."""
    found: dict[Cell, dict[Way, list[Row]]] = {}
    for row in rows:
        if row.top1_percent is not None:
            found.setdefault(row.cell, {}).setdefault(row.way, []).append(row)
    return found


def gaps(rows: Iterable[Row]) -> Mapping[Cell, tuple[float, float]]:
    """Return the logit of last, and how far full's is above it, for every cell that has both."""
    return {
        cell: (low, float(logit(_mean(ways[FULL]))) - low)
        for cell, ways in cells(rows).items()
        if LAST in ways and FULL in ways
        for low in [float(logit(_mean(ways[LAST])))]
    }


def _terms(way: Way, row: Row, cell: Cell) -> Terms | None:
    method = METHODS.get(way.method)
    if method is None or ((method.takes_blocks or method.depth_option) and row.depth_of is None):
        return None
    of = row.depth_of or 0
    return terms(way, Setting(cell.model, cell.resolution, cell.batch, block_count=of, convolution_count=of))


def _mean(rows: Sequence[Row]) -> float:
    return fmean(row.top1_percent for row in rows if row.top1_percent is not None)


def _variance(rows: Sequence[Row]) -> float:
    """Return the variance of the logit of a mean accuracy."""
    row, percent = rows[0], _mean(rows)
    images = row.test_images or standard_test_sets().get(row.dataset, TEST_IMAGES)
    points = seed_points(row.few_shot) ** 2 / len(rows) + PAIRED_SHARE * sampling_points(percent, images) ** 2
    points += (row.error_points or 0.0) ** 2 / 3  # equally likely within the error
    return points * float(per_point(percent)) ** 2


def seed_points(few_shot: bool) -> float:
    """Return the standard deviation of one run's accuracy over seeds, in points."""
    return FEW_SHOT_SEED_POINTS if few_shot else SEED_POINTS


def sampling_points(percent: float, images: int) -> float:
    """Return the standard error, in points, of an accuracy that is measured on so many test images."""
    return math.sqrt(max(percent * (100 - percent), 1.0) / images)  # 0 and 100 % are not certain either
