"""The lite residual module of TinyTL: a small trainable branch beside a frozen block.

    average pool 2 x 2 -> k x k convolution (groups, in -> in, the block's stride) -> norm -> ReLU
    -> 1 x 1 convolution (in -> out) -> norm -> bilinear upsampling to the block's output, to which it is added

Both convolutions standardise their weight.

Source: Cai et al.: TinyTL, NeurIPS 2020 (arXiv 2007.11622), Figure 2; initial values and order of the layers:
LiteResidualModule in tinytl/tinytl/model/modules.py of mit-han-lab/tinyml.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .activations import relu
from .convolution import standardized_conv2d
from .pooling import avg_pool2d

CHANNELS_PER_GROUP = 8


def group_norm(channels: int) -> nn.GroupNorm:
    """Return group norm with 8 channels per group, or the most below that divide the channels.

    Source: replace_bn_with_gn in ofa/utils/my_modules.py of mit-han-lab/once-for-all.
    """
    per_group = next(size for size in range(min(CHANNELS_PER_GROUP, channels), 0, -1) if channels % size == 0)
    return nn.GroupNorm(channels // per_group, channels)


class LiteResidual(nn.Module):
    """A branch from a block's input (N x in x H x W) to its output (N x out x H/stride x W/stride).

    It starts as zero (the last norm's scale is 0), so that a block with it computes what it did without. norm: from
    the number of channels to a module.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 5,
        stride: int = 1,
        groups: int = 2,
        norm: Callable[[int], nn.Module] = group_norm,
    ):
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.conv1 = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
        )
        self.norm1 = norm(in_channels)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm2 = norm(out_channels)
        for conv in (self.conv1, self.conv2):
            fan_out = math.prod(conv.kernel_size) * conv.out_channels
            nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.norm2.get_parameter("weight"))

    def forward(self, input: Tensor, output: Tensor) -> Tensor:
        """Return `output`, what the block made of `input`, plus the branch."""
        conv1, conv2 = self.conv1, self.conv2
        branch = avg_pool2d(input, self.pool.kernel_size)
        branch = standardized_conv2d(
            branch, conv1.weight, None, conv1.stride, conv1.padding, conv1.dilation, conv1.groups
        )
        # The second convolution keeps its input, which is the ReLU's output, if its weight trains.
        branch = relu(self.norm1(branch), keep="output" if conv2.weight.requires_grad else "mask")
        branch = self.norm2(standardized_conv2d(branch, conv2.weight))
        return output + F.interpolate(branch, output.shape[2:], mode="bilinear", align_corners=False)
