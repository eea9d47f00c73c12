"""What a training step really takes on this machine: saved bytes, peak and FLOPs, measured by PyTorch itself.

Independent of the cost model: nothing here knows a rule. Saved bytes come from saved-tensor hooks, the peak from the
profiler's memory events (CPU) or the allocator's statistics (CUDA), FLOPs from PyTorch's counter with its formula for
the backward of a convolution replaced.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..graph.layer_graph import LayerGraph
from ..methods.assignment import Assignment
from ..tracing.allocations import allocations, peak_of
from ..tracing.calls import ModulePath, tensors_in
from ..tracing.detectors import run
from ..tracing.flops import corrected_flop_counter
from ..tracing.inputs import Inputs


def prepare(model: nn.Module, graph: LayerGraph, assignment: Assignment) -> nn.Module:
    """Set up a stock model, in place, to train what the assignment trains; return it in train mode."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in assignment.trained)
    model.train()
    for index in assignment.frozen_statistics:
        model.get_submodule(graph.layers[index].module).training = False
    return model


Loss = Callable[[Any], torch.Tensor]


def result_of(model: nn.Module, given: torch.Tensor | Inputs) -> Any:
    """Return a network's result of images, or of what else it is called with."""
    return run(model, given) if isinstance(given, torch.Tensor) else run(model, *given.args, **given.kwargs)


def loss_of(outputs) -> torch.Tensor:
    """Return a scalar: cross-entropy with class 0, summed over the network's outputs."""
    total = None
    for logits in tensors_in(outputs):
        target = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
        value = nn.functional.cross_entropy(logits.flatten(1), target)
        total = value if total is None else total + value
    assert total is not None  # the trace refuses a network without outputs
    return total


class _Token:
    """Stands for a saved tensor (which would keep its own graph alive) as long as its backward could ask for it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def saved_bytes_by_module(
    model: nn.Module, images: torch.Tensor | Inputs, loss: Loss = lambda outputs: outputs
) -> dict[str, int]:
    """Return the bytes that one forward pass keeps for backward, by the path of the module that keeps them first.

    loss: what is computed of the network's result in the same pass, if anything. Unique storages; parameters and
    buffers are left out; the network's input counts if it is kept. What is kept for a result that the forward pass
    itself drops again counts nothing.
    """
    return _kept_by_module(model, images, loss)[1]


def _kept_by_module(model: nn.Module, images: torch.Tensor | Inputs, loss: Loss) -> tuple[Any, dict[str, int]]:
    """Return a forward pass's outputs, ready for backward, and what it keeps by module."""
    counted = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    packed: list[tuple[weakref.ref[_Token], torch.UntypedStorage, str]] = []
    path = ModulePath(model)

    def pack(tensor: torch.Tensor) -> _Token:
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()  # held, so that its address is not used again
        token = _Token(tensor.detach())
        packed.append((weakref.ref(token), storage, str(path)))
        return token

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda token: token.tensor), path:
        outputs = loss(result_of(model, images))
    by_module: dict[str, int] = {}
    for token, storage, module in packed:
        if token() is not None and storage._cdata not in counted:
            counted.add(storage._cdata)
            by_module[module] = by_module.get(module, 0) + storage.nbytes()
    return outputs, by_module


def saved_bytes(model: nn.Module, images: torch.Tensor | Inputs) -> int:
    """Return the bytes that one forward pass keeps for backward; see `saved_bytes_by_module`."""
    return sum(saved_bytes_by_module(model, images).values())


def kept_bytes(model: nn.Module, images: torch.Tensor | Inputs) -> int:
    """Return the bytes that a forward pass leaves allocated, but for its results: what it keeps for backward.

    Seen by the profiler, whoever keeps them; what was there before, such as the input, does not count. On the CPU.
    """
    outputs: list[Any] = []
    left = sum(allocations(lambda: outputs.append(result_of(model, images))))
    return left - sum(tensor.untyped_storage().nbytes() for tensor in tensors_in(outputs))


def step_flops(model: nn.Module, images: torch.Tensor | Inputs, loss: Loss = loss_of) -> tuple[int, int]:
    """Return the FLOPs of one forward and one backward pass (also on the meta device)."""
    with corrected_flop_counter() as counter:
        value = loss(result_of(model, images))
        forward = counter.get_total_flops()
        value.sum().backward()
        return forward, counter.get_total_flops() - forward


def counted_step(model: nn.Module, images: torch.Tensor | Inputs) -> tuple[int, int, int]:
    """Return the bytes that one forward pass keeps, and the FLOPs of it and of its backward, of one run of both."""
    with corrected_flop_counter() as counter:
        outputs, by_module = _kept_by_module(model, images, lambda result: result)
        forward = counter.get_total_flops()
        loss_of(outputs).backward()
        return sum(by_module.values()), forward, counter.get_total_flops() - forward


def peak_bytes(step: Callable[[], None], device: str = "cpu") -> int:
    """Return the most memory that `step` takes above what is allocated when it starts."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return max(0, peak_of(allocations(step)))
