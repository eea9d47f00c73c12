"""The module that LoRA puts beside a linear map or a 1x1 convolution: y + B (A x), with B zero at first.

Source: Hu et al.: LoRA, ICLR 2022 (arXiv 2106.09685), section 4.1; initial values as in loralib/layers.py of
microsoft/LoRA.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from .linear import linear


class _Down(nn.Linear):
    """A linear map that keeps its input as it is; PyTorch's keeps a copy of one that lies in another order."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, copies_input=True)


class Lora(nn.Module):
    """A map of rank `rank` from `inputs` to `outputs` numbers (of each pixel, if it has a `stride`)."""

    def __init__(self, inputs: int, outputs: int, rank: int, stride: int | tuple[int, int] | None = None):
        super().__init__()
        if stride is None:
            self.down: nn.Module = _Down(inputs, rank, bias=False)
            self.up: nn.Module = nn.Linear(rank, outputs, bias=False)
        else:
            self.down = nn.Conv2d(inputs, rank, 1, cast("int", stride), bias=False)
            self.up = nn.Conv2d(rank, outputs, 1, bias=False)
        nn.init.kaiming_uniform_(self.down.get_parameter("weight"), a=math.sqrt(5))
        nn.init.zeros_(self.up.get_parameter("weight"))

    def forward(self, input: Tensor, output: Tensor) -> Tensor:
        """Return `output`, what the frozen map made of `input`, plus the branch."""
        return output + self.up(self.down(input))

    @torch.no_grad()
    def merge(self, weight: Tensor) -> None:
        """Add the branch to the weight of the map that it stands beside, in place."""
        up, down = (module.get_parameter("weight").flatten(1) for module in (self.up, self.down))
        weight += (up @ down).view_as(weight)
