"""`executorch`: a step as `costmodel.export` writes it for ExecuTorch, value by value in the runtime's arena.

What is counted differs from PyTorch's step:

    the arena    a value takes memory from the call that makes it to the last call that reads it; a view takes none, and
                 the result of an element-wise call lies where an operand of its size lies that ends there. The
                 gradient of a parameter ends with its update, which comes as soon as it is there.
    the state    trained parameters and the optimizer's state lie in memory of their own, beside the arena
    the file     all weights and buffers are mapped from the program's file

Kept for backward is what `lean` keeps; working memory of kernels is none: portable kernels are loops. Values of one
number per channel count where they are kept (mean and deviation of a norm); smaller ones do not, nor that the runtime
rounds every size up to 16 bytes.

Source: the forms in costmodel/export/forms.py and updates.py, and PyTorch's decompositions (torch/_decomp); compared
with the plans of exported programs in tests/costmodel/export/test_export.py and benchmarks/export_executorch.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer, Tensor
from ..methods.assignment import Assignment
from ..rules.table import operation
from .books import Accounting, Books, Instant, dense_key
from .gradients import wanted_gradients
from .lean import LEAN

# What the process takes beside file, state and arena: libraries, the loader's structures. Source: peak resident memory
# of the C++ runner on x86-64, 10,868 KiB, less its arenas (690,112 bytes), program (118,640) and images (196,792);
# executorch 1.5.1, portable kernels. Assumption: as much on Arm; with XNNPACK's library more.
RUNTIME_BYTES = 10_200_000
_NUMBER = 4  # a value of one number

_ONE_BIT = {"relu": 1, "leaky_relu": 1, "relu6": 2, "hardtanh": 2, "hardsigmoid": 2}  # comparisons of the test
_ELEMENTWISE = {"relu", "relu6", "hardtanh", "leaky_relu", "sigmoid", "tanh", "exp", "sqrt", "rsqrt"}  # in one call
_GATED = {"hardswish", "silu", "gelu", "mish"}  # a function of x times x
_SIDES = {"add", "sub", "mul", "div"}


@dataclass
class Value:
    """Something in the arena: its bytes, and the moments of the calls that make it and read it last."""

    size: int
    first: int
    last: int
    owner: Value | None = None

    @property
    def root(self) -> Value:
        """The value whose memory it takes."""
        return self if self.owner is None else self.owner.root


@dataclass
class Program:
    """Calls, one after the other; `places` says in which phase and layer each is."""

    values: list[Value] = field(default_factory=list)
    calls: list[tuple[Value, tuple[Value, ...]]] = field(default_factory=list)  # element-wise results, operands
    places: list[tuple[str, str]] = field(default_factory=list)
    place: tuple[str, str] = ("start", "")

    def call(self, size: int, *operands: Value | None, elementwise: bool = False) -> Value:
        """Make a value of a number of bytes from others."""
        now = len(self.places)
        self.places.append(self.place)
        given = tuple(one for one in operands if one is not None)
        for one in given:
            one.last = now
        made = Value(size, now, now)
        self.values.append(made)
        if elementwise:
            self.calls.append((made, given))
        return made

    def chain(self, size: int, *operands: Value | None) -> Value:
        """Make a value by an element-wise call."""
        return self.call(size, *operands, elementwise=True)

    def finish(self) -> list[tuple[int, int, int]]:
        """Return (bytes, first, last) of what lies in the arena: values that share their memory are one."""
        for made, given in self.calls:
            ending = (one for one in given if one.last == made.first and one.size == made.size)
            made.owner = next(ending, None)
        spans: dict[int, tuple[int, int, int]] = {}
        for value in self.values:
            size, first, last = spans.get(id(value.root), (value.size, value.first, value.last))
            spans[id(value.root)] = size, min(first, value.first), max(last, value.last)
        return list(spans.values())


class _Step:
    """The calls of one step."""

    def __init__(self, graph: LayerGraph, assignment: Assignment, books: Books, batch: int, float_bytes: int):
        self.graph, self.assignment, self.books = graph, assignment, books
        self.batch, self.float_bytes = batch, float_bytes
        _, self.wanted = wanted_gradients(graph, assignment)
        self.program = Program()
        self.made: dict[int, Value] = {}  # of activations, by tensor
        self.kept: dict[tuple[int, str], Value] = {}  # what a layer keeps of its own
        self.gradients: dict[int, Value] = {}

    def size(self, tensor: Tensor) -> int:
        """Return the bytes of a tensor."""
        return tensor.bytes(self.batch, self.float_bytes)

    def value(self, tensor: Tensor) -> Value | None:
        """Return where an activation lies; None for what lies in the file or the state."""
        return self.made.get(tensor.id)

    def name(self, layer: Layer) -> str:
        """Return the layer's operation."""
        return operation(layer, layer.index in self.assignment.frozen_statistics)

    def keeps(self, layer: Layer) -> str:
        """Return what the books keep for a layer: 'output', 'input', or the label of something of its own."""
        for key in self.books.by_layer.get(layer.index, ()):
            return (
                "output" if key == dense_key(layer.output) else "input" if key == dense_key(layer.input) else key.label
            )
        return ""

    def run(self) -> None:
        """Make all calls: forward, loss, backward with updates."""
        program = self.program
        self.made[self.graph.input.id] = program.call(self.size(self.graph.input))
        for layer in self.graph.layers:
            program.place = ("forward", layer.name)
            self.forward(layer)
        program.place = ("loss", "backward")
        for tensor in self.graph.outputs:
            if tensor.kind == "activation":
                probabilities = program.call(self.size(tensor), self.value(tensor))
                self.gradients[tensor.id] = program.chain(self.size(tensor), probabilities)
        for layer in reversed(self.graph.layers):
            if layer.index in self.wanted:
                program.place = ("backward", layer.name)
                self.backward(layer, self.wanted[layer.index])

    # --- forward --------------------------------------------------------------------------------------------------

    def forward(self, layer: Layer) -> None:
        """Make a layer's results."""
        if layer.is_view:
            for tensor in layer.outputs:
                known = self.value(layer.input)
                if known is not None:
                    self.made[tensor.id] = known
            return
        if layer.output.kind != "activation":
            return  # weights from parameters: of the file's size at most, and made where they are used
        name, given = self.name(layer), [self.value(tensor) for tensor in layer.inputs.values()]
        mask = name in _ONE_BIT and self.keeps(layer) not in ("output", "input", "") or self.is_masked(layer)
        if mask:
            self.mask(layer, _ONE_BIT.get(name, 1))
        result = self.result(layer, name, given)
        self.made[layer.output.id] = result
        for tensor in layer.outputs[1:]:
            self.made[tensor.id] = self.program.call(self.size(tensor), *given)

    def result(self, layer: Layer, name: str, given: list[Value | None]) -> Value:
        """Make a layer's first result."""
        program, size = self.program, self.size(layer.output)
        if name == "batch_norm":
            return self.batch_norm(layer, size)
        if name in _GATED:
            gate = program.chain(program.chain(size, *given).size, program.values[-1])
            return program.chain(size, gate, *given)
        if name == "hardsigmoid":
            return program.chain(size, program.chain(size, *given))
        if name == "max_pool2d":
            return self.max_pool(layer, size, given)
        return program.call(size, *given, elementwise=name in _ELEMENTWISE | _SIDES | {"frozen_batch_norm"})

    def is_masked(self, layer: Layer) -> bool:
        """Whether the method keeps one bit in place of an input that the exact backward needs."""
        instead = self.assignment.kept_inputs.get(layer.index)
        return (
            layer.index in self.wanted and instead is not None and not instead.exact and instead.threshold is not None
        )

    def mask(self, layer: Layer, comparisons: int) -> None:
        """Make one bit for each element: comparisons in bytes, their product with powers of 2, sums of eight."""
        program, elements = self.program, self.batch * layer.input.elements
        bits = program.call(elements, self.value(layer.input))
        if comparisons == 2:
            other = program.call(elements, self.value(layer.input))
            bits = program.call(elements, bits, other)
        weighted = program.call(elements, bits)
        self.kept[layer.index, "mask"] = program.call(-(-elements // 8), weighted)

    def batch_norm(self, layer: Layer, size: int) -> Value:
        """Statistics of the batch, then x a + b; mean and deviation are kept."""
        program, x = self.program, self.value(layer.input)
        channels = self.float_bytes * layer.input.shape[1]
        mean = program.call(channels, x)
        squares = program.chain(size, program.chain(size, x, mean))
        variance = program.call(channels, squares)
        if layer.index in self.wanted:
            self.kept[layer.index, "mean"] = mean
            self.kept[layer.index, "deviation"] = variance
        return program.chain(size, program.chain(size, x, variance, mean))

    def max_pool(self, layer: Layer, size: int, given: list[Value | None]) -> Value:
        """Pixels come as int64 and are kept as int32."""
        program, elements = self.program, self.batch * layer.output.elements
        pixels = program.call(8 * elements, *given)
        result = program.call(size, *given, pixels)
        if layer.index in self.wanted:
            self.kept[layer.index, "pixels"] = program.call(4 * elements, pixels)
        return result

    # --- backward -------------------------------------------------------------------------------------------------

    def backward(self, layer: Layer, roles: tuple[str, ...]) -> None:
        """Make the gradients of a layer's arguments, and update its parameters."""
        given = [self.gradients.pop(tensor.id) for tensor in layer.outputs if tensor.id in self.gradients]
        if not given:
            return
        dy = given[0]
        if layer.is_view:
            self.add_gradient(layer.input, dy)
            return
        _BACKWARD.get(self.name(layer), _other)(self, layer, roles, dy)

    def add_gradient(self, tensor: Tensor, gradient: Value) -> None:
        """Enter a gradient of an activation, or add it to the one that is there."""
        known = self.gradients.get(tensor.id)
        if known is not None and known is not gradient:
            gradient = self.program.chain(self.size(tensor), known, gradient)
        self.gradients[tensor.id] = gradient

    def update(self, tensor: Tensor, gradient: Value) -> None:
        """Update a parameter: rate x gradient, p - that, each in the gradient's own place."""
        size = self.size(tensor)
        self.program.chain(size, self.program.chain(size, gradient))


def _mask_backward(step: _Step, layer: Layer, dy: Value) -> Value:
    """Bits from bytes, as bytes; then dy where they are set."""
    program, elements = step.program, step.batch * layer.input.elements
    spread = program.call(elements, step.kept[layer.index, "mask"])
    bits = program.call(elements, spread)
    return program.chain(step.size(layer.input), bits, dy)


def _activation(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, size, name = step.program, step.size(layer.input), step.name(layer)
    if (layer.index, "mask") in step.kept:
        step.add_gradient(layer.input, _mask_backward(step, layer, dy))
        return
    kept = step.value(layer.output if step.keeps(layer) == "output" else layer.input)
    elements = step.batch * layer.input.elements
    if name in _ONE_BIT:
        bits = program.call(elements, kept)
        if _ONE_BIT[name] == 2:
            bits = program.call(elements, bits, program.call(elements, kept))
        step.add_gradient(layer.input, program.chain(size, bits, dy))
        return
    slope = program.chain(size, kept)
    step.add_gradient(layer.input, program.chain(size, dy, program.chain(size, slope, kept)))


def _convolution(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, x, weight = step.program, layer.inputs["input"], layer.inputs["weight"]
    reads = (dy, step.value(x)) if "weight" in roles else (dy,)
    now = len(program.places)
    gradients: dict[str, Value] = {}
    for role in roles:
        gradients[role] = program.call(step.size(layer.inputs[role]), *reads)
    for value in gradients.values():  # of one call: all are there at once
        value.first, value.last = now, len(program.places) - 1
    if "weight" in roles and weight.kind == "parameter":
        step.update(weight, gradients["weight"])
    if "input" in roles:
        step.add_gradient(x, gradients["input"])


def _linear(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, x, weight = step.program, layer.inputs["input"], layer.inputs["weight"]
    if "input" in roles:
        step.add_gradient(x, program.call(step.size(x), dy))
    if "weight" in roles and weight.kind == "parameter":
        size = step.size(weight)
        step.update(weight, program.call(size, program.call(size, dy, step.value(x))))


def _frozen_norm(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, size = step.program, step.size(layer.output)
    if "weight" in roles:
        program.call(_NUMBER, program.chain(size, dy, program.chain(size, step.value(layer.input))))
    if "input" in roles:
        step.add_gradient(layer.input, program.chain(size, dy))


def _batch_norm(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, size, x = step.program, step.size(layer.output), step.value(layer.input)
    if roles == ("bias",):
        program.call(_NUMBER, dy)
        return
    mean, deviation = step.kept[layer.index, "mean"], step.kept[layer.index, "deviation"]
    scale = program.call(mean.size, program.chain(size, dy, program.chain(size, x, mean)), deviation)
    if "input" in roles:
        centred = program.chain(size, program.chain(size, x, mean), scale)
        step.add_gradient(layer.input, program.chain(size, program.chain(size, program.chain(size, dy), centred)))


def _sides(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, name = step.program, layer.op
    for role in roles:
        tensor = layer.inputs[role]
        size, other = step.size(tensor), [step.value(t) for r, t in layer.inputs.items() if r != role]
        gradient = dy if name == "add" else program.chain(dy.size, dy, *other)
        if size < dy.size:
            gradient = program.call(size, gradient)  # a sum over what was broadcast
        if tensor.kind == "activation":
            step.add_gradient(tensor, gradient)


def _max_pool(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program = step.program
    pixels = program.call(8 * step.batch * layer.output.elements, step.kept[layer.index, "pixels"])
    shape = program.call(step.size(layer.input))
    step.add_gradient(layer.input, program.call(step.size(layer.input), dy, pixels, shape))


def _other(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    """One new value for each gradient, of what the layer reads."""
    for role in roles:
        tensor = layer.inputs[role]
        gradient = step.program.call(step.size(tensor), dy, *(step.value(t) for t in layer.inputs.values()))
        if tensor.kind == "activation":
            step.add_gradient(tensor, gradient)
        else:
            step.update(tensor, gradient)


_BACKWARD: dict[str, Callable[[_Step, Layer, tuple[str, ...], Value], None]] = {
    **dict.fromkeys((*_ONE_BIT, *_GATED), _activation),
    **dict.fromkeys(("conv2d", "standardized_conv2d"), _convolution),
    "linear": _linear,
    "frozen_batch_norm": _frozen_norm,
    "batch_norm": _batch_norm,
    **dict.fromkeys(_SIDES, _sides),
    "max_pool2d": _max_pool,
}


def _timeline(graph: LayerGraph, assignment: Assignment, books: Books, batch: int, float_bytes: int) -> list[Instant]:
    """Return the arena at each call, beside the file and the state."""
    step = _Step(graph, assignment, books, batch, float_bytes)
    step.run()
    program = step.program
    turn = next(number for number, (phase, _) in enumerate(program.places) if phase == "loss")
    changes = [[0, 0, 0] for _ in range(len(program.places) + 1)]
    for size, first, last in program.finish():
        kind = 0 if first == 0 else 1 if first < turn <= last else 2
        changes[first][kind] += size
        changes[last + 1][kind] -= size
    weights = sum(tensor.bytes(1) for tensor in graph.parameters.values())
    trained = sum(graph.parameters[name].bytes(1) for name in assignment.trained)
    fixed = {"weights": weights + trained, "buffers": _buffers(graph)}
    now, found = [0, 0, 0], []
    for (phase, layer), change in zip(program.places, changes, strict=False):
        now = [one + more for one, more in zip(now, change, strict=True)]
        found.append((phase, layer, fixed | dict(zip(("input", "saved_activations", "transient"), now, strict=True))))
    return found


def _buffers(graph: LayerGraph) -> int:
    return sum(tensor.bytes(1) for tensor in graph.buffers.values())


EXECUTORCH = Accounting(
    "executorch",
    "a step exported to ExecuTorch: values in its arena, the state beside it, weights in the program's file",
    "costmodel/export, checked against the plans of exported programs",
    LEAN.keep,
    timeline=_timeline,
    leaves_out="the runtime's own code and the program's instructions",
)
