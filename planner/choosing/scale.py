"""How two candidates are compared by what is expected of them: in points, with what their estimates have in common.

What is expected of ways on one data set is known together (`estimates.anchored`): two that resemble each other move
together, so that a difference has an error of its own, mostly smaller than theirs. A candidate that is expected to
reach at most TOLERANCE less than the best is as good, and the cheaper one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..estimates.backbones import NETWORK_DEVIATION
from ..estimates.estimated import Estimate
from ..estimates.intervals import Z95, Difference
from ..estimates.logits import per_point
from ..estimates.setting import LEAST_IMAGES
from .candidate import Candidate

TIE = 1e-9
# Points of accuracy that nobody would pay memory for. Assumption: half of what one run scatters (0.3 to 1.3 points;
# `estimates.observations`).
TOLERANCE = 0.25


@dataclass(frozen=True)
class Scale:
    """How candidates are compared.

    name: 'accuracy', on the user's data; 'recovery', of one network at one resolution; 'typical', between networks, the
    accuracy on a typical data set as their accuracy on ImageNet leads to expect.
    """

    name: str

    def value(self, candidate: Candidate) -> float:
        """Return what is expected; below every known value if it is unknown."""
        guess = candidate.recovery
        value = guess.value if self.name == "recovery" else self.percent(candidate)
        return -np.inf if value is None else value

    def percent(self, candidate: Candidate) -> float | None:
        """Return the accuracy that candidates are compared by, in percent; None if it is unknown."""
        guess = candidate.recovery
        return guess.typical_percent if self.name == "typical" else guess.expected_percent

    def interval(self, candidate: Candidate) -> tuple[float, float]:
        """Return the ends of the interval; of an unknown one no number."""
        guess = candidate.recovery
        if not self.knows(candidate):
            return np.nan, np.nan
        ends = guess.low, guess.high
        if self.name == "accuracy":
            ends = guess.accuracy_low_percent, guess.accuracy_high_percent
        elif self.name == "typical":
            value, half = self.value(candidate), Z95 * _error(guess, self.value(candidate))
            ends = max(value - half, 0.0), min(value + half, 100.0)
        low, high = ends
        assert low is not None and high is not None  # what is known has an interval
        return low, high

    def knows(self, candidate: Candidate) -> bool:
        """Whether the candidate's value is known."""
        return self.value(candidate) > -np.inf

    def text(self, value: float) -> str:
        """Return a value as text; a recovery below 1 never reads as 1."""
        if value == -np.inf:
            return "unknown"
        if self.name != "recovery":
            return f"{value:.1f} %"
        return ">0.999" if 0.9995 <= value < 1 - TIE else f"{value:.3f}"

    def gain(self, more: Candidate, less: Candidate) -> str:
        """Return how much more is expected of one than of the other."""
        difference = self.value(more) - self.value(less)
        return f"{difference:+.3f} of recovery" if self.name == "recovery" else f"{difference:+.1f} points"

    def kind(self, candidate: Candidate) -> str:
        """Return what the value is: measured, interpolated, prior ..."""
        guess = candidate.recovery
        return guess.accuracy_kind if self.name == "accuracy" else guess.kind

    def difference(self, one: Candidate, other: Candidate) -> Difference | None:
        """Return by how many points one is expected above the other; None if one is unknown."""
        ours, theirs = self.percent(one), self.percent(other)
        if ours is None or theirs is None:
            return None
        a, b = one.recovery.believed, other.recovery.believed
        if a is not None and b is not None and a.expected is b.expected:
            error = a.expected.difference(a.number, b.number)[1]
        else:
            error = math.hypot(_error(one.recovery, ours), _error(other.recovery, theirs))
        return Difference(ours - theirs, error, Z95 * error)

    def tied(self, candidate: Candidate, top: Candidate) -> bool:
        """Whether a candidate counts as as accurate as the best one."""
        if self.value(candidate) == self.value(top):
            return True
        ours, most = self.percent(candidate), self.percent(top)
        return ours is not None and most is not None and most - ours <= TOLERANCE

    def may_win(self, rival: Candidate, chosen: Candidate) -> bool:
        """Whether a rival could be more accurate than the pick."""
        return self.reach(rival, chosen) > TOLERANCE

    def reach(self, rival: Candidate, chosen: Candidate) -> float:
        """Return by how many points a rival could be above the pick: the upper end of the 90 % interval."""
        found = self.difference(rival, chosen)
        if found is None:
            return np.inf if self.knows(rival) and not self.knows(chosen) else -np.inf
        return found.value + found.half


def _error(guess: Estimate, percent: float) -> float:
    """Return the standard error of an expected accuracy, in points; of one network about what its top-1 says, too."""
    if guess.believed is None:
        known = guess.known_accuracy
        return 0.0 if known is None else (known.high - known.low) / (2 * Z95)
    expected, number = guess.believed.expected, guess.believed.number
    return math.hypot(expected.deviation(number), NETWORK_DEVIATION) / float(per_point(percent))


def scale_of(priced: Iterable[Candidate]) -> Scale:
    """Return the scale on which candidates can be compared."""
    known = [candidate for candidate in priced if candidate.recovery.expected_percent is not None]
    if known and all(candidate.recovery.accuracy_percent is not None for candidate in known):
        return Scale("accuracy")
    places = {(candidate.model, candidate.resolution) for candidate in known}
    ranked = any(candidate.recovery.typical_percent is not None for candidate in known)
    return Scale("typical" if len(places) > 1 and ranked else "recovery")


def is_observed(candidate: Candidate) -> bool:
    """Whether accuracies were observed with such batches, by others or by the user."""
    return candidate.batch >= LEAST_IMAGES or candidate.recovery.accuracy_percent is not None
