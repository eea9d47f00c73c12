"""Elastic super-networks as values: what can be chosen in one, and a choice, a sub-network, as a short text.

    zoo:ofa_mobilenet_v3@d=2-3-4-2-3,k=3-5-7-...,e=3-4-6-...

d: blocks of each stage. k, e: kernel and expansion of each block that is there, or of every block of the super-network
(as once-for-all's own lists), or one for all. w: the width multiplier, and norm: `group` in place of `batch`, of the
whole super-network.

Source: Cai, Gan, Wang, Zhang, Han: Once-for-All, ICLR 2020 (arXiv 1908.09791), section 4.1; stages and widths:
ofa/imagenet_classification/elastic_nn/networks/ofa_proxyless.py and ofa_mbv3.py of mit-han-lab/once-for-all.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from itertools import accumulate

from ..errors import InputError, unknown

DEPTHS, KERNELS, EXPANSIONS = (2, 3, 4), (3, 5, 7), (3, 4, 6)
NORMS = ("batch", "group")
MOST_WIDTH = 8.0  # Assumption: published ones are 1.0, 1.2 and 1.3
MULTIPLE = 8


def nearest(channels: float) -> int:
    """Return a width as the nearest multiple of 8, not more than a tenth below. Source: MobileNetV2 (TensorFlow)."""
    width = max(MULTIPLE, int(channels + MULTIPLE / 2) // MULTIPLE * MULTIPLE)
    return width + MULTIPLE if width < 0.9 * channels else width


@dataclass(frozen=True)
class Stage:
    """Blocks of one width: `channels` at width 1; the first block has the stride. most_blocks: where depth is elastic,
    the most of `DEPTHS`."""

    channels: int
    stride: int
    activation: str = "relu6"
    squeeze: bool = False
    most_blocks: int = DEPTHS[-1]


@dataclass(frozen=True)
class Subnetwork:
    """A choice: the blocks of each elastic stage, and the kernel and expansion of each block, from first to last."""

    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expansions: tuple[int, ...]

    @property
    def text(self) -> str:
        """The choice as text, one number where all are the same."""
        parts = {"d": self.depths, "k": self.kernels, "e": self.expansions}
        return ",".join(
            f"{name}={values[0] if len(set(values)) == 1 else '-'.join(map(str, values))}"
            for name, values in parts.items()
        )


@dataclass(frozen=True)
class Design:
    """A super-network: stem, a fixed first block, stages of elastic blocks, and a tail before the classifier.

    Channels are those at width 1. tail: (channels, activation, has a norm, behind the pool) of its 1x1 convolutions.
    stem_stride: of the first convolution.
    """

    stem: int
    first: int
    stem_activation: str
    first_activation: str
    stages: tuple[Stage, ...]
    tail: tuple[tuple[int, str, bool, bool], ...]
    epsilon: float
    width: float = 1.0
    norm: str = "batch"
    stem_stride: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.width <= MOST_WIDTH:
            raise InputError(f"the width multiplier w must be above 0 and at most {MOST_WIDTH:g}, not {self.width:g}")
        if self.norm not in NORMS:
            raise unknown("norm of a super-network", self.norm, NORMS)

    def channels(self, at_width_1: int) -> int:
        """Return a number of channels at this design's width."""
        return nearest(at_width_1 * self.width)

    @property
    def elastic(self) -> tuple[Stage, ...]:
        """The stages whose depth is chosen."""
        return tuple(stage for stage in self.stages if stage.most_blocks > 1)

    @property
    def most_blocks(self) -> int:
        """The elastic blocks of the whole super-network."""
        return sum(stage.most_blocks for stage in self.stages)

    def depths_of(self, chosen: Subnetwork) -> tuple[int, ...]:
        """Return the blocks of every stage, fixed ones too."""
        depths = iter(chosen.depths)
        return tuple(next(depths) if stage.most_blocks > 1 else 1 for stage in self.stages)

    def places_of(self, chosen: Subnetwork) -> list[tuple[int, int]]:
        """Return the stage and the place in it of each elastic block that is there."""
        return [(stage, place) for stage, depth in enumerate(self.depths_of(chosen)) for place in range(depth)]

    def numbers_of(self, chosen: Subnetwork) -> list[int]:
        """Return the super-network's number of each block that is there; the fixed first one is 0."""
        before = [1, *accumulate((stage.most_blocks for stage in self.stages), initial=1)][1:]
        return [0, *(before[stage] + place for stage, place in self.places_of(chosen))]

    def subnetwork(self, depths: tuple[int, ...], kernels: tuple[int, ...], expansions: tuple[int, ...]) -> Subnetwork:
        """Return a sub-network; one number stands for all.

        Errors: InputError for numbers that the super-network has not, or too many or few of them.
        """
        stages = len(self.elastic)
        depths = _one_each("d", depths, {stages}, DEPTHS, "one for each stage")
        depths = depths if len(depths) == stages else depths * stages
        present = Subnetwork(depths, (), ())
        places = self.places_of(present)
        numbers = [number - 1 for number in self.numbers_of(present)[1:]]

        def of_blocks(name: str, given: tuple[int, ...], allowed: tuple[int, ...]) -> tuple[int, ...]:
            said = "one for each block that is there, or one for each of the super-network"
            given = _one_each(name, given, {len(places), self.most_blocks}, allowed, said)
            if len(given) == 1 < len(places):
                return given * len(places)
            return given if len(given) == len(places) else tuple(given[number] for number in numbers)

        return Subnetwork(depths, of_blocks("k", kernels, KERNELS), of_blocks("e", expansions, EXPANSIONS))

    @property
    def largest(self) -> Subnetwork:
        """The sub-network with all blocks, the largest kernels and expansions."""
        return self.subnetwork(DEPTHS[-1:], KERNELS[-1:], EXPANSIONS[-1:])

    @property
    def smallest(self) -> Subnetwork:
        """The sub-network with the fewest blocks, the smallest kernels and expansions."""
        return self.subnetwork(DEPTHS[:1], KERNELS[:1], EXPANSIONS[:1])

    def draw(self, randomness: random.Random) -> Subnetwork:
        """Return a sub-network at random: every depth, kernel and expansion with equal chances, as once-for-all's."""
        depths = tuple(randomness.choice(DEPTHS) for _ in self.elastic)
        count = len(self.places_of(Subnetwork(depths, (), ())))
        kernels = tuple(randomness.choice(KERNELS) for _ in range(count))
        return Subnetwork(depths, kernels, tuple(randomness.choice(EXPANSIONS) for _ in range(count)))

    def read(self, text: str) -> tuple[Design, Subnetwork]:
        """Return the design and the sub-network that a text means; what is left out is as large as there is.

        Errors: InputError, naming what is wrong, for a text that means none.
        """
        given: dict[str, str] = {}
        for part in text.split(",") if text else ():
            name, _, value = part.partition("=")
            if name not in ("d", "k", "e", "w", "norm"):
                raise unknown("part of a sub-network", name, ("d", "k", "e", "w", "norm"))
            if name in given or not value:
                raise InputError(f"{name}= must stand once, with a value; write such as {_EXAMPLE}")
            given[name] = value
        design = self
        if "w" in given:
            if not re.fullmatch(r"\d{1,2}(\.\d{1,4})?", given["w"]):
                raise InputError(f"the width multiplier w is {given['w']!r}; write such as w=1.2")
            design = replace(design, width=float(given["w"]))
        if "norm" in given:
            design = replace(design, norm=given["norm"])
        depths, kernels, expansions = (
            _numbers(name, given[name]) if name in given else values[-1:]
            for name, values in (("d", DEPTHS), ("k", KERNELS), ("e", EXPANSIONS))
        )
        return design, design.subnetwork(depths, kernels, expansions)

    def label(self, base: Design, chosen: Subnetwork | None) -> str:
        """Return the text that `base.read` reads as this design and a sub-network of it; without one, of it all."""
        parts = [f"w={self.width:g}"] if self.width != base.width else []
        parts += [f"norm={self.norm}"] if self.norm != base.norm else []
        return ",".join([*parts, *([chosen.text] if chosen else [])])


_EXAMPLE = "d=2-3-4-2-3,k=5,e=4"


def _numbers(name: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d(-\d){0,99}", text):
        raise InputError(f"{name}={text[:40]} is not a list of numbers; write such as {_EXAMPLE}")
    return tuple(int(each) for each in text.split("-"))


def _one_each(
    name: str, given: tuple[int, ...], counts: set[int], allowed: tuple[int, ...], said: str
) -> tuple[int, ...]:
    """Return what was given, checked."""
    for value in given:
        if value not in allowed:
            raise InputError(f"{name} has {value}; allowed: {', '.join(map(str, allowed))}")
    if len(given) != 1 and len(given) not in counts:
        wanted = " or ".join(map(str, sorted(counts)))
        raise InputError(f"{name} has {len(given)} numbers, not {wanted}: {said}; or give a single one for all")
    return given


def split_name(name: str) -> tuple[str, str | None]:
    """Return a model's name without and with its sub-network: 'zoo:net@d=2' -> ('zoo:net', 'd=2')."""
    base, at, text = name.rpartition("@")
    is_choice = at and "/" not in text and "\\" not in text and ":" not in text
    return (base, text) if is_choice else (name, None)
