"""The only drawing. The data of a plot is worked out before anything is drawn, and tested without drawing.

Colours: Okabe and Ito's eight, which the colour-blind tell apart (jfly.uni-koeln.de/color, 2008); markers say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from costmodel import InputError

from .candidates import Candidate, to_frame
from .pareto import non_dominated

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_FORMATS = (".png", ".svg", ".pdf")
# Kinds of accuracy that rest on the user's own runs or on nothing uncertain; the others are assumed or carried over.
_GROUNDED = ("definition", "measured", "interpolated")


def pareto_data(priced: Sequence[Candidate]) -> pandas.DataFrame:
    """Return what the plot shows: a row per candidate of known recovery, by model and memory.

    Columns: model, method, blocks, peak_bytes, recovery, recovery_low, recovery_high, recovery_kind, and frontier:
    whether no candidate of the same model takes less memory and promises as much.
    """
    frame = to_frame(priced)
    frame = frame[frame["recovery"].notna()].copy()
    frame["frontier"] = False
    for _, rows in frame.groupby("model"):
        costs = np.column_stack((rows["peak_bytes"], -rows["recovery"]))
        frame.loc[rows.index, "frontier"] = non_dominated(costs)
    columns = ["model", "method", "blocks", "peak_bytes", "recovery", "recovery_low", "recovery_high", "recovery_kind",
               "frontier"]  # fmt: skip
    return frame[columns].sort_values(["model", "peak_bytes"], kind="stable").reset_index(drop=True)


def draw_pareto(priced: Sequence[Candidate], path: str | Path, ram_bytes: int | None = None) -> None:
    """Draw memory against expected recovery, a panel per model, and write it to a .png, .svg or .pdf file.

    ram_bytes: draws the budget. Errors: InputError for another kind of file, or if no recovery is known.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise InputError(f"cannot write a plot to {str(path)!r}; its name must end in {', '.join(_FORMATS)}")
    data = pareto_data(priced)
    if data.empty:
        raise InputError("no candidate has a known accuracy, so there is nothing to plot")
    from matplotlib.figure import Figure

    models, methods = list(data["model"].unique()), list(data["method"].unique())
    figure = Figure(figsize=(6.4 * len(models), 4.8), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for axes, model in zip(panels, models, strict=True):
        _draw_model(axes, data[data["model"] == model], methods, ram_bytes)
        axes.set_title(model, loc="left", fontsize=10)
    panels[0].set_ylabel("expected recovery\n(0: last layer only, 1: everything trained)")
    panels[-1].legend(loc="lower right", fontsize=8, framealpha=0.9)
    first = priced[0]
    figure.supxlabel(
        f"peak memory of a training step, MB (batch {first.batch}, {first.resolution}x{first.resolution}, "
        f"{first.optimizer}, accounting {first.accounting})",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)


def _draw_model(axes: Axes, data: pandas.DataFrame, methods: list[str], ram_bytes: int | None) -> None:
    megabytes = data["peak_bytes"] / 1e6
    frontier = data[data["frontier"]]
    axes.step(frontier["peak_bytes"] / 1e6, frontier["recovery"], where="post", color="0.6", linewidth=1, zorder=1)
    for number, method in enumerate(methods):
        rows = data[data["method"] == method]
        if rows.empty:
            continue
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        x = rows["peak_bytes"] / 1e6
        spread = np.abs(rows[["recovery_low", "recovery_high"]].sub(rows["recovery"], axis=0)).T
        axes.errorbar(x, rows["recovery"], spread, fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.35, zorder=2)
        grounded = rows["recovery_kind"].isin(_GROUNDED)
        for known, face in ((grounded, colour), (~grounded, "white")):
            axes.scatter(x[known], rows["recovery"][known], 36, face, marker, edgecolors=colour, zorder=3)
        axes.scatter([], [], 36, colour, marker, edgecolors=colour, label=method)
        deep = rows[rows["blocks"].notna()]
        for at, value, k in zip(deep["peak_bytes"] / 1e6, deep["recovery"], deep["blocks"], strict=True):
            axes.annotate(f"{k}", (at, value), (4, -9), textcoords="offset points", fontsize=6, color=colour)
    axes.scatter([], [], 36, "white", "o", edgecolors="0.3", label="hollow: assumed or carried over")
    axes.plot([], [], color="0.6", linewidth=1, label="frontier")
    if ram_bytes is not None:
        axes.axvline(ram_bytes / 1e6, color="0.2", linestyle="--", linewidth=1, label="budget")
    axes.set_xlim(0, 1.06 * max(megabytes.max(), (ram_bytes or 0) / 1e6))
    axes.set_ylim(-0.05, 1.05)
    axes.grid(alpha=0.25, linewidth=0.5)
