"""`mobiletl-figure1`: the stored activations of a block, as MobileTL's first figure compares them.

Per trained layer: the input of a convolution or linear layer if its weight trains; the input of a norm unless its scale
and its statistics are frozen; of an activation what its derivative needs, in plain training 2 bits per element for
ReLU6 (one for each of its two bounds) and the whole input for hard-swish, or what the method keeps instead (a mask);
both factors of a squeeze-excite product. A tensor that several layers keep counts once. Batch statistics (two numbers
per channel), parameters, gradients and everything else are left out.

Source: Chiang et al.: MobileTL, AAAI 2023 (arXiv 2212.03246), Figure 1 and abstract (46.3 % less for MobileNetV2, 53.3
% for V3). Assumption: the 2 bits of ReLU6, which no text that could be read states; of the variants in
`checking/reproduction.py` only this one comes within half a point of both percentages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer
from ..methods.assignment import Assignment
from ..rules.facts import Dense, Facts, Private
from .books import Accounting, Books, Ledger, all_at_once
from .gradients import Wanted

RELU6_BITS = 2
_RELU6 = {"relu6", "hardtanh"}


@dataclass(frozen=True)
class FigureBooks:
    """A way of keeping the books of the figure.

    relu6_bits: per element of a plain ReLU6. gate_input: the feature map that a squeeze-excite product scales counts.
    gate_vectors: what its branch keeps, some numbers per channel, counts.
    """

    relu6_bits: int = RELU6_BITS
    gate_input: bool = True
    gate_vectors: bool = True

    def __call__(self, graph: LayerGraph, assignment: Assignment, facts: Sequence[Facts], wanted: Wanted) -> Books:
        """Return the books of one training step."""
        ledger = Ledger(graph)
        for index, roles in wanted.items():
            layer, instead = graph.layers[index], assignment.kept_inputs.get(index)
            for role in roles:
                if instead is not None and role == instead.role:
                    given = layer.inputs["input" if role == "weight" else role]
                    count = instead.elements_of(given.elements)
                    ledger.keep(layer, role, Private(instead.kind, count, instead.bits, given.batched))
                    continue
                for item in facts[index].needs[role][0]:
                    if self._counts(layer, item):
                        ledger.keep(layer, role, self._in_the_figure(layer, item))
        return ledger.close()

    def _counts(self, layer: Layer, item: Dense | Private) -> bool:
        if isinstance(item, Private) and item.label == "statistics":
            return False
        if isinstance(item, Dense) and item.tensor.kind == "derived":
            return False
        if isinstance(item, Dense) and _is_vector(item):
            return self.gate_vectors
        return self.gate_input or layer.op != "mul"

    def _in_the_figure(self, layer: Layer, item: Dense | Private) -> Dense | Private:
        if isinstance(item, Private) and layer.op in _RELU6:
            return Private(item.label, item.elements, self.relu6_bits, item.batched)
        return item


def _is_vector(item: Dense) -> bool:
    """Whether a tensor is one number per channel and image, as in a squeeze-excite branch."""
    return len(item.tensor.shape) == 4 and tuple(item.tensor.shape[2:]) == (1, 1)


MOBILETL_FIGURE1 = Accounting(
    "mobiletl-figure1",
    "MobileTL's first figure: the stored activations of the trained blocks",
    "Chiang et al. (arXiv 2212.03246), Figure 1",
    FigureBooks(),
    timeline=all_at_once,
    whole_step=False,
    leaves_out="statistics, parameters, gradients, the optimizer, the forward pass of what is frozen",
)
