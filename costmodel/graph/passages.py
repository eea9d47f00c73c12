"""Where a network can be cut: the places between two layers that a single tensor passes."""

from __future__ import annotations

from ..kept import kept
from .layer_graph import LayerGraph
from .values import Tensor


@kept
def passages(graph: LayerGraph) -> dict[int, Tensor]:
    """Return, by the index of the layer behind it, the one tensor that passes a place: all else made before is done.

    A tensor that is overwritten later is none, since what comes behind could not start from it again. 0 stands for the
    network's input.
    """
    made = {tensor.id: -1 for tensor in graph.inputs}
    tensors: dict[int, Tensor] = {tensor.id: tensor for tensor in graph.inputs}
    last_read: dict[int, int] = {}
    for layer in graph.layers:
        for tensor in layer.inputs.values():
            if tensor.kind in ("input", "activation", "constant"):
                last_read[tensor.id] = layer.index
        for tensor in layer.outputs:
            if tensor.kind == "activation":
                made[tensor.id], tensors[tensor.id] = layer.index, tensor
    last_read |= {tensor.id: len(graph.layers) for tensor in graph.outputs if tensor.id in made}
    found: dict[int, Tensor] = {}
    alive: set[int] = set()
    starts, ends = _by_value(made), _by_value(last_read)
    for place in range(len(graph.layers)):
        alive |= {id_ for id_ in starts.get(place - 1, ()) if last_read.get(id_, -1) >= place}
        if len(alive) == 1:
            tensor = tensors[next(iter(alive))]
            if tensor.batched and not tensor.overwritten and tensor.elements == tensor.storage.elements:
                found[place] = tensor
        alive -= set(ends.get(place, ()))
    return found


def _by_value(numbers: dict[int, int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for id_, number in numbers.items():
        found.setdefault(number, []).append(id_)
    return found
