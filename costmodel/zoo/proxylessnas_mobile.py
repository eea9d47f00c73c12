"""ProxylessNAS-Mobile: the backbone of TinyTL's and MobileTL's main tables.

Source: Cai, Zhu, Han: ProxylessNAS, ICLR 2019 (arXiv 1812.00332), Figure 4 (mobile). 4,080,512 parameters with 1000
classes, 319.2 M multiply-accumulates at 224 x 224 without the classifier (320.4 M with 1000 classes); the test compares
it with pytorchcv's independent definition.
"""

from __future__ import annotations

import torch
from torch import nn

# (output channels, stride of the first block, (kernel, expansion) of each block)
STAGES = (
    (16, 1, ((3, 1),)),
    (32, 2, ((5, 3), (3, 3))),
    (40, 2, ((7, 3), (3, 3), (5, 3), (5, 3))),
    (80, 2, ((7, 6), (5, 3), (5, 3), (5, 3))),
    (96, 1, ((5, 6), (5, 3), (5, 3), (5, 3))),
    (192, 2, ((7, 6), (7, 6), (7, 3), (7, 3))),
    (320, 1, ((7, 6),)),
)
STEM_CHANNELS, TAIL_CHANNELS = 32, 1280
NORM_EPSILON = 1e-3


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True):
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=NORM_EPSILON),
    ]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if activation else nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Optional pointwise expansion, depthwise convolution, pointwise projection; a skip where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, skip: bool):
        super().__init__()
        width = round(inputs * expansion)
        expand = [] if expansion == 1 else [_conv_norm(inputs, width, 1)]
        depthwise = _conv_norm(width, width, kernel, stride, groups=width)
        self.conv = nn.Sequential(*expand, depthwise, _conv_norm(width, outputs, 1, activation=False))
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return N x outputs x H/stride x W/stride."""
        return x + self.conv(x) if self.skip else self.conv(x)


class ProxylessNASMobile(nn.Module):
    """Stem, 20 inverted residual blocks, tail, global average pool, linear classifier."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        blocks, inputs = [], STEM_CHANNELS
        for outputs, first_stride, settings in STAGES:
            for i, (kernel, expansion) in enumerate(settings):
                stride = first_stride if i == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride, expansion, skip=i > 0))
                inputs = outputs
        self.stem = _conv_norm(3, STEM_CHANNELS, 3, stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.tail = _conv_norm(inputs, TAIL_CHANNELS, 1)
        self.classifier = nn.Linear(TAIL_CHANNELS, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, N x classes."""
        x = self.tail(self.blocks(self.stem(x)))
        return self.classifier(x.mean((2, 3)))


def proxylessnas_mobile(num_classes: int = 1000) -> ProxylessNASMobile:
    """Return ProxylessNAS-Mobile with batch norm."""
    return ProxylessNASMobile(num_classes)
