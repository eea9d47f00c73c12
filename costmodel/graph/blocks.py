"""LayerGraph -> blocks, stem, tail, head: found from the structure, whatever library built the network.

An inverted residual block ends in a *projection*: a pointwise convolution and its norm without an activation behind.
Going back from there, it holds a depthwise convolution, a squeeze-excite product, an *expansion* (a convolution that is
followed by an activation), and a depthwise convolution without an activation before the expansion (the universal
inverted residual of MobileNetV4). A network without any falls back to its residual blocks: what lies between a fork
and the sum that joins it. Sums that one module makes are one block: a transformer's attention and the MLP behind it.
Transformers between inverted residuals are blocks, too. One without any of these falls back to depthwise-separable
units in a row: a depthwise convolution and the pointwise one behind it, from where a single tensor passes to where the
next one starts.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..kept import kept
from .layer_graph import LayerGraph
from .passages import passages
from .values import Layer, Tensor

CONVOLUTIONS = {"conv2d", "standardized_conv2d"}
NORMS = {"batch_norm", "group_norm", "layer_norm", "rms_norm", "instance_norm"}
ACTIVATIONS = {
    "relu", "relu6", "hardtanh", "leaky_relu", "hardswish", "silu", "gelu", "mish", "sigmoid", "hardsigmoid", "tanh",
    "elu", "celu", "selu", "softplus", "prelu",
}  # fmt: skip
_POOLS = {"mean", "adaptive_avg_pool2d", "avg_pool2d"}
_ENDINGS = NORMS | {"dropout", "add", "mul", "cat"}
_PASSES = {
    "dropout",
    "mul",
    "div",
    "cat",
    "split",
    "chunk",
    "contiguous",
    "permute",
    "reshape",
    "getitem",
    "pad",
}


@dataclass(frozen=True)
class Block:
    """What is frozen or trained as one: the layers `first` to `last` (inclusive, in execution order).

    `closing_norms` are the norms after the projection (in a residual block: those whose results are summed);
    `squeeze` the layers of squeeze-excite branches.
    """

    index: int
    kind: str
    first: int
    last: int
    closing_norms: frozenset[int]
    squeeze: frozenset[int]

    def __contains__(self, layer: Layer) -> bool:
        return self.first <= layer.index <= self.last


@dataclass(frozen=True)
class _Region:
    """A block as it is found: what lies between it and the block before is not yet part of it."""

    kind: str
    first: int
    last: int
    closing_norms: set[int]
    joint: str = ""  # the module that makes its sum


@dataclass(frozen=True)
class Parts:
    """A network cut up: stem, blocks, tail and the head, by layer index."""

    stem: range
    blocks: tuple[Block, ...]
    tail: range
    head: int

    def where(self, layer: Layer) -> str:
        """Return the name of the part that a layer belongs to: 'stem', 'block 1', ..., 'tail', 'head'."""
        if layer.index == self.head:
            return "head"
        if layer.index in self.stem:
            return "stem"
        found = self.block_of(layer)
        return f"block {found.index}" if found else "tail"

    def block_of(self, layer: Layer) -> Block | None:
        """Return the block that a layer belongs to, if any; blocks stand in execution order."""
        at = bisect_right(self.blocks, layer.index, key=lambda block: block.first) - 1
        return self.blocks[at] if at >= 0 and layer in self.blocks[at] else None


def parts(graph: LayerGraph) -> Parts:
    """Return the parts of a network; a network without blocks is all tail, with an empty stem."""
    return _found_parts(graph) if graph.known_parts is None else graph.known_parts


@kept
def head_layers(graph: LayerGraph) -> tuple[int, ...]:
    """Return the indices of the layers with parameters from which results come without another: the heads.

    A classifier has one (`Parts.head`), or one for each of its results; a segmenter may add two, and a detector has one
    for each kind of result and size of map.
    """
    found: set[int] = set()
    open_tensors, seen = list(graph.outputs), set()
    while open_tensors:
        layer = graph.producer.get(open_tensors.pop().id)
        if layer is None or layer.index in seen:
            continue
        seen.add(layer.index)
        if any(tensor.kind in ("parameter", "derived") for tensor in layer.inputs.values()):
            found.add(layer.index)
        else:
            open_tensors += [tensor for tensor in layer.inputs.values() if tensor.kind == "activation"]
    return tuple(sorted(found)) or (parts(graph).head,)


@kept
def body_digest(graph: LayerGraph) -> str:
    """Return what tells networks apart by their layers before the head: operations, arguments and shapes.

    The head is left out, so that the number of classes makes no other network.
    """
    told = hashlib.sha256()
    for layer in graph.layers[: parts(graph).head]:
        shapes = [(name, tensor.kind, tensor.shape) for name, tensor in layer.inputs.items()]
        told.update(f"{layer.module} {layer.op} {sorted(layer.attributes.items())!r} {shapes!r}\n".encode())
    return told.hexdigest()[:16]


@kept
def _found_parts(graph: LayerGraph) -> Parts:
    blocks: list[Block] = []
    for region in _regions(graph):
        # What lies between two blocks is trained with the later one.
        first = blocks[-1].last + 1 if blocks else region.first
        squeeze = _squeeze(graph, first, region.last)
        blocks.append(Block(len(blocks) + 1, region.kind, first, region.last, frozenset(region.closing_norms), squeeze))
    head = max((layer.index for layer in graph.layers if layer.parameters), default=len(graph.layers) - 1)
    stem = range(0, blocks[0].first if blocks else 0)
    tail = range(blocks[-1].last + 1 if blocks else 0, len(graph.layers))
    return Parts(stem, tuple(blocks), tail, head)


def _regions(graph: LayerGraph) -> list[_Region]:
    """Return the blocks as found: inverted residuals and the transformers between them, residuals, or units."""
    inverted = _inverted_residuals(graph)
    if not inverted:
        return _residuals(graph) or _separable_units(graph)
    if not _attends(graph.layers):
        return inverted
    taken = {index for region in inverted for index in range(region.first, region.last + 1)}
    between = [
        region
        for region in _residuals(graph)
        if region.kind == "transformer" and taken.isdisjoint(range(region.first, region.last + 1))
    ]
    return sorted(inverted + between, key=lambda region: region.first)


def block_count(graph: LayerGraph) -> int:
    """Return the number of blocks; 0 if the network has none."""
    return len(parts(graph).blocks)


def is_depthwise(layer: Layer) -> bool:
    """Whether a layer is a convolution that keeps its channels apart."""
    if layer.op not in CONVOLUTIONS:
        return False
    groups = layer.attributes.get("groups", 1)
    return groups > 1 and layer.inputs["weight"].shape[1] == 1


def biases_of(graph: LayerGraph, layer: Layer) -> list[tuple[Layer, Tensor]]:
    """Return the biases of a convolution, each with the layer that adds it.

    They are its own, and the shift of the norm that alone reads its result, which folds into it on a device.
    """
    readers = graph.consumers.get(layer.output.id, ())
    norm = [readers[0]] if len(readers) == 1 and readers[0].op in NORMS else []
    return [(adding, adding.inputs["bias"]) for adding in (layer, *norm) if "bias" in adding.inputs]


def _is_pointwise(layer: Layer) -> bool:
    weight = layer.inputs["weight"].shape if layer.op in CONVOLUTIONS else ()
    return tuple(weight[2:]) == (1, 1) and layer.attributes.get("groups", 1) == 1


def _main_argument(graph: LayerGraph, layer: Layer) -> Tensor:
    """Return the main-path argument: of a product with a gate what the gate scales, else the largest."""
    if layer.op == "mul":
        for scaled, branch in _gates(graph).get(layer.index, ()):
            if branch:
                return scaled
    values = [tensor for tensor in layer.inputs.values() if tensor.kind in ("input", "activation")]
    return max(values, key=lambda tensor: tensor.elements, default=layer.input)


def _inverted_residuals(graph: LayerGraph) -> list[_Region]:
    found: list[_Region] = []
    for layer in graph.layers:
        if not _is_pointwise(layer):
            continue
        end = _linear_end(graph, layer)
        start = _block_start(graph, layer) if end else None
        if end is not None and start is not None and (not found or start > found[-1].last):
            found.append(_Region("inverted residual", start, *end))
    # A depthwise convolution between the blocks found says that these are something else (GhostNet's modules).
    inside = {index for region in found for index in range(region.first, region.last + 1)}
    strange = found and any(
        is_depthwise(layer) and layer.index not in inside and layer.index > found[0].first for layer in graph.layers
    )
    return [] if strange else found


def _linear_end(graph: LayerGraph, projection: Layer) -> tuple[int, set[int]] | None:
    """Return the last layer and the norms of a block that ends in this convolution; None if an activation follows."""
    tensor, norms, last = projection.output, set(), projection.index
    while True:
        readers = graph.consumers.get(tensor.id, ())
        if any(reader.op in ACTIVATIONS for reader in readers):
            return None
        # Two readers: the block's result, which the next block's skip connection reads too.
        following = readers[0] if len(readers) == 1 and readers[0].op in _ENDINGS else None
        if following is None or following.op == "mul" and _main_argument(graph, following).id != tensor.id:
            break
        if following.op in NORMS:
            norms.add(following.index)
        elif not norms and following.op != "cat":  # a pointwise convolution in several parts (MixNet)
            return None
        last, tensor = following.index, following.output
        if following.op == "add" or norms and following.op == "cat":
            readers = graph.consumers.get(tensor.id, ())
            if any(reader.op in ACTIVATIONS for reader in readers):
                return None
            # A branch beside the main one is added first, inside the skip connection.
            if following.op != "add" or len(readers) != 1 or readers[0].op != "add":
                break
    return (last, norms) if norms else None


def _block_start(graph: LayerGraph, projection: Layer) -> int | None:
    """Return the first layer of the block that ends in this projection; None if it is not an inverted residual."""
    start = depthwise = None
    activated = False
    tensor = projection.inputs["input"]
    while (layer := graph.producer.get(tensor.id)) is not None:
        if layer.op in CONVOLUTIONS:
            if is_depthwise(layer) and depthwise is None:
                start = depthwise = min(_parallel(graph, layer))
                activated = False
            else:
                fused = depthwise is None and not is_depthwise(layer)  # a full convolution in place of both
                if activated and (_is_pointwise(layer) or fused):
                    start = min(_parallel(graph, layer))
                    before = graph.producer.get(layer.inputs["input"].id)
                    if before is not None and before.op in NORMS:
                        before = graph.producer.get(before.inputs["input"].id)
                    if before is not None and is_depthwise(before):
                        start = before.index
                break
        elif layer.op in ACTIVATIONS:
            activated = True
        elif layer.op not in NORMS | _PASSES:
            break
        tensor = _main_argument(graph, layer)
    return start


def _parallel(graph: LayerGraph, layer: Layer) -> set[int]:
    """Return the convolutions whose results are concatenated with this one's, itself included."""
    readers = graph.consumers.get(layer.output.id, ())
    if len(readers) != 1 or readers[0].op != "cat":
        return {layer.index}
    return {graph.producer[tensor.id].index for tensor in readers[0].inputs.values() if tensor.id in graph.producer}


