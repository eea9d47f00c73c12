"""The user's own runs, and what the evidence expects of recoveries -> the accuracy of every way on the user's data.

State: the logit L of last, the gap g to full, the recovery r of each way, and what of it does not depend on the gap, h.
What is measured of a way is

    y = L + g r + h + error

with r = 0 for last and 1 for full, both without h. The product g r is made linear about the present best state, and
solved again until nothing moves (the iterated extended Kalman filter: Bell and Cathey, IEEE Transactions on Automatic
Control 38, 1993). So every run informs every way: two ways that resemble each other move together, the anchors tell the
gap, and a gap that is within its own error is no divisor of anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import Z95
from .logits import logit, per_point, percent
from .model import Belief
from .observations import PAIRED_SHARE
from .runs import Measured

_STEPS = 6  # the state has settled by then: the tests hold it
LAST, FULL = -2, -1  # in place of the number of a way: they stand behind all others
_NARROW_LOGITS = 1e-6


@dataclass(frozen=True)
class Level:
    """What is expected of the logit of last and of the gap to full before they are measured, with deviations."""

    last: float
    last_deviation: float
    gap: float
    gap_deviation: float


@dataclass(frozen=True)
class Expected:
    """The accuracy to expect of several ways on the user's data: logits, with their covariance.

    last, gap: the logit of last and the gap to full, each with its standard deviation. The anchors' logits come behind
    those of the ways: last, then full.
    """

    logits: np.ndarray
    covariance: np.ndarray
    last: tuple[float, float]
    gap: tuple[float, float]

    def accuracy(self, number: int, further_points: float = 0.0) -> tuple[float, float, float]:
        """Return the accuracy of a way in percent, and the 90 % interval of a run of it.

        further_points: the standard error of that run's own measurement, in points.
        """
        middle = self.logits[number]
        own = further_points * float(per_point(percent(middle)))
        half = Z95 * float(np.sqrt(self.covariance[number, number] + own**2))
        value, low, high = percent(middle + np.array([0.0, -half, half])).tolist()
        return value, low, high

    def difference(self, one: int, other: int) -> tuple[float, float]:
        """Return by how many points one is above the other, and the standard error of that."""
        values = percent(self.logits[[one, other]])
        slopes = 1 / per_point(values) * np.array([1.0, -1.0])
        covariance = self.covariance[np.ix_([one, other], [one, other])]
        return float(values[0] - values[1]), float(np.sqrt(max(slopes @ covariance @ slopes, 0.0)))

    def deviation(self, number: int) -> float:
        """Return the standard deviation of a way's logit."""
        return float(np.sqrt(self.covariance[number, number]))

    @property
    def training_more_helps(self) -> bool:
        """Whether full is above last by more than the 90 % interval of that."""
        return self.gap[0] > Z95 * self.gap[1]


def expect(
    belief: Belief, additive: float, level: Level, runs: Mapping[int, Measured], scatter_points: float
) -> Expected:
    """Return what to expect of every way of a belief, given runs of some, by number, or of LAST and FULL.

    additive: standard deviation of h, in logits. scatter_points: of one run's accuracy, where no run was repeated.
    """
    count = len(belief.mean)
    ways = [*range(count), LAST, FULL]
    last, gap, recovery, own = 0, 1, slice(2, 2 + count), slice(2 + count, 2 + 2 * count)
    prior = np.concatenate(([level.last, level.gap], belief.mean, np.zeros(count)))
    spread = np.zeros((len(prior), len(prior)))
    spread[last, last], spread[gap, gap] = level.last_deviation**2, level.gap_deviation**2
    spread[recovery, recovery] = belief.covariance
    spread[own, own] = additive**2 * np.eye(count)

    def observe(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logit of every way, and how it moves with the state."""
        slopes = np.zeros((len(ways), len(prior)))
        slopes[:, last] = 1.0
        numbers = np.arange(count)
        slopes[:count, gap] = state[recovery]
        slopes[numbers, 2 + numbers] = state[gap]
        slopes[numbers, 2 + count + numbers] = 1.0
        slopes[-1, gap] = 1.0
        values = state[last] + np.concatenate((state[gap] * state[recovery] + state[own], [0.0, state[gap]]))
        return values, slopes

    seen = [ways.index(number) for number in runs]
    measured = np.array([float(logit(each.accuracy.value)) for each in runs.values()])
    noise = _noise(list(runs.values()), scatter_points)
    state, after = prior, spread
    for _ in range(_STEPS if seen else 1):
        values, slopes = observe(state)
        if seen:
            some = slopes[seen]
            gain = np.linalg.solve(some @ spread @ some.T + noise, some @ spread).T
            state = prior + gain @ (measured - values[seen] - some @ (prior - state))
            after = spread - gain @ some @ spread
    values, slopes = observe(state)
    return Expected(
        values,
        slopes @ after @ slopes.T + _NARROW_LOGITS**2 * np.eye(len(ways)),
        (float(state[last]), float(np.sqrt(after[last, last]))),
        (float(state[gap]), float(np.sqrt(after[gap, gap]))),
    )


def _noise(runs: Sequence[Measured], scatter_points: float) -> np.ndarray:
    """Return the covariance of the errors of what was measured, in logits.

    The runs scatter independently. The errors of the test images are common to runs on the same images as far as it is
    known which of these were right; where that is not known, half of it is common (`observations.PAIRED_SHARE`).
    """
    slopes = np.array([float(per_point(each.accuracy.value)) for each in runs])
    scatter = np.array([
        each.scatter if each.deviation is not None else scatter_points / np.sqrt(each.runs) for each in runs
    ])  # fmt: skip
    sampling = np.array([each.sampling for each in runs])
    points = np.diag(scatter**2 + PAIRED_SHARE * sampling**2) + (1 - PAIRED_SHARE) * np.outer(sampling, sampling)
    outcomes = [each.correct for each in runs]
    if all(each is not None for each in outcomes) and len({len(each) for each in outcomes if each is not None}) == 1:
        table = 100 * np.array(outcomes)
        points = np.diag(scatter**2) + np.atleast_2d(np.cov(table, ddof=0)) / table.shape[1]
    return points * slopes[:, None] * slopes + _NARROW_LOGITS**2 * np.eye(len(runs))
