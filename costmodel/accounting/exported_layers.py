"""The calls that an exported step makes for a layer, forward and backward, and for an update, as values in its arena.

Each entry says which values are made of which, in order. Source: the forms in costmodel/export/forms.py and updates.py,
and PyTorch's decompositions (torch/_decomp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..graph.values import Layer
from .arena import Program, Value

if TYPE_CHECKING:
    from .exported_step import ExportedStep

Forward = Callable[["ExportedStep", Layer], Value]
Backward = Callable[["ExportedStep", Layer, tuple[str, ...], Value], None]  # roles that want a gradient, dy

# Of the functions whose gradient asks for one bit: comparisons of the test.
COMPARISONS = {"relu": 1, "leaky_relu": 1, "relu6": 2, "hardtanh": 2, "hardsigmoid": 2}
_ELEMENTWISE = {"relu", "relu6", "hardtanh", "leaky_relu", "sigmoid", "tanh", "exp", "sqrt", "rsqrt"}  # in one call
_GATED = {"hardswish", "silu", "gelu", "mish"}  # a function of x times x
_SIDES = {"add", "sub", "mul", "div"}

# --- forward ----------------------------------------------------------------------------------------------------------


def mask(step: ExportedStep, layer: Layer, comparisons: int) -> None:
    """Make one bit for each element: comparisons in bytes, their product with powers of 2, sums of eight."""
    program, elements = step.program, step.images * layer.input.elements
    bits = program.call(elements, step.value(layer.input))
    if comparisons == 2:
        bits = program.call(elements, bits, program.call(elements, step.value(layer.input)))
    weighted = program.call(elements, bits)
    step.kept[layer.index, "mask"] = program.call(-(-elements // 8), weighted)


def in_one_call(step: ExportedStep, layer: Layer) -> Value:
    """Make the result of an operation that is not in the table."""
    return step.program.call(step.size(layer.output), *step.given(layer))


def _in_place(step: ExportedStep, layer: Layer) -> Value:
    return step.program.chain(step.size(layer.output), *step.given(layer))


def _gated(step: ExportedStep, layer: Layer) -> Value:
    program, size, given = step.program, step.size(layer.output), step.given(layer)
    return program.chain(size, program.chain(size, program.chain(size, *given)), *given)


def _hardsigmoid(step: ExportedStep, layer: Layer) -> Value:
    program, size = step.program, step.size(layer.output)
    return program.chain(size, program.chain(size, *step.given(layer)))


def _batch_norm(step: ExportedStep, layer: Layer) -> Value:
    """Statistics of the batch, then x a + b; mean and deviation are kept."""
    program, x, size = step.program, step.value(layer.input), step.size(layer.output)
    channels = step.how.float_bytes * layer.input.shape[1]
    mean = program.call(channels, x)
    variance = program.call(channels, program.chain(size, program.chain(size, x, mean)))
    program.leave(mean, variance)  # into the running statistics
    if layer.index in step.how.wanted:
        step.kept[layer.index, "mean"] = mean
        step.kept[layer.index, "deviation"] = variance
    return program.chain(size, program.chain(size, x, variance, mean))


def _max_pool(step: ExportedStep, layer: Layer) -> Value:
    """Pixels come as int64 and are kept as int32."""
    program, elements = step.program, step.images * layer.output.elements
    pixels = program.call(8 * elements, *step.given(layer))
    result = program.call(step.size(layer.output), *step.given(layer), pixels)
    if layer.index in step.how.wanted:
        step.kept[layer.index, "pixels"] = program.call(4 * elements, pixels)
    return result


FORWARD: dict[str, Forward] = {
    **dict.fromkeys((*_ELEMENTWISE, *_SIDES, "frozen_batch_norm"), _in_place),
    **dict.fromkeys(_GATED, _gated),
    "hardsigmoid": _hardsigmoid,
    "batch_norm": _batch_norm,
    "max_pool2d": _max_pool,
}

# --- backward ---------------------------------------------------------------------------------------------------------


def _mask_backward(step: ExportedStep, layer: Layer, dy: Value) -> Value:
    """Bits from bytes, as bytes; then dy where they are set."""
    program, elements = step.program, step.images * layer.input.elements
    spread = program.call(elements, step.kept[layer.index, "mask"])
    bits = program.call(elements, spread)
    return program.chain(step.size(layer.input), bits, dy)


def _activation_backward(step: ExportedStep, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, size, name = step.program, step.size(layer.input), step.name(layer)
    if (layer.index, "mask") in step.kept:
        step.add_gradient(layer.input, _mask_backward(step, layer, dy))
        return
    kept = step.value(layer.output if step.keeps(layer) == "output" else layer.input)
    elements = step.images * layer.input.elements
    if name in COMPARISONS:
        bits = program.call(elements, kept)
        if COMPARISONS[name] == 2:
            bits = program.call(elements, bits, program.call(elements, kept))
        step.add_gradient(layer.input, program.chain(size, bits, dy))
        return
    slope = program.chain(size, kept)
    step.add_gradient(layer.input, program.chain(size, dy, program.chain(size, slope, kept)))


def _convolution_backward(step: ExportedStep, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    reads = (dy, step.value(layer.input)) if "weight" in roles else (dy,)
    made = step.program.calls_for([step.size(layer.inputs[role]) for role in roles], *reads)
    for role, gradient in zip(roles, made, strict=True):
        step.add_gradient(layer.inputs[role], gradient)


def _linear_backward(step: ExportedStep, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    """The weight's gradient is a product with dy transposed, a copy."""
    for role in roles:
        reads = (step.program.call(dy.size, dy), step.value(layer.input)) if role == "weight" else (dy,)
        step.add_gradient(layer.inputs[role], step.program.call(step.size(layer.inputs[role]), *reads))


