"""One HTML file that holds everything: memory against expected accuracy, with sliders for memory and compute.

page.html has the text and the script, which draws the marks, and looks up what is recommended for the sliders' places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from math import cos, pi, sin
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from costmodel import METHODS, InputError, whole_step
from costmodel.interface.drawing import plot_path
from costmodel.units import format_bytes, format_count

from ..choosing.candidate import Candidate
from ..choosing.choice import pick
from ..choosing.pareto import non_dominated
from ..choosing.reasons import RELATIVE
from ..choosing.scale import Scale, scale_of
from .plots import FILLS, fill, settings, style

_SIZE = 5.5  # pixels from a mark's middle to its corners
_LABELS = {"recovery": "expected recovery", "accuracy": "expected accuracy, %"}


def write_page(
    priced: Sequence[Candidate],
    path: str | Path,
    ram_bytes: int | None = None,
    capped: Mapping[float, Sequence[Candidate]] | None = None,
) -> None:
    """Write the page to an .html file. ram_bytes: where the slider starts. capped: as for `page`.

    Errors: those of `costmodel.drawing.plot_path` and `page`; InputError if the file cannot be written.
    """
    path = plot_path(path, (".html",))
    try:
        path.write_text(page(priced, ram_bytes, capped), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another file") from None


def page(
    priced: Sequence[Candidate],
    ram_bytes: int | None = None,
    capped: Mapping[float, Sequence[Candidate]] | None = None,
) -> str:
    """Return the page; it loads nothing from anywhere.

    priced: the candidates, carried out plainly if there is `capped`: the same candidates by the schedule of least
    memory that takes at most so many times the plain step's FLOPs. A second slider then chooses among these.

    Errors: InputError for an accounting that leaves parts of a step out: a budget cannot be held against its peak.
    """
    whole_step(priced[0].step.accounting, "has no peak to hold against a budget")
    data = page_data(priced, capped)
    most = max(round(1.05 * max(candidate.peak_bytes for candidate in priced)), ram_bytes or 0)
    return Template(files("planner.interface").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=f"Memory of fine-tuning against expected {data['scale']}",
        most_bytes=most,
        ram_bytes=ram_bytes or most // 2,
        notes="<br>".join(escape(note) for note in _notes(priced, data)),
        data=json.dumps(data).replace("<", "\\u003c"),  # so that no name can end the script
    )


def page_data(priced: Sequence[Candidate], capped: Mapping[float, Sequence[Candidate]] | None = None) -> dict[str, Any]:
    """Return what the script draws and looks up.

    scale, label: recovery, or accuracy where it is known of all. models: their names. styles: colour and shape of each
    method's mark. x, y: where the axes end. levels: for each place of the slider of FLOPs (one if there is none) its
    text, the points, and the picks: from how many bytes on which candidate is recommended, in order.
    """
    scale = "accuracy" if scale_of(priced).name == "accuracy" else "recovery"
    models = list(dict.fromkeys(candidate.model for candidate in priced))
    plain = {_key(candidate): candidate.peak_bytes for candidate in priced} if capped else {}
    levels = [_level("", priced, models, scale, {})]
    if capped:
        levels = [
            _level(f"at most {cap:g} times the FLOPs of the plain step", some, models, scale, plain)
            for cap, some in sorted(capped.items())
        ]
    points = [point for level in levels for point in level["points"]]
    low = min((point["low"] for point in points), default=0.0)
    high = max((point["high"] for point in points), default=1.0)
    margin = 0.04 * max(high - low, 0.01)
    shown = {point["method"] for point in points}
    return {
        "scale": scale,
        "label": _LABELS[scale],
        "models": models,
        "styles": {name: _style(name) for name in METHODS if name in shown},
        "x": 1.06 * max(candidate.peak_bytes for candidate in priced),
        "y": [low - margin, high + margin],
        "levels": levels,
    }


def _key(candidate: Candidate) -> tuple:
    step = candidate.step
    return candidate.model, candidate.resolution, step.way, step.batch, step.optimizer, step.precision


def _level(
    cap: str, priced: Sequence[Candidate], models: Sequence[str], scale: str, plain: Mapping[tuple, int]
) -> dict[str, Any]:
    """Return the points and picks of candidates. plain: peak bytes by `_key` of those carried out plainly."""
    points: list[dict[str, Any]] = []
    for candidate in priced:
        if (value := _value(candidate, scale)) is not None:
            low, high = Scale(scale).interval(candidate)
            points.append({
                "model": models.index(candidate.model), "method": candidate.way.method,
                "k": "" if candidate.way.blocks is None else str(candidate.way.blocks), "bytes": candidate.peak_bytes,
                "plain": plain.get(_key(candidate)), "value": value, "low": low, "high": high,
                "fill": fill(Scale(scale).kind(candidate)), "frontier": False, "tip": _tip(candidate),
            })  # fmt: skip
    for number in range(len(models)):
        own = [point for point in points if point["model"] == number]
        costs = np.array([[point["bytes"], -point["value"]] for point in own], float).reshape(-1, 2)
        for point, on in zip(own, non_dominated(costs).tolist(), strict=True):
            point["frontier"] = on
    picks: list[dict[str, Any]] = []
    held = None
    for budget in sorted({candidate.peak_bytes for candidate in priced}):
        chosen = pick(priced, budget).chosen
        if chosen is not held:
            held = chosen
            picks.append({
                "from": budget, "text": text(chosen), "model": models.index(chosen.model), "bytes": chosen.peak_bytes,
                "value": _value(chosen, scale),
            })  # fmt: skip
    nothing = f"nothing fits; the smallest footprint is\n{picks[0]['text']}"
    return {"cap": cap, "points": points, "picks": picks, "nothing": nothing}


def _value(candidate: Candidate, scale: str) -> float | None:
    guess = candidate.recovery
    return guess.value if scale == "recovery" else guess.accuracy_percent


def text(candidate: Candidate) -> str:
    """Return what the page says of a candidate that it recommends, in lines."""
    lines = [
        f"{candidate.label} on {candidate.model}",
        f"peak memory {format_bytes(candidate.peak_bytes)}, {format_count(candidate.total_flops)}FLOPs per step",
        *_accuracy(candidate),
        f"expected recovery {_recovery(candidate)}",
        ", ".join(filter(None, (settings([candidate]), candidate.step.schedule.label(candidate.batch)))),
    ]
    return "\n".join(lines)


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


def _tip(candidate: Candidate) -> str:
    """Return all of a candidate, in lines."""
    guess = candidate.recovery
    lines = [
        text(candidate),
        f"peak {candidate.where}",
        f"trained: {format_count(candidate.trained_parameters)} parameters",
        f"interval: {guess.interval}",
        f"rests on: {guess.rests_on}",
        *([f"source: {guess.source}"] if guess.source else []),
    ]
    return "\n".join(lines)


def _style(method: str) -> dict[str, str]:
    """Return the colour of a method's marks, and their outline as an SVG path around 0, 0."""
    colour, marker = style(method)
    return {"colour": colour, "path": _OUTLINES[marker]}


