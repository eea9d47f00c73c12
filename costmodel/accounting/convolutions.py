"""Working memory of PyTorch's convolutions on an x86 processor with AVX-512: oneDNN's copies and scratchpads.

oneDNN computes three things, each with an implementation of its own: y from x and w, dx from dy and w, dw from x and
dy. Which one depends on shapes; each wants its tensors in an order of its own, and copies those that lie in another:

    jit     channels in blocks of 16 (of 8 or 4 where a group has no more); an image of few channels as it is
    gemm    as they are; a product of matrices of unfolded pixels, which its scratchpad holds
    brg     channels last; for tensors that lie so, and for dx of a convolution with a stride

What is made so is copied once more into the result, unless tensors lie with channels last: then only weights are
copied.

Source: src/cpu/x64/jit_avx512_common_conv_kernel.cpp, jit_uni_dw_convolution.cpp, src/cpu/gemm_convolution_utils.cpp of
oneDNN 3; aten/src/ATen/native/mkldnn/Conv.cpp of PyTorch 2.15; the order of allocations as the profiler shows it
(tests/costmodel/accounting/test_kernels.py). Not counted: scratchpads of sums over threads; the blocking
of gemm's forward by the size of a cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..graph.blocks import is_depthwise
from ..graph.memory_order import Sizes, channels_last, lies_as, suggests_channels_last
from ..graph.values import Layer, Tensor
from ..units import FLOAT_BYTES

_BLOCK = 16  # channels
_IMAGE_CHANNELS = 3
_REGISTERS = 28  # for results. Source: max_ur_w in jit_avx512_common_conv_kernel.cpp, and `regs` of its init_conf
_L1_BYTES = 2**15  # Assumption: of a core's first cache; it decides between two ways of unrolling
_WIDEST_KERNEL = 14
_ALIGNMENT = 128  # of a scratchpad's parts
_PAGE, _PRODUCT_BYTES = 4096, 40  # Source: P4K, and sizeof(brgemm_batch_element_t) in oneDNN
_MANY_IMAGES, _SMALL_IMAGE = 16, 20480  # Source: as `unfolds`
_FEW_PIXELS = 256  # of a thread. Source: init_conf in gemm_convolution_utils.cpp (outer_threading)


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
    shape, kernel = start.shape[1:], layer.inputs["weight"].shape[2:]
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
        sizes = {"input": x.bytes(batch, float_bytes), "weight": FLOAT_BYTES * weight.elements}
        parts = sum(size for role, size in sizes.items() if role in wanted)
        return y.bytes(batch, float_bytes), max(parts, (sizes["input"] + y.bytes(batch, float_bytes)) // groups)
    pixels = 0 if is_matrix_product(layer) else math.prod(weight.shape[1:]) * math.prod(y.shape[2:])
    again = "weight" in wanted or "bias" in wanted or not are(1, layer, "dilation")
    return batch * float_bytes * pixels, batch * float_bytes * pixels if again else 0


@dataclass(frozen=True)
class Copies:
    """What an implementation makes of x, y and w (or of their gradients), in bytes; 0 of one that it takes as it is.

    scratch: of its scratchpad. through: copies of its result on the way to the plain one, beside that.
    """

    x: int
    y: int
    w: int
    scratch: int = 0
    through: int = 0


@dataclass(frozen=True)
class Convolution:
    """A convolution of a batch, as oneDNN sees it: one or two dimensions are the last of three."""

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

    @cached_property
    def block(self) -> int:
        """How many channels of a group come in a block; 0 if they do not divide into blocks."""
        if self.groups == 1:
            return _BLOCK
        return next((size for size in (16, 8, 4) if self.ic % size == self.oc % size == 0), 0)

    def plain(self, tensor: Tensor) -> int:
        """Return the bytes of a tensor of this batch."""
        return tensor.bytes(self.batch, self.float_bytes)

    def in_blocks(self, tensor: Tensor, block: int) -> int:
        """Return the bytes of a tensor whose channels come in blocks."""
        channels = tensor.shape[1]
        return self.plain(tensor) // channels * _up(channels, block)

    @cached_property
    def weight_bytes(self) -> int:
        """The weight's bytes."""
        return self.float_bytes * self.layer.inputs["weight"].elements

    def weight_in_blocks(self, inputs: int, outputs: int) -> int:
        """Return the bytes of a weight whose channels come in blocks of so many."""
        taps = math.prod(self.kernel)
        return self.float_bytes * taps * self.groups * _up(self.ic, inputs) * _up(self.oc, outputs)

    @cached_property
    def _depthwise_weight(self) -> int:
        return self.float_bytes * math.prod(self.kernel) * _up(self.groups, _BLOCK)

    def _blocked(self, block: int, image: bool = False) -> Copies:
        """Return the copies of jit. image: whether x is taken as it is."""
        x, y = self.layer.inputs["input"], self.layer.output
        weight = self.weight_in_blocks(1 if image else block, block)
        return Copies(0 if image else self.in_blocks(x, block), self.in_blocks(y, block), weight)

    def _rows(self) -> int:
        """Return the bytes of the pixels that a strided pointwise convolution reads, of one image in one place."""
        x = self.layer.inputs["input"]
        if math.prod(self.kernel) > 1 or are(1, self.layer, "stride"):
            return 0
        channels = _up(x.shape[1], _BLOCK)
        return self.threads * self.float_bytes * channels * math.prod(self.sides[1]) + _ALIGNMENT

    def _unfolded(self) -> int:
        """Return the bytes of one image's unfolded pixels, of a group."""
        if is_matrix_product(self.layer):
            return 0
        return self.float_bytes * self.ic * math.prod(self.kernel) * math.prod(self.sides[1][-2:])

    def _at_once(self) -> int:
        """Return how many threads unfold at the same time."""
        pixels = math.prod(self.sides[1][-2:])
        return self.threads if pixels < _FEW_PIXELS * self.threads and (self.batch > 1 or self.groups > 2) else 1

    # --- which implementation computes ----------------------------------------------------------------------------

    @cached_property
    def _fits_forward(self) -> bool:
        """Whether jit's forward can unroll: no row's padding is longer than the pixels that it computes at once."""
        (left, right), row = self._padding_of_rows, self.sides[1][-1]
        at_once = self._unrolled_forward
        tail = row % at_once
        stride = self.along("stride")[-1]
        return left <= at_once and right - tail * stride <= at_once

    @cached_property
    def _padding_of_rows(self) -> tuple[int, int]:
        """The pixels that are missing before and behind a row."""
        left, stride = self.along("padding")[-1], self.along("stride")[-1]
        span = (self.kernel[-1] - 1) * self.along("dilation")[-1]
        before, behind = self.sides[0][-1], self.sides[1][-1]
        return left, max(0, (behind - 1) * stride + span - (before + left - 1))

    @cached_property
    def _unrolled_forward(self) -> int:
        row, blocks = self.sides[1][-1], _up(self.oc, _BLOCK) // _BLOCK
        if self.kernel[-1] > 3 or (self.kernel[-1] == 3 and row <= _REGISTERS and self._fits_in_cache):
            return min(row, _REGISTERS)
        together = next(count for count in range(min(blocks, 5), 0, -1) if blocks % count == 0)
        return min(row, 31 // (together + 1))

    @cached_property
    def _fits_in_cache(self) -> bool:
        if not are(1, self.layer, "stride"):
            return False
        (before, behind), taps = (sides[-1] for sides in self.sides), math.prod(self.kernel)
        high = taps // self.kernel[-1]
        return FLOAT_BYTES * _BLOCK * (before * high + 2 * behind + 2 * _BLOCK * taps) < _L1_BYTES

    @cached_property
    def _fits_backward(self) -> bool:
        """Whether jit's dx can unroll, as `_fits_forward`."""
        row, blocks, span = self.sides[0][-1], _up(self.ic, _BLOCK) // _BLOCK, self.kernel[-1] - 1
        together = next(count for count in (4, 3, 2, 1) if blocks % count == 0)
        at_once = min(row, _REGISTERS if self.kernel[-1] > 3 else 31 // (together + 1))
        overflow = span * self.along("dilation")[-1] - self._padding_of_rows[0]
        return overflow <= at_once

    @property
    def _is_image(self) -> bool:
        """Whether jit's forward takes x as it is. Source: is_1stconv in jit_primitive_conf.hpp."""
        return self.groups == 1 and self.ic < _BLOCK and math.prod(self.kernel) > 1

    def forward(self) -> Copies:
        """Return the copies for y."""
        y = self.layer.output
        if self.is_depthwise:
            x = self.layer.inputs["input"]
            return Copies(self.in_blocks(x, _BLOCK), self.in_blocks(y, _BLOCK), self._depthwise_weight)
        if math.prod(self.kernel) == 1 and self.groups == 1 and not any(self.along("padding")):
            made = self._blocked(_BLOCK)
            return Copies(made.x, made.y, made.w, self._rows())
        if self.block and (math.prod(self.kernel) == 1 or self._fits_forward):
            return self._blocked(self.block, self._is_image)
        return Copies(0, self.plain(y), 0, self._at_once() * self._unfolded() + _ALIGNMENT)

    def input_gradient(self) -> Copies:
        """Return the copies for dx."""
        x, y = self.layer.inputs["input"], self.layer.output
        is_dilated = not are(1, self.layer, "dilation")
        if self.is_depthwise and not is_dilated:
            return Copies(self.in_blocks(x, _BLOCK), self.in_blocks(y, _BLOCK), self._depthwise_weight)
        if (
            not are(1, self.layer, "stride")
            and not self.is_depthwise
            and (self.groups == 1 or self.block == _BLOCK < self.ic)
        ):
            return Copies(
                self.plain(x), self.plain(y), self.weight_in_blocks(_wide(self.ic, True), 1), self._brg_scratch(True),
                self.plain(x),
            )  # fmt: skip
        if self.block and not self.is_depthwise and (math.prod(self.kernel) == 1 or self._fits_backward):
            return self._blocked(self.block)
        return Copies(self.plain(x), 0, 0, self._at_once() * self._unfolded() + _ALIGNMENT)

    def weight_gradient(self) -> Copies:
        """Return the copies for dw."""
        if self._sums_by_channel:
            x, y = self.layer.inputs["input"], self.layer.output
            return Copies(self.in_blocks(x, _BLOCK), self.in_blocks(y, _BLOCK), self._depthwise_weight)
        if not self.is_depthwise and self.block and self._weights_fit:
            if math.prod(self.kernel) == 1 and self.groups == 1:
                made = self._blocked(_BLOCK)
                return Copies(made.x, made.y, made.w, self._rows())
            if self._is_image and self.ic <= _IMAGE_CHANNELS:
                return self._blocked(_BLOCK, image=True)
            if not (self._is_image or self.block == 8) or self.block == _BLOCK and not self._is_image:
                return self._blocked(self.block)
            if are(1, self.layer, "dilation"):  # what has a few channels AVX2 computes, in blocks of 8
                return self._blocked(8)
        # Source: the reduction's scratchpad is booked in floats, as many as the weight has bytes.
        scratch = self._at_once() * (FLOAT_BYTES * self.weight_bytes + self._unfolded())
        return Copies(0, 0, self.weight_bytes, scratch + 2 * _ALIGNMENT)

    @property
    def _sums_by_channel(self) -> bool:
        """Whether a depthwise convolution's dw has an implementation of its own.

        Source: init_conf of jit_uni_dw_conv_bwd_weights_kernel; the kernel's limit as measured.
        """
        if not self.is_depthwise or self.kernel[-1] > 3 or not are(1, self.layer, "dilation"):
            return False
        at = -2 if len(self.kernel) > 1 else -1
        return self.sides[0][at] >= self.kernel[at] + -self.along("padding")[at] % self.along("stride")[at]

    @property
    def _weights_fit(self) -> bool:
        """Whether jit computes dw. Source: init_conf of jit_avx512_common_conv_bwd_weights_kernel_f32."""
        dilation, stride, padding = self.along("dilation"), self.along("stride"), self.along("padding")
        spans = [step * (side - 1) + 1 for step, side in zip(dilation, self.kernel, strict=True)]
        sides, made = self.sides
        below = [
            (result - 1) * step + span - (side + before)
            for result, step, span, side, before in zip(made, stride, spans, sides, padding, strict=True)
        ]
        high = len(spans) > 1
        return (
            self.kernel[-1] <= _WIDEST_KERNEL
            and all(pixels == 1 or step == 1 for pixels, step in zip(dilation, stride, strict=True))
            and not (high and dilation[-2] > 1 and spans[-2] > sides[-2])
            and max(padding[-1], below[-1]) < min(spans[-1], _REGISTERS + 1)
            and not (high and max(padding[-2], below[-2]) > spans[-2] // 2)
        )

    def _brg_scratch(self, spreads: bool) -> int:
        """Return the bytes of brg's scratchpad. spreads: whether it computes dx of a convolution with a stride.

        Its list of products, and then a copy of one image's dy with what is missing at its borders, which parts of it
        are copied, and a row of dx where that has no whole number of strides. Source: init_conf and init_scratchpad in
        jit_brgemm_conv_utils.cpp and jit_brgemm_conv_bwd_utils.cpp.
        """
        products = _up(_up(_PRODUCT_BYTES * math.prod(self.kernel), _PAGE), _PRODUCT_BYTES) + _PAGE
        if not spreads:
            return products
        directions = zip(
            *self.sides, self.kernel, self.along("dilation"), self.along("stride"), self.along("padding"), strict=True
        )
        copied = self.oc * self.groups
        for side, result, kernel, dilation, stride, before in directions:
            span = dilation * (kernel - 1)
            behind = (result - 1) * stride + span + 1 - (side + before)
            copied *= result + max(0, span - before) // stride + max(0, span - behind) // stride
        row = self.sides[0][-1]
        stride = self.along("stride")[-1]
        uneven = self.float_bytes * _up(_up(row, stride) * self.ic, _PAGE) + _PAGE if row % stride else 0
        return products + self.float_bytes * _up(copied, _PAGE) + 3 * _PAGE + uneven

    # --- with channels last ---------------------------------------------------------------------------------------

    @property
    def weight_copy(self) -> int:
        """The bytes of the weight with its channels last, where it does not lie so."""
        weight = self.layer.inputs["weight"]
        return 0 if lies_as(weight.shape, weight.strides, channels_last(weight.shape)) else self.weight_bytes

    def forward_channels_last(self) -> int:
        """Return the bytes beside x and y."""
        if self.is_depthwise:
            return self._depthwise_weight
        wide = self.weight_in_blocks(1, _wide(self.oc) if self.groups == 1 else self.block or 1)
        return self.weight_copy + wide + self._brg_scratch(False)

    def backward_channels_last(self, wanted: tuple[str, ...]) -> int:
        """Return the bytes beside the gradients that are wanted, which count as the layer's own."""
        own = self.weight_bytes if "weight" in wanted else 0
        most = 0
        if "input" in wanted:
            most = self.weight_copy + self._depthwise_weight - own
            if not self.is_depthwise:
                spreads = not are(1, self.layer, "stride")
                wide = self.weight_in_blocks(_wide(self.ic, spreads), 1)
                most = self.weight_copy + wide + self._brg_scratch(spreads) - own
        if {"weight", "bias"} & {*wanted}:
            made, scratch = (
                self.weight_in_blocks(1 if self.groups == 1 and self.ic <= _IMAGE_CHANNELS else _BLOCK, _BLOCK),
                0,
            )
            if self._sums_by_channel:
                made = self._depthwise_weight
            elif self.is_depthwise and "bias" in self.layer.inputs:  # of which every group has a block
                scratch = self.float_bytes * self.groups * _BLOCK + _ALIGNMENT
            # The result is copied once as it stands and once with channels last.
            most = max(most, self.weight_copy + made + max(2 * self.weight_bytes, scratch) - own)
        return most


def _up(count: int, block: int) -> int:
    return -(-count // block) * block


def _wide(channels: int, spreads: bool = False) -> int:
    """Return how many channels brg takes as one block. spreads: as in `_brg_scratch`.

    Source: init_conf in jit_brgemm_conv_utils.cpp and jit_brgemm_conv_bwd_utils.cpp of oneDNN; as measured.
    """
    padded = _up(channels, _BLOCK)
    return padded if padded <= (2 if spreads else 4) * _BLOCK else 2 * _BLOCK


def copying(call: Convolution, wanted: tuple[str, ...]) -> tuple[int, int]:
    """Return the bytes of oneDNN's copies in forward and backward, beside results, which count as the layer's own."""
    x, y = call.plain(call.layer.inputs["input"]), call.plain(call.layer.output)
    made = call.forward()
    # The plain result is allocated when the other copies are gone.
    forward = max(made.x + made.w + made.y + made.scratch - y, made.y)
    gx, gw = (x if "input" in wanted else 0), (call.weight_bytes if "weight" in wanted else 0)
    backward = 0
    if "input" in wanted:
        made = call.input_gradient()
        backward = max(made.y + made.w + made.x + made.scratch - gx - gw, made.x + made.through - gw)
    if "weight" in wanted or "bias" in wanted:  # one kernel computes both
        made = call.weight_gradient()
        backward = max(backward, made.y + made.x + made.w + made.scratch - gw, made.w + call.weight_bytes - gw)
    return forward, backward
