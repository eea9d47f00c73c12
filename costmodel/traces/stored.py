"""The layer graph of a network by name: shipped with the package, or cached, or else traced now and cached.

The first two need no torch. What is stored is used only where it is what a trace would give: the libraries are those it
was made with. Modules and `path/file.py:function` are traced each time: nobody knows all the code that they run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ..errors import MissingPackageError, missing_package, nearest, require_count
from . import cache, shipped

if TYPE_CHECKING:
    from torch import nn

    from ..graph.layer_graph import LayerGraph
    from ..tracing.inputs import Shapes


def trace(
    model: nn.Module | str,
    resolution: Any = 224,
    classes: int | None = None,
    *,
    input: Shapes | None = None,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    fresh: bool = False,
) -> LayerGraph:
    """Return the layer graph of a network.

    model: a `torch.nn.Module`, or a name: torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:function, or a bare NAME.
        A module is never changed: a copy without weights is traced, in train mode.
    resolution: height and width of the images (N x channels x resolution x resolution), in pixels; or what the network
        is called with: example tensors of any batch, as a tensor, a tuple of arguments, or a dict.
    classes: number of classes of a new head; None keeps the network's own.
    input: the shape of one example without the batch, where it is not a square image: (3, 320, 240), or several such
        shapes, or a dict of them by the argument's name, or as text, such as "tokens=128:int64".
    loss: of (result) or of (result, targets), from the network's result to a scalar: its calls are priced with the
        network's. Without one the loss is a cross-entropy of every output.
    targets: example tensors for the loss, of the same batch as those that the network is called with.
    fresh: trace now, whatever is stored, and put the result in the cache.

    Errors: ModelError if the network cannot be built, its forward fails, or it does what cannot be followed;
    InputError for a resolution below 1 or classes below 1, or an input that is not a shape; MissingPackageError where
    it takes a trace and torch, or the network's library, is not installed.
    """
    if isinstance(resolution, int | float | str):
        require_count("resolution", resolution)
    if classes is not None:
        require_count("classes", classes)
    name = model if isinstance(model, str) and isinstance(resolution, int) and input is None and loss is None else None
    pixels = cast(int, resolution)  # where there is a name
    if name is not None and not fresh:
        stored = shipped.find(name, pixels, classes) or cache.find(name, pixels, classes)
        if stored is not None:
            return stored
    try:
        from ..tracing.models import is_of_library
        from ..tracing.tracer import trace as trace_now
    except ModuleNotFoundError as error:
        raise _cannot_trace(error, model, resolution) from error
    graph = trace_now(model, resolution, classes, input=input, loss=loss, targets=targets)
    if name is not None and is_of_library(graph.model):
        cache.keep(graph, name, pixels, classes)
    return graph


def _cannot_trace(error: ModuleNotFoundError, model: nn.Module | str, resolution: Any) -> Exception:
    """Return the error for a network that takes a trace, which takes a package that is not installed."""
    at = f" at {resolution} pixels" if isinstance(resolution, int) else ""
    what = f"tracing {model if isinstance(model, str) else type(model).__name__}{at}"
    missing = missing_package(error, what)
    if missing is None:
        return error
    named = nearest(model, shipped.NETWORKS) if isinstance(model, str) else []
    if named and resolution in shipped.RESOLUTIONS:
        return MissingPackageError(f"{missing}, or write {' or '.join(named)}, which need no trace")
    sizes = f"{shipped.RESOLUTIONS[0]} to {shipped.RESOLUTIONS[-1]} pixels in steps of 32"
    return MissingPackageError(
        f"{missing}; without it, {len(shipped.NETWORKS)} networks at {sizes} can be asked about: costmodel cache"
    )
