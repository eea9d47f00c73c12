"""Assignment + torch model -> a model that trains exactly that way, keeping what the `lean` accounting says.

The network's modules stay where they are, with their state-dict keys. While it trains, its forward runs under a
tracker of calls, which hands those calls whose stock form keeps too much to the functions of `costmodel.layers`. In
eval mode the network runs as it always did.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..accounting.books import Books, dense_key
from ..accounting.gradients import Wanted, wanted_gradients
from ..accounting.lean import LEAN
from ..errors import InputError, ModelError
from ..graph.layer_graph import LayerGraph
from ..graph.values import ADDED, Layer
from ..layers.activations import masked
from ..layers.convolution import standardized_conv2d
from ..layers.elementwise import scale
from ..layers.lite_residual import LiteResidual
from ..layers.norms import frozen_batch_norm, norm_of_trained_shift
from ..layers.table import LAYERS
from ..methods.assignment import Assignment
from ..methods.table import Trained, assign
from ..methods.table import method as find_method
from ..methods.tinytl import MODULE as LITE_RESIDUAL
from ..rules.table import operation
from ..step.training_step import FROZEN_BYTES
from ..tracing.calls import CallTracker, argument_names
from ..tracing.tracer import trace
from .derivation import Derivations

Call = tuple[str, str, int]  # module path, operation, ordinal
Replacement = Callable[[dict[str, Any]], torch.Tensor]

_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_ATTRIBUTE = "_costmodel_plan"


@dataclass(frozen=True)
class TrainingPlan:
    """What `apply` did to a model, kept on it: enough to run it and to undo it.

    replacements: by call; in_eval: those that change what the network computes, and so run in eval mode too. derived:
    the calls that compute weights from parameters, which run again in backward.
    entries, joints: where the blocks with a lite residual begin and end.
    frozen_norms: paths of the norms that must not update running statistics. required_gradients: the `requires_grad`
    of each parameter before. dtypes: of the parameters that are stored in fewer bits, before.
    """

    graph: LayerGraph
    assignment: Assignment
    books: Books
    replacements: dict[Call, Replacement]
    in_eval: dict[Call, Replacement]
    derived: frozenset[Call]
    entries: dict[Call, tuple[str, str]]
    joints: dict[Call, str]
    frozen_norms: tuple[str, ...]
    required_gradients: dict[str, bool]
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> TrainingPlan:
        """A copied network shares the plan, which names modules and holds none."""
        return self


class _Replacing(CallTracker):
    """One forward pass of an applied network."""

    def __init__(self, network: nn.Module, plan: TrainingPlan, replacements: dict[Call, Replacement]):
        super().__init__(network)
        self.network, self.plan, self.replacements = network, plan, replacements
        self.block_inputs: dict[str, torch.Tensor] = {}
        self.derivations = Derivations()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        call = self.locate(function)
        if call in self.plan.derived and self.network.training:
            return self.derivations.run(function, args, kwargs)
        replacement, entry = self.replacements.get(call), self.plan.entries.get(call)
        block = self.plan.joints.get(call)
        if replacement is None and entry is None and block is None:
            return function(*args, **kwargs)
        arguments = {**dict(zip(argument_names(function), args, strict=False)), **kwargs}
        recipe = self.derivations.recipe(arguments.get("weight"))
        if recipe is not None:
            arguments |= {"weight": recipe.ingredients(), "compute": recipe.made_of, "made": arguments["weight"]}
        if entry is not None:
            role, entered = entry
            self.block_inputs[entered] = arguments[role]
        result = function(*args, **kwargs) if replacement is None else replacement(arguments)
        if block is None:
            return result
        return self.network.get_submodule(f"{LITE_RESIDUAL}.{block}")(self.block_inputs.pop(block), result)


class Applied:
    """Mixed into an applied model's class: its forward keeps what the plan says while it trains."""

    def forward(self, *args, **kwargs):
        """Run the network's own forward."""
        plan = self.__dict__[_ATTRIBUTE]
        replacements = plan.replacements if self.training else plan.in_eval
        if not replacements and not plan.joints:
            return super().forward(*args, **kwargs)
        with _Replacing(self, plan, replacements):
            return super().forward(*args, **kwargs)

    def train(self, mode: bool = True):
        """Set train or eval mode; norms with frozen statistics stay in eval mode."""
        super().train(mode)
        for path in self.__dict__[_ATTRIBUTE].frozen_norms:
            self.get_submodule(path).training = False
        return self


