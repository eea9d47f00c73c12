"""Changing a layer graph: other operations in place of layers, and layers put in between.

A draft is a list of layers in the order of execution: those of the graph (perhaps with another operation or other
arguments) and new ones, whose index is `NEW`. `rebuild` numbers them and works out how long each value is held.
"""

from __future__ import annotations

import math
from dataclasses import replace

from .blocks import Parts
from .layer_graph import LayerGraph
from .values import ADDED, TRACE_BATCH, Layer, Storage, Tensor

NEW = -2


class Draft:
    """Makes the tensors and layers that a rewrite adds to a graph."""

    def __init__(self, graph: LayerGraph):
        self.graph = graph
        self.layers: list[Layer] = []
        self.parameters: dict[str, Tensor] = {}
        tensors = [tensor for layer in graph.layers for tensor in (*layer.outputs, *layer.inputs.values())]
        tensors += [*graph.parameters.values(), *graph.buffers.values(), *graph.inputs]
        self._next_tensor = 1 + max(tensor.id for tensor in tensors)
        self._next_storage = 1 + max(tensor.storage.id for tensor in tensors)

    def tensor(self, shape: tuple[int, ...], kind: str, name: str) -> Tensor:
        """Return a new float32 tensor with memory of its own; an activation's first dimension is the traced batch."""
        batched = kind == "activation"
        elements = math.prod(shape) // (TRACE_BATCH if batched else 1)
        storage = Storage(self._next_storage, elements, "float32", batched, NEW, 0)
        tensor = Tensor(self._next_tensor, shape, elements, "float32", kind, batched, storage, 0, name)
        self._next_tensor += 1
        self._next_storage += 1
        return tensor

    def parameter(self, name: str, *shape: int) -> Tensor:
        """Return a new parameter."""
        self.parameters[name] = self.tensor(shape, "parameter", name)
        return self.parameters[name]

    def add(self, op: str, module: str, inputs: dict[str, Tensor], shape: tuple[int, ...], **attributes) -> Tensor:
        """Append a new layer; return its result of the given shape (with the traced batch)."""
        result = self.tensor(shape, "activation", module)
        self.layers.append(Layer(NEW, module, module, ADDED, op, inputs, (result,), attributes))
        return result

    def keep(self, layer: Layer, substitutes: dict[int, Tensor]) -> None:
        """Append a layer of the graph, reading substitutes of tensors where there are any (by tensor id).

        The result of a view or an in-place layer lives in its substitute's memory, and becomes a substitute itself.
        """
        inputs = {role: substitutes.get(tensor.id, tensor) for role, tensor in layer.inputs.items()}
        moved = {tensor.storage.id: inputs[role] for role, tensor in layer.inputs.items() if tensor.id in substitutes}
        outputs = []
        for tensor in layer.outputs:
            host = moved.get(tensor.storage.id)
            if host is not None:
                version = host.version + layer.inplace
                substitutes[tensor.id] = tensor = replace(
                    tensor, id=self._next_tensor, storage=host.storage, version=version
                )
                self._next_tensor += 1
            outputs.append(tensor)
        self.layers.append(replace(layer, inputs=inputs, outputs=tuple(outputs)))

    def rebuild(self, outputs: tuple[Tensor, ...] | None = None) -> LayerGraph:
        """Return the graph of this draft: layers numbered, lifetimes worked out."""
        graph, end = self.graph, len(self.layers)
        position = {layer.index: i for i, layer in enumerate(self.layers) if layer.index != NEW}
        position |= {-1: -1, len(graph.layers): end}
        held: dict[int, int] = {}  # storage -> the last new position at which something reads it
        writes: dict[int, int] = {}
        for i, layer in enumerate(self.layers):
            for tensor in (*layer.outputs, *layer.inputs.values()):
                writes[tensor.storage.id] = max(writes.get(tensor.storage.id, 0), tensor.version)
                if layer.index == NEW or tensor.storage.held_until == NEW:
                    held[tensor.storage.id] = i
        storages: dict[int, Storage] = {}
        tensors: dict[int, Tensor] = {}

        def moved(tensor: Tensor) -> Tensor:
            if tensor.id not in tensors:
                old = tensor.storage
                if old.id not in storages:
                    before = held.get(old.id, -1)
                    until = before if old.held_until == NEW else max(before, position[old.held_until])
                    storages[old.id] = replace(old, held_until=until, writes=writes.get(old.id, old.writes))
                tensors[tensor.id] = replace(tensor, storage=storages[old.id])
            return tensors[tensor.id]

        layers = tuple(
            replace(
                layer,
                index=i,
                inputs={role: moved(tensor) for role, tensor in layer.inputs.items()},
                outputs=tuple(moved(tensor) for tensor in layer.outputs),
            )
            for i, layer in enumerate(self.layers)
        )
        parameters = {name: moved(tensor) for name, tensor in (graph.parameters | self.parameters).items()}
        buffers = {name: moved(tensor) for name, tensor in graph.buffers.items()}
        finished = tuple(moved(tensor) for tensor in (outputs or graph.outputs))
        return LayerGraph(
            graph.model, graph.resolution, graph.classes, layers, moved(graph.input), finished, parameters, buffers,
            graph.notes, more_inputs=tuple(map(moved, graph.more_inputs)), ends_in_loss=graph.ends_in_loss,
        )  # fmt: skip


def moved_parts(draft: Draft, cut: Parts) -> Parts:
    """Return a network's parts by the draft's own numbers; what is put in belongs to the part before it."""
    position = {layer.index: i for i, layer in enumerate(draft.layers)}
    end = len(draft.layers)

    def starts(index: int) -> int:
        return position.get(index, end)

    blocks = tuple(
        replace(
            block, first=starts(block.first), last=starts(block.last + 1) - 1,
            closing_norms=frozenset(position[i] for i in block.closing_norms),
            squeeze=frozenset(position[i] for i in block.squeeze),
        )
        for block in cut.blocks
    )  # fmt: skip
    return Parts(range(starts(cut.stem.stop)), blocks, range(starts(cut.tail.start), end), position[cut.head])
