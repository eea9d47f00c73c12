"""A small training by `planner train`, and what its process holds: `costmodel calibrate` runs it.

    python -m planner.interface.sample MODEL BATCH RESOLUTION CLASSES

Prints, as a list in JSON, what the system said of the process's pages (/proc/self/smaps) after the last step, and at
the end of each epoch.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from costmodel import Step, footprint, trace, way

from ..choosing.plan import Plan
from ..estimates.estimated import Estimate
from ..training.trained import Epoch
from .train_view import TrainingBars

STEPS, EPOCHS = 6, 2  # the arena is planned after the fourth step


class _Held(TrainingBars):
    """Looks what the process holds after the last steps, and at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.smaps: list[str] = []

    def step(self, done: int, total: int, text: str) -> None:
        """Have the system forget which pages were used, before the last step; look after it."""
        super().step(done, total, text)
        if done == total - 1:
            Path("/proc/self/clear_refs").write_text("1")
        if done == total:
            self._look()

    def epoch(self, epoch: Epoch, epochs: int, is_best: bool) -> None:
        """Look: the held-out images are answered, and the weights written."""
        super().epoch(epoch, epochs, is_best)
        self._look()

    def _look(self) -> None:
        self.smaps.append(Path("/proc/self/smaps").read_text())


def make_images(folder: Path, count: int, resolution: int, classes: int) -> None:
    """Write so many images of noise to train with, and as many to test with."""
    for number in range(count):
        for part in ("train", "test"):
            place = folder / part / str(number % classes)
            place.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((resolution, resolution), 99).convert("RGB").save(place / f"{number}.png")


def main() -> None:
    """Train, and print what the process held."""
    from ..training.course import Course
    from ..training.train import train

    model, batch, resolution, classes = sys.argv[1], *map(int, sys.argv[2:])
    warnings.simplefilter("ignore")
    step = Step(trace(model, resolution, classes), way("full"), batch)
    plan = Plan.of_step(step, footprint(step), Estimate.unknown("nothing"))
    with TemporaryDirectory() as folder, _Held() as held:
        make_images(Path(folder), STEPS * batch, resolution, classes)
        course = Course(epochs=EPOCHS, learning_rate=1e-6)
        train(plan, folder, Path(folder, "out"), weights="random", course=course, watch=held)
    print(json.dumps(held.smaps))


if __name__ == "__main__":
    main()
