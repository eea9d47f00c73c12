"""Records the calls of one forward pass: which tensors each reads and makes, and when these die.

A `TorchFunctionMode` sees the calls that layers make (`conv2d`, `batch_norm`, `add`, ...) and nothing below them. What
a layer's arguments are called is PyTorch's own naming, so that rules can ask for `weight` or `stride`.

When a value dies matters for the peak, and only the program that runs knows it: a block's input lives as long as the
block's caller holds it. Weak references to the traced tensors tell.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from ..errors import ModelError
from ..graph.learned import Learned
from ..graph.values import TRACE_BATCH
from ..rules.table import RULES
from .alone import ON_META, TracedCall, attention
from .calls import (
    CONVOLUTION_ARGUMENTS,
    CallTracker,
    arguments_by_name,
    has_gradient,
    named_tensors,
    operation_name,
    tensors_in,
)
from .checkpoints import Checkpoints
from .learning import Learner, Unlearnable
from .quick import QuickCalls
from .recorded import Call, Store, Value, grows, kinds, plain_value
from .slices import StaleRead, as_write, place
from .strides import LAID_OUT, has_rows, matmul_copies

# What depends on its argument's shape alone.
_FACTORIES = {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "zeros_like", "ones_like", "empty_like",
              "full_like", "rand_like", "randn_like", "bernoulli", "argmax", "data"}  # fmt: skip

USUAL_CHANNELS = 3
_AUTOGRAD_FUNCTION = "a torch.autograd.Function (or a re-entrant checkpoint)"


class Recorder(CallTracker):
    """Records every call whose result depends on the network's input or on a parameter."""

    def __init__(self, module: nn.Module, batch: int = TRACE_BATCH, follows_slices: bool = False):
        super().__init__(module)
        self.batch, self.follows_slices = batch, follows_slices
        self.asked_channels: int | None = None  # by the convolution that failed
        self.calls: list[Call] = []
        self.run = QuickCalls()
        self.learner = Learner()
        self.known: dict[int, Value] = {}  # id of a live torch tensor -> its current value
        self.stores: dict[int, Store] = {}
        self.notes: list[str] = []
        self.beside: list[Value] = []  # constants that were made since the last call
        self.gradients_on = True  # as far as the network itself has said
        self.checkpoints = Checkpoints()

    def value(self, tensor: torch.Tensor, kind: str, name: str = "") -> Value:
        """Register a torch tensor's present content as a value and watch when the tensor dies."""
        memory = tensor.untyped_storage()
        store = self.stores.get(memory._cdata)
        if store is None:
            # Holding the storage keeps its address from being reused; on meta it takes no memory.
            store = self.stores[memory._cdata] = Store(len(self.stores), memory, tensor.dtype)
        store.live += 1
        strides = () if tensor.is_contiguous() else tensor.stride()
        value = Value(tuple(tensor.shape), tensor.dtype, kind, store, store.writes, name, strides)

        def died(_: Any, key: int = id(tensor), value: Value = value) -> None:
            if self.known.get(key) is value:
                del self.known[key]
            store.live -= 1
            store.held_until = max(store.held_until, len(self.calls) - 1)

        value.watch = weakref.ref(tensor, died)
        self.known[id(tensor)] = value
        return value

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Run one call and record it."""
        kwargs = kwargs or {}
        if inner := self.opened(function):
            return self.follow(function, inner, args, kwargs)
        if operation_name(function) == ("requires_grad", False):  # the attribute, not `requires_grad_`
            return self._requires_grad(args[0])
        if self.follows_slices and (write := as_write(function, args, kwargs)):
            self.locate(function)  # it counts among its module's calls
            self._call(*write, kwargs)
            return args[0]
        return self._call(function, args, kwargs)

    def _call(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run one call and record it."""
        place = _, op, _ = self.locate(function)
        checkpoint = self.checkpoints.running(self.place)
        unasked = self._watch_gradients(op, args)
        result, found = self._run(function, args, kwargs)
        outputs = [args[0]] if op == "setitem" else tensors_in(result)  # an assignment returns nothing
        if not outputs:
            return result
        inputs, attributes = self._bind(function, args, kwargs)
        followed = bool(kinds(inputs) & {"input", "activation", "parameter", "derived"})
        if followed and unasked:
            self.refuse(_AUTOGRAD_FUNCTION)
        differentiable = any(map(has_gradient, outputs)) and op not in _FACTORIES
        own = bool(kinds(inputs) & {"input", "activation"})  # also where no gradient is, as in a frozen trunk
        if followed and differentiable and (torch.is_grad_enabled() or own):
            given = args[0] if args else kwargs.get("input")
            inplace = operation_name(function)[1] or (outputs[0] is given and bool(attributes.get("inplace")))
            made = Call(*place, inputs, attributes | found, inplace, checkpoint=checkpoint)
            if op == "detach" or not torch.is_grad_enabled():
                made.attributes["cut_off"] = True
            if _is_learned(op, [*tensors_in([args, kwargs]), *outputs]):
                with torch.enable_grad(), saved_tensors_hooks(torch.Tensor.detach, _itself):
                    made.learned = self._learn(made, function, args, kwargs)
            self._record(made, given, outputs, tensors_in([args, kwargs]))
        else:
            for tensor in outputs:  # random numbers, masks, counters: a value, but nothing that is differentiated
                if id(tensor) not in self.known:
                    is_new = tensor.untyped_storage()._cdata not in self.stores
                    value = self.value(tensor, "constant")
                    self.beside += [value] if is_new else []
        return result

    def _run(self, function, args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
        """Run a call; return its result as a CPU makes it, and what is found out about it."""
        op = operation_name(function)[0]
        try:
            result = self.run(function, args, kwargs)
        except Exception:
            self.asked_channels = _asked_channels(op, args, kwargs)
            raise
        if op in LAID_OUT:
            return LAID_OUT[op](result, *tensors_in([args, kwargs])), {}
        if op != "scaled_dot_product_attention":
            return result, {}
        result, kernel = attention(result, TracedCall(function, args, kwargs, self.batch))
        return result, {"kernel": kernel}

    def _learn(self, made: Call, function, args: tuple, kwargs: dict) -> Learned | None:
        """Return what a call without a rule does; None, with a note, if that cannot be told."""
        given = named_tensors(function, args, kwargs)
        kinds_with_gradient = ("activation", "parameter", "derived")
        roles = [role for role, value in made.inputs.items() if value.kind in kinds_with_gradient]
        roles = [role for role in roles if has_gradient(given[role])]
        try:
            return self.learner.learn(TracedCall(function, args, kwargs, self.batch), roles)
        except Unlearnable as reason:
            self.notes.append(f"{self.place}: {made.op} has no rule and could not be learned: {reason}")
            return None

    def _record(
        self, call: Call, given: torch.Tensor | None, outputs: list[torch.Tensor], tensors: list[torch.Tensor]
    ) -> None:
        """Record a call, unless it hands on what it is given, as dropout at rate 0 does.

        given: its first argument. tensors: all that it is given.
        """
        if call.op == "dropout" and not (call.attributes.get("p", 0.5) and call.attributes.get("training", True)):
            return
        if call.inplace:
            given_value = self.known[id(outputs[0])]
            given_value.store.writes += 1
            if given_value.is_view:
                call.attributes["through_view"] = True
        elif all(self._unchanged(tensor, call.inputs.values()) for tensor in outputs):
            return
        if call.op == "linear" and given is not None and not has_rows(given):
            call.attributes["copies_input"] = True
        if call.op == "matmul" and len(tensors) == 2 and (copies := matmul_copies(*tensors)):
            call.attributes["copies"] = copies
        self.calls.append(call)
        call.beside = tuple(value for value in self.beside if value.store.live)
        self.beside.clear()
        kind = "activation" if self._depends_on_batch(call, outputs) else "derived"
        there = {value.store for value in call.inputs.values()}
        call.outputs = [self.value(tensor, kind) for tensor in outputs]
        for value in call.outputs:
            value.is_view = value.store in there and (not call.inplace or "through_view" in call.attributes)

    def _depends_on_batch(self, call: Call, outputs: list[torch.Tensor]) -> bool:
        """Whether a result depends on the input's numbers, or on the batch's size (a learned query, expanded)."""
        if kinds(call.inputs) & {"input", "activation"}:
            return True
        is_larger = any(grows(tensor.shape, self.batch) for tensor in outputs)
        return is_larger and not any(grows(value.shape, self.batch) for value in call.inputs.values() if value.name)

    def refuse_unseen(self, tensor: torch.Tensor) -> None:
        """Refuse a tensor that grows with the batch and that no recorded call made: its cost would be left out.

        Errors: ModelError that names the place.
        """
        if id(tensor) not in self.known and tensor.dim() and tensor.shape[0] and tensor.shape[0] % self.batch == 0:
            self.refuse("a call into C++ code")

    def _watch_gradients(self, op: str, args: tuple) -> bool:
        """Return whether gradients are off without the network having said so, and note what it says.

        What switches them off without a call that the mode sees is a torch.autograd.Function.
        """
        unasked = self.gradients_on and not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if op == "_set_grad_enabled":
            if unasked:
                self.refuse(_AUTOGRAD_FUNCTION)
            self.gradients_on = args[0]
        return unasked

    def _requires_grad(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor would require a gradient if every parameter trained; nothing does in a trace."""
        self.notes.append(
            f"{self.place} asks whether tensors require a gradient: traced as if every parameter trained, so that with "
            "frozen layers it may run in another way"
        )
        value = self.known.get(id(tensor))
        on = torch.is_grad_enabled() or (value is not None and value.kind == "parameter")
        return on and value is not None and value.kind in ("activation", "parameter", "derived")

    def refuse(self, call: str) -> None:
        """Refuse the network for a call of a kind that cannot be followed."""
        raise ModelError(
            f"{self.place} makes a tensor by {call}, which cannot be followed, so its cost is not known; "
            "for the trace write it with ordinary functions of torch"
        )

    def _unchanged(self, tensor: torch.Tensor, inputs) -> bool:
        value = self.known.get(id(tensor))
        return value is not None and any(value is given for given in inputs)

    def _bind(self, function: Any, args: tuple, kwargs: dict) -> tuple[dict[str, Value], dict[str, Any]]:
        """Return the tensor arguments by role and the others by name."""
        inputs: dict[str, Value] = {}
        attributes: dict[str, Any] = {}
        for name, given in arguments_by_name(function, args, kwargs):
            if isinstance(given, torch.Tensor):
                inputs[name] = self._read(given)
            else:
                attributes[name] = plain_value(given)
        return inputs, attributes

    def _read(self, tensor: torch.Tensor) -> Value:
        value = self.known.get(id(tensor))
        if value is None:
            self.refuse_unseen(tensor)
            value = self.value(tensor, "constant")
        if value.version < value.store.writes and value.kind in ("input", "activation"):
            if not self.follows_slices:
                raise StaleRead
            return self._taken_anew(tensor)
        return value

    def _taken_anew(self, tensor: torch.Tensor) -> Value:
        """Return the value of a view of what was overwritten since: the view is taken again.

        Errors: ModelError if what it is a view of is not known.
        """
        base = tensor._base
        if base is None or id(base) not in self.known:
            raise ModelError(
                f"{self.place} reads a tensor after a view of it was overwritten in place, which cannot be followed; "
                "for the trace write the call that overwrites out of place, and use its result"
            )
        self._call(torch.as_strided, (base, *place(tensor)), {})
        taken = self.value(tensor, "activation")
        taken.is_view = True
        self.calls[-1].outputs = [taken]
        return taken


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _is_learned(op: str, tensors: list[torch.Tensor]) -> bool:
    """Whether a call runs alone to see what it does; the rules are for real numbers."""
    by_rule = op in RULES and op not in ON_META and not any(tensor.is_complex() for tensor in tensors)
    return not by_rule and op != "detach"


def _asked_channels(op: str, args: tuple, kwargs: dict[str, Any]) -> int | None:
    """Return how many channels a convolution of images wants, of one that was given as many as an image has."""
    given = dict(zip(CONVOLUTION_ARGUMENTS, args, strict=False)) | kwargs
    if op != "conv2d" or given["input"].dim() != 4 or given["input"].shape[1] != USUAL_CHANNELS:
        return None
    return given["weight"].shape[1] * given.get("groups", 1)
