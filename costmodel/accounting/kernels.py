"""Working memory of kernels: what a layer's computation needs beside its arguments and results.

`none`: nothing, the least; a device's own kernels decide. `onednn`: PyTorch's convolutions on an x86 processor with
AVX-512. They copy their arguments to a layout in which channels come in blocks of 16, compute a result in that layout
and copy it back. Source: measured with the profiler's memory events (benchmarks/verify_peak.py; PyTorch 2.15, oneDNN).
Known exceptions, which are followed: an image of up to 3 channels is not copied; the weight gradient of a depthwise
convolution with a kernel of 5 or more copies nothing, but unfolds. Where only the bias trains, the weight's gradient is
computed all the same, and dropped. Small convolutions PyTorch computes with kernels of its own, as matrix products
(`_unfolds`). A batch norm's backward allocates the input's gradient twice, a product's the gradient of a factor that is
broadcast (a squeeze-excite gate) at the size of the product, and some others more (`_PER_ELEMENT`).
`layers`: the same under this package's own layers, which compute the input gradient of a frozen pointwise convolution
as a matrix product, the gradient of a bias alone as a sum, and the input gradient of a batch norm whose scale and
statistics are frozen in one go. An activation that packs a mask does so a piece at a time (`mask_piece`).
They depend on the number of threads: with one PyTorch takes its own kernels for pointwise convolutions of fewer than 16
images too.
Not counted: scratchpads for reductions over threads, kilobytes, for a dense weight gradient up to several times the
weights; convolutions of one or three dimensions. Counted too high: the copies of grouped convolutions that are not
depthwise, where a group's channels are not multiples of 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..graph.blocks import CONVOLUTIONS, is_depthwise
from ..graph.values import Layer, Tensor
from ..table import Table

_CHANNEL_BLOCK = 16
_UNCOPIED_IMAGE_CHANNELS = 3
_MANY_IMAGES, _SMALL_IMAGE = 16, 20480  # Source: as `_unfolds`
_FEW_PIXELS = 256  # of a thread. Source: init_conf in src/cpu/gemm_convolution_utils.cpp of oneDNN (outer_threading)

# Elements whose mask is packed at a time, and the most pieces that a tensor is cut into on a CPU: every piece waits for
# all threads a few times, which takes long where other programs want the cores. Assumption: a piece of floats (1 MiB)
# stays in the cache of a CPU's core.
PIECE, PIECES = 1 << 18, 8


def mask_piece(elements: int) -> int:
    """Return how many of a tensor's elements are worked on at a time on a CPU, a multiple of 8."""
    return max(PIECE, -(-elements // (8 * PIECES)) * 8)


@dataclass(frozen=True)
class Call:
    """A layer's call, whose working memory is asked for.

    wanted: the roles whose gradient is wanted. float_bytes: of one number. packs_mask: whether it keeps one bit per
    element of its own. threads: that compute it. frozen_statistics: whether a batch norm uses its running statistics.
    """

    layer: Layer
    wanted: tuple[str, ...]
    batch: int
    float_bytes: int
    packs_mask: bool
    threads: int
    frozen_statistics: bool = False


Working = tuple[int, int]  # bytes in forward, bytes in backward


def _none(call: Call) -> Working:
    return 0, 0


def _padded(channels: int) -> int:
    return -(-channels // _CHANNEL_BLOCK) * _CHANNEL_BLOCK


def _convolves_images(layer: Layer) -> bool:
    """Whether it is a convolution of a batch of images, all with the same weight."""
    return layer.op in CONVOLUTIONS and layer.input.batched and not layer.inputs["weight"].batched


def _unfolds(layer: Layer, given: Tensor, batch: int, threads: int) -> bool:
    """Whether PyTorch multiplies matrices of unfolded pixels, and does not ask oneDNN.

    given: the input, or the output, which a transposed convolution (the input's gradient) starts from. Source:
    ConvParams::use_mkldnn in aten/src/ATen/native/Convolution.cpp of PyTorch 2.15.
    """
    shape, kernel = given.shape[1:], layer.inputs["weight"].shape[2:]
    if threads == 1 and batch < _MANY_IMAGES and _are(1, layer, "stride", "dilation") and kernel[-2:] == (1, 1):
        return True
    is_small = batch == 1 and math.prod(shape[:3]) <= _SMALL_IMAGE
    return is_small and min(kernel[-2:]) <= 3 and _given(layer, "groups") == 1


def _given(layer: Layer, name: str):
    """Return an argument of a convolution, or its default: a trace holds those that were passed."""
    return layer.attributes.get(name, {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}[name])


def _are(value: int, layer: Layer, *names: str) -> bool:
    """Whether attributes, each a number or one for every direction, have the value throughout."""
    return all(np.all(np.equal(_given(layer, name), value)) for name in names)


def _unfolding(layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int) -> tuple[int, int]:
    """Return the bytes of the unfolded pixels, or of what groups, computed one by one, are put together from."""
    x, y, weight = layer.inputs["input"], layer.output, layer.inputs["weight"]
    groups = _given(layer, "groups")
    if groups > 1:
        sizes = {"input": x.bytes(batch, float_bytes), "weight": 4 * weight.elements}
        parts = sum(size for role, size in sizes.items() if role in wanted)
        return y.bytes(batch, float_bytes), max(parts, (sizes["input"] + y.bytes(batch, float_bytes)) // groups)
    pixels = 0 if _is_matrix_product(layer) else math.prod(weight.shape[1:]) * math.prod(y.shape[2:])
    again = "weight" in wanted or "bias" in wanted or not _are(1, layer, "dilation")
    return batch * float_bytes * pixels, batch * float_bytes * pixels if again else 0


def _is_matrix_product(layer: Layer) -> bool:
    """Whether a convolution takes every pixel once, as it is."""
    is_padded = not isinstance(_given(layer, "padding"), str) and not _are(0, layer, "padding")
    return {*layer.inputs["weight"].shape[2:]} == {1} and _are(1, layer, "stride") and not is_padded


def _blocking(layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int, threads: int) -> tuple[int, int]:
    """Return the bytes of oneDNN's copies."""
    x, y, weight = layer.inputs["input"], layer.output, layer.inputs["weight"]
    depthwise = is_depthwise(layer)

    def blocked(tensor: Tensor) -> int:
        return batch * float_bytes * tensor.elements // tensor.shape[1] * _padded(tensor.shape[1])

    per_group = 1 if depthwise else _padded(weight.shape[1])
    w_blocked = float_bytes * _padded(weight.shape[0]) * per_group * math.prod(weight.shape[2:])
    w_plain = 4 * weight.elements
    x_plain, y_plain = x.bytes(batch, float_bytes), y.bytes(batch, float_bytes)
    y_blocked = blocked(y)
    x_blocked = 0 if x.shape[1] <= _UNCOPIED_IMAGE_CHANNELS else blocked(x)
    # The plain results count as the layer's own; they are allocated when the other copies are gone.
    forward = max(x_blocked + w_blocked + y_blocked - y_plain, y_blocked)
    gx, gw = (x_plain if "input" in wanted else 0), (w_plain if "weight" in wanted else 0)
    backward = 0
    if "input" in wanted:
        backward = max(backward, y_blocked + w_blocked + x_blocked - gx - gw, x_blocked - gw)
        if _given(layer, "groups") == 1 and not _are(1, layer, "stride"):
            backward = max(backward, 2 * x_plain - gw)  # computed in another order of memory, and copied twice
    if "weight" in wanted or "bias" in wanted:  # one kernel computes both
        copies = y_blocked + x_blocked + w_blocked
        if depthwise and weight.shape[-1] >= 5:  # as products of matrices, one image and channel after the other
            pixels = math.prod(y.shape[2:])
            at_once = threads if pixels < _FEW_PIXELS * threads else 1
            copies = at_once * 4 * (w_plain + pixels * math.prod(weight.shape[2:])) + w_plain
        backward = max(backward, copies - gw, w_blocked + w_plain - gw)
    return forward, backward


def _input_again(layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int) -> int:
    return layer.input.bytes(batch, float_bytes) if "input" in wanted else 0


def _sums_per_channel(layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int) -> int:
    return 2 * batch * float_bytes * layer.input.shape[1] if {"input", "weight"} & {*wanted} else 0


def _arithmetic(layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int) -> int:
    small = {role for role in wanted if layer.inputs[role].elements < layer.output.elements}
    if layer.op == "div":  # -dy * ((x / other) / other), every part of it as large as the result
        parts = 4 - ("input" in wanted) - ("other" not in small) if "other" in wanted else 0
    else:  # what is summed over the pixels that a factor, or a subtrahend, is broadcast to
        parts = bool(small) if layer.op == "mul" else "other" in small
    return parts * layer.output.bytes(batch, float_bytes)


# Bytes in the backward of operations on elements. Source: tools/autograd/derivatives.yaml of PyTorch 2.15 and
# torch/csrc/autograd/FunctionsManual.cpp (div_tensor_other_grad, var_backward); aten/src/ATen/native/group_norm.cpp.
_PER_ELEMENT = {
    "batch_norm": _input_again,
    "var": _input_again,
    "group_norm": _sums_per_channel,
    "mul": _arithmetic,
    "sub": _arithmetic,
    "div": _arithmetic,
}


def _onednn(call: Call) -> Working:
    layer, wanted, batch, float_bytes = call.layer, call.wanted, call.batch, call.float_bytes
    if layer.op in _PER_ELEMENT:
        return 0, _PER_ELEMENT[layer.op](layer, wanted, batch, float_bytes)
    if not _convolves_images(layer):
        return 0, 0
    if _unfolds(layer, layer.input, batch, call.threads):
        return _unfolding(layer, wanted, batch, float_bytes)
    return _blocking(layer, wanted, batch, float_bytes, call.threads)


def _layers(call: Call) -> Working:
    layer, batch, float_bytes = call.layer, call.batch, call.float_bytes
    if "weight" not in call.wanted:
        if layer.op == "batch_norm" and (call.frozen_statistics or "input" not in call.wanted):
            return 0, 0
        call = replace(call, wanted=tuple(role for role in call.wanted if role != "bias"))  # which is a sum there
    if call.packs_mask:  # a byte for each bit, and in place a copy of the piece; NumPy unpacks them in its own memory
        elements = batch * layer.output.elements
        piece = min(elements, mask_piece(elements))
        return piece + (float_bytes * piece if layer.inplace else 0), 0
    forward, backward = _onednn(call)
    if not _convolves_images(layer):
        return forward, backward
    if "weight" not in call.wanted:
        backward = _input_gradient(call)
    if layer.op == "standardized_conv2d":
        return _standardizing(layer, call.wanted, batch, float_bytes, forward, backward)
    return forward, backward


def _input_gradient(call: Call) -> int:
    """Return the bytes of a convolution's backward without the weight's gradient: of a transposed convolution."""
    layer, batch, float_bytes = call.layer, call.batch, call.float_bytes
    if "input" not in call.wanted or (_given(layer, "groups") == 1 and _is_matrix_product(layer)):
        return 0
    if _unfolds(layer, layer.output, batch, call.threads):
        return _unfolding(layer, ("input", "weight"), batch, float_bytes)[1]
    return _blocking(layer, call.wanted, batch, float_bytes, call.threads)[1]


def _standardizing(
    layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int, forward: int, backward: int
) -> tuple[int, int]:
    """Return the bytes with those of making the weight, centred and divided, and of going back through that.

    One copy, which is convolved with, counts as the layer's own; the centred one is there before the results are, and
    in backward stays if the weight trains. The quotient's backward takes four parts as large (`_arithmetic`).
    """
    copy = float_bytes * layer.inputs["weight"].elements
    forward = max(forward, copy - layer.output.bytes(batch, float_bytes))
    if "weight" in wanted:
        return forward, max(backward + copy, 5 * copy)
    return forward, max(backward, copy - layer.input.bytes(batch, float_bytes)) if "input" in wanted else backward


LIBRARIES: Table[Callable[[Call], Working]] = Table("kernels", {"none": _none, "onednn": _onednn, "layers": _layers})


@dataclass(frozen=True)
class Kernels:
    """Whose kernels compute, a name in `LIBRARIES`, and with how many threads."""

    library: str = "none"
    threads: int = 2

    def working(self, call: Call) -> Working:
        """Return the working memory of a layer's call. Errors: InputError for an unknown library."""
        forward, backward = LIBRARIES.find(self.library)(call)
        if self.library != "none" and call.wanted and "through_view" in call.layer.attributes:
            # The whole gradient is copied, and the view's part of it. Source: CopySlices of torch/csrc/autograd.
            backward += 2 * call.layer.output.bytes(call.batch, call.float_bytes)
        return forward, backward


NO_KERNELS = Kernels()


def as_kernels(given: Kernels | str) -> Kernels:
    """Return kernels by name, or as they are given. Errors: InputError for an unknown name, with the near ones."""
    kernels = Kernels(given) if isinstance(given, str) else given
    LIBRARIES.find(kernels.library)
    return kernels
