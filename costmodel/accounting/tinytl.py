"""`tinytl`: the memory that TinyTL's tables print, and those of the papers that took over its profiler.

    bytes = batch x (most that one image takes at any layer of the forward pass) + parameters
    at a layer: its temporary memory + what was stored before it + the input of the skip connection around it

- Parameters: 32 bits each if they train, 8 if they are frozen. No gradients, no optimizer, no buffers, no input image.
- Stored: the input of a convolution or linear layer if its weight trains, of a norm if its scale trains; of ReLU, ReLU6
  and LeakyReLU one bit per element, of hard-swish, hard-sigmoid, sigmoid and tanh 32, wherever they are, also below
  what trains; only if nothing but the head trains, none of them. Everything else stores nothing. A tensor that two
  layers store counts twice. Nothing is freed.
- Temporary memory: a convolution's input and its output over its groups; a linear layer's input and output; the input
  of a norm or an activation; nothing of pooling, upsampling and the rest.
- Around a layer inside an identity skip connection: the skip's tensor; an activation right behind the sum (ResNet)
  counts as inside. While a lite residual runs, what the main branch
  made of the block's input is not counted.

What it leaves out: the inputs of norms whose scale is frozen (their exact input gradient needs them), the backward pass
altogether, gradients, the optimizer.

Source: Cai et al.: TinyTL, NeurIPS 2020 (arXiv 2007.11622), section 4.1; profile_memory_cost in
tinytl/tinytl/utils/memory_cost_profiler.py of mit-han-lab/tinyml, which takes 8-bit frozen parameters by default.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.blocks import ACTIVATIONS, CONVOLUTIONS, NORMS, parts
from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer
from ..kept import kept
from ..methods.assignment import Assignment
from ..rules.facts import Facts
from ..units import FLOAT_BITS, bytes_of_bits
from .books import Accounting, Books, Execution, Instant, Key, Saved
from .gradients import Wanted

TRAINED_BITS, FROZEN_BITS = 32, 8

_CONVOLUTIONS = CONVOLUTIONS | {"conv1d", "conv3d"}
_ONE_BIT = {"relu", "relu6", "leaky_relu"}
_SMOOTH = {"hardswish", "hardsigmoid", "sigmoid", "tanh"}


def _bits_stored(layer: Layer, wanted: tuple[str, ...], through: bool) -> int:
    """Return the bits per element of the layer's input that the rule stores; `through`: backward leaves the head."""
    if layer.op in _CONVOLUTIONS or layer.op == "linear" or layer.op in NORMS:
        return FLOAT_BITS if "weight" in wanted else 0
    if not through:
        return 0
    return 1 if layer.op in _ONE_BIT or _is_relu6(layer) else FLOAT_BITS if layer.op in _SMOOTH else 0


def _is_relu6(layer: Layer) -> bool:
    """Whether a layer is a ReLU6 that is written as a clamp (`hardtanh` from 0 to 6)."""
    return layer.op == "hardtanh" and layer.attributes.get("min_val", -1) == 0


def _keep(graph: LayerGraph, assignment: Assignment, facts: Sequence[Facts], wanted: Wanted) -> Books:
    through = min(wanted) < parts(graph).head
    saved, by_layer = {}, {}
    for layer in graph.layers:
        x = layer.input
        if layer.output.kind != "activation" or not x.elements:
            continue
        bits = _bits_stored(layer, wanted.get(layer.index, ()), through)
        if not bits:
            continue
        key = Key("layer", layer.index, "input")
        elements, extra, instead = x.elements, 0, assignment.kept_inputs.get(layer.index)
        if instead is not None:
            elements, extra, bits = instead.elements_of(x.elements), instead.extra_bits, instead.bits
        saved[key] = Saved(
            key, "input" if instead is None else instead.kind, x.shape_text, elements, bits, x.batched,
            bits == FLOAT_BITS, None, {layer.index: wanted.get(layer.index, ("input",))}, extra,
        )  # fmt: skip
        by_layer[layer.index] = [key]
    return Books(saved, by_layer)


def _temporary(layer: Layer) -> int:
    """Return the elements per image that the rule counts while the layer runs."""
    x, y = layer.input.elements, layer.output.elements
    if layer.output.kind != "activation":
        return 0
    if layer.op in _CONVOLUTIONS:
        return x + y // layer.attributes.get("groups", 1)
    if layer.op == "linear":
        return x + y
    return x if layer.op in NORMS | ACTIVATIONS else 0


@kept
def skip_elements(graph: LayerGraph) -> dict[int, int]:
    """Return by layer the elements per image of the identity skip connections around it.

    A sum whose one term is computed from the other closes a skip connection; the layers between the two are inside.
    """
    import networkx

    around: dict[int, int] = {}
    for layer in graph.layers:
        terms = [tensor for tensor in layer.inputs.values() if tensor.kind == "activation"]
        if layer.op != "add" or len(terms) != 2:
            continue
        for skip, branch in (terms, terms[::-1]):
            maker = graph.producer.get(branch.id)
            if maker is None or skip.elements != branch.elements:
                continue
            before = networkx.ancestors(graph.digraph, maker.index) | {maker.index}
            after: set[int] = set()
            for reader in graph.consumers[skip.id]:
                if reader.index in before:
                    after |= {reader.index} | (networkx.descendants(graph.digraph, reader.index) & before)
            if after:
                readers = graph.consumers.get(layer.output.id, ())
                after |= {reader.index for reader in readers if len(readers) == 1 and reader.op in ACTIVATIONS}
            for index in after:
                around[index] = around.get(index, 0) + skip.elements
    return around


def _timeline(graph: LayerGraph, assignment: Assignment, books: Books, how: Execution) -> list[Instant]:
    """Return the forward pass: before each layer what is stored, what the layer takes, and the skip around it."""
    parameter_bits = FROZEN_BITS * graph.parameter_count
    for name in assignment.trained:
        count = assignment.trained_elements.get(name, graph.parameters[name].elements)
        parameter_bits += (TRAINED_BITS - FROZEN_BITS) * count
    weights, skips, stored_bits, instants = bytes_of_bits(parameter_bits), skip_elements(graph), 0, []
    for layer in graph.layers:
        transient = (_temporary(layer) + skips.get(layer.index, 0)) * how.batch * how.float_bytes
        bytes_by_category = {
            "weights": weights, "saved_activations": bytes_of_bits(stored_bits), "transient": transient
        }  # fmt: skip
        instants.append(("forward", layer.name, bytes_by_category))
        stored = (books.saved[key] for key in books.by_layer.get(layer.index, ()))
        stored_bits += sum(saved.total_bits(how.batch, how.float_bytes) for saved in stored)
    return instants


TINYTL = Accounting(
    "tinytl",
    "TinyTL's tables: one image's forward peak times the batch, and parameters (frozen ones at 8 bits)",
    "TinyTL (arXiv 2007.11622), section 4.1, and its released profiler",
    _keep,
    timeline=_timeline,
    whole_step=False,
    leaves_out="inputs of norms whose scale is frozen, gradients, the optimizer, the backward pass",
)
