"""A training step as it is priced, run for real: what measures time and memory runs this."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from ..step.step import Step
from ..tracing.models import build
from ..training.applied import apply
from ..training.optimizers import make_optimizer, update_in_place
from .measuring import loss_of

_LEARNING_RATE = 1e-6


def runner(step: Step, around: Callable[[], AbstractContextManager] = nullcontext) -> Callable[[], float]:
    """Return what runs one update by a step and says its loss: of the network as its library builds it, random images.

    around: makes the context in which each update runs, such as `Arena().step`.

    Errors: those of `costmodel.apply`.
    """
    graph, schedule = step.graph, step.schedule
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a method changes the network does not matter here
        network = apply(
            build(graph.model, graph.classes), step.way, resolution=graph.resolution,
            frozen_dtype=step.precision.frozen, schedule=schedule,
        ).train()  # fmt: skip
    update = make_optimizer(step.optimizer, network, _LEARNING_RATE)
    if schedule.inplace_update:
        update_in_place(network, update)
    images = torch.randn(step.batch, *graph.input.shape[1:])

    def run() -> float:
        loss = 0.0
        with around():
            for part in images.split(step.micro_batch):
                one = loss_of(network(part)) / step.passes
                one.backward()
                loss += one.item()
            update.step()
            update.zero_grad(set_to_none=True)
        return loss

    return run
