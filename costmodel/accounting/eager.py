"""`eager`: what stock PyTorch keeps for the same training on a CPU, its habits included.

An operation's backward keeps what its formula names, mostly whatever is frozen; some formulas keep an argument only if
the other one's gradient is wanted. An in-place call that needs its own input keeps a clone of it. Indices are 8 bytes,
dropout masks floats. Numbers that multiply or divide count nothing.

Source: tools/autograd/derivatives.yaml, aten/src/ATen/native/{Dropout,AdaptiveAveragePooling,Linear}.cpp; measured
with saved-tensor hooks to the byte by benchmarks/verify_saved.py, whose table says for which versions.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from ..errors import UnknownOperationError
from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer
from ..methods.assignment import Assignment
from ..rules.facts import Dense, Facts, Private
from ..rules.linear import small_factor
from ..rules.table import operation
from ..table import Table
from .books import Accounting, Books, Ledger
from .gradients import Wanted
from .kernels import Kernels

Item = Dense | Private
Keeps = Callable[[Layer, tuple[str, ...]], Iterable[Item]]

_INDEX_BITS = 64

# What autocast computes in fewer bits, weights cast. Source: lower_precision_fp in aten/src/ATen/autocast_mode.h.
CASTS = frozenset((
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul", "bmm",
))  # fmt: skip


def _nothing(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    return iter(())


def _roles(*names: str) -> Keeps:
    """Return what keeps these arguments, always; `output` is the result."""

    def keeps(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
        for name in names:
            if name == "output":
                yield Dense(layer.output)
            elif name in layer.inputs:
                yield Dense(layer.inputs[name])

    return keeps


def _input(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    yield Dense(layer.input)


def _same_padding(layer: Layer) -> list[int]:
    """Return how many pixels `padding="same"` adds to each dimension of a convolution's input, both sides together."""
    kernel = layer.inputs["weight"].shape[2:]
    dilation = layer.attributes.get("dilation", 1)
    dilations = (dilation,) * len(kernel) if isinstance(dilation, int) else dilation
    return [step * (size - 1) for step, size in zip(dilations, kernel, strict=True)]


def pads_one_side(layer: Layer) -> bool:
    """Whether a convolution pads one side more than the other: stock PyTorch copies the input for it."""
    return layer.attributes.get("padding") == "same" and any(total % 2 for total in _same_padding(layer))