def _residuals(graph: LayerGraph) -> list[_Region]:
    """Return the outermost regions between a fork and the sum that joins it."""
    import networkx

    dominators = networkx.immediate_dominators(graph.digraph.subgraph(
        networkx.descendants(graph.digraph, -1) | {-1}), -1)  # fmt: skip
    regions: list[_Region] = []
    for layer in graph.layers:
        branches = [tensor for tensor in layer.inputs.values() if tensor.kind == "activation"]
        if layer.op != "add" or len(branches) < 2 or layer.index not in dominators:
            continue
        start, end = dominators[layer.index] + 1, layer.index
        readers = graph.consumers.get(layer.output.id, ())
        if len(readers) == 1 and readers[0].op in ACTIVATIONS:
            end = readers[0].index
        sources = (graph.producer.get(tensor.id) for tensor in branches)
        closing = {source.index for source in sources if source is not None and source.op in NORMS}
        if not any(graph.layers[index].parameters for index in range(start, end + 1)):
            continue
        while regions and regions[-1].first >= start:  # inner sums of a larger block
            regions.pop()
        if not regions or regions[-1].last < start:
            kind = "transformer" if _attends(graph.layers[start : end + 1]) else "residual"
            regions.append(_Region(kind, start, end, closing, layer.module))
    return _transformers(graph, regions)


