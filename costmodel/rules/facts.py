"""What a rule may say of a layer, and nothing else: shapes in, facts out. No method, no torch.

Counts are per image where the layer's result grows with the batch, else absolute.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UnknownOperationError
from ..graph.values import Layer, Tensor


@dataclass(frozen=True)
class Dense:
    """A tensor of the graph, kept as it is; layers that keep the same one share it."""

    tensor: Tensor


@dataclass(frozen=True)
class Private:
    """Something that only this layer keeps: a mask, statistics, indices."""

    label: str
    elements: int
    bits: int
    batched: bool = True


Alternative = tuple[Dense | Private, ...]

NOTHING: tuple[Alternative, ...] = ((),)


@dataclass(frozen=True)
class Facts:
    """Facts about one layer.

    needs: for the gradient of each tensor argument (by role) the alternatives of what backward must have kept; any one
        of them suffices. A role that is absent has no gradient (indices, running statistics).
    forward_flops, backward_flops: of convolutions and matrix products; backward by role.
    forward_elementwise, backward_elementwise: arithmetic of everything else.
    passes_gradient: roles whose gradient is the result's gradient itself or a view of it: no memory of its own.
    views_gradient: whether PyTorch hands gradients on as views (of the result's, or of memory of their own), to which
        nothing is added in place.
    together: by the roles that are wanted, what backward must have kept for all of them, where that is known of each
        set of roles only and not of each role.
    together_flops: by the roles that are wanted, the backward FLOPs where a kernel computes these gradients together.
    """

    needs: dict[str, tuple[Alternative, ...]]
    forward_flops: int = 0
    backward_flops: dict[str, int] = field(default_factory=dict)
    forward_elementwise: int = 0
    backward_elementwise: dict[str, int] = field(default_factory=dict)
    passes_gradient: frozenset[str] = frozenset()
    views_gradient: bool = False
    together: dict[tuple[str, ...], Alternative] = field(default_factory=dict)
    together_flops: dict[tuple[str, ...], int] = field(default_factory=dict)

    def kept_together(self, layer: Layer, wanted: tuple[str, ...]) -> Alternative:
        """Return what backward must have kept for these roles; of a set that is not known, what each alone needs.

        Errors: UnknownOperationError where that is not so for other sets, or where these keep memory of their own,
        which may be the same or not.
        """
        if wanted in self.together:
            return self.together[wanted]
        kept = self._of_each(wanted)
        own, most = (
            {item for item in items if isinstance(item, Private)}
            for items in (kept, self.together[max(self.together, key=len)])
        )
        if (own and own != most) or any({*self._of_each(roles)} != {*seen} for roles, seen in self.together.items()):
            raise UnknownOperationError(
                f"what {layer.location} keeps was not seen for the gradients of {', '.join(wanted)} without those of "
                "its other arguments; train all of these, or its biases alone, or none"
            )
        return kept

    def _of_each(self, wanted: tuple[str, ...]) -> Alternative:
        """Return what these roles need, each alone."""
        return tuple(dict.fromkeys(item for role in wanted for item in self.together[role,]))

    def backward_flops_of(self, wanted: tuple[str, ...]) -> dict[str, int]:
        """Return the backward FLOPs by role; what is computed together stands with the first of them."""
        if wanted in self.together_flops:
            return {wanted[0]: self.together_flops[wanted]}
        return {role: self.backward_flops.get(role, 0) for role in wanted}


def dense(*tensors: Tensor) -> Alternative:
    """Return the alternative that keeps these tensors."""
    return tuple(Dense(tensor) for tensor in tensors)


def activations(layer: Layer) -> list[str]:
    """Return the roles of the arguments that may need a gradient."""
    return [role for role, tensor in layer.inputs.items() if tensor.kind != "constant"]
