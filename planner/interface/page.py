"""One HTML file that holds everything: memory against expected recovery, with hover and a slider for the budget.

page.html has the text and the script, which looks up what is recommended for the budget that the slider shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from textwrap import wrap
from typing import TYPE_CHECKING, cast

from costmodel import METHODS, InputError, whole_step
from costmodel.interface.drawing import BLACK, plot_path
from costmodel.units import format_bytes, format_count

from ..choosing.candidate import Candidate
from ..choosing.choice import pick
from ..choosing.reasons import RELATIVE
from ..choosing.scale import Scale
from .plots import FILLS, MARKERS, fill, pareto_data, settings, style

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

_SYMBOL = {"full": "", "dot": "-open-dot", "hollow": "-open"}


def write_page(priced: Sequence[Candidate], path: str | Path, ram_bytes: int | None = None) -> None:
    """Write the page to an .html file; `ram_bytes` is where the slider starts.

    Errors: those of `costmodel.drawing.plot_path` and `page`; InputError if the file cannot be written.
    """
    path = plot_path(path, (".html",))
    try:
        path.write_text(page(priced, ram_bytes), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another file") from None


def page(priced: Sequence[Candidate], ram_bytes: int | None = None) -> str:
    """Return the page; it loads nothing from anywhere.

    Errors: InputError if the books are not those of a whole step, whose peak a budget could be held against.
    """
    whole_step(priced[0].step.accounting, "has no peak to hold against a budget")
    data = page_data(priced)
    most = max(round(1.05 * max(candidate.peak_bytes for candidate in priced)), ram_bytes or 0)
    figure = _figure(priced, data["models"])
    data["lines"] = list(range(len(data["models"])))
    data["rings"] = [
        place for place, trace in enumerate(cast("Iterable[Scatter]", figure.data)) if trace.name == "recommended"
    ]
    return Template(files("planner.interface").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title="Memory of fine-tuning against expected accuracy",
        most_bytes=most,
        ram_bytes=ram_bytes or most // 2,
        plot=figure.to_html(full_html=False, include_plotlyjs=True, div_id="plot", config={"displaylogo": False}),
        notes="<br>".join(escape(note) for note in _notes(priced, data["models"])),
        data=json.dumps(data).replace("<", "\\u003c"),  # so that no name can end the script
    )


def page_data(priced: Sequence[Candidate]) -> dict:
    """Return what the script looks up.

    picks: from how many bytes on which candidate is recommended, in order: its text, the model's place, peak bytes and
    recovery (None if unknown). models: their names. nothing: what to say if nothing fits.
    """
    models = list(dict.fromkeys(candidate.model for candidate in priced))
    picks: list[dict] = []
    held = None
    for budget in sorted({candidate.peak_bytes for candidate in priced}):
        chosen = pick(priced, budget).chosen
        if chosen is not held:
            held = chosen
            picks.append(
                {
                    "from": budget,
                    "text": text(chosen),
                    "model": models.index(chosen.model),
                    "bytes": chosen.peak_bytes,
                    "recovery": chosen.recovery.value,
                }
            )
    return {"picks": picks, "models": models, "nothing": f"nothing fits; the smallest footprint is\n{picks[0]['text']}"}


def text(candidate: Candidate) -> str:
    """Return what the page says of a candidate that it recommends: four lines."""
    return (
        f"{candidate.label} on {candidate.model}\n"
        f"peak memory {format_bytes(candidate.peak_bytes)}, {format_count(candidate.total_flops)}FLOPs per step\n"
        f"expected recovery {_recovery(candidate)}\n"
        f"{settings([candidate])}"
    )


def _recovery(candidate: Candidate) -> str:
    guess = candidate.recovery
    if guess.value is None:
        return "unknown"
    return f"{Scale('recovery').text(guess.value)} ({guess.low:.2f} to {guess.high:.2f}), {guess.kind}"


def _accuracy(candidate: Candidate) -> Iterator[str]:
    """Yield the accuracy on the user's own data, if there are measurements to tell it from."""
    guess = candidate.recovery
    if guess.accuracy_percent is not None:
        low, high = guess.accuracy_low_percent, guess.accuracy_high_percent
        yield f"expected accuracy {guess.accuracy_percent:.1f} % ({low:.1f} to {high:.1f}), {guess.accuracy_kind}"


