"""TinyTL's own seven rows: which are dominated, by its books recomputed here, and by its published megabytes alone."""

from __future__ import annotations

from statistics import fmean

import numpy as np

from costmodel import footprint, trace
from planner.choosing.pareto import non_dominated
from planner.evidence.rows import published

NETWORK, CLASSES, BATCH = "zoo:proxylessnas_mobile_tinytl", 102, 8


def seven_rows() -> dict[tuple[str, int], tuple[float | None, float]]:
    """Return, by method and resolution, the published megabytes and the mean accuracy over the common data sets."""
    rows = [row for row in published() if row.locator == "Table 2" and row.model == "proxylessnas_mobile"]
    ways: dict[tuple[str, int], dict[str, float]] = {}
    megabytes: dict[tuple[str, int], float] = {}
    for row in rows:
        ways.setdefault((row.method, row.resolution), {})[row.dataset] = row.top1_percent
        if row.memory_mb is not None:
            megabytes[row.method, row.resolution] = row.memory_mb
    common = set.intersection(*(set(found) for found in ways.values()))
    assert len(common) >= 8
    return {way: (megabytes.get(way), fmean(found[name] for name in common)) for way, found in ways.items()}


def test_the_frontier_of_tinytls_rows_is_the_papers_own():
    rows = seven_rows()
    assert len(rows) == 7
    recomputed = {
        (method, pixels): footprint(
            trace(NETWORK, pixels, CLASSES), method, batch=BATCH, accounting="tinytl"
        ).peak_bytes
        / 1e6
        for method, pixels in rows
    }
    for way, (megabytes, _) in rows.items():
        assert megabytes is None or abs(recomputed[way] - megabytes) < 1, way  # the table gives whole megabytes
    accuracy = np.array([accuracy for _, accuracy in rows.values()])

    def frontier(memory: np.ndarray) -> set[tuple[str, int]]:
        on = non_dominated(np.column_stack((memory, -accuracy)))
        return {way for way, is_on in zip(rows, on, strict=True) if is_on}

    exact = np.array(list(recomputed.values()))
    published_megabytes = np.array([megabytes or recomputed[way] for way, (megabytes, _) in rows.items()])
    assert set(rows) - frontier(published_megabytes.round()) == {("norm", 224), ("tinytl-l", 224)}
    assert frontier(exact.round()) == frontier(published_megabytes.round())
    # To the byte lite residuals without biases take a little less than with them, and so stay on the frontier.
    assert set(rows) - frontier(exact) == {("norm", 224)}
    assert 0 < recomputed["tinytl-lb", 224] - recomputed["tinytl-l", 224] < 0.1
