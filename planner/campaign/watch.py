"""What is told while a campaign runs."""

from __future__ import annotations

from collections.abc import Sequence

from .next_trial import Trial


class Watch:
    """What is told while a campaign runs; this one does not listen."""

    def reads(self, done: int, total: int) -> None:
        """So many of the image files are read."""

    def notes(self, text: str) -> None:
        """Something that the user should know."""

    def starts(self, trial: Trial, number: int, done: int, most: int, epochs: int) -> None:
        """A run of so many epochs starts: `done` of at most `most` runs are finished."""

    def tries(self, trial: Trial, learning_rate: float) -> None:
        """A learning rate is tried for the run, on validation images."""

    def epoch(self, epoch: int, accuracy_percent: float) -> None:
        """An epoch of the run is over."""

    def ends(self, trial: Trial, accuracy_percent: float, stopped: bool) -> None:
        """The run is over."""

    def does(self, what: str, done: int, total: int) -> None:
        """So much of a part of the campaign is done."""

    def waits(self, running: Sequence[str]) -> None:
        """All that is left to do is being done by other workers."""
