"""Training a super-network, so that its sub-networks train with it, and measuring one of them.

Every step trains a few sub-networks on the same images and adds their gradients. With several, the first one's answers
are what the others learn (sandwich rule with in-place distillation: Yu, Huang: Universally Slimmable Networks, ICCV
2019, arXiv 1903.05134, sections 3.2 and 3.3).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset

from costmodel import make_optimizer
from costmodel.zoo.elastic import Subnetwork
from costmodel.zoo.once_for_all import SuperNetwork

from .fine_tuning import Data, Recipe, as_data_set

Draw = Callable[[], Sequence[Subnetwork]]


def sandwich(network: SuperNetwork, seed: int, others: int = 1) -> Draw:
    """Return what draws, for each step, the largest sub-network, the smallest, and others at random."""
    randomness, design = random.Random(seed), network.design
    return lambda: [design.largest, design.smallest, *(design.draw(randomness) for _ in range(others))]


def one_at_random(network: SuperNetwork, seed: int) -> Draw:
    """Return what draws one sub-network for each step. Source: TinyTL, section 3.3; the steps stand in its appendix."""
    randomness, design = random.Random(seed), network.design
    return lambda: [design.draw(randomness)]


def train_elastic(network: SuperNetwork, train: Data, recipe: Recipe, draw: Draw) -> Iterator[int]:
    """Train a super-network in place; yield each epoch's number when it is done. draw: the sub-networks of a step."""
    loader = DataLoader(as_data_set(train), recipe.batch, shuffle=True, drop_last=True)
    update = make_optimizer(recipe.optimizer, network, recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(update, recipe.epochs * len(loader))
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        for images, labels in loader:
            taught = labels
            for number, chosen in enumerate(draw()):
                network.active = chosen
                logits = network(images)
                cross_entropy(logits, taught).backward()
                if number == 0:
                    taught = logits.detach().softmax(1)
            update.step()
            update.zero_grad(set_to_none=True)
            schedule.step()
        yield epoch
