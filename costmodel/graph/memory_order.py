"""How tensors lie in memory, from shapes and strides, as PyTorch tells it; strides () are those of the shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

Sizes = tuple[int, ...]


def strides_of(shape: Sequence[int], order: Sequence[int] | None = None) -> Sizes:
    """Return the strides of a tensor without gaps; order: its dimensions, the outermost in memory first."""
    strides, step = [0] * len(shape), 1
    for dimension in reversed(range(len(shape)) if order is None else order):
        strides[dimension] = step
        step *= max(1, shape[dimension])
    return tuple(strides)


def channels_last(shape: Sequence[int]) -> Sizes:
    """Return the strides of a batch of images, one- or three-dimensional too, whose channels lie beside each other."""
    return strides_of(shape, (0, *range(2, len(shape)), 1))


def lies_as(shape: Sequence[int], strides: Sizes, wanted: Sizes) -> bool:
    """Whether a tensor has these strides, where they matter: not those of dimensions of size 1."""
    if not strides or not wanted:
        plain = strides_of(shape)
        strides, wanted = strides or plain, wanted or plain
    return all(size == 1 or ours == theirs for size, ours, theirs in zip(shape, strides, wanted, strict=True))


def is_dense(shape: Sequence[int], strides: Sizes) -> bool:
    """Whether a tensor's elements lie without gaps, in any order."""
    return not strides or lies_as(shape, strides, dense_as(shape, strides))


def dense_as(shape: Sequence[int], strides: Sizes) -> Sizes:
    """Return the strides of a tensor without gaps whose dimensions lie in the order of these strides."""
    return strides_of(shape, sorted(range(len(shape)), key=lambda at: -strides[at])) if strides else ()


def suggests_channels_last(shape: Sequence[int], strides: Sizes) -> bool:
    """Whether kernels take a tensor for one whose channels lie beside each other, gaps or not.

    Source: is_channels_last_strides_2d and _3d in c10/core/MemoryFormat.h of PyTorch.
    """
    if not strides or len(shape) not in (4, 5) or not strides[1]:
        return False
    least = 0
    for dimension in (1, *range(len(shape) - 1, 1, -1), 0):
        if not shape[dimension] or strides[dimension] < least or (not dimension and least == strides[1]):
            return False
        least = strides[dimension] * shape[dimension]
    return True


def suggested(shape: Sequence[int], strides: Sizes) -> Sizes:
    """Return the strides of a copy that keeps the order of channels (`suggest_memory_format`)."""
    return channels_last(shape) if suggests_channels_last(shape, strides) else ()


def viewed(shape: Sequence[int], strides: Sizes, wanted: Sequence[int]) -> Sizes | None:
    """Return the strides of a view of another shape; None where that takes a copy.

    Source: computeStride_impl in aten/src/ATen/TensorUtils.cpp of PyTorch.
    """
    if not strides:
        return ()
    runs: list[list[int]] = []  # of dimensions that follow each other in memory: [elements, innermost stride]
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = [runs[-1][0] * size, stride]
        else:
            runs.append([size, stride])
    found: list[int] = []
    sizes = list(wanted)
    for elements, stride in reversed(runs):
        inside = 1
        while sizes and (inside < elements or sizes[-1] == 1):
            found.append(stride * inside)
            inside *= sizes.pop()
        if inside != elements:
            return None
    if any(size != 1 for size in sizes):
        return None
    found += [math.prod(wanted)] * len(sizes)
    return tuple(reversed(found))


def permuted(strides: Sizes, order: Sequence[int]) -> Sizes:
    """Return strides with dimensions in another order."""
    return tuple(strides[dimension] for dimension in order)


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """Return the order that undoes one."""
    return tuple(index for index, _ in sorted(enumerate(order), key=lambda pair: pair[1]))
