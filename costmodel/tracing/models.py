"""Names -> torch models: "torchvision:NAME", "timm:NAME", "zoo:NAME", "path/file.py:function", or a bare NAME.

A name of an elastic super-network means its largest sub-network, and with @d=...,k=...,e=... any other.

On the meta device, for questions about shapes alone, a network is built without running its initialisation.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import CostModelError, InputError, MissingPackageError, ModelError, needs, unknown
from ..graph.elastic import split_name
from ..graph.layer_graph import LayerGraph
from ..zoo.elastic import ELASTIC

if TYPE_CHECKING:
    from ..zoo.once_for_all import SuperNetwork
    from .inputs import Shapes

_RANDOM_FILLS = {"normal_", "uniform_", "trunc_normal_", "bernoulli_", "random_", "exponential_"}


class _SkipInitialisation(TorchFunctionMode):
    """Leaves weights as they are allocated: no random numbers are drawn while a network is built."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if getattr(function, "__module__", None) == "torch.nn.init" or name in _RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _timm():
    try:
        import timm
    except ImportError as error:
        raise needs("timm", "a network of timm") from error
    return timm


def _torchvision_names() -> list[str]:
    from torchvision import models

    kinds = (
        models, models.detection, models.segmentation, models.video, models.quantization, models.optical_flow,
    )  # fmt: skip
    return [name for kind in kinds for name in models.list_models(module=kind)]


def _torchvision_model(name: str, **options) -> nn.Module:
    from torchvision import models

    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    return models.get_model(name, weights=None, **options)


# Assumption: the length of clips in torchvision's references/video_classification.
_FRAMES = 16


def usual_shape(name: str, resolution: int) -> Shapes | None:
    """Return the shape of one example of a network by name, or its shapes, where that is not an image."""
    source, _, model = name.rpartition(":")
    if source == "torchvision":
        from torchvision import models

        if model in models.list_models(module=models.video):
            return (3, _FRAMES, resolution, resolution)
        if model in models.list_models(module=models.optical_flow):  # two images, one after the other in time
            return [(3, resolution, resolution)] * 2
    return None


def _zoo_names() -> list[str]:
    from ..zoo.table import ZOO

    return [*ZOO, *ELASTIC]


def _zoo_model(name: str, **options) -> nn.Module:
    from ..zoo.once_for_all import SuperNetwork
    from ..zoo.table import ZOO

    return SuperNetwork(ELASTIC[name], **options) if name in ELASTIC else ZOO[name](**options)


# A library of models: what it has, and how one is built. All take `num_classes`.
LIBRARIES: dict[str, tuple[Callable[[], list[str]], Callable[..., nn.Module]]] = {
    "torchvision": (_torchvision_names, _torchvision_model),
    "timm": (lambda: _timm().list_models(), lambda name, **options: _timm().create_model(name, **options)),
    "zoo": (_zoo_names, _zoo_model),
}


def is_of_library(name: str) -> bool:
    """Return whether a full name's network is built by the library's own code: others may add to its names."""
    source, _, model = split_name(name)[0].rpartition(":")
    if source == "torchvision":
        from torchvision import models

        maker = models.get_model_builder(model)
    elif source == "timm":
        maker = _timm().model_entrypoint(model)
    else:
        return source in LIBRARIES
    return maker.__module__.startswith(f"{source}.")


def resolve(name: str) -> str:
    """Return the full name of a model: 'mobilenet_v2' -> 'torchvision:mobilenet_v2'.

    Errors: InputError for a name that no library has (with near names), or that several have.
    """
    base, choice = split_name(name)
    if choice is not None:
        return f"{resolve(base)}@{choice}"
    source, colon, model = name.rpartition(":")
    if name.endswith(".py"):
        source, model = name, ""
    if source.endswith(".py"):
        if not source.isprintable():  # it becomes the network's name, in tables, JSON and files
            raise InputError(f"the path {source!r} has characters that cannot be shown; rename the file")
        if not Path(source).is_file():
            raise InputError(f"there is no file {source!r}; write path/file.py:function")
        if not model:
            found = _functions(Path(source))
            listing = " or ".join(f"{source}:{function}" for function in found) or "but it has no function"
            raise InputError(f"{source!r} is a file; write which of its functions returns the network: {listing}")
        return name
    if colon:
        if source not in LIBRARIES:
            raise unknown("source of models", source, [*LIBRARIES, "path/file.py"])
        names = LIBRARIES[source][0]()
        if model not in names:
            raise unknown(f"{source} model", model, names)
        return name
    return _resolve_bare(name)


