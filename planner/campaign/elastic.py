"""Training a super-network, so that its sub-networks train with it, and measuring one of them.

Every step trains a few sub-networks on the same images and adds their gradients. With several, the first one's answers
are what the others learn (sandwich rule with in-place distillation: Yu, Huang: Universally Slimmable Networks, ICCV
2019, arXiv 1903.05134, sections 3.2 and 3.3).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from costmodel import Subnetwork, SuperNetwork, make_optimizer
from costmodel.graph.elastic import DEPTHS, EXPANSIONS, KERNELS

from .fine_tuning import Data, as_data_set
from .loop import Recipe

Draw = Callable[[], Sequence[Subnetwork]]
CALIBRATION_BATCH, CALIBRATION_BATCHES = 64, 32  # Source: once-for-all's calib_bn, 2,000 images


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


def spread(network: SuperNetwork, number: int) -> Subnetwork:
    """Return the sub-network of a number: small and large ones as often as those between.

    Drawn with equal chances for every block, nearly all are of middling size, and tell little of small budgets.
    """
    randomness, design = random.Random(number), network.design
    lean = {"d": randomness.random(), "k": randomness.random(), "e": randomness.random()}

    def pick(name: str, values: Sequence[int]) -> int:
        steps = len(values) - 1
        return values[sum(randomness.random() < lean[name] for _ in range(steps))]

    depths = tuple(pick("d", DEPTHS) for _ in design.elastic)
    count = len(design.places_of(Subnetwork(depths, (), ())))
    kernels = tuple(pick("k", KERNELS) for _ in range(count))
    return Subnetwork(depths, kernels, tuple(pick("e", EXPANSIONS) for _ in range(count)))


def calibrated(network: SuperNetwork, chosen: Subnetwork, images: Data) -> nn.Module:
    """Return a sub-network on its own, the running statistics of its batch norms those of some images.

    The shared ones are of all sub-networks mixed. Source: once-for-all, section 3.3, recalibration of batch norms.
    """
    own = network.extract(chosen)
    norms = [module for module in own.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return own
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    own.train()
    loader = DataLoader(as_data_set(images), CALIBRATION_BATCH, shuffle=False)
    with torch.no_grad():
        for number, (given, _) in enumerate(loader):
            if number == CALIBRATION_BATCHES:
                break
            if len(given) > 1:
                own(given)
    for norm in norms:
        norm.momentum = 0.1
    return own


def folds_of(images: Sequence[int], count: int) -> list[list[int]]:
    """Return the numbers of the images of each fold; every class is in all of them alike. images: their labels."""
    seen: dict[int, int] = {}
    folds: list[list[int]] = [[] for _ in range(count)]
    for number, label in enumerate(images):
        folds[seen.setdefault(label, 0) % count].append(number)
        seen[label] += 1
    return folds
