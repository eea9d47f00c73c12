"""LoRA: beside frozen linear maps a product of two small ones trains, y = W x + B (A x), and the head.

    A is r x in, B out x r, of rank r; B starts as zero. A 1x1 convolution is a linear map of every pixel.

After training B A is added to W (`costmodel.restore(model, merge=True)`), so that the network is as it was.

Source: Hu et al.: LoRA, ICLR 2022 (arXiv 2106.09685), section 4.1; their factor alpha / r is 1 here: changing it is
changing the learning rate. Assumption: batch norms use their running statistics, as nothing before them need train.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import InputError
from ..graph.blocks import CONVOLUTIONS, head_layers, parts
from ..graph.layer_graph import LayerGraph
from ..graph.rewrite import Draft, moved_parts
from ..graph.values import Layer, Tensor
from .assignment import AddedModule, Assignment
from .method import Chosen, Method, Option, Training, batch_norms, head_parameters, whole_number

MODULE = "lora"
ALL, ATTENTION = "all", "attention"
_HELP = (
    f"it must be {ALL} (every linear map and 1x1 convolution), {ATTENTION} (those of modules that compute attention), "
    "or ends of module names such as qkv,proj"
)


def projections(graph: LayerGraph) -> list[Layer]:
    """Return the linear maps and 1x1 convolutions that can have a LoRA beside them: all but the head.

    Those whose weight is the network's own parameter, which no other layer uses.
    """
    heads = {parts(graph).head, *head_layers(graph)}
    return [layer for layer in graph.layers if layer.index not in heads and _is_projection(graph, layer)]


def _is_projection(graph: LayerGraph, layer: Layer) -> bool:
    weight = layer.inputs.get("weight")
    if weight is None or weight.kind != "parameter" or layer.output.kind != "activation":
        return False
    if len(graph.consumers[weight.id]) > 1 or layer.inputs["input"].kind not in ("input", "activation"):
        return False
    if layer.op == "linear":
        return True
    is_pointwise = layer.op in CONVOLUTIONS and tuple(weight.shape[2:]) == (1, 1)
    padding = layer.attributes.get("padding", 0)
    return is_pointwise and layer.attributes.get("groups", 1) == 1 and padding in (0, (0, 0), [0, 0], "valid")


def _chosen_projections(graph: LayerGraph, wanted: str) -> list[Layer]:
    """Return the projections that an option's value means. Errors: InputError if there are none."""
    every = projections(graph)
    if wanted == ALL:
        return every
    if wanted == ATTENTION:
        places = {layer.module for layer in graph.layers if layer.op in ("scaled_dot_product_attention", "softmax")}
        places |= {place.rpartition(".")[0] for place in places if place.endswith("softmax")}
        found = [layer for layer in every if {layer.module, layer.module.rpartition(".")[0]} & (places - {""})]
    else:
        ends = tuple(wanted.split(","))
        found = [layer for layer in every if f".{layer.module}".endswith(tuple(f".{end}" for end in ends))]
    if not found:
        names = sorted({layer.module.rpartition(".")[2] for layer in every})
        raise InputError(f"projections {wanted!r} are not in {graph.model}; {_HELP}. It has {', '.join(names)[:300]}")
    return found


def _lacks(graph: LayerGraph) -> str:
    return "" if projections(graph) else "it has no linear map or 1x1 convolution but its head"


def _lora(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    beside = {layer.index: layer for layer in _chosen_projections(graph, chosen["projections"])}
    draft, substitutes, added = Draft(graph), {}, []
    for layer in graph.layers:
        draft.keep(layer, substitutes)
        if layer.index in beside:
            name = _name(layer)
            x = substitutes.get(layer.inputs["input"].id, layer.inputs["input"])
            substitutes[layer.output.id] = _branch(draft, layer, x, name, chosen["rank"])
            weight = layer.inputs["weight"]
            options = {"inputs": weight.shape[1], "outputs": weight.shape[0], "rank": chosen["rank"]}
            if layer.op != "linear":
                options["stride"] = layer.attributes.get("stride", 1)
            added.append(
                AddedModule(MODULE, name, layer.call, "input", layer.call, tuple(options.items()), weight.name)
            )
    outputs = tuple(substitutes.get(tensor.id, tensor) for tensor in graph.outputs)
    trains = replace(draft.rebuild(outputs), known_parts=moved_parts(draft, parts(graph)))
    trained = {*draft.parameters, *head_parameters(trains, parts(trains))}
    return trains, Assignment(frozenset(trained), frozenset(batch_norms(trains)), added=tuple(added))


def _name(layer: Layer) -> str:
    """Return a name without dots that no other call has."""
    return "-".join([*layer.module.split("."), *([str(layer.ordinal)] if layer.ordinal else [])]) or "root"


def _branch(draft: Draft, layer: Layer, x: Tensor, name: str, rank: int) -> Tensor:
    """Append the two small maps and the sum; return the sum."""
    weight, y = layer.inputs["weight"], layer.output
    path, tail = f"{MODULE}.{name}", weight.shape[2:]
    channels_last = layer.op == "linear"
    small = (*y.shape[:-1], rank) if channels_last else (y.shape[0], rank, *y.shape[2:])
    own = ("copies_input",) if channels_last else ("stride",)
    attributes = {key: layer.attributes[key] for key in own if key in layer.attributes}
    down = draft.parameter(f"{path}.down.weight", rank, weight.shape[1], *tail)
    up = draft.parameter(f"{path}.up.weight", weight.shape[0], rank, *tail)
    hidden = draft.add(layer.op, f"{path}.down", {"input": x, "weight": down}, small, **attributes)
    branch = draft.add(layer.op, f"{path}.up", {"input": hidden, "weight": up}, y.shape)
    return draft.add("add", f"{path}.add", {"input": y, "other": branch}, y.shape)


def _read_projections(value: object) -> str:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else []
    if not names or not all(names):
        raise ValueError(_HELP)
    return ",".join(names)


LORA = Method(
    "lora",
    "low-rank maps beside frozen projections train, and the head; running statistics (options rank, projections)",
    "Hu et al.: LoRA, ICLR 2022 (arXiv 2106.09685)",
    _lora,
    lacks=_lacks,
    options=(
        Option("rank", "numbers between the two maps of a projection", 4, whole_number()),
        Option(
            "projections", "which: all, attention, or ends of module names such as qkv,proj", ALL, _read_projections
        ),
    ),
)
