"""What is seen of learned calls beside what they keep: working memory, sizes that grow in steps, sets not seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from costmodel import UnknownOperationError, footprint, trace, verify
from costmodel.graph.values import TRACE_BATCH


class Between(nn.Module):
    """Two convolutions, `module` called by `call` on what they give, and a head."""

    def __init__(self, module: nn.Module, call, features: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.module, self.call, self.head = module, call, nn.Linear(features, 5)

    def forward(self, x):
        return self.head(self.call(self.module, self.second(self.first(x).relu())).flatten(1))


def rows(x):
    return x.flatten(2).transpose(1, 2)


NETWORKS = {
    "transposed": lambda: Between(nn.ConvTranspose2d(16, 8, 2, 2), lambda own, x: own(x), 8 * 1024),
    "flash": lambda: Between(
        nn.MultiheadAttention(16, 4, batch_first=True), lambda own, x: own(*3 * (rows(x),), need_weights=False)[0], 4096
    ),
    "products": lambda: Between(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
                                lambda own, x: own(rows(x)), 4096),
    "sampled": lambda: Between(
        nn.Identity(), lambda own, x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False), 4096
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["full", "last"])
def test_the_working_memory_of_learned_calls_is_in_the_peak(name, method):
    found = verify(NETWORKS[name](), method, batch=4, resolution=16)
    assert found.agrees and not found.peak.slack


class Recurrent(nn.Module):
    def __init__(self, cell: nn.Module):
        super().__init__()
        self.conv, self.cell, self.head = nn.Conv2d(3, 16, 8, 8), cell, nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.cell(rows(self.conv(x)))[0][:, -1])


@pytest.mark.parametrize(("cell", "part"), [(nn.GRU, "cell.weight"), (nn.RNN, ""), (nn.RNN, "bias")])
def test_recurrent_layers_keep_what_grows_in_steps(cell, part):
    network = Recurrent(cell(16, 16, batch_first=True))
    found = verify(network, batch=7, resolution=32, trained=lambda name: part in name)
    assert found.saved.agrees and found.forward.agrees and found.backward.agrees


def test_sizes_that_grow_with_the_square_of_the_batch_are_refused():
    class Compared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(1, 5)

        def forward(self, x):
            x = self.conv(x).flatten(1)
            return self.head(torch.nn.functional.pdist(x).mean() + x.mean(1, keepdim=True))

    with pytest.raises(Exception, match=r"batch|no rule"):
        footprint(trace(Compared(), 32), "full", accounting="eager")


class Many(nn.Module):
    """Two directions of a recurrent layer: eight parameters in one call."""

    def __init__(self):
        super().__init__()
        self.conv, self.cell = nn.Conv2d(3, 16, 8, 8), nn.RNN(16, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.cell(rows(self.conv(x)))[0][:, -1])


def test_a_set_of_gradients_that_was_not_seen_is_right_or_refused():
    """Of more than six arguments each is seen alone, and all together."""
    for trained in (["cell.weight_ih_l0", "cell.weight_ih_l0_reverse"], ["conv.bias"], ["cell.bias_ih_l0"]):
        try:
            found = verify(Many(), batch=3, resolution=32, trained=trained)
        except UnknownOperationError as error:
            assert "rnn" in str(error) and "\n" not in str(error)
            continue
        assert found.saved.agrees, trained


def test_memory_that_an_expanded_tensor_repeats_is_there_once():
    class Expanded(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("places", torch.arange(16.0).view(1, 16, 1))
            self.conv, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 5)

        def forward(self, x):
            places = torch.zeros_like(self.places) + self.places
            spread = places.expand(len(x), -1, -1)
            return self.head((rows(self.conv(x)) * spread).mean(1))

    graph = trace(Expanded(), 32)
    spread = next(t for layer in graph.layers for t in layer.inputs.values() if t.shape == (TRACE_BATCH, 16, 1))
    assert spread.batched and not spread.storage.batched and spread.storage.elements == 16
    assert verify(Expanded(), batch=3, resolution=32).saved.agrees


class Rotated(nn.Module):
    """Positions are made in every step: numbers that depend on neither input nor parameters, and live for a while."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)

    def forward(self, x):
        x = rows(self.conv(x))
        places = torch.arange(x.shape[1], device=x.device)[:, None] * torch.ones(8, device=x.device)
        left, right = x[..., ::2], x[..., 1::2]
        turned = torch.stack(
            [left * places.cos() - right * places.sin(), left * places.sin() + right * places.cos()], 3
        )
        return self.head(turned.flatten(2).mean(1))


@pytest.mark.parametrize("method", ["full", "last"])
def test_numbers_that_are_made_beside_the_layers_are_in_the_peak(method, tmp_path):
    found = verify(Rotated(), method, batch=2, resolution=32)
    assert found.agrees and not found.peak.slack
    graph = trace(Rotated(), 32)
    assert any(layer.beside for layer in graph.layers)
    graph.save(tmp_path / "graph.trace")
    again = graph.load(tmp_path / "graph.trace")
    assert [[each.id for each in layer.beside] for layer in again.layers] == [
        [each.id for each in layer.beside] for layer in graph.layers
    ]
    assert footprint(again, method, batch=2).peak_bytes == footprint(graph, method, batch=2).peak_bytes
