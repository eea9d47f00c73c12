"""A torch model that trains exactly in a way, keeping what the `lean` accounting says.

The network's modules stay where they are, with their state-dict keys. While it trains, its forward runs under a
tracker of calls, which hands those calls whose stock form keeps too much to the functions of `costmodel.layers`. In
eval mode the network runs as it always did. An applied network can be copied, pickled and saved as any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack

from ..accounting.eager import EAGER
from ..accounting.lean import LEAN
from ..accounting.requirements import Requirements, requirements
from ..errors import InputError, ModelError
from ..graph.values import ADDED as ADDED_CALL
from ..layers.added import ADDED
from ..layers.functions import autocast_is_on
from ..methods.table import METHODS, Trained, way_of
from ..methods.way import Options, Way
from ..step.precision import FROZEN
from ..step.schedule import PLAIN, Schedule
from ..tracing.inputs import Shapes
from ..tracing.tracer import trace
from .replacing import TORCH_DTYPES, Replacing, TrainingPlan
from .scheduled import ScheduledPass

_ATTRIBUTE = "_costmodel_plan"
_NOT_COMPILED = "an applied network keeps what its plan says, a compiled one what the compiler chooses"


class Applied(nn.Module):
    """Mixed into an applied model's class: its forward keeps what the plan says while it trains."""

    @property
    def training_plan(self) -> TrainingPlan:
        """What was applied."""
        return self.__dict__[_ATTRIBUTE]

    def forward(self, *args, **kwargs):
        """Run the network's own forward; within `torch.compile` as without, since a compiler keeps what it likes."""
        if torch.compiler.is_compiling():
            return torch.compiler.disable(self.planned, reason=_NOT_COMPILED)(super().forward, *args, **kwargs)
        return self.planned(super().forward, *args, **kwargs)

    def planned(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the network's own forward, or another function that calls its modules, as the plan says."""
        if peek_interpreter_stack() is not None:
            raise ModelError(
                "torch.func cannot go through the layers of an applied network; use backward() or torch.autograd.grad, "
                "or costmodel.restore(model)"
            )
        plan = self.training_plan
        replacements = plan.in_eval
        if self.training:
            casts = autocast_is_on(next(self.parameters()).device)
            replacements = plan.in_autocast if casts else plan.replacements
        if plan.schedule.is_cut and self.training and torch.is_grad_enabled():
            with ScheduledPass(self, plan, replacements, (args, kwargs)) as scheduled:
                args, kwargs = scheduled.inputs
                return forward(*args, **kwargs)
        if not replacements and not plan.joints:
            return forward(*args, **kwargs)
        with Replacing(self, plan, replacements):
            return forward(*args, **kwargs)

    def train(self, mode: bool = True):
        """Set train or eval mode; norms with frozen statistics stay in eval mode."""
        super().train(mode)
        for path in self.training_plan.frozen_norms:
            self.get_submodule(path).training = False
        return self

    def __reduce_ex__(self, protocol: Any):
        """Name the network's own class, since no module holds the one that is made here."""
        return _unapplied, (type(self).__mro__[2],), self.__dict__


@cache
def _applied_class(own: type[nn.Module]) -> type[nn.Module]:
    return type(f"Applied{own.__name__}", (Applied, own), {})


def _unapplied(own: type[nn.Module]) -> nn.Module:
    """Return a network of an applied class with nothing in it, for unpickling and copying."""
    made = _applied_class(own)
    return made.__new__(made)


def apply(
    model: nn.Module,
    method: Way | str | None = None,
    blocks: int | None = None,
    resolution: Any = 224,
    frozen_dtype: str = "float32",
    *,
    options: Options | None = None,
    trained: Trained | None = None,
    schedule: Schedule = PLAIN,
    input: Shapes | None = None,
    accounting: str = LEAN.name,
) -> nn.Module:
    """Make a model ready to train in a way; return the same module, changed in place.

    `requires_grad` is set, norms with frozen statistics stay so through `.train()`, and what the forward pass keeps for
    backward is what `footprint(..., accounting=accounting)` says. Parameters and state-dict keys stay; eval mode is
    untouched. `restore` undoes it.

    method: a `Way`, or the name of a method, with blocks, options and trained as in `footprint`. resolution, input: as
    in `trace`, of the examples that it will see (or any at which its calls are the same). frozen_dtype: float32 or
    float16, how frozen weights are stored. schedule: whether the frozen prefix runs in pieces, and which segments run
    again in backward; loss, gradients and running statistics stay as they are. Its micro-batches are the training
    loop's, its updates in place those of `costmodel.training.optimizers.update_in_place`. accounting: lean, with this
    package's layers where stock ones keep more than backward needs; or eager, with PyTorch's own layers throughout.

    Errors: InputError for a method or depth that does not exist, a model that has already been applied, or a schedule
    of another network; ModelError, naming the call, where the network makes one that cannot be replaced.
    """
    if isinstance(model, Applied):
        raise InputError("the model has already been applied; undo that with costmodel.restore(model) first")
    if frozen_dtype not in TORCH_DTYPES:
        hint = "can only be priced: no torch layer computes with it" if frozen_dtype in FROZEN else "is unknown"
        raise InputError(f"frozen_dtype {frozen_dtype!r} {hint}; allowed: {', '.join(TORCH_DTYPES)}")
    if accounting not in (LEAN.name, EAGER.name):
        raise InputError(f"no network trains by the accounting {accounting!r}; allowed: {LEAN.name}, {EAGER.name}")
    graph = trace(model, resolution, input=input)
    way = method if isinstance(method, Way) else way_of(graph, method, blocks, options, trained)
    if way.trained is None and not METHODS.find(way.method).has_layers:
        raise InputError(f"method {way.method!r} can only be priced: this package has no torch layers for it")
    required = requirements(graph, way, accounting)
    if accounting == EAGER.name:
        refuse_stock(required, frozen_dtype)
    if required.assignment.trained_elements:
        raise InputError(f"{way.label} trains parts of weights, which can only be priced: no torch layer does that")
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    plan = TrainingPlan(required, frozen_dtype, before, schedule=schedule)
    if schedule.is_cut and plan.added_modules:
        raise InputError(f"{way.method} adds modules, which a schedule cannot divide; leave the schedule out")
    _ = plan.replacements, plan.regions  # what cannot be done is refused before anything is changed
    _warn_of_conversion(plan)
    _add_modules(model, plan)
    for name, parameter in model.named_parameters():
        trains = name in required.assignment.trained
        parameter.requires_grad_(trains)
        if not trains and frozen_dtype != "float32" and parameter.dim() > 1:
            plan.dtypes[name] = parameter.dtype
            parameter.data = parameter.data.to(TORCH_DTYPES[frozen_dtype])
    model.__dict__[_ATTRIBUTE] = plan
    model.__class__ = _applied_class(type(model))
    return model.train(model.training)


def restore(model: nn.Module, merge: bool = False) -> nn.Module:
    """Undo `apply`; return the same module, its weights as they were trained (float32 again).

    merge: add what was trained beside weights (LoRA) to these, so that the network computes what it did; else the
    modules that the method put into the network are dropped.

    Errors: InputError if the model is not applied, or has nothing to merge.
    """
    if not isinstance(model, Applied):
        raise InputError("the model has not been applied, so there is nothing to restore")
    plan = model.training_plan
    if merge and not (plan.added_modules and all(added.merges_into for added in plan.added_modules)):
        raise InputError(f"what {plan.required.way.label} trains cannot be merged; leave out merge=True")
    del model.__dict__[_ATTRIBUTE]
    model.__class__ = type(model).__mro__[2]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(plan.required_gradients.get(name, False))
        if name in plan.dtypes:
            parameter.data = parameter.data.to(plan.dtypes[name])
    if merge:
        _merge(model, plan)
    _remove_modules(model, plan)
    return model.train(model.training)


def refuse_stock(required: Requirements, frozen_dtype: str) -> None:
    """Errors: InputError for what stock PyTorch has no layers for."""
    if frozen_dtype != "float32":
        raise InputError("stock PyTorch computes with frozen weights in float32 only; use the accounting lean")
    if any(layer.in_place_of or layer.ordinal == ADDED_CALL for layer in required.graph.layers):
        raise InputError(f"method {required.way.method!r} needs this package's layers; use the accounting lean")


def _warn_of_conversion(plan: TrainingPlan) -> None:
    rewritten = [layer for layer in plan.required.graph.layers if layer.in_place_of]
    if rewritten:
        changes = ", ".join(sorted({f"{layer.op} in place of {layer.in_place_of}" for layer in rewritten}))
        warnings.warn(
            f"{plan.required.way.method} puts {changes}: the network computes something else than it was pre-trained "
            "for, unless it was pre-trained so",
            stacklevel=3,
        )


def _add_modules(model: nn.Module, plan: TrainingPlan) -> None:
    """Give the model the modules that the method puts beside its calls."""
    like = next(model.parameters())
    for added in plan.added_modules:
        if added.container not in dict(model.named_children()):
            model.add_module(added.container, nn.ModuleDict())
        module = ADDED[added.container](**dict(added.options))
        cast("nn.ModuleDict", model.get_submodule(added.container))[added.name] = module.to(like)


def _remove_modules(model: nn.Module, plan: TrainingPlan) -> None:
    for container in {added.container for added in plan.added_modules}:
        delattr(model, container)


def _merge(model: nn.Module, plan: TrainingPlan) -> None:
    """Add what was trained beside weights to these."""
    for added in plan.added_modules:
        module = cast(Any, model.get_submodule(f"{added.container}.{added.name}"))
        module.merge(model.get_parameter(added.merges_into))
