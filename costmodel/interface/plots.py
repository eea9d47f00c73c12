"""The only drawing of this package. The data of a plot is worked out before anything is drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..step.schedule import PLAIN
from ..step.simulation import CATEGORIES
from ..units import format_bytes
from .drawing import BLACK, BLUE, GREEN, GREY, LIGHT_SKY, ORANGE, PURPLE, VERMILLION, Picture, literal, plot_path, save
from .moments import FLOPS_PER_BYTE, phase_spans, timeline_data

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..answers.footprint import Footprint
    from ..checking.reproduction import Reproduction
    from ..schedules.best import Frontier

# Colour and hatching in the order of CATEGORIES: neighbours differ in lightness or hatching, for print.
_LOOKS = (
    (BLUE, ""), (BLACK, ""), (GREY, ""), (ORANGE, "//"), (GREEN, "xx"), (PURPLE, ""), (LIGHT_SKY, ""),
)  # fmt: skip
_LOOK = dict(zip(CATEGORIES, _LOOKS, strict=True))
# What is done again stands out from the phases of every step, which are shades of grey.
_PHASE = {"fill": BLACK, "forward": "0.8", "loss": "0.6", "recompute": VERMILLION, "backward": "0.45", "update": "0.2"}


# --- memory over the moments of a step --------------------------------------------------------------------------------


def draw_timeline(answers: Sequence[Footprint], path: str | Path | None = None) -> Picture:
    """Draw what is in memory during a step, over its roofline time, a panel per footprint.

    The panels share both axes. Errors: those of `plot_path` and `timeline_data`.
    """
    path = plot_path(path)
    tables = [timeline_data(answer) for answer in answers]
    longest = max(data["duration"].sum() for data in tables)
    figure = _figure(7.5, 1.1 + 2.1 * len(answers))
    panels = figure.subplots(len(answers), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    panels[0].set_ylim(0, 1.3e-6 * max(data["total_bytes"].max() for data in tables))  # room for names of phases
    panels[0].set_xlim(0, 100)
    for axes, answer, data in zip(panels, answers, tables, strict=True):
        edges = [0, *(100 / longest * data["duration"].cumsum())]
        _stack_moments(axes, data, edges)
        _mark_phases(axes, data, edges)
        _mark_peak(axes, data, edges)
        schedule = answer.step.schedule.label(answer.batch)
        title = textwrap.fill(f"{answer.way.label}{': ' if schedule else ''}{schedule}", 100)
        axes.set_title(literal(title), loc="left", fontsize=9, weight="bold" if not schedule else "normal")
    longer = "the step" if len(answers) == 1 else "the longest step"
    panels[-1].set_xlabel(
        f"time, % of {longer} (roofline of a processor with {FLOPS_PER_BYTE:g} FLOPs for each byte of bandwidth)",
        fontsize=9,
    )
    figure.supylabel("memory, MB", fontsize=9)
    spans = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    there = [phase for phase in _PHASE if phase in spans]
    panels[-1].legend(
        handles=[spans[phase] for phase in there], loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(there),
        fontsize=8, frameon=False, handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip
    return _finish(figure, panels[0], answers, path)


def _stack_moments(axes: Axes, data: pandas.DataFrame, edges: Sequence[float]) -> None:
    below = 0 * data["total_bytes"]
    for category, (colour, hatch) in _LOOK.items():
        above = below + data[f"{category}_bytes"] / 1e6
        axes.stairs(
            above, edges, baseline=below, fill=True, facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0,
            label=category.replace("_", " "),
        )  # fmt: skip
        below = above
    axes.stairs(below, edges, color="0.2", linewidth=0.7)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_phases(axes: Axes, data: pandas.DataFrame, edges: Sequence[float]) -> None:
    """Draw a strip of the phases' colours over the moments, shade what is done again, name runs that are wide."""
    top = axes.get_ylim()[1]
    for phase, first, last in phase_spans(data):
        left, right, colour = edges[first], edges[last + 1], _PHASE.get(phase)
        if colour is None:
            continue
        axes.axvspan(left, right, 0.965, 1, color=colour, linewidth=0, label=phase)
        if phase == "recompute":
            axes.axvspan(left, right, 0, 0.965, color=colour, alpha=0.15, linewidth=0, zorder=0)
        if right - left > 7:
            axes.text((left + right) / 2, 0.94 * top, phase, ha="center", va="top", fontsize=8, color="0.25")


