"""Answers of the planner as tables and panels for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from costmodel import PLAIN
from costmodel.interface.layout import Column, Fields, Listing, wrap
from costmodel.interface.programs import flat
from costmodel.interface.running import terminal
from costmodel.units import format_bytes, format_count

from ..choosing.naming import namer, short_names
from ..choosing.objectives import keeps
from ..choosing.reasons import method_reasons, other_methods, surety
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


def candidate_table(rows: list[tuple[str, Candidate]], several: bool, title: str) -> Listing:
    """Return a table of candidates, each behind a label; the label and model columns only where they tell apart."""
    short, name = short_names(candidate.model for _, candidate in rows), namer([candidate for _, candidate in rows])
    by_accuracy = scale_of(candidate for _, candidate in rows).name == "accuracy"
    columns = [
        Column("method"), Column("model", optional=0 if several else 1), Column("", optional=4),
        Column("peak", number=True), Column("FLOPs", number=True, optional=3),
        Column("trained", number=True, optional=1), Column("accuracy" if by_accuracy else "recovery"),
        Column("basis", optional=2),
    ]  # fmt: skip
    texts = [
        (
            name(candidate, with_model=False), short[candidate.model] if several else "", label,
            format_bytes(candidate.peak_bytes), format_count(candidate.total_flops),
            format_count(candidate.trained_parameters), *_expected(candidate, by_accuracy),
        )
        for label, candidate in rows
    ]  # fmt: skip
    filled = [place for place in range(len(columns)) if any(line[place] for line in texts)]
    return Listing([columns[place] for place in filled], [[line[place] for place in filled] for line in texts], title)


def _bullets(lines: list[str], width: int) -> Text:
    return Text("\n".join(line for text in lines for line in wrap(text, width, "- ", "  ")))


def _panel(answer: Recommendation, held: Held) -> Fields:
    """Return the pick with its costs and expected accuracy."""
    chosen, guess, step = answer.chosen, answer.chosen.recovery, answer.chosen.step
    parts = [
        f"{name.replace('_', ' ')} {format_bytes(size)}"
        for name, size in chosen.memory_bytes.items()
        if size and name != "peak"
    ]
    budget = f" of {format_bytes(answer.ram_bytes)}" if answer.ram_bytes else ""
    percent = guess.accuracy_percent
    rows = [
        ("network", chosen.model),
        ("method", f"{chosen.way.description} ({format_count(chosen.trained_parameters)} parameters)"),
        ("step", replace(step, schedule=PLAIN).label),
        ("schedule", step.schedule.label(step.batch)),
        ("budget", held.against if held.is_process else ""),
        ("peak memory", f"{format_bytes(chosen.peak_bytes)}{budget}, {chosen.where}"),
        ("", ", ".join(parts)),
        ("process", _process(held)),
        ("FLOPs per step", f"{format_count(chosen.total_flops)} (forward {format_count(chosen.forward_flops)}, "
                           f"backward {format_count(chosen.backward_flops)})"),
        ("time per step", "" if held.seconds.kind == "unknown" else held.seconds.text),
        *_of_epochs(held),
        ("expected accuracy", "" if percent is None else f"{percent:.1f} % ({guess.accuracy_low_percent:.1f} to "
                              f"{guess.accuracy_high_percent:.1f}), {guess.accuracy_kind}"),
        ("expected recovery", f"{_recovery(chosen)}, {guess.kind} (0: only the last layer trained, 1: everything)"),
    ]  # fmt: skip
    fields = [(name, text) for name, text in rows if text]
    return Fields("recommended", fields, frozenset({"network", "method"}))


def _process(held: Held) -> str:
    """Return what the whole process takes; empty where there is none."""
    if held.process is None:
        return ""
    floor = held.process.floor
    whole = format_bytes(held.process.bytes)
    return f"{whole} ({format_bytes(floor.bytes)} of it {floor.what}, {floor.kind})"


def _of_epochs(held: Held) -> list[tuple[str, str]]:
    """Return the time of all epochs, and what a cache takes."""
    rows = []
    if held.epochs and held.epoch_seconds and held.training_seconds and held.seconds.value is not None:
        images, count = held.epochs.images, held.epochs.count
        rows.append((f"epoch of {images:,}", held.epoch_seconds.text))
        if count > 1:
            rows.append((f"{count} epochs", held.training_seconds.text))
    if held.cache:
        total = "" if held.cache_bytes is None else f", {format_bytes(held.cache_bytes)} for all"
        rows.append(("cache on storage", f"{format_bytes(held.cache.bytes_per_image)} per image{total}"))
    return rows


def _alternatives(answer: Recommendation) -> list[tuple[str, Candidate]]:
    """Return the candidates worth knowing besides the pick, each once, with what sets it apart."""

    def lack(candidate: Candidate) -> str:
        missing = candidate.peak_bytes - (answer.ram_bytes or math.inf)
        return f"lacks {format_bytes(missing)}" if missing > 0 else "beyond a limit"

    def other(candidate: Candidate) -> str:
        return "other method" if keeps(candidate, answer.limits) else lack(candidate)

    labelled = [(lack(c), c) for c in (answer.next_better, answer.best_unfit) if c]
    labelled += [("cheaper", candidate) for candidate in answer.cheaper]
    labelled += [(label, c) for label, c in (("faster", answer.faster), ("safer", answer.safer)) if c]
    labelled += [("other network", c) for c in answer.best_per_model if c.model != answer.chosen.model]
    labelled += [(other(candidate), candidate) for candidate in other_methods(answer)]
    found: dict[int, tuple[str, Candidate]] = {}
    for label, candidate in labelled:
        found.setdefault(id(candidate), (label, candidate))
    return list(found.values())


def _basis(answer: Recommendation) -> Iterator[str]:
    """Yield what the expected accuracy of the pick rests on."""
    guess = answer.chosen.recovery
    if guess.accuracy_percent is not None:
        yield f"expected accuracy: {guess.accuracy_kind}: {guess.accuracy_rests_on}"
    source = f"; source: {guess.source}" if guess.source else ""
    yield f"expected recovery: {guess.kind}; it rests on {guess.rests_on}{source}; interval: {guess.interval}"


def show_recommendation(answer: Recommendation, held: Held, budget: str) -> None:
    """Print the pick, how sure it is, what else there is, and why. budget: as for `surety`."""
    out = console()
    out.print(_panel(answer, held))
    said, command = surety(answer, budget)
    out.print(Text.assemble(("how sure: ", "bold"), said))
    if command:
        out.print(Text.assemble(("to be surer: ", "bold"), command), soft_wrap=True)
    out.print()
    rows = _alternatives(answer)
    if rows:
        several = len({candidate.model for candidate in answer.candidates}) > 1
        out.print(candidate_table(rows, several, "alternatives"))
    shown = set(method_reasons(answer))  # which the table has
    why = [*(reason for reason in answer.reasons if reason not in shown), *_basis(answer)]
    out.print(Text("why", "bold"), _bullets([*why, *(f"note: {note}" for note in answer.notes)], out.width), sep="\n")


def show_left_out(found: list[LeftOut]) -> None:
    """Print how far off the predictions are, by what was left out, and those that are furthest off."""
    title = "left out and predicted, given last and full: mean absolute error and 90 % interval"
    names = ("predictions", "error, points", "held", "width, points")
    columns = [Column("left out"), Column("method"), *(Column(name, number=True) for name in names)]
    shown = summaries(found)
    rows = [
        (
            one.left_out, one.name, f"{one.count}", f"{one.points_error:.1f}", f"{100 * one.coverage:.0f} %",
            f"{one.width:.1f}",
        )
        for one in shown
    ]  # fmt: skip
    out = console()
    bold = frozenset(place for place, one in enumerate(shown) if one.name == "all")
    out.print(Listing(columns, rows, title, key=1, bold=bold))
    worst = sorted((one for one in found if not one.covered), key=lambda one: -abs(one.points_error))[:_WORST]
    out.print(
        Text(f"furthest off of {sum(not one.covered for one in found)} that their intervals do not hold", "bold"),
        _bullets([
            f"{one.way.label} on {one.cell.dataset}, {one.cell.model}, without its {one.left_out}: expected "
            f"{one.interval.value:.1f} % ({one.interval.low:.1f} to {one.interval.high:.1f}), observed "
            f"{one.top1_percent:.1f} %"
            for one in worst
        ], out.width),
        sep="\n",
    )  # fmt: skip


def recommendation_rows(answer: Recommendation) -> list[dict[str, Any]]:
    """Return the pick and its alternatives as rows for programs: `role` is what sets each apart."""
    chosen = [("recommended", answer.chosen), *_alternatives(answer)]
    return [{"role": role, **flat(candidate.to_dict())} for role, candidate in chosen]


def device_rows() -> list[dict[str, Any]]:
    """Return what each device has, and what it leaves for training."""
    return [
        {
            "device": name,
            "ram_bytes": found.ram.bytes,
            "training_ram_bytes": found.training_ram_bytes,
            "flops_per_second": found.peak.flops_per_second,
            "bytes_per_second": found.bandwidth.bytes_per_second,
        }
        for name, found in ((name, device(name)) for name in device_names())
    ]


def quantity_rows(found: Device) -> list[dict[str, Any]]:
    """Return a device's numbers, each with its source."""
    return [dict(zip(("quantity", "value", "source"), row, strict=True)) for row in found.quantities()]


def show_devices() -> None:
    """Print what each device has, and what it leaves for training."""
    columns = [
        Column("device"), Column("RAM", number=True), Column("for training", number=True),
        Column("peak", number=True, optional=2), Column("bandwidth", number=True, optional=1),
    ]  # fmt: skip
    rows = [
        (
            row["device"], format_bytes(row["ram_bytes"]), format_bytes(row["training_ram_bytes"]),
            f"{format_count(row['flops_per_second'])}FLOP/s", f"{format_bytes(row['bytes_per_second'])}/s",
        )
        for row in device_rows()
    ]  # fmt: skip
    console().print(Listing(columns, rows))


def show_device(found: Device) -> None:
    """Print a device's numbers, each with its source."""
    columns = [Column("quantity", long=True), Column("value"), Column("source", long=True)]
    console().print(Listing(columns, list(found.quantities()), found.explain()))
