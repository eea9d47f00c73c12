"""One fine-tuning run with the real layers: the accuracy that it reaches, and its memory beside the predicted one.

The recipe: cross-entropy, a learning rate that falls to zero along a half cosine over all steps, no weight decay, the
images in a new order every epoch. A batch that is not full is left out, so that every step takes what was predicted.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from costmodel import apply, verify
from costmodel.errors import InputError, unknown

Data = tuple[torch.Tensor, torch.Tensor] | Dataset
PEAK_TOLERANCE = 0.01
_TEST_BATCH = 64

# As costmodel.optimizers prices them: PyTorch's defaults.
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@dataclass(frozen=True)
class Memory:
    """The memory of one step at the run's batch, predicted and measured.

    saved_bytes: kept for backward. peak_bytes: of the whole step, with the working memory of this machine's kernels
    (which a candidate's peak leaves out). above_start_bytes: of that peak, what comes on top of the memory that is
    taken when a step starts; that is what a profiler sees.
    """

    peak_bytes: int
    saved_bytes: int
    measured_saved_bytes: int
    above_start_bytes: int
    measured_above_start_bytes: int

    @property
    def agrees(self) -> bool:
        """Whether saved bytes are equal and the peaks within 1 %."""
        difference = abs(self.above_start_bytes - self.measured_above_start_bytes)
        return (
            self.saved_bytes == self.measured_saved_bytes
            and difference <= PEAK_TOLERANCE * self.measured_above_start_bytes
        )


@dataclass(frozen=True)
class Run:
    """What a fine-tuning run came to.

    history: (epoch, accuracy in percent) of each evaluation; epochs count from 1. epochs, steps: those that were run.
    stopped: whether `report` ended it early. correct: of each test image, whether the last evaluation had it right.
    seconds: training and testing, without the memory check. memory: None if it was not checked.
    """

    history: tuple[tuple[int, float], ...]
    epochs: int
    steps: int
    stopped: bool
    correct: tuple[bool, ...]
    seconds: float
    memory: Memory | None

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
    *,
    method: str,
    blocks: int | None = None,
    epochs: int,
    learning_rate: float,
    batch: int = 8,
    optimizer: str = "sgd",
    seed: int = 0,
    resolution: int,
    report: Callable[[int, float], bool] | None = None,
    evaluate_every: int = 1,
    check_memory: bool = True,
) -> Run:
    """Fine-tune a copy of the model by a method and return what came of it; the model itself stays as it is.

    train, test: (images, labels) as tensors, or data sets of such pairs. report: called with the epoch and the accuracy
    on `test` in percent; returns True to stop. evaluate_every: epochs between two evaluations; the last is evaluated
    in any case. The same seed gives the same run, on the same machine and number of threads.

    Errors: InputError for a number that makes no sense and for less data than one batch; those of `costmodel.apply`.
    """
    train, test = _data_set(train), _data_set(test)
    _check(train, test, optimizer, learning_rate, epochs=epochs, batch=batch, evaluate_every=evaluate_every)
    with torch.random.fork_rng(devices=[]):
        memory = measure_memory(model, method, blocks, batch, optimizer, resolution) if check_memory else None
        torch.manual_seed(seed)
        network = apply(copy.deepcopy(model), method, blocks, resolution)
        start = time.perf_counter()
        history: list[tuple[int, float]] = []
        stopped = False
        for epoch in train_epochs(network, train, epochs, learning_rate, batch, optimizer):
            if epoch % evaluate_every == 0 or epoch == epochs:
                correct = classify(network, test)
                history.append((epoch, 100 * sum(correct) / len(correct)))
                stopped = report is not None and bool(report(*history[-1]))
                if stopped:
                    break
        seconds = time.perf_counter() - start
    return Run(tuple(history), epoch, epoch * (len(train) // batch), stopped, correct, seconds, memory)


def train_epochs(
    network: nn.Module, train: Data, epochs: int, learning_rate: float, batch: int, optimizer: str
) -> Iterator[int]:
    """Train what asks for gradients, in place; yield each epoch's number when it is done."""
    loader = DataLoader(_data_set(train), batch, shuffle=True, drop_last=True)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    update = _OPTIMIZERS[optimizer](trained, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(update, epochs * len(loader))
    for epoch in range(1, epochs + 1):
        network.train()
        for images, labels in loader:
            nn.functional.cross_entropy(network(images), labels).backward()
            update.step()
            update.zero_grad(set_to_none=True)
            schedule.step()
        yield epoch


def measure_memory(
    model: nn.Module, method: str, blocks: int | None, batch: int, optimizer: str, resolution: int
) -> Memory:
    """Return the memory of one step, predicted and measured on a copy of the model."""
    found = verify(model, method, blocks, batch, resolution, accounting="lean", optimizer=optimizer)
    saved, peak = found.checks[:2]
    return Memory(found.footprint.peak_bytes, saved.predicted, saved.measured, peak.predicted, peak.measured)


@torch.no_grad()
def classify(network: nn.Module, test: Data) -> tuple[bool, ...]:
    """Return of each image whether the network, set to eval mode, classifies it right."""
    network.eval()
    batches = DataLoader(_data_set(test), _TEST_BATCH)
    return tuple(right for images, labels in batches for right in (network(images).argmax(1) == labels).tolist())


def _data_set(data: Data) -> Dataset:
    return TensorDataset(*data) if isinstance(data, tuple) else data


def _check(train: Dataset, test: Dataset, optimizer: str, learning_rate: float, **counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of 1 or more, not {value!r}")
    if not 0 < learning_rate < float("inf"):
        raise InputError(f"the learning rate must be a positive number, not {learning_rate!r}")
    if optimizer not in _OPTIMIZERS:
        raise unknown("optimizer", optimizer, _OPTIMIZERS)
    if len(train) < counts["batch"]:
        raise InputError(
            f"{len(train)} training images are less than a batch of {counts['batch']}; take a smaller batch"
        )
    if not len(test):
        raise InputError("there are no test images; give one or more")
