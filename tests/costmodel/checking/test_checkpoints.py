"""Networks that run parts of themselves again in backward (torch.utils.checkpoint), against real steps of theirs."""

from __future__ import annotations

import random
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from costmodel import InputError, LayerGraph, ModelError, apply, footprint, price, trace, verify

CHECKED = ("saved", "peak", "forward", "backward")


class TwoParts(nn.Module):
    """The second part reads two tensors; random numbers in the first; an operation without a rule in the second."""

    def __init__(self):
        super().__init__()
        self.stem, self.side, self.both = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 3)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)

    def first(self, x):
        return nn.functional.dropout(self.side(x).relu(), 0.2, self.training)

    def second(self, x, y):
        return self.norm(self.both(torch.cat([x, y], 1)).cumsum(1)).relu_()

    def forward(self, x):
        x = self.stem(x)
        y = checkpoint(self.first, x, use_reentrant=False)
        return self.head(checkpoint(self.second, x, y, use_reentrant=False).mean((2, 3)))


class Nested(TwoParts):
    def second(self, x, y):
        return super().second(x, checkpoint(self.first, y, use_reentrant=False))


def _timm(name: str, **options: Any) -> nn.Module:
    network = timm.create_model(name, **options)
    network.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]  # of every network of timm
    return network


NETWORKS = {
    "two parts": (TwoParts, 32),
    "inverted residuals": (lambda: _timm("mobilenetv2_035"), 64),
    "transformer": (lambda: _timm("vit_tiny_patch16_224", img_size=32, depth=3, drop_path_rate=0.2), 32),
    "weights computed from parameters": (
        lambda: _timm("swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2), num_heads=(2, 4), embed_dim=32), 56,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_keeps_computes_and_takes_what_is_predicted(name):
    make, side = NETWORKS[name]
    network = make()
    drawn = random.Random(name).sample([each for each, _ in network.named_parameters()], 5)
    for way in ("full", "bias", "last", None):
        found = verify(network, way, batch=2, resolution=side, trained=None if way else drawn)
        for each in CHECKED:
            assert getattr(found, each).agrees, (way, each, getattr(found, each))


def test_a_network_that_asks_what_requires_a_gradient_is_traced_as_if_all_did():
    network = torchvision.models.DenseNet(8, (2, 3, 2, 2), 16, memory_efficient=True)
    for method in ("full", "bias"):
        found = verify(network, method, batch=2, resolution=64)
        assert all(getattr(found, each).agrees for each in CHECKED), method
    (note,) = (note for note in trace(network, 64).notes if "denseblock1.denselayer1 asks whether" in note)
    assert "as if every parameter trained" in note


class Asks(TwoParts):
    def first(self, x):
        assert x.requires_grad_(False) is x
        return super().first(x)


def test_a_network_that_sets_what_requires_a_gradient_gets_its_tensor_back():
    assert not any("asks whether" in note for note in trace(Asks(), 32).notes)


def test_parts_that_run_again_keep_less_and_compute_more():
    network: Any = NETWORKS["transformer"][0]()
    again = footprint(trace(network, 32), batch=2, accounting="eager")
    network.set_grad_checkpointing(False)
    plain = footprint(trace(network, 32), batch=2, accounting="eager")
    assert again.saved_bytes < plain.saved_bytes / 4
    assert again.forward_flops == plain.forward_flops and again.total_flops > 1.2 * plain.total_flops


def test_many_prices_are_those_of_one():
    graph = trace(TwoParts(), 32)
    answer = footprint(graph, batch=3, accounting="eager")
    columns = price(graph, ["full"], [3], accounting="eager").columns
    for name in ("saved_bytes", "peak_bytes", "forward_flops", "total_flops"):
        assert columns[name].tolist() == [getattr(answer, name)]


def test_a_trace_that_is_read_again_has_its_parts(tmp_path):
    graph = trace(TwoParts(), 32)
    graph.save(tmp_path / "graph.trace")
    again = LayerGraph.load(tmp_path / "graph.trace")
    assert [layer.checkpoint for layer in again.layers] == [layer.checkpoint for layer in graph.layers]
    assert footprint(again, accounting="eager").peak_bytes == footprint(graph, accounting="eager").peak_bytes


@pytest.mark.parametrize("ask", [lambda network: footprint(trace(network, 32)), lambda network: apply(network, "bias")])
def test_what_is_not_the_networks_own_step_is_refused_with_what_to_do(ask):
    with pytest.raises(InputError, match=r"TwoParts runs parts of itself again.*set_grad_checkpointing\(False\)"):
        ask(TwoParts())


def test_a_part_within_a_part_is_refused():
    with pytest.raises(ModelError, match="runs a part again within a part"):
        trace(Nested(), 32)
