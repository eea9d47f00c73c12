"""Parts of a network of which less is kept: their layers, or some of them, run again in backward.

A schedule's segments, and the parts that a network's own code runs again (torch.utils.checkpoint).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..accounting.books import CAST_WEIGHT, Key, dense_key
from ..accounting.eager import EAGER
from ..accounting.requirements import Requirements
from ..errors import InputError
from ..graph.blocks import ACTIVATIONS, CONVOLUTIONS, NORMS, parts
from ..graph.layer_graph import LayerGraph
from ..graph.passages import passages
from ..graph.values import Layer, Tensor
from ..kept import kept
from ..rules.table import operation
from .schedule import Schedule

# What draws random numbers: in pieces it would draw others.
RANDOM = frozenset({"dropout", "feature_dropout", "alpha_dropout", "bernoulli", "rand", "rand_like", "randn"})

# What costs no matrix product to do again. Layers of other operations are done again only with their whole segment.
CHEAP = NORMS | ACTIVATIONS | {"add", "sub", "mul", "div", "dropout", "contiguous"}

# Of PyTorch's generator on a CPU, a Mersenne twister. Source: torch.get_rng_state().
RANDOM_STATE_BYTES = 5056

# Calls of which PyTorch keeps nothing but what they read.
READS_FIRST = CONVOLUTIONS | {"conv1d", "conv3d", "linear", "mul", "matmul", "bmm"}


class Demand(NamedTuple):
    """What a layer's backward does again first: `layers` run, of which `keys` stay until their last use."""

    layers: tuple[int, ...]
    keys: tuple[Key, ...]


@dataclass(frozen=True, eq=False)
class Segment:
    """The layers `first` to `last` of a network, and what of them is made again in backward.

    inputs: what it starts from; for a schedule's segment the one tensor that passes before `first`. runs_again: whether
    all is, from there; else, and then again, what norms, activations and sums give is made from what is there
    (`demands`, by the layer whose backward asks). absent: what the layers would keep and is not there when forward is
    over. dropped: that of these that stays absent when the segment has run again. needed_by: the layers that use
    something absent. cheap: the layers that are done again on demand. runs_to: behind the last layer that runs again
    with the segment. plain_from: the layer from which on all is kept as ever. held_bytes: beside its inputs, until its
    backward is over.
    """

    first: int
    last: int
    inputs: tuple[Tensor, ...]
    runs_again: bool
    absent: frozenset[Key]
    dropped: frozenset[Key]
    needed_by: frozenset[int]
    demands: Mapping[int, tuple[Demand, ...]]
    runs_to: int
    plain_from: int
    held_bytes: int = 0

    @cached_property
    def stop(self) -> int:
        """The last layer that uses something absent: its backward asks first."""
        return max(self.needed_by)

    @property
    def rerun(self) -> range:
        """The layers that run again together."""
        return range(self.first, self.runs_to if self.runs_again else self.first)

    @cached_property
    def again(self) -> tuple[int, ...]:
        """The layers that run again in backward, as often as they do."""
        asked = (demand for each in self.demands.values() for demand in each)
        return (*self.rerun, *(index for demand in asked for index in demand.layers))

    @cached_property
    def release(self) -> int:
        """The layer whose backward is the last to need the segment's input."""
        return min(self.needed_by)

    @cached_property
    def not_cloned(self) -> frozenset[int]:
        """The layers that work in place and copy their input first, for backward; the copy is dropped at once."""
        return frozenset(
            index for index, each in self.demands.items() for demand in each for key in demand.keys if key.of == "value"
        )

    @cached_property
    def cheap(self) -> frozenset[int]:
        """The layers that are done again on demand."""
        return frozenset(index for each in self.demands.values() for demand in each for index in demand.layers)


@kept
def prefix_end(required: Requirements) -> int:
    """Return the first layer that does not belong to the frozen prefix, which one tensor passes; 0 if there is none.

    The prefix may run in pieces: nothing in it trains, takes statistics of the batch, or is random.
    """
    graph, frozen = required.graph, required.assignment.frozen_statistics
    most = min(required.wanted, default=0)
    for layer in graph.layers[:most]:
        own_statistics = operation(layer, layer.index in frozen) == "batch_norm"
        drawn = (
            t for t in layer.inputs.values() if t.kind == "constant" and t.storage.id not in graph.resident_storages
        )
        if own_statistics or layer.op in RANDOM or any(drawn):
            most = layer.index
            break
    if not can_be_cut(required):
        return 0
    return max((place for place in passages(graph) if 0 < place <= most), default=0)


@kept
def can_be_cut(required: Requirements) -> bool:
    """Whether no weight is computed from parameters, and no layer was put in by the method: these are not cut up."""
    return not any(
        layer.output.kind == "derived" or layer.in_place_of or layer.ordinal < 0 for layer in required.graph.layers
    )


