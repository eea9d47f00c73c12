"""What an accounting hands on: the saved tensors of a training step, and the temporary memory of each layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..assignment import Assignment
from ..gradients import Wanted
from ..graph import Layer, LayerGraph, Storage, Tensor
from ..rules import Dense, Facts, Private
from ..units import BYTES_PER_ELEMENT, bytes_of_bits

Key = tuple


@dataclass(frozen=True, slots=True)
class Saved:
    """One piece of memory kept from forward to backward.

    what: 'input', 'output', 'mask', ... as the layer that keeps it first sees it. follows_precision: a floating-point
    activation, whose bits are those of the activations' precision. storage: the graph's storage if an activation
    itself is kept, else None (a mask, statistics, a clone). uses: by layer index, the roles whose gradient needs it.
    extra_bits: beside the elements (which of them they are), with the same batch.
    """

    key: Key
    what: str
    shape: str
    elements: int
    bits: int
    batched: bool
    follows_precision: bool
    storage: Storage | None
    uses: dict[int, tuple[str, ...]] = field(default_factory=dict)
    extra_bits: int = 0

    def total_bits(self, batch: int, float_bytes: int = 4) -> int:
        """Return its bits over the whole batch."""
        bits = 8 * float_bytes if self.follows_precision else self.bits
        return (self.elements * bits + self.extra_bits) * (batch if self.batched else 1)

    def bytes(self, batch: int, float_bytes: int = 4) -> int:
        """Return its bytes; bits are packed over the whole batch."""
        return bytes_of_bits(self.total_bits(batch, float_bytes))


@dataclass(frozen=True)
class Books:
    """The books of one training step.

    saved: everything kept for backward, the network's input included. by_layer: the keys that each layer's backward
    uses. recomputed: indices of the layers that run again in backward.
    """

    saved: dict[Key, Saved]
    by_layer: dict[int, list[Key]]
    recomputed: tuple[int, ...] = ()


# One moment of an accounting's own timeline: phase, layer, bytes by category (those that it leaves out are 0).
Instant = tuple[str, str, dict[str, int]]


@dataclass(frozen=True)
class Accounting:
    """A way of keeping the books: `keep` turns the wanted gradients into what is stored.

    kernels: the working memory that it counts, a name in `costmodel.workspaces`. timeline: (graph, assignment, books,
    batch, bytes of one float) -> its own moments, where these are not a whole training step; what such books say of
    optimizers, micro-batches' gradients and frozen weights' precision is theirs, whatever is asked for. leaves_out:
    what a reader must not look for in them.
    """

    name: str
    summary: str
    source: str
    keep: Callable[[LayerGraph, Assignment, list[Facts], Wanted], Books]
    kernels: str = "none"
    timeline: Callable[[LayerGraph, Assignment, Books, int, int], list[Instant]] | None = None
    leaves_out: str = ""

    @property
    def whole_step(self) -> bool:
        """Whether the books are those of a whole training step, of which a peak can be compared with a RAM."""
        return self.timeline is None


class Ledger:
    """Books being written: each thing is entered once, with every layer that uses it."""

    def __init__(self, graph: LayerGraph):
        self.resident = graph.resident_storages
        self.saved: dict[Key, Saved] = {}
        self.by_layer: dict[int, list[Key]] = {}

    def cost(self, item: Dense | Private) -> int:
        """Return the bits per image that keeping this would add."""
        if isinstance(item, Private):
            return item.elements * item.bits
        tensor = item.tensor
        if tensor.storage.id in self.resident or dense_key(tensor) in self.saved:
            return 0
        return 8 * (tensor.bytes(1) if tensor.overwritten else tensor.storage.bytes(1))

    def keep(self, layer: Layer, role: str, item: Dense | Private) -> None:
        """Enter that the gradient of `role` needs `item`; parameters and buffers are there in any case."""
        if isinstance(item, Private):
            if not item.elements:
                return
            shape = f"{'N x ' if item.batched else ''}{item.elements}"
            key = ("private", layer.index, item.label)
            entry = Saved(key, item.label, shape, item.elements, item.bits, item.batched, False, None)
        else:
            tensor = item.tensor
            if tensor.storage.id in self.resident:
                return
            key = dense_key(tensor)
            what = next((name for name, given in layer.inputs.items() if given is tensor), "output")
            is_float = tensor.storage.dtype == "float32"
            elements = tensor.elements if tensor.overwritten else tensor.storage.elements
            entry = Saved(
                key, what, tensor.shape_text, elements, 8 * BYTES_PER_ELEMENT[tensor.storage.dtype],
                tensor.storage.batched, is_float and tensor.storage.batched,
                None if tensor.overwritten else tensor.storage,
            )  # fmt: skip
        known = self.saved.get(key)
        if known is not None and layer.index < min(known.uses):  # it is called what the first layer calls it
            entry.uses.update(known.uses)
            known = None
        entry = self.saved[key] = known or entry
        entry.uses[layer.index] = (*entry.uses.get(layer.index, ()), role)
        keys = self.by_layer.setdefault(layer.index, [])
        if key not in keys:
            keys.append(key)

    def close(self, recomputed: tuple[int, ...] = ()) -> Books:
        """Return the finished books."""
        return Books(self.saved, self.by_layer, recomputed)


def dense_key(tensor: Tensor) -> Key:
    """Return the key of a kept tensor: its storage, or the value alone if the storage is overwritten later."""
    return ("value", tensor.id) if tensor.overwritten else ("storage", tensor.storage.id)
