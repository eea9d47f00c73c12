"""What an applied network runs in place of its own calls: those whose stock form keeps too much for backward.

Everything here follows from what the way requires of the network, so that a plan can be written and made again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..accounting.books import Books, dense_key
from ..accounting.eager import EAGER, pads_one_side
from ..accounting.requirements import Requirements
from ..errors import ModelError
from ..graph.values import ADDED, Layer
from ..kept import derived
from ..layers.activations import masked
from ..layers.convolution import standardized_conv2d
from ..layers.elementwise import scale
from ..layers.norms import frozen_batch_norm, norm_of_trained_shift
from ..layers.table import LAYERS
from ..methods.assignment import AddedModule, Assignment
from ..methods.tinytl import MODULE as LITE_RESIDUAL
from ..rules.table import operation
from ..step.regions import Regions, regions
from ..step.schedule import PLAIN, Schedule
from ..tracing.calls import CallTracker, argument_names
from .derivation import Derivations

Call = tuple[str, str, int]  # module path, operation, ordinal
Replacement = Callable[[dict[str, Any]], torch.Tensor]

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class TrainingPlan:
    """What `apply` did to a model, kept on it: enough to run it and to undo it.

    required: by the `lean` books. frozen_dtype: of frozen weights. required_gradients: the `requires_grad` of each
    parameter before. dtypes: of the parameters that are stored in fewer bits, before. schedule: how a step is carried
    out.
    """

    required: Requirements
    frozen_dtype: str
    required_gradients: dict[str, bool]
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    schedule: Schedule = PLAIN

    def __deepcopy__(self, memo: dict) -> TrainingPlan:
        """A copied network shares the plan, which names modules and holds none."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave what follows from the rest out of files: functions, which no file holds."""
        own = derived(self)
        return {name: value for name, value in self.__dict__.items() if name not in own}

    @property
    def is_stock(self) -> bool:
        """Whether the network keeps PyTorch's own layers, so that nothing runs in place of a call."""
        return self.required.accounting == EAGER.name

    @cached_property
    def replacements(self) -> dict[Call, Replacement]:
        """What runs in place of which call."""
        return {} if self.is_stock else _replacements(self.required, self.frozen_dtype)

    @cached_property
    def in_autocast(self) -> dict[Call, Replacement]:
        """The replacements under autocast: of a weight that stock PyTorch casts, the cast would be kept too."""
        if self.is_stock:
            return {}
        graph, wanted = self.required.graph, self.required.wanted
        casting = {
            graph.layers[index].call: _call(_WEIGHTED[graph.layers[index].op])
            for index in wanted
            if graph.layers[index].op in _WEIGHTED and graph.layers[index].ordinal != ADDED
        }
        return casting | self.replacements

    @cached_property
    def regions(self) -> Regions:
        """The network cut up by the schedule. Errors: InputError if it does not fit."""
        return regions(self.required, self.schedule)

    @cached_property
    def places(self) -> dict[Call, int]:
        """The layer of each call."""
        return {layer.call: layer.index for layer in self.required.graph.layers}

    @cached_property
    def in_eval(self) -> dict[Call, Replacement]:
        """The replacements without which the network would compute something else, or not at all: in eval mode too."""
        casts = _WEIGHTED if self.frozen_dtype != "float32" else ()
        return {
            layer.call: self.replacements[layer.call]
            for layer in self.required.graph.layers
            if layer.in_place_of or (layer.op in casts and layer.call in self.replacements)
        }

    @cached_property
    def derived_calls(self) -> frozenset[Call]:
        """The calls that compute weights from parameters, which run again in backward."""
        graph = self.required.graph
        if self.is_stock:
            return frozenset()
        return frozenset(graph.layers[index].call for index in _derivations(self.required)[1])

    @cached_property
    def frozen_norms(self) -> tuple[str, ...]:
        """Paths of the norms that must not update running statistics."""
        graph, frozen = self.required.graph, self.required.assignment.frozen_statistics
        replaced = (layer.module for layer in graph.layers if layer.in_place_of == "batch_norm")
        return (*(graph.layers[index].module for index in sorted(frozen)), *replaced)

    @cached_property
    def added_modules(self) -> tuple[AddedModule, ...]:
        """The modules that the method puts beside blocks."""
        return self.required.assignment.added or tuple(_lite_residuals(self.required))

    @cached_property
    def entries(self) -> dict[Call, AddedModule]:
        """The calls that read first what an added module reads."""
        return {added.entry: added for added in self.added_modules}

    @cached_property
    def joints(self) -> dict[Call, AddedModule]:
        """The calls whose result an added module adds to."""
        return {added.joint: added for added in self.added_modules}


