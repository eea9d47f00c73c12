"""TinyTL: biases and lite residual modules train, on a network with group norm and weight standardisation.

Source: Cai et al.: TinyTL, NeurIPS 2020 (arXiv 2007.11622), sections 3.1 and 3.2. A batch-norm network is converted:
every batch norm becomes group norm (8 channels per group, or the most below that divide the channels), every
convolution without a bias standardises its weight. That changes the function that the network was pre-trained for;
TinyTL's networks were pre-trained so. Parameters and buffers keep their names.

Lite residual, beside every block but the first, added to the block's result inside its skip connection:
average pool 2x2 -> k x k convolution (2 groups, the block's stride) -> norm -> ReLU -> 1x1 convolution -> norm ->
bilinear upsampling. k is 5, and 3 in the last four blocks. Source: appendix B, and for ProxylessNAS-Mobile the
trained parameters 1,947,078 with 102 classes, which no other number of blocks gives.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import InputError
from ..graph.blocks import Block, parts
from ..graph.layer_graph import LayerGraph
from ..graph.rewrite import Draft, moved_parts
from ..graph.values import Layer, Tensor
from .assignment import Assignment
from .method import Chosen, Method, Training, head_parameters, parameters_of

CHANNELS_PER_GROUP = 8
GROUPS = 2
POOL = 2
LARGE_KERNEL, SMALL_KERNEL, SMALL_KERNEL_BLOCKS = 5, 3, 4
MODULE = "lite_residual"


def norm_groups(channels: int) -> int:
    """Return the groups of a group norm: 8 channels each, or the most below 8 that divide the channels."""
    per_group = next(size for size in range(min(CHANNELS_PER_GROUP, channels), 0, -1) if channels % size == 0)
    return channels // per_group


def lite_residual_name(block: Block) -> str:
    """Return the path of a block's lite residual module."""
    return f"{MODULE}.block{block.index}"


def lite_residual_kernel(block: Block, count: int) -> int:
    """Return the kernel size of a block's lite residual, of `count` blocks."""
    return SMALL_KERNEL if block.index > count - SMALL_KERNEL_BLOCKS else LARGE_KERNEL


def convert(graph: LayerGraph) -> LayerGraph:
    """Return the graph with group norm in place of batch norm and standardised convolutions."""
    layers = []
    for layer in graph.layers:
        if layer.op == "batch_norm" and layer.input.kind != "derived":
            inputs = {role: tensor for role, tensor in layer.inputs.items() if role in ("input", "weight", "bias")}
            groups = norm_groups(layer.input.shape[1])
            attributes = {"num_groups": groups, "eps": layer.attributes.get("eps", 1e-5)}
            layer = replace(layer, op="group_norm", inputs=inputs, attributes=attributes, in_place_of=layer.op)
        elif layer.op == "conv2d" and "bias" not in layer.inputs and layer.inputs["weight"].kind == "parameter":
            layer = replace(layer, op="standardized_conv2d", in_place_of=layer.op)
        layers.append(layer)
    return replace(graph, layers=tuple(layers), known_parts=parts(graph))


def _insert(graph: LayerGraph) -> tuple[LayerGraph, dict[str, str]]:
    """Return the graph with a lite residual beside every block but the first, and the new norms' shifts by module."""
    cut = parts(graph)
    draft, substitutes, last_shifts = Draft(graph), {}, {}
    ends = {_joint(block): block for block in cut.blocks[1:]}
    for layer in graph.layers:
        draft.keep(layer, substitutes)
        if block := ends.get(layer.index):
            source = substitutes.get(_entry(graph, block).id, _entry(graph, block))
            result, shift = _lite_residual(draft, block, len(cut.blocks), source, layer.output)
            substitutes[layer.output.id] = result
            last_shifts[lite_residual_name(block)] = shift
    outputs = tuple(substitutes.get(tensor.id, tensor) for tensor in graph.outputs)
    return replace(draft.rebuild(outputs), known_parts=moved_parts(draft, cut)), last_shifts


def _joint(block: Block) -> int:
    """Return the layer whose result the lite residual is added to: the norm that closes the main branch."""
    return max(block.closing_norms)


def _lacks(graph: LayerGraph) -> str:
    open_ended = [block.index for block in parts(graph).blocks[1:] if not block.closing_norms]
    return f"no norm closes the main branch of block {open_ended[0]}, to add a lite residual to" if open_ended else ""


def _entry(graph: LayerGraph, block: Block) -> Tensor:
    """Return a block's input: what its layers read of the layers before it."""
    for layer in graph.layers[block.first : block.last + 1]:
        for tensor in layer.inputs.values():
            maker = graph.producer.get(tensor.id)
            if tensor.kind == "activation" and (maker is None or maker.index < block.first):
                return tensor
    raise InputError(f"block {block.index} of {graph.model} reads nothing of the layers before it")


