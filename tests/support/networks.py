"""Networks that many tests ask for, and what is known of them without the cost model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import timm
import torch
import torchvision
from hypothesis import strategies as st
from torch import nn

from costmodel import ACCOUNTINGS, METHODS, LayerGraph, block_count
from costmodel.tracing.tracer import trace
from costmodel.zoo.table import ZOO

# The twelve networks of the project's tests and tables, and how many blocks each has.
BLOCKS = {
    "torchvision:mobilenet_v2": 17,
    "torchvision:mobilenet_v3_small": 11,
    "torchvision:mobilenet_v3_large": 15,
    "torchvision:efficientnet_b0": 16,
    "torchvision:mnasnet1_0": 17,
    "timm:mobilenetv2_050": 17,
    "timm:mobilenetv3_small_050": 11,
    "timm:efficientnet_lite0": 16,
    "timm:fbnetc_100": 21,
    "timm:tinynet_e": 10,
    "timm:mobilenetv4_conv_small": 12,
    "zoo:proxylessnas_mobile": 20,
}
TWELVE = tuple(BLOCKS)

# Methods that train a network as it is; every other one rewrites it first.
PLAIN_METHODS = ("full", "last", "norm", "bias", "blocks", "mobiletl")

# The books of a whole training step; the others are those of papers, which leave most of a step out.
WHOLE_STEP = tuple(name for name, books in ACCOUNTINGS.items() if books.whole_step)

# Forty-two small networks: at least one of every family that has to trace.
SPREAD = (
    *TWELVE,
    "torchvision:efficientnet_v2_s",
    "torchvision:resnet18",
    "torchvision:regnet_x_400mf",
    "torchvision:regnet_y_400mf",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1",
    "torchvision:densenet121",
    "timm:mobilenetv1_100",
    "timm:mobilenetv4_hybrid_medium",
    "timm:mobilenet_edgetpu_100",
    "timm:tf_mobilenetv3_small_minimal_100",
    "timm:tf_efficientnetv2_b0",
    "timm:efficientnet_es",
    "timm:mnasnet_small",
    "timm:semnasnet_050",
    "timm:fbnetv3_b",
    "timm:ghostnet_050",
    "timm:ghostnetv2_100",
    "timm:repghostnet_050",
    "timm:lcnet_035",
    "timm:mixnet_s",
    "timm:hardcorenas_a",
    "timm:resnet10t",
    "timm:resnetv2_18",
    "timm:seresnet18",
    "timm:test_resnet",
    "timm:regnetx_002",
    "timm:regnety_002",
    "timm:regnetz_005",
    "timm:test_convnext",
)


def build(name: str, device: str = "cpu") -> nn.Module:
    """Return a network as its own library builds it; nothing of the cost model is used but the zoo's definition."""
    source, _, model = name.partition(":")
    make = {
        "torchvision": lambda: torchvision.models.get_model(model, weights=None),
        "timm": lambda: timm.create_model(model),
        "zoo": lambda: ZOO[model](),
    }[source]
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        return make()


@cache
def meta_model(name: str) -> nn.Module:
    """Return a network without weights, built once per test session: not to be changed."""
    return build(name, "meta")


@cache
def traced(name: str, resolution: int = 224) -> LayerGraph:
    """Return the layer graph of a network, traced once per test session."""
    return trace(name, resolution)


def settings(graph: LayerGraph, depths: Iterable[int] | None = None) -> list[tuple[str, int | None]]:
    """Return every method with every depth (or with those given)."""
    depths = list(depths or range(1, block_count(graph) + 1))
    return [(name, depth) for name, method in METHODS.items() for depth in (depths if method.takes_blocks else (None,))]


_BLOCK_CLASSES = {
    "InvertedResidual", "_InvertedResidual", "MBConv", "DepthwiseSeparableConv", "UniversalInvertedResidual",
}  # fmt: skip


