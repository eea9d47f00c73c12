"""The training loop: cross-entropy, and a learning rate that falls to zero along a half cosine over all steps.

What a step draws (its images, their augmentation, dropout) follows from (seed, epoch, step) alone, so that a run that
goes on from a checkpoint is equal to one that was never stopped. A batch that is not full is left out, so that every
step takes what was predicted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from costmodel import Arena, Schedule, make_optimizer, update_in_place

TEST_BATCH = 64
MALLOC = Arena("default")  # memory as torch takes it
Pass = tuple[torch.Tensor, torch.Tensor]  # images and labels of one forward and backward pass


@dataclass(frozen=True)
class Recipe:
    """How a run trains: what its accuracy depends on beside the way and the seed.

    learning_rate: of the first step. batch: images per update. resolution: height and width of the images in pixels.
    """

    epochs: int = 10
    learning_rate: float = 0.01
    batch: int = 8
    resolution: int = 224
    optimizer: str = "sgd"


class Outcome(NamedTuple):
    """What a step gave: the mean loss of its images, and how many of them were classified right."""

    loss: float
    right: int


class Loop:
    """The steps that train what of a network asks for gradients, in place.

    images: pairs of image and label. schedule: its micro-batches and updates in place are carried out here, all else
    by `costmodel.apply`. activations: float32, or bfloat16 under autocast. state: of the optimizer, to go on from.
    arena: what steps run in.
    """

    def __init__(
        self, network: nn.Module, images: Dataset, recipe: Recipe, seed: int = 0, schedule: Schedule | None = None,
        activations: str = "float32", state: Mapping[str, Any] | None = None, arena: Arena = MALLOC,
    ):  # fmt: skip
        self.arena = arena
        self.network, self.images, self.recipe, self.seed = network, images, recipe, seed
        self.activations = activations
        schedule = schedule or Schedule()
        self.micro_batch = schedule.images_per_pass(recipe.batch)
        self.steps_per_epoch = length(images) // recipe.batch
        self.update = make_optimizer(recipe.optimizer, network, recipe.learning_rate)
        if state is not None:
            self.update.load_state_dict(dict(state))
        if schedule.inplace_update:
            update_in_place(network, self.update)
        self._order = lru_cache(1)(self._drawn)

    def passes(self, epoch: int, step: int) -> Iterator[Pass]:
        """Yield the images and labels of each pass of a step; epochs count from 1, steps from 0."""
        batch = self.recipe.batch
        chosen = self._order(epoch)[step * batch : (step + 1) * batch]
        for start in range(0, batch, self.micro_batch):
            self._reseed("images", epoch, step, start)
            yield default_collate([self.images[index] for index in chosen[start : start + self.micro_batch]])

    def train_step(self, epoch: int, step: int, passes: Iterable[Pass] | None = None) -> Outcome:
        """Make an update. passes: what `passes` gives for this step, if it was asked before."""
        given = self.passes(epoch, step) if passes is None else passes
        if self.micro_batch == self.recipe.batch:
            given = list(given)  # images are loaded outside the arena; all at once, so that there is no more to hold
        with self.arena.step("training", id(self.network)):
            return self._update(epoch, step, given)

    def _update(self, epoch: int, step: int, passes: Iterable[Pass]) -> Outcome:
        recipe, loss, right = self.recipe, 0.0, 0
        done = ((epoch - 1) * self.steps_per_epoch + step) / (recipe.epochs * self.steps_per_epoch)
        for group in self.update.param_groups:
            group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * done)) / 2
        for number, (images, labels) in enumerate(passes):
            self._reseed("network", epoch, step, number)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.activations != "float32"):
                logits = self.network(images)
            part = nn.functional.cross_entropy(logits.float(), labels) * (len(labels) / recipe.batch)
            part.backward()
            loss += part.item()
            right += int((logits.detach().argmax(1) == labels).sum())
            del logits, part
        self.update.step()
        self.update.zero_grad(set_to_none=True)
        return Outcome(loss, right)

    def _drawn(self, epoch: int) -> list[int]:
        """Return the order of an epoch's images."""
        draw = torch.Generator().manual_seed(_mixed("order", self.seed, epoch))
        return torch.randperm(length(self.images), generator=draw).tolist()

    def _reseed(self, what: str, *place: int) -> None:
        torch.manual_seed(_mixed(what, self.seed, *place))


def _mixed(*parts: object) -> int:
    """Return a seed that follows from all parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "little")


@torch.no_grad()
def answers(network: nn.Module, images: Dataset, batch: int = TEST_BATCH, arena: Arena = MALLOC) -> Iterator[Pass]:
    """Yield the network's logits and the labels of all images, batch by batch, in eval mode; arena: as in `Loop`."""
    network.eval()
    for given, labels in DataLoader(images, batch):
        with arena.step("evaluation", id(network), given.shape):
            logits = network(given)
        yield logits, labels


def length(data: Dataset) -> int:
    """Return how many images a data set has."""
    return len(cast(Sized, data))  # map-style data sets have a length