def _lite_residuals(required: Requirements):
    """Yield the lite residual modules that the method added to the graph."""
    graph = required.graph
    added = {layer.name: layer for layer in graph.layers if layer.ordinal == ADDED}
    for name, end in added.items():
        path, _, part = name.rpartition(".")
        if part != "add" or not path.startswith(f"{LITE_RESIDUAL}."):
            continue
        entry, joint, conv = added[f"{path}.pool"].input, graph.producer[end.input.id], added[f"{path}.conv1"]
        reader = next(layer for layer in graph.consumers[entry.id] if layer.ordinal != ADDED)
        role = next(role for role, tensor in reader.inputs.items() if tensor is entry)
        options = {
            "in_channels": entry.shape[1], "out_channels": joint.output.shape[1],
            "kernel_size": conv.inputs["weight"].shape[-1], "stride": conv.attributes["stride"][0],
        }  # fmt: skip
        name = path.rpartition(".")[2]
        yield AddedModule(LITE_RESIDUAL, name, reader.call, role, joint.call, tuple(options.items()))


class Replacing(CallTracker):
    """One forward pass of an applied network."""

    def __init__(self, network: nn.Module, plan: TrainingPlan, replacements: dict[Call, Replacement]):
        super().__init__(network)
        self.network, self.plan, self.replacements = network, plan, replacements
        self.block_inputs: dict[str, torch.Tensor] = {}
        self.derivations = Derivations()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Run one call, or what replaces it."""
        kwargs = kwargs or {}
        if inner := self.opened(function):
            return self.follow(function, inner, args, kwargs)
        call = self.locate(function)
        if call in self.plan.derived_calls and self.network.training:
            return self.derivations.run(function, args, kwargs)
        replacement, entry = self.replacements.get(call), self.plan.entries.get(call)
        joint = self.plan.joints.get(call)
        if replacement is None and entry is None and joint is None:
            return function(*args, **kwargs)
        arguments = {**dict(zip(argument_names(function), args, strict=False)), **kwargs}
        recipe = self.derivations.recipe(arguments.get("weight"))
        if recipe is not None:
            arguments |= {"weight": recipe.ingredients(), "compute": recipe.made_of, "made": arguments["weight"]}
        if entry is not None:
            self.block_inputs[entry.name] = arguments[entry.role]
        result = function(*args, **kwargs) if replacement is None else replacement(arguments)
        if joint is None:
            return result
        module = self.network.get_submodule(f"{joint.container}.{joint.name}")
        return module(self.block_inputs.pop(joint.name), result)


def _replacements(required: Requirements, frozen_dtype: str) -> dict[Call, Replacement]:
    graph, assignment = required.graph, required.assignment
    computed, computing = _derivations(required)
    found: dict[Call, Replacement] = {}
    for layer in graph.layers:
        if layer.ordinal == ADDED or layer.index in computing:
            continue
        roles = required.wanted.get(layer.index, ())
        name = operation(layer, layer.index in assignment.frozen_statistics)
        replacement = None
        if layer.in_place_of:
            replacement = _REWRITTEN[name](layer, roles)
        elif layer.index in computed or (frozen_dtype != "float32" and name in _WEIGHTED):
            copies = "copies_input" in layer.attributes
            replacement = _call(_WEIGHTED[name], copies_input=copies)  # it casts the weight for as long as it computes
        elif roles:
            replacement = _replacement(layer, name, roles, assignment, required.books)
        if replacement is not None:
            found[layer.call] = replacement
    return found


def _derivations(required: Requirements) -> tuple[set[int], set[int]]:
    """Return the convolutions whose weights the network computes from its parameters, and the layers that do so."""
    graph = required.graph
    chains = {
        index: {layer.index for layer in graph.derivation(graph.layers[index].inputs["weight"])}
        for index in required.wanted
        if graph.layers[index].op in _CONVOLUTIONS
    }
    computed = {index: chain for index, chain in chains.items() if chain and chain <= graph.weight_computations}
    return {*computed}, set().union(*computed.values())


def _kept(layer: Layer, books: Books) -> str:
    """Return what the books keep for a layer: 'output', 'input', or the label of something of its own."""
    for key in books.by_layer.get(layer.index, ()):
        return "output" if key == dense_key(layer.output) else "input" if key == dense_key(layer.input) else key.label
    return ""


def _replacement(
    layer: Layer, name: str, roles: tuple[str, ...], assignment: Assignment, books: Books
) -> Replacement | None:
    """Return what a call is replaced by; None where the stock call keeps just what it should."""
    kept = _kept(layer, books)
    instead = assignment.kept_inputs.get(layer.index)
    if instead is not None and not instead.exact:
        if instead.threshold is None:
            raise ModelError(
                f"no torch layer keeps {instead.kind!r} of {layer.location}; the method can only be priced"
            )
        return _masked(layer, instead.threshold)
    if name in _ONE_BIT or name == "max_pool2d":
        return _call(LAYERS[name], inplace=layer.inplace, keep=kept)
    if name in ("sigmoid", "tanh"):
        return None if kept == "output" else _call(LAYERS[name], keep=kept)
    if name in _PRODUCTS:
        return _PRODUCTS[name](layer, roles)
    if name == "frozen_batch_norm":
        return None if "weight" in roles else _call(frozen_batch_norm)
    if name in ("batch_norm", "group_norm", "layer_norm") and roles == ("bias",):
        return _norm_of_trained_shift(name)
    if name in ("mul", "div") and len(layer.inputs) == 1:
        return _scaling(layer)
    if name == "interpolate" and layer.attributes.get("mode") == "area":  # an average pool, to the traced size
        return lambda arguments: LAYERS["adaptive_avg_pool2d"](arguments["input"], tuple(layer.output.shape[2:]))
    return _call(_SHAPE_ONLY[name], inplace=layer.inplace) if name in _SHAPE_ONLY else None


def _convolution(layer: Layer, roles: tuple[str, ...]) -> Replacement | None:
    return None if "weight" in roles and not pads_one_side(layer) else _call(_WEIGHTED[layer.op])


def _linear(layer: Layer, roles: tuple[str, ...]) -> Replacement | None:
    return _call(LAYERS["linear"], copies_input=True) if "copies_input" in layer.attributes else None


def _matmul(layer: Layer, roles: tuple[str, ...]) -> Replacement | None:
    return _call(LAYERS["matmul"]) if "copies" in layer.attributes else None


_ONE_BIT = ("relu", "relu6", "hardtanh", "leaky_relu", "hardsigmoid")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_WEIGHTED = {name: LAYERS[name] for name in (*_CONVOLUTIONS, "linear")}
# Products, of which stock PyTorch keeps a factor that nothing needs, or a copy.
_PRODUCTS = {**dict.fromkeys(_CONVOLUTIONS, _convolution), "linear": _linear, "matmul": _matmul}
_SHAPE_ONLY = {name: LAYERS[name] for name in ("dropout", "avg_pool2d", "adaptive_avg_pool2d", "pad")}


def _call(function: Callable, **extra) -> Replacement:
    """Return a replacement that hands a call's arguments on, with what the plan adds."""
    accepted = frozenset(inspect.signature(function).parameters)
    added = {name: value for name, value in extra.items() if name in accepted}

    def replacement(arguments: dict[str, Any]) -> torch.Tensor:
        return function(**{name: value for name, value in arguments.items() if name in accepted} | added)

    return replacement


