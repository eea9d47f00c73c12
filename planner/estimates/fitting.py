"""Fits the standard deviations of the model of accuracies to the evidence, by maximum likelihood.

    python -m planner.estimates.fitting

writes `components.json`. To be run again when the evidence changes; a test compares the file with a fit of today.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from ..evidence.rows import Row, observed
from .model import COMPONENTS_FILE, Components, Model

_BOUNDS = (1e-3, 1.0)
# A weak prior on each standard deviation, log-normal about 0.1 with a factor of 10: without it those that the evidence
# hardly tells would end on the bounds. Assumption.
_PRIOR_MEAN, _PRIOR_DEVIATION = np.log(0.1), np.log(10)


def fit(rows: Sequence[Row]) -> Components:
    """Return the standard deviations that fit the rows best. Errors: ModuleNotFoundError without scipy."""
    from scipy.optimize import minimize

    names = [field.name for field in fields(Components)]

    def cost(logarithms: np.ndarray) -> float:
        model = Model(rows, Components(*np.exp(logarithms)))
        penalty = 0.5 * float((((logarithms - _PRIOR_MEAN) / _PRIOR_DEVIATION) ** 2).sum())
        return penalty - model.likelihood()

    start = np.full(len(names), _PRIOR_MEAN)
    found = minimize(cost, start, method="L-BFGS-B", bounds=[tuple(np.log(_BOUNDS))] * len(names))
    return Components(*np.exp(found.x).tolist())


def digest(rows: Sequence[Row]) -> str:
    """Return what tells evidence from other evidence."""
    told = [(row.cell, row.way, row.top1_percent) for row in rows]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]


def main() -> None:
    """Fit, and write the file."""
    rows = observed()
    found = {name: round(value, 4) for name, value in asdict(fit(rows)).items()}
    text = json.dumps({"fitted_to": digest(rows), "components": found}, indent=2)
    Path(str(COMPONENTS_FILE)).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
