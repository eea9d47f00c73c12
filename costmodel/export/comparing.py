"""A program beside PyTorch, step by step on the same random images.

What rounding alone does is measured, not guessed: where losses or weights differ by more than `LOSS_TOLERANCE` or
`WEIGHT_TOLERANCE`, PyTorch in double precision trains too, and the program may be as far from PyTorch as PyTorch was by
then from that, some times over. Adam needs this: it divides a gradient by its own size, so that of one that is zero but
for rounding it makes full steps. So do large learning rates, which let a difference grow from step to step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ..training.applied import Applied
from ..training.optimizers import make_optimizer
from .forms import Forms
from .recording import Recording

if TYPE_CHECKING:
    from .running import Running

LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-3, 1e-4
TIMES_ROUNDING = 10  # Assumption: another order of the same sums is within this many times their rounding error


@dataclass(frozen=True)
class Check:
    """What a comparison came to.

    losses, torch_losses: of each step. loss_difference, weight_difference, logit_difference: the largest; of weights
    and statistics as a share of the tensor's largest value, or of 1 if that is larger. rounding: how far PyTorch's own
    weights are from those in double precision; loss_rounding: its losses, at each step; None where that was not asked.
    right: whether as many images were classified right at each step.
    """

    steps: int
    losses: tuple[float, ...]
    torch_losses: tuple[float, ...]
    loss_difference: float
    weight_difference: float
    logit_difference: float
    rounding: float | None
    loss_rounding: tuple[float, ...] | None
    right: bool

    @property
    def agrees(self) -> bool:
        """Whether the differences are those of rounding."""
        weights = max(WEIGHT_TOLERANCE, TIMES_ROUNDING * (self.rounding or 0.0))
        grown = accumulate(self.loss_rounding or (0.0,) * self.steps, max)
        apart = (abs(one - two) for one, two in zip(self.losses, self.torch_losses, strict=True))
        return self.weight_difference <= weights and all(
            difference <= max(LOSS_TOLERANCE, TIMES_ROUNDING * rounding)
            for difference, rounding in zip(apart, grown, strict=True)
        )


def compare(
    running: Running, network: Applied, recording: Recording, optimizer: str, rate: float, steps: int
) -> Check:  # fmt: skip
    """Train the program and a copy of the network on the same random images; return how they differ."""
    reference = copy.deepcopy(network).train()
    images, losses, torch_losses, right = recording.inputs[0], [], [], True
    trained = _train(reference, recording, optimizer, rate, steps)
    for (images, labels), (torch_loss, hits) in zip(_batches(recording, steps), trained, strict=True):
        loss, program_hits = running.step(images, labels, rate)
        losses.append(loss)
        torch_losses.append(torch_loss)
        right &= hits == program_hits
    state, own = running.state(), reference.state_dict()
    shared = [name for name, value in own.items() if name in state and value.is_floating_point()]
    weight_difference = _apart([state[name] for name in shared], [own[name] for name in shared])
    loss_difference = max(abs(one - two) for one, two in zip(losses, torch_losses, strict=True))
    rounding = loss_rounding = None
    if weight_difference > WEIGHT_TOLERANCE or loss_difference > LOSS_TOLERANCE:
        double = copy.deepcopy(network).train().double()
        exact_losses = [loss for loss, _ in _train(double, recording, optimizer, rate, steps)]
        exact = double.state_dict()
        rounding = _apart([own[name].double() for name in shared], [exact[name] for name in shared])
        loss_rounding = tuple(abs(one - two) for one, two in zip(torch_losses, exact_losses, strict=True))
    with torch.no_grad():
        logits = reference.eval()(images)
    predicted = torch.cat([running.predict(image) for image in images.split(1)])
    return Check(
        steps, tuple(losses), tuple(torch_losses),
        loss_difference, weight_difference, _apart([predicted], [logits]), rounding, loss_rounding, right,
    )  # fmt: skip


def _batches(recording: Recording, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same random images and labels each time."""
    source = torch.Generator().manual_seed(0)
    x, y = recording.inputs[:2]
    for _ in range(steps):
        yield torch.randn(x.shape, generator=source), torch.randint(recording.classes, y.shape, generator=source)


def _train(
    network: nn.Module, recording: Recording, optimizer: str, rate: float, steps: int
) -> Iterator[tuple[float, int]]:
    """Train with PyTorch, in the network's own precision; yield each step's loss, and how many images were right."""
    update = make_optimizer(optimizer, network, rate)
    dtype = next(network.parameters()).dtype
    size = recording.micro_batch
    for number, (images, labels) in enumerate(_batches(recording, steps)):
        total, right, passes = 0.0, 0, len(images) // size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # as when the step was recorded: of it come the numbers of random calls
            for x, y in zip(images.to(dtype).split(size), labels.split(size), strict=True):
                with Forms(torch.tensor(number), random_only=True) if recording.drew else nullcontext():
                    out = network(x)
                    loss = F.cross_entropy(out, y)
                    torch.autograd.backward(get_gradient_edge(loss / passes))  # as in `forms.gradients_of`
                total += float(loss.detach()) / passes
                right += int((out.argmax(1) == y).sum())
        update.step()
        update.zero_grad(set_to_none=True)
        yield total, right


def _apart(ones: list[Tensor], others: list[Tensor]) -> float:
    """Return the largest difference as a share of the tensor's largest value, or of 1 if that is larger."""
    found = [float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in zip(ones, others, strict=True)]
    return max((one if one == one else float("inf") for one in found), default=0.0)  # no number is never equal
