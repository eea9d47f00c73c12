"""What a training method is: a function from a layer graph to the graph it trains and what is done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError
from ..graph.blocks import NORMS, Parts, head_layers, parts
from ..graph.layer_graph import LayerGraph
from ..graph.values import Layer, Tensor
from ..table import Table
from .assignment import Assignment
from .way import OptionValue

Training = tuple[LayerGraph, Assignment]
Chosen = Mapping[str, Any]  # the value of every option of a method


@dataclass(frozen=True)
class Option:
    """What a method lets one choose beside its depth.

    default: its value where none is given. read: a given value or text -> the value, which is hashable; a ValueError
    says what is allowed. most: the most that a network allows of a number that counts something of it.
    """

    name: str
    summary: str
    default: OptionValue
    read: Callable[[object], OptionValue]
    most: Callable[[LayerGraph], int] | None = None


@dataclass(frozen=True)
class Method:
    """A training method.

    summary: one line for people. source: where it is described. assign: (graph, number of trained blocks or None, value
    of every option) -> the graph that trains and what is done with it. takes_blocks: whether a depth is part of it.
    min_blocks: the blocks that a network must have for it. lacks: why it cannot train a network; empty if it can.
    options: what else may be chosen. has_layers: whether torch layers exist that train so; others can only be priced.

    anchor: whether it is an end of the scale of recovery: 'last' (0) or 'full' (1). evidence: the published method
    whose accuracies stand for it (default: its own). converts: whether it puts other operations into a network than it
    was pre-trained with, unless it was pre-trained so. needs_norm: whether it needs norm layers to differ from others.
    depth_option: the option that counts how many of the last convolutions train, if one does. marks: numbers n of which
    it treats the last n blocks differently, whatever trains.
    """

    name: str
    summary: str
    source: str
    assign: Callable[[LayerGraph, int | None, Chosen], Training]
    takes_blocks: bool = False
    min_blocks: int = 0
    lacks: Callable[[LayerGraph], str] = lambda graph: ""
    options: tuple[Option, ...] = ()
    has_layers: bool = True
    anchor: Literal["last", "full"] | None = None
    evidence: str = ""
    converts: bool = False
    needs_norm: bool = False
    depth_option: str = ""
    marks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        Table("option", ((option.name, option) for option in self.options))  # refuses a name twice

    def why_not(self, graph: LayerGraph) -> str:
        """Return why the method cannot train a network; empty if it can."""
        count = len(parts(graph).blocks)
        if count < self.min_blocks:
            needed = f"{self.min_blocks} or more inverted residual, residual or depthwise-separable blocks"
            return f"it needs {needed}, and there are {count or 'none'}"
        counted = [option.name for option in self.options if option.most and not option.most(graph)]
        return f"there is nothing that its option {counted[0]} could count" if counted else self.lacks(graph)

    def fitting_options(self, graph: LayerGraph) -> dict[str, OptionValue]:
        """Return the options whose default is more than a network has, with what it has."""
        found = {option.name: (option.default, option.most(graph)) for option in self.options if option.most}
        return {
            name: most for name, (default, most) in found.items() if isinstance(default, int) and 0 < most < default
        }

    def depths(self, graph: LayerGraph) -> range:
        """Return the numbers of blocks that can be trained; none for a method without a depth."""
        return range(1, len(parts(graph).blocks) + 1) if self.takes_blocks else range(0)


def whole_number(least: int = 1) -> Callable[[object], int]:
    """Return what reads a whole number of at least `least`."""

    def read(value: object) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ValueError(f"it must be a whole number of {least} or more")
        return number

    return read


def at_most(name: str, value: int, most: int, what: str, graph: LayerGraph) -> int:
    """Return an option's value. Errors: InputError if the network has fewer than that."""
    if value > most:
        raise InputError(f"{name} must be from 1 to {most}, the {what} of {graph.model}, not {value}")
    return value


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
    """Return the names of the parameters of the heads: one, or several where a network has several results."""
    return parameters_of(graph, [graph.layers[index] for index in {cut.head, *head_layers(graph)}])


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
