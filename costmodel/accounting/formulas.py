"""Working memory of PyTorch's own kernels: what their formulas make on the way, beside arguments and results.

In forward: copies in another order of memory, and what autograd drops where nothing trains. In backward: the factors of
a product of several, masks, and gradients at the size of the result before they are summed to that of an argument.

Source: tools/autograd/derivatives.yaml of PyTorch 2.15 and torch/csrc/autograd/FunctionsManual.cpp (pow_backward,
div_tensor_other_grad, var_backward, norm_backward, clamp_backward, slice_backward, ...); aten/src/ATen/native:
LinearAlgebra.cpp (_matmul_impl), Linear.cpp, layer_norm.cpp, group_norm.cpp, Dropout.cpp, Pooling.cpp,
cpu/UpSampleKernel.cpp. Held against the profiler by tests/costmodel/accounting/test_formulas.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..graph.memory_order import Sizes, channels_last, is_dense, lies_as, suggested, viewed
from ..graph.values import Layer
from ..rules.linear import small_factor
from ..units import BYTES_PER_ELEMENT

_INDEX_BYTES, _BOOL_BYTES = BYTES_PER_ELEMENT["int64"], BYTES_PER_ELEMENT["bool"]


@dataclass(frozen=True)
class Call:
    """A layer's call, whose working memory is asked for.

    wanted: the roles whose gradient is wanted. float_bytes: of one number. packs_mask: whether it keeps one bit per
    element of its own. threads: that compute it. frozen_statistics: whether a batch norm uses its running statistics.
    gradient: the strides of the gradient that its backward is given.
    """

    layer: Layer
    wanted: tuple[str, ...]
    batch: int
    float_bytes: int
    packs_mask: bool
    threads: int
    frozen_statistics: bool = False
    gradient: Sizes = ()

    @property
    def input_bytes(self) -> int:
        """Bytes of the first argument."""
        return self.bytes_of(self.layer.input)

    @property
    def output_bytes(self) -> int:
        """Bytes of the result."""
        return self.bytes_of(self.layer.output)

    def bytes_of(self, tensor) -> int:
        """Return a tensor's bytes."""
        return tensor.bytes(self.batch, self.float_bytes)

    @property
    def wanted_bytes(self) -> int:
        """Bytes of the gradients that are wanted, which count as the layer's own."""
        return sum(self.bytes_of(self.layer.inputs[role]) for role in self.wanted)

    @property
    def is_small(self) -> frozenset[str]:
        """The roles that are wanted and broadcast to the result."""
        size = self.layer.output.elements
        return frozenset(role for role in self.wanted if self.layer.inputs[role].elements < size)


Bytes = Callable[[Call], int]


# --- backward -----------------------------------------------------------------------------------------------------


def _times_input(count: int) -> Bytes:
    return lambda call: count * call.input_bytes


def _normalized_again(call: Call) -> int:
    """Return the bytes of batch norm's second gradient of its input: where that and the gradient given lie alike."""
    x = call.layer.input
    order = suggested(x.shape, x.strides)
    alike = lies_as(x.shape, x.strides, order) and lies_as(x.shape, call.gradient, order)
    return call.input_bytes if alike and "input" in call.wanted else 0


def _sums_per_channel(call: Call) -> int:
    wanted = {"input", "weight"} & {*call.wanted}
    return 2 * call.batch * call.float_bytes * call.layer.input.shape[1] if wanted else 0


def _sums_of_parts(call: Call) -> int:
    """Return the bytes of a layer norm's sums over the rows of each thread, for scale and shift."""
    size = call.float_bytes * math.prod(call.layer.attributes["normalized_shape"])
    return 2 * call.threads * size if {"weight", "bias"} & {*call.wanted} else 0


def _product(call: Call) -> int:
    """dy b, summed over the pixels that a factor is broadcast to."""
    return call.output_bytes if call.is_small else 0


def _difference(call: Call) -> int:
    return call.output_bytes if "other" in call.is_small else 0


def _quotient(call: Call) -> int:
    """-dy ((a / b) / b): every part of it as large as the result."""
    if "other" in call.wanted:
        return 4 * call.output_bytes - call.wanted_bytes
    return call.output_bytes if call.is_small else 0


