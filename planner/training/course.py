"""What a training depends on beside its plan, its images and its weights; and the augmentation that it may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from costmodel.errors import InputError, require_count, unknown
from costmodel.table import Table

from ..campaign.loop import Recipe
from ..campaign.rates import default_rates
from ..choosing.plan import Plan

Transform = Callable[[torch.Tensor], torch.Tensor]

# Assumption: a crop has a third of the image or more, as in fast.ai's recipes of few epochs; torchvision's own 8 % are
# for training from nothing. Source of flip's half: torchvision.transforms.v2.RandomHorizontalFlip.
_LEAST_CROP = 0.35


def _crop(side: int) -> Transform:
    from torchvision.transforms import v2  # which takes 160 MB of memory that who does not augment need not have

    return v2.RandomResizedCrop(side, scale=(_LEAST_CROP, 1.0), antialias=True)


def _flip(side: int) -> Transform:
    from torchvision.transforms import v2

    return v2.RandomHorizontalFlip()


# By name, what makes a transform of images (3 x R x R of uint8) for their side R in pixels.
AUGMENTATIONS: Table[Callable[[int], Transform]] = Table("augmentation", {"crop": _crop, "flip": _flip})
NONE = "none"


@dataclass(frozen=True)
class Course:
    """How long and how a plan is trained.

    learning_rate: of the first step; None is the middle one of those that suit the plan's optimizer. augment: names in
    AUGMENTATIONS, applied in this order; None is crop and flip, and none where the plan trains from a cache. patience:
    after how many epochs without a better one to stop; 0 is never.
    """

    epochs: int = 20
    learning_rate: float | None = None
    augment: tuple[str, ...] | None = None
    seed: int = 0
    patience: int = 10

    def of(self, plan: Plan) -> Course:
        """Return the course with what a plan decides filled in.

        Errors: InputError for a number or name that makes no sense, and for augmentation under a cache.
        """
        require_count("epochs", self.epochs)
        for name, value in (("seed", self.seed), ("patience", self.patience)):
            if value:
                require_count(name, value)
        rates = default_rates(plan.optimizer)
        rate = rates[len(rates) // 2] if self.learning_rate is None else self.learning_rate
        if not 0 < rate < math.inf:
            raise InputError(f"a learning rate must be positive and finite, not {rate:g}")
        is_cached = plan.schedule.cache is not None
        augment = (() if is_cached else tuple(AUGMENTATIONS)) if self.augment is None else self.augment
        for name in augment:
            AUGMENTATIONS.find(name)
        if is_cached and augment:
            raise InputError(
                f"the plan trains from a cache, which holds one view of each image: {', '.join(augment)} "
                f"cannot be; give --augment {NONE}, or plan without the cache"
            )
        return Course(self.epochs, rate, augment, self.seed, self.patience)

    def recipe(self, plan: Plan) -> Recipe:
        """Return what the training loop needs. The course's learning rate is filled in."""
        assert self.learning_rate is not None  # see `of`
        return Recipe(self.epochs, self.learning_rate, plan.batch, plan.resolution, plan.optimizer)

    def augmentation(self, resolution: int) -> Transform:
        """Return what is made of an image's pixels (3 x R x R of uint8)."""
        transforms = [AUGMENTATIONS.find(name)(resolution) for name in self.augment or ()]

        def augmented(pixels: torch.Tensor) -> torch.Tensor:
            for transform in transforms:
                pixels = transform(pixels)
            return pixels

        return augmented

    @property
    def parts(self) -> dict[str, str]:
        """What tells one course from another, by name."""
        return {
            "epochs": str(self.epochs),
            "learning rate": f"{self.learning_rate:g}",
            "augmentation": ",".join(self.augment or ()) or NONE,
            "seed": str(self.seed),
            "patience": str(self.patience),
        }


def read_augment(text: str) -> tuple[str, ...]:
    """Return the names in a text such as 'crop,flip' or 'none'. Errors: InputError for one that does not exist."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names == (NONE,):
        return ()
    for name in names or ("",):
        if name not in AUGMENTATIONS:
            raise unknown("augmentation", name, (*AUGMENTATIONS, NONE))
    return names
