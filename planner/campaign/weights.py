"""Where a network's weights come from before it is fine-tuned: its library's own, a file, or random numbers."""

from __future__ import annotations

import hashlib
import re
import sys
import zipfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from costmodel import LayerGraph, ModelError, SuperNetwork, build, parts, replace_head, supernetwork
from costmodel.errors import InputError
from costmodel.reading import check_file

from .images import IMAGENET, Normalisation

DEFAULT, RANDOM = "DEFAULT", "random"
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # what checkpoints keep a state dict under
_PREFIX = "module."  # of torch.nn.DataParallel
_DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool,
}  # fmt: skip
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """What a network starts from. label: its name for people. state: None for the builder's own."""

    label: str
    state: State | None
    normalisation: Normalisation = IMAGENET


def load_weights(model: str, given: str | None) -> Weights:
    """Return the weights of a model (its full name): DEFAULT, a file, or random; None for what a .py file builds.

    Errors: InputError if nothing is given for a model of a library, if DEFAULT cannot be loaded, or a file is none.
    """
    source = model.rpartition(":")[0]
    if given is None:
        if source.endswith(".py"):
            return Weights("its own", None)
        raise InputError(f"give --weights for {model}: {DEFAULT}, a file of a state dict, or {RANDOM}")
    if given == RANDOM:
        return Weights(RANDOM, None)
    if given != DEFAULT:
        return _from_file(Path(given))
    if source not in ("torchvision", "timm"):
        raise InputError(
            f"{model} has no {DEFAULT} weights: only torchvision's and timm's have; give a file or {RANDOM}"
        )
    return (_torchvision if source == "torchvision" else _timm)(model.rpartition(":")[2])


def _torchvision(name: str) -> Weights:
    from torchvision import models

    weights = models.get_model_weights(name)[DEFAULT]
    try:
        with redirect_stdout(sys.stderr):  # the loader names what it downloads
            state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a download that broke off
        raise _not_loaded(f"torchvision:{name}", error) from error
    shown = weights.transforms()
    return Weights(f"torchvision {weights.name}", state, (tuple(shown.mean), tuple(shown.std)))


def _timm(name: str) -> Weights:
    import timm

    if not timm.is_model_pretrained(name):
        raise InputError(f"timm has no weights for {name}; give a file or {RANDOM}")
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client has errors of its own, which depend on its version
        raise _not_loaded(f"timm:{name}", error) from error
    config = cast("dict[str, Any]", network.pretrained_cfg)
    label = f"timm {config.get('architecture', name)}.{config.get('tag', '')}".rstrip(".")
    return Weights(label, network.state_dict(), (tuple(config["mean"]), tuple(config["std"])))


def _not_loaded(model: str, error: Exception) -> InputError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
    return InputError(
        f"cannot load the {DEFAULT} weights of {model} ({said}); without a network, save them on a machine that has "
        "one with torch.save(model.state_dict(), 'weights.pth'), and give --weights weights.pth"
    )


def _from_file(path: Path) -> Weights:
    check_file(path, "weights")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _read_archive(path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror or error}") from error
    except Exception as error:  # the unpickler raises of every kind
        raise InputError(
            f"{path} is not a file of weights only; save it with torch.save(model.state_dict(), {path.name!r})"
        ) from error
    if isinstance(state, Mapping):
        state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict; save it with torch.save(model.state_dict(), {path.name!r})")
    for name, value in state.items():
        if reason := _wrong(name, value):
            raise InputError(f"the weights {path} cannot be used: {name!r} {reason}; save them again")
    return Weights(path.name, {name.removeprefix(_PREFIX): value for name, value in state.items()})


def _read_archive(path: Path) -> Any:
    """Return what torch.save wrote. Errors: InputError if its checksums are not those of its content."""
    if zipfile.is_zipfile(path):  # what torch before 1.6 wrote has no checksums
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise InputError(f"the weights {path} unpack to more than the file; torch.save does not compress")
            if damaged := archive.testzip():
                raise InputError(
                    f"the weights {path} are damaged: the checksum of {damaged!r} is not that of its content"
                )
    return torch.load(path, map_location="cpu", weights_only=True)


