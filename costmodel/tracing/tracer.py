"""torch model -> LayerGraph: one forward pass on the meta device, in train mode, of a copy without weights.

A `TorchFunctionMode` sees the calls that layers make (`conv2d`, `batch_norm`, `add`, ...) and nothing below them.
Tracing knows nothing of costs. What a layer's arguments are called is PyTorch's own naming, so that rules can ask for
`weight` or `stride`.

When a value dies matters for the peak, and only the program that runs knows it: a block's input lives as long as the
block's caller holds it. Weak references to the traced tensors tell.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InputError, ModelError, require_count
from ..graph.layer_graph import LayerGraph
from ..graph.values import TRACE_BATCH, Layer, Storage, Tensor
from .calls import CallTracker, argument_names, operation_name, tensors_in
from .models import build, replace_head, resolve, to_meta
from .quick import QuickCalls
from .strides import has_rows, matmul_copies

# What depends on its argument's shape alone.
_FACTORIES = {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "zeros_like", "ones_like", "empty_like",
              "full_like", "rand_like", "randn_like", "bernoulli", "argmax", "detach", "data"}  # fmt: skip

_AUTOGRAD_FUNCTION = "a torch.autograd.Function (or a re-entrant checkpoint)"


class _Recorder(CallTracker):
    """Records every call whose result depends on the network's input or on a parameter."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.calls: list[_Call] = []
        self.run = QuickCalls()
        self.known: dict[int, _Value] = {}  # id of a live torch tensor -> its current value
        self.stores: dict[int, _Store] = {}
        self.notes: list[str] = []
        self.gradients_on = True  # as far as the network itself has said

    def value(self, tensor: torch.Tensor, kind: str, name: str = "") -> _Value:
        """Register a torch tensor's present content as a value and watch when the tensor dies."""
        memory = tensor.untyped_storage()
        store = self.stores.get(memory._cdata)
        if store is None:
            # Holding the storage keeps its address from being reused; on meta it takes no memory.
            store = self.stores[memory._cdata] = _Store(len(self.stores), memory, tensor.dtype)
        store.live += 1
        value = _Value(tuple(tensor.shape), tensor.dtype, kind, store, store.writes, name)

        def died(_: Any, key: int = id(tensor), value: _Value = value) -> None:
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
        place = _, op, _ = self.locate(function)
        # What switches gradients off without this call, which the mode sees, is a torch.autograd.Function.
        unasked = self.gradients_on and not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if op == "_set_grad_enabled":
            if unasked:
                self.refuse(_AUTOGRAD_FUNCTION)
            self.gradients_on = args[0]
        result = self.run(function, args, kwargs)
        outputs = tensors_in(result)
        if op == "setitem":
            self._setitem(args)
        if not outputs:
            return result
        inputs, attributes = self._bind(argument_names(function), args, kwargs)
        followed = bool(_kinds(inputs) & {"input", "activation", "parameter", "derived"})
        if followed and unasked:
            self.refuse(_AUTOGRAD_FUNCTION)
        if followed and torch.is_grad_enabled() and op not in _FACTORIES:
            given = args[0] if args else kwargs.get("input")
            inplace = operation_name(function)[1] or (outputs[0] is given and bool(attributes.get("inplace")))
            self._record(_Call(*place, inputs, attributes, inplace), given, outputs, tensors_in([args, kwargs]))
        else:
            for tensor in outputs:  # random numbers, masks, counters: a value, but nothing that is differentiated
                if id(tensor) not in self.known:
                    self.value(tensor, "constant")
        return result

    def _record(
        self, call: _Call, given: torch.Tensor | None, outputs: list[torch.Tensor], tensors: list[torch.Tensor]
    ) -> None:
        """Record a call, unless it hands on what it is given, as dropout at rate 0 does.

        given: its first argument. tensors: all that it is given.
        """
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
        kind = "activation" if _kinds(call.inputs) & {"input", "activation"} else "derived"
        there = {value.store for value in call.inputs.values()}
        call.outputs = [self.value(tensor, kind) for tensor in outputs]
        for value in call.outputs:
            value.is_view = value.store in there and (not call.inplace or "through_view" in call.attributes)

    def refuse_unseen(self, tensor: torch.Tensor) -> None:
        """Refuse a tensor that grows with the batch and that no recorded call made: its cost would be left out.

        Errors: ModelError that names the place.
        """
        if id(tensor) not in self.known and tensor.dim() and tensor.shape[0] and tensor.shape[0] % TRACE_BATCH == 0:
            self.refuse("a call into C++ code")

    def refuse(self, call: str) -> None:
        """Refuse the network for a call of a kind that cannot be followed."""
        raise ModelError(
            f"{self.place} makes a tensor by {call}, which cannot be followed, so its cost is not known; "
            "for the trace write it with ordinary functions of torch"
        )

    def _unchanged(self, tensor: torch.Tensor, inputs) -> bool:
        value = self.known.get(id(tensor))
        return value is not None and any(value is given for given in inputs)

    def _setitem(self, args: tuple) -> None:
        if id(args[0]) in self.known and self.known[id(args[0])].kind in ("input", "activation", "derived"):
            raise ModelError(
                f"{self.place} assigns to a slice of a tensor, which cannot be followed; use torch.cat or torch.where"
            )

    def _bind(self, names: tuple[str, ...], args: tuple, kwargs: dict) -> tuple[dict[str, _Value], dict[str, Any]]:
        """Return the tensor arguments by role and the others by name."""
        inputs: dict[str, _Value] = {}
        attributes: dict[str, Any] = {}
        named = [(names[i] if i < len(names) else f"argument{i}", value) for i, value in enumerate(args)]
        for name, given in (*named, *kwargs.items()):
            if isinstance(given, torch.Tensor):
                inputs[name] = self._read(given)
            elif isinstance(given, (tuple, list)) and any(isinstance(item, torch.Tensor) for item in given):
                prefix = "input" if name == "tensors" else name
                for i, item in enumerate(given):
                    if isinstance(item, torch.Tensor):
                        inputs[f"{prefix}.{i}"] = self._read(item)
            else:
                attributes[name] = _plain(given)
        return inputs, attributes

    def _read(self, tensor: torch.Tensor) -> _Value:
        value = self.known.get(id(tensor))
        if value is None:
            self.refuse_unseen(tensor)
            value = self.value(tensor, "constant")
        if value.version < value.store.writes and value.kind in ("input", "activation"):
            raise ModelError(
                f"{self.place} reads a tensor after a view of it was overwritten in place, which cannot be followed; "
                "for the trace write the call that overwrites out of place, and use its result"
            )
        return value


