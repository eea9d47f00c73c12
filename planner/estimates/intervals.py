"""90 % intervals: of a further value, of a share, and of what is computed from several uncertain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

# Source: Student's t, 95th percentile, for 1 to 10 degrees of freedom; beyond that the last is kept, which is wider.
_T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)
Z95 = 1.645  # Source: the normal distribution, 95th percentile


@dataclass(frozen=True)
class Interval:
    """A value that lies between `low` and `high` with a probability of 90 %; all three are equal if it is exact."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Interval:
        """Return the interval of a number that is certain."""
        return cls(value, value, value)

    @property
    def ends(self) -> tuple[float, float]:
        """Return low and high."""
        return self.low, self.high

    def within(self, least: float, most: float) -> Interval:
        """Return the interval with every part moved into the bounds."""
        return Interval(*(min(max(part, least), most) for part in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class Difference:
    """By how much one value is above another: what is expected, its standard error, and half its 90 % interval."""

    value: float
    standard_error: float
    half: float

    @property
    def is_open(self) -> bool:
        """Whether the 90 % interval holds 0: which of the two is higher is not known."""
        return abs(self.value) <= self.half


def student_t(freedom: int) -> float:
    """Return the 95th percentile of Student's t for 1 or more degrees of freedom."""
    return _T95[min(freedom, len(_T95)) - 1]


def further_value(values: Sequence[float], extra_variance: float = 0.0) -> Interval:
    """Return the mean of 2 or more values and where a further one lies: mean +- t sqrt(s^2 (1 + 1/n) + extra)."""
    n, mean = len(values), fmean(values)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    half = student_t(n - 1) * math.sqrt(variance * (1 + 1 / n) + extra_variance)
    return Interval(mean, mean - half, mean + half)


def share(percent: float, count: int) -> Interval:
    """Return a share, measured on `count` images, with its sampling error.

    Source: Wilson's score interval (E. B. Wilson, 1927, Journal of the American Statistical Association 22).
    """
    p, z2 = percent / 100, Z95**2
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    return Interval(percent, min(percent, 100 * (middle - half)), max(percent, 100 * (middle + half)))


def combine(compute: Callable[..., float], *numbers: Interval) -> Interval:
    """Return what is computed from uncertain numbers, with the errors of all.

    Each number is moved to its low and high while the others stay; what that changes is added in squares, downward and
    upward apart. Assumption: the errors are independent of each other.
    """
    values = [number.value for number in numbers]
    result = compute(*values)
    down = up = 0.0
    for index, number in enumerate(numbers):
        ends = [compute(*values[:index], end, *values[index + 1 :]) - result for end in (number.low, number.high)]
        down += min(0.0, *ends) ** 2
        up += max(0.0, *ends) ** 2
    return Interval(result, result - math.sqrt(down), result + math.sqrt(up))
