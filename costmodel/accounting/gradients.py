"""Which gradients a training step computes: what trains decides, from the first layer to the last."""

from __future__ import annotations

from ..errors import InputError
from ..graph.layer_graph import LayerGraph
from ..methods.assignment import Assignment
from ..rules.facts import Facts
from ..rules.table import facts

Wanted = dict[int, tuple[str, ...]]


def wanted_gradients(graph: LayerGraph, assignment: Assignment) -> tuple[list[Facts], Wanted]:
    """Return every layer's facts, and by layer index the roles of the arguments whose gradient is computed.

    Nothing flows below the earliest trained parameter; a layer that takes no part in an output is left out.

    Errors: UnknownOperationError for a layer without a rule, InputError if nothing trains.
    """
    requires = {graph.parameters[name].id for name in assignment.trained}
    every, wanted = [], {}
    for layer in graph.layers:
        known = facts(graph, layer, layer.index in assignment.frozen_statistics)
        every.append(known)
        roles = tuple(role for role, tensor in layer.inputs.items() if tensor.id in requires and role in known.needs)
        if roles:
            requires.update(tensor.id for tensor in layer.outputs)
            if layer.index in graph.reaches_output:
                wanted[layer.index] = roles
    if not wanted:
        raise InputError(f"nothing of {graph.model} would train: its output depends on no trained parameter")
    return every, wanted
