"""The layer graph: a network's forward pass as a plain value, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..kept import derived
from . import store
from .values import TRACE_BATCH, Layer, Tensor

if TYPE_CHECKING:
    import os

    import networkx

    from .blocks import Parts


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """A traced network: layers in the order of execution, with every parameter and buffer that it has.

    `known_parts`: its blocks, where a rewrite put layers into it that would hide them. `more_inputs`: what it is given
    beside `input`, its loss included. `ends_in_loss`: whether the layers end in the loss itself.
    """

    model: str
    resolution: int
    classes: int
    layers: tuple[Layer, ...]
    input: Tensor
    outputs: tuple[Tensor, ...]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    known_parts: Parts | None = None
    more_inputs: tuple[Tensor, ...] = ()
    ends_in_loss: bool = False

    def save(self, path: str | os.PathLike) -> None:
        """Write it to a file, whole or not at all.

        Errors: InputError if it cannot be written, or if a layer's argument is not a plain value.
        """
        store.write_graph(self, path)

    @staticmethod
    def load(path: str | os.PathLike) -> LayerGraph:
        """Return the graph that `save` wrote.

        Errors: InputError if the file cannot be read, is not a trace, is damaged, or has another format.
        """
        return LayerGraph(**store.read_fields(path))

    def __getstate__(self) -> dict:
        """Leave what was derived out of pickles and copies."""
        own = derived(self)
        return {name: value for name, value in self.__dict__.items() if name not in own}

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All that the network, and its loss if it ends in one, is given."""
        return self.input, *self.more_inputs

    @property
    def classifies(self) -> bool:
        """Whether it gives each image one row of numbers, one for each class; not so a segmenter or a detector."""
        return any(len(tensor.shape) == 2 and tensor.batched for tensor in self.outputs)

    @property
    def input_label(self) -> str:
        """The sizes of one example, for people: '224x224' of square images, else such as '3x320x240, 10'."""
        sizes = [[each for each in tensor.shape if not tensor.batched or each % TRACE_BATCH] for tensor in self.inputs]
        if len(self.input.shape) == 4 and self.input.shape[2] == self.input.shape[3] and not self.more_inputs:
            sizes = [self.input.shape[2:]]
        return ", ".join("x".join(map(str, each)) or "1" for each in sizes)

    @cached_property
    def producer(self) -> dict[int, Layer]:
        """The layer that made each tensor, by the tensor's id."""
        return {tensor.id: layer for layer in self.layers for tensor in layer.outputs}

    @cached_property
    def consumers(self) -> dict[int, tuple[Layer, ...]]:
        """The layers that read each tensor, by the tensor's id."""
        readers: dict[int, list[Layer]] = {}
        for layer in self.layers:
            for id_ in {tensor.id for tensor in layer.inputs.values()}:
                readers.setdefault(id_, []).append(layer)
        return {id_: tuple(layers) for id_, layers in readers.items()}

    @cached_property
    def digraph(self) -> networkx.DiGraph:
        """The layers as nodes (by index; -1 is the network's input), the tensors between them as edges."""
        import networkx

        graph = networkx.DiGraph()
        graph.add_node(-1, layer=None)
        for layer in self.layers:
            graph.add_node(layer.index, layer=layer)
            for tensor in layer.inputs.values():
                if tensor.kind in ("input", "activation"):
                    source = self.producer.get(tensor.id)
                    graph.add_edge(source.index if source else -1, layer.index, tensor=tensor)
        return graph

    @cached_property
    def reaches_output(self) -> frozenset[int]:
        """Indices of the layers from which a gradient of an output of the network could flow back."""
        alive = {tensor.id for tensor in self.outputs}
        found = set()
        for layer in reversed(self.layers):
            if any(tensor.id in alive for tensor in layer.outputs):
                found.add(layer.index)
                if "cut_off" not in layer.attributes:
                    alive.update(tensor.id for tensor in layer.inputs.values())
        return frozenset(found)

    @cached_property
    def resident_storages(self) -> frozenset[int]:
        """Storages that training holds in any case: those of parameters and buffers."""
        return frozenset(tensor.storage.id for tensor in (*self.parameters.values(), *self.buffers.values()))

    def derivation(self, tensor: Tensor) -> list[Layer]:
        """Return the layers that compute a tensor from parameters; none where it is a parameter, or a view of one."""
        if tensor.kind != "derived" or tensor.storage.id in self.resident_storages:
            return []
        found, open_tensors = {}, [tensor]
        while open_tensors:
            producer = self.producer.get(open_tensors.pop().id)
            if producer is not None and producer.index not in found:
                found[producer.index] = producer
                open_tensors += producer.inputs.values()
        return list(found.values())

    @cached_property
    def weight_computations(self) -> frozenset[int]:
        """Indices of the layers that compute convolutions' weights from parameters, and nothing else."""
        computing: set[int] = set()
        weights: set[int] = set()
        for layer in self.layers:
            weight = layer.inputs.get("weight")
            if layer.op in ("conv1d", "conv2d", "conv3d") and weight is not None:
                weights.add(layer.index)
                computing.update(each.index for each in self.derivation(weight))

        def is_read_elsewhere(index: int) -> bool:
            made = {tensor.id for tensor in self.layers[index].outputs}
            readers = {reader for id_ in made for reader in self.consumers.get(id_, ())}
            beside = {reader.index for reader in readers for role, t in reader.inputs.items() if t.id in made and (
                reader.index not in computing and (reader.index not in weights or role != "weight"))}  # fmt: skip
            return bool(beside)

        elsewhere = {index for index in computing if is_read_elsewhere(index)}
        while elsewhere:  # what such a layer reads is there in any case, and is no secret of the weight either
            computing -= elsewhere
            elsewhere = {index for index in computing if is_read_elsewhere(index)}
        return frozenset(computing)

    @property
    def parameter_count(self) -> int:
        """The number of parameters."""
        return sum(tensor.elements for tensor in self.parameters.values())
