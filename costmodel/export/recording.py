"""A training step as one graph: forward, backward and update, recorded from an applied network that runs one step.

The graph is functional but for its buffers: the trained parameters, running statistics and the optimizer's state are
overwritten; everything else is a constant.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from ..training.applied import Applied
from .forms import Forms, gradients_of
from .updates import UPDATES

STEP = "step"  # the name of the number of steps made
STATE_PREFIX = "optimizer:"  # of the names of the optimizer's state: optimizer:KIND:PARAMETER


@dataclass(frozen=True)
class Recording:
    """A network's training step and its prediction as modules whose buffers are `values`, by state-dict name.

    step: (images, labels, learning rate) -> (loss, how many were right). predict: one image -> logits. trained: names
    of the trained parameters. inputs: of `step`, as examples. micro_batch: images per pass. drew: whether the network
    draws random numbers.
    """

    step: nn.Module
    predict: nn.Module
    values: dict[str, Tensor]
    trained: tuple[str, ...]
    inputs: tuple[Tensor, Tensor, Tensor]
    micro_batch: int
    classes: int
    drew: bool


class Recorded(nn.Module):
    """A recorded graph as a module: its state is in buffers, of which those that the graph writes change."""

    def __init__(self, graph: fx.GraphModule, values: dict[str, Tensor]):
        super().__init__()
        self.program, self.names = graph, [buffer_name(name) for name in values]
        for name, value in zip(self.names, values.values(), strict=True):
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor):
        """Run the graph."""
        return self.program([getattr(self, name) for name in self.names], *inputs)


def buffer_name(name: str) -> str:
    """Return a tensor's name in the program: 'a.b' -> 'a/b', since no buffer's name has a dot."""
    return name.replace(".", "/")


def record(network: Applied, optimizer: str, batch: int, resolution: int, micro_batch: int) -> Recording:
    """Return the step of an applied network, recorded with a copy of it.

    micro_batch: images per pass; the gradients of passes are added up.

    Errors: InputError for an unknown optimizer; ModelError where the network does what cannot be recorded.
    """
    network = copy.deepcopy(network)
    update = UPDATES.find(optimizer)
    own = {name: value.detach().clone() for name, value in (*network.named_parameters(), *network.named_buffers())}
    trained = tuple(name for name, parameter in network.named_parameters() if parameter.requires_grad)
    state = {f"{STATE_PREFIX}{kind}:{name}": torch.zeros_like(own[name]) for name in trained for kind in update.state}
    values = {**own, **state, STEP: torch.zeros((), dtype=torch.int64)}
    names, size, drew = list(values), micro_batch, []

    def step(given: list[Tensor], x: Tensor, y: Tensor, rate: Tensor):
        now = dict(zip(names, given, strict=True))
        leaves = {name: now[name].detach().requires_grad_() for name in trained}
        tensors = {name: leaves.get(name, now[name]) for name in own}
        loss, right, gradients = None, None, None
        with Forms(now[STEP]) as forms:
            for images, labels in zip(_pieces(x, size), _pieces(y, size), strict=True):
                out = torch.func.functional_call(network, tensors, (images,))
                one = F.cross_entropy(out, labels)
                found = gradients_of(one, list(leaves.values()))
                gradients = found if gradients is None else [a + b for a, b in zip(gradients, found, strict=True)]
                loss = one.detach() if loss is None else loss + one.detach()
                hits = (out.detach().argmax(1) == labels).sum()
                right = hits if right is None else right + hits
        assert gradients is not None and loss is not None  # a batch has a pass
        passes = batch // size
        drew.append(forms.drew)
        with torch.no_grad():
            count = now[STEP] + 1
            for name, gradient in zip(trained, gradients, strict=True):
                mean = gradient / passes if passes > 1 else gradient
                kept = {kind: now[f"{STATE_PREFIX}{kind}:{name}"] for kind in update.state}
                after, kept = update.change(now[name], mean, kept, rate, count.to(torch.float32))
                now[name].copy_(after)
                for kind, value in kept.items():
                    now[f"{STATE_PREFIX}{kind}:{name}"].copy_(value)
            now[STEP].copy_(count)
        return loss / passes if passes > 1 else loss, right

    def logits(given: list[Tensor], x: Tensor):
        now = dict(zip(names, given, strict=True))
        return torch.func.functional_call(network, {name: now[name] for name in own}, (x,))

    x, y = torch.zeros(batch, 3, resolution, resolution), torch.zeros(batch, dtype=torch.int64)
    inputs = (x, y, torch.tensor(0.01))
    graphs = []
    for function, arguments, training in ((step, inputs, True), (logits, (x[:1],), False)):
        network.train(training)
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training):
            torch.manual_seed(0)
            # Recording runs the step, so it gets copies.
            copies = [value.clone() for value in values.values()]
            graphs.append(make_fx(function, decomposition_table=_decompositions())(copies, *arguments))
    predict = Recorded(graphs[1], values)
    classes = int(predict(x[:1]).shape[1])
    return Recording(Recorded(graphs[0], values), predict, values, trained, inputs, size, classes, drew[-1])


def _pieces(images: Tensor, size: int) -> Iterator[Tensor]:
    if len(images) == size:
        return iter((images,))
    return iter(images.split(size))


def _decompositions() -> dict:
    """Return what is written with simpler operations; batch norm with running statistics has a kernel."""
    return {
        operation: form for operation, form in core_aten_decompositions().items()
        if "_native_batch_norm_legit" not in str(operation) and "batch_norm.default" not in str(operation)
    }  # fmt: skip