def _convolution(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    """Input and weight; of an input that `padding="same"` pads on one side only, the padded copy."""
    yield Dense(layer.inputs["weight"])
    if not pads_one_side(layer):
        yield Dense(layer.input)
        return
    # One side gets half of an odd total more than the other: that pixel is padded first.
    sides = [size + total % 2 for size, total in zip(layer.input.shape[2:], _same_padding(layer), strict=True)]
    pixels, padded = math.prod(layer.input.shape[2:]), math.prod(sides)
    yield Private("padded input", layer.input.elements // pixels * padded, layer.input.bits, layer.input.batched)


def _input_or_output_in_place(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    yield Dense(layer.output if layer.inplace else layer.input)


def _product(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    """a b: each factor if the other one's gradient is wanted."""
    roles = list(layer.inputs)
    if len(roles) == 1:  # by a number, which hooks do not see
        return
    for role, other in (roles, roles[::-1]):
        if role in wanted:
            yield Dense(layer.inputs[other])


def _matmul(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    """a b: each factor if the other one's gradient is wanted; a copy where its order in memory does not serve."""
    roles, copies = list(layer.inputs), layer.attributes.get("copies", ())
    small = small_factor(*(tensor.shape for tensor in layer.inputs.values()))
    folds = small in wanted
    for role, other in (roles, roles[::-1]):
        if role not in wanted:
            continue
        kept = layer.inputs[other]
        if ("folded" if folds else other) not in copies or (folds and role != small):
            yield Dense(kept)
            continue
        matrices = 1 if folds else layer.output.elements // math.prod(layer.output.shape[-2:])
        elements = kept.elements if folds else matrices * math.prod(kept.shape[-2:])
        yield Private(f"copied {other}", elements, kept.bits, layer.output.batched)


def _quotient(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    """a / b: b always, a if the gradient of b is wanted."""
    roles = list(layer.inputs)
    if len(roles) == 1:  # by a number, which hooks do not see
        return
    yield Dense(layer.inputs[roles[1]])
    if roles[1] in wanted:
        yield Dense(layer.inputs[roles[0]])


def _addcmul(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    for role, other in (("tensor1", "tensor2"), ("tensor2", "tensor1")):
        if role in wanted:
            yield Dense(layer.inputs[other])


def _linear(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    if "weight" in wanted:
        x = layer.inputs["input"]
        copied = layer.attributes.get("copies_input", False)
        yield Private("copied input", x.elements, x.bits, x.batched) if copied else Dense(x)
    if "input" in wanted:
        yield Dense(layer.inputs["weight"])


def _norm(statistics: Callable[[Layer], int], batched: bool) -> Keeps:
    """Return what keeps input, scale, mean and reciprocal deviation, always."""

    def keeps(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
        yield from _roles("input", "weight")(layer, wanted)
        yield Private("statistics", 2 * statistics(layer), layer.input.bits, batched)

    return keeps


def _dropout(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    if layer.attributes.get("p") == 1:  # a product with a zero, which is a tensor
        yield Private("zero", 1, layer.input.bits, batched=False)
    else:
        yield Private("mask", layer.input.elements, layer.input.bits, layer.input.batched)


def _max_pool(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    yield Dense(layer.input)
    yield Private("indices", layer.output.elements, _INDEX_BITS, layer.output.batched)


def _adaptive_average_pool(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    if layer.output.shape[-2:] != (1, 1):  # to one pixel it is a mean
        yield Dense(layer.input)


def _interpolate(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    if layer.attributes.get("mode") == "area":  # another name for it
        yield from _adaptive_average_pool(layer, wanted)


def _pad(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    if layer.attributes.get("mode", "constant") in ("reflect", "replicate"):
        yield Dense(layer.input)


def _power(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    """x ** k: x; of an exponent that is a tensor, that and the result too."""
    yield from map(Dense, layer.inputs.values())
    if len(layer.inputs) > 1:
        yield Dense(layer.output)


def _getitem(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    """x[i]: the indices, if they are tensors."""
    yield from (Dense(tensor) for tensor in list(layer.inputs.values())[1:])


def _standardized_convolution(layer: Layer, wanted: tuple[str, ...]) -> Iterator[Item]:
    """A convolution whose weight is standardised by ordinary calls: see `costmodel.layers.standardize`."""
    weight = layer.inputs["weight"]
    yield Dense(layer.inputs["input"])
    yield Private("standardised weight", weight.elements, weight.bits, batched=False)
    if "weight" in wanted:  # the centred weight, its deviations and what it is divided by
        yield Private("centred weight", weight.elements, weight.bits, batched=False)
        yield Private("deviations", 2 * weight.shape[0], weight.bits, batched=False)


KEEPS: Table[Keeps] = Table("operation", {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "standardized_conv2d": _standardized_convolution,
    "linear": _linear,
    "matmul": _matmul,
    "bmm": _product,
    "batch_norm": _norm(lambda layer: layer.input.shape[1], batched=False),
    "frozen_batch_norm": _roles("input", "weight"),
    "group_norm": _norm(lambda layer: layer.attributes["num_groups"], batched=True),
    "layer_norm": _norm(
        lambda layer: layer.output.elements // math.prod(layer.attributes["normalized_shape"]), batched=True
    ),
    "relu": _roles("output"),
    "relu6": _input,
    "hardtanh": _input,
    "leaky_relu": _input_or_output_in_place,
    "hardsigmoid": _input,
    "hardswish": _input,
    "silu": _input,
    "gelu": _input,
    "mish": _input,
    "sigmoid": _roles("output"),
    "tanh": _roles("output"),
    "exp": _roles("output"),
    "sqrt": _roles("output"),
    "rsqrt": _roles("output"),
    "softmax": _roles("output"),
    "log_softmax": _roles("output"),
    "glu": _input,
    "elu": _input_or_output_in_place,
    "celu": _input_or_output_in_place,
    "selu": _input_or_output_in_place,
    "softplus": _input,
    "log": _input,
    "abs": _input,
    "clamp": _input,
    "clamp_min": _input,
    "prelu": _roles("input", "weight"),
    "neg": _nothing,
    "dropout": _dropout,
    "add": _nothing,
    "sub": _nothing,
    "mul": _product,
    "div": _quotient,
    "pow": _power,
    "square": _input,
    "addcmul": _addcmul,
    "adaptive_avg_pool2d": _adaptive_average_pool,
    "avg_pool2d": _input,
    "interpolate": _interpolate,
    "mean": _nothing,
    "sum": _nothing,
    "var": _input,
    "norm": _roles("self", "input", "output"),
    "max_pool2d": _max_pool,
    "pad": _pad,
    "getitem": _getitem,
    **dict.fromkeys(
        (
            "cat", "stack", "contiguous", "clone", "flatten", "permute", "reshape", "reshape_as", "squeeze", "swapaxes",
            "transpose", "unflatten", "unsqueeze", "view", "view_as", "chunk", "expand", "expand_as", "split",
            "movedim", "T", "mT", "unbind", "narrow", "select", "flip", "roll", "repeat", "tile", "repeat_interleave",
            "pixel_shuffle", "pixel_unshuffle",
        ),
        _nothing,
    ),
})  # fmt: skip


def _keep(graph: LayerGraph, assignment: Assignment, facts: Sequence[Facts], wanted: Wanted) -> Books:
    ledger = Ledger(graph)
    for index, roles in wanted.items():
        layer = graph.layers[index]
        name = operation(layer, index in assignment.frozen_statistics)
        if name not in KEEPS and not facts[index].together:
            raise UnknownOperationError(
                f"it is not known what stock PyTorch keeps for the operation {layer.op!r} ({layer.location} of "
                f"{graph.model}); give it with costmodel.register_rule(..., eager=...)"
            )
        for item in KEEPS[name](layer, roles) if name in KEEPS else facts[index].kept_together(layer, roles):
            ledger.keep(layer, " ".join(roles), item)
            if layer.op in CASTS and isinstance(item, Dense) and item.tensor.kind == "parameter":
                ledger.keep_cast(layer, " ".join(roles), item.tensor)
    return ledger.close()


# What benchmarks/verify_saved.py and verify_peak.py were run with; their tables are in benchmarks/results.
VERIFIED_TORCH = ("2.15",)
VERIFIED_MACHINES = ("x86_64", "AMD64")


def caveat() -> str | None:
    """Return what to tell a user whose PyTorch or processor this was not verified with; None if it was.

    None, too, where there is no PyTorch: whoever only plans does not train on this machine.
    """
    try:
        installed, machine = version("torch"), platform.machine()
    except PackageNotFoundError:
        return None
    if installed.startswith(VERIFIED_TORCH) and machine in VERIFIED_MACHINES:
        return None
    return (
        f"`eager` was verified with PyTorch {', '.join(VERIFIED_TORCH)} on x86-64, this is {installed} on {machine}; "
        "check it with: costmodel verify MODEL"
    )


# Why stock PyTorch keeps more than the gradient needs.
WHY: dict[str, str] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "keeps its input whether its weight trains or not"),
    "standardized_conv2d": "keeps its input whether its weight trains or not, and the standardised weight",
    "batch_norm": "keeps its input and statistics",
    "frozen_batch_norm": "keeps its input, even if the scale is frozen",
    "group_norm": "keeps its input and statistics",
    "layer_norm": "keeps its input and statistics",
    "relu": "keeps its output; one bit per element would do",
    **dict.fromkeys(
        ("relu6", "hardtanh", "hardsigmoid", "leaky_relu"),
        "keeps its input (a clone, if it works in place); one bit per element would do",
    ),
    **dict.fromkeys(("hardswish", "silu", "mish", "gelu"), "keeps its input (a clone, if it works in place)"),
    "dropout": "keeps a mask of floats; one bit per element would do",
    "max_pool2d": "keeps its input and indices of 8 bytes; a few bits per output would do",
    "avg_pool2d": "keeps its input, of which only the shape is needed",
    "adaptive_avg_pool2d": "keeps its input, of which only the shape is needed",
    "pad": "keeps its input, of which only the shape is needed",
}

EAGER = Accounting(
    "eager",
    "what stock PyTorch keeps for the same training on a CPU",
    "tools/autograd/derivatives.yaml of PyTorch, measured with saved-tensor hooks",
    _keep,
    kernels=Kernels("onednn"),
)
