"""How a training step is carried out. A schedule does not change what a step computes, but when and in which pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, require_count, unknown
from ..units import counted

# How a segment saves memory. cheap: what norms, activations and sums give is made again from what else is kept, without
# a matrix product. recompute: only the segment's input is kept, and all of it runs again. both: in turn. interior: what
# the norm that closes the last block reads is kept, too, so that the convolution before it does not run again.
MODES = {
    "cheap": "with norms and activations recomputed",
    "recompute": "recomputed",
    "both": "recomputed, keeping no norms or activations",
    "recompute-interior": "recomputed up to the last norm",
    "both-interior": "recomputed up to the last norm, keeping no norms or activations",
}

# How the outputs of the frozen prefix may be stored, with the most that a value is off.
CACHE_DTYPES = {
    "float32": "nothing is rounded",
    # Source: half of 2^-11, the distance of numbers below 1 in IEEE 754 binary16; stored with the largest as 1.
    "float16": "values are rounded by at most 0.03 % of the image's largest",
    "int8": "values are rounded by at most 0.4 % of their channel's largest",  # half a step of 127
}


@dataclass(frozen=True)
class Schedule:
    """How the step is carried out.

    micro_batch: images per forward and backward pass, whose gradients are added up; None is the whole batch.
    inplace_update: every parameter is updated, and its gradient freed, as soon as the gradient is there.
    prefix_batch: images at a time in the layers below the first trained parameter, whose results are collected; None is
    all of the pass. segments: (first layer, last layer, mode) of parts of the network that keep less and make it again
    in backward, by the layers' indices; modes: `MODES`. cache: the prefix runs once for each image, `prefix_batch` (1)
    at a time, and its outputs are stored in this type (`CACHE_DTYPES`); steps start from them.

    Errors: InputError for a number that is not a whole number of 1 or more, and for a mode or type that does not exist.
    """

    micro_batch: int | None = None
    inplace_update: bool = False
    prefix_batch: int | None = None
    segments: tuple[tuple[int, int, str], ...] = ()
    cache: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("micro_batch", self.micro_batch), ("prefix_batch", self.prefix_batch)):
            if value is not None:
                require_count(name, value)
        for _, _, mode in self.segments:
            if mode not in MODES:
                raise unknown("mode of a segment", mode, MODES)
        if self.cache is not None and self.cache not in CACHE_DTYPES:
            raise unknown("type of a cache", self.cache, CACHE_DTYPES)

    @property
    def is_cut(self) -> bool:
        """Whether the network is cut up: a prefix in pieces or from a cache, or segments that run again."""
        return self.has_prefix or bool(self.segments)

    @property
    def has_prefix(self) -> bool:
        """Whether the frozen prefix is carried out apart from the rest: in pieces, or from a cache."""
        return self.prefix_batch is not None or self.cache is not None

    def images_per_pass(self, batch: int) -> int:
        """Return the images of one forward and backward pass.

        Errors: InputError if the schedule does not fit a batch of this size.
        """
        micro_batch = batch if self.micro_batch is None else self.micro_batch
        if batch % micro_batch:
            raise InputError(f"micro_batch must divide batch, but {micro_batch} does not divide {batch}")
        if self.inplace_update and micro_batch != batch:
            raise InputError(
                "inplace_update frees each gradient at once, so gradients of micro-batches cannot be added up; "
                "leave out micro_batch or inplace_update"
            )
        return micro_batch

    def label(self, batch: int) -> str:
        """Return how a batch is carried out, for people, such as 'in micro-batches of 4'; empty if all in one go."""
        parts = [] if self.images_per_pass(batch) == batch else [f"in micro-batches of {self.micro_batch}"]
        if self.cache is not None:
            parts.append(f"the frozen layers from a cache in {self.cache}")
        elif self.prefix_batch is not None:
            parts.append(f"the frozen layers {counted(self.prefix_batch, 'image')} at a time")
        for mode, said in MODES.items():
            if count := sum(one == mode for _, _, one in self.segments):
                parts.append(f"{counted(count, 'segment')} {said}")
        return ", ".join([*parts, *(["updated in place"] if self.inplace_update else [])])

    def to_dict(self, batch: int) -> dict[str, Any]:
        """Return the schedule of a batch as plain values for JSON."""
        more = {} if self.prefix_batch is None else {"prefix_batch": self.prefix_batch}
        more |= {"segments": [list(each) for each in self.segments]} if self.segments else {}
        more |= {} if self.cache is None else {"cache": self.cache}
        return {"micro_batch": self.images_per_pass(batch), "inplace_update": self.inplace_update, **more}


PLAIN = Schedule()


def schedule_from(saved: Mapping[str, Any]) -> Schedule:
    """Return the schedule that `Schedule.to_dict` wrote; what is absent is as in the plain one."""
    micro_batch = saved.get("micro_batch")
    whole = micro_batch == saved.get("batch")
    segments = tuple((first, last, mode) for first, last, mode in saved.get("segments", ()))
    return Schedule(
        None if whole else micro_batch, saved.get("inplace_update", False), saved.get("prefix_batch"), segments,
        saved.get("cache"),
    )  # fmt: skip
