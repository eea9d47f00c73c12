"""Methods that keep a part of each input: some channels (sparse update), or the largest values (Back Razor).

Sparse update: the biases of the last n convolutions train, and the weights of some of these, each with a share of its
input channels. A batch norm behind a convolution is folded into it on the device, so that its shift is the bias.
Source: Lin et al.: On-Device Training Under 256KB Memory, NeurIPS 2022 (arXiv 2206.15472), section 2.2;
kept channels = int(channels x ratio), algorithm/core/utils/partial_backward.py of mit-han-lab/tiny-training.

Back Razor: everything but the norms trains; of the input of every convolution and linear layer the largest
values are kept, a share 1 - r of all, with a bitmap of which they are: n x (4 (1 - r) + 1/8) bytes.
Source: Jiang et al.: Back Razor, NeurIPS 2022; method full_noBN in CNN/tinytl_fgvc_train.py (which freezes the norms'
scales and shifts), CNN/utils/memory_cost_profiler.py of VITA-Group/BackRazor_Neurips22.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..assignment import Assignment, Storage
from ..blocks import CONVOLUTIONS, NORMS, is_depthwise, parts
from ..errors import InputError
from ..graph import Layer, LayerGraph, Tensor
from .last_convolutions import convolutions
from .method import Method, Training, batch_norms, head_parameters, norm_layers, parameters_of, whole_number

# Source: the same paper, section 2.2.
RATIOS = (0, 1 / 8, 1 / 4, 1 / 2, 1)
DEFAULT_LAYERS, DEFAULT_DROPPED = 8, 0.9


def bias_of(graph: LayerGraph, layer: Layer) -> Tensor | None:
    """Return a convolution's bias: its own, or the shift of the norm that alone reads its result."""
    if "bias" in layer.inputs:
        return layer.inputs["bias"]
    readers = graph.consumers.get(layer.output.id, ())
    if len(readers) == 1 and readers[0].op in NORMS:
        return readers[0].inputs.get("bias")
    return None


def _read_weights(value: object, graph: LayerGraph) -> dict[int, float]:
    """Return the share of input channels by convolution, from a mapping or a text such as '21:1,36:1/8'."""
    allowed = "write pairs of a convolution's number, from 0, and 0, 1/8, 1/4, 1/2 or 1, such as 21:1,36:1/8"
    try:
        if isinstance(value, str):
            pairs = [item.split(":") for item in value.split(",") if item.strip()]
            value = {int(index): _ratio(text) for index, text in pairs}
        weights = {int(index): float(ratio) for index, ratio in dict(value).items()}
    except (TypeError, ValueError, ZeroDivisionError):
        raise InputError(f"cannot read weights {value!r}; {allowed}") from None
    for index, ratio in weights.items():
        if ratio not in RATIOS or not 0 <= index < len(convolutions(graph)):
            count = len(convolutions(graph))
            raise InputError(f"weights has {index}:{ratio:g}, but {graph.model} has {count} convolutions; {allowed}")
    return weights


def _ratio(text: str) -> float:
    over, _, under = text.partition("/")
    return float(over) / float(under or 1)


def _sparse_update(graph: LayerGraph, options: Mapping[str, object]) -> Training:
    every = convolutions(graph)
    count = whole_number("layers", options["layers"], 1, len(every), graph.model)
    weights = _read_weights(options["weights"], graph)
    first = len(every) - count
    for index in weights:
        if index < first:
            raise InputError(
                f"weights has convolution {index}, whose bias does not train; "
                f"with {count} layers of {graph.model} give numbers from {first}, or more layers"
            )
    biases = (bias_of(graph, layer) for layer in every[first:])
    trained = {tensor.name for tensor in biases if tensor is not None} | head_parameters(graph, parts(graph))
    storages, part = {}, {}
    for index, ratio in weights.items():
        layer, weight = every[index], every[index].inputs["weight"]
        x = layer.inputs["input"]
        kept = int(x.shape[1] * ratio)
        if not kept:
            continue
        names = parameters_of(graph, [layer], ("weight",))
        trained |= names
        if ratio < 1:
            pixels = math.prod(x.shape[2:])
            storages[layer.index] = Storage("channels", 32, True, role="weight", elements=kept * pixels)
            # A depthwise convolution has one filter per channel, another as many as outputs.
            filters = kept if is_depthwise(layer) else weight.shape[0] * kept // layer.attributes.get("groups", 1)
            part |= dict.fromkeys(names, filters * math.prod(weight.shape[2:]))
    return graph, Assignment(frozenset(trained), frozenset(batch_norms(graph)), storages, part)


def _back_razor(graph: LayerGraph, options: Mapping[str, object]) -> Training:
    try:
        dropped = float(options["dropped"])
    except (TypeError, ValueError):
        dropped = -1
    if not 0 <= dropped < 1:
        raise InputError(f"dropped must be a share of the values from 0 to below 1, not {options['dropped']!r}")
    frozen = parameters_of(graph, norm_layers(graph), ("weight", "bias"))
    storages = {}
    for layer in graph.layers:
        if layer.op in CONVOLUTIONS | {"linear"} and layer.output.kind == "activation":
            count = layer.inputs["input"].elements
            storages[layer.index] = Storage(
                "largest", 32, dropped == 0, role="weight", elements=round(count * (1 - dropped)), extra_bits=count
            )
    return graph, Assignment(frozenset(parameters_of(graph, list(graph.layers)) - frozen), frozenset(), storages)


SPARSE_UPDATE = Method(
    "sparse-update",
    "the biases of the last n convolutions, weights of some of them (options layers, weights) and the head train",
    "Lin et al.: On-Device Training Under 256KB Memory, NeurIPS 2022 (arXiv 2206.15472)",
    False,
    _sparse_update,
    options={"layers": DEFAULT_LAYERS, "weights": ""},
    has_layers=False,
)
BACK_RAZOR = Method(
    "back-razor",
    "all but the norms trains; inputs of weighted layers are kept but for their smallest values (option dropped)",
    "Jiang et al.: Back Razor, NeurIPS 2022",
    False,
    _back_razor,
    options={"dropped": DEFAULT_DROPPED},
    has_layers=False,
)