def _mark_peak(axes: Axes, data: pandas.DataFrame, edges: Sequence[float]) -> None:
    peak = data[data["peak"]].iloc[0]
    at = (edges[peak["moment"]] + edges[peak["moment"] + 1]) / 2
    high = peak["total_bytes"] / 1e6
    left = at < 50
    axes.plot([at], [high], "v", color=BLACK, markersize=5, markeredgecolor="white")
    text = f"{format_bytes(peak['total_bytes'])}, {peak['phase']}" + (f" of {peak['layer']}" if peak["layer"] else "")
    axes.annotate(
        literal(text), (at, high), (7 if left else -7, 4), textcoords="offset points", ha="left" if left else "right",
        fontsize=8, weight="bold", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )  # fmt: skip


# --- memory against FLOPs, over schedules -----------------------------------------------------------------------------


def frontier_data(found: Frontier, plain: Footprint) -> pandas.DataFrame:
    """Return a row per schedule of a way: peak_bytes, times_flops (the plain step's), label."""
    import pandas

    return pandas.DataFrame(
        {
            "peak_bytes": found.peak_bytes,
            "times_flops": found.total_flops / plain.total_flops,
            "label": [found.schedule(number).label(plain.batch) or "plain" for number in range(len(found))],
        }
    )


def draw_frontier(found: Frontier, plain: Footprint, path: str | Path | None = None) -> Picture:
    """Draw the memory of a step against its FLOPs for every schedule that no other beats, the plain one marked.

    Errors: those of `plot_path`.
    """
    path = plot_path(path)
    data = frontier_data(found, plain)
    figure = _figure(7.0, 4.2)
    axes = figure.subplots()
    axes.step(data["times_flops"], data["peak_bytes"] / 1e6, where="post", color=BLUE, linewidth=1.2)
    axes.plot(data["times_flops"], data["peak_bytes"] / 1e6, "o", color=BLUE, markersize=3.5)
    axes.plot([1], [plain.peak_bytes / 1e6], "s", color=BLACK, markersize=6)
    axes.annotate(f"plain: {format_bytes(plain.peak_bytes)}", (1, plain.peak_bytes / 1e6), (8, -3),
                  textcoords="offset points", fontsize=9, color=BLACK)  # fmt: skip
    for times, away, side in ((1.0, (8, 5), "left"), (1.1, (0, 11), "center"), (1.33, (4, -16), "right")):
        within = data.loc[data["times_flops"] <= times]
        if len(within):
            best = within.loc[within["peak_bytes"].idxmin()]
            at = float(best["times_flops"]), float(best["peak_bytes"]) / 1e6
            axes.plot(*at, "D", color=VERMILLION, markersize=6)
            axes.annotate(f"{format_bytes(best['peak_bytes'])} at {times:g} times the FLOPs", at, away,
                          textcoords="offset points", ha=side, fontsize=9, color=VERMILLION)  # fmt: skip
    axes.set(xlabel="FLOPs of a step, times those of the plain one", ylabel="peak memory of a step, MB")
    axes.set_ylim(0, 1.08e-6 * max(plain.peak_bytes, *data["peak_bytes"]))
    axes.margins(x=0.12)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{plain.graph.model}, {plain.way.label}: {plain.step.label}", loc="left", fontsize=9)
    return save(figure, path)


# --- categories at the peak -------------------------------------------------------------------------------------------


def breakdown_data(answers: Sequence[Footprint]) -> pandas.DataFrame:
    """Return a row per footprint: what is in memory at its peak.

    Columns: label, method, blocks, `<category>_bytes` for each category, peak_bytes, phase, layer.
    """
    import pandas

    rows = [
        {
            "label": answer.way.label,
            "method": answer.method,
            "blocks": answer.blocks,
            **{f"{category}_bytes": size for category, size in answer.memory_bytes.items()},
            "phase": answer.peak.phase,
            "layer": answer.peak.layer,
        }
        for answer in answers
    ]
    return pandas.DataFrame(rows).astype({"blocks": "Int64"})


