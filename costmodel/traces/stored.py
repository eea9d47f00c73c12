"""The layer graph of a network by name: shipped with the package, or cached, or else traced now and cached.

The first two need no torch. What is stored is used only where it is what a trace would give: the libraries are those it
was made with. Modules and `path/file.py:function` are traced each time: nobody knows all the code that they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MissingPackageError, missing_package, nearest, require_count
from . import cache, shipped

if TYPE_CHECKING:
    from torch import nn

    from ..graph.layer_graph import LayerGraph


def trace(
    model: nn.Module | str, resolution: int = 224, classes: int | None = None, *, fresh: bool = False
) -> LayerGraph:
    """Return the layer graph of a network.

    model: a `torch.nn.Module` that takes images (N x channels x resolution x resolution), or a name:
        torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:function, or a bare NAME. A module is never changed: a copy
        without weights is traced, in train mode.
    resolution: height and width of the images, in pixels.
    classes: number of classes of a new head; None keeps the network's own.
    fresh: trace now, whatever is stored, and put the result in the cache.

    Errors: ModelError if the network cannot be built, its forward fails, or it does what cannot be followed;
    InputError for a resolution below 1 or classes below 1; MissingPackageError where it takes a trace and torch, or the
    network's library, is not installed.
    """
    require_count("resolution", resolution)
    if classes is not None:
        require_count("classes", classes)
    if isinstance(model, str) and not fresh:
        stored = shipped.find(model, resolution, classes) or cache.find(model, resolution, classes)
        if stored is not None:
            return stored
    try:
        from ..tracing.models import is_of_library
        from ..tracing.tracer import trace as trace_now
    except ModuleNotFoundError as error:
        raise _cannot_trace(error, model, resolution) from error
    graph = trace_now(model, resolution, classes)
    if isinstance(model, str) and is_of_library(graph.model):
        cache.keep(graph, model, resolution, classes)
    return graph


def _cannot_trace(error: ModuleNotFoundError, model: nn.Module | str, resolution: int) -> Exception:
    """Return the error for a network that takes a trace, which takes a package that is not installed."""
    what = f"tracing {model if isinstance(model, str) else type(model).__name__} at {resolution} pixels"
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
