"""One training step as allocations and frees.

The order is PyTorch's. Forward: a layer allocates its results and what it keeps; a value that nothing keeps is freed
when the program's variables drop it. Backward runs the layers from the last to the first; each allocates the
gradients that are wanted, then frees the gradient it was given and what it kept. A second gradient of the same tensor
is added in place where the first has no other reader and is no view (which holds what it is a view of). Source:
torch/csrc/autograd/engine.cpp, input_buffer.cpp.

Update: one tensor at a time. Gradients are freed at the end (`zero_grad(set_to_none=True)`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple

import numpy as np

from ..accounting.books import Key
from ..accounting.requirements import Requirements
from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer, Tensor
from ..kept import kept
from ..rules.facts import Dense
from ..units import FLOAT_BYTES, Count
from .optimizers import Optimizer
from .regions import Regions
from .segments import RANDOM_STATE_BYTES, Segment
from .sizes import Sizes

CATEGORIES = ("weights", "buffers", "input", "saved_activations", "gradients", "optimizer", "transient")
WEIGHTS, BUFFERS, INPUT, SAVED, GRADIENTS, OPTIMIZER, TRANSIENT = range(len(CATEGORIES))


class Moment(NamedTuple, Generic[Count]):
    """Memory at one point of the step: bytes by category, while `layer` ran in `phase`."""

    phase: str
    layer: str
    by_category: Sequence[Count]

    @property
    def total_bytes(self) -> Count:
        """All categories together."""
        return sum(self.by_category)  # pyright: ignore[reportReturnType]  # there is always one


class Gradient:
    """A gradient's memory and how many readers it still has; base: the gradient that it is a view of, which stays."""

    __slots__ = ("base", "bytes", "readers")

    def __init__(self, size: Any, base: Gradient | None = None):
        self.bytes, self.readers, self.base = size, 1, base


class _Again(NamedTuple):
    """A weight that is computed from parameters again: by layers whose backward runs within that of the one it is for.

    made_bytes: of all that is made on the way; held_bytes: of what stays until the backward is over.
    """

    layers: list[int]
    made_bytes: int
    held_bytes: int


_NOTHING_AGAIN = _Again([], 0, 0)


@kept
def _derives(required: Requirements) -> bool:
    """Whether the network computes a weight from its parameters."""
    return any(layer.output.kind == "derived" for layer in required.graph.layers)


