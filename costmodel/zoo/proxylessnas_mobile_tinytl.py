"""ProxylessNAS-Mobile as TinyTL released and measured it, with the lite residual modules in place.

ProxylessNAS-Mobile in which every batch norm is a group norm (8 channels per group) and every convolution standardises
its weight; beside every block but the first lies a lite residual module, which runs after the main branch and whose
result is added to it. The modules are there whatever trains, full fine-tuning and the last layer included.

Source: Cai et al.: TinyTL, NeurIPS 2020 (arXiv 2007.11622), section 3.2 and appendix B; the trained parameters that
follow are the published ones (4,746,590 with 102 classes if everything trains).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..layers.lite_residual import LiteResidual, group_norm
from ..methods.tinytl import LARGE_KERNEL, SMALL_KERNEL, SMALL_KERNEL_BLOCKS
from .proxylessnas_mobile import InvertedResidual, ProxylessNASMobile

# Source: as in `costmodel.layers.standardize`.
STANDARDIZATION_EPSILON = 1e-5


class StandardizedConv2d(nn.Conv2d):
    """A convolution that standardises its weight each time, in stock PyTorch calls.

    (W - mean) / (deviation + eps) per output channel, as `costmodel.layers.standardize`.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution of `input` with the standardised weight."""
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        deviation = centred.var((1, 2, 3), keepdim=True).sqrt()
        return self._conv_forward(input, centred / (deviation + STANDARDIZATION_EPSILON), self.bias)


class StockLiteResidual(LiteResidual):
    """The lite residual module in stock PyTorch calls."""

    def forward(self, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return `output`, what the block made of `input`, plus the branch."""
        branch = self.conv2(self.act(self.norm1(self.conv1(self.pool(input)))))
        return output + F.interpolate(self.norm2(branch), output.shape[2:], mode="bilinear", align_corners=False)


class TinyTLBlock(nn.Module):
    """An inverted residual block, a lite residual module, and the block's skip around both."""

    def __init__(self, block: InvertedResidual, kernel: int):
        super().__init__()
        self.conv, self.skip = block.conv, block.skip
        convolutions = [part for part in block.conv.modules() if isinstance(part, nn.Conv2d)]
        entry, (depthwise, projection) = convolutions[0], convolutions[-2:]
        self.lite_residual = StockLiteResidual(
            entry.in_channels, projection.out_channels, kernel, depthwise.stride[0], norm=group_norm
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return N x outputs x H/stride x W/stride."""
        y = self.lite_residual(x, self.conv(x))
        return x + y if self.skip else y


def _convert(module: nn.Module) -> None:
    """Turn batch norms into group norms and convolutions into standardised ones, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        elif isinstance(child, nn.Conv2d):
            child.__class__ = StandardizedConv2d
        else:
            _convert(child)


def proxylessnas_mobile_tinytl(num_classes: int = 1000) -> ProxylessNASMobile:
    """Return ProxylessNAS-Mobile with group norm, standardised weights and lite residual modules."""
    network = ProxylessNASMobile(num_classes)
    first, *others = cast("Iterable[InvertedResidual]", network.blocks)
    large = len(network.blocks) - SMALL_KERNEL_BLOCKS
    network.blocks = nn.Sequential(
        first,
        *(
            TinyTLBlock(block, LARGE_KERNEL if number <= large else SMALL_KERNEL)
            for number, block in enumerate(others, 2)
        ),
    )
    _convert(network)
    return network
