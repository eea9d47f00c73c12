"""One way to train a network, in certain books: all that its cost depends on but batch, optimizer and precisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .accounting import Books
from .accounting import accounting as find_accounting
from .assignment import Assignment
from .gradients import Wanted, wanted_gradients
from .graph import LayerGraph
from .methods import Trained, assign
from .optimizers import Optimizer
from .rules import Facts
from .timeline import CATEGORIES, Moment, Sizes, simulate
from .traffic import pass_bytes
from .workspaces import workspace as find_workspace

ACTIVATION_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# int8 keeps one float32 scale per output channel. Assumption: symmetric per-channel quantisation.
FROZEN_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class TrainingStep:
    """A method at a depth, worked out: the network that it trains, what trains, and what is kept for backward.

    Nothing here depends on the batch: `sizes`, `saved_bytes`, `flops` and `pass_bytes` take it, as a number or as an
    array of numbers.
    """

    graph: LayerGraph
    method: str
    blocks: int | None
    options: Mapping[str, object]
    accounting: str
    assignment: Assignment
    facts: tuple[Facts, ...]
    wanted: Wanted
    books: Books

    @cached_property
    def trained_parameters(self) -> int:
        """How many numbers train."""
        part = self.assignment.trained_elements
        return sum(part.get(name, self.graph.parameters[name].elements) for name in self.assignment.trained)

    @cached_property
    def is_converted(self) -> bool:
        """Whether the method puts other operations into the network than it was pre-trained with."""
        return any(layer.in_place_of for layer in self.graph.layers)

    @cached_property
    def _flops(self) -> dict[bool, dict[str, int]]:
        """FLOPs by kind: of each image (True), and of each pass whatever its batch (False)."""
        kinds = (
            "forward", "backward_input", "backward_weight", "recompute", "elementwise_forward", "elementwise_backward",
        )  # fmt: skip
        counts = {grows: dict.fromkeys(kinds, 0) for grows in (True, False)}
        for layer, facts in zip(self.graph.layers, self.facts, strict=True):
            count = counts[layer.output.batched]
            count["forward"] += facts.forward_flops
            count["elementwise_forward"] += facts.forward_elementwise
            for role in self.wanted.get(layer.index, ()):
                kind = "backward_input" if layer.inputs[role].kind == "activation" else "backward_weight"
                count[kind] += facts.backward_flops.get(role, 0)
                count["elementwise_backward"] += facts.backward_elementwise.get(role, 0)
        for index in self.books.recomputed:
            count = counts[self.graph.layers[index].output.batched]
            count["recompute"] += self.facts[index].forward_flops
            count["elementwise_backward"] += self.facts[index].forward_elementwise
        return counts

    def flops(self, batch: int, passes: int) -> dict[str, int]:
        """Return the FLOPs of an update of `batch` images in a number of passes, by kind."""
        return {kind: batch * count + passes * self._flops[False][kind] for kind, count in self._flops[True].items()}

    def saved_bytes(self, micro_batch: int, float_bytes: int = 4) -> int:
        """Return the bytes kept by one forward pass for backward: unique storages, the network's input if kept."""
        return sum(saved.bytes(micro_batch, float_bytes) for saved in self.books.saved.values())

    def pass_bytes(self, micro_batch: int, activation_dtype: str = "float32", frozen_dtype: str = "float32") -> int:
        """Return the bytes that one forward and backward pass reads from and writes to memory."""
        return pass_bytes(
            self.graph, self.facts, self.wanted, self.books, self.stored_bytes(frozen_dtype), self.trained_bytes,
            micro_batch, ACTIVATION_BYTES[activation_dtype],
        )  # fmt: skip

    def stored_bytes(self, frozen_dtype: str) -> dict[str, int]:
        """Return the bytes of each parameter as it is kept; frozen vectors (norms, biases) stay in float32."""
        stored = {}
        for name, tensor in self.graph.parameters.items():
            stored[name] = tensor.bytes(1)
            if frozen_dtype != "float32" and name not in self.assignment.trained and len(tensor.shape) >= 2:
                scales = 4 * tensor.shape[0] if frozen_dtype == "int8" else 0
                stored[name] = tensor.elements * FROZEN_BYTES[frozen_dtype] + scales
        return stored

    @cached_property
    def trained_bytes(self) -> dict[str, int]:
        """The bytes of each parameter that gets a gradient, in float32."""
        graph, part = self.graph, self.assignment.trained_elements
        used = {
            tensor.name for index, roles in self.wanted.items()
            for role, tensor in graph.layers[index].inputs.items() if role in roles and tensor.kind == "parameter"
        }  # fmt: skip
        return {name: 4 * part.get(name, tensor.elements) for name, tensor in graph.parameters.items() if name in used}

    def sizes(self, micro_batch: int, activation_dtype: str, frozen_dtype: str, kernels: str | None = None) -> Sizes:
        """Return the step's sizes apart from its layers.

        kernels: whose working memory counts, a name in `costmodel.workspaces` (default: the accounting's own).
        """
        float_bytes = ACTIVATION_BYTES[activation_dtype]
        precisions = (activation_dtype, frozen_dtype)
        if precisions not in self._of_precisions:
            self._of_precisions[precisions] = self._weights(activation_dtype, frozen_dtype)
        weights, buffers, copied = self._of_precisions[precisions]
        working = self._working(
            micro_batch, float_bytes, find_accounting(self.accounting).kernels if kernels is None else kernels
        )
        return Sizes(micro_batch, float_bytes, weights, buffers, self.trained_bytes, copied, working)

    @cached_property
    def _of_precisions(self) -> dict[tuple[str, str], tuple[int, int, dict[int, int]]]:
        """What `_weights` said, by its arguments."""
        return {}

    def _weights(self, activation_dtype: str, frozen_dtype: str) -> tuple[int, int, dict[int, int]]:
        """Return the bytes of all weights, of all buffers, and of each layer's copy of its weights to compute with."""
        graph, float_bytes = self.graph, ACTIVATION_BYTES[activation_dtype]
        stored = self.stored_bytes(frozen_dtype)
        reduced = {name for name, tensor in graph.parameters.items() if stored[name] != tensor.bytes(1)}
        copied = {}
        for layer in graph.layers:
            size = sum(
                tensor.elements * float_bytes
                for role, tensor in layer.inputs.items()
                if role == "weight" and tensor.kind == "parameter" and len(tensor.shape) >= 2
                and (
                    layer.op == "standardized_conv2d"
                    or (tensor.name in reduced and frozen_dtype != activation_dtype)
                    or float_bytes != 4
                )
            )  # fmt: skip
            if size:
                copied[layer.index] = size
        return sum(stored.values()), sum(tensor.bytes(1) for tensor in graph.buffers.values()), copied

    def moments(
        self,
        sizes: Sizes,
        optimizer: Optimizer,
        passes: int = 1,
        inplace_update: bool = False,
        first_step: bool = False,
    ) -> list[Moment]:
        """Return the memory of the step, moment by moment, as `simulate` does or the accounting's own timeline."""
        own = find_accounting(self.accounting).timeline
        if own is None:
            return simulate(
                self.graph, self.facts, self.wanted, self.books, sizes, optimizer, passes, inplace_update, first_step
            )
        batches = np.atleast_1d(sizes.batch).tolist()
        each = [own(self.graph, self.assignment, self.books, batch, sizes.float_bytes) for batch in batches]
        moments = []
        for instants in zip(*each, strict=True):
            phase, layer, _ = instants[0]
            rows = [[by_category.get(name, 0) for _, _, by_category in instants] for name in CATEGORIES]
            by_category = tuple(np.array(rows)) if np.ndim(sizes.batch) else tuple(row[0] for row in rows)
            moments.append(Moment(phase, layer, by_category))
        return moments

    def _working(self, micro_batch, float_bytes: int, kernels: str) -> dict[int, tuple[int, int]]:
        workspace = find_workspace(kernels)
        if kernels == "none":
            return {}
        found = {}
        for layer in self.graph.layers:
            roles = self.wanted.get(layer.index, ())
            packs = any(key[-1] == "mask" for key in self.books.by_layer.get(layer.index, ()))
            if np.ndim(micro_batch):
                both = tuple(np.array([workspace(layer, roles, int(b), float_bytes, packs) for b in micro_batch]).T)
            else:
                both = workspace(layer, roles, micro_batch, float_bytes, packs)
            found[layer.index] = both
        return found


def training_step(
    graph: LayerGraph,
    method: str | None = None,
    blocks: int | None = None,
    accounting: str = "lean",
    *,
    options: Mapping[str, object] | None = None,
    trained: Trained | None = None,
) -> TrainingStep:
    """Return a method (default: full) or a set of trained parameters, worked out; see `footprint` for the arguments."""
    books_of = find_accounting(accounting)
    known = (training_step.__name__, method, type(blocks), blocks, accounting)  # True and 1 are equal
    memoised = trained is None and not options
    if memoised and known in graph.memo:
        return graph.memo[known]
    name, used, assignment = assign(graph, method, blocks, trained, options)
    facts, wanted = wanted_gradients(used, assignment)
    books = books_of.keep(used, assignment, facts, wanted)
    step = TrainingStep(
        used, name, blocks, dict(options or {}), books_of.name, assignment, tuple(facts), wanted, books
    )  # fmt: skip
    if memoised:
        graph.memo[known] = step
    return step
