"""`executorch`: a step as `costmodel.export` writes it for ExecuTorch, value by value in the runtime's arena.

What is counted differs from PyTorch's step:

    the arena    a value takes memory from the call that makes it to the last call that reads it; a view takes none, and
                 the result of an element-wise call lies where an operand of its size lies that ends there. The
                 gradient of a parameter ends with its update, which comes as soon as it is there.
    the state    trained parameters and the optimizer's state lie in memory of their own, beside the arena
    the file     frozen weights and buffers are mapped from the program's file; of what trains the file holds first
                 values, whose pages are let go when they are copied
    the calls    take memory for themselves: instructions in the file, structures of the runtime; counted with buffers

    a schedule   of a prefix in pieces, each image is copied into its piece, and the results into one tensor; what runs
                 again is computed again when it is asked for; gradients of passes are added up in the arena

Kept for backward is what `lean` keeps; working memory of kernels is none: portable kernels are loops. Values of one
number per channel count where they are kept (mean and deviation of a norm); smaller ones do not, nor that the runtime
rounds every size up to 16 bytes.

Source: the forms in costmodel/export/forms.py and updates.py, and PyTorch's decompositions (torch/_decomp); compared
with the plans of exported programs in tests/costmodel/export/test_export.py and benchmarks/export_executorch.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer, Tensor
from ..methods.assignment import Assignment
from ..rules.table import operation
from .arena import Program, Value
from .books import Accounting, Books, Execution, Instant, dense_key
from .gradients import wanted_gradients
from .lean import LEAN

# What the process takes beside arena, state, weights and calls: pages of libraries, 8,752 KiB, and some heap. Source:
# /proc/PID/smaps of the C++ runner on x86-64; executorch 1.5.1, portable kernels. Assumption: as much on Arm; with
# XNNPACK's library more.
RUNTIME_BYTES = 9_000_000
# Source: two programs of one network that differ in 668 calls: 259,968 bytes of file, and 749 KiB of heap (smaps).
CALL_BYTES = 1_540
_NUMBER = 4  # a value of one number

_ONE_BIT = {"relu": 1, "leaky_relu": 1, "relu6": 2, "hardtanh": 2, "hardsigmoid": 2}  # comparisons of the test
_ELEMENTWISE = {"relu", "relu6", "hardtanh", "leaky_relu", "sigmoid", "tanh", "exp", "sqrt", "rsqrt"}  # in one call
_GATED = {"hardswish", "silu", "gelu", "mish"}  # a function of x times x
_SIDES = {"add", "sub", "mul", "div"}


class _Step:
    """The calls of one step."""

    def __init__(self, graph: LayerGraph, assignment: Assignment, books: Books, how: Execution):
        self.graph, self.assignment, self.books, self.how = graph, assignment, books, how
        _, self.wanted = wanted_gradients(graph, assignment)
        self.images = how.batch  # in the present call
        self.program = Program()
        self.further_calls = 0  # of pieces whose moments are as those of others
        self.made: dict[int, Value] = {}  # of activations, by tensor
        self.kept: dict[tuple[int, str], Value] = {}  # what a layer keeps of its own
        self.gradients: dict[int, Value] = {}  # of activations, by tensor
        self.sums: dict[str, Value] = {}  # of the gradients of parameters, as far as they are there
        uses = (graph.layers[index].inputs[role] for index, roles in self.wanted.items() for role in roles)
        self.missing = Counter({t.name: 0 for t in graph.parameters.values()})
        for tensor in uses:
            self.missing[tensor.name] += how.passes

    def size(self, tensor: Tensor) -> int:
        """Return the bytes of a tensor."""
        return tensor.bytes(self.images, self.how.float_bytes)

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
        """Make all calls: forward, loss, backward with updates, for each pass."""
        program, given = self.program, self.graph.input
        batch = program.call(self.how.passes * self.size(given))
        several = program.calls_for([self.size(given)] * self.how.passes, batch)
        for images in several if self.how.passes > 1 else [batch]:
            self.made = {given.id: images}
            if self.how.prefix:
                self.prefix()
            for layer in self.graph.layers[self.how.prefix :]:
                program.place = ("forward", layer.name)
                self.forward(layer)
            program.place = ("loss", "backward")
            for tensor in self.graph.outputs:
                if tensor.kind == "activation":
                    probabilities = program.call(self.size(tensor), self.value(tensor))
                    self.gradients[tensor.id] = program.chain(self.size(tensor), probabilities)
            for layer in reversed(self.graph.layers):
                if layer.index in self.wanted:
                    self.run_again(layer)
                    program.place = ("backward", layer.name)
                    self.backward(layer, self.wanted[layer.index])

    def prefix(self) -> None:
        """Run the frozen prefix for one piece of the images after the other; collect the results."""
        program, images, end = self.program, self.made[self.graph.input.id], self.how.prefix
        output = next(t for layer in reversed(self.graph.layers[:end]) for t in layer.outputs if t.kind == "activation")
        whole, before = None, len(program.places)
        for _ in range(self.how.at_most):
            self.images = self.how.piece
            program.place = ("forward", "the next piece")
            self.made = {self.graph.input.id: program.call(self.size(self.graph.input), images)}
            for layer in self.graph.layers[:end]:
                program.place = ("forward", layer.name)
                self.forward(layer)
            self.images = self.how.batch
            whole = program.chain(self.size(output), whole or program.call(self.size(output)), self.made[output.id])
        further = -(-self.how.batch // self.how.piece) - self.how.at_most
        self.further_calls += further * (len(program.places) - before) // self.how.at_most
        assert whole is not None  # there is a piece
        self.made = {output.id: whole}

    def run_again(self, layer: Layer) -> None:
        """Make again what a layer's backward asks for."""
        for again in self.how.again.get(layer.index, ()):
            for index in again.layers:
                self.program.place = ("recompute", self.graph.layers[index].name)
                self.forward(self.graph.layers[index], again.keeps)

    # --- forward --------------------------------------------------------------------------------------------------

    def forward(self, layer: Layer, keeps: bool = True) -> None:
        """Make a layer's results. keeps: with what it keeps of its own for backward."""
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
        if mask and keeps:
            self.mask(layer, _ONE_BIT.get(name, 1))
        kept = dict(self.kept)
        self.made[layer.output.id] = self.result(layer, name, given)
        self.kept = self.kept if keeps else kept
        for tensor in layer.outputs[1:]:
            self.made[tensor.id] = self.program.call(self.size(tensor), *given)

    def result(self, layer: Layer, name: str, given: list[Value | None]) -> Value:
        """Make a layer's first result."""
        program, size = self.program, self.size(layer.output)
        if name == "batch_norm":
            return self.batch_norm(layer, size)
        if name in _GATED:
            gate = program.chain(size, program.chain(size, *given))
            return program.chain(size, gate, *given)
        if name == "hardsigmoid":
            return program.chain(size, program.chain(size, *given))
        if name == "max_pool2d":
            return self.max_pool(layer, size, given)
        one_by_one = name in _ELEMENTWISE | _SIDES | {"frozen_batch_norm"}
        return (program.chain if one_by_one else program.call)(size, *given)

    def is_masked(self, layer: Layer) -> bool:
        """Whether the method keeps one bit in place of an input that the exact backward needs."""
        instead = self.assignment.kept_inputs.get(layer.index)
        return (
            layer.index in self.wanted and instead is not None and not instead.exact and instead.threshold is not None
        )

    def mask(self, layer: Layer, comparisons: int) -> None:
        """Make one bit for each element: comparisons in bytes, their product with powers of 2, sums of eight."""
        program, elements = self.program, self.images * layer.input.elements
        bits = program.call(elements, self.value(layer.input))
        if comparisons == 2:
            other = program.call(elements, self.value(layer.input))
            bits = program.call(elements, bits, other)
        weighted = program.call(elements, bits)
        self.kept[layer.index, "mask"] = program.call(-(-elements // 8), weighted)

    def batch_norm(self, layer: Layer, size: int) -> Value:
        """Statistics of the batch, then x a + b; mean and deviation are kept."""
        program, x = self.program, self.value(layer.input)
        channels = self.how.float_bytes * layer.input.shape[1]
        mean = program.call(channels, x)
        variance = program.call(channels, program.chain(size, program.chain(size, x, mean)))
        program.leave(mean, variance)  # into the running statistics
        if layer.index in self.wanted:
            self.kept[layer.index, "mean"] = mean
            self.kept[layer.index, "deviation"] = variance
        return program.chain(size, program.chain(size, x, variance, mean))

    def max_pool(self, layer: Layer, size: int, given: list[Value | None]) -> Value:
        """Pixels come as int64 and are kept as int32."""
        program, elements = self.program, self.images * layer.output.elements
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
        """Add a parameter's gradient to what is there of it; update the parameter when nothing is missing."""
        if tensor.kind != "parameter":
            return  # a weight that is computed: what goes back from it is no larger
        size = self.size(tensor)
        if tensor.name in self.sums:
            gradient = self.program.chain(size, self.sums[tensor.name], gradient)
        self.sums[tensor.name] = gradient
        self.missing[tensor.name] -= 1
        if not self.missing[tensor.name]:
            mean = self.program.chain(size, gradient) if self.how.passes > 1 else gradient
            self.program.leave(_UPDATES[self.how.optimizer](self.program, size, mean))


def _sgd(program: Program, size: int, gradient: Value) -> Value:
    return program.chain(size, program.chain(size, gradient))


def _momentum(program: Program, size: int, gradient: Value) -> Value:
    moved = program.chain(size, program.chain(size), gradient)
    program.leave(moved)
    return program.chain(size, program.chain(size, moved))


def _adam(program: Program, size: int, gradient: Value) -> Value:
    first = program.chain(size, program.chain(size), program.chain(size, gradient))
    second = program.chain(size, program.chain(size), program.chain(size, program.chain(size, gradient)))
    program.leave(first, second)
    deviation = program.chain(size, program.chain(size, program.chain(size, second)))
    return program.chain(size, program.chain(size, program.chain(size, first, deviation)))


def _adamw(program: Program, size: int, gradient: Value) -> Value:
    decayed = program.chain(size)
    return program.chain(size, decayed, _adam(program, size, gradient))


# The forms of costmodel/export/updates.py, which read parameters and state where they lie.
_UPDATES: dict[str, Callable[[Program, int, Value], Value]] = {
    "sgd": _sgd, "momentum": _momentum, "adam": _adam, "adamw": _adamw,
}  # fmt: skip


def _mask_backward(step: _Step, layer: Layer, dy: Value) -> Value:
    """Bits from bytes, as bytes; then dy where they are set."""
    program, elements = step.program, step.images * layer.input.elements
    spread = program.call(elements, step.kept[layer.index, "mask"])
    bits = program.call(elements, spread)
    return program.chain(step.size(layer.input), bits, dy)


def _activation(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, size, name = step.program, step.size(layer.input), step.name(layer)
    if (layer.index, "mask") in step.kept:
        step.add_gradient(layer.input, _mask_backward(step, layer, dy))
        return
    kept = step.value(layer.output if step.keeps(layer) == "output" else layer.input)
    elements = step.images * layer.input.elements
    if name in _ONE_BIT:
        bits = program.call(elements, kept)
        if _ONE_BIT[name] == 2:
            bits = program.call(elements, bits, program.call(elements, kept))
        step.add_gradient(layer.input, program.chain(size, bits, dy))
        return
    slope = program.chain(size, kept)
    step.add_gradient(layer.input, program.chain(size, dy, program.chain(size, slope, kept)))


def _convolution(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, x = step.program, layer.inputs["input"]
    reads = (dy, step.value(x)) if "weight" in roles else (dy,)
    made = program.calls_for([step.size(layer.inputs[role]) for role in roles], *reads)
    for role, gradient in zip(roles, made, strict=True):
        if role == "input":
            step.add_gradient(x, gradient)
        else:
            step.update(layer.inputs[role], gradient)


def _linear(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, x, weight = step.program, layer.inputs["input"], layer.inputs["weight"]
    if "input" in roles:
        step.add_gradient(x, program.call(step.size(x), dy))
    if "weight" in roles:
        step.update(weight, program.call(step.size(weight), dy, step.value(x)))
    if "bias" in roles:
        step.update(layer.inputs["bias"], program.call(step.size(layer.inputs["bias"]), dy))


def _frozen_norm(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, size = step.program, step.size(layer.output)
    for role in roles:
        own = layer.inputs[role]
        if role == "input":
            step.add_gradient(layer.input, program.chain(size, dy))
        elif role == "bias":
            step.update(own, program.call(step.size(own), dy))
        else:
            product = program.chain(size, dy, program.chain(size, step.value(layer.input)))
            step.update(own, program.call(step.size(own), product))


def _batch_norm(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program, size, x = step.program, step.size(layer.output), step.value(layer.input)
    if "bias" in roles:
        step.update(layer.inputs["bias"], program.call(step.size(layer.inputs["bias"]), dy))
    if roles == ("bias",):
        return
    mean, deviation = step.kept[layer.index, "mean"], step.kept[layer.index, "deviation"]
    scale = program.call(mean.size, program.chain(size, dy, program.chain(size, x, mean)), deviation)
    if "weight" in roles:
        step.update(layer.inputs["weight"], program.call(mean.size, scale))
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
        else:
            step.update(tensor, gradient)


def _max_pool(step: _Step, layer: Layer, roles: tuple[str, ...], dy: Value) -> None:
    program = step.program
    pixels = program.call(8 * step.images * layer.output.elements, step.kept[layer.index, "pixels"])
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


def _timeline(graph: LayerGraph, assignment: Assignment, books: Books, how: Execution) -> list[Instant]:
    """Return the arena at each call, beside the file and the state."""
    step = _Step(graph, assignment, books, how)
    step.run()
    program = step.program
    turns = [number for number, (phase, _) in enumerate(program.places) if phase == "loss"]
    changes = [[0, 0, 0] for _ in range(len(program.places) + 1)]
    for size, first, last in program.finish():
        kind = 0 if first == 0 else 1 if any(first < turn <= last for turn in turns) else 2
        changes[first][kind] += size
        changes[last + 1][kind] -= size
    calls = len(program.places) + step.further_calls + len(graph.layers)  # with those of a prediction
    weights, buffers = (sum(tensor.bytes(1) for tensor in each.values()) for each in (graph.parameters, graph.buffers))
    fixed = {"weights": weights, "buffers": buffers + CALL_BYTES * calls}
    now, found = [0, 0, 0], []
    for (phase, layer), change in zip(program.places, changes, strict=False):
        now = [one + more for one, more in zip(now, change, strict=True)]
        found.append((phase, layer, fixed | dict(zip(("input", "saved_activations", "transient"), now, strict=True))))
    return found


EXECUTORCH = Accounting(
    "executorch",
    "a step exported to ExecuTorch: values in its arena, the state beside it, weights in the program's file",
    "costmodel/export, checked against the plans of exported programs",
    LEAN.keep,
    timeline=_timeline,
    follows_schedules=True,
    leaves_out="the runtime's own code",
)
