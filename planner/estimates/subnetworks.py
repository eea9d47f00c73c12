"""The accuracy of sub-networks of an elastic super-network, from that of some hundred: a sum of what each block adds.

    logit accuracy[s] = c + sum over the blocks b of s of  there[b] + kernel[b, k of b] + expansion[b, e of b]

fitted by ridge regression; the penalty is the one with the least error when each observation is left out in turn
(generalised cross-validation: Golub, Heath, Wahba, Technometrics 21, 1979). Of logits, since the best sub-network is
expected to be better than all that were measured, and a sum in percent would go beyond 100. A sum is less than a neural
network could say, which TinyTL and once-for-all fit; in return the best sub-network within a budget is found exactly.
How far it is off is measured on sub-networks that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas

from costmodel import Design, Subnetwork
from costmodel.graph.elastic import EXPANSIONS, KERNELS

from .intervals import Z95
from .logits import logit, percent

FOLDS = 10
LEAST = 20  # Assumption: fewer observations tell nothing of a hundred numbers
_PENALTIES = np.logspace(-2, 4, 25)


@dataclass(frozen=True)
class Quality:
    """How good the predictions are, on observations that were not fitted to: FOLDS parts, each predicted by the rest.

    error_points: the mean absolute error; constant_error_points: that of always predicting the mean. rank_correlation:
    Spearman's. root_mean_square_points: of the errors; it contains the sampling error of the observations themselves.
    """

    observations: int
    error_points: float
    constant_error_points: float
    root_mean_square_points: float
    rank_correlation: float


@dataclass(frozen=True)
class SubnetworkAccuracy:
    """What every block adds to the accuracy, in logits.

    values: by (stage, place, kernel, expansion); constant: of the network without elastic blocks. quality: how far off.
    """

    design: Design
    constant: float
    values: dict[tuple[int, int, int, int], float]
    quality: Quality

    def percent(self, chosen: Subnetwork) -> float:
        """Return the expected accuracy in percent."""
        blocks = zip(self.design.places_of(chosen), chosen.kernels, chosen.expansions, strict=True)
        logits = self.constant + sum(self.values[*place, kernel, expansion] for place, kernel, expansion in blocks)
        return float(percent(logits))

    @cached_property
    def half_points(self) -> float:
        """Half the width of the 90 % interval of a prediction, in points."""
        return Z95 * self.quality.root_mean_square_points


def fit(design: Design, observed: Sequence[tuple[Subnetwork, float]]) -> SubnetworkAccuracy:
    """Return what blocks add, from sub-networks with their accuracies in percent.

    Errors: ValueError for fewer than LEAST observations.
    """
    if len(observed) < LEAST:
        raise ValueError(f"{len(observed)} sub-networks are too few to fit what blocks add; measure {LEAST} or more")
    names = _features(design)
    x = np.array([_row(design, names, chosen) for chosen, _ in observed])
    y = np.array([known for _, known in observed])
    constant, weights = _ridge(x, logit(y))
    parts = {name: float(weight) for name, weight in zip(names, weights, strict=True)}
    values = {
        (*place, k, e): parts[*place, "there", 0] + parts[*place, "k", k] + parts[*place, "e", e]
        for place in dict.fromkeys(name[:2] for name in names) for k in KERNELS for e in EXPANSIONS
    }  # fmt: skip
    return SubnetworkAccuracy(design, constant, values, _quality(x, y))


Feature = tuple[int, int, str, int]


def _features(design: Design) -> list[Feature]:
    places = [(stage, place) for stage, each in enumerate(design.stages) for place in range(each.most_blocks)]
    settings = [("there", 0), *(("k", k) for k in KERNELS), *(("e", e) for e in EXPANSIONS)]
    return [(*place, *setting) for place in places for setting in settings]


def _row(design: Design, names: Sequence[Feature], chosen: Subnetwork) -> list[float]:
    found = set()
    blocks = zip(design.places_of(chosen), chosen.kernels, chosen.expansions, strict=True)
    for place, kernel, expansion in blocks:
        found |= {(*place, "there", 0), (*place, "k", kernel), (*place, "e", expansion)}
    return [float(name in found) for name in names]


def _ridge(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the constant and the weights of a ridge regression, with the penalty that cross-validation likes best."""
    means = x.mean(axis=0)
    u, s, vt = np.linalg.svd(x - means, full_matrices=False)
    projected, residual = u.T @ (y - y.mean()), y - y.mean()
    best, weights = np.inf, np.zeros(x.shape[1])
    for penalty in _PENALTIES:
        shrunk = s**2 / (s**2 + penalty)
        left = residual - u @ (shrunk * projected)
        free = len(y) - 1 - shrunk.sum()
        if free > 0 and (score := float((left**2).sum()) / free**2) < best:
            best = score
            weights = vt.T @ (s / (s**2 + penalty) * projected)
    return float(y.mean() - means @ weights), weights


def _quality(x: np.ndarray, y: np.ndarray) -> Quality:
    order = np.random.default_rng(0).permutation(len(y))
    predicted, mean = np.empty(len(y)), np.empty(len(y))
    for part in np.array_split(order, FOLDS):
        rest = np.setdiff1d(order, part)
        constant, weights = _ridge(x[rest], logit(y[rest]))
        predicted[part], mean[part] = percent(constant + x[part] @ weights), y[rest].mean()
    ranks = [pandas.Series(each).rank().to_numpy() for each in (predicted, y)]
    told = all(np.ptp(each) for each in ranks)
    errors = predicted - y
    return Quality(
        len(y), float(np.abs(errors).mean()), float(np.abs(mean - y).mean()), float(np.sqrt((errors**2).mean())),
        float(np.corrcoef(ranks)[0, 1]) if told else 0.0,
    )  # fmt: skip
