"""What was recorded of a forward pass -> the graph's immutable values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import torch

from ..errors import ModelError
from ..graph.layer_graph import LayerGraph
from ..graph.values import TRACE_BATCH, Layer, Storage, Tensor
from ..units import BYTES_PER_ELEMENT
from .recorded import Call, Store, Value, counts, grows
from .runs import Run


class Freeze:
    """Turns what was recorded into the graph's immutable values."""

    def __init__(self, run: Run, by_accident: bool):
        self.run, self.recorder, self.label = run, run.recorder, run.label
        self.count = 0
        own = [*run.parameters.values(), *run.buffers.values(), *run.given]
        self.has_such_sizes = by_accident or any(grows(value.shape[1:], TRACE_BATCH) for value in own)

    def graph(self) -> LayerGraph:
        """Return the graph."""
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
                    learned=call.learned, beside=tuple(self.beside(call)), checkpoint=call.checkpoint,
                )
            )  # fmt: skip
        outputs = tuple(self.tensor(value) for value in run.finished)
        notes = tuple(dict.fromkeys(self.recorder.notes))
        return LayerGraph(
            self.label, max(first.shape[2:], default=1), max(map(_classes, outputs)), tuple(layers), first, outputs,
            parameters, buffers, notes, more_inputs=tuple(more), ends_in_loss=run.has_loss,
        )  # fmt: skip

    def beside(self, call: Call) -> Iterator[Storage]:
        """Yield the memory of constants that were made before a call, but for what does not grow with the batch."""
        for value in call.beside:
            with suppress(ModelError):  # no layer reads it, so that its size is no reason to refuse the network
                yield self.tensor(value).storage

    def tensor(self, value: Value, name: str = "") -> Tensor:
        """Return a value as a tensor of the graph; errors: ModelError if its size has no number per image."""
        if value.result is None:
            elements = math.prod(value.shape)
            batched = value.kind not in ("parameter", "derived") and not (value.kind == "constant" and value.name)
            batched = batched and grows(value.shape, TRACE_BATCH)
            if counts(value.shape, TRACE_BATCH) > 1 and not self.has_such_sizes:
                raise ModelError(
                    f"{self.label}: a tensor of {name or 'the network'} grows with the square of the batch, so no cost "
                    "per image exists; leave out what compares the images of a batch with each other"
                )
            # An expanded tensor repeats its memory for every image.
            repeats = bool(value.strides) and all(
                not step for size, step in zip(value.shape, value.strides, strict=True) if grows((size,), TRACE_BATCH)
            )
            storage = self.storage(value.store, batched and not repeats)
            value.result = Tensor(
                self.count, value.shape, self.per_image(elements, batched, name), _dtype(value.dtype), value.kind,
                batched, storage, value.version, value.name or name, value.strides,
            )  # fmt: skip
            self.count += 1
        return value.result

    def storage(self, store: Store, batched: bool) -> Storage:
        """Return memory as a storage of the graph."""
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
        """Return a count per image if it is batched; errors: ModelError if it does not grow with the batch."""
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
    name = str(dtype).removeprefix("torch.")
    if name not in BYTES_PER_ELEMENT:
        raise ModelError(f"the network holds numbers of the type {name}; priced are {', '.join(BYTES_PER_ELEMENT)}")
    return name