def _transformers(graph: LayerGraph, regions: list[_Region]) -> list[_Region]:
    """Return the regions with those put together of which one module makes the sums: attention and what follows it."""
    found: list[_Region] = []
    for region in regions:
        before = found[-1] if found else None
        if before is not None and region.joint and region.joint == before.joint and _is_pixelwise(graph, region):
            found[-1] = replace(before, last=region.last, closing_norms=region.closing_norms)
        else:
            found.append(region)
    return found


def _is_pixelwise(graph: LayerGraph, region: _Region) -> bool:
    """Whether a region is an MLP of each pixel or token, perhaps with depthwise convolutions."""
    layers = graph.layers[region.first : region.last + 1]
    return all(_is_pointwise(layer) or is_depthwise(layer) for layer in layers if layer.op in CONVOLUTIONS)


def _attends(layers: Sequence[Layer]) -> bool:
    """Whether layers hold attention between pixels or tokens."""
    ops = {layer.op for layer in layers}
    return "scaled_dot_product_attention" in ops or ("softmax" in ops and not ops.isdisjoint(("matmul", "bmm")))


def _separable_units(graph: LayerGraph) -> list[_Region]:
    """Return the depthwise-separable units of a network of which most convolutions in a row are such.

    Behind the last pool there is none.
    """
    gated = {index for pairs in _gates(graph).values() for _, branch in pairs for index in branch}
    along = [layer for layer in graph.layers if layer.index not in gated and len(graph.outputs) == 1]
    spatial = (each.index for each in along if each.op in CONVOLUTIONS and not _is_pointwise(each))
    last_spatial = max(spatial, default=-1)
    end = next((each.index for each in along if each.op in _POOLS and each.index > last_spatial), 0)
    places = passages(graph)
    starts: list[Layer] = []
    before: Layer | None = None
    for layer in along:
        if layer.op not in CONVOLUTIONS or layer.index >= end:
            continue
        second_half = before is not None and is_depthwise(before) and _is_pointwise(layer)
        if layer.index in places and not second_half:
            starts.append(layer)
        before = layer
    if 2 * sum(map(is_depthwise, starts)) <= len(starts):
        return []
    regions = []
    for start, stop in zip(starts, [*(each.index for each in starts), end][1:], strict=True):
        inside = [each for each in along if start.index <= each.index < stop]
        if is_depthwise(start):
            if sum(each.op in CONVOLUTIONS for each in inside) != 2:  # branches (ShuffleNet)
                return []
            norms = [each.index for each in inside if each.op in NORMS]
            regions.append(_Region("depthwise separable", start.index, stop - 1, set(norms[-1:])))
    return regions