def _lite_residual(draft: Draft, block: Block, count: int, x: Tensor, y: Tensor) -> tuple[Tensor, str]:
    """Append a lite residual from x (N x in x H x W) to y (N x out x H' x W'); return the sum and its last shift."""
    name = lite_residual_name(block)
    n, channels, height, width = x.shape
    _, outputs, *size = y.shape
    kernel, stride = lite_residual_kernel(block, count), -(-height // size[0])
    pooled = draft.add(
        "avg_pool2d", f"{name}.pool", {"input": x}, (n, channels, height // POOL, width // POOL), kernel_size=POOL
    )
    small = [(edge + 2 * (kernel // 2) - kernel) // stride + 1 for edge in pooled.shape[2:]]

    def convolve(part: str, given: Tensor, out: int, k: int, stride: int, groups: int) -> Tensor:
        weight = draft.parameter(f"{name}.{part}.weight", out, channels // groups, k, k)
        attributes = {"stride": (stride, stride), "padding": (k // 2, k // 2), "dilation": (1, 1), "groups": groups}
        return draft.add(
            "standardized_conv2d", f"{name}.{part}", {"input": given, "weight": weight}, (n, out, *small), **attributes
        )

    def normalise(part: str, given: Tensor) -> Tensor:
        width = given.shape[1]
        inputs = {"input": given, "weight": draft.parameter(f"{name}.{part}.weight", width)}
        inputs["bias"] = draft.parameter(f"{name}.{part}.bias", width)
        return draft.add("group_norm", f"{name}.{part}", inputs, given.shape, num_groups=norm_groups(width))

    hidden = normalise("norm1", convolve("conv1", pooled, channels, kernel, stride, GROUPS))
    hidden = draft.add("relu", f"{name}.act", {"input": hidden}, hidden.shape)
    branch = normalise("norm2", convolve("conv2", hidden, outputs, 1, 1, 1))
    branch = draft.add("interpolate", f"{name}.upsample", {"input": branch}, y.shape, mode="bilinear")
    total = draft.add("add", f"{name}.add", {"input": y, "other": branch}, y.shape)
    return total, f"{name}.norm2.bias"


def _biases(graph: LayerGraph) -> set[str]:
    return parameters_of(graph, list(graph.layers), ("bias",))


def _is_lite(layer: Layer) -> bool:
    return f".{MODULE}." in f".{layer.module}."


def _tinytl_b(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    graph = convert(graph)
    return graph, Assignment(frozenset(head_parameters(graph, parts(graph)) | _biases(graph)))


def _lite(graph: LayerGraph) -> tuple[LayerGraph, set[str], dict[str, str]]:
    """Return the converted graph with lite residuals, their parameters, and the last shift of each."""
    graph = convert(graph)
    if any(_is_lite(layer) for layer in graph.layers):  # present already
        last_shifts = {}
    else:
        graph, last_shifts = _insert(graph)
    lite = parameters_of(graph, [layer for layer in graph.layers if _is_lite(layer)])
    return graph, lite, last_shifts or {name: name for name in lite if name.endswith("norm2.bias")}


def _tinytl_l(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    graph, lite, _ = _lite(graph)
    return graph, Assignment(frozenset(lite | head_parameters(graph, parts(graph))))


def _tinytl_lb(graph: LayerGraph, blocks: int | None, chosen: Chosen) -> Training:
    graph, lite, last_shifts = _lite(graph)
    trained = lite | head_parameters(graph, parts(graph)) | _biases(graph)
    # The block's own shift, which it is added to, trains.
    return graph, Assignment(frozenset(trained - set(last_shifts.values())))


_SOURCE = "Cai et al.: TinyTL, NeurIPS 2020 (arXiv 2007.11622)"
TINYTL_B = Method(
    "tinytl-b",
    "as bias, on the network with group norm and weight standardisation",
    _SOURCE,
    _tinytl_b,
    converts=True,
    needs_norm=True,
)
TINYTL_L = Method(
    "tinytl-l",
    "lite residual modules and the head train, on such a network",
    _SOURCE,
    _tinytl_l,
    min_blocks=2,
    lacks=_lacks,
    converts=True,
    needs_norm=True,
)
TINYTL_LB = Method(
    "tinytl-lb",
    "lite residual modules, every bias and shift, and the head train",
    _SOURCE,
    _tinytl_lb,
    min_blocks=2,
    lacks=_lacks,
    converts=True,
    needs_norm=True,
)
