"""LoRA: priced, applied, merged; through the registration that every method uses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from costmodel import InputError, apply, footprint, restore, trace
from costmodel.checking.measuring import saved_bytes, step_flops
from costmodel.methods.lora import projections

BATCH = 2


class Hybrid(nn.Module):
    """A strided 1x1 convolution, a depthwise one, and a transformer's attention and MLP."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.point = nn.Conv2d(8, 16, 1, 2)
        self.depth = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.depth(self.point(self.stem(x)).relu()).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.mlp(x)).mean(1))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Hybrid()


def test_what_trains(network):
    graph = trace(network, 16)
    assert [layer.module for layer in projections(graph)] == ["point", "attention", "attention", "mlp.1", "mlp.3"]
    answer = footprint(graph, "lora", options={"rank": 3})
    # rank x (inputs + outputs): point 8 + 16, in_proj 16 + 48, out_proj 16 + 16, MLP 16 + 32 twice; the head 16 x 5 + 5
    assert answer.trained_parameters == 3 * (24 + 64 + 32 + 48 + 48) + 85
    attention = footprint(graph, "lora", options={"rank": 3, "projections": "attention"})
    assert attention.trained_parameters == 3 * (64 + 32) + 85
    one = footprint(graph, "lora", options={"projections": "mlp.1, point"})
    assert one.trained_parameters == 4 * (48 + 24) + 85
    with pytest.raises(InputError, match=r"not in Hybrid.*It has 1, 3, attention, point"):
        footprint(graph, "lora", options={"projections": "qkv"})


class TwoReaders(nn.Module):
    """Two projections of one tensor whose rows do not follow each other in memory."""

    def __init__(self):
        super().__init__()
        self.stem, self.q, self.k = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        rows = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((self.q(rows) * self.k(rows)).mean(1))


def test_projections_keep_what_they_read_as_it_is():
    answer = footprint(trace(TwoReaders(), 16), "lora", batch=BATCH)
    applied = apply(TwoReaders(), "lora", resolution=16)
    assert saved_bytes(applied, torch.randn(BATCH, 3, 16, 16)) == answer.saved_bytes


@pytest.mark.parametrize("options", [{}, {"rank": 2, "projections": "attention"}])
def test_applied_network_keeps_and_computes_what_is_predicted(network, options):
    answer = footprint(trace(network, 16), "lora", options=options, batch=BATCH)
    applied = apply(network, "lora", resolution=16, options=options)
    assert saved_bytes(applied, torch.randn(BATCH, 3, 16, 16)) == answer.saved_bytes
    assert step_flops(applied, torch.randn(BATCH, 3, 16, 16)) == (answer.forward_flops, answer.backward_flops)
    trained = {name for name, parameter in applied.named_parameters() if parameter.requires_grad}
    assert trained == answer.assignment.trained


def test_starts_as_the_network_and_merges_what_it_learned(network):
    images = torch.randn(3, 3, 16, 16)
    plain = copy.deepcopy(network)
    names = {name for name, _ in network.named_parameters()}
    applied = apply(network, "lora", resolution=16)
    torch.testing.assert_close(applied(images), plain(images))  # B is zero
    optimizer = torch.optim.SGD([each for each in applied.parameters() if each.requires_grad], 0.1)
    for _ in range(3):
        nn.functional.cross_entropy(applied(images), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = applied(images).detach()
    assert not torch.allclose(learned, plain(images), atol=1e-3)
    dropped = restore(copy.deepcopy(applied))
    merged = restore(applied, merge=True)
    assert {name for name, _ in merged.named_parameters()} == names
    torch.testing.assert_close(merged(images), learned)
    assert torch.equal(dropped.mlp[1].weight, plain.mlp[1].weight)  # without merge=True what was added is gone


def test_nothing_to_merge_is_an_error(network):
    applied = apply(network, "bias", resolution=16)
    with pytest.raises(InputError, match="cannot be merged"):
        restore(applied, merge=True)
    restore(applied)


def test_network_without_projections_is_refused():
    with pytest.raises(InputError, match="no linear map or 1x1 convolution"):
        footprint(trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)), 8), "lora")