def _plain(value: Any) -> Any:
    """Return an argument as a plain value; what is torch's own, such as a dtype, as text."""
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)(_plain(item) for item in value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if value is None or value is Ellipsis:
        return value
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, slice):
        return slice(*(_plain(item) for item in (value.start, value.stop, value.step)))
    return str(value)


@dataclass(eq=False)
class _Store:
    id: int
    memory: Any
    dtype: torch.dtype
    held_until: int = -1
    writes: int = 0
    live: int = 0
    result: Storage | None = None


@dataclass(eq=False)
class _Value:
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    store: _Store
    version: int
    name: str
    is_view: bool = False
    watch: Any = None
    result: Tensor | None = None


@dataclass(eq=False)
class _Call:
    module: str
    op: str
    ordinal: int
    inputs: dict[str, _Value]
    attributes: dict[str, Any]
    inplace: bool
    outputs: list[_Value] | None = None


def _kinds(inputs: dict[str, _Value]) -> set[str]:
    return {value.kind for value in inputs.values()}


def trace(model: nn.Module | str, resolution: int = 224, classes: int | None = None) -> LayerGraph:
    """Return the layer graph of a network, traced now (`costmodel.trace` first looks for a stored one).

    model: a `torch.nn.Module` that takes images (N x channels x resolution x resolution), or a name that
        `costmodel.build` knows. A module is never changed: a copy without weights is traced, in train mode.
    resolution: height and width of the images, in pixels.
    classes: number of classes of a new head; None keeps the network's own.

    Errors: ModelError if the network cannot be built, its forward fails, or it does what cannot be followed;
    InputError for a resolution below 1 or classes below 1.
    """
    require_count("resolution", resolution)
    if classes is not None:
        require_count("classes", classes)
    if isinstance(model, str):
        label, module = resolve(model), build(model, classes, device="meta")
    elif isinstance(model, nn.Module):
        label, module = type(model).__name__, _copy(model)
    else:
        raise InputError(f"trace takes a torch.nn.Module or a model's name, not {type(model).__name__}")
    graph = _trace_meta(module, label, resolution)
    if classes is not None and classes != graph.classes:  # its builder could not set them
        replace_head(module, graph, classes)
        graph = _trace_meta(module, label, resolution)
    return graph


def _copy(model: nn.Module) -> nn.Module:
    try:
        return to_meta(model).requires_grad_(False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{type(model).__name__} cannot be copied for the trace ({type(error).__name__}: {reason}); "
            "lazy layers must have run once, and scripted modules be given as they were before scripting"
        ) from error


def _input_channels(module: nn.Module) -> int:
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            return child.in_channels
    return 3


