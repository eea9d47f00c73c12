"""Traces that come with the package: networks that people fine-tune on small devices, from 96 to 320 pixels.

One file per network in `data/`: in the format of `costmodel.graph.store`, a line that says what was used to make it,
then a line per resolution. `costmodel ship` writes them; to add one, add a line to `NETWORKS` and run it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CostModelError, InputError
from ..graph.layer_graph import LayerGraph
from ..graph.store import decode, encode, pack, unpack, write
from ..graph.values import Tensor
from .versions import LIBRARIES, installed, release

NETWORKS = (
    "torchvision:efficientnet_b0",
    "torchvision:efficientnet_b1",
    "torchvision:mnasnet0_5",
    "torchvision:mnasnet1_0",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_large",
    "torchvision:mobilenet_v3_small",
    "torchvision:resnet18",
    "torchvision:resnet50",
    "timm:efficientnet_b0",
    "timm:efficientnet_lite0",
    "timm:fbnetc_100",
    "timm:fbnetv3_b",
    "timm:lcnet_050",
    "timm:lcnet_100",
    "timm:mnasnet_100",
    "timm:mnasnet_small",
    "timm:mobilenetv1_100",
    "timm:mobilenetv2_050",
    "timm:mobilenetv2_100",
    "timm:mobilenetv2_140",
    "timm:mobilenetv3_large_100",
    "timm:mobilenetv3_small_050",
    "timm:mobilenetv3_small_075",
    "timm:mobilenetv3_small_100",
    "timm:mobilenetv4_conv_medium",
    "timm:mobilenetv4_conv_small",
    "timm:mobilenetv4_conv_small_050",
    "timm:resnet18",
    "timm:resnet50",
    "timm:semnasnet_100",
    "timm:tf_efficientnet_lite0",
    "timm:tf_efficientnet_lite1",
    "timm:tf_efficientnet_lite2",
    "timm:tinynet_a",
    "timm:tinynet_b",
    "timm:tinynet_c",
    "timm:tinynet_d",
    "timm:tinynet_e",
    "zoo:mcunet_5fps",
    "zoo:mobilenet_v2_w035",
    "zoo:proxylessnas_mobile",
    "zoo:proxylessnas_mobile_tinytl",
    "zoo:proxylessnas_mobile_w03",
)
RESOLUTIONS = tuple(range(96, 321, 32))
DATA = Path(__file__).parent / "data"
SUFFIX = ".traces"
_NAME = re.compile(r"\w+:\w+")
_OTHER_CLASSES = (1, 2, 10, 102, 21843)


def find(model: str, resolution: int, classes: int | None = None, data: Path = DATA) -> LayerGraph | None:
    """Return a shipped trace; None if there is none, or if it was made with other versions than are installed here.

    A bare name is found only where every library has the version in which the name was no other's.
    """
    bare = ":" not in model
    name = next((full for full in NETWORKS if full.partition(":")[2] == model), "") if bare else model
    if resolution not in RESOLUTIONS or not _NAME.fullmatch(name):
        return None
    try:
        about, *texts = unpack(_path(name, data).read_bytes()).splitlines()
        made = json.loads(about)
        asked = [library for library in LIBRARIES if bare or library in ("torch", name.partition(":")[0])]
        if not all(_same(made[library], installed(library)) for library in asked) or (bare and not made["bare"]):
            return None
        graph = LayerGraph(**decode(texts[RESOLUTIONS.index(resolution)]))
    except (OSError, InputError):  # not shipped, or in a format of before
        return None
    return graph if classes in (None, graph.classes) else with_classes(graph, classes)


def _path(name: str, data: Path) -> Path:
    return data / f"{name.replace(':', '.')}{SUFFIX}"


def _same(there: str | None, here: str | None) -> bool:
    """Return whether a library that is here runs the code that a trace was made with; one that is not cannot differ."""
    return here is None or (there is not None and release(there) == release(here))


def with_classes(graph: LayerGraph, classes: int) -> LayerGraph | None:
    """Return the graph with another number of classes; None unless its last layer is a linear one of its own."""
    head = graph.layers[-1]
    weight = head.inputs.get("weight")
    if head.op != "linear" or graph.outputs != head.outputs or weight is None or weight.kind != "parameter":
        return None
    if any(len(graph.consumers[tensor.id]) > 1 for tensor in head.parameters.values()):
        return None

    def resized(tensor: Tensor, *shape: int) -> Tensor:
        count = tensor.elements // graph.classes * classes
        return replace(tensor, shape=shape, elements=count, storage=replace(tensor.storage, elements=count))

    new = {weight.name: resized(weight, classes, weight.shape[1])}
    if "bias" in head.inputs:
        new[head.inputs["bias"].name] = resized(head.inputs["bias"], classes)
    outputs = (resized(head.output, *head.output.shape[:-1], classes),)
    inputs = {role: new.get(tensor.name, tensor) for role, tensor in head.inputs.items()}
    layers = (*graph.layers[:-1], replace(head, inputs=inputs, outputs=outputs))
    parameters = {name: new.get(name, tensor) for name, tensor in graph.parameters.items()}
    return replace(graph, classes=classes, layers=layers, outputs=outputs, parameters=parameters)


def about(name: str, data: Path = DATA) -> dict[str, str | bool | None]:
    """Return what a shipped network was traced with: versions by library, and `bare`: whether it has its name alone."""
    return json.loads(unpack(_path(name, data).read_bytes()).splitlines()[0])


def ship(names: Sequence[str] = NETWORKS, data: Path = DATA) -> Iterator[tuple[str, int]]:
    """Trace networks and write their files; yield names and bytes.

    Errors: CostModelError if a network with other classes is not the one that `with_classes` makes.
    """
    from ..tracing.tracer import trace

    for name in names:
        graphs = [trace(name, resolution) for resolution in RESOLUTIONS]
        for classes in _OTHER_CLASSES:
            derived = with_classes(graphs[0], classes)
            if derived is None or encode(derived) != encode(trace(name, RESOLUTIONS[0], classes)):
                raise CostModelError(f"{name} with {classes} classes differs in more than its last layer")
        made = {**{library: installed(library) for library in LIBRARIES}, "bare": _has_its_name_alone(name)}
        content = pack("\n".join([json.dumps(made), *map(encode, graphs)]))
        data.mkdir(exist_ok=True)
        write(_path(name, data), content)
        yield name, len(content)


def _has_its_name_alone(name: str) -> bool:
    """Return whether a network's name without its library means this network and no other."""
    from ..tracing.models import resolve

    try:
        return resolve(name.partition(":")[2]) == name
    except InputError:  # several have it
        return False
