"""A training for people: bars and a line for each epoch while it runs, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from costmodel.errors import one_line
from costmodel.interface.layout import Column, Listing
from costmodel.interface.running import terminal
from costmodel.units import format_bytes

from ..training.trained import TRAINED, WEIGHTS, Epoch, StepMemory, Trained
from ..training.watch import Watch
from .bars import ProgressBars

if TYPE_CHECKING:
    from ..training.predict import Prediction


class TrainingBars(ProgressBars, Watch):
    """Bars on standard error: the images, the cache, all steps. A second signal stops at once, without a checkpoint."""

    training = False

    def stop(self, *_) -> None:
        """Stop at the next step; at once before the first one, and if asked again."""
        again, self.stopped = self.stopped, True
        if again or not self.training:
            raise KeyboardInterrupt

    def reads(self, done: int, total: int) -> None:
        """Show how many of the images are read."""
        self.show("images", "reading images", done, total)

    def caches(self, done: int, total: int) -> None:
        """Show how many images went through the frozen prefix."""
        self.show("cache", "filling the cache", done, total)

    def step(self, done: int, total: int, text: str) -> None:
        """Show how far the training is."""
        self.training = True
        self.show("steps", text, done, total)

    def epoch(self, epoch: Epoch, epochs: int, is_best: bool) -> None:
        """Write a line for the epoch."""
        best = ", the best so far" if is_best else ""
        self.line(
            f"epoch {epoch.number} of {epochs}: loss {epoch.train_loss:.3f}, {epoch.train_percent:.1f} % right; "
            f"held-out images: loss {epoch.test_loss:.3f}, {epoch.accuracy_percent:.1f} % right{best}"
        )


def summary(trained: Trained, out: str) -> Iterator[str]:
    """Yield lines that say what a training came to."""
    yield (
        f"accuracy {trained.accuracy_percent:.1f} % on {trained.test_images} held-out images, of epoch "
        f"{trained.best.number}; {trained.ended}"
    )
    if trained.memory is not None:
        yield _memory(trained.memory)
    if trained.process_bytes is not None:
        yield f"the process held {format_bytes(trained.process_bytes)} at most: Python, PyTorch, images, and the step"
    plain = "" if trained.is_plain else "; the network needs Plan.apply before it takes them"
    yield f"wrote {out}/{WEIGHTS} (a state dict{plain}) and {out}/{TRAINED} (classes, preprocessing, accuracy)"
    yield f"use it with planner predict {out} IMAGE..."


def _memory(memory: StepMemory) -> str:
    planned, predicted = format_bytes(memory.planned_bytes), format_bytes(memory.predicted_bytes)
    agrees = "as predicted" if memory.agrees else f"NOT AS PREDICTED, {predicted}"
    more = memory.predicted_bytes - memory.planned_bytes
    kernels = f", {format_bytes(more)} of them for this machine's kernels" if more > 0 and memory.agrees else ""
    return f"memory of a step: {planned} planned, {format_bytes(memory.measured_bytes)} measured ({agrees}{kernels})"


def show_predictions(found: Sequence[Prediction]) -> None:
    """Print a table of what a network says of images."""
    rows = [
        ("" if number else one_line(one.image), one_line(name), f"{100 * probability:.1f} %")
        for one in found
        for number, (name, probability) in enumerate(one.classes)
    ]
    terminal(width=100).print(Listing((Column("image", long=True), Column("class"), Column("probability", True)), rows))