def _trace_meta(module: nn.Module, label: str, resolution: int) -> LayerGraph:
    """Trace a module that is on the meta device already."""
    module.train().requires_grad_(False)  # records no backward; `torch.no_grad` would hide the network's own
    recorder = _Recorder(module)
    parameters, buffers = {}, {}
    image = torch.empty(TRACE_BATCH, _input_channels(module), resolution, resolution, device="meta")
    try:
        with torch.enable_grad():
            for name, parameter in module.named_parameters():
                parameters[name] = recorder.value(parameter, "parameter", name)
            for name, buffer in module.named_buffers():
                buffers[name] = recorder.value(buffer, "constant", name)
            given = recorder.value(image, "input", "input")
            with recorder:
                outputs = tensors_in(module(image))
                for output in outputs:
                    recorder.refuse_unseen(output)
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        small = resolution < 224 or "size" in reason  # such as 'Kernel size can't be greater than actual input size'
        hint = "the resolution may be too small for it, or " if small else ""
        raise ModelError(
            f"the forward pass of {label} on images of {resolution}x{resolution} failed in {recorder.place} "
            f"({recorder.running or type(error).__name__}): {reason}; {hint}its forward needs mending"
        ) from error
    finished = [recorder.known[id(tensor)] for tensor in outputs if id(tensor) in recorder.known]
    if not any(value.kind == "activation" for value in finished):
        raise ModelError(f"no output of {label} depends on its input through calls that could be followed")
    return _Freeze(recorder, label, resolution, given, finished, parameters, buffers).graph()


class _Freeze:
    """Turns what was recorded into the graph's immutable values."""

    def __init__(self, recorder, label, resolution, given, finished, parameters, buffers):
        self.recorder, self.label, self.resolution = recorder, label, resolution
        self.given, self.finished = given, finished
        self.parameters, self.buffers = parameters, buffers
        self.count = 0

    def graph(self) -> LayerGraph:
        calls = self.recorder.calls
        for value in self.finished:
            value.store.held_until = len(calls)
        self.given.store.held_until = len(calls)
        parameters = {name: self.tensor(value, name) for name, value in self.parameters.items()}
        buffers = {name: self.tensor(value, name) for name, value in self.buffers.items()}
        image = self.tensor(self.given, "input")
        per_module = Counter(call.module for call in calls)
        used: Counter[str] = Counter()
        layers = []
        for index, call in enumerate(calls):
            name = (
                call.module if per_module[call.module] == 1 and call.module else f"{call.module}/{call.op}".lstrip("/")
            )
            used[name] += 1
            if used[name] > 1:
                name = f"{name}#{used[name]}"
            inputs = {role: self.tensor(value) for role, value in call.inputs.items()}
            outputs = tuple(self.tensor(value, name) for value in call.outputs)
            layers.append(
                Layer(index, name, call.module, call.ordinal, call.op, inputs, outputs, call.attributes, call.inplace)
            )
        outputs = tuple(value.result for value in self.finished)
        classes = outputs[0].shape[-1] if len(outputs[0].shape) > 1 else outputs[0].elements
        notes = tuple(dict.fromkeys(self.recorder.notes))
        return LayerGraph(
            self.label, self.resolution, classes, tuple(layers), image, outputs, parameters, buffers, notes
        )

    def tensor(self, value: _Value, name: str = "") -> Tensor:
        if value.result is None:
            elements = 1
            for size in value.shape:
                elements *= size
            constant_batched = value.kind == "constant" and not value.name and value.shape[:1] == (TRACE_BATCH,)
            batched = value.kind in ("input", "activation") or constant_batched
            storage = self.storage(value.store, batched)
            value.result = Tensor(
                self.count, value.shape, self.per_image(elements, batched, name), _dtype(value.dtype), value.kind,
                batched, storage, value.version, value.name or name,
            )  # fmt: skip
            self.count += 1
        return value.result

    def storage(self, store: _Store, batched: bool) -> Storage:
        if store.result is None:
            if store.live and store.held_until < 0:  # still referred to when the forward pass had ended
                store.held_until = len(self.recorder.calls)
            elements = store.memory.nbytes() // store.dtype.itemsize
            store.result = Storage(
                store.id, self.per_image(elements, batched, ""), _dtype(store.dtype), batched,
                store.held_until, store.writes,
            )  # fmt: skip
        return store.result

    def per_image(self, elements: int, batched: bool, name: str) -> int:
        if not batched:
            return elements
        if elements % TRACE_BATCH:
            raise ModelError(
                f"{self.label}: a tensor of {name or 'the network'} has {elements} elements at batch {TRACE_BATCH}, "
                "which does not grow with the batch; networks whose sizes depend on the data cannot be followed"
            )
        return elements // TRACE_BATCH


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
