"""Calls without a rule are learned: against autograd, the FLOP counter, and PyTorch's own derivatives.yaml."""

from __future__ import annotations

import datetime
import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
import yaml
from torch import nn
from torch.nn import functional as F

from costmodel import RULES, LayerGraph, UnknownOperationError, footprint, trace
from costmodel.checking.measuring import prepare, saved_bytes, step_flops

BATCH = 5  # neither of the batches that are learned from


class Network(nn.Module):
    """A function between two convolutions and a head; parameters a, b and c for those that take some."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.LazyLinear(3)
        self.a, self.b, self.c = (nn.Parameter(torch.rand(shape)) for shape in ((4,), (4, 5, 2, 2), (4, 6, 6)))

    def forward(self, x):
        return self.head(self.run(self.stem(x), self).flatten(1))


def _assigned(x, network):
    y = x * 2
    y[:, 1:3] = x[:, :2].sigmoid()
    return y


def _normalised(weight):
    return torch._weight_norm(weight, weight.new_ones(5, 1, 1, 1), 0)


FUNCTIONS = {
    "rms_norm": lambda x, network: F.rms_norm(x, (6, 6)),
    "instance_norm": lambda x, network: F.instance_norm(x, None, None, network.a, network.a * 2),
    "conv_transpose2d": lambda x, network: F.conv_transpose2d(x, network.b, stride=2),
    "einsum": lambda x, network: torch.einsum("nchw,chw->nhw", x, network.c),
    "normalize": lambda x, network: F.normalize(x, dim=1),
    "unfold": lambda x, network: F.unfold(x, 2),
    "where": lambda x, network: torch.where(x > 0, x, network.c),
    "masked_fill": lambda x, network: x.masked_fill(x > 1, 0.0),
    "max": lambda x, network: x.max(1).values,
    "amax": lambda x, network: x.amax((2, 3)),
    "topk": lambda x, network: x.topk(2, 1)[0],
    "std": lambda x, network: x.std((2, 3)),
    "var_mean": lambda x, network: torch.cat(torch.var_mean(x, 1), 1),
    "index_select": lambda x, network: x.index_select(1, torch.tensor([0, 2], device=x.device)),
    "gather": lambda x, network: x.gather(1, torch.zeros(len(x), 2, 6, 6, dtype=torch.long, device=x.device)),
    "grid_sample": lambda x, network: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh()),
    "avg_pool1d": lambda x, network: F.avg_pool1d(x.flatten(2), 3),
    "max_pool1d": lambda x, network: F.max_pool1d(x.flatten(2), 3),
    "max_pool3d": lambda x, network: F.max_pool3d(x.unsqueeze(1), 2),
    "max_unpool2d": lambda x, network: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "bilinear": lambda x, network: F.bilinear(x, x, network.c[:, :, :1].expand(4, 6, 6)),
    "logsumexp": lambda x, network: x.logsumexp(1),
    "cumsum": lambda x, network: x.cumsum(1),
    "lerp": lambda x, network: torch.lerp(x, network.c, x),
    "weight_norm": lambda x, network: F.conv2d(x, _normalised(network.b.transpose(0, 1))),
    "fourier": lambda x, network: torch.fft.irfft2(torch.fft.rfft2(x) * torch.fft.rfft2(network.c)),
    "complex_numbers": lambda x, network: (torch.fft.fft2(x) @ torch.complex(network.c, network.c).conj()).abs(),
    "sine_in_place": lambda x, network: x.mul(2).sin_(),
    "assigned": _assigned,
    "unpacked": lambda x, network: torch.stack([row for row in x.transpose(0, 1)]).transpose(0, 1),
    "attention_with_dropout": lambda x, network: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
    "attention_with_a_trained_mask": lambda x, network: F.scaled_dot_product_attention(x, x, x, network.c),
    "attention_with_a_mask": lambda x, network: F.scaled_dot_product_attention(x, x, x, (x > 0).detach()),
}  # fmt: skip


def _network(name: str) -> nn.Module:
    network = Network(FUNCTIONS[name])
    network(torch.randn(2, 3, 8, 8))
    return network


@pytest.mark.parametrize("name", FUNCTIONS)
def test_eager_keeps_and_computes_what_is_predicted_for_every_set_of_trained_parameters(name):
    network = _network(name)
    graph = trace(network, 8)
    parts = ("stem", ("a", "b", "c"), "head")
    for chosen in itertools.chain.from_iterable(itertools.combinations(parts, n) for n in (1, 2, 3)):
        starts = tuple(start for part in chosen for start in ((part,) if isinstance(part, str) else part))
        trained = [each for each in graph.parameters if each.startswith(starts)]
        if not any(each in trained for layer in graph.layers for each in (t.name for t in layer.inputs.values())):
            continue
        try:
            answer = footprint(graph, trained=trained, batch=BATCH, accounting="eager")
        except ValueError as error:  # the function takes no parameter
            assert "nothing" in str(error)
            continue
        images = torch.randn(BATCH, 3, 8, 8)
        prepare(network, answer.graph, answer.assignment)
        assert answer.saved_bytes == saved_bytes(network, images), chosen
        assert (answer.forward_flops, answer.backward_flops) == step_flops(network, images), chosen
        lean = footprint(graph, trained=trained, batch=BATCH)
        assert lean.saved_bytes <= answer.saved_bytes


class Recurrent(nn.Module):
    """A recurrent layer of many weights between a convolution and a head."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], **options: Any):
        super().__init__()
        self.stem, self.layer, self.head = (
            nn.Conv2d(3, 4, 2, 2),
            kind(4, 3, batch_first=True, **options),
            nn.LazyLinear(3),
        )

    def forward(self, x):
        return self.head(self.layer(self.stem(x).flatten(2).transpose(1, 2))[0][:, -1])


