"""Optimizers as operations on tensors, so that an update can be recorded: PyTorch's formulas with PyTorch's defaults.

    p: parameter, g: gradient, r: learning rate, t: number of this step, from 1

    sgd        p <- p - r g
    momentum   v <- 0.9 v + g;  p <- p - r v
    adam       m <- 0.9 m + 0.1 g;  v <- 0.999 v + 0.001 g^2
               p <- p - r / (1 - 0.9^t) m / (sqrt(v) / sqrt(1 - 0.999^t) + 1e-8)
    adamw      p <- p (1 - 0.01 r), then as adam

Source: torch.optim, tests compare them. 1 - b^t is -expm1(t log b), which is exact for b near 1. What is kept decays in
the call that adds to it, so that the sum lies where the gradient does and the old value is not copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..table import Table

State = dict[str, Tensor]


@dataclass(frozen=True)
class Update:
    """An optimizer.

    state: the names of what it keeps of each parameter, zeros at first. change: (parameter, gradient, state, learning
    rate, number of the step from 1 as float32) -> the parameter and the state after the step.
    """

    state: tuple[str, ...]
    change: Callable[[Tensor, Tensor, State, Tensor, Tensor], tuple[Tensor, State]]


def _sgd(p: Tensor, g: Tensor, state: State, rate: Tensor, t: Tensor) -> tuple[Tensor, State]:
    return p - g * rate, {}


def _momentum(p: Tensor, g: Tensor, state: State, rate: Tensor, t: Tensor) -> tuple[Tensor, State]:
    v = torch.add(g, state["momentum_buffer"], alpha=0.9)
    return p - v * rate, {"momentum_buffer": v}


def _rest(beta: float, t: Tensor) -> Tensor:
    """Return 1 - beta^t."""
    return -torch.expm1(t * math.log(beta))


def _adam_change(g: Tensor, state: State, rate: Tensor, t: Tensor) -> tuple[Tensor, State]:
    m = torch.add(g * (1 - 0.9), state["exp_avg"], alpha=0.9)
    v = torch.add(g * g * (1 - 0.999), state["exp_avg_sq"], alpha=0.999)
    deviation = torch.sqrt(v) / torch.sqrt(_rest(0.999, t)) + 1e-8
    return m / deviation * (rate / _rest(0.9, t)), {"exp_avg": m, "exp_avg_sq": v}


def _adam(p: Tensor, g: Tensor, state: State, rate: Tensor, t: Tensor) -> tuple[Tensor, State]:
    change, state = _adam_change(g, state, rate, t)
    return p - change, state


def _adamw(p: Tensor, g: Tensor, state: State, rate: Tensor, t: Tensor) -> tuple[Tensor, State]:
    change, state = _adam_change(g, state, rate, t)
    return p * (1 - rate * 0.01) - change, state


_ADAM = ("exp_avg", "exp_avg_sq")
UPDATES: Table[Update] = Table("optimizer", {
    "sgd": Update((), _sgd),
    "momentum": Update(("momentum_buffer",), _momentum),
    "adam": Update(_ADAM, _adam),
    "adamw": Update(_ADAM, _adamw),
})  # fmt: skip
