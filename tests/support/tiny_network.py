"""A network so small that a campaign of real fine-tuning runs takes seconds: three inverted residual blocks."""

import torch
from networks import BlockPlan, Planned
from torch import nn


def make(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    network = Planned([BlockPlan(8, 2), BlockPlan(12, 2, stride=2), BlockPlan(12, 2)], stem=8, tail=False)
    network.head = nn.Linear(12, num_classes)
    return network


def wider(num_classes: int = 3) -> nn.Module:
    network = make(num_classes)
    network.stem[0] = nn.Conv2d(3, 8, 5, 2, 2, bias=False)
    return network
