"""In how many bits a training step computes and keeps its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import unknown
from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer, Tensor
from ..units import BYTES_PER_ELEMENT

WEIGHTS = GRADIENTS = ("float32",)
FROZEN = ("float32", "float16", "int8")
ACTIVATIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Precision:
    """The precision of what trains, of frozen weights, of activations and of parameters' gradients.

    weights, gradients: float32. frozen: how frozen parameters of two or more dimensions are stored: float32, float16 or
    int8; frozen vectors (norms, biases) stay in float32. activations: float32, or float16 or bfloat16 under autocast.

    Errors: InputError for a precision that does not exist.
    """

    weights: str = "float32"
    frozen: str = "float32"
    activations: str = "float32"
    gradients: str = "float32"

    def __post_init__(self) -> None:
        for kind, given, allowed in (
            ("dtype of trained weights", self.weights, WEIGHTS),
            ("dtype of frozen weights", self.frozen, FROZEN),
            ("activation dtype", self.activations, ACTIVATIONS),
            ("dtype of gradients", self.gradients, GRADIENTS),
        ):
            if given not in allowed:
                raise unknown(kind, str(given), allowed)

    @property
    def activation_bytes(self) -> int:
        """Bytes of one number of an activation."""
        return BYTES_PER_ELEMENT[self.activations]

    @property
    def gradient_bytes(self) -> int:
        """Bytes of one number of a parameter's gradient; the optimizer's state has the same precision."""
        return BYTES_PER_ELEMENT[self.gradients]

    @property
    def label(self) -> str:
        """What is not float32, for people, such as 'frozen weights in int8'; empty if all is."""
        parts = (("frozen weights", self.frozen), ("activations", self.activations))
        return ", ".join(f"{what} in {dtype}" for what, dtype in parts if dtype != "float32")

    def reduces(self, parameter: Tensor, trains: bool) -> bool:
        """Whether a parameter is stored in another precision than the one that it trains in."""
        return self.frozen != self.weights and not trains and len(parameter.shape) >= 2

    def stored_bytes(self, parameter: Tensor, trains: bool) -> int:
        """Return the bytes of a parameter as it is stored; with int8 one scale per output channel comes beside it.

        Assumption: symmetric quantisation per channel, its scales in the weights' own precision.
        """
        own = BYTES_PER_ELEMENT[self.weights]
        if not self.reduces(parameter, trains):
            return parameter.bytes(1, own)
        scales = own * parameter.shape[0] if self.frozen == "int8" else 0
        return parameter.elements * BYTES_PER_ELEMENT[self.frozen] + scales

    def to_dict(self) -> dict[str, str]:
        """Return the precision as plain values for JSON."""
        return {"activation_dtype": self.activations, "frozen_dtype": self.frozen}


# What gives the wider type of its arguments. Source: torch.result_type; promote in aten/src/ATen/autocast_mode.h.
_PROMOTES = frozenset(("add", "sub", "mul", "div", "addcmul", "cat", "stack", "where"))


def float32_under_autocast(graph: LayerGraph) -> Layer | None:
    """Return the first layer whose result is float32 under autocast, as it joins an activation with a parameter.

    What follows in float32 is not followed: activations count in the precision that was asked for.
    """
    for layer in graph.layers:
        kinds = {tensor.kind for tensor in layer.inputs.values() if tensor.dtype == "float32" and tensor.shape}
        if layer.op in _PROMOTES and "activation" in kinds and kinds & {"parameter", "derived", "constant"}:
            return layer
    return None


def precision_from(saved: Mapping[str, Any]) -> Precision:
    """Return the precision that `Precision.to_dict` wrote; what is absent is float32."""
    return Precision(
        frozen=saved.get("frozen_dtype", "float32"), activations=saved.get("activation_dtype", "float32")
    )  # fmt: skip
