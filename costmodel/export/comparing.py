"""A program beside PyTorch, one step at a time on the same random images, each step begun from PyTorch's own state.

Compared over several steps in a row, right programs fail: where norms take statistics of small batches and weights are
untrained, PyTorch's own rounding grows from 1e-7 to 0.1 in ten steps. One step from a common state shows what is wrong
with a program, and rounding has no time to grow. What an update changes (weights and the optimizer's state) is compared
tensor by tensor, as a share of the change, so that a small learning rate hides nothing:

    difference = |after - PyTorch's after| / (|PyTorch's after - before| + RESOLUTION |before| + NOISE_SHARE largest)

largest: of |PyTorch's after - before| of all weights, or all states of a kind. A tensor whose gradient is zero but for
rounding (the bias of a norm before a norm) changes by far less.

Within one step rounding acts through kinks: it puts a number on the other side of a ReLU's zero, and a gradient jumps.
That happens in some steps and to some tensors, while a wrong operation is wrong in every step. So of each tensor the
median of the steps counts, and what rounding does is measured, not guessed: PyTorch makes the same steps in double
precision, from the images and from images that are off by NOISE. A program may be as far from PyTorch as these are from
each other in their worst tensor of that kind, some times over.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ..training.applied import Applied
from ..training.optimizers import make_optimizer
from .forms import Forms
from .recording import STATE_PREFIX, STEP, Recording

if TYPE_CHECKING:
    from .running import Running

LOSS_TOLERANCE, LOGIT_TOLERANCE, STATISTICS_TOLERANCE = 1e-4, 1e-3, 1e-4
CHANGE_TOLERANCE = 0.01  # of a tensor's change, where rounding does not do more
# Assumption: the runtime's sums, one number after the other, are within this many times PyTorch's rounding. Source of
# the size: medians of untrained MCUNet-5FPS, 2.5 % beside 0.6 % (mobiletl, k = 12) and 1.5 % beside 1.2 % (full).
TIMES_ROUNDING = 10
# How far off the images are. Source: statistics of MCUNet-5FPS, MobileNetV2 and V3 then differ by 1e-6 to 2e-6 of their
# size, as those of the portable kernels do, which add numbers up one after the other.
NOISE = 1e-6
RESOLUTION, NOISE_SHARE = 1e-5, 1e-4  # float32 has 6e-8 of a number; a hundredth of these shares is tolerated
State = dict[str, Tensor]


@dataclass(frozen=True)
class Check:
    """What a comparison came to.

    losses, torch_losses: of each step. loss_difference, logit_difference, statistics_difference, weight_difference: the
    largest; but for losses as a share of the tensor's largest value, or of 1 if that is larger. tensor: whose change
    differs most, beside what is tolerated; change_difference: by how much, in the median step; rounding: what rounding
    does to changes of that kind; 0 where it was not asked. right: whether as many images were classified right at each
    step.
    """

    steps: int
    losses: tuple[float, ...]
    torch_losses: tuple[float, ...]
    loss_difference: float
    logit_difference: float
    statistics_difference: float
    weight_difference: float
    tensor: str
    change_difference: float
    rounding: float
    right: bool

    @property
    def agrees(self) -> bool:
        """Whether the differences are those of rounding; no number agrees with nothing."""
        return (
            self.loss_difference <= LOSS_TOLERANCE
            and self.logit_difference <= LOGIT_TOLERANCE
            and self.statistics_difference <= STATISTICS_TOLERANCE
            and self.change_difference <= tolerated(self.rounding)
        )


def tolerated(rounding: float) -> float:
    """Return the most that a change may differ by where rounding does so much."""
    return max(CHANGE_TOLERANCE, TIMES_ROUNDING * rounding)


def compare(
    running: Running, network: Applied, recording: Recording, optimizer: str, rate: float, steps: int
) -> Check:  # fmt: skip
    """Make each step with the program and with PyTorch, from PyTorch's state; return how they differ."""
    reference = _Reference(network, recording, optimizer, rate)
    names, losses, torch_losses, right = running.names, [], [], True
    images = recording.inputs[0]
    updated = _updated(names, recording)
    apart: list[dict[str, float]] = []  # by step and tensor: differences of values, and of changes
    changes: list[dict[str, float]] = []
    for images, labels in _batches(recording, steps):
        before = reference.state(names)
        running.restore(before)
        loss, hits = running.step(images, labels, rate)
        torch_loss, torch_hits = reference.step(images, labels)
        losses.append(loss)
        torch_losses.append(torch_loss)
        right &= hits == torch_hits
        found, after = running.state(), reference.state(names)
        apart.append({name: _apart(found[name], after[name]) for name in names})
        changes.append(_shares(updated, before, after, after, found))
    running.restore(reference.state(names))
    with torch.no_grad():
        logits = reference.network.eval()(images)
    predicted = torch.cat([running.predict(image) for image in images.split(1)])
    typical, rounding = _medians(changes), dict.fromkeys(map(_kind, updated), 0.0)
    if max(typical.values()) > CHANGE_TOLERANCE:
        rounding = _rounding(_Reference(network, recording, optimizer, rate), updated, steps)
    worst = max(typical, key=lambda name: typical[name] / tolerated(rounding[_kind(name)]))
    return Check(
        steps, tuple(losses), tuple(torch_losses),
        _largest(abs(one - two) for one, two in zip(losses, torch_losses, strict=True)),
        _apart(predicted, logits),
        _largest(each[name] for each in apart for name in names if name not in typical),
        _largest(each[name] for each in apart for name in recording.trained),
        worst, typical[worst], rounding[_kind(worst)], right,
    )  # fmt: skip


