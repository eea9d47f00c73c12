"""A convolution's call, and what PyTorch takes for it where it multiplies matrices of unfolded pixels itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..graph.blocks import is_depthwise
from ..graph.memory_order import Sizes, suggests_channels_last
from ..graph.values import Layer, Tensor

_MANY_IMAGES, _SMALL_IMAGE = 16, 20480  # Source: as `unfolds`


def given(layer: Layer, name: str):
    """Return an argument of a convolution, or its default: a trace holds those that were passed."""
    return layer.attributes.get(name, {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}[name])


def are(value: int, layer: Layer, *names: str) -> bool:
    """Whether attributes, each a number or one for every direction, have the value throughout."""
    return all(np.all(np.equal(given(layer, name), value)) for name in names)


def uses_channels_last(layer: Layer) -> bool:
    """Whether a convolution computes with channels beside each other: its input or its weight lies so."""
    return any(suggests_channels_last(each.shape, each.strides) for each in (layer.input, layer.inputs["weight"]))


def unfolds(layer: Layer, start: Tensor, batch: int, threads: int) -> bool:
    """Whether PyTorch multiplies matrices of unfolded pixels, and does not ask oneDNN.

    start: the input, or the output, which a transposed convolution (the input's gradient) starts from. Source:
    ConvParams::use_mkldnn in aten/src/ATen/native/Convolution.cpp of PyTorch 2.15.
    """
    shape, kernel = start.shape[1:], (1, *layer.inputs["weight"].shape[2:])  # one dimension counts as rows of one
    if start.dtype == "float64":  # which oneDNN does not compute with
        return True
    if threads == 1 and batch < _MANY_IMAGES and are(1, layer, "stride", "dilation") and kernel[-2:] == (1, 1):
        return True
    is_small = batch == 1 and math.prod(shape[:3]) <= _SMALL_IMAGE
    return is_small and min(kernel[-2:]) <= 3 and given(layer, "groups") == 1


def is_matrix_product(layer: Layer) -> bool:
    """Whether a convolution takes every pixel once, as it is."""
    is_padded = not isinstance(given(layer, "padding"), str) and not are(0, layer, "padding")
    return {*layer.inputs["weight"].shape[2:]} == {1} and are(1, layer, "stride") and not is_padded


def unfolding(layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int) -> tuple[int, int]:
    """Return the bytes of the unfolded pixels, or of what groups, computed one by one, are put together from."""
    x, y, weight = layer.inputs["input"], layer.output, layer.inputs["weight"]
    groups = given(layer, "groups")
    if groups > 1:
        sizes = {"input": x.bytes(batch, float_bytes), "weight": weight.bytes(1)}
        parts = sum(size for role, size in sizes.items() if role in wanted)
        return y.bytes(batch, float_bytes), max(parts, (sizes["input"] + y.bytes(batch, float_bytes)) // groups)
    pixels = 0 if is_matrix_product(layer) else math.prod(weight.shape[1:]) * math.prod(y.shape[2:])
    again = "weight" in wanted or "bias" in wanted or not are(1, layer, "dilation")
    return batch * float_bytes * pixels, batch * float_bytes * pixels if again else 0


@dataclass(frozen=True)
class Convolution:
    """A convolution of a batch: its arguments for each direction, its channels for each group."""

    layer: Layer
    batch: int
    float_bytes: int
    threads: int

    @cached_property
    def groups(self) -> int:
        """Groups of channels."""
        return given(self.layer, "groups")

    @cached_property
    def ic(self) -> int:
        """Input channels of a group."""
        return self.layer.inputs["weight"].shape[1]

    @cached_property
    def oc(self) -> int:
        """Output channels of a group."""
        return self.layer.inputs["weight"].shape[0] // self.groups

    @cached_property
    def kernel(self) -> Sizes:
        """The kernel's sides."""
        return self.layer.inputs["weight"].shape[2:]

    @cached_property
    def sides(self) -> tuple[Sizes, Sizes]:
        """The input's and the output's sides."""
        return self.layer.inputs["input"].shape[2:], self.layer.output.shape[2:]

    @cached_property
    def is_depthwise(self) -> bool:
        """Whether every channel is a group of its own, input and output alike."""
        return is_depthwise(self.layer) and self.oc == 1

    def along(self, name: str) -> Sizes:
        """Return an argument for each direction; padding by name as the pixels before the image."""
        value, dilation = given(self.layer, name), given(self.layer, "dilation")
        if isinstance(value, str):
            dilations = [dilation] * len(self.kernel) if isinstance(dilation, int) else dilation
            same = tuple(step * (side - 1) // 2 for step, side in zip(dilations, self.kernel, strict=True))
            return same if value == "same" else (0,) * len(self.kernel)
        return (
            (value,) * len(self.kernel) if isinstance(value, int) else tuple(value) * (len(self.kernel) // len(value))
        )

    def plain(self, tensor: Tensor) -> int:
        """Return the bytes of a tensor of this batch."""
        return tensor.bytes(self.batch, self.float_bytes)
