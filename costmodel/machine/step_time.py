"""How long a step takes on a machine: a model that was fitted there, with an error that networks left out of it tell.

    seconds = sum over features (time of one FLOP, byte or call of that kind) x (their count)

The times are not negative (non-negative least squares of relative errors, scipy.optimize.nnls). A predicted time holds
for steps of the same allocator and number of threads, while nothing else runs; its interval is that of 90 % of the
steps of networks that the fit had not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..errors import InputError, missing_package
from ..step.step import Step
from ..units import counted, format_seconds
from .work import FEATURES, Vector, work

_NAMES = [" ".join(filter(None, feature)) for feature in FEATURES]
SHARE = 0.9  # of the left-out steps that the interval holds


@dataclass(frozen=True)
class Seconds:
    """A predicted time, or why there is none.

    kind: 'calibrated' (value, with low and high, which 90 % of left-out steps kept), 'lower bound' (roofline: value
    alone), 'would swap' (no value: the step exceeds the memory), 'unknown'. basis: what it rests on.
    """

    kind: Literal["calibrated", "lower bound", "would swap", "unknown"]
    value: float | None
    low: float | None
    high: float | None
    basis: str

    @classmethod
    def would_swap(cls, basis: str) -> Seconds:
        """Return the answer for a step that exceeds the memory, which basis explains."""
        return cls("would swap", None, None, None, basis)

    @classmethod
    def unknown(cls, basis: str) -> Seconds:
        """Return the answer where nothing is known; basis: why."""
        return cls("unknown", None, None, None, basis)

    @classmethod
    def at_least(cls, value: float, basis: str) -> Seconds:
        """Return a lower bound."""
        return cls("lower bound", value, None, None, basis)

    def times(self, count: float) -> Seconds:
        """Return the time of so many steps."""
        value, low, high = (each and each * count for each in (self.value, self.low, self.high))
        return replace(self, value=value, low=low, high=high)

    @property
    def text(self) -> str:
        """The time for people."""
        if self.value is None:
            return f"{self.kind}: {self.basis}"
        if self.low is None or self.high is None:
            return f"{format_seconds(self.value)} or more ({self.basis})"
        return f"{format_seconds(self.value)} ({format_seconds(self.low)} to {format_seconds(self.high)}); {self.basis}"


@dataclass(frozen=True)
class Sample:
    """A step that was timed. network: what it is left out by. counts: its work."""

    network: str
    what: str
    counts: Vector
    seconds: float


@dataclass(frozen=True)
class StepTime:
    """Times of one FLOP, byte or call by feature, in seconds, fitted on one machine.

    coefficients: [features], not negative. spread: of the logarithm of predicted to measured, which 90 % of left-out
    steps kept within; median_error, worst_error: relative, of left-out steps. allocator, threads: that they hold for.
    basis: what was timed, and where.
    """

    coefficients: tuple[float, ...]
    spread: float
    median_error: float
    worst_error: float
    allocator: str
    threads: int
    basis: str

    @classmethod
    def from_features(cls, seconds: Mapping[str, float], **more: Any) -> StepTime:
        """Return the model of `by_feature`'s times; more: the other fields.

        Errors: InputError for a feature that does not exist.
        """
        if strange := sorted(seconds.keys() - {*_NAMES}):
            raise InputError(f"unknown feature {strange[0]!r} of a step's time; allowed: {', '.join(_NAMES)}")
        return cls(tuple(float(seconds.get(name, 0)) for name in _NAMES), **more)

    def predict(self, step: Step) -> Seconds:
        """Return the time of one update by a step, with an interval and what it rests on."""
        value = float(work(step) @ np.array(self.coefficients))
        wide = math.exp(self.spread)
        return Seconds("calibrated", value, value / wide, value * wide, self.basis)

    def by_feature(self) -> dict[str, float]:
        """Return the fitted times by feature, such as 'forward pointwise flops', those that are not zero."""
        return {name: value for name, value in zip(_NAMES, self.coefficients, strict=True) if value}


def fit(samples: Sequence[Sample], allocator: str, threads: int, basis: str) -> StepTime:
    """Return the model of samples, with the error on networks that are left out one by one.

    Errors: MissingPackageError without scipy.
    """
    left_out = leave_networks_out(samples)
    wrong = np.array([math.log(predicted / sample.seconds) for sample, predicted in left_out])
    relative = np.abs(np.expm1(wrong))
    count = len({sample.network for sample in samples})
    median, worst = float(np.median(relative)), float(relative.max())
    timed = f"{counted(len(samples), 'step')} of {counted(count, 'network')}"
    said = f"{basis}; {timed}; on networks left out the median error is {median:.0%}"
    spread = float(np.quantile(np.abs(wrong), SHARE))
    return StepTime(tuple(_solve(samples).tolist()), spread, median, worst, allocator, threads, said)


def leave_networks_out(samples: Sequence[Sample]) -> list[tuple[Sample, float]]:
    """Return each sample with the time that the model fitted to the other networks predicts."""
    found = []
    for network in dict.fromkeys(sample.network for sample in samples):
        coefficients = _solve([sample for sample in samples if sample.network != network])
        mine = [sample for sample in samples if sample.network == network]
        found += [(sample, max(float(sample.counts @ coefficients), 1e-9)) for sample in mine]
    return found


def _solve(samples: Sequence[Sample]) -> Vector:
    """Return the times that come nearest to the samples, each error taken relative to the sample's time."""
    try:
        from scipy.optimize import nnls
    except ModuleNotFoundError as error:
        raise missing_package(error, "fitting step times") or error from error

    rows = np.array([sample.counts / sample.seconds for sample in samples])
    scale = np.maximum(rows.max(axis=0), 1e-30)
    found, _ = nnls(rows / scale, np.ones(len(rows)))
    return found / scale
