"""What an accounting hands on: the saved tensors of a training step, and the temporary memory of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer, Storage, Tensor
from ..methods.assignment import Assignment
from ..rules.facts import Dense, Facts, Private
from ..units import BYTES_PER_ELEMENT, FLOAT_BYTES, Count, bytes_of_bits, over_batch
from .gradients import Wanted
from .kernels import NO_KERNELS, Kernels

CAST_WEIGHT = "weight, cast"


class Key(NamedTuple):
    """What is kept: the graph's storage or tensor of this id, or something that the layer of this index alone keeps.

    of: 'storage', 'value' (a tensor whose storage is overwritten later) or 'layer'. label: what a layer keeps.
    """

    of: Literal["storage", "value", "layer"]
    id: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """One piece of memory kept from forward to backward.

    what: 'input', 'output', 'mask', ... as the layer that keeps it first sees it. follows_precision: a floating-point
    activation, whose bits are those of the activations' precision. storage: the graph's storage if an activation
    itself is kept, else None (a mask, statistics, a clone). uses: by layer index, the roles whose gradient needs it.
    extra_bits: beside the elements (which of them they are), with the same batch. cast: a copy in the activations'
    precision, which is made and kept only where that is not float32.
    """

    key: Key
    what: str
    shape: str
    elements: int
    bits: int
    batched: bool
    follows_precision: bool
    storage: Storage | None
    uses: dict[int, tuple[str, ...]]
    extra_bits: int = 0
    cast: bool = False

    def total_bits(self, batch: Count, float_bytes: int = FLOAT_BYTES) -> Count:
        """Return its bits over the whole batch, whose size may be an array."""
        bits = 8 * float_bytes if self.follows_precision else self.bits
        if self.cast:
            bits = 0 if float_bytes == FLOAT_BYTES else 8 * float_bytes
        return over_batch(self.elements * bits + self.extra_bits, self.batched, batch)

    def bytes(self, batch: Count, float_bytes: int = FLOAT_BYTES) -> Count:
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


class Again(NamedTuple):
    """Layers that run again. keeps: whether what they keep of their own for backward is made anew, too."""

    layers: tuple[int, ...]
    keeps: bool


@dataclass(frozen=True)
class Execution:
    """How a step is carried out, as far as an accounting's own timeline asks.

    batch: images of a pass. float_bytes: of one number of an activation. wanted: by layer, the arguments whose gradient
    is computed. passes: whose gradients are added up. prefix: the layers below this one run for `piece` images at a
    time. at_most: pieces whose moments are wanted, of which the second is as all others. again: by layer, what runs
    again before its backward.
    """

    batch: int
    float_bytes: int
    wanted: Wanted
    passes: int = 1
    optimizer: str = "sgd"
    prefix: int = 0
    piece: int = 0
    at_most: int = 2
    again: Mapping[int, tuple[Again, ...]] = field(default_factory=dict)


class Part(NamedTuple):
    """A part of a network between two places that one tensor passes.

    given: the tensor that it reads; given_is_kept: whether a part before counts it as kept. result: the tensor that it
    gives, None if the loss follows; counts_result: whether this part counts it as kept until the next one's backward.
    """

    layers: range
    given: Tensor
    given_is_kept: bool
    result: Tensor | None
    counts_result: bool


class PartBytes(NamedTuple):
    """What a part takes by itself.

    kept: from its forward until its backward, but for its result. forward, backward: the most at any moment, with what
    it reads.
    """

    kept: int
    forward: int
    backward: int


@dataclass(frozen=True)
class Accounting:
    """A way of keeping the books: `keep` turns the wanted gradients into what is stored.

    kernels: whose working memory counts. timeline: its own moments in place of the step's; what such books say of
    frozen weights' precision is theirs, whatever is asked for. part: the same of a part of the network, with what runs
    again in it, for one pass. Such books follow schedules, add up the gradients of passes, and update each parameter as
    soon as its gradient is there; with others of their own timeline the network cannot be cut up. is_carried_out:
    whether this package makes a network, or a program, that trains by these books with any schedule. runtime_bytes:
    what the process takes beside the step, where no Python runs it. in_flash: whether weights that do not train are
    read where they are stored, and take no RAM. whole_step: whether its moments are those of a whole training step, of
    which a peak can be compared with a RAM. linear_in_batch: whether they grow linearly with the batch, but for bits
    that are packed into bytes. leaves_out: what a reader must not look for in them.
    """

    name: str
    summary: str
    source: str
    keep: Callable[[LayerGraph, Assignment, Sequence[Facts], Wanted], Books]
    kernels: Kernels = NO_KERNELS
    timeline: Callable[[LayerGraph, Assignment, Books, Execution], list[Instant]] | None = None
    part: Callable[[LayerGraph, Assignment, Books, Execution, Part], PartBytes] | None = None
    is_carried_out: bool = False
    runtime_bytes: int | None = None
    in_flash: bool = False
    whole_step: bool = True
    linear_in_batch: bool = True
    leaves_out: str = ""

    @property
    def follows_schedules(self) -> bool:
        """Whether its own timeline is that of the schedule."""
        return self.part is not None


def all_at_once(graph: LayerGraph, assignment: Assignment, books: Books, how: Execution) -> list[Instant]:
    """Return the timeline of books that are one number: a moment at which everything that they have is there."""
    total = sum(saved.bytes(how.batch, how.float_bytes) for saved in books.saved.values())
    return [("forward", "", {"saved_activations": total})]


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
            key = Key("layer", layer.index, item.label)
            entry = Saved(key, item.label, shape, item.elements, item.bits, item.batched, False, None, {})
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
                None if tensor.overwritten else tensor.storage, {},
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

    def keep_cast(self, layer: Layer, role: str, weight: Tensor) -> None:
        """Enter that a layer keeps its weight in the activations' precision, where autocast computes in fewer bits."""
        key = Key("layer", layer.index, CAST_WEIGHT)
        shape = " x ".join(map(str, weight.shape))
        self.saved[key] = Saved(
            key, CAST_WEIGHT, shape, weight.elements, 0, False, False, None, {layer.index: (role,)}, cast=True
        )
        self.by_layer.setdefault(layer.index, []).append(key)

    def close(self, recomputed: tuple[int, ...] = ()) -> Books:
        """Return the finished books."""
        return Books(self.saved, self.by_layer, recomputed)


def dense_key(tensor: Tensor) -> Key:
    """Return the key of a kept tensor: its storage, or the value alone if the storage is overwritten later."""
    return Key("value", tensor.id) if tensor.overwritten else Key("storage", tensor.storage.id)