@kept
def _gates(graph: LayerGraph) -> dict[int, list[tuple[Tensor, frozenset[int]]]]:
    """Return for each product of two activations, by its index, either argument and the branch that gates it."""
    gates = {}
    for layer in graph.layers:
        values = [tensor for tensor in layer.inputs.values() if tensor.kind == "activation"]
        if layer.op == "mul" and len(values) == 2:
            pairs = (values, reversed(values))
            gates[layer.index] = [(scaled, _gate_branch(graph, scaled, gate)) for scaled, gate in pairs]
    return gates


def _gate_branch(graph: LayerGraph, scaled: Tensor, gate: Tensor) -> frozenset[int]:
    """Return the layers that make `gate` from `scaled` alone, by way of a pool; none if that is not how it is made.

    Sizes do not tell: in a small image the last maps have one pixel, as their pool has.
    """
    branch: set[int] = set()
    pooled = False
    following = [gate]
    while following:
        tensor = following.pop()
        if tensor.id == scaled.id:
            continue
        layer = graph.producer.get(tensor.id)
        if layer is None:
            return frozenset()
        if layer.index not in branch:
            branch.add(layer.index)
            pooled |= layer.op in _POOLS
            following += [value for value in layer.inputs.values() if value.kind in ("input", "activation")]
    return frozenset(branch) if pooled else frozenset()


def _squeeze(graph: LayerGraph, first: int, last: int) -> frozenset[int]:
    """Return the layers between a global pool and the product that applies the gate."""
    branches = (branch for index in range(first, last + 1) for _, branch in _gates(graph).get(index, ()))
    return frozenset(index for branch in branches for index in branch if first <= index <= last)
