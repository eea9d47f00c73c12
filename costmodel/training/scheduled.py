"""A forward pass that is carried out by a schedule: the frozen prefix in pieces, segments that run again in backward.

The network's own code runs, call by call, under the tracker of `replacing`; where a call belongs to the prefix or to a
segment is known from the graph. Calls are recorded as they are made (`tape`), so that they can be made again without
the network's code: hooks fire once, and any Python may stand between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from ..step.segments import RANDOM, Segment
from ..tracing.calls import argument_names, operation_name
from .again import CheapWork, Own, SegmentAgain, unpack
from .nested import mapped, tensors
from .pieces import PrefixFromCache, PrefixInPieces, PrefixToCache
from .replacing import Call, Replacement, Replacing, TrainingPlan
from .tape import address


class ScheduledPass(Replacing):
    """One forward pass of an applied network by its schedule. inputs: what it is called with.

    fills: whether the pass ends where the frozen prefix does, with its output (`Filled`).
    """

    def __init__(
        self, network: nn.Module, plan: TrainingPlan, replacements: dict[Call, Replacement], inputs: Any,
        fills: bool = False,
    ):  # fmt: skip
        super().__init__(network, plan, replacements)
        self.regions = plan.regions
        buffers = list(network.buffers())
        own = [*network.parameters(), *buffers]
        images = tensors(inputs)
        self.own = Own(
            frozenset(map(id, own)), frozenset(map(id, buffers)), frozenset(map(address, own)),
            _autocast(images[0].device.type),
        )  # fmt: skip
        self.in_segment: Segment | None = None
        self.segment: SegmentAgain | CheapWork | None = None
        self.collected = WeakIdKeyDictionary()  # what the prefix came to, by the stand-in that the network holds
        self.inputs, self.prefix = inputs, None
        if fills:
            self.prefix = PrefixToCache()
        elif plan.schedule.cache is not None:
            self.prefix = PrefixFromCache(images[0], plan.required.graph.input.shape[1:])
            self.inputs = (self.prefix.images,), {}
        elif plan.schedule.prefix_batch is not None:
            self.prefix = PrefixInPieces(self.own.tensors, images, plan.schedule.prefix_batch)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Run one call where it belongs."""
        kwargs = kwargs or {}
        if inner := self.opened(function):
            return self.follow(function, inner, args, kwargs)
        call = self.locate(function)
        index = self.plan.places.get(call)
        run = _runner(function, self.replacements.get(call))
        if self.prefix is not None:
            if index is None and self._moves_buffer(function, args):
                return args[0] if isinstance(self.prefix, PrefixToCache) else run(*args, **kwargs)
            if index is None or index < self.regions.prefix:
                return self.prefix.run(run, args, kwargs)
            self._leave_prefix(args, kwargs)
        if self.collected:
            args, kwargs = mapped(self._whole, args), mapped(self._whole, kwargs)
        if index is not None:
            segment = self.regions.segment_of.get(index)
            self._enter(segment if segment is not None and index < segment.plain_from else None)
        if self.segment is None:
            return run(*args, **kwargs)
        with torch.autograd.graph.saved_tensors_hooks(self.segment.pack, unpack):
            return self.segment.run(run, args, kwargs, call[1] in RANDOM, index)

    def _moves_buffer(self, function: Callable, args: tuple) -> bool:
        """Whether a call moves a buffer, as norms count batches before they compute: once for each step."""
        return operation_name(function)[1] and bool(args) and id(args[0]) in self.own.buffers

    def _whole(self, value: Any) -> Any:
        return self.collected.get(value, value) if isinstance(value, torch.Tensor) else value

    def _leave_prefix(self, args: tuple, kwargs: dict[str, Any]) -> None:
        prefix, self.prefix = self.prefix, None
        assert prefix is not None  # it is left once
        for value in tensors((args, kwargs)):
            if value in prefix.results:
                self.collected[value] = prefix.finish(value)
                return

    def _enter(self, segment: Segment | None) -> None:
        if segment is not self.in_segment:
            self.in_segment, self.segment = segment, None
            if segment is not None:
                self.segment = (SegmentAgain if segment.runs_again else CheapWork)(self.own, segment)


def _runner(function: Callable, replacement: Replacement | None) -> Callable:
    """Return what makes a call, and can make it again without the network."""
    if replacement is None:
        return function
    names = argument_names(function)
    return lambda *args, **kwargs: replacement({**dict(zip(names, args, strict=False)), **kwargs})


def _autocast(device: str) -> dict[str, Any]:
    return {
        "device_type": device, "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device), "cache_enabled": torch.is_autocast_cache_enabled(),
    }  # fmt: skip
