"""PyTorch's optimizers as `costmodel.OPTIMIZERS` prices them: with PyTorch's defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..errors import InputError
from ..table import Table

Maker = Callable[[Iterable[torch.nn.Parameter], float], torch.optim.Optimizer]

TORCH_OPTIMIZERS: Table[Maker] = Table("optimizer", {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, rate),
    "momentum": lambda parameters, rate: torch.optim.SGD(parameters, rate, momentum=0.9),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, rate),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, rate),
})  # fmt: skip


class InPlaceUpdates:
    """Hooks that update each parameter as soon as its gradient is there; `remove` takes them away."""

    def __init__(self, handles: list):
        self.handles = handles

    def remove(self) -> None:
        """Leave updates to the optimizer again."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def update_in_place(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> InPlaceUpdates:
    """Have every trained parameter updated, and its gradient freed, in backward, as soon as the gradient is there.

    optimizer: keeps the state (its `state_dict` is as ever), the learning rates and what schedulers make of them; its
    own `step` finds no gradients any more. For optimizers that look at one tensor at a time, such as SGD and Adam.

    Errors: InputError for one that looks at all at once, or that lacks a trained parameter.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("LBFGS looks at all parameters at once and cannot update them in place; use SGD or Adam")
    groups = {id(each): number for number, group in enumerate(optimizer.param_groups) for each in group["params"]}

    def hook(parameter: torch.nn.Parameter) -> None:
        group = optimizer.param_groups[groups[id(parameter)]]  # load_state_dict makes groups and state anew
        one = alone[id(parameter)]
        one.param_groups[0].update({name: value for name, value in group.items() if name != "params"})
        one.state = optimizer.state
        step(one)
        parameter.grad = None

    # Without what PyTorch wraps it in for the profiler and for hooks, of which these optimizers have none: it takes
    # longer than the update of a small parameter.
    own = type(optimizer).step
    step = getattr(own, "__wrapped__", own) if getattr(own, "hooked", False) else own
    alone, handles = {}, []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in groups:
            raise InputError(
                f"the optimizer lacks the trained parameter {name}; make it from all parameters with requires_grad"
            )
        alone[id(parameter)] = type(optimizer)([parameter], **optimizer.defaults)
        handles.append(parameter.register_post_accumulate_grad_hook(hook))
    return InPlaceUpdates(handles)


def make_optimizer(name: str, network: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimizer of that name for what of a network asks for gradients.

    Errors: InputError for an unknown name, with the near ones.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return TORCH_OPTIMIZERS.find(name)(trained, learning_rate)
