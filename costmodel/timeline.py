"""One training step as allocations and frees -> the peak, and where it happens.

The order is PyTorch's. Forward: a layer allocates its results and what it keeps; a value that nothing keeps is freed
when the program's variables drop it. Backward runs the layers from the last to the first; each allocates the
gradients that are wanted, then frees the gradient it was given and what it kept. A second gradient of the same tensor
is added in place where the first has no other reader. Source: torch/csrc/autograd/engine.cpp, input_buffer.cpp.

Update: one tensor at a time. Gradients are freed at the end (`zero_grad(set_to_none=True)`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .accounting import Books
from .gradients import Wanted
from .graph import LayerGraph, Tensor
from .optimizers import Optimizer
from .rules import Dense, Facts

CATEGORIES = ("weights", "buffers", "input", "saved_activations", "gradients", "optimizer", "transient")
_WEIGHTS, _BUFFERS, _INPUT, _SAVED, _GRADIENTS, _OPTIMIZER, _TRANSIENT = range(len(CATEGORIES))


class Moment(NamedTuple):
    """Memory at one point of the step: bytes by category, while `layer` ran in `phase`."""

    phase: str
    layer: str
    by_category: tuple[int, ...]  # or an array, by category and batch

    @property
    def total_bytes(self) -> int:
        """All categories together."""
        return sum(self.by_category)


@dataclass(frozen=True)
class Sizes:
    """What a step costs in bytes apart from its layers.

    float_bytes: of one activation. weights_bytes: of all parameters as they are stored, the frozen ones perhaps in
    fewer bits. trained: bytes of each trained parameter, in float32. copied: bytes of the copy of its weights that a
    layer makes to compute with (from int8, or in fp16 under autocast), by layer. kernels: what its computation needs
    beside that, forward and backward, by layer.
    """

    batch: int
    float_bytes: int
    weights_bytes: int
    buffers_bytes: int
    trained: dict[str, int]
    copied: dict[int, int]
    kernels: dict[int, tuple[int, int]]


class _Gradient:
    """A gradient's memory and how many readers it still has."""

    __slots__ = ("bytes", "readers")

    def __init__(self, size: int):
        self.bytes, self.readers = size, 1


class _Again(NamedTuple):
    """A weight that is computed from parameters again: by layers whose backward runs within that of the one it is for.

    made_bytes: of all that is made on the way; held_bytes: of what stays until the backward is over.
    """

    layers: list[int]
    made_bytes: int
    held_bytes: int


