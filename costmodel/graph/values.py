"""What a layer graph is made of: storages, tensors, layers, without torch.

A `Layer` is one differentiable call of the forward pass, a `Tensor` one value that a layer reads or makes, a `Storage`
the memory that one or more tensors live in (a view shares its base's; an in-place call writes it again). Element
counts are per image where they grow with the batch (`batched`), else absolute: one trace serves every batch size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..units import BYTES_PER_ELEMENT, FLOAT_BYTES, Count, over_batch
from .learned import Learned

# Assumption: a batch that no real network has as another dimension's divisor by accident; `trace` checks that the size
# of every batched tensor is a multiple of it.
TRACE_BATCH = 97

ADDED = -1  # the ordinal of a layer that no call of the network's own makes


def element_bytes(dtype: str, float_bytes: int = FLOAT_BYTES) -> int:
    """Return the bytes of one element: networks are traced in float32, and compute in `float_bytes`."""
    return float_bytes if dtype == "float32" else BYTES_PER_ELEMENT[dtype]


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

    def bytes(self, batch: Count, float_bytes: int = FLOAT_BYTES) -> Count:
        """Return its bytes at a batch size, floating-point elements taking `float_bytes` each."""
        return over_batch(self.elements * element_bytes(self.dtype, float_bytes), self.batched, batch)


@dataclass(frozen=True, eq=False)
class Tensor:
    """One value of the forward pass.

    `shape` is the traced one: the first dimension of a batched tensor is a multiple of `TRACE_BATCH`. `kind` is
    `input`, `activation`, `parameter`, `derived` (computed from parameters alone) or `constant` (what depends on
    neither: random masks, buffers). `name` is the parameter's or buffer's; of others the layer's that made it.
    `strides` are in elements and the traced ones too; () of a tensor that lies in memory as its dimensions stand.
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
    strides: tuple[int, ...] = ()

    @property
    def overwritten(self) -> bool:
        """Whether a later in-place layer overwrites this value."""
        return self.version < self.storage.writes

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return 8 * BYTES_PER_ELEMENT[self.dtype]

    @property
    def shape_text(self) -> str:
        """The shape with the batch written as N, such as 'N x 16 x 112 x 112'."""
        first, *rest = self.shape or (1,)
        if self.batched:
            windows = first // TRACE_BATCH
            first = "N" if windows == 1 else f"{windows}N"
        return " x ".join(map(str, (first, *rest)))

    def bytes(self, batch: Count, float_bytes: int = FLOAT_BYTES) -> Count:
        """Return the bytes of its own elements (a view's storage may be larger)."""
        return over_batch(self.elements * element_bytes(self.dtype, float_bytes), self.batched, batch)


@dataclass(frozen=True, eq=False)
class Layer:
    """One differentiable call.

    `name` is unique: the module path, followed by the operation where a module makes several calls. `ordinal` counts
    the calls of that operation that the module made before, so that a running network's calls are told apart. `op` is
    the operation's canonical name (`conv2d`, `batch_norm`, `add`, ...). `inputs` maps the argument's role (`input`,
    `weight`, `bias`, `other`, `input.0`, ...) to its tensor, parameters included. `attributes` are the arguments that
    are not tensors. `inplace` layers write the storage of their first input. `in_place_of` is the operation of the
    network's own call where a method has put another operation in its place; layers that a method adds have the ordinal
    `ADDED`. `learned` is what was seen of a call that had no rule when it was traced. `beside` is memory that the
    program took since the layer before for what depends on neither input nor parameters (positions, masks).
    `checkpoint` numbers the part of the network that its own code runs again in backward, if the layer is in one.
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
    learned: Learned | None = None
    beside: tuple[Storage, ...] = ()
    checkpoint: int | None = None

    @property
    def input(self) -> Tensor:
        """The first tensor argument."""
        return next(iter(self.inputs.values()))

    @property
    def output(self) -> Tensor:
        """The first output."""
        return self.outputs[0]

    @property
    def new_storages(self) -> list[Storage]:
        """The memory that may be new when it runs: of results, and of what depends on neither input nor parameters."""
        constants = (tensor for tensor in self.inputs.values() if tensor.kind == "constant")
        return [*self.beside, *(tensor.storage for tensor in (*self.outputs, *constants))]

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
