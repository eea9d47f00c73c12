"""torch model -> LayerGraph: one forward pass on the meta device, in train mode, of a copy without weights.

A `TorchFunctionMode` sees the calls that layers make (`conv2d`, `batch_norm`, `add`, ...) and nothing below them.
Tracing knows nothing of costs. What a layer's arguments are called is PyTorch's own naming, so that rules can ask for
`weight` or `stride`.

When a value dies matters for the peak, and only the program that runs knows it: a block's input lives as long as the
block's caller holds it. Weak references to the traced tensors tell.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from ..errors import InputError, ModelError, require_count
from ..graph.layer_graph import LayerGraph
from ..graph.learned import Learned
from ..graph.values import TRACE_BATCH, Layer, Storage, Tensor
from ..rules.table import RULES
from .calls import CONVOLUTION_ARGUMENTS, CallTracker, arguments_by_name, operation_name, tensors_in
from .detectors import run as run_network
from .inputs import Inputs, Shapes, images, of_examples, of_shapes
from .learning import ON_META, Learner, TracedCall, Unlearnable, attention
from .models import build, other_dtypes, replace_head, resolve, to_meta, usual_shape
from .quick import QuickCalls
from .strides import has_rows, matmul_copies

# What depends on its argument's shape alone.
_FACTORIES = {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "zeros_like", "ones_like", "empty_like",
              "full_like", "rand_like", "randn_like", "bernoulli", "argmax", "data"}  # fmt: skip

_NUMBERS = {"item", "float", "int", "bool", "index", "tolist"}  # calls that ask for what is in a tensor
_USUAL_CHANNELS = 3
_OTHER_BATCH = 89  # Assumption: as of TRACE_BATCH

_AUTOGRAD_FUNCTION = "a torch.autograd.Function (or a re-entrant checkpoint)"


class _Recorder(CallTracker):
    """Records every call whose result depends on the network's input or on a parameter."""

    def __init__(self, module: nn.Module, batch: int = TRACE_BATCH):
        super().__init__(module)
        self.batch = batch
        self.asked_channels: int | None = None  # by the convolution that failed
        self.calls: list[_Call] = []
        self.run = QuickCalls()
        self.learner = Learner()
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
        if inner := self.opened(function):
            return self.follow(function, inner, args, kwargs)
        place = _, op, _ = self.locate(function)
        unasked = self._watch_gradients(op, args)
        result, found = self._run(function, args, kwargs)
        outputs = [args[0]] if op == "setitem" else tensors_in(result)  # an assignment returns nothing
        if not outputs:
            return result
        inputs, attributes = self._bind(function, args, kwargs)
        followed = bool(_kinds(inputs) & {"input", "activation", "parameter", "derived"})
        if followed and unasked:
            self.refuse(_AUTOGRAD_FUNCTION)
        differentiable = any(tensor.is_floating_point() for tensor in outputs) and op not in _FACTORIES
        own = bool(_kinds(inputs) & {"input", "activation"})  # also where no gradient is, as in a frozen trunk
        if followed and differentiable and (torch.is_grad_enabled() or own):
            given = args[0] if args else kwargs.get("input")
            inplace = operation_name(function)[1] or (outputs[0] is given and bool(attributes.get("inplace")))
            made = _Call(*place, inputs, attributes | found, inplace)
            if op == "detach" or not torch.is_grad_enabled():
                made.attributes["cut_off"] = True
            if (op not in RULES or op in ON_META) and op != "detach":
                with torch.enable_grad():
                    made.learned = self._learn(made, function, args, kwargs)
            self._record(made, given, outputs, tensors_in([args, kwargs]))
        else:
            for tensor in outputs:  # random numbers, masks, counters: a value, but nothing that is differentiated
                if id(tensor) not in self.known:
                    self.value(tensor, "constant")
        return result

    def _run(self, function, args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
        """Run a call; return its result as a CPU makes it, and what is found out about it."""
        op = operation_name(function)[0]
        try:
            result = self.run(function, args, kwargs)
        except Exception:
            self.asked_channels = _asked_channels(op, args, kwargs)
            raise
        if op != "scaled_dot_product_attention":
            return result, {}
        result, kernel = attention(result, TracedCall(function, args, kwargs, self.batch))
        return result, {"kernel": kernel}

    def _learn(self, made: _Call, function, args: tuple, kwargs: dict) -> Learned | None:
        """Return what a call without a rule does; None, with a note, if that cannot be told."""
        roles = [role for role, value in made.inputs.items() if value.kind in ("activation", "parameter", "derived")]
        try:
            return self.learner.learn(TracedCall(function, args, kwargs, self.batch), roles)
        except Unlearnable as reason:
            self.notes.append(f"{self.place}: {made.op} has no rule and could not be learned: {reason}")
            return None

    def _record(
        self, call: _Call, given: torch.Tensor | None, outputs: list[torch.Tensor], tensors: list[torch.Tensor]
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
        kind = "activation" if self._depends_on_batch(call, outputs) else "derived"
        there = {value.store for value in call.inputs.values()}
        call.outputs = [self.value(tensor, kind) for tensor in outputs]
        for value in call.outputs:
            value.is_view = value.store in there and (not call.inplace or "through_view" in call.attributes)

    def _depends_on_batch(self, call: _Call, outputs: list[torch.Tensor]) -> bool:
        """Whether a result depends on the input's numbers, or on the batch's size (a learned query, expanded)."""
        if _kinds(call.inputs) & {"input", "activation"}:
            return True
        grows = any(_grows(tensor.shape, self.batch) for tensor in outputs)
        return grows and not any(_grows(value.shape, self.batch) for value in call.inputs.values() if value.name)

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
        if (hooks := _top_saved_tensors_default_hooks(False)) is not None:
            self.refuse_hooks(hooks[0])
        unasked = self.gradients_on and not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if op == "_set_grad_enabled":
            if unasked:
                self.refuse(_AUTOGRAD_FUNCTION)
            self.gradients_on = args[0]
        return unasked

    def refuse_hooks(self, pack: Callable[..., Any]) -> None:
        """Refuse a network whose own code says what becomes of saved tensors: a prediction would leave that out."""
        if pack.__module__ == "torch.utils.checkpoint":
            what = "is run again in backward by torch.utils.checkpoint"
            instead = (
                "switch that off (timm: model.set_grad_checkpointing(False)) and let a schedule recompute: "
                "--recompute best, costmodel.best_schedule"
            )
        else:
            what = f"keeps its saved tensors by hooks ({pack.__qualname__.partition('.')[0]})"
            instead = "leave the hooks out for the trace"
        raise ModelError(f"{self.place} {what}, which is not priced; {instead}")

    def refuse(self, call: str) -> None:
        """Refuse the network for a call of a kind that cannot be followed."""
        raise ModelError(
            f"{self.place} makes a tensor by {call}, which cannot be followed, so its cost is not known; "
            "for the trace write it with ordinary functions of torch"
        )

    def _unchanged(self, tensor: torch.Tensor, inputs) -> bool:
        value = self.known.get(id(tensor))
        return value is not None and any(value is given for given in inputs)

    def _bind(self, function: Any, args: tuple, kwargs: dict) -> tuple[dict[str, _Value], dict[str, Any]]:
        """Return the tensor arguments by role and the others by name."""
        inputs: dict[str, _Value] = {}
        attributes: dict[str, Any] = {}
        for name, given in arguments_by_name(function, args, kwargs):
            if isinstance(given, torch.Tensor):
                inputs[name] = self._read(given)
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
    learned: Learned | None = None


def _kinds(inputs: dict[str, _Value]) -> set[str]:
    return {value.kind for value in inputs.values()}


def _counts(shape: tuple[int, ...], batch: int) -> int:
    """Return how many sizes the batch divides."""
    return sum(size > 0 and size % batch == 0 for size in shape)


def _grows(shape: tuple[int, ...], batch: int) -> bool:
    return any(size and size % batch == 0 for size in shape)


def _asked_channels(op: str, args: tuple, kwargs: dict[str, Any]) -> int | None:
    """Return how many channels a convolution of images wants, of one that was given as many as an image has."""
    given = dict(zip(CONVOLUTION_ARGUMENTS, args, strict=False)) | kwargs
    if op != "conv2d" or given["input"].dim() != 4 or given["input"].shape[1] != _USUAL_CHANNELS:
        return None
    return given["weight"].shape[1] * given.get("groups", 1)


def trace(
    model: nn.Module | str,
    resolution: Any = 224,
    classes: int | None = None,
    *,
    input: Shapes | None = None,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
) -> LayerGraph:
    """Return the layer graph of a network, traced now; see `costmodel.trace`, which first looks for a stored one."""
    if classes is not None:
        require_count("classes", classes)
    if isinstance(model, str):
        label, module = resolve(model), build(model, classes, device="meta")
    elif isinstance(model, nn.Module):
        label, module = type(model).__name__, _copy(model)
    else:
        raise InputError(f"trace takes a torch.nn.Module or a model's name, not {type(model).__name__}")
    if isinstance(model, str) and input is None and isinstance(resolution, int):
        input = usual_shape(label, resolution)
    given = inputs_of(module, resolution, input, targets)
    graph = _trace_meta(module, label, given, loss)
    if classes is not None and not has_classes(graph, classes):  # its builder could not set them
        replace_head(module, graph, classes)
        graph = _trace_meta(module, label, given, loss)
    if isinstance(model, nn.Module) and (other := other_dtypes(model)):
        note = f"the network is in {other}, and is priced as it would be in float32"
        graph = replace(graph, notes=(*graph.notes, note))
    return graph


def inputs_of(module: nn.Module, resolution: Any, input: Shapes | None, targets: Any = None) -> Inputs | int:
    """Return what a network is called with; a number is the resolution of images of as many channels as it asks for.

    Errors: InputError for a resolution below 1, or shapes or examples that are none.
    """
    if input is not None:
        return of_shapes(module, input)
    if not isinstance(resolution, int | float | str):
        return of_examples(module, resolution, targets)
    require_count("resolution", resolution)
    return cast(int, resolution)


def has_classes(graph: LayerGraph, classes: int) -> bool:
    """Whether a network tells so many classes apart, in one of its outputs."""
    return graph.classes == classes or any(classes in tensor.shape[1:] for tensor in graph.outputs)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return to_meta(model).requires_grad_(False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{type(model).__name__} cannot be copied for the trace ({type(error).__name__}: {reason}); "
            "lazy layers must have run once, and scripted modules be given as they were before scripting"
        ) from error


def _trace_meta(module: nn.Module, label: str, given: Inputs | int, loss: Callable[..., Any] | None) -> LayerGraph:
    """Trace a module that is on the meta device already."""
    # Records no backward; `torch.no_grad` would hide the network's own.
    module.train().requires_grad_(False)
    for child in module.modules():  # how running statistics are averaged costs nothing, but may ask for a number
        if isinstance(child, BatchNorm) and child.momentum is None:
            child.momentum = 0.1
    if isinstance(given, Inputs):
        run = _Run(module, label, given, loss)
    else:
        try:
            run = _Run(module, label, images(_USUAL_CHANNELS, given), loss)
        except _OtherChannels as asked:
            run = _Run(module, label, images(asked.channels, given), loss)
    if run.has_fixed_sizes:
        run.compare(_Run(module, label, run.inputs, loss, _OTHER_BATCH))
    by_accident = run.seems_squared and run.is_proportional(_Run(module, label, run.inputs, loss, _OTHER_BATCH))
    return _Freeze(run, by_accident).graph()


class _OtherChannels(Exception):
    """A network's first convolution asks for images of other channels."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.channels = channels


class _Run:
    """One forward pass on the meta device, recorded."""

    def __init__(
        self, module: nn.Module, label: str, inputs: Inputs, loss: Callable[..., Any] | None, batch: int = TRACE_BATCH
    ):
        self.label, self.inputs, self.batch, self.has_loss = label, inputs, batch, loss is not None
        self.recorder = recorder = _Recorder(module, batch)
        made = inputs.meta(batch)
        with torch.enable_grad():
            self.parameters = {n: recorder.value(each, "parameter", n) for n, each in module.named_parameters()}
            self.buffers = {n: recorder.value(each, "constant", n) for n, each in module.named_buffers()}
            self.given = [recorder.value(each, "input", "input") for each in made.leaves]
            try:
                with recorder:
                    result = _call(module, made, loss)
                    outputs = tensors_in(result)
                    for output in outputs:
                        recorder.refuse_unseen(output)
            except ModelError:
                raise
            except Exception as error:
                raise self._failed(error) from error
        self.finished = [recorder.known[id(tensor)] for tensor in outputs if id(tensor) in recorder.known]
        if not any(value.kind == "activation" for value in self.finished):
            raise ModelError(self._no_output(result))

    @property
    def input_label(self) -> str:
        """What the network is given, for messages."""
        shapes = [leaf.of(self.batch)[1:] for leaf in self.inputs.leaves]
        if len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][1] == shapes[0][2]:
            return f"images of {shapes[0][1]}x{shapes[0][2]}"
        return f"inputs of {', '.join('x'.join(map(str, shape)) or '1' for shape in shapes)}"

    def _failed(self, error: Exception) -> Exception:
        recorder, first = self.recorder, self.inputs.leaves[0].shape
        channels = recorder.asked_channels
        if channels not in (None, _USUAL_CHANNELS) and first[1:2] == (_USUAL_CHANNELS,):
            return _OtherChannels(channels)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        small = min(first[2:], default=224) < 224 or "size" in reason  # 'Kernel size can't be greater than ...'
        hint = "its input may be another (--input 3x320x240, trace(..., input=(3, 320, 240))), or "
        if recorder.running in _NUMBERS:
            hint = "it asks for a number in a tensor, of which the trace has the shape only; "
        elif small:
            hint = f"the resolution may be too small for it, or {hint}"
        return ModelError(
            f"the forward pass of {self.label} on {self.input_label} failed in {recorder.place} "
            f"({recorder.running or type(error).__name__}): {reason}; {hint}its forward needs mending"
        )

    def _no_output(self, result: Any) -> str:
        if not tensors_in(result):
            return (
                f"no output of {self.label} could be found: it returns {type(result).__name__}; what can be followed "
                "are tensors, and tuples, lists, dicts and dataclasses of them"
            )
        return f"no output of {self.label} depends on its input through calls that could be followed"

    @property
    def _fixed(self) -> list[tuple[int, ...]]:
        """Shapes of results that do not grow with the batch."""
        values = (value for call in self.recorder.calls for value in call.outputs or () if value.kind == "activation")
        return [value.shape for value in values if math.prod(value.shape) % self.batch]

    @property
    def has_fixed_sizes(self) -> bool:
        """Whether results of more than one number do not grow with the batch, or not in proportion to it."""
        return any(math.prod(shape) > 1 for shape in self._fixed)

    @property
    def _made(self) -> list[tuple[int, ...]]:
        return [value.shape for call in self.recorder.calls for value in call.outputs or ()]

    @property
    def seems_squared(self) -> bool:
        """Whether a result has two sizes that the batch divides; one may do so by accident (96 pixels and a border)."""
        return any(_counts(shape, self.batch) > 1 for shape in self._made)

    def is_proportional(self, other: _Run) -> bool:
        """Whether such results are in proportion to the batch, compared with a run of another one."""
        pairs = zip(self._made, other._made, strict=True)
        return all(
            math.prod(ours) * other.batch == math.prod(theirs) * self.batch
            for ours, theirs in pairs
            if _counts(ours, self.batch) > 1
        )

    def compare(self, other: _Run) -> None:
        """Compare with a run of another batch. Errors: ModelError if sizes are not in proportion to the batch."""
        if self._fixed != other._fixed:
            shape = next((one for one in self._fixed if one not in other._fixed), self._fixed[0])
            raise ModelError(
                f"{self.label}: a tensor has the shape {'x'.join(map(str, shape))} at batch {self.batch}, which does "
                "not grow with the batch in proportion; networks whose sizes depend on the data cannot be followed"
            )


def _call(module: nn.Module, made: Inputs, loss: Callable[..., Any] | None) -> Any:
    """Return a network's result, or the loss of it; nothing here refers to the result then."""
    if loss is None:
        return run_network(module, *made.args, **made.kwargs)
    result = run_network(module, *made.args, **made.kwargs)
    return loss(result) if made.targets is None else loss(result, made.targets)


class _Freeze:
    """Turns what was recorded into the graph's immutable values."""

    def __init__(self, run: _Run, by_accident: bool):
        self.run, self.recorder, self.label = run, run.recorder, run.label
        self.count = 0
        own = [*run.parameters.values(), *run.buffers.values(), *run.given]
        self.has_such_sizes = by_accident or any(_grows(value.shape[1:], TRACE_BATCH) for value in own)

    def graph(self) -> LayerGraph:
        calls, run = self.recorder.calls, self.run
        for value in (*run.finished, *run.given):
            value.store.held_until = len(calls)
        parameters = {name: self.tensor(value, name) for name, value in run.parameters.items()}
        buffers = {name: self.tensor(value, name) for name, value in run.buffers.items()}
        first, *more = (self.tensor(value, "input") for value in run.given)
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
            outputs = tuple(self.tensor(value, name) for value in call.outputs or ())
            layers.append(
                Layer(
                    index, name, call.module, call.ordinal, call.op, inputs, outputs, call.attributes, call.inplace,
                    learned=call.learned,
                )
            )  # fmt: skip
        outputs = tuple(self.tensor(value) for value in run.finished)
        notes = tuple(dict.fromkeys(self.recorder.notes))
        return LayerGraph(
            self.label, max(first.shape[2:], default=1), max(map(_classes, outputs)), tuple(layers), first, outputs,
            parameters, buffers, notes, more_inputs=tuple(more), ends_in_loss=run.has_loss,
        )  # fmt: skip

    def tensor(self, value: _Value, name: str = "") -> Tensor:
        if value.result is None:
            elements = math.prod(value.shape)
            batched = value.kind not in ("parameter", "derived") and not (value.kind == "constant" and value.name)
            batched = batched and _grows(value.shape, TRACE_BATCH)
            if _counts(value.shape, TRACE_BATCH) > 1 and not self.has_such_sizes:
                raise ModelError(
                    f"{self.label}: a tensor of {name or 'the network'} grows with the square of the batch, so no cost "
                    "per image exists; leave out what compares the images of a batch with each other"
                )
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
                f"{self.label}: memory of {name or 'the network'} has {elements} elements at batch {TRACE_BATCH}, "
                "which does not grow with the batch; networks whose sizes depend on the data cannot be followed"
            )
        return elements // TRACE_BATCH


def _classes(output: Tensor) -> int:
    """Return the classes that a network tells apart: the channels of a dense output, else the last dimension."""
    if len(output.shape) > 3:
        return output.shape[1]
    return output.shape[-1] if len(output.shape) > 1 else output.elements


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