@kept
def checkpoints(graph: LayerGraph) -> tuple[tuple[int, int], ...]:
    """Return the parts that run again in backward by the network's own code: their first and last layers."""
    found: dict[int, tuple[int, int]] = {}
    for layer in graph.layers:
        if layer.checkpoint is not None:
            first, _ = found.get(layer.checkpoint, (layer.index, 0))
            found[layer.checkpoint] = first, layer.index
    return tuple(found.values())


def _own_checkpoints_error(graph: LayerGraph) -> InputError:
    """Return the error for what cannot be done with a network that runs parts of itself again."""
    return InputError(
        f"{graph.model} runs parts of itself again in backward (torch.utils.checkpoint), which the accounting 'eager' "
        "prices for the network as it is; for anything else switch that off (timm: "
        "model.set_grad_checkpointing(False)) and let a schedule recompute: --recompute best, costmodel.best_schedule"
    )


def own_segments(required: Requirements, schedule: Schedule) -> tuple[Segment, ...]:
    """Return the segments of a network that runs parts of itself again, as PyTorch does it.

    Assumption: as `checkpoint` does by itself, without re-entrance, the second run stops early, and the state of the
    random generator is kept.
    """
    graph, found = required.graph, []
    if required.accounting != EAGER.name or schedule.is_cut:
        raise _own_checkpoints_error(graph)
    for first, last in checkpoints(graph):
        layers = graph.layers[first : last + 1]
        made = {tensor.id for layer in layers for tensor in layer.outputs}
        given = {tensor.id: tensor for layer in layers for tensor in layer.inputs.values() if tensor.id not in made}
        inputs = tuple(tensor for tensor in given.values() if tensor.kind in ("input", "activation"))
        drawn = {storage.id for layer in layers for storage in layer.beside}
        inside = _kept_inside(required, layers, _made(layers, inputs) | drawn, last + 1)
        if needed_by := _users(required, layers, inside):
            found.append(Segment(
                first, last, inputs, True, inside, frozenset(), needed_by, {}, _runs_to(required, max(needed_by)),
                last + 1, RANDOM_STATE_BYTES,
            ))  # fmt: skip
    return tuple(found)


def _users(required: Requirements, layers: Sequence[Layer], keys: frozenset[Key]) -> frozenset[int]:
    """Return which of some layers use something of what is kept."""
    by_layer = required.books.by_layer
    return frozenset(layer.index for layer in layers if not keys.isdisjoint(by_layer.get(layer.index, ())))


@kept
def segment(required: Requirements, first: int, last: int, mode: str) -> Segment:
    """Return the layers first to last as a segment; mode: one of `MODES`.

    Errors: InputError if they are none, or if nothing of them could be made again so.
    """
    graph, places = required.graph, passages(required.graph)
    ends = first in places and (last + 1 in places or last + 1 == len(graph.layers))
    if not ends or not first <= last or first < prefix_end(required) or not can_be_cut(required):
        raise InputError(
            f"layers {first} to {last} of {graph.model} are not a segment of {required.way.label}: the schedule is of "
            "another network or way; make it with costmodel.best_schedule"
        )
    layers = graph.layers[first : last + 1]
    plain_from = last + 1
    if mode.endswith("interior"):
        block = parts(graph).block_of(layers[-1])
        plain_from = min(block.closing_norms if block else (), default=first)
    inputs = (places[first],)
    inside = _kept_inside(required, layers, _made(layers, inputs), plain_from)
    is_cheap = mode.startswith(("cheap", "both"))
    dropped = _derivable(required, layers, inside) if is_cheap else {}
    absent = frozenset(dropped) if mode == "cheap" else inside
    needed_by = _users(required, layers, absent)
    if not needed_by or (is_cheap and not dropped):
        raise InputError(
            f"layers {first} to {last} of {graph.model} keep nothing for {required.way.label} that the mode {mode!r} "
            "makes again; leave them out"
        )
    return Segment(
        first, last, inputs, mode != "cheap", absent, frozenset(dropped), needed_by,
        _demands(required, layers, dropped), _runs_to(required, max(needed_by)), plain_from,
    )  # fmt: skip


def _runs_to(required: Requirements, stop: int) -> int:
    """Return behind which layer a second run ends: before the last that uses something, if it only keeps what it reads.

    Autograd notes what such a call reads before it computes. Source: torch's generated VariableType, which saves inputs
    first.
    """
    layer, books = required.graph.layers[stop], required.books
    given = {dense_key(tensor) for tensor in layer.inputs.values()}
    reads_only = layer.op in READS_FIRST and all(
        key in given or key.label == CAST_WEIGHT for key in books.by_layer[stop]
    )
    return stop if reads_only else stop + 1


