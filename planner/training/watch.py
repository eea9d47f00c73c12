"""What is told while a plan is trained."""

from __future__ import annotations

from .trained import Epoch


class Watch:
    """What is told while a plan is trained; this one does not listen, and never stops it.

    stopped: whether the training shall end at its next step.
    """

    stopped = False

    def reads(self, done: int, total: int) -> None:
        """So many of the image files are read."""

    def caches(self, done: int, total: int) -> None:
        """So many images went through the frozen prefix."""

    def notes(self, text: str) -> None:
        """Something that the user should know."""

    def step(self, done: int, total: int, text: str) -> None:
        """So many of the training's steps are done; text: where it is."""

    def epoch(self, epoch: Epoch, epochs: int, is_best: bool) -> None:
        """An epoch is over."""
