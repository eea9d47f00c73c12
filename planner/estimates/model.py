"""A hierarchical model of recoveries: what is common to all evidence, and how far networks, data sets and cells differ.

For a way w in a cell c (a network on a data set) with g_c the logit of full less that of last:

    logit(w) - logit(last) = g_c r + e
    r = x_w b + z_w (network + data set + cell + method in its regime) + own

x_w: the terms of the way (`terms.py`), with coefficients b that all share, each with a weak prior. z_w: a deviation of
the cell acts on ways with a depth by their shortfall, so that it vanishes where everything trains, and on ways without
by 1; those of a network, a data set, and a method in a regime (few images per class, or many) alike. e: what is
independent of the gap, and the errors of the measurement. All deviations are Gaussian with mean 0; their standard
deviations are COMPONENTS, fitted by maximum likelihood with b integrated out (`fitting.py`) and kept in a file. Given
these, everything is a closed form: generalised least squares for b, and the best linear prediction for the rest
(Searle, Casella, McCulloch: Variance Components, 1992, chapter 7). Nothing is divided by a gap, so that cells where
full is hardly above last count little.

A network or data set that evidence knows takes its deviation along; one that it does not know gets the whole variance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np

from costmodel import METHODS

from ..evidence.rows import Row, observed
from .observations import gaps, observations
from .terms import Terms, prior

COMPONENTS_FILE = files("planner.estimates") / "components.json"


@dataclass(frozen=True)
class Components:
    """Standard deviations of the deviations, as parts of the way from last to full; the last three in logits.

    cell_depth, cell_flat: of a cell, for ways with a depth and for those without. network, data_set: of all ways of
    one. method: of a method in a regime. own: of one way in one cell. full_data, few_shot: independent of the gap.
    """

    cell_depth: float
    cell_flat: float
    network: float
    data_set: float
    method: float
    own: float
    full_data: float
    few_shot: float

    def additive(self, few_shot: bool) -> float:
        """Return the part that does not depend on the gap, in logits."""
        return self.few_shot if few_shot else self.full_data


@cache
def components() -> Components:
    """Return the fitted standard deviations that come with the package."""
    return Components(**json.loads(Path(str(COMPONENTS_FILE)).read_text(encoding="utf-8"))["components"])


@dataclass(frozen=True)
class Place:
    """Where a way is trained; the evidence may know the network (without its library), or the data set."""

    network: str
    data_set: str
    few_shot: bool


@dataclass(frozen=True)
class Belief:
    """What is expected of several ways' recoveries in one new cell: mean, and covariance."""

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation of each."""
        return np.sqrt(np.diag(self.covariance))


@dataclass(frozen=True)
class Typical:
    """The logit of last, and the gap to full, of a typical cell: their means, and their deviations over cells."""

    last: float
    gap: float
    last_deviation: float
    gap_deviation: float


class Model:
    """The model, fitted to rows of evidence. Networks are told apart by their names without their libraries."""

    def __init__(self, rows: Sequence[Row], standard_deviations: Components):
        self.rows = tuple(rows)
        self.seen = observations(rows)
        self.components = standard_deviations

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        """The names of the coefficients that the evidence tells."""
        return tuple(sorted({name for each in self.seen for name, _ in each.terms.coefficients}))

    def knows(self, terms: Terms) -> bool:
        """Whether the evidence tells every coefficient of a way."""
        return all(name in self.coefficients for name, _ in terms.coefficients)

    def rows_of(self, family: str) -> list[Row]:
        """Return the rows of a method that tell something of its recovery."""
        return self._rows.get(family, [])

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        families = {(each.cell, each.way): each.terms.family for each in self.seen}
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if family := families.get((row.cell, row.way)):
                found.setdefault(family, []).append(row)
        return found

    def typical(self, few_shot: bool) -> Typical:
        """Return what last and full come to in a typical cell of a regime."""
        return self._typical[few_shot]

    @cached_property
    def _typical(self) -> dict[bool, Typical]:
        found = {}
        every = gaps(self.rows)
        for few_shot in (False, True):
            own = np.array([pair for cell, pair in every.items() if cell.few_shot == few_shot] or list(every.values()))
            found[few_shot] = Typical(*own.mean(axis=0).tolist(), *own.std(axis=0, ddof=1).tolist())
        return found

    @cached_property
    def _gap(self) -> np.ndarray:
        return np.array([each.gap for each in self.seen])

    @cached_property
    def _places(self) -> list[Place]:
        return [Place(each.cell.model.rpartition(":")[2], each.cell.dataset, each.cell.few_shot) for each in self.seen]

    @cached_property
    def _priors(self) -> tuple[np.ndarray, np.ndarray]:
        """What is expected of b before the evidence, and how surely: means, and inverse variances."""
        means, deviations = np.array([prior(name) for name in self.coefficients]).T
        return means, deviations**-2.0

    def _design(self, terms: Sequence[Terms]) -> np.ndarray:
        """Return the coefficients' values: [ways, coefficients]."""
        at = {name: number for number, name in enumerate(self.coefficients)}
        design = np.zeros((len(terms), len(at)))
        for row, each in zip(design, terms, strict=True):
            for name, value in each.coefficients:
                row[at[name]] += value
        return design

    @cached_property
    def _solved(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Inverse of the observations' covariance, weights of what is left over, design, b and its covariance."""
        own = [each.terms for each in self.seen]
        place = self._places
        cell = _codes([each.cell for each in self.seen])
        covariance = (
            self._gap[:, None]
            * self._gap
            * (self._deviations(own, place, own, place) + (cell[:, None] == cell) * self._of_cell(own, own))
        )
        parts, gap = self.components, self._gap
        additive = np.array([parts.additive(each.cell.few_shot) for each in self.seen])
        noise = np.array([each.variance for each in self.seen])
        covariance[np.diag_indices_from(covariance)] += (parts.own * gap) ** 2 + additive**2 + noise
        inverse = np.linalg.inv(covariance)
        design = gap[:, None] * self._design(own)
        offset = np.array([each.offset for each in own])
        response = np.array([each.above_last for each in self.seen]) - gap * offset
        before, precision = self._priors
        spread = np.linalg.inv(design.T @ inverse @ design + np.diag(precision))
        b = spread @ (design.T @ (inverse @ response) + precision * before)
        return inverse, inverse @ (response - design @ b), design, b, spread

    def _deviations(
        self, one: Sequence[Terms], here: Sequence[Place], other: Sequence[Terms], there: Sequence[Place]
    ) -> np.ndarray:
        """Return the covariance that two lists of ways share by network, data set and method: [one, other]."""
        parts = self.components
        z, w = (np.array([each.shortfall for each in terms]) for terms in (one, other))

        def alike(kind: Callable[[Terms, Place], object]) -> np.ndarray:
            keys = [kind(*each) for each in zip((*one, *other), (*here, *there), strict=True)]
            codes = _codes(keys)
            return codes[: len(one), None] == codes[len(one) :]

        shared = parts.network**2 * alike(lambda _, place: place.network)
        shared = shared + parts.data_set**2 * alike(lambda _, place: (place.few_shot, place.data_set))
        shared = shared + parts.method**2 * alike(
            lambda each, place: (place.few_shot, "depth" if each.has_depth else each.family)
        )
        return z[:, None] * w * shared

    def _of_cell(self, one: Sequence[Terms], other: Sequence[Terms]) -> np.ndarray:
        """Return the covariance that two lists of ways have if they are of one cell."""
        depth, flat = (
            [np.array([each.shortfall * (each.has_depth is kind) for each in terms]) for terms in (one, other)]
            for kind in (True, False)
        )
        parts = self.components
        return parts.cell_depth**2 * np.outer(*depth) + parts.cell_flat**2 * np.outer(*flat)

    def belief(self, ways: Sequence[Terms], place: Place) -> Belief:
        """Return what to expect of ways, which `knows` all, in a new cell.

        Of the deviations independent of the gap, which are not of the recovery, nothing is in it.
        """
        inverse, weights, design, b, spread = self._solved
        there = self._places
        mine = [place] * len(ways)
        shared = self._gap * self._deviations(ways, mine, [each.terms for each in self.seen], there)
        own = self._design(ways)
        mean = np.array([each.offset for each in ways]) + own @ b + shared @ weights
        left = own - shared @ inverse @ design
        covariance = self._deviations(ways, mine, ways, mine) + self._of_cell(ways, ways)
        covariance = covariance - shared @ inverse @ shared.T + left @ spread @ left.T
        covariance += np.diag([self.components.own**2 * (each.shortfall > 0) for each in ways])
        return Belief(mean, covariance)

    def likelihood(self) -> float:
        """Return the log-likelihood of the components, b integrated out, but for a constant."""
        inverse, weights, _, b, spread = self._solved
        before, precision = self._priors
        response = np.linalg.solve(inverse, weights)  # what b leaves over
        sign = np.linalg.slogdet(inverse)[1] + np.linalg.slogdet(spread)[1]
        return 0.5 * (sign - float(response @ weights) - float(precision @ (b - before) ** 2))


def _codes(keys: Sequence[object]) -> np.ndarray:
    """Return a number for each key, the same for equal ones."""
    codes = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([codes[key] for key in keys])


@cache
def published_model() -> Model:
    """Return the model of all evidence that comes with the package."""
    return Model(observed(), components())


@cache
def model_of(rows: tuple[Row, ...]) -> Model:
    """Return the model of some rows, with the components that come with the package."""
    return Model(rows, components())


@cache
def model_with(model: Model, rows: tuple[Row, ...]) -> Model:
    """Return a model that knows further rows."""
    return Model((*model.rows, *rows), model.components)


def family_of(method: str) -> tuple[str, ...]:
    """Return the methods whose evidence stands for a method: its own, then that of a relative."""
    found = METHODS.get(method)
    return (method,) if found is None or not found.evidence else (method, found.evidence)