class _Reference:
    """A copy of the network that PyTorch trains, in the network's own precision."""

    def __init__(self, network: nn.Module, recording: Recording, optimizer: str, rate: float):
        self.network, self.recording = copy.deepcopy(network).train(), recording
        self.how = optimizer, rate
        self.update = make_optimizer(optimizer, self.network, rate)
        self.made = 0

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """Train on a batch; return its loss, and how many images were right before the update."""
        size, dtype = self.recording.micro_batch, next(self.network.parameters()).dtype
        total, right, passes = 0.0, 0, len(images) // size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # as when the step was recorded: of it come the numbers of random calls
            for x, y in zip(images.to(dtype).split(size), labels.split(size), strict=True):
                with Forms(torch.tensor(self.made), random_only=True) if self.recording.drew else nullcontext():
                    out = self.network(x)
                    loss = F.cross_entropy(out, y)
                    torch.autograd.backward(get_gradient_edge(loss / passes))  # as in `forms.gradients_of`
                total += float(loss.detach()) / passes
                right += int((out.argmax(1) == y).sum())
        self.update.step()
        self.update.zero_grad(set_to_none=True)
        self.made += 1
        return total, right

    def state(self, names: Sequence[str]) -> State:
        """Return copies of what a step changes, by the program's names."""
        own, parameters = self.network.state_dict(), dict(self.network.named_parameters())

        def value(name: str) -> Tensor:
            if name == STEP:
                return torch.tensor(self.made)
            if name in own:
                return own[name].clone()
            kind, parameter = name.removeprefix(STATE_PREFIX).split(":")
            kept = self.update.state.get(parameters[parameter], {})  # nothing before the first step
            return kept[kind].clone() if kind in kept else torch.zeros_like(parameters[parameter])

        return {name: value(name) for name in names}

    def in_double_precision(self) -> _Reference:
        """Return a copy in this state."""
        found = _Reference(self.network, self.recording, *self.how)
        found.network.double()
        found.update.load_state_dict(self.update.state_dict())
        found.made = self.made
        return found


def _rounding(reference: _Reference, names: Sequence[str], steps: int) -> dict[str, float]:
    """Return by kind how far rounding moves the change of some tensor, in the median step."""
    own: list[dict[str, float]] = []
    other: list[dict[str, float]] = []
    source = torch.Generator().manual_seed(1)
    for images, labels in _batches(reference.recording, steps):
        exact, moved = reference.in_double_precision(), reference.in_double_precision()
        noise = torch.randn(images.shape, generator=source, dtype=torch.float64)
        before = reference.state(names)
        reference.step(images, labels)
        exact.step(images, labels)
        moved.step(images.double() * (1 + NOISE * noise), labels)
        after, right = reference.state(names), exact.state(names)
        own.append(_shares(names, before, after, right, after))
        other.append(_shares(names, before, after, right, moved.state(names)))
    found = dict.fromkeys(map(_kind, names), 0.0)
    for name, value in (*_medians(own).items(), *_medians(other).items()):
        found[_kind(name)] = max(found[_kind(name)], value)
    return found


def _batches(recording: Recording, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same random images and labels each time."""
    source = torch.Generator().manual_seed(0)
    x, y = recording.inputs[:2]
    for _ in range(steps):
        yield torch.randn(x.shape, generator=source), torch.randint(recording.classes, y.shape, generator=source)


def _updated(names: Sequence[str], recording: Recording) -> list[str]:
    """Return the names of what an update changes: what trains, and the optimizer's state."""
    return [name for name in names if name in recording.trained or name.startswith(STATE_PREFIX)]


def _shares(names: Sequence[str], before: State, after: State, one: State, other: State) -> dict[str, float]:
    """Return by tensor how far two states are apart as a share of the change from `before` to `after`."""
    changes = {name: float((after[name].double() - before[name].double()).norm()) for name in names}
    largest: dict[str, float] = {}
    for name, change in changes.items():
        largest[_kind(name)] = max(largest.get(_kind(name), 0.0), change)
    found = {}
    for name, change in changes.items():
        whole = change + RESOLUTION * float(before[name].norm()) + NOISE_SHARE * largest[_kind(name)]
        apart = float((one[name].double() - other[name].double()).norm())
        found[name] = apart / whole if whole else apart
    return found


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference as a share of the tensor's largest value, or of 1 if that is larger."""
    return float((one - other).abs().max() / max(1.0, float(other.abs().max())))


def _kind(name: str) -> str:
    """Return which state of the optimizer a name is of; empty for a weight."""
    return name.rpartition(":")[0]


def _medians(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of the steps, by tensor; what is no number counts as infinite."""
    return {name: median(_largest((each[name],)) for each in steps) for name in steps[0]}


def _largest(values: Iterable[float]) -> float:
    """Return the largest number; infinity if one of them is none, which equals nothing."""
    return max((value if value == value else float("inf") for value in values), default=0.0)
