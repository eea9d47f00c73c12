"""One exported step, or a part of one, as calls whose results lie in an arena (`arena`): which comes after which."""

from __future__ import annotations

from collections import Counter

from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer, Tensor
from ..methods.assignment import Assignment
from ..rules.table import operation
from .arena import Program, Value
from .books import Books, Execution, dense_key
from .exported_layers import BACKWARD, COMPARISONS, FORWARD, UPDATES, in_one_call, mask, one_call_each

_PASSES = 3  # the first, one that adds to its gradients, and the last


class ExportedStep:
    """The calls of a step, made in turn; `program` has them."""

    def __init__(self, graph: LayerGraph, assignment: Assignment, books: Books, how: Execution):
        self.graph, self.assignment, self.books, self.how = graph, assignment, books, how
        self.images = how.batch  # in the present call
        self.program = Program()
        self.further_calls = 0  # of pieces and passes whose moments are as those of others
        self.made: dict[int, Value] = {}  # of activations, by tensor
        self.kept: dict[tuple[int, str], Value] = {}  # what a layer keeps of its own
        self.gradients: dict[int, Value] = {}  # of activations, by tensor
        self.sums: dict[str, Value] = {}  # of the gradients of parameters, as far as they are there
        self.passes = min(how.passes, _PASSES)
        uses = (graph.layers[index].inputs[role] for index, roles in how.wanted.items() for role in roles)
        self.missing = Counter(tensor.name for tensor in uses for _ in range(self.passes))

    def size(self, tensor: Tensor) -> int:
        """Return the bytes of a tensor."""
        return tensor.bytes(self.images, self.how.float_bytes)

    def value(self, tensor: Tensor) -> Value | None:
        """Return where an activation lies; None for what lies in the file or the state."""
        return self.made.get(tensor.id)

    def given(self, layer: Layer) -> list[Value | None]:
        """Return where a layer's arguments lie."""
        return [self.value(tensor) for tensor in layer.inputs.values()]

    def name(self, layer: Layer) -> str:
        """Return the layer's operation."""
        return operation(layer, layer.index in self.assignment.frozen_statistics)

    @property
    def running_statistics(self) -> set[str]:
        """The buffers, by name, that the step changes: those of norms with the statistics of the batch."""
        norms = (layer for layer in self.graph.layers if self.name(layer) == "batch_norm")
        return {tensor.name for layer in norms for tensor in layer.inputs.values() if tensor.kind == "buffer"}

    def keeps(self, layer: Layer) -> str:
        """Return what the books keep for a layer: 'output', 'input', or the label of something of its own."""
        for key in self.books.by_layer.get(layer.index, ()):
            known = {dense_key(layer.output): "output", dense_key(layer.input): "input"}
            return known.get(key, key.label)
        return ""

    # --- a whole step ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Make all calls: forward, loss, backward with updates, for each pass; further passes are as the second."""
        program, size, passes = self.program, self.size(self.graph.input), self.how.passes
        further = passes - self.passes
        batch = program.call(passes * size)
        several = program.calls_for([size] * self.passes + [further * size], batch) if passes > 1 else [batch]
        for number in range(self.passes):
            before = len(program.places) + self.further_calls
            self.run_pass(several[number])
            if number == 1:
                self.further_calls += further * (len(program.places) + self.further_calls - before)
                program.hold(several[-1])  # images of further passes wait

    def run_pass(self, images: Value) -> None:
        """Make the calls of one pass."""
        layers = self.graph.layers
        self.made = {self.graph.input.id: images}
        if self.how.prefix:
            self.prefix()
        self.run_forward(range(self.how.prefix, len(layers)))
        self.loss()
        self.run_backward(range(len(layers)))

    def prefix(self) -> None:
        """Run the frozen prefix for one piece of the images after the other; collect the results."""
        program, images, end = self.program, self.made[self.graph.input.id], self.how.prefix
        output = next(t for layer in reversed(self.graph.layers[:end]) for t in layer.outputs if t.kind == "activation")
        whole, before = None, len(program.places)
        for _ in range(self.how.at_most):
            self.images = self.how.piece
            program.place = ("forward", "the next piece")
            self.made = {self.graph.input.id: program.call(self.size(self.graph.input), images)}
            self.run_forward(range(end))
            self.images = self.how.batch
            whole = program.chain(self.size(output), whole or program.call(self.size(output)), self.made[output.id])
        further = -(-self.how.batch // self.how.piece) - self.how.at_most
        self.further_calls += further * (len(program.places) - before) // self.how.at_most
        assert whole is not None  # there is a piece
        self.made = {output.id: whole}

    def loss(self) -> None:
        """Make the gradients of the outputs."""
        self.program.place = ("loss", "backward")
        for tensor in self.graph.outputs:
            if tensor.kind == "activation":
                probabilities = self.program.call(self.size(tensor), self.value(tensor))
                self.gradients[tensor.id] = self.program.chain(self.size(tensor), probabilities)

    def run_forward(self, part: range) -> None:
        """Run layers forward."""
        for layer in self.graph.layers[part.start : part.stop]:
            self.program.place = ("forward", layer.name)
            self.forward(layer)

    def run_backward(self, part: range) -> None:
        """Run layers backward, with what they ask for made again."""
        for layer in reversed(self.graph.layers[part.start : part.stop]):
            if layer.index in self.how.wanted:
                for again in self.how.again.get(layer.index, ()):
                    for index in again.layers:
                        self.program.place = ("recompute", self.graph.layers[index].name)
                        self.forward(self.graph.layers[index], again.keeps)
                self.program.place = ("backward", layer.name)
                self.backward(layer)

    # --- a layer --------------------------------------------------------------------------------------------------

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
        name, given = self.name(layer), self.given(layer)
        has_mask = name in COMPARISONS and self.keeps(layer) not in ("output", "input", "") or self.is_masked(layer)
        if has_mask and keeps:
            mask(self, layer, COMPARISONS.get(name, 1))
        kept = dict(self.kept)
        self.made[layer.output.id] = FORWARD.get(name, in_one_call)(self, layer)
        self.kept = self.kept if keeps else kept
        for tensor in layer.outputs[1:]:
            self.made[tensor.id] = self.program.call(self.size(tensor), *given)

    def is_masked(self, layer: Layer) -> bool:
        """Whether the method keeps one bit in place of an input that the exact backward needs."""
        instead = self.assignment.kept_inputs.get(layer.index)
        is_wanted = layer.index in self.how.wanted
        return is_wanted and instead is not None and not instead.exact and instead.threshold is not None

    def backward(self, layer: Layer) -> None:
        """Make the gradients of a layer's arguments, and update its parameters."""
        given = [self.gradients.pop(tensor.id) for tensor in layer.outputs if tensor.id in self.gradients]
        if not given:
            return
        if layer.is_view:
            self.add_gradient(layer.input, given[0])
            return
        # What belongs to one parameter comes as early as it can (`hoist_updates`): before the gradient of the input.
        roles = sorted(self.how.wanted[layer.index], key=lambda role: layer.inputs[role].kind == "activation")
        BACKWARD.get(self.name(layer), one_call_each)(self, layer, tuple(roles), given[0])

    def add_gradient(self, tensor: Tensor, gradient: Value) -> None:
        """Enter a gradient, or add it to the one that is there; update a parameter when none of its own is missing."""
        if tensor.kind == "activation":
            known = self.gradients.get(tensor.id)
            if known is not None and known is not gradient:
                gradient = self.program.chain(self.size(tensor), known, gradient)
            self.gradients[tensor.id] = gradient
        elif tensor.kind == "parameter":
            self._add_to_parameter(tensor, gradient)
        elif (
            tensor.kind == "derived"
        ):  # A standardised weight is made again: w - mean, and two terms of its gradient, lie beside that.
            centred, size = self.program.call(self.size(tensor)), self.size(tensor)
            term = self.program.call(size, gradient)
            self.program.leave(self.program.call(0, gradient, centred, term, self.program.call(size, term, centred)))

    def _add_to_parameter(self, tensor: Tensor, gradient: Value) -> None:
        size = self.size(tensor)
        if tensor.name in self.sums:
            gradient = self.program.chain(size, self.sums[tensor.name], gradient)
        self.sums[tensor.name] = gradient
        self.missing[tensor.name] -= 1
        if not self.missing[tensor.name]:
            mean = self.program.chain(size, gradient) if self.how.passes > 1 else gradient
            self.program.leave(UPDATES[self.how.optimizer](self.program, size, mean))
