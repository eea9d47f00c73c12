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
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, cast

from ..errors import InputError
from ..graph.blocks import CONVOLUTIONS, biases_of, is_depthwise, parts
from ..graph.layer_graph import LayerGraph
from ..units import FLOAT_BITS
from .assignment import Assignment, KeptInput
from .last_convolutions import convolutions
from .method import (
    Chosen,
    Method,
    Option,
    Training,
    at_most,
    batch_norms,
    head_parameters,
    norm_layers,
    parameters_of,
    whole_number,
)

# Source: the same paper, section 2.2.
RATIOS = (0, 1 / 8, 1 / 4, 1 / 2, 1)
_WEIGHTS_HELP = "write pairs of a convolution's number, from 0, and 0, 1/8, 1/4, 1/2 or 1, such as 21:1,36:1/8"


def _read_weights(value: object) -> tuple[tuple[int, float], ...]:
    """Return (convolution, share of its inputs) pairs, from a mapping, pairs or a text such as '21:1,36:1/8'."""
    try:
        if isinstance(value, str):
            value = [item.split(":") for item in value.split(",") if item.strip()]
        given = value.items() if isinstance(value, Mapping) else cast("Iterable[tuple[Any, object]]", value)
        pairs = [(int(index), _ratio(ratio)) for index, ratio in given]
    except (TypeError, ValueError, ZeroDivisionError):
        raise ValueError(_WEIGHTS_HELP) from None
    if len({index for index, _ in pairs}) < len(pairs) or any(i < 0 or ratio not in RATIOS for i, ratio in pairs):
        raise ValueError(f"{_WEIGHTS_HELP}, each convolution once")
    return tuple(sorted(pairs))


def _ratio(value: object) -> float:
    over, _, under = str(value).partition("/")
    return float(over) / float(under or 1)


def _share(value: object) -> float:
    try:
        share = float(cast(SupportsFloat, value))
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share < 1 or isinstance(value, bool):
        raise ValueError("it must be a share of the values from 0 to below 1")
    return share


def _sparse_update(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    every = convolutions(graph)
    count = at_most("layers", chosen["layers"], len(every), "convolutions", graph)
    weights = dict(chosen["weights"])
    first = len(every) - count
    for index, ratio in weights.items():
        if index >= len(every):
            raise InputError(
                f"weights has {index}:{ratio:g}, but {graph.model} has {len(every)} convolutions; {_WEIGHTS_HELP}"
            )
        if index < first:
            raise InputError(
                f"weights has convolution {index}, whose bias does not train; "
                f"with {count} layers of {graph.model} give numbers from {first}, or more layers"
            )
    biases = (biases_of(graph, layer)[:1] for layer in every[first:])
    trained = {tensor.name for found in biases for _, tensor in found} | head_parameters(graph, parts(graph))
    kept_inputs, part = {}, {}
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
            kept_inputs[layer.index] = KeptInput("channels", FLOAT_BITS, True, role="weight", elements=kept * pixels)
            # A depthwise convolution has one filter per channel, another as many as outputs.
            filters = kept if is_depthwise(layer) else weight.shape[0] * kept // layer.attributes.get("groups", 1)
            part |= dict.fromkeys(names, filters * math.prod(weight.shape[2:]))
    return graph, Assignment(frozenset(trained), frozenset(batch_norms(graph)), kept_inputs, part)


def _back_razor(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    dropped = chosen["dropped"]
    frozen = parameters_of(graph, norm_layers(graph), ("weight", "bias"))
    kept_inputs = {}
    for layer in graph.layers:
        if layer.op in CONVOLUTIONS | {"linear"} and layer.output.kind == "activation":
            count = layer.inputs["input"].elements
            kept = round(count * (1 - dropped))
            kept_inputs[layer.index] = KeptInput(
                "largest", FLOAT_BITS, dropped == 0, role="weight", elements=kept, extra_bits=count
            )
    return graph, Assignment(frozenset(parameters_of(graph, list(graph.layers)) - frozen), frozenset(), kept_inputs)


SPARSE_UPDATE = Method(
    "sparse-update",
    "the biases of the last n convolutions, weights of some of them (options layers, weights) and the head train",
    "Lin et al.: On-Device Training Under 256KB Memory, NeurIPS 2022 (arXiv 2206.15472)",
    _sparse_update,
    options=(
        Option(
            "layers",
            "how many of the last convolutions train their bias",
            8,
            whole_number(),
            lambda graph: len(convolutions(graph)),
        ),
        Option(
            "weights", "convolutions whose weight trains, with the share of their input channels", (), _read_weights
        ),
    ),
    has_layers=False,
)
BACK_RAZOR = Method(
    "back-razor",
    "all but the norms trains; inputs of weighted layers are kept but for their smallest values (option dropped)",
    "Jiang et al.: Back Razor, NeurIPS 2022",
    _back_razor,
    options=(Option("dropped", "the share of an input's values that is dropped", 0.9, _share),),
    has_layers=False,
)