class Simulation(Generic[Count]):
    """One step, from its first allocation to its last.

    `now` holds the bytes by category; where many batches are simulated at once, a row of numbers each.
    """

    def __init__(
        self, required: Requirements, sizes: Sizes[Count], optimizer: Optimizer, cut: Regions,
        piece: Sizes | None = None, part: range | None = None,
    ):  # fmt: skip
        self.required, self.sizes, self.optimizer = required, sizes, optimizer
        self.cut, self.piece = cut, piece
        self.graph, self.books = required.graph, required.books
        batch = sizes.batch
        several = isinstance(batch, np.ndarray)
        self.now: Any = np.zeros((len(CATEGORIES), batch.size), np.int64) if several else [0] * len(CATEGORIES)
        self.several = several
        self.moments: list[Moment[Count]] = []
        self.kept, self.releases = self._kept(part)
        self.live: dict[int, Any] = {}  # activations in memory: storage -> bytes
        self.gradients: dict[str, int] = {}
        self.missing_state: dict[str, int] = {}  # optimizer state that the first update allocates
        self.again = self._again()

    def _kept(self, part: range | None) -> tuple[set[int], dict[int, list[Key | int]]]:
        """Return the storages that are kept from forward to backward, and what the backward of each layer frees.

        part: of which layers, if not of all. What a segment's layers keep is there only when it has run again; its
        input is kept for all of it.
        """
        segment_of = self.cut.segment_of
        last: dict[Key | int, int] = {}  # a storage stands for itself, what has none for its key

        def until(what: Key | int, index: int) -> None:
            last[what] = min(last.get(what, index), index)

        releases: dict[int, list[Key | int]] = {}
        by_layer = self.books.by_layer
        keys = self.books.saved if part is None else dict.fromkeys(k for index in part for k in by_layer.get(index, ()))
        for key in keys:
            saved = self.books.saved[key]
            inside: dict[int, int] = {}  # by segment's first layer
            for index in saved.uses:
                segment = segment_of.get(index)
                if segment is not None and key in segment.absent:
                    inside[segment.first] = min(inside.get(segment.first, index), index)
                else:
                    until(key if saved.storage is None else saved.storage.id, index)
            for index in inside.values():
                releases.setdefault(index, []).append(key if saved.storage is None else saved.storage.id)
        for segment in self.cut.segments:
            for tensor in segment.inputs if segment.runs_again else ():
                until(tensor.storage.id, segment.release)
        for what, index in last.items():
            releases.setdefault(index, []).append(what)
        return {what for what in last if isinstance(what, int)}, releases

    def _again(self) -> dict[int, _Again]:
        """Return by layer how its weight is computed from parameters again in its backward."""
        graph, wanted, found = self.graph, self.required.wanted, {}
        if not _derives(self.required):
            return {}
        gone = self.kept | graph.resident_storages
        for index, roles in wanted.items():
            weight = graph.layers[index].inputs.get("weight")
            if weight is None or weight.storage.id in self.kept or not {"input", "weight"} & {*roles}:
                continue
            chain = graph.derivation(weight)
            if not chain or not graph.weight_computations.issuperset(layer.index for layer in chain):
                continue
            inner = sorted((layer.index for layer in chain if layer.index in wanted), reverse=True)
            if "weight" not in roles or len(graph.consumers[weight.id]) > 1:
                inner = []
            needs = [self.required.facts[one].needs[role][0] for one in inner for role in wanted[one]]
            needed = [item.tensor for alternative in needs for item in alternative if isinstance(item, Dense)]
            made = [tensor for layer in chain for tensor in layer.outputs]
            held = [weight, *(tensor for tensor in needed if tensor.kind == "derived")]
            made_bytes, held_bytes = (
                sum({t.storage.id: t.bytes(1) for t in tensors if t.storage.id not in gone}.values())
                for tensors in (made, held)
            )
            found[index] = _Again(inner, made_bytes, held_bytes)
        return found

    def start(self, state: dict[str, int], first_step: bool, cached: tuple[int, int] = (0, 0)) -> None:
        """Fill in what is there before the step.

        cached: bytes of the weights and of the buffers that are needed to fill a cache, and by no step.
        """
        now, sizes = self.now, self.sizes
        now[WEIGHTS], now[BUFFERS] = sizes.weights_bytes, sizes.buffers_bytes
        now[INPUT] = sum(tensor.bytes(sizes.batch, FLOAT_BYTES) for tensor in self.graph.inputs)
        if first_step:
            self.missing_state = state
        else:
            now[OPTIMIZER] = sum(state.values())
        if self.cut.cached:
            output = self.cut.prefix_output
            assert output is not None  # what is cached
            self.fill(output)
            now[WEIGHTS] -= cached[0]
            now[BUFFERS] -= cached[1]
            now[INPUT] = output.bytes(sizes.batch, FLOAT_BYTES)
            self.live[output.storage.id] = 0  # it is the step's input
        self.mark("start", "")

    def mark(self, phase: str, layer: str, extra: Any = 0) -> None:
        """Note the memory now, with `extra` bytes of working memory."""
        self.now[TRANSIENT] += extra
        self.moments.append(Moment(phase, layer, self.now.copy() if self.several else tuple(self.now)))
        self.now[TRANSIENT] -= extra

    def forward(self) -> None:
        """Run the whole forward pass."""
        self.live |= {tensor.storage.id: 0 for tensor in self.graph.inputs}  # they have a category of their own
        if self.cut.prefix and not self.cut.cached:
            self.prefix()
        self.run(range(self.cut.prefix, len(self.graph.layers)))

    def run(self, part: range) -> None:
        """Run the forward pass of some layers."""
        now, sizes, live, kept = self.now, self.sizes, self.live, self.kept
        batch, float_bytes = sizes.batch, sizes.float_bytes
        dying = _dying(self.graph)
        allocated_first_here: set = set()
        for layer in self.graph.layers[part.start : part.stop]:
            again = self.cut.segment_of.get(layer.index)
            if again is not None and again.first == layer.index:
                now[TRANSIENT] += again.held_bytes
            for storage in layer.new_storages:
                if storage.id not in live and storage.id not in self.graph.resident_storages:
                    live[storage.id] = size = storage.bytes(batch, float_bytes)
                    now[SAVED if storage.id in kept else TRANSIENT] += size
            for key in self.books.by_layer.get(layer.index, ()):
                saved = self.books.saved[key]
                in_place = again is None or key not in again.absent
                if saved.storage is None and in_place and key not in allocated_first_here:
                    allocated_first_here.add(key)
                    now[SAVED] += saved.bytes(batch, float_bytes)
            working = sizes.copied.get(layer.index, 0) + sizes.working.get(layer.index, (0, 0))[0]
            if layer.checkpoint is not None and again is None:  # nothing runs again, but that is known only afterwards
                working += RANDOM_STATE_BYTES
            self.mark("forward", layer.name, working + self.cloned(layer, again))
            for id_ in dying.get(layer.index, ()):
                if id_ in live and id_ not in kept:
                    now[TRANSIENT] -= live.pop(id_)

    def cloned(self, layer: Layer, segment: Segment | None) -> Any:
        """Return the bytes of the copy of its input that a layer makes for backward, where that is dropped at once."""
        if segment is None or layer.index not in segment.not_cloned:
            return 0
        return layer.input.bytes(self.sizes.batch, self.sizes.float_bytes)

    def prefix(self) -> None:
        """Run the frozen prefix piece by piece: the first one as the network does, the others as recorded."""
        now, sizes, piece, end = self.now, self.sizes, self.piece, self.cut.prefix
        output = self.cut.prefix_output
        assert piece is not None and output is not None  # where there is a prefix
        several = bool(np.any(np.asarray(sizes.batch) > piece.batch))
        for as_recorded in (False, True)[: 1 + several]:
            dying = _dying_inside(self.graph, tuple(range(end))) if as_recorded else _dying(self.graph)
            live = self.one_piece("forward", piece, dying, output)
            if not as_recorded:  # the results of all pieces are collected in one place
                self.live[output.storage.id] = size = output.storage.bytes(sizes.batch, piece.float_bytes)
                now[SAVED if output.storage.id in self.kept else TRANSIENT] += size
                self.mark("forward", "the prefix's results")
            now[TRANSIENT] -= sum(live.values())

    def one_piece(
        self, phase: str, piece: Sizes, dying: Mapping[int, Sequence[int]], output: Tensor
    ) -> dict[int, Any]:  # fmt: skip
        """Run the prefix for one piece; return what is left in memory, by storage, the output among it."""
        now, live = self.now, {tensor.storage.id: 0 for tensor in self.graph.inputs}
        for layer in self.graph.layers[: self.cut.prefix]:
            for tensor in layer.outputs:
                storage = tensor.storage
                if storage.id not in live and storage.id not in self.graph.resident_storages:
                    live[storage.id] = size = storage.bytes(piece.batch, piece.float_bytes)
                    now[TRANSIENT] += size
            self.mark(phase, layer.name, piece.copied.get(layer.index, 0) + piece.working.get(layer.index, (0, 0))[0])
            for id_ in dying.get(layer.index, ()):
                now[TRANSIENT] -= live.pop(id_, 0) if id_ != output.storage.id else 0
        return live

    def fill(self, output: Tensor) -> None:
        """Run the prefix for a piece of the images, whose output is stored, before any step."""
        assert self.piece is not None  # where there is a prefix
        live = self.one_piece("fill", self.piece, _dying(self.graph), output)
        self.now[TRANSIENT] -= sum(live.values())

    def recompute(self, segment: Segment) -> None:
        """Run a segment again, keeping what its layers keep."""
        self.again_from(segment.rerun, segment.absent - segment.dropped, segment)

    def again_from(self, indices: Sequence[int], keys: Collection[Key], segment: Segment | None = None) -> None:
        """Run layers again, keeping some of what they make; what is there already stays.

        segment: it runs as a whole; else, what is kept of a value is the value itself, and no copy.
        """
        now, sizes, live = self.now, self.sizes, self.live
        dying = _dying_inside(self.graph, tuple(indices))
        before = set(live)
        kept = {saved.storage.id for key in keys if (saved := self.books.saved[key]).storage is not None}
        there: set[Key] = set()
        for layer in (self.graph.layers[index] for index in indices):
            value = Key("value", layer.output.id)
            if segment is None and value in keys:
                now[SAVED] += self.books.saved[value].bytes(sizes.batch, sizes.float_bytes)
                self.mark("recompute", layer.name)
                continue
            for tensor in (*layer.outputs, *(t for t in layer.inputs.values() if t.kind == "constant")):
                storage = tensor.storage
                if storage.id not in live and storage.id not in self.graph.resident_storages:
                    live[storage.id] = size = storage.bytes(sizes.batch, sizes.float_bytes)
                    now[SAVED if storage.id in kept else TRANSIENT] += size
            for key in self.books.by_layer.get(layer.index, ()):
                saved = self.books.saved[key]
                if saved.storage is None and key in keys and key not in there:
                    there.add(key)
                    now[SAVED] += saved.bytes(sizes.batch, sizes.float_bytes)
            working = sizes.copied.get(layer.index, 0) + sizes.working.get(layer.index, (0, 0))[0]
            working += 0 if segment is None else segment.held_bytes
            self.mark("recompute", layer.name, working + self.cloned(layer, segment))
            for id_ in dying.get(layer.index, ()):
                if id_ in live and id_ not in kept and id_ not in before:
                    now[TRANSIENT] -= live.pop(id_)

    def loss(self) -> dict[int, Gradient]:
        """Cross-entropy: log-probabilities kept, then their gradient, then that of the outputs.

        Nothing holds the outputs when the loss is there, as in `loss = criterion(network(images), labels)`.
        """
        now, sizes = self.now, self.sizes
        if self.graph.ends_in_loss:  # its own layers compute it; backward starts from a one
            self.mark("loss", "forward")
            return {each.id: Gradient(each.bytes(sizes.batch, sizes.float_bytes)) for each in self.graph.outputs}
        outputs = [tensor for tensor in self.graph.outputs if tensor.kind == "activation"]
        pending = {tensor.id: Gradient(tensor.bytes(sizes.batch, sizes.float_bytes)) for tensor in outputs}
        size = sum(tensor.bytes(sizes.batch, sizes.float_bytes) for tensor in outputs)
        now[TRANSIENT] += size
        self.mark("loss", "forward")
        for id_ in {tensor.storage.id for tensor in self.graph.outputs}:
            if id_ not in self.kept:
                now[TRANSIENT] -= self.live.pop(id_, 0)
        # One result after the other.
        largest = max(outputs, key=lambda tensor: tensor.elements).bytes(sizes.batch, sizes.float_bytes)
        now[TRANSIENT] += 2 * largest
        self.mark("loss", "backward")
        now[TRANSIENT] -= 2 * largest
        return pending

    def backward(self, pending: dict[int, Gradient], in_place: bool, part: range | None = None) -> None:
        """Run the backward of every layer (of a part, if one is given), the last first; in_place: with updates."""
        inner = {index for again in self.again.values() for index in again.layers}
        wanted = self.required.wanted
        for index in reversed(wanted if part is None else [index for index in part if index in wanted]):
            if index not in inner:
                self.node(index, pending, in_place)

    def node(self, index: int, pending: dict[int, Gradient], in_place: bool) -> None:
        """Run the backward of one layer, and within it that of the layers that make its weight again."""
        now, layer = self.now, self.graph.layers[index]
        segment = self.cut.segment_of.get(index)
        if segment is not None and segment.runs_again and segment.stop == index:
            self.recompute(segment)
        for demand in segment.demands.get(index, ()) if segment is not None else ():
            self.again_from(demand.layers, demand.keys)
        given = [pending.pop(tensor.id) for tensor in layer.outputs if tensor.id in pending]
        again = self.again.get(index, _NOTHING_AGAIN)
        if again.made_bytes:
            self.mark("backward", layer.name, again.made_bytes)
        made, updated, added = self.allocate_gradients(index, given)
        working = self.sizes.copied.get(index, 0) + self.sizes.working.get(index, (0, 0))[1]
        self.mark("backward", layer.name, added + working + again.held_bytes)
        if again.layers:
            pending |= {tensor.id: gradient for tensor, gradient in made if tensor.kind == "derived"}
            made = [(tensor, gradient) for tensor, gradient in made if tensor.kind != "derived"]
            now[TRANSIENT] += again.held_bytes
            for one in again.layers:
                self.node(one, pending, in_place)
            now[TRANSIENT] -= again.held_bytes
        for gradient in given:
            self.release(gradient)
        self.free_saved(index)
        if segment is not None and segment.release == index:
            now[TRANSIENT] -= segment.held_bytes
        for tensor, gradient in made:
            self.collect(pending, tensor, gradient, layer.name)
        for name in updated if in_place else ():
            now[OPTIMIZER] += self.missing_state.pop(name, 0)
            self.mark("update", name, self.optimizer.temporary_per_parameter * self.sizes.trained[name])
            now[GRADIENTS] -= self.gradients.pop(name, 0)

    def allocate_gradients(
        self, index: int, given: list[Gradient]
    ) -> tuple[list[tuple[Tensor, Gradient]], list[str], int]:
        """Allocate the gradients that a layer computes from those it was given.

        Return those of activations, the names of the parameters that got theirs, and the working memory of adding to
        gradients that are there already.
        """
        layer, facts = self.graph.layers[index], self.required.facts[index]
        made: list[tuple[Tensor, Gradient]] = []
        updated: list[str] = []
        added = 0
        for role in self.required.wanted[index]:
            tensor = layer.inputs[role]
            if tensor.kind == "parameter":
                added += self.parameter_gradient(tensor)
                updated.append(tensor.name)
            elif role in facts.passes_gradient and len(given) == 1:
                given[0].readers += 1
                made.append((tensor, Gradient(0, given[0]) if facts.views_gradient else given[0]))
            else:
                gradient = Gradient(tensor.bytes(self.sizes.batch, self.sizes.float_bytes))
                self.now[TRANSIENT] += gradient.bytes
                made.append((tensor, Gradient(0, gradient) if facts.views_gradient else gradient))
        return made, updated, added

    def parameter_gradient(self, tensor: Tensor) -> int:
        """Allocate a parameter's gradient; return the working memory if it is added to one that is there."""
        size = self.sizes.trained[tensor.name]
        if tensor.name in self.gradients:
            return size
        self.gradients[tensor.name] = size
        self.now[GRADIENTS] += size
        return 0

    def free_saved(self, index: int) -> None:
        """Free what was kept for a layer and for none before it."""
        for what in self.releases.get(index, ()):
            if isinstance(what, Key):
                self.now[SAVED] -= self.books.saved[what].bytes(self.sizes.batch, self.sizes.float_bytes)
            elif what in self.live:
                self.now[SAVED] -= self.live.pop(what)

    def release(self, gradient: Gradient) -> None:
        """Note that a reader of a gradient is done; the last one frees it."""
        gradient.readers -= 1
        if not gradient.readers:
            self.now[TRANSIENT] -= gradient.bytes
            if gradient.base is not None:
                self.release(gradient.base)

    def collect(self, pending: dict[int, Gradient], tensor: Tensor, gradient: Gradient, layer: str) -> None:
        """Hand a gradient to the layer that made the tensor, added to what came from other readers."""
        if tensor.kind == "input":
            self.release(gradient)
        elif tensor.id not in pending:
            pending[tensor.id] = gradient
        elif pending[tensor.id].readers == 1 and pending[tensor.id].base is None:
            self.release(gradient)
        else:
            first, total = pending[tensor.id], Gradient(tensor.bytes(self.sizes.batch, self.sizes.float_bytes))
            self.now[TRANSIENT] += total.bytes
            self.mark("backward", layer)
            self.release(first)
            self.release(gradient)
            pending[tensor.id] = total

    def leave(self) -> None:
        """Drop what the program's variables still hold when the pass is over."""
        for id_ in [id_ for id_ in self.live if id_ not in self.kept]:
            self.now[TRANSIENT] -= self.live.pop(id_)

    def update_all(self) -> None:
        """Make the state that is missing, then update one tensor after the other."""
        self.now[OPTIMIZER] += sum(self.missing_state.values())
        self.missing_state.clear()
        for name, working in update_working(self.sizes.trained, self.optimizer):
            self.mark("update", name, working)


