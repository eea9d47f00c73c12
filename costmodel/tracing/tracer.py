"""torch model -> LayerGraph: one forward pass on the meta device, in train mode, of a copy without weights.

Tracing knows nothing of costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from ..errors import InputError, ModelError, require_count
from ..graph.layer_graph import LayerGraph
from ..graph.values import TRACE_BATCH
from .freezing import Freeze
from .inputs import Inputs, Shapes, images, of_examples, of_shapes
from .models import build, float_type, replace_head, resolve, to_meta, usual_shape
from .recorder import USUAL_CHANNELS
from .runs import OtherChannels, Run
from .slices import StaleRead

_OTHER_BATCH = 89  # Assumption: as of TRACE_BATCH


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
    if isinstance(model, nn.Module) and (dtype := float_type(module)) is not torch.float32:
        name = str(dtype).removeprefix("torch.")
        note = f"the network is in {name}: the working memory of its kernels is not known, so a peak may be higher"
        graph = replace(graph, notes=(*graph.notes, note))
    return graph


def inputs_of(module: nn.Module, resolution: Any, input: Shapes | None, targets: Any = None) -> Inputs | int:
    """Return what a network is called with; a number is the resolution of images of as many channels as it asks for.

    Errors: InputError for a resolution below 1, or shapes or examples that are none.
    """
    if input is not None:
        return of_shapes(module, input).of_type(float_type(module))
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
    dtype = float_type(module)
    run = partial(_run, module, label, loss)
    if isinstance(given, Inputs):
        first = run(given)
    else:
        try:
            first = run(images(USUAL_CHANNELS, given).of_type(dtype))
        except OtherChannels as asked:
            first = run(images(asked.channels, given).of_type(dtype))
    if first.has_fixed_sizes:
        first.compare(run(first.inputs, _OTHER_BATCH))
    by_accident = first.seems_squared and first.is_proportional(run(first.inputs, _OTHER_BATCH))
    return Freeze(first, by_accident).graph()


def _run(
    module: nn.Module, label: str, loss: Callable[..., Any] | None, inputs: Inputs, batch: int = TRACE_BATCH
) -> Run:
    """Return a forward pass; where a tensor is read after a view of it was overwritten, such writes are followed."""
    try:
        return Run(module, label, inputs, loss, batch)
    except StaleRead:
        return Run(module, label, inputs, loss, batch, follows_slices=True)
