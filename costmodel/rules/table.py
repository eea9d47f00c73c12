"""Facts about each kind of layer: one file per family, one table.

To add an operation write a function `Layer -> Facts` in the family's file and a line here; every entry runs through
the same tests against PyTorch's own saved tensors, gradients and FLOP counter.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UnknownOperationError
from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer
from ..kept import kept
from ..table import Table
from . import activations, arithmetic, attention, learned, linear, norms, reductions, shapes
from .facts import Facts

Rule = Callable[[Layer], Facts]

RULES: Table[Rule] = Table(
    "operation",
    {
        "conv1d": linear.convolution,
        "conv2d": linear.convolution,
        "conv3d": linear.convolution,
        "standardized_conv2d": linear.convolution,
        "linear": linear.linear,
        "matmul": linear.matmul,
        "bmm": linear.matmul,
        "scaled_dot_product_attention": attention.scaled_dot_product,
        "batch_norm": norms.batch_norm,
        "frozen_batch_norm": norms.frozen_batch_norm,
        "group_norm": norms.group_norm,
        "layer_norm": norms.layer_norm,
        "relu": activations.two_slopes(1),
        "relu6": activations.two_slopes(2),
        "hardtanh": activations.two_slopes(2),
        "leaky_relu": activations.two_slopes(2),
        "hardsigmoid": activations.two_slopes(4, output_serves=False),
        "sigmoid": activations.of_output(3, 3),
        "tanh": activations.of_output(1, 3),
        "exp": activations.of_output(1, 1, input_serves=False),
        "sqrt": activations.of_output(1, 2, input_serves=False),
        "rsqrt": activations.of_output(2, 3, input_serves=False),
        "softmax": activations.of_output(4, 4, input_serves=False),
        "log_softmax": activations.of_output(4, 4, input_serves=False),
        "hardswish": activations.of_input(5, 5),
        "silu": activations.of_input(4, 6),
        "gelu": activations.of_input(5, 8),
        "mish": activations.of_input(6, 10),
        "glu": activations.of_input(5, 8),
        "elu": activations.of_input(3, 3),
        "celu": activations.of_input(4, 4),
        "selu": activations.of_input(4, 4),
        "softplus": activations.of_input(3, 3),
        "log": activations.of_input(1, 1),
        "abs": activations.of_input(1, 2),
        "clamp": activations.of_input(2, 2),
        "clamp_min": activations.of_input(1, 1),
        "prelu": activations.prelu,
        "dropout": activations.dropout,
        "add": arithmetic.add,
        "sub": arithmetic.add,
        "mul": arithmetic.mul,
        "div": arithmetic.div,
        "pow": arithmetic.power,
        "square": arithmetic.power,
        "addcmul": arithmetic.addcmul,
        "neg": reductions.linear_map,
        "adaptive_avg_pool2d": reductions.linear_map,
        "avg_pool2d": reductions.linear_map,
        "interpolate": reductions.linear_map,
        "mean": reductions.linear_map,
        "sum": reductions.total,
        "var": reductions.variance,
        "norm": reductions.euclidean_norm,
        "max_pool2d": reductions.max_pool,
        "cat": shapes.same_elements,
        "stack": shapes.same_elements,
        "contiguous": shapes.copied,
        "clone": shapes.copied,
        "flatten": shapes.same_elements,
        "permute": shapes.same_elements,
        "reshape": shapes.same_elements,
        "reshape_as": shapes.same_elements,
        "squeeze": shapes.same_elements,
        "swapaxes": shapes.same_elements,
        "transpose": shapes.same_elements,
        "unflatten": shapes.same_elements,
        "unsqueeze": shapes.same_elements,
        "view": shapes.same_elements,
        "view_as": shapes.same_elements,
        "movedim": shapes.same_elements,
        "T": shapes.same_elements,
        "mT": shapes.same_elements,
        "chunk": shapes.some_elements,
        "expand": shapes.some_elements,
        "expand_as": shapes.some_elements,
        "getitem": shapes.selected,
        "pad": shapes.some_elements,
        "split": shapes.some_elements,
        "unbind": shapes.some_elements,
        "narrow": shapes.some_elements,
        "select": shapes.some_elements,
        "flip": shapes.some_elements,
        "roll": shapes.some_elements,
        "repeat": shapes.some_elements,
        "tile": shapes.some_elements,
        "repeat_interleave": shapes.some_elements,
        "pixel_shuffle": shapes.some_elements,
        "pixel_unshuffle": shapes.some_elements,
    },
)


def operation(layer: Layer, frozen_statistics: bool = False) -> str:
    """Return the name of the layer's rule: batch norm has one for each kind of statistics, complex numbers none."""
    if any(tensor.dtype.startswith("complex") for tensor in (*layer.inputs.values(), *layer.outputs)):
        return f"complex {layer.op}"
    if layer.op == "batch_norm" and (frozen_statistics or not layer.attributes.get("training", True)):
        return "frozen_batch_norm"
    return layer.op


@kept
def facts(graph: LayerGraph, layer: Layer, frozen_statistics: bool = False) -> Facts:
    """Return the facts of a layer of a graph; they are worked out once per graph.

    Errors: UnknownOperationError for an operation that has no rule.
    """
    name = operation(layer, frozen_statistics)
    if "cut_off" in layer.attributes:  # no gradient goes through it: it runs, and that is all
        known = Facts({}) if layer.op == "detach" else _of_any(graph, layer, name)
        return Facts({}, known.forward_flops, forward_elementwise=known.forward_elementwise)
    return _of_any(graph, layer, name)


def _of_any(graph: LayerGraph, layer: Layer, name: str) -> Facts:
    if name in RULES:
        return RULES[name](layer)
    if layer.learned is not None:
        return learned.facts(layer, layer.learned)
    raise UnknownOperationError(
        f"no rule for the operation {layer.op!r} ({layer.location} of {graph.model}), and it could not be learned by "
        "running it alone, so its cost is unknown; give a rule with costmodel.register_rule, or write it with other "
        "operations"
    )
