"""A campaign for people: progress bars while it runs, and its tables at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from costmodel import Way
from costmodel.interface.layout import Column, Listing
from costmodel.units import format_bytes

from ..campaign.next_trial import Trial
from ..campaign.watch import Watch
from ..choosing.candidate import Candidate
from ..choosing.objectives import seconds_text
from ..choosing.recommend import Recommendation
from .bars import ProgressBars

if TYPE_CHECKING:
    from ..campaign.measure import Finished, Outcome


class Bars(ProgressBars, Watch):
    """Progress bars on standard error: the images, the campaign's runs, and the epochs of the present one."""

    def reads(self, done: int, total: int) -> None:
        """Show how many of the images are read."""
        self.show("images", "reading images", done, total)

    def starts(self, trial: Trial, number: int, done: int, most: int, epochs: int) -> None:
        """Show the campaign's bar, and an empty one for the run."""
        self.show("runs", "runs, at most", done, most)
        self.show("epochs", f"trial {number}: {trial.label}", 0, epochs, anew=True)

    def tries(self, trial: Trial, learning_rate: float) -> None:
        """Show which learning rate is tried."""
        bar = self.progress.tasks[self.tasks["epochs"]]
        text = f"learning rate {learning_rate:g} of {trial.candidate.label}, on validation images"
        self.show("epochs", text, 0, bar.total or 1, anew=True)

    def epoch(self, epoch: int, accuracy_percent: float) -> None:
        """Move the run's bar on."""
        if self.stopped:  # where the interruption was lost, as in a callback of a library
            raise KeyboardInterrupt
        self.progress.update(self.tasks["epochs"], completed=epoch)

    def ends(self, trial: Trial, accuracy_percent: float, stopped: bool) -> None:
        """Write the result above the bars."""
        early = ", stopped early: it could not reach the pick" if stopped else ""
        self.progress.console.print(Text(f"{trial.label}: {accuracy_percent:.1f} %{early}"))
        self.progress.advance(self.tasks["runs"])

    def waits(self, running: Sequence[str]) -> None:
        """Say whose runs are waited for."""
        self.show("epochs", f"waiting for {', '.join(running)} of other workers", 0, 1)


def tables(outcome: Outcome) -> Iterator[RenderableType]:
    """Yield what a campaign came to."""
    yield _runs(outcome)
    mismatched = [run for run in outcome.runs if not run.memory_agrees]
    for run in mismatched:
        yield Text(
            f"memory not as predicted in trial {run.number} ({run.way.label}): saved {run.saved_bytes:,} predicted, "
            f"{run.measured_saved_bytes:,} measured; peak {run.peak_bytes:,} and {run.measured_peak_bytes:,} bytes"
        )
    for label, reason in outcome.failed.items():
        yield Text(f"{label} could not be trained: {reason}")
    for note in outcome.notes:
        yield Text(f"note: {note}")
    yield Text(f"ended: {outcome.ended}")
    if not outcome.above_chance:
        yield Text(
            f"nothing is recommended: {_promise(outcome.after)} is not above chance, {outcome.chance_percent:.1f} %; "
            "look at the images, the learning rate (--lr) and the epochs",
            "bold",
        )
        return
    then = "" if outcome.changed else ", as before the runs"
    yield Text(f"recommended{then}: {_promise(outcome.after)}", "bold")
    if outcome.changed:
        yield Text(f"recommended before the runs: {_promise(outcome.before)}")


def _runs(outcome: Outcome) -> Listing:
    """Return the table of what was measured, the most accurate first."""
    columns = [
        Column("method"), Column("rate", number=True, optional=2), Column("runs", number=True),
        Column("accuracy", number=True), Column("90 % interval", number=True),
        Column("peak predicted", number=True, optional=4), Column("measured", number=True, optional=3),
        Column("memory"), Column("time", number=True, optional=1),
    ]  # fmt: skip
    rows: list[tuple[str, ...]] = []
    bold: set[int] = set()
    candidates = {c.way: c for c in outcome.after.candidates}
    groups: dict[Way, list[Finished]] = {}
    for run in outcome.runs:
        groups.setdefault(run.way, []).append(run)

    def accuracy(way: Way) -> float:
        percent = candidates[way].recovery.accuracy_percent
        assert percent is not None  # it was measured
        return percent

    for key, runs in sorted(groups.items(), key=lambda item: -accuracy(item[0])):
        guess = candidates[key].recovery
        whole = [run for run in runs if not run.stopped]
        early = f"{len(runs) - len(whole)} stopped early" if len(whole) < len(runs) else ""
        if key == outcome.after.chosen.way:
            bold.add(len(rows))
        rows.append((
            candidates[key].label,
            f"{runs[0].learning_rate:g}",
            ", ".join(part for part in (str(len(whole)) if whole else "", early) if part),
            f"{guess.accuracy_percent:.1f} %" + (" DIVERGED" if any(run.diverged for run in runs) else ""),
            f"{guess.accuracy_low_percent:.1f} to {guess.accuracy_high_percent:.1f}",
            format_bytes(runs[0].peak_bytes),
            format_bytes(max(run.measured_peak_bytes for run in runs)),
            "as predicted" if all(run.memory_agrees for run in runs) else "DIFFERS",
            seconds_text(sum(run.seconds for run in runs)),
        ))  # fmt: skip
    return Listing(columns, rows, "measured", bold=frozenset(bold))


def _promise(answer: Recommendation) -> str:
    chosen: Candidate = answer.chosen
    value = answer.scale.text(answer.scale.value(chosen))
    kind = answer.scale.kind(chosen)
    return f"{chosen.label}, {answer.scale.name} {value} ({kind}), peak {format_bytes(chosen.peak_bytes)}"
