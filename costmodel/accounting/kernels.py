"""Working memory of kernels: what a layer's computation needs beside its arguments and results.

`none`: nothing, the least; a device's own kernels decide. `onednn`: PyTorch's kernels on an x86 processor with AVX-512:
what oneDNN's convolutions copy (`onednn`), and PyTorch's own, which unfold pixels (`convolutions`). Where only the bias
trains, the weight's gradient is computed all the same, and dropped. What lies in another order of memory than a kernel
wants is copied first (`orders`). Other operations make parts of their formulas on the way (`formulas`): a batch norm's
backward the input's gradient twice, a product's the gradient of a factor that is broadcast (a squeeze-excite gate) at
the size of the product. Measured with the profiler's memory events (benchmarks/verify_peak.py; PyTorch 2.15).
`layers`: the same under this package's own layers, which compute the input gradient of a frozen pointwise convolution
as a matrix product, the gradient of a bias alone as a sum, and the input gradient of a batch norm whose scale and
statistics are frozen in one go. An activation that packs a mask does so a piece at a time (`mask_piece`).
They depend on the number of threads: with one PyTorch takes its own kernels for pointwise convolutions of fewer than 16
images too.
Not counted: scratchpads for reductions over threads, kilobytes, for a dense weight gradient up to several times the
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..graph.blocks import CONVOLUTIONS
from ..graph.values import Layer
from ..table import Table
from .convolutions import given, is_matrix_product, unfolding, unfolds, uses_channels_last
from .formulas import Call, on_the_way
from .onednn import OneDnn, copying
from .orders import order_copies

_CONVOLUTIONS = CONVOLUTIONS | {"conv1d", "conv3d"}

# Elements whose mask is packed at a time, and the most pieces that a tensor is cut into on a CPU: every piece waits for
# all threads a few times, which takes long where other programs want the cores. Assumption: a piece of floats (1 MiB)
# stays in the cache of a CPU's core.
PIECE, PIECES = 1 << 18, 8


def mask_piece(elements: int) -> int:
    """Return how many of a tensor's elements are worked on at a time on a CPU, a multiple of 8."""
    return max(PIECE, -(-elements // (8 * PIECES)) * 8)


Working = tuple[int, int]  # bytes in forward, bytes in backward


def _none(call: Call) -> Working:
    return 0, 0


def _convolves_images(layer: Layer) -> bool:
    """Whether it is a convolution of a batch of images, all with the same weight."""
    return layer.op in _CONVOLUTIONS and layer.input.batched and not layer.inputs["weight"].batched


def _onednn(call: Call) -> Working:
    layer = call.layer
    copied = order_copies(layer, call.wanted, call.batch, call.float_bytes, call.gradient)
    if layer.learned is not None:
        forward, backward = (seen.at(call.batch) for seen in layer.learned.working_of(call.wanted))
    else:
        forward, backward = _convolving(call) if _convolves_images(layer) else on_the_way(call)
    return copied[0] + forward, copied[1] + backward


def _convolving(call: Call) -> Working:
    layer, wanted = call.layer, call.wanted
    if unfolds(layer, layer.input, call.batch, call.threads):
        return unfolding(layer, wanted, call.batch, call.float_bytes)
    convolution = OneDnn(layer, call.batch, call.float_bytes, call.threads)
    if uses_channels_last(layer):
        return convolution.forward_channels_last(), convolution.backward_channels_last(wanted)
    return copying(convolution, wanted)


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
    if "input" not in call.wanted or (given(layer, "groups") == 1 and is_matrix_product(layer)):
        return 0
    if unfolds(layer, layer.output, batch, call.threads):
        return unfolding(layer, ("input", "weight"), batch, float_bytes)[1]
    return copying(OneDnn(layer, batch, float_bytes, call.threads), call.wanted)[1]


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