def update_working(trained: Mapping[str, int], optimizer: Optimizer) -> Iterator[tuple[str, int]]:
    """Yield each trained tensor's name and the bytes that its update takes for a moment.

    The loop's variable still holds the last temporary of the tensor before. Source: torch/optim/adam.py.
    """
    held = 0
    for name, size in trained.items():
        yield name, optimizer.temporary_per_parameter * size + held
        held = size if optimizer.temporary_per_parameter else 0


@kept
def _dying(graph: LayerGraph) -> dict[int, list[int]]:
    """Return the storages that the program's variables drop after each layer."""
    dying: dict[int, list[int]] = {}
    storages = {storage.id: storage for layer in graph.layers for storage in layer.new_storages}
    for storage in storages.values():
        if storage.id not in graph.resident_storages:
            dying.setdefault(storage.held_until, []).append(storage.id)
    return dying


@kept
def _dying_inside(graph: LayerGraph, indices: tuple[int, ...]) -> dict[int, list[int]]:
    """Return the storages that some layers make or read, by the layer after which none of these reads them."""
    last_read: dict[int, int] = {}
    for layer in (graph.layers[index] for index in indices):
        for tensor in (*layer.outputs, *layer.inputs.values()):
            if tensor.kind in ("activation", "constant", "derived"):
                last_read[tensor.storage.id] = layer.index
    dying: dict[int, list[int]] = {}
    for id_, index in last_read.items():
        dying.setdefault(index, []).append(id_)
    return dying
