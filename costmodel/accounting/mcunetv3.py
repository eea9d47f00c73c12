"""`mcunetv3`: what MCUNetV3's update schemes cost beyond inference, in bits.

    per convolution whose bias trains:  outputs x 1 (a mask)  +  biases x 32
    and if its weight trains:           input pixels x kept channels x 8  +  kept weights x 8
    classifier:                         its input x 8, and nothing for its weights

Kept channels are int(channels x ratio); a depthwise convolution has one filter per kept channel, another one per kept
channel and output. A batch norm behind a convolution is folded into it, so that its shift is the bias. Every
convolution has a mask, projections (which have no activation) too. Printed in KiB, the first term of each line
(activations) for one image. It leaves out the memory of inference itself, the optimizer (none without momentum) and
whatever is computed on the way back.

Source: Lin et al.: On-Device Training Under 256KB Memory, NeurIPS 2022 (arXiv 2206.15472);
nelem_saved_for_backward in algorithm/core/utils/partial_backward.py of mit-han-lab/tiny-training.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.blocks import CONVOLUTIONS, biases_of, parts
from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer
from ..methods.assignment import Assignment
from ..rules.facts import Facts
from ..units import bytes_of_bits
from .books import Accounting, Books, Execution, Instant, Key, Saved
from .gradients import Wanted

MASK_BITS, ACTIVATION_BITS, WEIGHT_BITS, BIAS_BITS = 1, 8, 8, 32


def _trains_bias(graph: LayerGraph, layer: Layer, wanted: Wanted) -> bool:
    """Whether a convolution's bias trains: its own, or the shift of the norm that alone reads its result."""
    return any("bias" in wanted.get(adding.index, ()) for adding, _ in biases_of(graph, layer))


def _keep(graph: LayerGraph, assignment: Assignment, facts: Sequence[Facts], wanted: Wanted) -> Books:
    saved, by_layer = {}, {}

    def enter(layer: Layer, what: str, role: str, elements: int, bits: int) -> None:
        key = Key("layer", layer.index, what)
        shape = f"N x {elements}"
        saved[key] = Saved(key, what, shape, elements, bits, True, False, None, {layer.index: (role,)})
        by_layer.setdefault(layer.index, []).append(key)

    for layer in graph.layers:
        weight_trains = "weight" in wanted.get(layer.index, ())
        if layer.op in CONVOLUTIONS and layer.output.kind == "activation":
            if weight_trains or _trains_bias(graph, layer, wanted):
                enter(layer, "mask", "input", layer.output.elements, MASK_BITS)
            if weight_trains:
                x, instead = layer.inputs["input"], assignment.kept_inputs.get(layer.index)
                kept = x.elements if instead is None else instead.elements_of(x.elements)
                enter(layer, "input", "weight", kept, ACTIVATION_BITS)
        elif layer.index == parts(graph).head and weight_trains:
            enter(layer, "input", "weight", layer.input.elements, ACTIVATION_BITS)
    return Books(saved, by_layer)


def _timeline(graph: LayerGraph, assignment: Assignment, books: Books, how: Execution) -> list[Instant]:
    """Return one moment: what is kept of the forward pass, and the gradients of what trains."""
    head = {tensor.name for tensor in graph.layers[parts(graph).head].parameters.values()}
    bits = 0
    for name in assignment.trained - head:
        tensor = graph.parameters[name]
        count = assignment.trained_elements.get(name, tensor.elements)
        bits += count * (BIAS_BITS if len(tensor.shape) == 1 else WEIGHT_BITS)
    kept = sum(saved.total_bits(how.batch) for saved in books.saved.values())
    return [("backward", "", {"saved_activations": bytes_of_bits(kept), "gradients": bytes_of_bits(bits)})]


MCUNETV3 = Accounting(
    "mcunetv3",
    "MCUNetV3's update schemes: masks, 8-bit inputs, and gradients of the updated weights and biases",
    "Lin et al. (arXiv 2206.15472), and its released code",
    _keep,
    timeline=_timeline,
    whole_step=False,
    leaves_out="inference's own memory, the weights, gradients of activations, the optimizer",
)
