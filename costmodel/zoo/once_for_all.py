"""Once-for-all's elastic super-networks, and the sub-networks that share their weights.

The state dict of a super-network is that of the published checkpoints: names, shapes, order. A sub-network takes of
each tensor the first channels; a smaller depthwise kernel is the middle of the larger one, times a learned matrix
(7 to 5, then 5 to 3). It is a network like any other, by once-for-all's names for it.

With norm `group` every batch norm is a group norm of 8 channels per group and every convolution but those of
squeeze-excite standardises its weight, as TinyTL's networks.

Source: as in `elastic`; dynamic_op.py and dynamic_layers.py there for how weights are shared, layers.py for
sub-networks; ofa/utils/my_modules.py for the group norm.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ..graph.elastic import KERNELS, Design, Subnetwork, nearest
from ..layers.lite_residual import group_norm
from .proxylessnas_mobile_tinytl import StandardizedConv2d

_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish}
_REDUCTION = 4  # of squeeze-excite's channels


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate that two 1x1 convolutions make of the channels' means."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = nearest(channels // _REDUCTION)
        self.fc = nn.Sequential(OrderedDict(
            reduce=nn.Conv2d(channels, hidden, 1), relu=nn.ReLU(inplace=True),
            expand=nn.Conv2d(hidden, channels, 1), h_sigmoid=nn.Hardsigmoid(inplace=True),
        ))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return N x channels x H x W."""
        return x * self.fc(x.mean((2, 3), keepdim=True))


def _layers(
    design: Design, inputs: int, outputs: int, kernel: int, activation: str, *,
    stride: int = 1, groups: int = 1, has_norm: bool = True,
) -> nn.Sequential:  # fmt: skip
    """Return a convolution, its norm and its activation, by once-for-all's names for them."""
    is_group = design.norm == "group"
    kind = StandardizedConv2d if is_group and has_norm else nn.Conv2d
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv=kind(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    )
    if has_norm:
        parts["bn"] = group_norm(outputs) if is_group else nn.BatchNorm2d(outputs, design.epsilon)
    if activation:
        parts["act"] = _ACTIVATIONS[activation](inplace=True)
    return nn.Sequential(parts)


class Block(nn.Module):
    """An inverted residual: pointwise expansion (none at expansion 1), depthwise convolution, projection; a skip where
    the shape stays and one is wanted."""

    def __init__(
        self, design: Design, inputs: int, outputs: int, kernel: int, expansion: int, stride: int, activation: str,
        squeeze: bool, skip: bool,
    ):  # fmt: skip
        super().__init__()
        width = nearest(inputs * expansion)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion > 1:
            parts["inverted_bottleneck"] = _layers(design, inputs, width, 1, activation)
        parts["depth_conv"] = _layers(design, width, width, kernel, activation, stride=stride, groups=width)
        if squeeze:
            parts["depth_conv"].add_module("se", SqueezeExcite(width))
        parts["point_linear"] = _layers(design, width, outputs, 1, "")
        self.mobile_inverted_conv = nn.Sequential(parts)
        self.skip = skip and stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return N x outputs x H/stride x W/stride."""
        return self.mobile_inverted_conv(x) + x if self.skip else self.mobile_inverted_conv(x)


class Static(nn.Module):
    """A sub-network on its own: stem, blocks, tail, global average pool, classifier."""

    def __init__(self, design: Design, chosen: Subnetwork, num_classes: int = 1000):
        super().__init__()
        stem, outputs = design.channels(design.stem), design.channels(design.first)
        self.first_conv = _layers(design, 3, stem, 3, design.stem_activation, stride=design.stem_stride)
        # The fixed block has a skip in MobileNetV3 alone, where its width stays.
        blocks = [Block(design, stem, outputs, 3, 1, 1, design.first_activation, False, stem == outputs)]
        settings = zip(design.places_of(chosen), chosen.kernels, chosen.expansions, strict=True)
        for (number, place), kernel, expansion in settings:
            stage, inputs = design.stages[number], outputs
            outputs = design.channels(stage.channels)
            blocks.append(Block(
                design, inputs, outputs, kernel, expansion, stage.stride if place == 0 else 1, stage.activation,
                stage.squeeze, True,
            ))  # fmt: skip
        self.blocks = nn.Sequential(*blocks)
        self.pool_at = sum(not behind for *_, behind in design.tail)
        names = ("final_expand_layer", "feature_mix_layer")[-len(design.tail) :]
        self._tail = names
        for name, (channels, activation, has_norm, _) in zip(names, design.tail, strict=True):
            inputs, outputs = outputs, design.channels(channels)
            setattr(self, name, _layers(design, inputs, outputs, 1, activation, has_norm=has_norm))
        self.classifier = nn.Sequential(OrderedDict(linear=nn.Linear(outputs, num_classes)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, N x classes."""
        x = self.first_conv(x)
        for block in self.blocks:  # one by one, so that the stem's result is not held until the last one is done
            x = block(x)
        for name in self._tail[: self.pool_at]:
            x = getattr(self, name)(x)
        x = x.mean((2, 3), keepdim=True)
        for name in self._tail[self.pool_at :]:
            x = getattr(self, name)(x)
        return self.classifier(x.flatten(1))


