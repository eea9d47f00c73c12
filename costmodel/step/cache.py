"""What storing the outputs of the frozen prefix costs: once for each image, before training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from ..units import BYTES_PER_ELEMENT, FLOAT_BYTES
from .regions import regions, skipped_flops
from .schedule import CACHE_DTYPES
from .step import Step


@dataclass(frozen=True)
class CacheCost:
    """A cache of the prefix's outputs: what one image takes of the storage, and the FLOPs of computing it, once.

    dtype: what outputs are stored in. rounding: by how much values may be off.
    """

    dtype: str
    rounding: str
    bytes_per_image: int
    fill_flops_per_image: int

    @classmethod
    def of(cls, step: Step) -> CacheCost | None:
        """Return what the cache of a step costs; None if its schedule has none."""
        dtype = step.schedule.cache
        if dtype is None:
            return None
        output = regions(step.requirements, step.schedule).prefix_output
        assert output is not None  # what is cached
        fill, _ = skipped_flops(step.requirements, step.schedule, 1, 1)
        return cls(dtype, CACHE_DTYPES[dtype], record_bytes(output.shape[1:], dtype), fill)

    def training_flops(self, step_flops: int, batch: int, images: int, epochs: int) -> int:
        """Return the FLOPs of training for some epochs; step_flops: of one update of `batch` images."""
        return images * self.fill_flops_per_image + epochs * images * step_flops // batch

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as plain values for JSON."""
        return asdict(self)


def scales(shape: tuple[int, ...], dtype: str) -> int:
    """Return how many scales the outputs of one image are stored with: int8 has one for each channel, float16 one."""
    channels = shape[0] if len(shape) > 1 else 1
    return {"float32": 0, "float16": 1, "int8": channels}[dtype]


def record_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes that the outputs of one image take; shape: of the outputs, without the batch."""
    return prod(shape) * BYTES_PER_ELEMENT[dtype] + FLOAT_BYTES * scales(shape, dtype)