class _Simulation:
    def __init__(self, graph: LayerGraph, facts: Sequence[Facts], wanted: Wanted, books: Books, sizes: Sizes):
        self.graph, self.facts, self.wanted, self.books, self.sizes = graph, facts, wanted, books, sizes
        # By category; a row of numbers each if the batch is an array, so that many batches are simulated at once.
        many = np.ndim(sizes.batch)
        self.now = np.zeros((len(CATEGORIES), len(sizes.batch)), np.int64) if many else [0] * len(CATEGORIES)
        self.moments: list[Moment] = []
        self.kept = {saved.storage.id for saved in books.saved.values() if saved.storage is not None}
        self.live: dict[int, int] = {}  # activations in memory: storage -> bytes
        self.gradients: dict[str, int] = {}
        self.missing_state: dict[str, int] = {}  # optimizer state that the first update allocates
        self.again = self._again()

    def _again(self) -> dict[int, _Again]:
        """Return by layer how its weight is computed from parameters again in its backward."""
        graph, gone, found = self.graph, self.kept | self.graph.resident_storages, {}
        for index, roles in self.wanted.items():
            weight = graph.layers[index].inputs.get("weight")
            chain = graph.derivation(weight) if weight is not None and weight.storage.id not in self.kept else []
            if not chain or not {"input", "weight"} & {*roles} or graph.layers[index].output.kind == "derived":
                continue
            inner = sorted((layer.index for layer in chain if layer.index in self.wanted), reverse=True)
            if "weight" not in roles or len(graph.consumers[weight.id]) > 1:
                inner = []
            needs = [self.facts[one].needs[role][0] for one in inner for role in self.wanted[one]]
            needed = [item.tensor for alternative in needs for item in alternative if isinstance(item, Dense)]
            made = [tensor for layer in chain for tensor in layer.outputs]
            held = [weight, *(tensor for tensor in needed if tensor.kind == "derived")]
            sizes = ({t.storage.id: t.bytes(1) for t in those if t.storage.id not in gone} for those in (made, held))
            found[index] = _Again(inner, *(sum(size.values()) for size in sizes))
        return found

    def mark(self, phase: str, layer: str, extra: int = 0) -> None:
        """Note the memory now, with `extra` bytes of working memory."""
        self.now[_TRANSIENT] += extra
        self.moments.append(
            Moment(phase, layer, self.now.copy() if isinstance(self.now, np.ndarray) else tuple(self.now))
        )
        self.now[_TRANSIENT] -= extra

    def forward(self) -> None:
        now, sizes, live, kept = self.now, self.sizes, self.live, self.kept
        batch, float_bytes = sizes.batch, sizes.float_bytes
        live[self.graph.input.storage.id] = 0  # it has a category of its own
        dying = _dying(self.graph)
        allocated_first_here: set = set()
        for layer in self.graph.layers:
            for tensor in (*layer.outputs, *(t for t in layer.inputs.values() if t.kind == "constant")):
                storage = tensor.storage
                if storage.id not in live and storage.id not in self.graph.resident_storages:
                    live[storage.id] = size = storage.bytes(batch, float_bytes)
                    now[_SAVED if storage.id in kept else _TRANSIENT] += size
            for key in self.books.by_layer.get(layer.index, ()):
                saved = self.books.saved[key]
                if saved.storage is None and key not in allocated_first_here:
                    allocated_first_here.add(key)
                    now[_SAVED] += saved.bytes(batch, float_bytes)
            working = sizes.copied.get(layer.index, 0) + sizes.kernels.get(layer.index, (0, 0))[0]
            self.mark("forward", layer.name, working)
            for id_ in dying.get(layer.index, ()):
                if id_ in live and id_ not in kept:
                    now[_TRANSIENT] -= live.pop(id_)

    def loss(self) -> dict[int, _Gradient]:
        """Cross-entropy: log-probabilities kept, then their gradient, then that of the outputs."""
        now, sizes = self.now, self.sizes
        pending = {}
        outputs = [tensor for tensor in self.graph.outputs if tensor.kind == "activation"]
        size = sum(tensor.bytes(sizes.batch, sizes.float_bytes) for tensor in outputs)
        now[_TRANSIENT] += size
        self.mark("loss", "forward")
        now[_TRANSIENT] += 2 * size
        self.mark("loss", "backward")
        now[_TRANSIENT] -= 2 * size
        for tensor in outputs:
            pending[tensor.id] = _Gradient(tensor.bytes(sizes.batch, sizes.float_bytes))
        for id_ in {tensor.storage.id for tensor in self.graph.outputs}:
            if id_ not in self.kept:
                now[_TRANSIENT] -= self.live.pop(id_, 0)
        return pending

    def backward(self, pending: dict[int, _Gradient], fused_update: Optimizer | None) -> None:
        last_use = {key: min(saved.uses) for key, saved in self.books.saved.items()}
        inner = {index for again in self.again.values() for index in again.layers}
        for index in reversed(self.wanted):
            if index not in inner:
                self.node(index, pending, last_use, fused_update)

    def node(self, index: int, pending: dict[int, _Gradient], last_use: dict, fused_update: Optimizer | None) -> None:
        """Run the backward of one layer, and within it that of the layers that make its weight again."""
        now, sizes, books = self.now, self.sizes, self.books
        layer, facts = self.graph.layers[index], self.facts[index]
        given = [pending.pop(tensor.id) for tensor in layer.outputs if tensor.id in pending]
        made: list[tuple[Tensor, _Gradient]] = []
        updated: list[str] = []
        added = 0
        again = self.again.get(index, _Again([], 0, 0))
        if again.made_bytes:
            self.mark("backward", layer.name, again.made_bytes)
        for role in self.wanted[index]:
            tensor = layer.inputs[role]
            if tensor.kind == "parameter":
                added += self.parameter_gradient(tensor)
                updated.append(tensor.name)
            elif role in facts.passes_gradient and len(given) == 1:
                given[0].readers += 1
                made.append((tensor, given[0]))
            else:
                gradient = _Gradient(tensor.bytes(sizes.batch, sizes.float_bytes))
                now[_TRANSIENT] += gradient.bytes
                made.append((tensor, gradient))
        working = sizes.copied.get(index, 0) + sizes.kernels.get(index, (0, 0))[1]
        self.mark("backward", layer.name, added + working + again.held_bytes)
        if again.layers:
            pending |= {tensor.id: gradient for tensor, gradient in made if tensor.kind == "derived"}
            made = [(tensor, gradient) for tensor, gradient in made if tensor.kind != "derived"]
            now[_TRANSIENT] += again.held_bytes
            for one in again.layers:
                self.node(one, pending, last_use, fused_update)
            now[_TRANSIENT] -= again.held_bytes
        for gradient in given:
            self.release(gradient)
        for key in books.by_layer.get(index, ()):
            if last_use[key] == index:
                saved = books.saved[key]
                if saved.storage is None:
                    now[_SAVED] -= saved.bytes(sizes.batch, sizes.float_bytes)
                elif saved.storage.id in self.live:
                    now[_SAVED] -= self.live.pop(saved.storage.id)
        for tensor, gradient in made:
            self.collect(pending, tensor, gradient, layer.name)
        if fused_update is not None:
            for name in updated:
                now[_OPTIMIZER] += self.missing_state.pop(name, 0)
                self.mark("update", name, fused_update.temporary_per_parameter * sizes.trained[name])
                now[_GRADIENTS] -= self.gradients.pop(name, 0)

    def parameter_gradient(self, tensor: Tensor) -> int:
        """Allocate a parameter's gradient; return the working memory if it is added to one that is there."""
        size = self.sizes.trained[tensor.name]
        if tensor.name in self.gradients:
            return size
        self.gradients[tensor.name] = size
        self.now[_GRADIENTS] += size
        return 0

    def release(self, gradient: _Gradient) -> None:
        gradient.readers -= 1
        if not gradient.readers:
            self.now[_TRANSIENT] -= gradient.bytes

    def collect(self, pending: dict[int, _Gradient], tensor: Tensor, gradient: _Gradient, layer: str) -> None:
        """Hand a gradient to the layer that made the tensor, added to what came from other readers."""
        if tensor.kind == "input":
            self.release(gradient)
        elif tensor.id not in pending:
            pending[tensor.id] = gradient
        elif pending[tensor.id].readers == 1:
            self.release(gradient)
        else:
            first, total = (
                pending[tensor.id],
                _Gradient(tensor.bytes(self.sizes.batch, self.sizes.float_bytes)),
            )
            self.now[_TRANSIENT] += total.bytes
            self.mark("backward", layer)
            self.release(first)
            self.release(gradient)
            pending[tensor.id] = total

    def leave(self) -> None:
        """Drop what the program's variables still hold when the pass is over."""
        for id_ in [id_ for id_ in self.live if id_ not in self.kept]:
            self.now[_TRANSIENT] -= self.live.pop(id_)

    def update_all(self, optimizer: Optimizer) -> None:
        """Make the state that is missing, then update one tensor after the other."""
        self.now[_OPTIMIZER] += sum(self.missing_state.values())
        self.missing_state.clear()
        for name, working in update_working(self.sizes.trained, optimizer):
            self.mark("update", name, working)