def _frozen_norm_backward(step: ExportedStep, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, size = step.program, step.size(layer.output)
    for role in roles:
        own = layer.inputs[role]
        if role == "input":
            step.add_gradient(own, program.chain(size, dy))
        elif role == "bias":
            step.add_gradient(own, program.call(step.size(own), dy))
        else:
            product = program.chain(size, dy, program.chain(size, step.value(layer.input)))
            step.add_gradient(own, program.call(step.size(own), product))


def _batch_norm_backward(step: ExportedStep, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, size, x = step.program, step.size(layer.output), step.value(layer.input)
    if "bias" in roles:
        step.add_gradient(layer.inputs["bias"], program.call(step.size(layer.inputs["bias"]), dy))
    if roles == ("bias",):
        return
    mean, deviation = step.kept[layer.index, "mean"], step.kept[layer.index, "deviation"]
    scale = program.call(mean.size, program.chain(size, dy, program.chain(size, x, mean)), deviation)
    if "weight" in roles:
        step.add_gradient(layer.inputs["weight"], program.call(mean.size, scale))
    if "input" in roles:
        centred = program.chain(size, program.chain(size, x, mean), scale)
        step.add_gradient(layer.input, program.chain(size, program.chain(size, program.chain(size, dy), centred)))


def _sides_backward(step: ExportedStep, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program = step.program
    for role in roles:
        tensor = layer.inputs[role]
        size, other = step.size(tensor), [step.value(t) for r, t in layer.inputs.items() if r != role]
        gradient = dy if layer.op == "add" else program.chain(dy.size, dy, *other)
        if size < dy.size:
            gradient = program.call(size, gradient)  # a sum over what was broadcast
        step.add_gradient(tensor, gradient)


def _max_pool_backward(step: ExportedStep, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program = step.program
    pixels = program.call(8 * step.images * layer.output.elements, step.kept[layer.index, "pixels"])
    shape = program.call(step.size(layer.input))
    step.add_gradient(layer.input, program.call(step.size(layer.input), dy, pixels, shape))


def one_call_each(step: ExportedStep, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    """Make the gradients of an operation that is not in the table, of all that the layer reads if it keeps anything."""
    reads = step.given(layer) if step.keeps(layer) else ()
    for role in roles:
        gradient = step.program.call(step.size(layer.inputs[role]), dy, *reads)
        step.add_gradient(layer.inputs[role], gradient)


BACKWARD: dict[str, Backward] = {
    **dict.fromkeys((*COMPARISONS, *_GATED), _activation_backward),
    **dict.fromkeys(("conv2d", "standardized_conv2d"), _convolution_backward),
    **dict.fromkeys(_SIDES, _sides_backward),
    "linear": _linear_backward,
    "frozen_batch_norm": _frozen_norm_backward,
    "batch_norm": _batch_norm_backward,
    "max_pool2d": _max_pool_backward,
}

# --- updates: parameters and the optimizer's state are read where they lie --------------------------------------------


def _sgd(program: Program, size: int, gradient: Value) -> Value:
    return program.chain(size, program.chain(size, gradient))


def _momentum(program: Program, size: int, gradient: Value) -> Value:
    moved = program.chain(size, gradient)
    program.leave(moved)
    return program.chain(size, program.chain(size, moved))


def _adam_change(program: Program, size: int, gradient: Value) -> Value:
    first = program.chain(size, program.chain(size, gradient))
    second = program.chain(size, program.chain(size, program.chain(size, gradient)))
    program.leave(first, second)
    deviation = program.chain(size, program.chain(size, program.chain(size, second)))
    return program.chain(size, program.chain(size, first, deviation))


def _adam(program: Program, size: int, gradient: Value) -> Value:
    return program.chain(size, _adam_change(program, size, gradient))


def _adamw(program: Program, size: int, gradient: Value) -> Value:
    change = _adam_change(program, size, gradient)
    return program.chain(size, program.chain(size), change)


UPDATES: dict[str, Callable[[Program, int, Value], Value]] = {
    "sgd": _sgd, "momentum": _momentum, "adam": _adam, "adamw": _adamw,
}  # fmt: skip