def _masked(layer: Layer, threshold: float) -> Replacement:
    own = tuple(value for name, value in layer.attributes.items() if name not in ("inplace", "training"))

    def replacement(arguments: dict[str, Any]) -> torch.Tensor:
        return masked(layer.op, arguments["input"], threshold, own, layer.inplace)

    return replacement


def _scaling(layer: Layer) -> Replacement | None:
    if not isinstance(layer.attributes.get("other"), (int, float)):
        return None

    def replacement(arguments: dict[str, Any]) -> torch.Tensor:
        return scale(arguments["input"], arguments["other"], layer.op == "div", layer.inplace)

    return replacement


def _group_norm(layer: Layer, roles: tuple[str, ...]) -> Replacement:
    extra = {name: layer.attributes[name] for name in ("num_groups", "eps")}
    norm = _norm_of_trained_shift("group_norm") if roles == ("bias",) else lambda given: F.group_norm(**given)
    return lambda given: norm({name: given[name] for name in ("input", "weight", "bias") if name in given} | extra)


def _norm_of_trained_shift(name: str) -> Replacement:
    return lambda arguments: norm_of_trained_shift(getattr(F, name), arguments)


# What a method puts in place of the network's own operation, in eval mode too.
_REWRITTEN: dict[str, Callable[[Layer, tuple[str, ...]], Replacement]] = {
    "group_norm": _group_norm,
    "standardized_conv2d": lambda layer, roles: _call(standardized_conv2d),
}