def _made(layers: Sequence[Layer], inputs: Sequence[Tensor]) -> set[int]:
    """Return the storages that layers make."""
    made = {tensor.storage.id for layer in layers for tensor in layer.outputs}
    return made - {tensor.storage.id for tensor in inputs}


def _kept_inside(required: Requirements, layers: Sequence[Layer], made: set[int], plain_from: int) -> frozenset[Key]:
    """Return what layers keep of what they made themselves, but for what layers from `plain_from` on use."""
    return frozenset(
        key
        for layer in layers
        for key in required.books.by_layer.get(layer.index, ())
        if (storage := required.books.saved[key].storage) is None or storage.id in made
        if not any(plain_from <= index <= layers[-1].index for index in required.books.saved[key].uses)
    )


def _derivable(required: Requirements, layers: Sequence[Layer], inside: frozenset[Key]) -> dict[Key, tuple[int, ...]]:
    """Return what of the kept could be made from the rest of it by cheap layers alone, and by which.

    A tensor that is kept and cannot be made so is where that starts from.
    """
    graph, books = required.graph, required.books
    used = {key for layer in layers for key in books.by_layer.get(layer.index, ())}
    chains: dict[int, frozenset[int]] = {}  # by tensor: the layers that make it
    for layer in layers:
        if layer.op not in CHEAP or len(layer.outputs) != 1:
            continue
        needed: set[int] = {layer.index}
        for tensor in layer.inputs.values():
            if tensor.kind == "parameter" or tensor.storage.id in graph.resident_storages:
                continue
            if tensor.id in chains:
                needed |= chains[tensor.id]
            elif tensor.kind != "activation" or tensor.overwritten or dense_key(tensor) not in used:
                break
        else:
            chains[layer.output.id] = frozenset(needed)
    tensors = {t.id: t for layer in layers for t in layer.outputs}
    return {
        dense_key(tensors[id_]): tuple(sorted(chain))
        for id_, chain in chains.items()
        if dense_key(tensors[id_]) in inside and not _has_views(graph, tensors[id_], layers)
    }


@kept
def _views(graph: LayerGraph) -> dict[int, list[tuple[int, tuple[int, ...]]]]:
    """Return which layers read a storage, and in which shapes, of those that are read in several."""
    reads: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for layer in graph.layers:
        for tensor in layer.inputs.values():
            reads.setdefault(tensor.storage.id, []).append((layer.index, tensor.shape))
    return {id_: found for id_, found in reads.items() if len({shape for _, shape in found}) > 1}


def _has_views(graph: LayerGraph, tensor: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether layers also read what a tensor's memory holds in another shape."""
    first, last = layers[0].index, layers[-1].index
    reads = _views(graph).get(tensor.storage.id, ())
    return any(first <= index <= last and shape != tensor.shape for index, shape in reads)


def _demands(
    required: Requirements, layers: Sequence[Layer], dropped: Mapping[Key, tuple[int, ...]]
) -> dict[int, tuple[Demand, ...]]:
    """Return what the backward of each layer makes again; what has further uses stays."""
    books, graph = required.books, required.graph
    inside = range(layers[0].index, layers[-1].index + 1)
    last_use = {key: min(index for index in books.saved[key].uses if index in inside) for key in dropped}
    key_of = {chain[-1]: key for key, chain in dropped.items()}  # by the layer that makes it last
    there: set[Key] = set()
    found: dict[int, tuple[Demand, ...]] = {}
    for layer in reversed(layers):
        asked = []
        for key in books.by_layer.get(layer.index, ()):
            if key not in dropped or key in there:
                continue
            run = _still_to_run(graph, dropped[key], {index for index, own in key_of.items() if own in there})
            made = [
                own
                for index in run
                if (own := key_of.get(index)) and last_use[own] <= layer.index and not _is_overwritten(graph, own, run)
            ]
            there.update(made)
            asked.append(Demand(run, tuple(made)))
        there -= {key for key in there if last_use[key] == layer.index}
        if asked:
            found[layer.index] = tuple(asked)
    return found


def _is_overwritten(graph: LayerGraph, key: Key, run: Sequence[int]) -> bool:
    """Whether a value is overwritten by one of the layers that run."""
    return key.of == "value" and any(graph.layers[i].inplace and graph.layers[i].input.id == key.id for i in run)


def _still_to_run(graph: LayerGraph, chain: Sequence[int], done: set[int]) -> tuple[int, ...]:
    """Return the layers of a chain that must run where the results of some are there already."""
    wanted, run = {graph.layers[chain[-1]].output.id}, []
    for index in reversed(chain):
        layer = graph.layers[index]
        if layer.output.id in wanted and index not in done:
            run.append(index)
            wanted |= {tensor.id for tensor in layer.inputs.values()}
    return tuple(reversed(run))
