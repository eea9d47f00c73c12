"""Answers as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..methods.table import METHODS
from ..units import format_bytes, format_count
from .layout import Column, Listing
from .running import terminal

if TYPE_CHECKING:
    import pandas

    from ..checking.reproduction import Reproduction, Variant
    from ..checking.verification import Verification

WIDTH = 160  # of a pipe or file, which has none of its own
_LONG = 28  # a column with a longer text may break it
# Columns that are left out of a narrow terminal, the first of these first; --json and --csv have all.
_OPTIONAL = ("input", "bits", "part", "output", "first_layer", "in_place", "layers", "trained_parameters", "source")


def print_frame(frame: pandas.DataFrame, title: str) -> None:
    """Print a pandas frame as a table."""
    print_rows(frame.to_dict("records"), title)


def print_rows(rows: Sequence[Mapping[Any, Any]], title: str) -> None:
    """Print rows as a table, the first column their key; columns of bytes and FLOPs are made readable."""
    names = list(rows[0])
    texts = [[_cell(name, row[name]) for name in names] for row in rows]
    columns = [
        Column(
            name.removesuffix("_bytes").replace("_", " ") or name,
            all(isinstance(row[name], (int, float)) for row in rows),
            any(len(line[place]) > _LONG for line in texts) and place > 0,
            _OPTIONAL.index(name) + 1 if name in _OPTIONAL else 0,
        )
        for place, name in enumerate(names)
    ]
    filled = [place for place in range(len(names)) if any(line[place] for line in texts)]
    listing = Listing([columns[place] for place in filled], [[line[p] for p in filled] for line in texts], title)
    terminal(WIDTH).print(listing)


def _cell(name: str, value: Any) -> str:
    if name == "bytes" or name.endswith("_bytes"):
        return format_bytes(value) if value else "-"
    if name.endswith(("_flops", "parameters")):
        return format_count(value) if value else "-"
    return str(value)


def print_verification(result: Verification) -> None:
    """Print predicted next to measured, and the modules whose saved bytes differ."""
    step = result.footprint.step
    numbers = [Column(name, number=True) for name in ("predicted", "measured", "difference", "allowed")]
    rows = []
    for check in result.checks:
        allowed = f"{check.tolerance:.1%}" + (f" + {check.slack:,}" if check.slack else "")
        rows.append((
            f"{check.quantity}, {check.unit}", f"{check.predicted:,}", f"{check.measured:,}",
            f"{check.relative_difference:+.3%}", allowed, "agrees" if check.agrees else "DIFFERS",
        ))  # fmt: skip
    title = f"{step.graph.model}, {step.way.label}, batch {step.batch}, accounting {step.accounting}"
    out = terminal(WIDTH)
    out.print(Listing([Column("quantity", long=True), *numbers, Column("")], rows, title))
    if not result.saved.agrees:
        modules = [(name, f"{predicted:,}", f"{measured:,}") for name, predicted, measured in result.differing_modules]
        out.print(Listing([Column("module"), *numbers[:2]], modules, "saved bytes that differ"))


def method_rows() -> list[dict[str, Any]]:
    """Return a row per method."""
    return [
        {
            "method": method.name,
            "depth_k": "yes" if method.takes_blocks else "",
            "what_trains": method.summary,
            "runs_here": "yes" if method.has_layers else "priced only",
            "source": method.source,
        }
        for method in METHODS.values()
    ]


def print_reproduction(results: list[Reproduction], tried: list[Variant]) -> None:
    """Print published next to computed, why some differ, and the countings that were tried."""
    numbers = [Column("published", number=True), Column("computed", number=True)]
    rows = []
    for result in results:
        row = result.published
        text = "reproduced" if result.reproduced else "differs"
        digits = max(0, min(6, len(f"{row.tolerance:.9f}".rstrip("0").partition(".")[2])))
        computed = f"{result.computed:,.{digits + 2 if row.rounding == 'down' else digits}f} {row.unit}"
        rows.append((
            f"{row.source}, {row.table}", row.network, row.way.label, row.quantity,
            f"{row.value:,.{digits}f} {row.unit}", computed, text if result.as_expected else f"{text}: NOT AS EXPECTED",
        ))  # fmt: skip
    columns = [Column(name, long=True) for name in ("source", "network", "method", "quantity")]
    out = terminal(WIDTH)
    out.print(Listing([*columns, *numbers, Column("")], rows, "published next to computed"))
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in (result.published for result in results):
        if row.reason:
            reasons.setdefault((row.network, row.reason), []).append(f"{row.value:g}")
    for (network, reason), values in reasons.items():
        out.print(f"{network}, {', '.join(values)}: {reason}")
    other = [(v.claim, v.counting, f"{v.published:.1f} %", f"{v.gives:.1f} %") for v in tried]
    claims = [Column("claim", long=True), Column("counting", long=True), numbers[0], Column("gives", number=True)]
    out.print(Listing(claims, other, "countings that were tried"))
