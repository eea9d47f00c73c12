"""The non-dominated rows of a table of costs.

Assumptions: every column is a cost, less is better (negate a benefit). Row a dominates row b if a is nowhere above b
and somewhere below it. So equal rows do not dominate each other: of a tie at the frontier all stay. Infinities are
ordinary costs. A row with an unknown cost (NaN) can be compared with none: it dominates nothing and is never on the
frontier.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(costs: ArrayLike) -> NDArray[np.bool_]:
    """Return, for costs [n rows, m columns], which of the n rows no other row dominates.

    Errors: ValueError if `costs` is not a table of n rows and m >= 1 columns.
    """
    costs = np.asarray(costs, dtype=float)
    if costs.ndim != 2 or costs.shape[1] == 0:
        raise ValueError(f"costs has shape {costs.shape}; needed is (rows, columns) with at least one column")
    known = np.flatnonzero(~np.isnan(costs).any(axis=1))
    # Distinct rows in lexicographic order: a row can only be dominated by an earlier one.
    distinct, tie = np.unique(costs[known], axis=0, return_inverse=True)
    frontier: list[int] = []
    for index, row in enumerate(distinct):
        if not (distinct[frontier] <= row).all(axis=1).any():
            frontier.append(index)
    mask = np.zeros(len(costs), dtype=bool)
    mask[known] = np.isin(tie.reshape(-1), frontier)
    return mask
