"""Working memory of a call that has no rule, seen by running it."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ..graph.learned import UNSEEN, Working
from .allocations import allocations, peak_of
from .alone import BATCHES, MOST_BYTES, THIRD_BATCH, Alone, TracedCall, address, bytes_per_image
from .calls import named_tensors, operation_name, tensors_in

_TRIES = 3  # the profiler now and then gives what happens within its tick in another order


def working(call: TracedCall, wanted: tuple[str, ...]) -> tuple[Working, Working]:
    """Return a call's working memory in forward and backward where it can be seen and grows with the batch in steps."""
    if operation_name(call.function)[1] or call.kwargs.get("inplace") or bytes_per_image(call) > MOST_BYTES:
        return UNSEEN, UNSEEN
    forward = backward = None
    for _ in range(_TRIES):
        seen = [_at(call, wanted, batch) for batch in (*BATCHES, THIRD_BATCH)]
        forward, backward = map(_in_steps, zip(*seen, strict=True))
        if forward is not None and backward is not None:
            break
    return forward or UNSEEN, backward or UNSEEN


def _in_steps(seen: tuple[int, ...]) -> Working | None:
    few, more, third = seen
    each, rest = divmod(more - few, BATCHES[1] - BATCHES[0])
    found = Working(each, few - each * BATCHES[0])
    return None if rest or found.at(THIRD_BATCH) != third else found


def _at(call: TracedCall, wanted: tuple[str, ...], batch: int) -> tuple[int, int]:
    """Return the working memory at a batch, in forward and in backward."""
    run = Alone(call, batch, "cpu")
    traced = named_tensors(call.function, call.args, call.kwargs)
    leaves = [run.made[id(traced[role])].requires_grad_() for role in wanted]
    made: list[Any] = []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():  # as in a step, also where nothing is wanted
        forward = allocations(lambda: made.append(call.function(*run.args, **run.kwargs)))
    beside = peak_of(forward) - sum(forward)
    results = [result for result in tensors_in(made.pop()) if result.requires_grad]
    if not results:
        return beside, 0
    there: list[StorageWeakRef] = []  # which keep an address from being used again
    for result in results:
        result.register_hook(lambda gradient: there.append(StorageWeakRef(gradient.untyped_storage())))
    handed = sum(map(_bytes, results))
    with torch.enable_grad():  # what makes the gradients that the call is given, so that its backward drops them
        results = [result * 1 for result in results]
    given = [torch.ones_like(result) for result in results]
    gradients: list[torch.Tensor | None] = []
    backward = allocations(lambda: gradients.extend(torch.autograd.grad(results, leaves, given, allow_unused=True)))
    # A gradient that is part of larger memory (the real parts of complex numbers) counts by its own size.
    own = {address(each): _bytes(each) for each in gradients if each is not None}
    new = sum(size for address, size in own.items() if address not in {each.cdata for each in there})
    return beside, peak_of(backward) - handed - new


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
