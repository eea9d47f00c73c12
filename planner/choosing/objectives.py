"""What a candidate is judged by: each a number of it, how it is written, and whether less or more is better.

A limit on one is a most (or a least, where more is better). A candidate whose number is unknown fails any limit on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodel.errors import InputError
from costmodel.table import Table
from costmodel.units import format_bytes, format_count, format_seconds

from .candidate import Candidate
from .pareto import non_dominated

DEFAULT = ("memory", "flops", "recovery")


@dataclass(frozen=True)
class Objective:
    """value(candidate): the number, NaN if it is not known. text: the number for people. more_is_better: accuracy."""

    name: str
    summary: str
    value: Callable[[Candidate], float]
    text: Callable[[float], str]
    more_is_better: bool = False

    def cost(self, candidate: Candidate) -> float:
        """Return what is to be as low as can be."""
        value = self.value(candidate)
        return -value if self.more_is_better else value

    def keeps(self, candidate: Candidate, limit: float) -> bool:
        """Whether the candidate is within the limit."""
        value = self.value(candidate)
        return value >= limit if self.more_is_better else value <= limit


def _number(value: float | None) -> float:
    return math.nan if value is None else value


OBJECTIVES: Table[Objective] = Table("objective", (
    (objective.name, objective)
    for objective in (
        Objective("memory", "peak memory of a step", lambda c: c.peak_bytes, format_bytes),
        Objective(
            "flops", "FLOPs of a step per image", lambda c: c.total_flops / c.batch, lambda n: f"{format_count(n)}FLOPs"
        ),
        Objective(
            "time", "roofline time of an epoch, per image", lambda c: _number(c.step_seconds) / c.batch, format_seconds
        ),
        Objective(
            "storage",
            "cache of the frozen layers' outputs, per image",
            lambda c: c.cache.bytes_per_image if c.cache else 0,
            format_bytes,
        ),
        Objective("flash", "weights and buffers as they are stored", lambda c: c.flash_bytes, format_bytes),
        Objective("recovery", "expected recovery", lambda c: _number(c.recovery.value), lambda n: f"{n:.3f}", True),
        Objective(
            "accuracy",
            "expected accuracy in percent",
            lambda c: _number(c.recovery.accuracy_percent),
            lambda n: f"{n:.3g} %",
            True,
        ),
        Objective(
            "typical",
            "expected accuracy on a typical data set in percent, by which networks are compared",
            lambda c: _number(c.recovery.typical_percent),
            lambda n: f"{n:.3g} %",
            True,
        ),
    )
))  # fmt: skip


def check_limits(limits: Mapping[str, float]) -> dict[str, float]:
    """Return limits by objective.

    Errors: InputError for an unknown objective or a limit that is not a positive number (0 is one for an accuracy).
    """
    for name, limit in limits.items():
        found = OBJECTIVES.find(name)
        is_number = isinstance(limit, int | float) and not isinstance(limit, bool) and math.isfinite(limit)
        if not is_number or limit < 0 or (limit == 0 and not found.more_is_better):
            raise InputError(f"the limit on {name} ({found.summary}) must be a positive number, not {limit!r}")
    return dict(limits)


def keeps(candidate: Candidate, limits: Mapping[str, float]) -> bool:
    """Whether a candidate is within every limit."""
    return all(OBJECTIVES[name].keeps(candidate, limit) for name, limit in limits.items())


def frontier(priced: Sequence[Candidate], names: Sequence[str] = DEFAULT) -> list[Candidate]:
    """Return the candidates that no other one is better than in one objective and at least as good in all.

    Those with an unknown number are left out. Errors: InputError for an unknown objective, or for none.
    """
    chosen = [OBJECTIVES.find(name) for name in names]
    if not chosen:
        raise InputError(f"no objective was given; name one or more of {', '.join(OBJECTIVES)}")
    costs = np.array([[each.cost(candidate) for each in chosen] for candidate in priced], float).reshape(
        -1, len(chosen)
    )
    return [candidate for candidate, on in zip(priced, non_dominated(costs), strict=True) if on]
