"""An adaptation for people: the sub-network that was chosen, and how much its choice can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from costmodel.units import format_bytes, format_count

from ..estimates.subnetworks import FOLDS, Quality
from .report import console

if TYPE_CHECKING:
    from ..campaign.adapt import Adapted
    from ..choosing.subnetworks import Frontier


def show_adapted(found: Adapted, ram_bytes: int) -> None:
    """Print what an adaptation came to."""
    table = Table(title="adapted", title_justify="left", title_style="bold", show_header=False, box=SIMPLE_HEAD)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    chosen, plan = found.found, found.plan
    rows = [
        ("sub-network", found.model),
        ("method", plan.way.description),
        ("peak memory", f"{format_bytes(chosen.peak_bytes)} of {format_bytes(ram_bytes)}"),
        ("schedule", chosen.schedule.label(plan.batch) or "in one pass"),
        ("FLOPs per step", format_count(chosen.total_flops)),
        ("expected", f"{chosen.expected_percent:.1f} % in the super-network, on held-out images "
                     f"(90 %: +-{found.accuracy.half_points:.1f})"),
        ("fine-tuned", ", ".join(f"{percent:.1f} %" for _, percent in sorted(found.runs.items()))
                       + " on the test images"),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    out = console()
    out.print(table)
    for line in (_trust(found.accuracy.quality), f"ended: {found.ended}", *(f"note: {note}" for note in found.notes)):
        out.print(line)


def show_subnetworks(found: Frontier) -> None:
    """Print the frontier over sub-networks: memory against the accuracy that is expected."""
    table = Table(title=found.model, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in ("peak", "FLOPs", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("schedule")
    table.add_column("sub-network", overflow="fold")
    for one in found.best:
        table.add_row(
            format_bytes(one.peak_bytes), format_count(one.total_flops), f"{one.expected_percent:.1f} %",
            one.schedule.label(found.batch) or "in one pass", one.chosen.text,
        )  # fmt: skip
    out = console()
    out.print(table)
    out.print(_trust(found.quality))


def _trust(quality: Quality) -> str:
    return (
        f"the predictor, on sub-networks that it was not fitted to ({quality.observations}, in {FOLDS} parts): rank "
        f"correlation {quality.rank_correlation:.2f}, mean error {quality.error_points:.1f} points (always predicting "
        f"the mean: {quality.constant_error_points:.1f})"
    )
