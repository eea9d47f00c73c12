"""Answers of the planner as tables and panels for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from costmodel.interface.running import terminal
from costmodel.units import format_bytes, format_count

from ..choosing.reasons import namer, short_names
from ..choosing.recommend import Recommendation
from ..choosing.scale import Scale, scale_of
from ..devices.budget import Held
from ..devices.device import Device, device, device_names
from ..estimates.validation import LeftOut, summaries

_WORST = 6
_WIDTH = 120

if TYPE_CHECKING:
    from ..choosing.candidate import Candidate


def console() -> Console:
    """Return the terminal, or 120 columns where there is none."""
    return terminal(_WIDTH)


def _expected(candidate: Candidate, by_accuracy: bool) -> tuple[str, str]:
    """Return the expected accuracy or recovery with its interval, and its kind."""
    guess = candidate.recovery
    if not by_accuracy:
        return _recovery(candidate), guess.kind
    if guess.accuracy_percent is None:
        return "unknown", "unknown"
    ends = f"({guess.accuracy_low_percent:.1f} to {guess.accuracy_high_percent:.1f})"
    return f"{guess.accuracy_percent:.1f} % {ends}", guess.accuracy_kind


def _recovery(candidate: Candidate) -> str:
    guess = candidate.recovery
    text = Scale("recovery").text(-math.inf if guess.value is None else guess.value)
    return text if guess.kind in ("definition", "unknown") else f"{text} ({guess.low:.2f} to {guess.high:.2f})"


def candidate_table(rows: list[tuple[str, Candidate]], several: bool, title: str) -> Table:
    """Return a table of candidates, each behind a label; the label and model columns only where they tell apart."""
    short, name = short_names(candidate.model for _, candidate in rows), namer([candidate for _, candidate in rows])
    labelled = any(label for label, _ in rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    if labelled:
        table.add_column("", no_wrap=True)
    if several:
        table.add_column("model", overflow="fold", min_width=18)
    table.add_column("method", overflow="fold")
    for column in ("peak", "FLOPs", *(() if several else ("trained",))):
        table.add_column(column, justify="right", no_wrap=True)
    by_accuracy = scale_of(candidate for _, candidate in rows).name == "accuracy"
    table.add_column("accuracy" if by_accuracy else "recovery", no_wrap=True)
    table.add_column("basis", no_wrap=True)
    for label, candidate in rows:
        table.add_row(
            *([label] if labelled else []),
            *([short[candidate.model]] if several else []),
            name(candidate, with_model=False),
            format_bytes(candidate.peak_bytes),
            format_count(candidate.total_flops),
            *(() if several else (format_count(candidate.trained_parameters),)),
            *_expected(candidate, by_accuracy),
        )
    return table


def _bullets(lines: list[str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for line in lines:
        grid.add_row("-", plain(line))
    return grid


def plain(text: str) -> Text:
    """Return text that rich shows as it is."""
    return Text(text)


def _panel(answer: Recommendation, held: Held) -> Panel:
    """Return the pick with its costs and what its accuracy rests on."""
    chosen, guess = answer.chosen, answer.chosen.recovery
    parts = [
        f"{name.replace('_', ' ')} {format_bytes(size)}"
        for name, size in chosen.memory_bytes.items()
        if size and name != "peak"
    ]
    budget = f" of {format_bytes(answer.ram_bytes)}" if answer.ram_bytes else ""
    percent = guess.accuracy_percent
    rows = [
        ("model", chosen.model),
        ("method", chosen.way.description),
        ("step", chosen.step.label),
        ("held against", held.against),
        ("peak memory", f"{format_bytes(chosen.peak_bytes)}{budget}, {chosen.where}"),
        ("", ", ".join(parts)),
        ("process", held.process.text if held.process else ""),
        ("FLOPs per step", f"{format_count(chosen.total_flops)} (forward {format_count(chosen.forward_flops)}, "
                           f"backward {format_count(chosen.backward_flops)})"),
        ("time per step", "" if held.seconds.kind == "unknown" else held.seconds.text),
        ("trained", f"{format_count(chosen.trained_parameters)} parameters"),
        ("expected accuracy", "" if percent is None else f"{percent:.1f} % ({guess.accuracy_low_percent:.1f} to "
                              f"{guess.accuracy_high_percent:.1f}), {guess.accuracy_kind}: {guess.accuracy_rests_on}"),
        ("expected recovery", f"{_recovery(chosen)} of the way from training the last layer (0) to everything (1)"),
        ("  kind", guess.kind),
        ("  rests on", guess.rests_on),
        ("  source", guess.source),
        ("  interval", guess.interval),
    ]  # fmt: skip
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        if text:
            grid.add_row(label, plain(text), style="bold" if label in ("model", "method") else "")
    return Panel(grid, title="recommended", title_align="left")


def _alternatives(answer: Recommendation) -> list[tuple[str, Candidate]]:
    """Return the candidates worth knowing besides the pick, each once, with what sets it apart."""

    def lack(candidate: Candidate) -> str:
        missing = candidate.peak_bytes - (answer.ram_bytes or math.inf)
        return f"lacks {format_bytes(missing)}" if missing > 0 else "beyond a limit"

    labelled = [(lack(c), c) for c in (answer.next_better, answer.best_unfit) if c]
    labelled += [("cheaper", candidate) for candidate in answer.cheaper]
    labelled += [(label, c) for label, c in (("faster", answer.faster), ("safer", answer.safer)) if c]
    labelled += [("other network", c) for c in answer.best_per_model if c.model != answer.chosen.model]
    return list({id(candidate): (label, candidate) for label, candidate in labelled}.values())


def show_recommendation(answer: Recommendation, held: Held) -> None:
    """Print the pick, what else there is, and why."""
    out = console()
    out.print(_panel(answer, held))
    rows = _alternatives(answer)
    if rows:
        several = len({candidate.model for candidate in answer.candidates}) > 1
        out.print(candidate_table(rows, several, "alternatives"))
    out.print(Text("why", "bold"), _bullets([*answer.reasons, *(f"note: {note}" for note in answer.notes)]), sep="\n")


def show_left_out(found: list[LeftOut]) -> None:
    """Print how far off the predictions are, by what was left out, and those that are furthest off."""
    title = "left out and predicted, given last and full: mean absolute error and 90 % interval"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("left out", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("predictions", "error, points", "held", "width, points"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in summaries(found):
        table.add_row(
            one.left_out, one.name, f"{one.count}", f"{one.points_error:.1f}", f"{100 * one.coverage:.0f} %",
            f"{one.width:.1f}", style="bold" if one.name == "all" else "",
        )  # fmt: skip
    out = console()
    out.print(table)
    worst = sorted((one for one in found if not one.covered), key=lambda one: -abs(one.points_error))[:_WORST]
    out.print(
        Text(f"furthest off of {sum(not one.covered for one in found)} that their intervals do not hold", "bold"),
        _bullets([
            f"{one.way.label} on {one.cell.dataset}, {one.cell.model}, without its {one.left_out}: expected "
            f"{one.interval.value:.1f} % ({one.interval.low:.1f} to {one.interval.high:.1f}), observed "
            f"{one.top1_percent:.1f} %"
            for one in worst
        ]),
        sep="\n",
    )  # fmt: skip


def show_devices() -> None:
    """Print what each device has, and what it leaves for training."""
    listing = Table(box=SIMPLE_HEAD)
    for column in ("device", "RAM", "for training", "peak", "bandwidth"):
        listing.add_column(column, no_wrap=True, justify="left" if column == "device" else "right")
    for name in device_names():
        found = device(name)
        listing.add_row(
            name,
            format_bytes(found.ram.bytes),
            format_bytes(found.training_ram_bytes),
            f"{format_count(found.peak.flops_per_second)}FLOP/s",
            f"{format_bytes(found.bandwidth.bytes_per_second)}/s",
        )
    console().print(listing)


def show_device(found: Device) -> None:
    """Print a device's numbers, each with its source."""
    listing = Table(box=SIMPLE_HEAD, title=plain(found.explain()), title_justify="left")
    for column in ("quantity", "value", "source"):
        listing.add_column(column, overflow="fold")
    for row in found.quantities():
        listing.add_row(*map(plain, row))
    console().print(listing)
