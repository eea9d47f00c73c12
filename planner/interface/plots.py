"""The only drawing of this package. The data of a plot is worked out before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from costmodel import METHODS, InfeasibleError, InputError
from costmodel.errors import unknown
from costmodel.interface.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Picture,
    literal,
    plot_path,
    save,
)
from costmodel.units import format_bytes

from ..choosing.candidate import Candidate
from ..choosing.choice import pick
from ..choosing.frames import to_frame
from ..choosing.pareto import non_dominated

if TYPE_CHECKING:
    import pandas
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Point = tuple[float, float]
Box = tuple[float, float, float, float]

AGAINST = ("recovery", "flops")
# By place in METHODS, so that a method looks the same in every plot: blocks and mobiletl are the fifth and sixth.
_COLOURS = (GREEN, BLACK, PURPLE, ORANGE, BLUE, VERMILLION, SKY, GREY)
MARKERS = ("P", "X", "v", "D", "o", "s", "<", ">", "^", "p", "h", "d", "*", "H")  # matplotlib's

# How a mark is filled by the kind of its accuracy.
FILLS = {
    "full": "measured, or by definition",
    "dot": "interpolated between measurements",
    "hollow": "prior: published or assumed",
}
_FILL_OF_KIND = {"definition": "full", "measured": "full", "interpolated": "dot"}

_COLUMNS = ["model", "method", "blocks", "peak_bytes", "total_flops", "recovery", "recovery_low", "recovery_high",
            "recovery_kind", "fill", "frontier"]  # fmt: skip


def style(method: str) -> tuple[str, str]:
    """Return a method's colour and matplotlib's marker."""
    place = list(METHODS).index(method)
    return _COLOURS[place % len(_COLOURS)], MARKERS[place % len(MARKERS)]


def fill(kind: str) -> str:
    """Return the key of `FILLS` for a kind of accuracy."""
    return _FILL_OF_KIND.get(kind, "hollow")


def settings(priced: Sequence[Candidate]) -> str:
    """Return what a training step of these candidates is, in words; several values where they differ."""

    def values(value: Callable[[Candidate], object]) -> str:
        return ", ".join(dict.fromkeys(str(value(candidate)) for candidate in priced))

    return (
        f"batch {values(lambda c: c.batch)}, {values(lambda c: c.resolution)} pixels, "
        f"{values(lambda c: c.step.optimizer)}, accounting {values(lambda c: c.step.accounting)}"
    )


def pareto_data(priced: Sequence[Candidate], against: str = "recovery") -> pandas.DataFrame:
    """Return what the plot shows: a row per candidate, by model and memory.

    against 'recovery': those of known recovery; `frontier` is whether no candidate of the same model takes less memory
    and promises as much. against 'flops': all; `frontier` is the same for memory, FLOPs and recovery together (without
    recovery, training the last layer would be all of it). `fill`: a key of `FILLS`, by `recovery_kind`.

    Errors: InputError for another `against`.
    """
    if against not in AGAINST:
        raise unknown("axis", against, AGAINST)
    frame = to_frame(priced)
    if against == "recovery":
        frame = frame.loc[frame["recovery"].notna()].copy()
    frame["fill"] = frame["recovery_kind"].map(fill)
    frame["frontier"] = False
    costs = ["peak_bytes"] if against == "recovery" else ["peak_bytes", "total_flops"]
    for _, rows in frame.groupby("model"):
        frame.loc[rows.index, "frontier"] = non_dominated(np.column_stack((rows[costs], -rows["recovery"])))
    order = {model: place for place, model in enumerate(dict.fromkeys(frame["model"]))}
    frame = frame.sort_values("peak_bytes", kind="stable").sort_values(
        "model", key=lambda m: m.map(order), kind="stable"
    )
    return frame.loc[:, _COLUMNS].reset_index(drop=True)


def draw_pareto(
    priced: Sequence[Candidate],
    path: str | Path | None = None,
    ram_bytes: int | None = None,
    against: str = "recovery",
    plain: Sequence[Candidate] = (),
) -> Picture:
    """Draw memory against expected recovery or FLOPs, a panel per model, and write it to a .png, .svg or .pdf file.

    ram_bytes: draws the budget. plain: the same candidates carried out plainly, to which faint lines lead.

    Errors: those of `costmodel.drawing.plot_path` and `pareto_data`; InputError if no recovery is known.
    """
    path = plot_path(path)
    data = pareto_data(priced, against)
    if data.empty:
        raise InputError("no candidate has a known accuracy, so there is nothing to plot")
    from matplotlib.figure import Figure

    data = _coordinates(data, against)
    data["mark"] = data["fill"] if against == "recovery" else np.where(data["frontier"], "full", "hollow")
    groups = dict(_groups(data, "model"))
    columns = min(len(groups), 3)
    rows = -(-len(groups) // columns)
    width, height = (7, 5.6) if len(groups) == 1 else (4.2 * columns, 1.4 + 3.6 * rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=against == "recovery").flat)
    chosen = _chosen(priced, ram_bytes)
    before = _coordinates(pareto_data(plain, against), against) if plain else data.head(0)
    without = dict(_groups(before, "model"))
    right = 1.06 * max([*data["x"], *before["x"]])
    for number, (axes, (model, table)) in enumerate(zip(panels, groups.items(), strict=False)):
        axes.set_title(literal(model), loc="left", fontsize=10)
        if len(groups) - number <= columns:  # the lowest panel of its column
            axes.set_xlabel("peak memory of a training step, MB", fontsize=9)
        axes.tick_params(labelbottom=True)
        _draw_model(axes, table, ram_bytes, against, right)
        _lead_to_plain(axes, table, without.get(model, before.head(0)))
        if chosen is not None and chosen.model == model:
            _ring(axes, chosen, against)
    for unused in panels[len(groups) :]:
        unused.set_axis_off()
    figure.supylabel(_Y_LABEL[against], fontsize=9)
    figure.suptitle(settings(priced), fontsize=10)
    missing = ", ".join(dict.fromkeys(c.way.method for c in priced if c.way.method not in set(data["method"])))
    texts, signs = zip(*_legend(data, against, ram_bytes, chosen, bool(plain)), strict=True)
    figure.legend(
        signs, texts, loc="outside lower center", ncols=min(5, 2 + len(groups)),
        fontsize=8, frameon=False, title=missing and f"not drawn, because their accuracy is unknown: {missing}",
        title_fontsize=8,
    )  # fmt: skip
    figure.draw_without_rendering()  # now the panels have their places, which labels look at and must not change
    figure.set_layout_engine("none")
    for axes, table in zip(panels, groups.values(), strict=False):
        _label_depths(axes, table, ram_bytes)
    return save(figure, path)


def _coordinates(data: pandas.DataFrame, against: str) -> pandas.DataFrame:
    """Return the rows with their places in the plot, x and y."""
    y = data["recovery"] if against == "recovery" else data["total_flops"] / 1e9
    return data.assign(x=data["peak_bytes"] / 1e6, y=y)


def _lead_to_plain(axes: Axes, data: pandas.DataFrame, plain: pandas.DataFrame) -> None:
    """Draw a faint line from each way to where it is without a schedule."""
    places = {(row["method"], row["blocks"]): (row["x"], row["y"]) for row in _records(plain)}
    for row in _records(data):
        x, y = places.get((row["method"], row["blocks"]), (row["x"], row["y"]))
        if x > row["x"]:
            colour = style(row["method"])[0]
            axes.plot([row["x"], x], [row["y"], y], color=colour, linewidth=0.8, alpha=0.35, zorder=1)


def _records(data: pandas.DataFrame) -> list[dict[str, Any]]:
    """Return rows as mappings; 0 blocks stand for a method without a depth."""
    return data.fillna({"blocks": 0}).to_dict("records")


def _chosen(priced: Sequence[Candidate], ram_bytes: int | None) -> Candidate | None:
    """Return what is recommended for a budget; None if nothing fits, or no budget is given."""
    if ram_bytes is None:
        return None
    try:
        return pick(priced, ram_bytes).chosen
    except InfeasibleError:
        return None


def _ring(axes: Axes, chosen: Candidate, against: str) -> None:
    """Draw a ring around the recommended candidate, if it has a place in the plot."""
    y = chosen.recovery.value if against == "recovery" else chosen.total_flops / 1e9
    if y is not None:
        axes.plot(
            [chosen.peak_bytes / 1e6], [y], "o", color=BLACK, markersize=14, markerfacecolor="none",
            markeredgewidth=1.6, zorder=6,
        )  # fmt: skip


def _groups(rows: pandas.DataFrame, column: str, sort: bool = False) -> Iterator[tuple[str, pandas.DataFrame]]:
    """Yield (text, rows) for each text of a column: in its order, or sorted."""
    for text, some in rows.groupby(column, sort=sort):
        yield str(text), some


_Y_LABEL = {
    "recovery": "expected recovery (0: last layer only, 1: everything trained)",
    "flops": "FLOPs of a training step, billions",
}


def _draw_model(axes: Axes, data: pandas.DataFrame, ram_bytes: int | None, against: str, right: float) -> None:
    frontier = data[data["frontier"]]
    if against == "recovery":
        axes.step(frontier["x"], frontier["y"], where="post", color="0.5", linewidth=1, zorder=1)
        axes.set_ylim(-0.05, 1.06)
    else:
        axes.set_ylim(0, 1.08 * max(data["y"]))
    for method, rows in _groups(data, "method"):
        colour, marker = style(method)
        if against == "recovery":
            spread = np.abs(rows[["recovery_low", "recovery_high"]].sub(rows["recovery"], axis=0)).T
            axes.errorbar(rows["x"], rows["y"], spread, fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.4, zorder=2)
        for how, some in _groups(rows, "mark", sort=True):
            _mark(axes, some["x"], some["y"], colour, marker, how)
    axes.set_xlim(0, right)
    axes.grid(alpha=0.25, linewidth=0.5)
    if ram_bytes is None:
        return
    budget = ram_bytes / 1e6
    if budget <= 1.5 * right:
        axes.set_xlim(0, max(right, 1.06 * budget))
        axes.axvline(budget, color="0.2", linestyle="--", linewidth=1)
    else:
        axes.annotate(
            f"budget {format_bytes(ram_bytes)} \N{RIGHTWARDS ARROW}", (0.98, 0.02), xycoords="axes fraction",
            ha="right", fontsize=8,
        )  # fmt: skip


def _mark(axes: Axes, x: ArrayLike, y: ArrayLike, colour: str, marker: str, how: str) -> None:
    face = colour if how == "full" else "white"
    axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6.5, zorder=3)
    if how == "dot":
        axes.plot(x, y, ".", color=colour, markersize=3.5, zorder=4)


def _legend(
    data: pandas.DataFrame, against: str, ram_bytes: int | None, chosen: Candidate | None, with_plain: bool
) -> Iterator[tuple[str, Artist | tuple]]:
    """Yield (text, sign): each method, in the order of METHODS, then what fills, numbers and lines mean."""
    from matplotlib.lines import Line2D

    def mark(marker: str, colour: str = "0.35", face: str = "white", size: float = 6.5) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, markerfacecolor=face, markersize=size, linestyle="none")

    def line(colour: str, style: Literal["-", "--"] = "-") -> Line2D:
        return Line2D([], [], color=colour, linestyle=style, linewidth=1)

    for method in (name for name in METHODS if name in set(data["method"])):
        colour, marker = style(method)
        yield method, mark(marker, colour, colour)
    full, hollow, dot = mark("o", face="0.35"), mark("o"), mark(".", face="0.35", size=3.5)
    if against == "flops":
        yield "frontier of memory, FLOPs and recovery", full
        yield "not on it, or recovery unknown", hollow
    else:
        signs = {"full": full, "dot": (hollow, dot), "hollow": hollow}
        yield from ((text, signs[how]) for how, text in FILLS.items() if how in set(data["fill"]))
        yield "frontier", line("0.5")
        yield "interval", line("0.75")
    if with_plain:
        yield "to the same way without a schedule", line("0.75")
    if any(data["blocks"].notna()):
        letter = mark("$k$", face="0.35")
        letter.set_markeredgewidth(0)
        yield "trained blocks, beside the mark", letter
    if ram_bytes is not None:
        yield f"budget, {format_bytes(ram_bytes)}", line("0.2", "--")
    if chosen is not None:
        ring = mark("o", BLACK, "none", 11)
        ring.set_markeredgewidth(1.6)
        yield f"recommended: {chosen.label}", ring


def _label_depths(axes: Axes, data: pandas.DataFrame, ram_bytes: int | None) -> None:
    """Write k beside the marks of methods that take a depth, wherever there is room: ends and frontier first."""
    size, per_point = 6.5, axes.figure.dpi / 72
    to_pixels, gap = axes.transData.transform, 4.2 * per_point
    marks = dict(zip(data.index, to_pixels(data[["x", "y"]]), strict=True))
    taken = [(x - gap, y - gap, x + gap, y + gap) for x, y in marks.values()]
    if ram_bytes is not None:
        budget = to_pixels((ram_bytes / 1e6, 0))[0]
        taken.append((budget, -np.inf, budget, np.inf))
    deep = data[data["blocks"].notna()]
    ends = {rows.index[place] for _, rows in deep.groupby("method") for place in (0, -1)}
    frontier = {row for row, on in zip(data.index, data["frontier"], strict=True) if on}
    chosen = sorted(deep.index, key=lambda row: (row not in ends, row not in frontier))
    texts = [str(data["blocks"][row]) for row in chosen]
    sizes = [(0.65 * size * len(text) * per_point, size * per_point) for text in texts]
    offsets = label_offsets([marks[row] for row in chosen], sizes, taken, gap)
    for row, text, offset in zip(chosen, texts, offsets, strict=True):
        if offset is not None:
            axes.annotate(
                text, (data["x"][row], data["y"][row]), (offset[0] / per_point, offset[1] / per_point),
                textcoords="offset points", fontsize=size, color=style(str(data["method"][row]))[0], zorder=5,
            )  # fmt: skip


def label_offsets(
    points: Sequence[Point], sizes: Sequence[Point], taken: Iterable[Box], gap: float
) -> list[Point | None]:
    """Return where each label goes: its lower left corner relative to its point, or None where there is no room.

    points: (x, y). sizes: (width, height) of each label. taken: boxes (left, bottom, right, top) to keep clear of, as
    of the labels before. gap: from a point to its label.
    """
    taken, offsets = list(taken), []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        beside, below = (gap, -gap - width), (-gap - height, gap)
        places = [*((dx, dy) for dy in below for dx in beside), *((dx, -height / 2) for dx in beside),
                  *((-width / 2, dy) for dy in below)]  # fmt: skip
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in places]
        free = next(
            (place for place, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)), None
        )
        offsets.append(None if free is None else places[free])
        taken += [] if free is None else [boxes[free]]
    return offsets


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