def apply(
    model: nn.Module,
    method: str | None = None,
    blocks: int | None = None,
    resolution: int = 224,
    frozen_dtype: str = "float32",
    *,
    options: Mapping[str, object] | None = None,
    trained: Trained | None = None,
) -> nn.Module:
    """Make a model ready to train by a method; return the same module, changed in place.

    `requires_grad` is set, norms with frozen statistics stay so through `.train()`, and what the forward pass keeps for
    backward is what `footprint(..., accounting="lean")` says. Parameters and state-dict keys stay; eval mode is
    untouched. `restore` undoes it.

    method, blocks, options, trained: as in `footprint`. resolution: of the images it will see (or any at
    which its calls are the same). frozen_dtype: float32 or float16, how frozen
    weights are stored.

    Errors: InputError for a method or depth that does not exist, or a model that is applied already; ModelError, naming
    the call, where the network makes one that cannot be replaced.
    """
    if isinstance(model, Applied):
        raise InputError("the model is applied already; undo that with costmodel.restore(model) first")
    if frozen_dtype not in _TORCH_DTYPES:
        hint = "is priced only: no torch layer computes with it" if frozen_dtype in FROZEN_BYTES else "is unknown"
        raise InputError(f"frozen_dtype {frozen_dtype!r} {hint}; allowed: {', '.join(_TORCH_DTYPES)}")
    if method is not None and not find_method(method).has_layers:
        raise InputError(f"method {method!r} can be priced only: no torch layers of this package train so")
    method, graph, assignment = assign(trace(model, resolution), method, blocks, trained, options)
    facts, wanted = wanted_gradients(graph, assignment)
    books = LEAN.keep(graph, assignment, facts, wanted)
    computed, derived = _derivations(graph, wanted)
    replacements = _replacements(graph, assignment, wanted, books, frozen_dtype, computed, derived)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    rewritten = [layer for layer in graph.layers if layer.in_place_of]
    if rewritten:
        changes = ", ".join(sorted({f"{layer.op} in place of {layer.in_place_of}" for layer in rewritten}))
        warnings.warn(
            f"{method} puts {changes}: the network computes something else than it was pre-trained for, unless it was "
            "pre-trained so",
            stacklevel=2,
        )
    entries, joints = _add_lite_residuals(model, graph)
    in_eval = {layer.call: replacements[layer.call] for layer in rewritten}
    frozen_norms = tuple(graph.layers[index].module for index in sorted(assignment.frozen_statistics))
    frozen_norms += tuple(layer.module for layer in rewritten if layer.in_place_of == "batch_norm")
    again = frozenset(graph.layers[index].call for index in derived)
    plan = TrainingPlan(graph, assignment, books, replacements, in_eval, again, entries, joints, frozen_norms, before)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in assignment.trained)
        if name not in assignment.trained and frozen_dtype != "float32" and parameter.dim() > 1:
            plan.dtypes[name] = parameter.dtype
            parameter.data = parameter.data.to(_TORCH_DTYPES[frozen_dtype])
    model.__dict__[_ATTRIBUTE] = plan
    model.__class__ = type(f"Applied{type(model).__name__}", (Applied, type(model)), {})
    return model.train(model.training)


def restore(model: nn.Module) -> nn.Module:
    """Undo `apply`; return the same module, its weights as they were trained (float32 again).

    Errors: InputError if the model is not applied.
    """
    if not isinstance(model, Applied):
        raise InputError("the model is not applied; there is nothing to restore")
    plan = model.__dict__.pop(_ATTRIBUTE)
    model.__class__ = type(model).__mro__[2]
    if hasattr(model, LITE_RESIDUAL) and f"{LITE_RESIDUAL}." not in " ".join(plan.required_gradients):
        delattr(model, LITE_RESIDUAL)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(plan.required_gradients[name])
        if name in plan.dtypes:
            parameter.data = parameter.data.to(plan.dtypes[name])
    return model.train(model.training)


def _replacements(
    graph: LayerGraph,
    assignment: Assignment,
    wanted: Wanted,
    books: Books,
    frozen_dtype: str,
    computed: set[int],
    derived: set[int],
) -> dict[Call, Replacement]:
    found: dict[Call, Replacement] = {}
    for layer in graph.layers:
        if layer.ordinal == ADDED or layer.index in derived:
            continue
        roles = wanted.get(layer.index, ())
        name = operation(layer, layer.index in assignment.frozen_statistics)
        replacement = None
        if layer.in_place_of:
            replacement = _REWRITTEN[name](layer, roles)
        elif layer.index in computed or (frozen_dtype != "float32" and name in _WEIGHTED):
            replacement = _call(_WEIGHTED[name])  # it casts the weight for as long as it computes
        elif roles:
            replacement = _replacement(layer, name, roles, assignment, books)
        if replacement is not None:
            found[layer.call] = replacement
    return found


