"""The layer graph: a network's forward pass as a plain value, without torch.

A `Layer` is one differentiable call of the forward pass, a `Tensor` one value that a layer reads or makes, a `Storage`
the memory that one or more tensors live in (a view shares its base's; an in-place call writes it again). Element
counts are per image where they grow with the batch (`batched`), else absolute: one trace serves every batch size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .units import BYTES_PER_ELEMENT

if TYPE_CHECKING:
    import os

    import networkx

# Assumption: a batch that no real network has as another dimension's divisor by accident; `trace` checks that the size
# of every batched tensor is a multiple of it.
TRACE_BATCH = 97

ADDED = -1  # the ordinal of a layer that no call of the network's own makes


@dataclass(frozen=True, eq=False)
class Storage:
    """A piece of memory: `elements` of `dtype` (per image if `batched`).

    `held_until`: index of the last layer during whose call the program's own variables still refer to it (the number
    of layers for the network's outputs). `writes`: how often in-place layers wrote it again.
    """

    id: int
    elements: int
    dtype: str
    batched: bool
    held_until: int
    writes: int

    def bytes(self, batch: int, float_bytes: int = 4) -> int:
        """Return its bytes at a batch size, floating-point elements taking `float_bytes` each."""
        each = float_bytes if self.dtype == "float32" else BYTES_PER_ELEMENT[self.dtype]
        return self.elements * each * (batch if self.batched else 1)


@dataclass(frozen=True, eq=False)
class Tensor:
    """One value of the forward pass.

    `shape` is the traced one: the first dimension of a batched tensor is a multiple of `TRACE_BATCH`. `kind` is
    `input`, `activation`, `parameter`, `derived` (computed from parameters alone) or `constant` (what depends on
    neither: random masks, buffers). `name` is the parameter's or buffer's; of others the layer's that made it.
    """

    id: int
    shape: tuple[int, ...]
    elements: int
    dtype: str
    kind: str
    batched: bool
    storage: Storage
    version: int
    name: str

    @property
    def overwritten(self) -> bool:
        """Whether a later in-place layer overwrites this value."""
        return self.version < self.storage.writes

    @property
    def shape_text(self) -> str:
        """The shape with the batch written as N, such as 'N x 16 x 112 x 112'."""
        first, *rest = self.shape or (1,)
        if self.batched:
            windows = first // TRACE_BATCH
            first = "N" if windows == 1 else f"{windows}N"
        return " x ".join(map(str, (first, *rest)))

    def bytes(self, batch: int, float_bytes: int = 4) -> int:
        """Return the bytes of its own elements (a view's storage may be larger)."""
        each = float_bytes if self.dtype == "float32" else BYTES_PER_ELEMENT[self.dtype]
        return self.elements * each * (batch if self.batched else 1)


@dataclass(frozen=True, eq=False)
class Layer:
    """One differentiable call.

    `name` is unique: the module path, followed by the operation where a module makes several calls. `ordinal` counts
    the calls of that operation that the module made before, so that a running network's calls are told apart. `op` is
    the operation's canonical name (`conv2d`, `batch_norm`, `add`, ...). `inputs` maps the argument's role (`input`,
    `weight`, `bias`, `other`, `input.0`, ...) to its tensor, parameters included. `attributes` are the arguments that
    are no tensors. `inplace` layers write the storage of their first input. `in_place_of` is the operation of the
    network's own call where a method has put another operation in its place; layers that a method adds have the ordinal
    `ADDED`.
    """

    index: int
    name: str
    module: str
    ordinal: int
    op: str
    inputs: dict[str, Tensor]
    outputs: tuple[Tensor, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    inplace: bool = False
    in_place_of: str = ""

    @property
    def input(self) -> Tensor:
        """The first tensor argument."""
        return next(iter(self.inputs.values()))

    @property
    def output(self) -> Tensor:
        """The first output."""
        return self.outputs[0]

    @property
    def is_view(self) -> bool:
        """Whether every output lives in an input's storage without having written it."""
        held = {tensor.storage.id for tensor in self.inputs.values()}
        return not self.inplace and all(tensor.storage.id in held for tensor in self.outputs)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters among the inputs, by role."""
        return {role: tensor for role, tensor in self.inputs.items() if tensor.kind == "parameter"}

    @property
    def call(self) -> tuple[str, str, int]:
        """How a running network's call of this layer is told: module path, its operation, ordinal."""
        return self.module, self.in_place_of or self.op, self.ordinal

    @property
    def location(self) -> str:
        """Where a person finds the call, for messages."""
        return f"{self.op} in {self.module or 'the network itself'}"


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """A traced network: layers in the order of execution, with every parameter and buffer that it has.

    `memo` holds what other modules derived from the graph (rules, blocks), so that further questions are quick.
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
    memo: dict = field(default_factory=dict, repr=False)

    def save(self, path: str | os.PathLike) -> None:
        """Write it to a file. Errors: InputError if that fails."""
        from .store import save

        save(self, path)

    @staticmethod
    def load(path: str | os.PathLike) -> LayerGraph:
        """Return the graph that `save` wrote. Errors: InputError if the file is no trace, damaged or outdated."""
        from .store import load

        return load(path)

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
        """Indices of the layers whose result takes part in an output of the network."""
        alive = {tensor.id for tensor in self.outputs}
        found = set()
        for layer in reversed(self.layers):
            if any(tensor.id in alive for tensor in layer.outputs):
                found.add(layer.index)
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

    @property
    def parameter_count(self) -> int:
        """The number of parameters."""
        return sum(tensor.elements for tensor in self.parameters.values())
