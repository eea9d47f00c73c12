"""How two candidates are compared by what is expected of them: who ties, who may win.

Two candidates tie if each one's value lies in the other's interval: then which is more accurate is not known. Two
estimates of the same origin (one curve, one table and network) share their error, so their order is trusted. Of what
was measured on the user's data more is known: two measured ones tie if their difference is within its standard error.
An unmeasured candidate ties with a measured one that promises more only if the gap is within the measured one's
standard error: that little is known of it is no reason to take it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..estimates.intervals import Difference
from ..estimates.runs import Measured, difference
from .candidate import Candidate

TIE = 1e-9


@dataclass(frozen=True)
class Scale:
    """How candidates are compared: by 'accuracy' in percent, or by 'recovery'."""

    name: str

    def value(self, candidate: Candidate) -> float:
        """Return what is expected; below every known value if it is unknown."""
        guess = candidate.recovery
        value = guess.accuracy_percent if self.name == "accuracy" else guess.value
        return -np.inf if value is None else value

    def interval(self, candidate: Candidate) -> tuple[float, float]:
        """Return the ends of the interval; of an unknown one no number."""
        guess = candidate.recovery
        if not self.knows(candidate):
            return np.nan, np.nan
        ends = guess.low, guess.high
        if self.name == "accuracy":
            ends = guess.accuracy_low_percent, guess.accuracy_high_percent
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
        if self.name == "accuracy":
            return f"{value:.1f} %"
        return ">0.999" if 0.9995 <= value < 1 - TIE else f"{value:.3f}"

    def gain(self, more: Candidate, less: Candidate) -> str:
        """Return how much more one promises than the other."""
        difference = self.value(more) - self.value(less)
        return f"{difference:+.1f} points" if self.name == "accuracy" else f"{difference:+.3f} of recovery"

    def kind(self, candidate: Candidate) -> str:
        """Return what the value is: measured, interpolated, prior ..."""
        guess = candidate.recovery
        return guess.accuracy_kind if self.name == "accuracy" else guess.kind

    def runs(self, candidate: Candidate) -> Measured | None:
        """Return the user's own whole runs of the candidate, if the scale is that of what they measured."""
        found = candidate.recovery.runs if self.name == "accuracy" else None
        return found if found and not found.stopped else None

    def difference(self, one: Candidate, other: Candidate) -> Difference | None:
        """Return how much more accurate one was than the other; None unless both were measured."""
        ours, theirs = self.runs(one), self.runs(other)
        return difference(ours, theirs) if ours and theirs else None

    def tied(self, candidate: Candidate, top: Candidate) -> bool:
        """Whether a candidate counts as equally accurate as the most promising one."""
        value, most = self.value(candidate), self.value(top)
        if most - value <= TIE or most == value:
            return True
        if not (self.knows(candidate) and self.knows(top)):
            return False
        if measured := self.difference(top, candidate):
            return measured.is_tie
        if measured := self.runs(top):
            return most - value <= measured.standard_error
        origins = {(each.model, each.recovery.source, self.kind(each)) for each in (candidate, top)}
        if len(origins) == 1 and self.kind(top) == "prior":
            return False
        (low, high), (least, best_case) = self.interval(candidate), self.interval(top)
        return least <= value <= best_case and low <= most <= high

    def may_win(self, rival: Candidate, chosen: Candidate) -> bool:
        """Whether a rival could be more accurate than the pick."""
        if not (self.knows(rival) and self.knows(chosen)):
            return self.knows(rival)
        if measured := self.difference(rival, chosen):
            return measured.value > 0 or measured.is_open
        return self.interval(rival)[1] >= self.interval(chosen)[0]


def scale_of(priced: Iterable[Candidate]) -> Scale:
    """Return the scale on which candidates can be compared."""
    known = [candidate.recovery for candidate in priced if candidate.recovery.value is not None]
    return Scale("accuracy" if known and all(guess.accuracy_percent is not None for guess in known) else "recovery")