def _polygon(corners: int, first: float = -90.0, inner: float = 1.0, narrow: float = 1.0) -> str:
    """Return a regular polygon as an SVG path: its first corner at so many degrees, every other one further inside."""
    places = []
    for corner in range(corners):
        angle, far = pi * (first + 360 * corner / corners) / 180, _SIZE * (inner if corner % 2 else 1.0)
        places.append(f"{narrow * far * cos(angle):.2f} {far * sin(angle):.2f}")
    return f"M{'L'.join(places)}Z"


# By matplotlib's markers, so that a method looks the same in the pictures and on the page.
_OUTLINES = {
    "P": "M-1.8 -5.5H1.8V-1.8H5.5V1.8H1.8V5.5H-1.8V1.8H-5.5V-1.8H-1.8Z",
    "X": _polygon(8, -45, 0.38), "v": _polygon(3, 90), "D": _polygon(4), "o": _polygon(36), "s": _polygon(4, -45),
    "<": _polygon(3, 180), ">": _polygon(3, 0), "^": _polygon(3), "p": _polygon(5), "h": _polygon(6),
    "d": _polygon(4, narrow=0.6), "*": _polygon(10, inner=0.45), "H": _polygon(6, 0),
}  # fmt: skip


def _notes(priced: Sequence[Candidate], data: Mapping[str, Any]) -> Iterator[str]:
    yield f"A training step: {settings(priced)}. Recovery: 0 is training the last layer only, 1 is training everything."
    signs = {"full": "filled", "dot": "with a dot", "hollow": "hollow"}
    marks = "; ".join(f"{signs[kind]}: {meaning}" for kind, meaning in FILLS.items())
    yield f"Marks: {marks}; the number beside one is k, the trained blocks. Upright lines: intervals."
    yield "Ring: recommended. Dashed line: the memory there is. Steps: the candidates that no other one beats."
    if len(data["levels"]) > 1:
        yield (
            "Each way is shown in the least memory for the chosen compute; the level line ends at its memory when the "
            "step is carried out plainly."
        )
    for model in data["models"]:
        unknown = ", ".join(c.label for c in priced if c.model == model and _value(c, data["scale"]) is None)
        if unknown:
            yield f"Not drawn, and chosen only if nothing else fits, as the accuracy on {model} is unknown: {unknown}."
    if len(data["models"]) > 1:
        yield f"Note: {RELATIVE}."