def _wrong(name: object, value: torch.Tensor) -> str:
    """Return why a tensor cannot be a network's; empty if it can. The order matters: none is read that is not there."""
    if not isinstance(name, str):
        return "is not a name of a parameter"
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return "is sparse, quantized or without content"
    if value.dtype not in _DTYPES:
        return f"is of {value.dtype}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "has more elements than are stored"
    if value.is_floating_point() and not bool(value.isfinite().all()):
        return "has values that are not finite"
    if name.endswith("running_var") and bool((value < 0).any()):
        return "has negative variances"
    return ""


def digest(network: nn.Module) -> str:
    """Return what tells a network's weights and buffers from others, by their names, kinds and values."""
    told = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        told.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        told.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return told.hexdigest()[:16]


def make_network(graph: LayerGraph, weights: Weights, seed: int) -> tuple[nn.Module, str | None]:
    """Return the network of a trace with its weights, and a note if its head starts from random numbers.

    Errors: InputError for weights of another network, by the first name that differs; those of `costmodel.build`.
    """
    is_shared = weights.state is not None and _of_all(weights.state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(graph.model, graph.classes)
        if not _is_traced(network, graph):
            replace_head(network, graph, graph.classes)  # its builder knows nothing of classes
        shared = supernetwork(graph.model, graph.classes) if is_shared else None
    if not _is_traced(network, graph):
        raise ModelError(f"{graph.model} cannot be built with {graph.classes} classes")
    if shared is None:
        return network, _load(network, weights, graph)
    note = _load(shared, weights, graph)
    network.load_state_dict(shared.extract(shared.active).state_dict())
    return network, note


def make_supernetwork(graph: LayerGraph, weights: Weights, seed: int) -> tuple[SuperNetwork, str | None]:
    """Return the super-network of a sub-network's trace with its weights, and a note as `make_network`.

    Errors: those of `make_network`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = supernetwork(graph.model, graph.classes)
    return network, _load(network, weights, graph)


# Once-for-all's own later name for a part of each block, and that of the published checkpoints.
_LATER_NAME = re.compile(r"^(blocks\.\d+)\.conv\.")


def _load(network: nn.Module, weights: Weights, graph: LayerGraph) -> str | None:
    """Put weights into a network, in place; return a note if its head starts from random numbers.

    Errors: InputError for weights of another network, by the first name that differs.
    """
    if weights.state is None:
        return None
    own, state = network.state_dict(), dict(weights.state)
    if _of_all(state):
        state = {_LATER_NAME.sub(r"\1.mobile_inverted_conv.", name): value for name, value in state.items()}
    head = [name for name in own if name.rpartition(".")[0] == graph.layers[parts(graph).head].module]
    note = None
    if any(name in state and _is_other_head(state[name].shape, own[name].shape) for name in head):
        old = next(state[name].shape[0] for name in head if name in state)
        note = f"the weights' head has {old} classes, the data {graph.classes}: the head starts from random weights"
        state = {name: value for name, value in state.items() if name not in head}
    wrong = [f"has {name!r}, which the network does not have" for name in state if name not in own]
    wrong += [
        f"has {name!r} as {tuple(value.shape)}, the network as {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    optional = {name for name in own if name.endswith("num_batches_tracked")} | set(head if note else ())
    wrong += [f"lacks {name!r}" for name in own if name not in state and name not in optional]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(f"the weights {weights.label} are not those of {graph.model}: the file {wrong[0]}{more}")
    network.load_state_dict({name: value.clone() for name, value in state.items()}, strict=False)
    return note


def _of_all(state: State) -> bool:
    """Whether weights are those of an elastic super-network: only these have matrices between kernels."""
    return any(name.endswith("to3_matrix") for name in state)


def _is_other_head(given: torch.Size, own: torch.Size) -> bool:
    """Whether a parameter is one of a head with other classes, all else the same."""
    return len(given) == len(own) > 0 and given[0] != own[0] and given[1:] == own[1:]


def _is_traced(network: nn.Module, graph: LayerGraph) -> bool:
    """Whether a network has the parameters of a trace."""
    own = {name: tuple(each.shape) for name, each in network.named_parameters()}
    return all(own.get(name) == tuple(tensor.shape) for name, tensor in graph.parameters.items())