def _agrees(network: nn.Module, graph: LayerGraph, side: int, **trained) -> bool:
    answer = footprint(graph, batch=BATCH, accounting="eager", **trained)
    images = torch.randn(BATCH, 3, side, side)
    prepare(network, answer.graph, answer.assignment)
    predicted = answer.saved_bytes, (answer.forward_flops, answer.backward_flops)
    return predicted == (saved_bytes(network, images), step_flops(network, images))


def test_of_weights_that_change_how_a_layer_is_computed_only_what_was_seen_is_priced():
    network = Recurrent(nn.GRU, num_layers=2)
    network(torch.randn(2, 3, 4, 4))
    graph = trace(network, 4)
    for method in ("full", "bias", "norm", "last"):
        assert _agrees(network, graph, 4, method=method), method
    with pytest.raises(UnknownOperationError, match=r"gru in layer keeps was not seen for .*; train all of these, or"):
        footprint(graph, trained=["layer.weight_ih_l0", "layer.bias_hh_l1", "head.weight"], batch=BATCH)


def test_memory_that_a_library_rounds_up_is_refused():
    """oneDNN's workspace of an LSTM is made of pieces in whole pages, so that few batches do not tell the next."""
    network = Recurrent(nn.LSTM, num_layers=2)
    network(torch.randn(2, 3, 8, 8))
    with pytest.raises(UnknownOperationError, match=r"no rule for the operation 'lstm' \(lstm in layer"):
        footprint(trace(network, 8), batch=BATCH, accounting="eager")


@pytest.mark.parametrize("make", [lambda: _network("grid_sample"), lambda: Recurrent(nn.GRU, num_layers=2)])
def test_what_was_learned_is_saved_and_read_again(make, tmp_path):
    network = make()
    network(torch.randn(2, 3, 8, 8))
    graph = trace(network, 8)
    graph.save(tmp_path / "graph.trace")
    again = LayerGraph.load(tmp_path / "graph.trace")
    assert [layer.learned for layer in again.layers] == [layer.learned for layer in graph.layers]
    assert any(layer.learned for layer in graph.layers)


def test_the_answer_says_what_was_learned():
    answer = footprint(trace(_network("logsumexp"), 8), batch=BATCH)
    assert answer.to_dict()["learned"] == ["logsumexp"]
    assert dict(answer.summary())["learned"] == "logsumexp, its FLOPs not counted"
    counted = footprint(trace(_network("einsum"), 8), batch=BATCH)
    assert dict(counted.summary())["learned"] == "einsum"
    known = footprint(trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 2), batch=BATCH)
    assert "learned" not in known.to_dict() and "learned" not in dict(known.summary())


# --- derivatives.yaml -------------------------------------------------------------------------------------------------

# What a formula only asks for the shape or the type of keeps nothing.
_SHAPE_ONLY = re.compile(
    r"(self|result|other|input|weight|mat1|mat2)\.(sym_)?(sizes?|strides?|numel|dim|ndimension|scalar_type|options|"
    r"layout|device|is_complex|type)\([^()]*\)"
)


def _derivatives() -> dict[str, str]:
    """Return PyTorch's formula for the gradient of `self`, by the name of a function of one tensor."""
    path = Path(torchgen.__file__).parent / "packaged" / "autograd" / "derivatives.yaml"
    found = {}
    for entry in yaml.safe_load(path.read_text()):
        signature = re.match(r"(\w+)\(Tensor self\) -> Tensor$", entry["name"])
        if signature and isinstance(entry.get("self"), str):
            found[signature[1]] = _SHAPE_ONLY.sub("", entry["self"])
    return found


@pytest.mark.parametrize("name", sorted(random.Random(str(datetime.date.today())).sample(sorted(_derivatives()), 12)))
def test_the_second_opinion_of_derivatives_yaml(name):
    """A function of one tensor keeps its argument, or its result, if its formula names it; others every day."""
    function = getattr(torch, name, None) or getattr(torch.special, name.removeprefix("special_"), None)
    formula = _derivatives()[name]
    if function is None or "not_implemented" in formula or name in RULES:
        pytest.skip("no function of torch, without a derivative, or with a rule")
    try:
        network = Network(lambda x, network: function(x))
        network(torch.rand(2, 3, 8, 8))
        graph = trace(network, 8)
    except Exception as error:  # complex numbers, matrices, another shape
        pytest.skip(f"{name} is not for images: {type(error).__name__}")
    layer = next(layer for layer in graph.layers if layer.op == name.rstrip("_"))
    if layer.learned is None:
        pytest.skip("learned as what it is made of")
    kept = {held.of for pattern in layer.learned.patterns for held in pattern.kept}
    expected = {of for of, word in (("input", "self"), ("output", "result")) if re.search(rf"\b{word}\b", formula)}
    assert kept == expected, formula