def block_modules(name: str) -> list[tuple[str, ...]]:
    """Return the module paths of each block of one of the twelve, by the class names of its library."""
    found = [(path,) for path, module in meta_model(name).named_modules() if type(module).__name__ in _BLOCK_CLASSES]
    if name == "torchvision:mnasnet1_0":  # its first block is written out: depthwise, norm, ReLU, pointwise, norm
        found.insert(0, tuple(f"layers.{i}" for i in range(3, 8)))
    return found


def inside(path: str, modules: tuple[str, ...]) -> bool:
    """Return whether a module path or parameter name lies in one of the modules."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def short(name: str) -> str:
    """Return a network's name as a test id."""
    return re.sub(r"^\w+:", "", name)


# --- networks put together from a description -------------------------------------------------------------------------

ACTIVATIONS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU, "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU, "mish": nn.Mish,
}  # fmt: skip


@dataclass(frozen=True)
class BlockPlan:
    """One inverted residual block. expansion: None leaves the expansion out; `skip` holds only where shapes allow."""

    outputs: int
    expansion: int | None
    kernel: int = 3
    stride: int = 1
    squeeze: bool = False
    skip: bool = True
    activation: str = "relu6"
    inplace: bool = False
    early_depthwise: bool = False


class SqueezeExcite(nn.Module):
    """Two pointwise convolutions of the pooled input, as a gate."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        """Return x times its gate."""
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class PlannedBlock(nn.Module):
    """The inverted residual block that a plan describes."""

    def __init__(self, inputs: int, plan: BlockPlan):
        super().__init__()
        width = inputs * (plan.expansion or 1)

        def activation() -> nn.Module:
            kind = ACTIVATIONS[plan.activation]
            return kind() if plan.activation == "gelu" else kind(inplace=plan.inplace)

        layers: list[nn.Module] = []
        if plan.early_depthwise and plan.expansion:  # the universal inverted residual's first depthwise convolution
            layers += [nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs)]
        if plan.expansion:
            layers += [nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), activation()]
        layers += [
            nn.Conv2d(width, width, plan.kernel, plan.stride, plan.kernel // 2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            activation(),
        ]
        if plan.squeeze:
            layers.append(SqueezeExcite(width))
        layers += [nn.Conv2d(width, plan.outputs, 1, bias=False), nn.BatchNorm2d(plan.outputs)]
        self.body = nn.Sequential(*layers)
        self.skip = plan.skip and plan.stride == 1 and inputs == plan.outputs

    def forward(self, x):
        """Return N x outputs x H/stride x W/stride."""
        return x + self.body(x) if self.skip else self.body(x)


class Planned(nn.Module):
    """Stem, the planned blocks, tail, head."""

    def __init__(self, plans: Sequence[BlockPlan], stem: int = 4, tail: bool = True):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        channels, blocks = stem, []
        for plan in plans:
            blocks.append(PlannedBlock(channels, plan))
            channels = plan.outputs
        self.blocks = nn.Sequential(*blocks)
        self.tail = nn.Sequential()
        if tail:
            self.tail = nn.Sequential(nn.Conv2d(channels, 9, 1, bias=False), nn.BatchNorm2d(9), nn.ReLU())
        self.head = nn.Linear(9 if tail else channels, 5)

    def forward(self, x):
        """Return N x 5."""
        return self.head(self.tail(self.blocks(self.stem(x))).mean((2, 3)))


def plans(**fixed) -> st.SearchStrategy[BlockPlan]:
    """Return a strategy of block plans; fixed values replace their strategies."""
    drawn = {
        "outputs": st.integers(2, 6),
        "expansion": st.sampled_from([None, 1, 2, 3, 6]),
        "kernel": st.sampled_from([3, 5, 7]),
        "stride": st.sampled_from([1, 1, 2]),
        "squeeze": st.booleans(),
        "skip": st.booleans(),
        "activation": st.sampled_from(sorted(ACTIVATIONS)),
        "inplace": st.booleans(),
        "early_depthwise": st.booleans(),
    }
    return st.builds(BlockPlan, **drawn | fixed)
