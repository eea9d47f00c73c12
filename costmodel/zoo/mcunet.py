"""The three backbones of MCUNetV3 (On-Device Training Under 256KB Memory), with batch norm, as they are pre-trained.

Stem, inverted residual blocks (the first without an expansion), global average pool, linear classifier; ReLU6, no
activation after projections, a skip where stride is 1 and the width stays.

- `mcunet_5fps`: found by MCUNet's search. Source: mcunet/assets/configs/mcunet-5fps_imagenet.json of
  mit-han-lab/tinyml, 42 convolutions.
- `mobilenet_v2_w035`: MobileNetV2 at width 0.35, without the 1x1 convolution behind its blocks, 51 convolutions.
  Source: mbv2-w0.35-r144_imagenet.json in the same folder has the blocks, and a tail of 448 channels.
- `proxylessnas_mobile_w03`: ProxylessNAS-Mobile at width 0.3, without that convolution too, 60 convolutions. Source:
  its blocks at width 1, proxyless_mobile.json in the same folder. Assumption: widths are rounded up to a multiple of 8;
  no public text has this network's configuration.

What is left open is settled by the memory figures of the paper's 15 update schemes (`costmodel reproduce`): with the
tails MobileNetV2's do not come out, and one scheme of ProxylessNAS trains a weight below its first bias; and those come
out for no multiple of 8 but 64 in place of ProxylessNAS-Mobile's 192 channels (0.3 x 192 = 57.6).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..graph.elastic import MULTIPLE, nearest
from .proxylessnas_mobile import STAGES, InvertedResidual, _conv_norm

Row = tuple[int, int, int, int, int]  # kernel, width of the expansion (0: none), outputs, stride, blocks

_MCUNET_5FPS: tuple[Row, ...] = (
    (3, 0, 8, 1, 1), (3, 32, 16, 2, 1), (3, 48, 16, 1, 1), (7, 48, 24, 2, 1), (3, 120, 24, 1, 1), (3, 120, 40, 2, 1),
    (7, 160, 40, 1, 1), (5, 160, 48, 1, 1), (3, 144, 48, 1, 1), (3, 192, 48, 1, 1), (7, 240, 96, 2, 1),
    (5, 384, 96, 1, 2), (3, 576, 160, 1, 1),
)  # fmt: skip
# MobileNetV2: outputs at width 1, blocks, first stride; expansion 6 but for the first.
_MOBILENET_V2 = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_STEM = 32


def rounded_up(channels: float) -> int:
    """Return a width as the next multiple of 8."""
    return math.ceil(channels / MULTIPLE) * MULTIPLE


class MCUNet(nn.Module):
    """Stem, inverted residual blocks, global average pool, linear classifier."""

    def __init__(self, stem: int, rows: list[Row], num_classes: int):
        super().__init__()
        blocks, inputs = [], stem
        for kernel, width, outputs, stride, count in rows:
            for i in range(count):
                step = stride if i == 0 else 1
                block = InvertedResidual(inputs, outputs, kernel, step, 1, step == 1 and inputs == outputs)
                if width:
                    block.conv = nn.Sequential(
                        _conv_norm(inputs, width, 1),
                        _conv_norm(width, width, kernel, step, groups=width),
                        _conv_norm(width, outputs, 1, activation=False),
                    )
                blocks.append(block)
                inputs = outputs
        self.stem = _conv_norm(3, stem, 3, stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, N x classes."""
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def mcunet_5fps(num_classes: int = 1000) -> MCUNet:
    """Return MCUNet 5fps: 42 convolutions."""
    return MCUNet(16, list(_MCUNET_5FPS), num_classes)


def mobilenet_v2_w035(num_classes: int = 1000) -> MCUNet:
    """Return MobileNetV2 at width 0.35 without a tail: 51 convolutions."""
    inputs, rows = nearest(0.35 * _STEM), []
    stem = inputs
    for index, (width, count, stride) in enumerate(_MOBILENET_V2):
        outputs = nearest(0.35 * width)
        for i in range(count):
            rows.append((3, 6 * inputs if index else 0, outputs, stride if i == 0 else 1, 1))
            inputs = outputs
    return MCUNet(stem, rows, num_classes)


def proxylessnas_mobile_w03(num_classes: int = 1000) -> MCUNet:
    """Return ProxylessNAS-Mobile at width 0.3 without a tail: 60 convolutions."""
    inputs, rows = rounded_up(0.3 * _STEM), []
    stem = inputs
    for index, (width, stride, settings) in enumerate(STAGES):
        outputs = rounded_up(0.3 * width)
        for i, (kernel, expansion) in enumerate(settings):
            rows.append((kernel, expansion * inputs if index else 0, outputs, stride if i == 0 else 1, 1))
            inputs = outputs
    return MCUNet(stem, rows, num_classes)