def _derivations(graph: LayerGraph, wanted: Wanted) -> tuple[set[int], set[int]]:
    """Return the convolutions whose weights the network computes from its parameters, and the layers that do so.

    Errors: ModelError where something else than a convolution reads what they compute.
    """
    chains = {
        index: graph.derivation(graph.layers[index].inputs["weight"])
        for index in wanted
        if graph.layers[index].op in _CONVOLUTIONS
    }
    derived = {layer.index for chain in chains.values() for layer in chain}
    for index in wanted.keys() - derived:
        layer = graph.layers[index]
        for role, tensor in layer.inputs.items():
            if tensor.kind != "derived" or (role == "weight" and index in chains):
                continue
            producer = graph.producer[tensor.id]
            if tensor.storage.id not in graph.resident_storages or producer.index in derived:
                raise ModelError(
                    f"{layer.location} of {graph.model} uses a tensor that the network computes from its parameters "
                    f"({producer.location}), which only a convolution can, as its weight: stock PyTorch keeps it and "
                    "nothing here can replace that call"
                )
    return {index for index, chain in chains.items() if chain}, derived


def _kept(layer: Layer, books: Books) -> str:
    """Return what the books keep for a layer: 'output', 'input', or the label of something of its own."""
    for key in books.by_layer.get(layer.index, ()):
        return "output" if key == dense_key(layer.output) else "input" if key == dense_key(layer.input) else key[-1]
    return ""


def _replacement(
    layer: Layer, name: str, roles: tuple[str, ...], assignment: Assignment, books: Books
) -> Replacement | None:
    """Return what a call is replaced by; None where the stock call keeps just what it should."""
    kept = _kept(layer, books)
    storage = assignment.storages.get(layer.index)
    if storage is not None and not storage.exact:
        return _masked(layer, storage.threshold)
    if name in _ONE_BIT or name == "max_pool2d":
        return _call(LAYERS[name], inplace=layer.inplace, keep=kept)
    if name in ("sigmoid", "tanh"):
        return None if kept == "output" else _call(LAYERS[name], keep=kept)
    if name in _WEIGHTED and name != "linear":
        return None if "weight" in roles else _call(_WEIGHTED[name])
    if name == "frozen_batch_norm":
        return None if "weight" in roles else _call(frozen_batch_norm)
    if name in ("batch_norm", "group_norm", "layer_norm") and roles == ("bias",):
        return _norm_of_trained_shift(name)
    if name in ("mul", "div") and len(layer.inputs) == 1:
        return _scaling(layer)
    if name == "interpolate" and layer.attributes.get("mode") == "area":  # an average pool, to the traced size
        return lambda arguments: LAYERS["adaptive_avg_pool2d"](arguments["input"], tuple(layer.output.shape[2:]))
    return _call(_SHAPE_ONLY[name], inplace=layer.inplace) if name in _SHAPE_ONLY else None


_ONE_BIT = ("relu", "relu6", "hardtanh", "leaky_relu", "hardsigmoid")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_WEIGHTED = {name: LAYERS[name] for name in (*_CONVOLUTIONS, "linear")}
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


def _add_lite_residuals(model: nn.Module, graph: LayerGraph) -> tuple[dict[Call, tuple[str, str]], dict[Call, str]]:
    """Give the model the lite residual modules that the method added to the graph.

    Returns the calls that read a block's input first (with the argument's role and the module's name), and those of the
    norms that close the blocks (with the module's name).
    """
    added = {layer.name: layer for layer in graph.layers if layer.ordinal == ADDED}
    entries, joints, modules = {}, {}, nn.ModuleDict()
    for name, end in added.items():
        path, _, part = name.rpartition(".")
        if part != "add":
            continue
        block = path.rpartition(".")[2]
        entry, joint, conv = added[f"{path}.pool"].input, graph.producer[end.input.id], added[f"{path}.conv1"]
        lite = LiteResidual(
            entry.shape[1], joint.output.shape[1], conv.inputs["weight"].shape[-1], conv.attributes["stride"][0]
        )
        modules[block] = lite.to(next(model.parameters()))
        reader = next(layer for layer in graph.consumers[entry.id] if layer.ordinal != ADDED)
        role = next(role for role, tensor in reader.inputs.items() if tensor is entry)
        entries[reader.call], joints[joint.call] = (role, block), block
    if modules:
        model.add_module(LITE_RESIDUAL, modules)
    return entries, joints