def _hover(candidate: Candidate) -> str:
    """Return all of a candidate, in plotly's few HTML tags."""
    guess = candidate.recovery
    lines = [
        *text(candidate).splitlines(),
        f"peak {candidate.where}",
        f"trained: {format_count(candidate.trained_parameters)} parameters",
        *_accuracy(candidate),
        f"interval: {guess.interval}",
        f"rests on: {guess.rests_on}",
        *([f"source: {guess.source}"] if guess.source else []),
    ]
    first, *rest = (escape(part, quote=False) for line in lines for part in wrap(line, 80))
    return "<br>".join([f"<b>{first}</b>", *rest])


def _figure(priced: Sequence[Candidate], models: Sequence[str]) -> Figure:
    """Return a panel per model: a trace per method, the frontier, a ring for the recommended, a line for the budget."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    height = 420 * len(models)
    titles = [escape(model, quote=False) for model in models]
    figure = make_subplots(rows=len(models), cols=1, subplot_titles=titles, vertical_spacing=100 / height)
    frontier = pareto_data(priced)
    shown: set[str] = set()

    def add(row: int, name: str, **what) -> None:
        figure.add_trace(
            Scatter(name=name, legendgroup=name, showlegend=name not in {"recommended", *shown}, **what), row=row, col=1
        )
        shown.add(name)

    for row, model in enumerate(models, 1):
        line = frontier[frontier["frontier"] & (frontier["model"] == model)]
        add(
            row, "frontier", x=line["peak_bytes"] / 1e6, y=line["recovery"], mode="lines", hoverinfo="skip",
            line={"color": "#888888", "width": 1, "shape": "hv"},
        )  # fmt: skip
        for method in METHODS:
            every = [c for c in priced if (c.model, c.way.method) == (model, method)]
            own = [(c, known) for c in every if (known := c.recovery.known)]
            if not own:
                continue
            colour, marker = style(method)
            add(
                row, method, x=[c.peak_bytes / 1e6 for c, _ in own], y=[known.value for _, known in own],
                mode="markers", hovertext=[_hover(c) for c, _ in own], hoverinfo="text",
                marker={"color": colour, "size": 10, "line": {"width": 1.5, "color": colour},
                        "symbol": [MARKERS[marker] + _SYMBOL[fill(c.recovery.kind)] for c, _ in own]},
                error_y={"symmetric": False, "array": [known.high - known.value for _, known in own],
                         "arrayminus": [known.value - known.low for _, known in own],
                         "color": colour, "thickness": 0.5, "width": 0},
            )  # fmt: skip
        add(
            row, "recommended", x=[], y=[], mode="markers", hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 24, "color": BLACK, "line": {"width": 2}},
        )  # fmt: skip
        dashed = {"dash": "dash", "width": 1.5, "color": "#333333"}
        figure.add_shape(type="line", y0=0, y1=1, yref="y domain", opacity=1, line=dashed, row=row, col=1)
        most = max(candidate.peak_bytes for candidate in priced if candidate.model == model)
        figure.update_xaxes(title="peak memory of a training step, MB", range=[0, 1.06e-6 * most], row=row, col=1)
    figure.update_yaxes(title="expected recovery", range=[-0.05, 1.06])
    figure.update_layout(template="simple_white", height=height, margin={"t": 40, "b": 40},
                         hoverlabel={"align": "left", "bgcolor": "white"})  # fmt: skip
    return figure


def _notes(priced: Sequence[Candidate], models: Sequence[str]) -> Iterator[str]:
    yield f"A training step: {settings(priced)}. Recovery: 0 is training the last layer only, 1 is training everything."
    signs = {"full": "filled", "dot": "with a dot", "hollow": "hollow"}
    marks = "; ".join(f"{signs[kind]}: {meaning}" for kind, meaning in FILLS.items())
    yield f"Marks: {marks}. Bars: intervals. Ring: recommended. Dashed line: the memory there is."
    for model in models:
        unknown = ", ".join(c.label for c in priced if c.model == model and c.recovery.value is None)
        if unknown:
            yield f"Of unknown recovery on {model}, so not drawn, and chosen only where nothing else fits: {unknown}."
    if len(models) > 1:
        yield f"Note: {RELATIVE}."