def _power(call: Call) -> int:
    """dy (k x^(k-1)), and with a tensor k also dy (y log x), where x and k are not 0."""
    roles = [*call.layer.inputs]
    if len(roles) < 2:
        return 2 * call.input_bytes
    base, exponent = roles
    y, k = call.output_bytes, call.layer.inputs[exponent]
    masks = k.elements * _BOOL_BYTES * (call.batch if k.batched else 1)
    most = 0
    if exponent in call.wanted:
        most = 4 * y + y // call.float_bytes * _BOOL_BYTES
    if base in call.wanted:
        most = max(most, (4 + (exponent in call.wanted)) * y + call.bytes_of(k) + masks)
    return most - call.wanted_bytes


def _variance(call: Call) -> int:
    return call.input_bytes + 2 * call.output_bytes


def _norm(call: Call) -> int:
    """x dy / y, where y is not 0."""
    return call.input_bytes + call.output_bytes // call.float_bytes * _BOOL_BYTES


def _clamp(call: Call) -> int:
    """A mask for each bound."""
    bounds = [value for name, value in call.layer.attributes.items() if name in ("min", "max") and value is not None]
    return max(1, len(bounds)) * (call.input_bytes // call.float_bytes) * _BOOL_BYTES


def _prelu(call: Call) -> int:
    """Both gradients at the size of the input, whichever is wanted."""
    return 2 * call.input_bytes - call.wanted_bytes + (
        call.bytes_of(call.layer.inputs["weight"]) if len(call.wanted) > 1 else 0
    )  # fmt: skip


def _addcmul(call: Call) -> int:
    if not {"tensor1", "tensor2"} & {*call.wanted}:
        return 0
    return (1 + bool(call.is_small)) * call.output_bytes


def _selected(call: Call) -> int:
    """Return the bytes of the gradient between two selections, each of which is undone by itself.

    A gradient that is no part of a larger one is gone when the last selection is undone.
    """
    shapes = _steps(call.layer)
    if len(shapes) < 2:
        return 0
    between = call.input_bytes * math.prod(shapes[0]) // math.prod(call.layer.input.shape)
    return between - (call.output_bytes if is_dense(call.layer.output.shape, call.gradient) else 0)


def _steps(layer: Layer) -> list[Sizes]:
    """Return the shapes after each selection by a number or a slice that leaves something out."""
    index = next(iter(layer.attributes.values()), None) if len(layer.inputs) == 1 else None
    items = list(index) if isinstance(index, tuple) else [index]
    shape = list(layer.input.shape)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        rest = len(shape) - sum(item is not None and item is not Ellipsis for item in items)
        items[at : at + 1] = [slice(None)] * rest
    found: list[Sizes] = []
    at = 0
    for item in items:
        if isinstance(item, slice):
            size = len(range(*item.indices(shape[at])))
            if size != shape[at]:
                shape[at] = size
                found.append(tuple(shape))
            at += 1
        elif isinstance(item, int) and not isinstance(item, bool):
            del shape[at]
            found.append(tuple(shape))
        elif item is None:
            shape.insert(at, 1)
            at += 1
        else:
            return []
    return found


def _matrices(call: Call) -> int:
    """Return the bytes of a factor's gradient for each matrix of a batch, where it is one for several; or of a copy."""
    if _folds_left(call):  # a gradient that is no part of a larger one is gone when it has been copied
        return 0 if is_dense(call.layer.output.shape, call.gradient) else call.output_bytes
    left, right = call.layer.inputs.values()
    if min(len(left.shape), len(right.shape)) < 3:
        return 0
    y = call.layer.output
    matrices = y.elements // math.prod(y.shape[-2:])
    most = 0
    for role in call.wanted:
        tensor = call.layer.inputs[role]
        spread = matrices * math.prod(tensor.shape[-2:])
        if spread > tensor.elements:
            most = max(most, spread * call.float_bytes * (call.batch if y.batched else 1))
    return max(0, most - (call.wanted_bytes if len(call.wanted) > 1 else 0)) if most else 0


def _folds_left(call: Call) -> bool:
    """Whether a product is computed with both factors transposed: the left one is one matrix, whose gradient is wanted.

    The result is copied into its own order, and the gradient that comes into the other.
    """
    left, right = call.layer.inputs.values()
    return small_factor(left.shape, right.shape) == "input" and next(iter(call.layer.inputs)) in call.wanted


BACKWARD: dict[str, Bytes] = {
    "batch_norm": _normalized_again,
    "group_norm": _sums_per_channel,
    "layer_norm": _sums_of_parts,
    "mul": _product,
    "sub": _difference,
    "div": _quotient,
    "pow": _power,
    "square": _times_input(2),
    "rsqrt": _times_input(2),
    "sqrt": _times_input(1),
    "abs": _times_input(1),
    "var": _variance,
    "norm": _norm,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "prelu": _prelu,
    "addcmul": _addcmul,
    "getitem": _selected,
    "matmul": _matrices,
}


# --- forward ------------------------------------------------------------------------------------------------------


def _unless_kept(made: Bytes) -> Bytes:
    """Return what is made in forward, kept where anything trains and dropped at once where nothing does."""
    return lambda call: 0 if call.wanted else made(call)


def _copied_rows(call: Call) -> int:
    """Return the bytes of a linear map's input as rows, where its weight wants no gradient.

    It is a product of batches of matrices then, and copied where these batches are not one dimension.
    """
    if "weight" in call.wanted or not call.layer.attributes.get("copies_input"):
        return 0
    *batches, rows, columns = call.layer.input.shape
    as_matrices = viewed(call.layer.input.shape, call.layer.input.strides, (math.prod(batches), rows, columns))
    return call.input_bytes if as_matrices is None else 0


def _copied_matrices(call: Call) -> int:
    """Return the bytes of the copies of a product's factors that are not kept for the other one's gradient."""
    if _folds_left(call):
        return call.output_bytes
    (left, a), (right, b) = call.layer.inputs.items()
    y = call.layer.output
    matrices = y.elements // math.prod(y.shape[-2:]) * (call.batch if y.batched else 1)
    return sum(
        matrices * math.prod(factor.shape[-2:]) * call.float_bytes
        for name, factor, other in (("input", a, right), ("other", b, left))
        if name in call.layer.attributes.get("copies", ()) and other not in call.wanted
    )


def _statistics(groups: Callable[[Layer], int], batched: bool) -> Bytes:
    return lambda call: 2 * call.float_bytes * groups(call.layer) * (call.batch if batched else 1)


def _rows(layer: Layer) -> int:
    return layer.output.elements // math.prod(layer.attributes["normalized_shape"])


# Of pixels that each result is made of, along a side. Source: interp_size in UpSampleKernel.cpp.
_TAPS = {"nearest": 1, "nearest-exact": 1, "linear": 2, "bilinear": 2, "trilinear": 2, "bicubic": 4}
_FEW_PIXELS, _FEW_CHANNELS = 128, 3  # Source: _use_vectorized_kernel_cond_2d in UpSampleKernel.cpp


def _resampled(call: Call) -> int:
    """Return the bytes of input and result with channels last, or of each result's pixels and their weights."""
    layer = call.layer
    x, y, mode = layer.input, layer.output, layer.attributes.get("mode", "nearest")
    if mode not in _TAPS or layer.attributes.get("antialias"):
        return 0
    last = channels_last(x.shape)
    is_last = lies_as(x.shape, x.strides, last)
    is_small = sum(y.shape[2:]) <= _FEW_PIXELS or (is_last and x.shape[1] > _FEW_CHANNELS)
    if len(x.shape) == 4 and mode != "bicubic" and is_small:
        return 0 if is_last else call.input_bytes + call.output_bytes
    return _TAPS[mode] * (_INDEX_BYTES + call.float_bytes) * sum(y.shape[2:])


FORWARD: dict[str, Bytes] = {
    "dropout": _unless_kept(lambda call: call.input_bytes),
    "max_pool2d": _unless_kept(lambda call: call.batch * _INDEX_BYTES * call.layer.output.elements),
    "layer_norm": _unless_kept(_statistics(_rows, True)),
    "group_norm": _unless_kept(_statistics(lambda layer: layer.attributes["num_groups"], True)),
    "linear": _copied_rows,
    "matmul": _copied_matrices,
    "interpolate": _resampled,
}


def on_the_way(call: Call) -> tuple[int, int]:
    """Return the bytes that a call's formula makes on the way, in forward and in backward."""
    forward, backward = FORWARD.get(call.layer.op), BACKWARD.get(call.layer.op)
    return forward(call) if forward else 0, backward(call) if backward and call.wanted else 0
