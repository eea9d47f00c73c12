"""The order of gradients in memory: as predicted, next to what autograd hands from one call to the next."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from costmodel import trace
from costmodel.accounting.orders import gradient_orders
from costmodel.accounting.requirements import requirements
from costmodel.graph.memory_order import (
    channels_last,
    lies_as,
    strides_of,
    suggested,
    suggests_channels_last,
    viewed,
)  # fmt: skip
from costmodel.graph.values import TRACE_BATCH
from costmodel.methods.table import way_of


class Body(nn.Module):
    """A stem, `middle` of its result, which watches gradients, and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        self.batch_norm = nn.BatchNorm2d(8)
        self.seen: list[tuple[int, ...]] = []

    def watch(self, x):
        if not x.is_meta:
            x.register_hook(lambda gradient: self.seen.insert(0, gradient.stride()))
        return x

    def forward(self, x):
        return self.head(self.middle(self.watch(self.stem(x))).mean((2, 3)))


class Permuted(Body):
    def middle(self, x):
        x = self.watch(self.norm(self.watch(x.permute(0, 2, 3, 1))))
        return self.watch(F.gelu(self.watch(self.conv(self.watch(x.permute(0, 3, 1, 2))))))


class Rows(Body):
    def middle(self, x):
        x = self.watch(self.deep(self.watch(self.watch(x.flatten(2)).transpose(1, 2))))
        return self.watch(self.watch(x.transpose(1, 2)).reshape(-1, 8, 6, 6))


class Normed(Body):
    def middle(self, x):
        return self.watch(self.batch_norm(self.watch(x.contiguous(memory_format=torch.channels_last))).relu())


@pytest.mark.parametrize("network", [Permuted(), Rows(), Normed()], ids=lambda network: type(network).__name__)
def test_gradients_come_in_the_order_that_is_predicted(network):
    graph = trace(network, 6)
    required = requirements(graph, way_of(graph, "full"), "eager")
    orders = gradient_orders(graph, required.wanted)
    network(torch.randn(TRACE_BATCH, 3, 6, 6)).square().sum().backward()
    tensors = [t for layer in graph.layers for t in layer.outputs if t.id in orders and len(t.shape) > 2]
    expected = {}  # of each tensor once; those that no hook watches are passed over
    for tensor in tensors:
        expected.setdefault((tensor.shape, orders[tensor.id] or strides_of(tensor.shape)), tensor.name)
    assert network.seen
    for strides in network.seen:
        assert any(lies_as(shape, strides, order) for shape, order in expected if len(shape) == len(strides)), strides


@pytest.mark.parametrize(
    "shape", [(2, 8, 6, 6), (1, 8, 6, 6), (2, 1, 6, 6), (2, 8, 1, 1), (2, 8, 1, 6), (2, 8, 3, 4, 5)]
)
@pytest.mark.parametrize("change", ["", "last", "slice", "permute", "expand"])
def test_which_tensors_suggest_channels_last(shape, change):
    x = torch.zeros(shape)
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    if change == "last":
        x = x.contiguous(memory_format=last)
    elif change == "slice":
        x = torch.zeros(shape).contiguous(memory_format=last)[:, : max(1, shape[1] // 2)]
    elif change == "permute":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif change == "expand":
        x = torch.zeros(shape[0], shape[1], *(1 for _ in shape[2:])).expand(shape)
    strides = () if x.is_contiguous() else x.stride()
    copied = torch.nn.functional.relu(x.clone(memory_format=torch.preserve_format))
    side = 1 if len(shape) == 4 else 2  # what PyTorch unfolds in three dimensions comes out plain
    kernel = torch.zeros(4, x.shape[1], *(side for _ in shape[2:]))
    convolve = F.conv2d if len(shape) == 4 else F.conv3d
    result = convolve(x, kernel)
    computed_last = lies_as(result.shape, result.stride(), channels_last(result.shape))
    if suggests_channels_last(tuple(x.shape), strides):
        assert computed_last
    elif min(result.shape[2:]) > 1 and not strides:
        assert not computed_last
    assert suggested(x.shape, strides) in ((), channels_last(x.shape)) and copied.shape == x.shape


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (1, 0, 2, 3)])
@pytest.mark.parametrize(
    "wanted", [(2, 3, 20), (6, 20), (2, 60), (2, 3, 4, 5, 1), (2, 3, 2, 2, 5), (120,), (2, 1, 3, 4, 5)]
)
def test_views_have_the_strides_that_torch_gives_them(order, wanted):
    sizes = (2, 3, 4, 5)
    x = torch.zeros([sizes[each] for each in order]).permute(*(order.index(each) for each in range(4)))
    try:
        strides = x.view(wanted).stride()
    except RuntimeError:
        strides = None
    found = viewed(tuple(x.shape), () if x.is_contiguous() else x.stride(), wanted)
    assert (found is None) == (strides is None)
    assert strides is None or found is None or lies_as(wanted, found, strides)
