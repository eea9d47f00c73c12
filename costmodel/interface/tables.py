"""Answers as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..methods.table import METHODS
from ..units import format_bytes, format_count
from .running import terminal

if TYPE_CHECKING:
    import pandas

    from ..checking.reproduction import Reproduction, Variant
    from ..checking.verification import Verification

_WIDTH = 180  # of a pipe or file, which has none of its own


def print_frame(frame: pandas.DataFrame, title: str) -> None:
    """Print a pandas frame as a table."""
    print_rows(list(frame.columns), frame.to_dict("records"), title)


def print_rows(names: list[str], rows: list[dict[str, Any]], title: str) -> None:
    """Print rows as a table; columns of bytes and FLOPs are made readable."""
    table = Table(title=title, title_justify="left")
    for name in names:
        number = all(isinstance(row[name], (int, float)) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in names))
    terminal(_WIDTH).print(table)


def _cell(name: str, value: Any) -> str:
    if name == "bytes" or name.endswith("_bytes"):
        return format_bytes(value) if value else "-"
    if name.endswith(("_flops", "parameters")):
        return format_count(value) if value else "-"
    return str(value)


def print_verification(result: Verification) -> None:
    """Print predicted next to measured, and the modules whose saved bytes differ."""
    step = result.footprint.step
    title = f"{step.graph.model}, {step.way.label}, batch {step.batch}, accounting {step.accounting}"
    table = Table("quantity", title=title, title_justify="left")
    for column in ("predicted", "measured", "difference", "allowed", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for check in result.checks:
        allowed = f"{check.tolerance:.1%}" + (f" + {check.slack:,}" if check.slack else "")
        table.add_row(
            f"{check.quantity}, {check.unit}", f"{check.predicted:,}", f"{check.measured:,}",
            f"{check.relative_difference:+.3%}", allowed, "agrees" if check.agrees else "DIFFERS",
        )  # fmt: skip
    out = terminal()
    out.print(table)
    if not result.saved.agrees:
        modules = Table("module", title="saved bytes that differ", title_justify="left")
        for column in ("predicted", "measured"):
            modules.add_column(column, justify="right")
        for name, predicted, measured in result.differing_modules:
            modules.add_row(name, f"{predicted:,}", f"{measured:,}")
        out.print(modules)


def print_methods() -> None:
    """Print the table of methods."""
    table = Table("method", "depth k", "what trains, and how", "runs here", "source")
    for method in METHODS.values():
        runs = "yes" if method.has_layers else "priced only"
        table.add_row(method.name, "yes" if method.takes_blocks else "", method.summary, runs, method.source)
    terminal().print(table)


def print_reproduction(results: list[Reproduction], tried: list[Variant]) -> None:
    """Print published next to computed, why some differ, and the countings that were tried."""
    table = Table("source", "network", "method", "quantity", title="published next to computed", title_justify="left")
    for column in ("published", "computed", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        row = result.published
        text = "reproduced" if result.reproduced else "differs"
        digits = max(0, min(6, len(f"{row.tolerance:.9f}".rstrip("0").partition(".")[2])))
        computed = f"{result.computed:,.{digits + 2 if row.rounding == 'down' else digits}f} {row.unit}"
        table.add_row(
            f"{row.source}, {row.table}", row.network, row.way.label, row.quantity,
            f"{row.value:,.{digits}f} {row.unit}", computed, text if result.as_expected else f"{text}: NOT AS EXPECTED",
        )  # fmt: skip
    other = Table("claim", "counting", title="countings that were tried", title_justify="left")
    for column in ("published", "gives"):
        other.add_column(column, justify="right", no_wrap=True)
    for variant in tried:
        other.add_row(variant.claim, variant.counting, f"{variant.published:.1f} %", f"{variant.gives:.1f} %")
    out = terminal(200)
    out.print(table)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in (result.published for result in results):
        if row.reason:
            reasons.setdefault((row.network, row.reason), []).append(f"{row.value:g}")
    for (network, reason), values in reasons.items():
        out.print(f"{network}, {', '.join(values)}: {reason}")
    out.print(other)
