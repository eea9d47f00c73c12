"""A way of training a network, worked out by an accounting: what its cost rests on, however a step is carried out.

Nothing here depends on the batch, the schedule, the precision or the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..graph.layer_graph import LayerGraph
from ..kept import derived, kept
from ..methods.assignment import Assignment
from ..methods.table import assign
from ..methods.way import Way
from ..rules.facts import Facts
from ..rules.table import operation
from ..units import FLOAT_BYTES, Count, over_batch
from .books import Books
from .gradients import Wanted, wanted_gradients
from .table import ACCOUNTINGS

FLOPS_KINDS: tuple[str, ...] = (
    "forward", "backward_input", "backward_weight", "recompute", "elementwise_forward", "elementwise_backward",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Requirements:
    """What a way requires: the network that it trains, what trains, and what is kept for backward.

    accounting: whose books. facts: what the rules say of each layer. wanted: by layer index, the arguments whose
    gradient is computed.
    """

    graph: LayerGraph
    way: Way
    accounting: str
    assignment: Assignment
    facts: tuple[Facts, ...]
    wanted: Wanted
    books: Books

    def __getstate__(self) -> dict:
        """Leave what was derived out of pickles and copies."""
        own = derived(self)
        return {name: value for name, value in self.__dict__.items() if name not in own}

    @cached_property
    def trained_parameters(self) -> int:
        """How many numbers train."""
        part = self.assignment.trained_elements
        return sum(part.get(name, self.graph.parameters[name].elements) for name in self.assignment.trained)

    @cached_property
    def values_per_norm(self) -> int | None:
        """How many numbers of one image the smallest batch norm takes each mean and deviation of.

        Of those with batch statistics; None if there are none.
        """
        frozen = self.assignment.frozen_statistics
        seen = [
            layer.input.elements // layer.input.shape[1]
            for layer in self.graph.layers
            if layer.op == "batch_norm" and layer.input.batched
            and operation(layer, layer.index in frozen) == "batch_norm"
        ]  # fmt: skip
        return min(seen, default=None)

    @cached_property
    def trained_elements(self) -> dict[str, int]:
        """How many numbers get a gradient, of each parameter that gets one."""
        graph, part = self.graph, self.assignment.trained_elements
        used = {
            tensor.name for index, roles in self.wanted.items()
            for role, tensor in graph.layers[index].inputs.items() if role in roles and tensor.kind == "parameter"
        }  # fmt: skip
        return {name: part.get(name, tensor.elements) for name, tensor in graph.parameters.items() if name in used}

    @cached_property
    def is_converted(self) -> bool:
        """Whether the method puts other operations into the network than it was pre-trained with."""
        return any(layer.in_place_of for layer in self.graph.layers)

    def saved_bytes(self, micro_batch: Count, float_bytes: int = FLOAT_BYTES) -> Count:
        """Return the bytes kept by one forward pass for backward: unique storages, the network's input if kept."""
        total = over_batch(0, False, micro_batch)
        for saved in self.books.saved.values():
            total = total + saved.bytes(micro_batch, float_bytes)
        return total

    def flops(self, batch: Count, passes: Count) -> dict[str, Count]:
        """Return the FLOPs of an update of `batch` images in a number of passes, by kind (`FLOPS_KINDS`)."""
        each, once = self._flops
        return {kind: batch * each[kind] + (passes * once[kind] if once[kind] else 0) for kind in FLOPS_KINDS}

    @cached_property
    def _flops(self) -> tuple[dict[str, int], dict[str, int]]:
        return self.flops_of(range(len(self.graph.layers)))

    def flops_of(self, part: range) -> tuple[dict[str, int], dict[str, int]]:
        """Return the FLOPs of some layers by kind: of each image, and of each pass whatever its batch."""
        each, once = dict.fromkeys(FLOPS_KINDS, 0), dict.fromkeys(FLOPS_KINDS, 0)
        for index in part:
            layer, facts = self.graph.layers[index], self.facts[index]
            count = each if layer.output.batched else once
            count["forward"] += facts.forward_flops
            count["elementwise_forward"] += facts.forward_elementwise
            roles = self.wanted.get(layer.index, ())
            for role, flops in facts.backward_flops_of(roles).items():
                kind = "backward_input" if layer.inputs[role].kind == "activation" else "backward_weight"
                count[kind] += flops
            count["elementwise_backward"] += sum(facts.backward_elementwise.get(role, 0) for role in roles)
        for index in filter(part.__contains__, self.books.recomputed):
            count = each if self.graph.layers[index].output.batched else once
            count["recompute"] += self.facts[index].forward_flops
            count["elementwise_backward"] += self.facts[index].forward_elementwise
        return each, once


@kept
def requirements(graph: LayerGraph, way: Way, accounting: str) -> Requirements:
    """Return what a way of training a network requires, by an accounting's books.

    Errors: InputError where the network lacks what the way needs; UnknownOperationError for a layer without a rule.
    """
    used, assignment = assign(graph, way)
    facts, wanted = wanted_gradients(used, assignment)
    books = ACCOUNTINGS.find(accounting).keep(used, assignment, facts, wanted)
    return Requirements(used, way, accounting, assignment, tuple(facts), wanted, books)
