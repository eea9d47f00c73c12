"""What an estimate of the accuracy is."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from .anchored import Expected
from .intervals import Interval

Kind = Literal["definition", "measured", "interpolated", "prior", "unknown"]


@dataclass(frozen=True)
class Believed:
    """Where a way stands in what is expected of all ways on the user's data: what differences are computed from."""

    expected: Expected
    number: int


@dataclass(frozen=True)
class Estimate:
    """An expected recovery, and the accuracy if there are measurements of the user's own to tell it from.

    `value`, `low` and `high` are None if `kind` is 'unknown'. `source`: where the numbers come from. `rests_on`: in a
    sentence, what leads from there to this value. `interval`: what low and high mean. The `accuracy_` fields say the
    same of the top-1 accuracy on the user's data set, in percent. `typical_percent`: the accuracy on a typical
    published data set, by which networks are compared; None where the network's accuracy on ImageNet is not known.
    `expected_percent`: what the runs of all ways together say of this one, which candidates are compared by; for a way
    that was measured it lies between what was measured and what the others lead to expect, and without runs it is that
    on a typical data set. `believed`: where the way stands among all that were asked for.
    """

    value: float | None
    low: float | None
    high: float | None
    kind: Kind
    source: str
    rests_on: str
    interval: str
    accuracy_percent: float | None = None
    accuracy_low_percent: float | None = None
    accuracy_high_percent: float | None = None
    accuracy_kind: Kind = "unknown"
    accuracy_rests_on: str = "no accuracy on your data was given"
    accuracy_interval: str = "none"
    typical_percent: float | None = None
    expected_percent: float | None = None
    believed: Believed | None = field(default=None, repr=False, compare=False)

    @property
    def known(self) -> Interval | None:
        """The recovery and where it lies; None if it is unknown."""
        return _interval(self.value, self.low, self.high)

    @property
    def known_accuracy(self) -> Interval | None:
        """The accuracy in percent and where it lies; None if it is unknown."""
        return _interval(self.accuracy_percent, self.accuracy_low_percent, self.accuracy_high_percent)

    @classmethod
    def unknown(cls, reason: str) -> Estimate:
        """Return the estimate of what has no basis."""
        return cls(None, None, None, "unknown", "", reason, "none")

    @classmethod
    def reported(cls) -> tuple[str, ...]:
        """Return the names of the fields that are plain values."""
        return tuple(field.name for field in fields(cls) if field.name != "believed")

    def to_dict(self) -> dict:
        """Return the plain values by name."""
        return {name: getattr(self, name) for name in self.reported()}


def _interval(value: float | None, low: float | None, high: float | None) -> Interval | None:
    return None if value is None or low is None or high is None else Interval(value, low, high)