def merged(data: pandas.DataFrame) -> pandas.DataFrame:
    """Return the rows of a breakdown with those that are equal in one, their labels joined; the largest peak first."""
    same = [name for name in data.columns if name.endswith("_bytes") or name in ("phase", "layer")]
    rows = data.groupby(same, sort=False, as_index=False).agg({"label": "\n".join})
    return rows.sort_values("peak_bytes", ascending=False, kind="stable").reset_index(drop=True)


def draw_breakdown(answers: Sequence[Footprint], path: str | Path | None = None) -> Picture:
    """Draw a bar per footprint: the categories at its peak, the peak itself and where it is; the largest first.

    Footprints with the same bar share one. Errors: of `plot_path`.
    """
    path = plot_path(path)
    data = merged(breakdown_data(answers))
    labels = [literal(label) for label in data["label"]]
    figure = _figure(7.5, 1.4 + 0.2 * sum(max(2, label.count("\n") + 1) for label in labels))
    axes = figure.subplots()
    before = 0 * data["peak_bytes"]
    for category, (colour, hatch) in _LOOK.items():
        size = data[f"{category}_bytes"] / 1e6
        axes.barh(
            data.index, size, left=before, height=0.66, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4,
            label=category.replace("_", " "),
        )  # fmt: skip
        before = before + size
    for place, peak, phase, layer in zip(data.index, data["peak_bytes"], data["phase"], data["layer"], strict=True):
        where = phase + (f" of {layer}" if layer else "")
        value = axes.annotate(
            format_bytes(peak), (peak / 1e6, place), (4, 0), textcoords="offset points", va="center", fontsize=8,
            weight="bold",
        )  # fmt: skip
        axes.annotate(
            literal(where), (1, 0.5), (4, 0), xycoords=value, textcoords="offset points", va="center", fontsize=7
        )
    axes.set_yticks(data.index, labels, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.65e-6 * max(data["peak_bytes"]))  # room for the text beside the bars
    axes.set_xlabel("memory at the peak of a training step, MB", fontsize=9)
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    return _finish(figure, axes, answers, path)


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure of this many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _finish(figure: Figure, axes: Axes, answers: Sequence[Footprint], path: Path | None) -> Picture:
    """Add the title and the legend of the categories that can be seen, and write the file."""
    first = answers[0]
    figure.suptitle(
        literal(f"{first.graph.model}, {replace(first.step, schedule=PLAIN).label}"),
        fontsize=10,
    )
    handles = [
        handle
        for place, handle in enumerate(axes.get_legend_handles_labels()[0][: len(CATEGORIES)])
        if any(
            100 * moment.by_category[place] > answer.peak_bytes for answer in answers for moment in answer.moments
        )  # less than a hundredth cannot be seen
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False, handlelength=1.4,
        columnspacing=1.2,
    )  # fmt: skip
    return save(figure, path)


# --- published against computed ---------------------------------------------------------------------------------------


def published_against_computed(results: Sequence[Reproduction], path: str | Path | None = None) -> Picture:
    """Draw a panel of points for each unit (logarithmic axes), and the line on which both are equal.

    Errors: those of `plot_path`.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    path = plot_path(path)
    units = [unit for unit in dict.fromkeys(result.published.unit for result in results) if unit]
    figure = _figure(4 * len(units), 4)
    for axes, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
        rows = [result for result in results if result.published.unit == unit]
        values = [value for row in rows for value in (row.published.value, row.computed)]
        ends = min(values) * 0.8, max(values) * 1.25
        axes.plot(ends, ends, color="0.7", linewidth=1, zorder=0)
        for same, colour, marker, name in ((True, BLUE, "o", "reproduced"), (False, VERMILLION, "^", "differs")):
            points = [(row.published.value, row.computed) for row in rows if row.reproduced == same]
            if points:
                axes.scatter(*zip(*points, strict=True), s=18, color=colour, marker=marker, label=name)
        axes.set(xscale="log", yscale="log", xlabel=f"published, {unit}", ylabel=f"computed, {unit}")
        for direction in (axes.xaxis, axes.yaxis):
            direction.set_major_locator(LogLocator(subs=(1, 2, 5)))
            direction.set_major_formatter(StrMethodFormatter("{x:g}"))
            direction.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
    return save(figure, path)
