"""What of a network and its training the accuracy may depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from costmodel import Way

from ..evidence.rows import is_few

# Source: the smallest batch of the published accuracies (TinyTL, MobileTL: 8).
LEAST_IMAGES = 8


@dataclass(frozen=True)
class Setting:
    """What of a network and its training the accuracy may depend on.

    `model` as in `LayerGraph.model`, such as 'zoo:proxylessnas_mobile'; `resolution` and `batch` None where a source
    does not state them; `block_count` and `convolution_count` 0 where it has none. `images_per_class`: labelled images
    to train with, None if that is not known. `converted`: the ways that put other operations into the network than it
    was pre-trained with. `images_per_norm`: how many images the norms of ways with batch statistics see at once, where
    that is known. `classifies`: whether it tells classes of whole images apart.
    """

    model: str
    resolution: int | None = 224
    batch: int | None = 8
    block_count: int = 0
    has_norm: bool = True
    converted: frozenset[Way] = frozenset()
    convolution_count: int = 0
    images_per_class: int | None = None
    images_per_norm: Mapping[Way, int] = field(default_factory=dict, hash=False)
    classifies: bool = True

    @property
    def name(self) -> str:
        """The network's name without its library."""
        return self.model.rpartition(":")[2]

    @property
    def few_shot(self) -> bool:
        """Whether there are only a few labelled images per class."""
        return is_few(self.images_per_class)
