"""Working memory of oneDNN's convolutions on an x86 processor with AVX-512: copies and scratchpads.

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
of gemm's forward by the size of a cache; what gemm unfolds of groups that lie with channels last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ..graph.memory_order import channels_last, lies_as
from ..graph.values import Tensor
from ..units import FLOAT_BYTES
from .convolutions import Convolution, are, is_matrix_product

_BLOCK, _FEW_CHANNELS = 16, 8  # channels that come in a block
_IMAGE_CHANNELS = 3
_REGISTERS = 28  # for results. Source: max_ur_w in jit_avx512_common_conv_kernel.cpp, and `regs` of its init_conf
_L1_BYTES = 2**15  # Assumption: of a core's first cache; it decides between two ways of unrolling
_WIDEST_KERNEL = 14
_ALIGNMENT = 128  # of a scratchpad's parts
_PAGE, _PRODUCT_BYTES = 4096, 40  # Source: P4K, and sizeof(brgemm_batch_element_t) in oneDNN
_FEW_PIXELS = 256  # of a thread. Source: init_conf in gemm_convolution_utils.cpp (outer_threading)


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


class OneDnn(Convolution):
    """A convolution as oneDNN computes it."""

    @cached_property
    def block(self) -> int:
        """How many channels of a group come in a block; 0 if they do not divide into blocks."""
        if self.groups == 1:
            return _BLOCK
        return next((size for size in (16, 8, 4) if self.ic % size == self.oc % size == 0), 0)

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
    def _misses_the_image(self) -> bool:
        """Whether a kernel lies on padding alone somewhere.

        Source: kernel_outside_src of init_conf in jit_avx512_common_conv_kernel.cpp.
        """
        sides = zip(self.kernel, self.along("dilation"), self.along("padding"), strict=True)
        return any(step * (side - 1) + 1 <= padding for side, step, padding in sides)

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
        if self.block and not self._misses_the_image and (math.prod(self.kernel) == 1 or self._fits_forward):
            return self._blocked(self.block, self._is_image)
        return Copies(0, self.plain(y), 0, self._at_once() * self._unfolded() + _ALIGNMENT)

    def input_gradient(self) -> Copies:
        """Return the copies for dx."""
        x, y = self.layer.inputs["input"], self.layer.output
        is_dilated = not are(1, self.layer, "dilation")
        if self.is_depthwise and not is_dilated:
            return Copies(self.in_blocks(x, _BLOCK), self.in_blocks(y, _BLOCK), self._depthwise_weight)
        if not are(1, self.layer, "stride") and not self.is_depthwise and (width := self._wide_group):
            return Copies(
                self.plain(x), self.plain(y), self.weight_in_blocks(width, 1), self._brg_scratch(True), self.plain(x)
            )
        fits = not self._misses_the_image and (math.prod(self.kernel) == 1 or self._fits_backward)
        if self.block and not self.is_depthwise and fits:
            return self._blocked(self.block)
        return Copies(self.plain(x), 0, 0, self._at_once() * self._unfolded() + _ALIGNMENT)

    @property
    def _wide_group(self) -> int:
        """How many channels brg takes as one block for dx of a convolution with a stride; 0 where it computes none.

        Of several groups of up to 16 results each those that have blocks are jit's; the rest is AVX2's. As measured.
        """
        if self.groups == 1 or self.oc > _BLOCK:
            return _wide(self.ic, True)
        return _FEW_CHANNELS if not self.block and self.oc > _FEW_CHANNELS else 0

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
            if self.block == _BLOCK and not self._is_image:
                return self._blocked(_BLOCK)
            if self.block >= _FEW_CHANNELS and self._few_channels_fit:
                return self._blocked(_FEW_CHANNELS)
        return Copies(0, 0, self.weight_bytes, self._unfolding_for_weights)

    @property
    def _unfolding_for_weights(self) -> int:
        """The bytes of gemm's scratchpad for dw; its sum over threads is booked in floats, as many as dw has bytes."""
        return self._at_once() * (FLOAT_BYTES * self.weight_bytes + self._unfolded()) + 2 * _ALIGNMENT

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
    def _few_channels_fit(self) -> bool:
        """Whether AVX2 computes dw, in blocks of 8, of what has no blocks of 16. As measured."""
        reaches = all(side >= taps for side, taps in zip(self.sides[0], self.kernel, strict=True))
        return reaches and are(1, self.layer, "dilation")

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
        high, deep = len(spans) > 1, len(spans) > 2
        return (
            self.kernel[-1] <= _WIDEST_KERNEL
            and all(pixels == 1 or step == 1 for pixels, step in zip(dilation, stride, strict=True))
            and not (high and dilation[-2] > 1 and spans[-2] > sides[-2])
            and max(padding[-1], below[-1]) < min(spans[-1], _REGISTERS + 1)
            and not (high and max(padding[-2], below[-2]) > spans[-2] // 2)
            and not (deep and max(padding[0], below[0]) >= spans[0])
            and not (deep and 0 < padding[0] <= self.kernel[0] - sides[0])
        )

    def _brg_scratch(self, spreads: bool) -> int:
        """Return the bytes of brg's scratchpad. spreads: whether it computes dx of a convolution with a stride.

        Its list of products, and then a copy of one image's dy with what is missing at its borders, which parts of it
        are copied, and a row of dx where that has no whole number of strides. Source: init_conf and init_scratchpad in
        jit_brgemm_conv_utils.cpp and jit_brgemm_conv_bwd_utils.cpp.
        """
        if not spreads:
            return _up(_PAGE, _PRODUCT_BYTES) + _PAGE
        products = _up(_up(_PRODUCT_BYTES * math.prod(self.kernel), _PAGE), _PRODUCT_BYTES) + _PAGE
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
        if self.groups > 1:
            return self.weight_copy + self.weight_bytes
        return self.weight_copy + self.weight_in_blocks(1, _wide(self.oc, True)) + self._brg_scratch(False)

    def backward_channels_last(self, wanted: tuple[str, ...]) -> int:
        """Return the bytes beside the gradients that are wanted, which count as the layer's own."""
        most = 0
        if "input" in wanted:
            most = self.weight_copy + self._input_gradient_channels_last
        if {"weight", "bias"} & {*wanted}:
            most = max(most, self.weight_copy + self._weight_gradient_channels_last)
        return max(0, most - (self.weight_bytes if "weight" in wanted else 0))

    @property
    def _input_gradient_channels_last(self) -> int:
        if self.is_depthwise:
            is_dilated = not are(1, self.layer, "dilation")
            return self.weight_in_blocks(_BLOCK, _BLOCK) if is_dilated else self._depthwise_weight
        if self.groups > 1:
            return self.weight_bytes
        spreads = not are(1, self.layer, "stride")
        return self.weight_in_blocks(_wide(self.ic, spreads), 1) + self._brg_scratch(spreads)

    @property
    def _weight_gradient_channels_last(self) -> int:
        made, scratch = self.weight_in_blocks(1 if self._is_image else _BLOCK, _BLOCK), 0
        if self._sums_by_channel:
            made = self._depthwise_weight
        elif self.is_depthwise and "bias" in self.layer.inputs:  # of which every group has a block
            scratch = self.float_bytes * self.groups * _BLOCK + _ALIGNMENT
        elif not self.is_depthwise and not self._weights_fit:
            image = self.float_bytes * self.ic * math.prod(self.sides[0]) + _ALIGNMENT
            made, scratch = self.weight_bytes, self._unfolding_for_weights + image
        # The result is copied once as it stands and once with channels last.
        return made + max(2 * self.weight_bytes, scratch)


def _up(count: int, block: int) -> int:
    return -(-count // block) * block


def _wide(channels: int, spreads: bool = False) -> int:
    """Return how many channels brg takes as one block. spreads: as in `_brg_scratch`.

    Source: init_conf in jit_brgemm_conv_utils.cpp and jit_brgemm_conv_bwd_utils.cpp of oneDNN; as measured.
    """
    padded = _up(channels, _BLOCK)
    return padded if padded <= (2 if spreads else 4) * _BLOCK else 2 * _BLOCK


def copying(call: OneDnn, wanted: tuple[str, ...]) -> tuple[int, int]:
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
