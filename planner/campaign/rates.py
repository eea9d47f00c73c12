"""Which learning rate a way is trained with: of a few, the best on a validation part of the training images.

Ways differ in the rate that they need, so that with one for all the comparison is of rates. The images that accuracy is
reported on have no say in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch.utils.data import Subset

from costmodel import Way

from .fine_tuning import Recipe, Run
from .images import Images

if TYPE_CHECKING:
    from .storage import Store

# Source: the rates that validation chose for 74 ways in benchmarks/results/decision_quality_runs.csv by Adam, 0.001 to
# 0.01, and for the heads and blocks of benchmarks/results/real_weights.md, 0.0003 to 0.003. Assumption: those of SGD
# are ten times as large, as in MobileTL's and TinyTL's recipes.
RATES = {"sgd": (0.003, 0.01, 0.03), "momentum": (0.001, 0.003, 0.01)}
OTHER_RATES = (0.0003, 0.001, 0.003)
VALIDATION_SHARE = 0.2
SEED = 1_000_003  # no run that counts has it


def default_rates(optimizer: str) -> tuple[float, ...]:
    """Return the learning rates that are tried with an optimizer."""
    return RATES.get(optimizer, OTHER_RATES)


def split(images: Images) -> tuple[Subset, Subset]:
    """Return the images to train and those to choose a rate with: every fifth of each class, from its second on."""
    every, seen, chosen = round(1 / VALIDATION_SHARE), dict[int, int](), set[int]()
    for index, label in enumerate(images.labels):
        if seen.setdefault(label, 0) % every == 1:
            chosen.add(index)
        seen[label] += 1
    rest = [index for index in range(len(images)) if index not in chosen]
    return Subset(images, rest), Subset(images, sorted(chosen))


class Rates:
    """The rates to choose among, and what was found of them; shared by all workers through the store."""

    def __init__(self, rates: Sequence[float], store: Store, images: Images, recipe: Recipe):
        self.rates, self.store, self.recipe = tuple(rates), store, recipe
        self.train, self.validation = split(images)

    def of(self, way: Way, train: Callable[[Recipe, Subset, Subset, int], Run]) -> float:
        """Return the rate for a way; tries those that nobody has tried. train: (recipe, images, validation, seed)."""
        if len(self.rates) == 1 or not len(self.validation) or len(self.train) < self.recipe.batch:
            return self.rates[len(self.rates) // 2]
        for rate in self.rates:
            if rate not in self.store.validated(way):
                run = train(replace(self.recipe, learning_rate=rate), self.train, self.validation, SEED)
                self.store.keep_validated(way, rate, 0.0 if run.diverged else run.accuracy_percent)
        found = self.store.validated(way)
        return max(self.rates, key=lambda rate: (found[rate], -rate))