def _functions(path: Path) -> list[str]:
    """Return the names of a file's functions and classes, which need not run for that; none if it is not Python."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return []
    return [each.name for each in body if isinstance(each, (ast.FunctionDef, ast.ClassDef)) and each.name[0] != "_"]


def _resolve_bare(name: str) -> str:
    """Return the full name of a model that is named without its library."""
    names = {}
    for library, (list_names, _) in LIBRARIES.items():
        with suppress(MissingPackageError):
            names[library] = list_names()
    found = [f"{library}:{name}" for library, known in names.items() if name in known]
    if len(found) > 1:
        raise InputError(f"several libraries have a model {name!r}; write {' or '.join(found)}")
    if not found:
        raise unknown("model", name, [f"{library}:{known}" for library, each in names.items() for known in each])
    return found[0]


def build(name: str, classes: int | None = None, device: str = "cpu") -> nn.Module:
    """Return the torch model of a name, untrained, its head with `classes` outputs if its builder can set them.

    device: 'meta' allocates nothing and skips the initialisation.

    Errors: InputError for an unknown name, ModelError if building fails.
    """
    return _build(name, classes, device)


def supernetwork(name: str, classes: int | None = None, device: str = "cpu") -> SuperNetwork:
    """Return an elastic super-network itself, untrained; `build` returns a sub-network. Its `active` is that of name.

    Errors: those of `build`; InputError for a network that is not elastic.
    """
    network = _build(name, classes, device, as_supernetwork=True)
    if not hasattr(network, "design"):
        raise InputError(
            f"{name} is not an elastic super-network; take {' or '.join(f'zoo:{each}' for each in ELASTIC)}, or a "
            "function in path/file.py that returns a costmodel.zoo.once_for_all.SuperNetwork"
        )
    return cast("SuperNetwork", network)


def _chosen(name: str, network: nn.Module, choice: str | None, as_supernetwork: bool) -> nn.Module:
    """Return the sub-network, or the super-network of that width and norm, that a name means."""
    from ..zoo.once_for_all import Static, SuperNetwork

    if not isinstance(network, SuperNetwork):
        if choice is not None:
            raise InputError(f"{name} is not an elastic super-network, which has sub-networks; leave out @{choice}")
        return network
    design, chosen = network.design.read(choice or "")
    if not as_supernetwork:
        return Static(design, chosen, network.num_classes)
    if design != network.design:
        network = SuperNetwork(design, network.num_classes)
    network.active = chosen
    return network


def _build(name: str, classes: int | None, device: str, as_supernetwork: bool = False) -> nn.Module:
    base, choice = split_name(resolve(name))
    source, _, model = base.rpartition(":")
    options = {} if classes is None else {"num_classes": classes}

    def make() -> nn.Module:
        made = (
            _from_file(Path(source), model, options)
            if source.endswith(".py")
            else LIBRARIES[source][1](model, **options)
        )
        return _chosen(base, made, choice, as_supernetwork)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if device != "meta":
                return make()
            with _SkipInitialisation():
                try:
                    with torch.device("meta"):
                        return make()
                except InputError:
                    raise
                except Exception:  # some compute their widths with tensors, which meta cannot
                    return to_meta(make())
        except CostModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"building {name} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error


def float_type(model: nn.Module) -> torch.dtype:
    """Return the floating-point type that all of a network's parameters have; float32 if they have several, or none."""
    found = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def to_meta(model: nn.Module) -> nn.Module:
    """Return a copy of a module on the meta device; no weight is copied and the module is not touched."""
    memo: dict[int, Any] = {}

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_contiguous():  # much quicker
            return torch.empty(tensor.shape, device="meta", dtype=tensor.dtype)
        return torch.empty_like(tensor, device="meta")

    for module in model.modules():
        for tensors in (module._parameters, module._buffers, module.__dict__):
            for value in tensors.values():
                if isinstance(value, nn.Parameter):
                    memo[id(value)] = nn.Parameter(empty(value), value.requires_grad)
                elif isinstance(value, torch.Tensor):
                    memo[id(value)] = empty(value)
    return copy.deepcopy(model, memo)


def _from_file(path: Path, function: str, options: dict) -> nn.Module:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # as for every path that ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    maker = getattr(module, function, None)
    if not callable(maker):
        defined = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise unknown(f"function in {path}", function, defined)
    accepted = inspect.signature(maker).parameters
    model = maker(**{name: value for name, value in options.items() if name in accepted})
    if not isinstance(model, nn.Module):
        raise ModelError(f"{path}:{function} must return a torch.nn.Module, not {type(model).__name__}")
    return model


def replace_head(module: nn.Module, graph: LayerGraph, classes: int) -> None:
    """Give `module`, of which `graph` is the trace, a new head with `classes` outputs, in place.

    Errors: ModelError if the last layer with parameters is not a linear or 1x1-convolution module.
    """
    last = next(layer for layer in reversed(graph.layers) if layer.parameters)
    head = module.get_submodule(last.module)
    like: dict[str, Any] = {"bias": getattr(head, "bias", None) is not None, "device": next(head.parameters()).device}
    if isinstance(head, nn.Linear):
        new: nn.Module = nn.Linear(head.in_features, classes, **like)
    elif isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1) and head.groups == 1:
        new = nn.Conv2d(head.in_channels, classes, 1, **like)
    else:
        raise ModelError(
            f"cannot give {graph.model} a head with {classes} classes: its last layer with parameters is "
            f"{last.name!r} ({type(head).__name__}); build it with that head instead"
        )
    parent, _, attribute = last.module.rpartition(".")
    setattr(module.get_submodule(parent), attribute, new)
