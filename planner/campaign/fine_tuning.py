"""One fine-tuning run with the real layers: the accuracy that it reaches, and its memory beside the predicted one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from costmodel import OPTIMIZERS, PLAIN, Arena, Schedule, Verification, Way, apply, verify
from costmodel.errors import InputError, require_count

from .loop import MALLOC, Loop, Recipe, answers, length

Data = tuple[torch.Tensor, torch.Tensor] | Dataset


@dataclass(frozen=True)
class Memory:
    """The memory of one step at the run's batch, predicted and measured.

    saved_bytes: kept for backward. peak_bytes: of the whole step, with the working memory of this machine's kernels
    (which a candidate's peak leaves out). above_start_bytes: of that peak, what comes on top of the memory that is
    taken when a step starts; that is what a profiler sees. agrees: as `costmodel verify` says it.
    """

    peak_bytes: int
    saved_bytes: int
    measured_saved_bytes: int
    above_start_bytes: int
    measured_above_start_bytes: int
    agrees: bool

    @classmethod
    def of(cls, found: Verification) -> Memory:
        """Return what a verification says of memory."""
        saved, peak = found.saved, found.peak
        return cls(
            found.footprint.peak_bytes, saved.predicted, saved.measured, peak.predicted, peak.measured,
            saved.agrees and peak.agrees,
        )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a fine-tuning run came to.

    history: (epoch, accuracy in percent) of each evaluation; epochs count from 1. epochs, steps: those that were run.
    stopped: whether `report` ended it early. correct: of each test image, whether the last evaluation had it right.
    seconds: training and testing, without the memory check. memory: None if it was not checked. diverged: whether
    weights are not finite numbers any more.
    """

    history: tuple[tuple[int, float], ...]
    epochs: int
    steps: int
    stopped: bool
    correct: tuple[bool, ...]
    seconds: float
    memory: Memory | None
    diverged: bool = False

    @property
    def accuracy_percent(self) -> float:
        """The last accuracy that was measured."""
        return self.history[-1][1]

    @property
    def test_images(self) -> int:
        """How many images it was measured on."""
        return len(self.correct)


def fine_tune(
    model: nn.Module,
    train: Data,
    test: Data,
    way: Way,
    recipe: Recipe,
    *,
    seed: int = 0,
    report: Callable[[int, float], bool] | None = None,
    evaluate_every: int = 1,
    check_memory: bool = True,
    schedule: Schedule = PLAIN,
    arena: Arena = MALLOC,
) -> Run:
    """Fine-tune a copy of the model in a way and return what came of it; the model itself stays as it is.

    train, test: (images, labels) as tensors, or data sets of such pairs. report: called with the epoch and the accuracy
    on `test` in percent; returns True to stop. evaluate_every: epochs between two evaluations; the last is evaluated
    in any case. schedule: by which the memory of a step is checked; it changes no result, and the run itself is carried
    out plainly. arena: what steps run in. The same seed gives the same run, on the same machine
    and number of threads.

    Errors: InputError for a number that makes no sense and for less data than one batch; those of `costmodel.apply`.
    """
    train, test = as_data_set(train), as_data_set(test)
    _check(train, test, recipe, evaluate_every)
    with torch.random.fork_rng(devices=[]):
        memory = measure_memory(model, way, recipe, schedule) if check_memory else None
        torch.manual_seed(seed)
        network = apply(copy.deepcopy(model), way, resolution=recipe.resolution)
        start = time.perf_counter()
        history: list[tuple[int, float]] = []
        correct: tuple[bool, ...] = ()
        stopped, epoch = False, 0
        for epoch in train_epochs(network, train, recipe, seed, arena):
            if epoch % evaluate_every == 0 or epoch == recipe.epochs:
                correct = classify(network, test, arena)
                history.append((epoch, 100 * sum(correct) / len(correct)))
                stopped = report is not None and bool(report(*history[-1]))
                if stopped:
                    break
        seconds = time.perf_counter() - start
    steps = epoch * (length(train) // recipe.batch)
    diverged = not all(bool(value.isfinite().all()) for value in network.state_dict().values())
    return Run(tuple(history), epoch, steps, stopped, correct, seconds, memory, diverged)


def train_epochs(
    network: nn.Module, train: Data, recipe: Recipe, seed: int = 0, arena: Arena = MALLOC
) -> Iterator[int]:
    """Train what asks for gradients, in place; yield each epoch's number when it is done. Sets torch's random state."""
    loop = Loop(network, as_data_set(train), recipe, seed, arena=arena)
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        for step in range(loop.steps_per_epoch):
            loop.train_step(epoch, step)
        yield epoch


def measure_memory(model: nn.Module, way: Way, recipe: Recipe, schedule: Schedule = PLAIN) -> Memory:
    """Return the memory of one step, predicted and measured on a copy of the model."""
    found = verify(
        model, way, batch=recipe.batch, resolution=recipe.resolution, accounting="lean", optimizer=recipe.optimizer,
        schedule=schedule,
    )  # fmt: skip
    return Memory.of(found)


def classify(network: nn.Module, test: Data, arena: Arena = MALLOC) -> tuple[bool, ...]:
    """Return of each image whether the network, set to eval mode, classifies it right."""
    found = answers(network, as_data_set(test), arena=arena)
    return tuple(right for logits, labels in found for right in (logits.argmax(1) == labels).tolist())


def as_data_set(data: Data) -> Dataset:
    """Return (images, labels) as a data set; a data set as it is."""
    return TensorDataset(*data) if isinstance(data, tuple) else data


def _check(train: Dataset, test: Dataset, recipe: Recipe, evaluate_every: int) -> None:
    for name, value in (("epochs", recipe.epochs), ("batch", recipe.batch), ("evaluate_every", evaluate_every)):
        require_count(name, value)
    if not 0 < recipe.learning_rate < float("inf"):
        raise InputError(f"the learning rate must be a positive number, not {recipe.learning_rate!r}")
    OPTIMIZERS.find(recipe.optimizer)
    if length(train) < recipe.batch:
        raise InputError(
            f"{length(train)} training images are less than a batch of {recipe.batch}; take a smaller batch"
        )
    if not length(test):
        raise InputError("there are no test images; give one or more")
