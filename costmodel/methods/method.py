"""What a training method is: a function from a layer graph to the graph it trains and what is done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..assignment import Assignment
from ..blocks import NORMS, Parts, parts
from ..errors import InputError, unknown
from ..graph import Layer, LayerGraph, Tensor

Training = tuple[LayerGraph, Assignment]


@dataclass(frozen=True)
class Method:
    """A training method.

    summary: one line for people. source: where it is described. takes_blocks: whether a depth k is part of it.
    assign: LayerGraph (and k, or options) -> (LayerGraph, Assignment). min_blocks: the blocks that a network must have
    for it. lacks: what else a network lacks for it, in words; nothing if it lacks nothing. options: what else must be
    chosen, with its default. has_layers: whether torch layers exist that train so; the others can be priced only.
    """

    name: str
    summary: str
    source: str
    takes_blocks: bool
    assign: Callable[..., Training]
    min_blocks: int = 0
    lacks: Callable[[LayerGraph], str] = lambda graph: ""
    options: Mapping[str, object] = field(default_factory=dict)
    has_layers: bool = True

    def applies(self, graph: LayerGraph) -> bool:
        """Whether a network has what the method needs."""
        return len(parts(graph).blocks) >= self.min_blocks and not self.lacks(graph)

    def __call__(
        self, graph: LayerGraph, blocks: int | None = None, options: Mapping[str, object] | None = None
    ) -> Training:
        """Return the graph and assignment of this method, at a depth of `blocks` if it takes one.

        Errors: InputError for a depth that is missing, not allowed, or more than the network has; for an option that
        the method does not have, or its value.
        """
        for name in options or ():
            if name not in self.options:
                if not self.options:
                    raise InputError(f"method {self.name!r} takes no options, but {name!r} was given; leave it out")
                raise unknown(f"option of method {self.name!r}", name, self.options)
        count = len(parts(graph).blocks)
        if count < self.min_blocks:
            raise InputError(
                f"method {self.name!r} needs {self.min_blocks} or more inverted residual or residual blocks, "
                f"but {graph.model} has {count or 'none'}; methods that need none: full, last, norm, bias"
            )
        if lacking := self.lacks(graph):
            raise InputError(f"method {self.name!r} cannot train {graph.model}: {lacking}; see costmodel methods")
        if not self.takes_blocks:
            if blocks is not None:
                raise InputError(
                    f"method {self.name!r} takes no number of blocks, but {blocks} was given; leave it out"
                )
            return self.assign(graph, {**self.options, **(options or {})}) if self.options else self.assign(graph)
        if blocks is None:
            raise InputError(f"method {self.name!r} needs a number of trained blocks from 1 to {count} (--blocks)")
        if isinstance(blocks, bool) or not isinstance(blocks, int) or not 1 <= blocks <= count:
            raise InputError(f"{graph.model} has {count} blocks, so blocks must be from 1 to {count}, not {blocks!r}")
        return self.assign(graph, blocks)


def whole_number(name: str, value: object, low: int, high: int | None, model: str) -> int:
    """Return an option's value as a whole number from `low` to `high`, if there is a bound.

    Errors: InputError that says what is allowed.
    """
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = value
    if isinstance(number, bool) or not isinstance(number, int) or number < low or (high and number > high):
        bounds = f"from {low} to {high} for {model}" if high else f"of {low} or more"
        raise InputError(f"{name} must be a whole number {bounds}, not {value!r}")
    return number


def source_parameter(graph: LayerGraph, tensor: Tensor) -> list[str]:
    """Return the names of the parameters that a tensor is, or is computed from alone."""
    if tensor.kind == "parameter":
        return [tensor.name]
    if tensor.kind != "derived":
        return []
    maker = graph.producer[tensor.id]
    return [name for given in maker.inputs.values() for name in source_parameter(graph, given)]


def parameters_of(graph: LayerGraph, layers: list[Layer], roles: tuple[str, ...] | None = None) -> set[str]:
    """Return the names of the parameters that layers use (in certain roles only, if roles are given)."""
    return {
        name
        for layer in layers
        for role, tensor in layer.inputs.items()
        if roles is None or role in roles
        for name in source_parameter(graph, tensor)
    }


def head_parameters(graph: LayerGraph, cut: Parts) -> set[str]:
    """Return the names of the head's parameters."""
    return parameters_of(graph, [graph.layers[cut.head]])


def batch_norms(graph: LayerGraph) -> set[int]:
    """Return the indices of the batch norms that have running statistics to use instead."""
    return {layer.index for layer in graph.layers if layer.op == "batch_norm" and "running_mean" in layer.inputs}


def norm_layers(graph: LayerGraph) -> list[Layer]:
    """Return the normalisations of activations."""
    return [layer for layer in graph.layers if layer.op in NORMS and layer.input.kind != "derived"]


def below(graph: LayerGraph, trained: set[str]) -> set[int]:
    """Return the batch norms that come before the earliest trained parameter is used."""
    users = (
        layer.index
        for layer in graph.layers
        if any(name in trained for tensor in layer.inputs.values() for name in source_parameter(graph, tensor))
    )
    first = min(users, default=len(graph.layers))
    return {index for index in batch_norms(graph) if index < first}