def update_working(trained: Mapping[str, int], optimizer: Optimizer) -> Iterator[tuple[str, int]]:
    """Yield each trained tensor's name and the bytes that its update takes for a moment.

    The loop's variable still holds the last temporary of the tensor before. Source: torch/optim/adam.py.
    """
    held = 0
    for name, size in trained.items():
        yield name, optimizer.temporary_per_parameter * size + held
        held = size if optimizer.temporary_per_parameter else 0


def _dying(graph: LayerGraph) -> dict[int, list[int]]:
    """Return the storages that the program's variables drop after each layer."""
    if "dying" not in graph.memo:
        dying: dict[int, list[int]] = {}
        storages = {
            tensor.storage.id: tensor.storage
            for layer in graph.layers
            for tensor in (*layer.outputs, *(t for t in layer.inputs.values() if t.kind == "constant"))
        }
        for storage in storages.values():
            if storage.id not in graph.resident_storages:
                dying.setdefault(storage.held_until, []).append(storage.id)
        graph.memo["dying"] = dying
    return graph.memo["dying"]


def simulate(
    graph: LayerGraph,
    facts: Sequence[Facts],
    wanted: Wanted,
    books: Books,
    sizes: Sizes,
    optimizer: Optimizer,
    passes: int = 1,
    inplace_update: bool = False,
    first_step: bool = False,
) -> list[Moment]:
    """Return the memory of one training step, moment by moment, from before its first layer to after its update.

    passes: forward and backward passes (micro-batches) whose gradients are added before the update. inplace_update:
    each parameter is updated as soon as its gradient is there, which is then freed. first_step: the optimizer has no
    state before the update.
    """
    run = _Simulation(graph, facts, wanted, books, sizes)
    state = {name: optimizer.state_bytes(size) for name, size in sizes.trained.items()}
    run.now[_WEIGHTS], run.now[_BUFFERS] = sizes.weights_bytes, sizes.buffers_bytes
    run.now[_INPUT] = graph.input.bytes(sizes.batch, 4)
    if first_step:
        run.missing_state = state
    else:
        run.now[_OPTIMIZER] = sum(state.values())
    run.mark("start", "")
    # From the second micro-batch on every pass is the same: gradients are there and are added to.
    for _ in range(min(passes, 2)):
        run.forward()
        run.backward(run.loss(), optimizer if inplace_update else None)
        run.leave()
    if not inplace_update:
        run.update_all(optimizer)
    run.now[_GRADIENTS] = 0
    run.mark("end", "")
    return run.moments
