"""A plan -> a trained network: its schedule carried out, its memory measured, and going on after any stop."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from costmodel import Arena, LayerGraph, ModelError, cached_prefix, trace
from costmodel.errors import InputError, one_line

from ..campaign import images as reading
from ..campaign.images import DataSet, list_folder, read_folder
from ..campaign.loop import Loop, Outcome, answers, length
from ..campaign.weights import Weights, digest, load_weights, make_network
from ..choosing.plan import Plan
from .course import Course
from .folder import CACHE, Folder, PixelFile
from .memory import measured, predicted, process_bytes
from .place import Place
from .trained import Epoch, Preprocessing, Trained
from .watch import Watch

# A checkpoint is written at the first step's end after so many seconds, less what a step takes.
CHECKPOINT_SECONDS = 60.0
_SHOWN = 8  # classes in a message


class Stopped(KeyboardInterrupt):
    """A training that was asked to stop, and did so with a checkpoint; the text says where."""


def train(
    plan: Plan | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    weights: str | None = None,
    course: Course | None = None,
    watch: Watch | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    allocator: str = "arena",
) -> Trained:
    """Train the plan's network on a folder of images, as planned; `out` then holds the network of the best epoch.

    weights: DEFAULT, a file or random, as in `planner measure`. allocator: how freed memory is dealt with, a name in
    `costmodel.POLICIES`; it changes what the process takes, and no result. A training that was begun in `out` goes on;
    it ends equal to one that was never stopped, on the same machine with the same number of threads.

    Errors: InputError for what cannot be used, or does not go together; ModelError if the loss is not a finite number
    any more; Stopped if the watch asks for it.
    """
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    course, watch = (course or Course()).of(plan), watch or Watch()
    if plan.precision.activations not in ("float32", "bfloat16"):
        raise InputError(
            f"the plan's activations are in {plan.precision.activations}, which needs its losses scaled; it has a "
            "price only: plan with --activation-dtype float32 or bfloat16"
        )
    images_in = list_folder(data)
    _check_classes(plan, images_in)
    with Folder(out).held() as folder, torch.random.fork_rng(devices=[]):
        parts = {"plan": _short(plan.model_dump_json()), **course.parts}
        folder.check(parts)
        start = load_weights(plan.model, weights)
        graph = trace(plan.model, plan.resolution, plan.classes)
        network, note = make_network(graph, start, course.seed)
        if note:
            watch.notes(note)
        pixels = PixelFile(folder.path, max(1, len(images_in.files)) * 3 * plan.resolution**2)
        images = read_folder(
            images_in, plan.resolution, start.normalisation, progress=watch.reads,
            augment=course.augmentation(plan.resolution), keep=pixels.keep,
        )  # fmt: skip
        for note in images.notes:
            watch.notes(note)
        if len(images.train) < plan.batch:
            raise InputError(
                f"{len(images.train)} training images are less than the plan's batch of {plan.batch}; add some, or "
                "plan with a smaller --batch"
            )
        folder.begin(plan, {**parts, "images": images.digest, "weights": f"{start.label} {digest(network)}"})
        before = folder.trained()
        if before is not None and before.ended:
            watch.notes(f"{folder.path} holds this training, ended: {before.ended}; give another --out to train anew")
            folder.finish()
            return before
        with _as_notes(watch):
            arena = Arena(allocator)
        with closing(arena):
            run = _Run(plan, course, folder, watch, graph, images, images_in.classes, start, checkpoint_seconds, arena)
            return run.work(network)


def _check_classes(plan: Plan, images: reading.Folder) -> None:
    found = len(images.classes)
    if found != plan.classes:
        names = [one_line(name) for name in images.classes]
        shown = ", ".join(names if found <= _SHOWN else [*names[: _SHOWN - 1], "..."])
        raise InputError(
            f"the plan is for {plan.classes} classes, but {images.root} has {found} ({shown}); plan again with planner "
            f"recommend {plan.model} --classes {found} --resolution {plan.resolution} --save, or give the plan's images"
        )


class _Run:
    """A training from where it is to its end."""

    def __init__(
        self, plan: Plan, course: Course, folder: Folder, watch: Watch, graph: LayerGraph, images: DataSet,
        classes: tuple[str, ...], start: Weights, checkpoint_seconds: float, arena: Arena,
    ):  # fmt: skip
        self.plan, self.course, self.folder, self.watch = plan, course, folder, watch
        self.images, self.classes, self.start = images, classes, start
        self.checkpoint_seconds, self.arena = checkpoint_seconds, arena
        self.cost = predicted(plan, graph)
        # No more images at a time than a pass of the training takes, so that a test needs no more memory.
        at_once = plan.schedule.images_per_pass(plan.batch)
        self.test_batch = (plan.schedule.prefix_batch or 1) if plan.schedule.has_prefix else at_once
        self.place = Place()
        self.kept = time.monotonic()  # when the last checkpoint was written

    def work(self, network: nn.Module) -> Trained:
        """Train a network that has its weights; return what it came to."""
        dtypes = {name: value.dtype for name, value in network.state_dict().items()}
        torch.manual_seed(self.course.seed)  # modules that the method adds start from it
        with _as_notes(self.watch):
            self.network = self.plan.apply(network)
        self.dtypes = dtypes
        images = self._cached() if self.plan.schedule.cache is not None else self.images.train
        state = self._resumed()
        self.loop = Loop(
            self.network, images, self.course.recipe(self.plan), self.course.seed, self.plan.schedule,
            self.plan.precision.activations, state, self.arena,
        )  # fmt: skip
        ended = self._ended()
        while ended is None:
            self._train_epoch()
            self._test_epoch()
            ended = self._ended()
        trained = self._trained(ended)
        self.folder.keep_trained(trained)
        self.folder.finish()
        return trained

    # --- steps ----------------------------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        place, loop = self.place, self.loop
        self.network.train()
        while place.step < loop.steps_per_epoch:
            self._look()
            began = time.monotonic()
            loss, right = self._step()
            self._check_finite(loss, f"step {place.step + 1}")
            place.step, place.loss, place.right = place.step + 1, place.loss + loss, place.right + right
            self._tell(f"epoch {place.epoch} of {self.course.epochs}, loss {place.loss / place.step:.3f}")
            now = time.monotonic()
            if now - self.kept + (now - began) > self.checkpoint_seconds:
                self._keep()

    def _check_finite(self, loss: float, where: str) -> None:
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss is {loss} in epoch {self.place.epoch}, {where}: the training diverged; give a smaller --lr "
                f"than {self.course.learning_rate:g}, and another --out"
            )

    def _step(self) -> Outcome:
        place = self.place
        is_first = (place.epoch, place.step) == (1, 0)  # the optimizer has no state yet
        if is_first or place.memory is not None:
            return self.loop.train_step(place.epoch, place.step)
        passes, done = list(self.loop.passes(place.epoch, place.step)), []
        place.memory = measured(
            self.plan, self.cost, lambda: done.append(self.loop.train_step(place.epoch, place.step, passes)), self.arena
        )
        return done[0]

    def _test_epoch(self) -> None:
        self.arena.rest()  # so that tests, and weights while they are written, do not come on top of a step
        place, loss, right, total = self.place, 0.0, 0, len(self.images.test)
        for logits, labels in answers(self.network, self.images.test, self.test_batch, self.arena):
            self._look()
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
        self._check_finite(loss, "on the held-out images")
        steps = self.loop.steps_per_epoch
        epoch = Epoch(
            number=place.epoch, train_loss=place.loss / steps,
            train_percent=100 * place.right / (steps * self.plan.batch), test_loss=loss / total,
            accuracy_percent=100 * right / total,
        )  # fmt: skip
        place.ends(epoch)
        is_best = place.best is epoch
        if is_best:
            state = self.network.state_dict()
            self.folder.keep_best({
                name: value.detach().to(self.dtypes.get(name, value.dtype)).contiguous()
                for name, value in state.items()
            })  # fmt: skip
        self.folder.keep_trained(self._trained(None))
        self._keep()
        self.watch.epoch(epoch, self.course.epochs, is_best)

    def _ended(self) -> str | None:
        """Return why the training is over; None if it is not."""
        place, course = self.place, self.course
        if place.epoch > course.epochs:
            return f"all {course.epochs} epochs are done"
        since = place.epoch - 1 - place.best.number if place.history else 0
        if course.patience and since >= course.patience:
            return f"no epoch was better than epoch {place.best.number} for {since} epochs"
        return None

    def _tell(self, text: str) -> None:
        steps = self.loop.steps_per_epoch
        self.watch.step((self.place.epoch - 1) * steps + self.place.step, self.course.epochs * steps, text)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Stop if the watch asks for it. Errors: Stopped, once the checkpoint is written."""
        if self.watch.stopped:
            self._keep()
            place = self.place
            raise Stopped(
                f"epoch {place.epoch} of {self.course.epochs}, step {place.step} of {self.loop.steps_per_epoch}"
            )

    def _keep(self) -> None:
        self.arena.rest()
        state = self.network.state_dict(keep_vars=True)
        buffers = {name for name, value in state.items() if not isinstance(value, nn.Parameter)}
        changing = {name: value.detach() for name, value in state.items() if value.requires_grad or name in buffers}
        self.folder.keep_checkpoint({
            "place": self.place.to_dict(), "weights": changing, "optimizer": self.loop.update.state_dict(),
        })  # fmt: skip
        self.kept = time.monotonic()

    def _resumed(self) -> dict[str, Any] | None:
        """Put the checkpoint's weights into the network; return the optimizer's state. None: there is no checkpoint."""
        saved = self.folder.checkpoint()
        if saved is None:
            return None
        own = self.network.state_dict()
        for name, value in saved["weights"].items():
            if not torch.equal(own[name], value):  # what did not change may be mapped from a file, and stays there
                own[name].copy_(value)
        self.place = Place.of(saved["place"])
        place = self.place
        self.watch.notes(f"going on with epoch {place.epoch} of {self.course.epochs}, after step {place.step}")
        return saved["optimizer"]

    def _cached(self) -> Dataset:
        """Return the outputs of the frozen prefix, of each training image."""
        images, total = self.images.train, len(self.images.train)
        self.watch.caches(0, total)
        return cached_prefix(
            self.network, self.plan.schedule, DataLoader(images, self.test_batch), self.folder.path / CACHE,
            lambda done: self.watch.caches(done, total),
        )  # fmt: skip

    def _trained(self, ended: str | None) -> Trained:
        mean, deviation = self.start.normalisation
        return Trained(
            model=self.plan.model,
            weights=self.start.label,
            is_plain=not self.cost.requirements.is_converted,
            classes=list(self.classes),
            preprocessing=Preprocessing(resolution=self.plan.resolution, mean=list(mean), deviation=list(deviation)),
            train_images=length(self.images.train),
            test_images=length(self.images.test),
            best=self.place.best,
            history=self.place.history,
            memory=self.place.memory,
            process_bytes=process_bytes(),
            ended=ended,
        )


@contextmanager
def _as_notes(watch: Watch) -> Iterator[None]:
    """Tell the watch of warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        watch.notes(one_line(one.message))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
