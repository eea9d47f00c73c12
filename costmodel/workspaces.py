"""Working memory of kernels: what a layer's computation needs beside its arguments and results.

`none`: nothing, the least; a device's own kernels decide. `onednn`: PyTorch's convolutions on an x86 processor with
AVX-512 and more than one thread. They copy their arguments to a layout in which channels come in blocks of 16, compute
a result in that layout and copy it back. Source: measured with the profiler's memory events (benchmarks/verify_peak.py;
PyTorch 2.15, oneDNN). Known exceptions, which are followed: an image of up to 3 channels is not copied; the weight
gradient of a depthwise convolution with a kernel of 5 or more copies nothing. Where only the bias trains, the weight's
gradient is computed all the same, and dropped. A batch norm's backward allocates the input's gradient twice, a
product's the gradient of a factor that is broadcast (a squeeze-excite gate) at the size of the product.
`layers`: the same under this package's own layers, which compute the input gradient of a frozen pointwise convolution
as a matrix product, the gradient of a bias alone as a sum, and the input gradient of a batch norm whose scale and
statistics are frozen in one go (Assumption: one whose scale does not train has frozen statistics, if it is not of a
weight). An activation that packs a mask does so a piece at a time (`mask_piece`).
Scratchpads of a few kilobytes for reductions over threads are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .blocks import CONVOLUTIONS, is_depthwise
from .errors import unknown
from .graph import Layer, Tensor

# layer, roles whose gradient is wanted, batch, bytes of one number, whether it packs a mask
# -> bytes in forward, bytes in backward
Workspace = Callable[[Layer, tuple[str, ...], int, int, bool], tuple[int, int]]

_CHANNEL_BLOCK = 16
_UNCOPIED_IMAGE_CHANNELS = 3

# Elements whose mask is packed at a time, and the most pieces that a tensor is cut into on a CPU: every piece waits for
# all threads a few times, which takes long where other programs want the cores. Assumption: a piece of floats (1 MiB)
# stays in the cache of a CPU's core.
PIECE, PIECES = 1 << 18, 8


def mask_piece(elements: int) -> int:
    """Return how many of a tensor's elements are worked on at a time on a CPU, a multiple of 8."""
    return max(PIECE, -(-elements // (8 * PIECES)) * 8)


def _none(layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int, packs: bool) -> tuple[int, int]:
    return 0, 0


def _padded(channels: int) -> int:
    return -(-channels // _CHANNEL_BLOCK) * _CHANNEL_BLOCK


def _onednn(layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int, packs: bool) -> tuple[int, int]:
    if layer.op == "batch_norm":
        return 0, layer.input.bytes(batch, float_bytes) if "input" in wanted else 0
    if layer.op == "mul":
        whole = layer.output.elements
        broadcast = any(layer.inputs[role].elements < whole for role in wanted)
        return 0, layer.output.bytes(batch, float_bytes) if broadcast else 0
    if layer.op not in CONVOLUTIONS or not layer.input.batched or layer.inputs["weight"].batched:
        return 0, 0
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
    if "weight" in wanted or "bias" in wanted:  # one kernel computes both
        copies = 0 if depthwise and weight.shape[-1] >= 5 else y_blocked + x_blocked
        backward = max(backward, copies + w_blocked - gw, w_blocked + w_plain - gw)
    return forward, backward


def _layers(layer: Layer, wanted: tuple[str, ...], batch: int, float_bytes: int, packs: bool) -> tuple[int, int]:
    if "weight" not in wanted:
        if layer.op == "batch_norm" and layer.output.batched:
            return 0, 0
        wanted = tuple(role for role in wanted if role != "bias")  # which is a sum there
    if packs:  # a byte for each bit, and in place a copy of the piece; NumPy unpacks them in memory of its own
        elements = batch * layer.output.elements
        piece = min(elements, mask_piece(elements))
        return piece + (float_bytes * piece if layer.inplace else 0), 0
    forward, backward = _onednn(layer, wanted, batch, float_bytes, packs)
    pointwise = layer.op in CONVOLUTIONS and set(layer.inputs["weight"].shape[2:]) == {1}
    return forward, 0 if pointwise and "weight" not in wanted else backward


WORKSPACES: dict[str, Workspace] = {"none": _none, "onednn": _onednn, "layers": _layers}


def workspace(name: str) -> Workspace:
    """Return the working memory of that name.

    Errors: InputError for an unknown name, with the near ones.
    """
    if name not in WORKSPACES:
        raise unknown("kernels", name, WORKSPACES)
    return WORKSPACES[name]