class SuperNetwork(nn.Module):
    """All sub-networks in one set of weights.

    It computes what `active`, the largest at first, computes, with gradients for the shared weights; in train mode the
    batch's statistics are noted in the shared running statistics, as in once-for-all.
    """

    def __init__(self, design: Design, num_classes: int = 1000):
        super().__init__()
        self.design, self.num_classes, self.active = design, num_classes, design.largest
        largest = Static(design, design.largest, num_classes)
        parameters = dict(largest.named_parameters())
        for name, value in largest.state_dict(keep_vars=True).items():
            shared = _shared_name(name, design.numbers_of(design.largest))
            _register(self, shared, value, name in parameters)
            if shared.endswith("depth_conv.conv.conv.weight"):
                for small, large in pairwise(KERNELS):
                    matrix = nn.Parameter(torch.eye(small**2))
                    _register(self, shared.replace("conv.conv.weight", f"conv.{large}to{small}_matrix"), matrix, True)

    def weights_of(self, chosen: Subnetwork) -> dict[str, torch.Tensor]:
        """Return a sub-network's weights and buffers by its own names, as functions of the shared ones."""
        shared = self.state_dict(keep_vars=True)
        numbers = self.design.numbers_of(chosen)
        found = {}
        for name, own in _skeleton(self.design, chosen, self.num_classes).state_dict().items():
            other = _shared_name(name, numbers)
            value = shared[other]
            if other.endswith("depth_conv.conv.conv.weight"):
                path = other.removesuffix("conv.weight")
                value = _smaller_kernel(value[: own.shape[0]], own.shape[-1], path, shared)
            found[name] = value[tuple(slice(0, size) for size in own.shape)]
        return found

    def extract(self, chosen: Subnetwork) -> Static:
        """Return a sub-network with a copy of its weights."""
        own = Static(self.design, chosen, self.num_classes)
        own.load_state_dict({name: value.detach() for name, value in self.weights_of(chosen).items()})
        return own.train(self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the active sub-network, N x classes."""
        network = _skeleton(self.design, self.active, self.num_classes).train(self.training)
        return functional_call(network, self.weights_of(self.active), (x,))


@lru_cache(maxsize=8)
def _skeleton(design: Design, chosen: Subnetwork, num_classes: int) -> Static:
    """Return a sub-network without memory for its weights."""
    with torch.device("meta"):
        return Static(design, chosen, num_classes)


def _shared_name(name: str, numbers: list[int]) -> str:
    """Return the super-network's name for a sub-network's tensor. numbers: of its blocks in the super-network."""
    part, _, rest = name.partition(".")
    if part != "blocks":
        return name
    number, _, rest = rest.partition(".")
    block = numbers[int(number)]
    if block and ".se." not in rest:  # the fixed block's are its own
        for one, twice in (("conv.weight", "conv.conv.weight"), *((f"bn.{n}", f"bn.bn.{n}") for n in _RUNNING)):
            if rest.endswith(f".{one}"):
                rest = rest.removesuffix(one) + twice
    return f"blocks.{block}.{rest}"


_RUNNING = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _register(root: nn.Module, name: str, value: torch.Tensor, is_parameter: bool) -> None:
    """Put a tensor into a module under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if is_parameter:
        root.register_parameter(last, nn.Parameter(value.detach()))
    else:
        root.register_buffer(last, value)


def _smaller_kernel(weight: torch.Tensor, size: int, path: str, shared: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return depthwise weights (C x 1 x K x K) of a smaller kernel: the middle of each, times the learned matrix."""
    for small, large in reversed(list(pairwise(KERNELS))):
        if size <= small:
            edge = (large - small) // 2
            middle = weight[:, :, edge : edge + small, edge : edge + small]
            weight = F.linear(middle.flatten(1), shared[f"{path}{large}to{small}_matrix"]).reshape_as(middle)
    return weight
