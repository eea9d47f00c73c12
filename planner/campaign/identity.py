"""What a study is of: all that its accuracies depend on, beside the way and the seed. Two that differ are two studies.

The images' content, classes and parts; the weights that a run starts from; the recipe; the network's layers; and what
shapes a result in what is installed: the libraries' releases, and this package's own code that trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

import costmodel
from costmodel import LayerGraph, body_digest
from costmodel.errors import InputError

from .fine_tuning import Recipe
from .images import DataSet
from .weights import Weights, digest, make_network

_LIBRARIES = ("torch", "torchvision", "pillow")
# The code that computes an accuracy: of this package and of costmodel.
_CODE = {
    Path(__file__).parent: ("decoding.py", "fine_tuning.py", "images.py", "loop.py", "rates.py", "weights.py"),
    Path(costmodel.__file__).parent: ("layers/*.py", "training/*.py", "methods/*.py"),
}


def settings_of(
    graph: LayerGraph, dataset: str, images: DataSet, network: nn.Module, weights: Weights, recipe: Recipe,
    rates: Sequence[float],
) -> dict[str, Any]:  # fmt: skip
    """Return what a study is of, as plain values. network: as seed 0 makes it. rates: to choose among, if several."""
    return {
        "model": graph.model,
        "dataset": dataset,
        "data": images.digest,
        "weights": f"{weights.label} {digest(network)}",
        "graph": body_digest(graph),
        "versions": versions(graph.model),
        **asdict(recipe),
        **({"learning_rate": list(rates)} if rates else {}),
    }


def start_of(graph: LayerGraph, weights: Weights) -> tuple[nn.Module, str | None]:
    """Return the network as seed 0 makes it, and a note on its head.

    Errors: those of `make_network`; InputError for a builder whose weights are others each time: no run of it could be
    told from another's.
    """
    network, note = make_network(graph, weights, 0)
    if weights.state is None and digest(network) != digest(make_network(graph, weights, 0)[0]):
        raise InputError(
            f"{graph.model} gets other weights each time it is built, although torch's seed is the same; draw them "
            "with torch alone, or save them once and give --weights FILE"
        )
    return network, note


def versions(model: str) -> str:
    """Return what shapes a result in what is installed, on one line."""
    libraries = (*_LIBRARIES, *(("timm",) if model.startswith("timm:") else ()))
    releases = [f"{name} {'.'.join(version(name).split('+')[0].split('.')[:2])}" for name in libraries]
    return ", ".join([*releases, f"code {_code()}"])


@cache
def _code() -> str:
    told = hashlib.sha256()
    for folder, patterns in _CODE.items():
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            told.update(path.read_bytes())
    return told.hexdigest()[:8]
