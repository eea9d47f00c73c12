"""A campaign for people: progress bars while it runs, and its tables at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from costmodel import Way
from costmodel.interface.running import terminal
from costmodel.units import format_bytes

from ..campaign.next_trial import Trial
from ..campaign.watch import Watch
from ..choosing.candidate import Candidate
from ..choosing.objectives import seconds_text
from ..choosing.recommend import Recommendation

if TYPE_CHECKING:
    from ..campaign.measure import Finished, Outcome


class Bars(Watch):
    """Progress bars on standard error: the images, the campaign's runs, and the epochs of the present one."""

    def __init__(self):
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=terminal(stderr=True),
        )
        self.tasks: dict[str, TaskID] = {}
        self.stopped = False

    def __enter__(self) -> Bars:
        """Show the bars, once there is one."""
        return self

    def __exit__(self, *_) -> None:
        """Leave them as they are."""
        if self.tasks:
            self.progress.stop()

    def _set(self, bar: str, text: str, done: float, total: float, anew: bool = False) -> None:
        if not self.tasks:
            self.progress.start()
        if bar not in self.tasks:
            self.tasks[bar] = self.progress.add_task(text, total=total)
        elif anew:
            self.progress.reset(self.tasks[bar])
        self.progress.update(self.tasks[bar], description=text, completed=done, total=total)

    def reads(self, done: int, total: int) -> None:
        """Show how many of the images are read."""
        self._set("images", "reading images", done, total)

    def notes(self, text: str) -> None:
        """Write a line above the bars."""
        self.progress.console.print(Text(f"note: {text}"))

    def starts(self, trial: Trial, number: int, done: int, most: int, epochs: int) -> None:
        """Show the campaign's bar, and an empty one for the run."""
        self._set("runs", "runs, at most", done, most)
        self._set("epochs", f"trial {number}: {trial.label}", 0, epochs, anew=True)

    def tries(self, trial: Trial, learning_rate: float) -> None:
        """Show which learning rate is tried."""
        bar = self.progress.tasks[self.tasks["epochs"]]
        text = f"learning rate {learning_rate:g} of {trial.candidate.label}, on validation images"
        self._set("epochs", text, 0, bar.total or 1, anew=True)

    def stop(self, *_) -> None:
        """Stop the campaign: now, or after this epoch where an interruption is lost, as in a callback of a library."""
        self.stopped = True
        raise KeyboardInterrupt

    def epoch(self, epoch: int, accuracy_percent: float) -> None:
        """Move the run's bar on."""
        if self.stopped:
            raise KeyboardInterrupt
        self.progress.update(self.tasks["epochs"], completed=epoch)

    def ends(self, trial: Trial, accuracy_percent: float, stopped: bool) -> None:
        """Write the result above the bars."""
        early = ", stopped early: it could not reach the pick" if stopped else ""
        self.progress.console.print(Text(f"{trial.label}: {accuracy_percent:.1f} %{early}"))
        self.progress.advance(self.tasks["runs"])

    def does(self, what: str, done: int, total: int) -> None:
        """Show how far a part of the campaign is."""
        if self.stopped:
            raise KeyboardInterrupt
        self._set(what, what, done, total)

    def waits(self, running: Sequence[str]) -> None:
        """Say whose runs are waited for."""
        self._set("epochs", f"waiting for {', '.join(running)} of other workers", 0, 1)


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


def _runs(outcome: Outcome) -> Table:
    """Return the table of what was measured, the most accurate first."""
    table = Table(title="measured", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for name in ("rate", "runs", "accuracy", "90 % interval", "peak predicted", "measured", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
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
        table.add_row(
            candidates[key].label,
            f"{runs[0].learning_rate:g}",
            ", ".join(part for part in (str(len(whole)) if whole else "", early) if part),
            f"{guess.accuracy_percent:.1f} %" + (" DIVERGED" if any(run.diverged for run in runs) else ""),
            f"{guess.accuracy_low_percent:.1f} to {guess.accuracy_high_percent:.1f}",
            format_bytes(runs[0].peak_bytes),
            format_bytes(max(run.measured_peak_bytes for run in runs)),
            "as predicted" if all(run.memory_agrees for run in runs) else "DIFFERS",
            seconds_text(sum(run.seconds for run in runs)),
            style="bold" if key == outcome.after.chosen.way else "",
        )
    return table


def _promise(answer: Recommendation) -> str:
    chosen: Candidate = answer.chosen
    value = answer.scale.text(answer.scale.value(chosen))
    kind = answer.scale.kind(chosen)
    return f"{chosen.label}, {answer.scale.name} {value} ({kind}), peak {format_bytes(chosen.peak_bytes)}"
