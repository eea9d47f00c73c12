"""FLOPs against PyTorch's counter (its convolution backward corrected), and against fvcore's forward pass."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from networks import PLAIN_METHODS, build, meta_model, traced
from torch.utils.flop_counter import FlopCounterMode

from costmodel import METHODS, apply, block_count, footprint
from costmodel.checking.measuring import loss_of, prepare, step_flops

BATCH = 2
EVERY_DEPTH = ("torchvision:mobilenet_v3_small", "timm:mobilenetv4_conv_small")


def images() -> torch.Tensor:
    return torch.empty(BATCH, 3, 224, 224, device="meta")


@pytest.mark.parametrize("method", PLAIN_METHODS)
def test_forward_and_backward_are_the_counters(name, graph, method):
    """Exactly, of the stock network with what the method freezes frozen."""
    count = block_count(graph)
    depths: list[int | None] = [None]
    if METHODS[method].takes_blocks:
        depths = [1, count // 2, count] if name in EVERY_DEPTH else [count // 2]
    for depth in depths:
        answer = footprint(graph, method, depth, batch=BATCH)
        model = prepare(copy.deepcopy(meta_model(name)), answer.graph, answer.assignment)
        assert step_flops(model, images()) == (answer.forward_flops, answer.backward_flops)


APPLIED = sorted(name for name, method in METHODS.items() if method.has_layers and name not in PLAIN_METHODS)


@pytest.mark.parametrize("method", APPLIED)
def test_forward_and_backward_of_a_rewritten_network(method):
    """The same of the network that the method makes of it."""
    name = "timm:mobilenetv4_conv_small"
    depth = 4 if METHODS[method].takes_blocks else None
    answer = footprint(traced(name), method, depth, batch=BATCH)
    model = copy.deepcopy(meta_model(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it computes something else now
        apply(model, method, depth)
    assert step_flops(model, images()) == (answer.forward_flops, answer.backward_flops)


@pytest.mark.parametrize("depth", [2, 9])
def test_applied_network_computes_what_the_stock_one_does(depth):
    """What is recomputed or masked costs no convolution and no matrix product."""
    name = "torchvision:mobilenet_v3_small"
    for method in ("blocks", "mobiletl"):
        model = apply(copy.deepcopy(meta_model(name)), method, depth)
        answer = footprint(traced(name), method, depth, batch=BATCH)
        assert step_flops(model, images()) == (answer.forward_flops, answer.backward_flops)


def test_full_backward_is_twice_the_forward_but_for_the_first_layer(graph):
    """Every layer computes the gradients of its weight and its input, at the forward pass's cost each."""
    answer = footprint(graph, "full")
    first = next(facts.forward_flops for facts in answer.facts if facts.forward_flops)
    assert answer.backward_flops == 2 * answer.forward_flops - answer.batch * first
    assert answer.flops["backward_weight"] == answer.forward_flops


def test_known_ratio_of_backward_to_forward():
    """Forward and backward over forward: 2.96 to 2.98 with PyTorch's counter, its formula corrected."""
    for name in ("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0"):
        answer = footprint(traced(name), "full")
        assert 2.955 < answer.total_flops / answer.forward_flops < 2.985


def test_pytorchs_own_backward_formula_is_wrong_for_grouped_convolutions():
    """The reason for the correction; if this fails the correction may be dropped."""
    name = "torchvision:mobilenet_v2"
    with FlopCounterMode(display=False) as counter:
        loss_of(copy.deepcopy(meta_model(name))(images())).backward()
    forward = footprint(traced(name), batch=BATCH).forward_flops
    assert counter.get_total_flops() > 20 * forward


def test_frozen_layers_cost_nothing_backward(graph):
    last = footprint(graph, "last")
    head = graph.layers[-1]
    assert head.op == "linear"
    # Only the gradient of the head's weight: 2 FLOPs for each of its weights and images.
    assert last.backward_flops == 2 * last.batch * head.inputs["weight"].elements
    assert last.flops["backward_input"] == 0
    shares = [footprint(graph, "blocks", k).backward_flops for k in range(1, block_count(graph) + 1)]
    assert shares == sorted(shares) and shares[0] < shares[-1] < 2 * last.forward_flops


def test_bias_needs_input_gradients_but_no_weight_gradients(graph):
    """All biases but the head's weight: convolutions compute the gradient of their input only."""
    answer = footprint(graph, "bias")
    assert answer.flops["backward_weight"] == footprint(graph, "last").flops["backward_weight"]
    assert 0 < answer.flops["backward_input"] <= footprint(graph, "full").flops["backward_input"]


# --- fvcore -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["torchvision:mobilenet_v2", "torchvision:mnasnet1_0", "timm:mobilenetv2_050", "zoo:proxylessnas_mobile"]
)
def test_fvcores_forward_pass_with_the_conventions_told_apart(name):
    """fvcore counts a multiply-accumulate as 1 and norms too: 2 per element in eval mode (scale and shift).

    Convolutions and the classifier are what both count, 1 MAC = 2 FLOPs.
    """
    graph = traced(name)
    model = build(name).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted = dict(analysis.by_operator())
    assert 2 * (counted.pop("conv") + counted.pop("linear")) == footprint(graph, batch=1).forward_flops
    norms = sum(layer.output.elements for layer in graph.layers if layer.op == "batch_norm")
    assert counted.pop("batch_norm") == 2 * norms
    # What is left is pooling: one per element of its input.
    pooled = next(layer for layer in graph.layers if layer.op in ("mean", "adaptive_avg_pool2d"))
    assert set(counted) <= {"adaptive_avg_pool2d", "mean"}
    assert sum(counted.values()) in (0, pooled.input.elements)


def test_known_numbers_of_mobilenetv2():
    """300.8 M multiply-accumulates; fvcore's 314.2 M has 2 x 6.68 M elements of norms more (and the pool)."""
    answer = footprint(traced("torchvision:mobilenet_v2"), batch=1)
    assert answer.forward_flops / 2 == pytest.approx(300.8e6, abs=0.05e6)
    norms = sum(layer.output.elements for layer in answer.graph.layers if layer.op == "batch_norm")
    assert (answer.forward_flops / 2 + 2 * norms) / 1e6 == pytest.approx(314.2, abs=0.1)


# --- element-wise work ------------------------------------------------------------------------------------------------


def test_elementwise_work_by_hand():
    """Batch norm 3 x 4 x 4, ReLU, mean, linear 3 -> 2, at batch 1, per element as `rules` states it."""
    from torch import nn

    from costmodel import trace

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(torch.relu(self.norm(x)).mean((2, 3)))

    graph = trace(Tiny(), 4)
    pixels = 3 * 4 * 4
    full = footprint(graph, "full", batch=1).flops["elementwise"]
    # norm 8 (mean 1, variance 3, normalise 2, scale 1, shift 1), ReLU 1, mean 1; the head adds 2 biases
    assert full["forward"] == (8 + 1 + 1) * pixels + 2
    # The image needs no gradient: scale 4, shift 1 of the norm; ReLU 1; mean 1; 2 gradients of biases
    assert full["backward"] == (4 + 1 + 1 + 1) * pixels + 2
    # sgd: 2 per number; 3 + 3 of the norm, 6 + 2 of the head
    assert full["update"] == 2 * (6 + 8)
    last = footprint(graph, "last", batch=1).flops["elementwise"]
    # Frozen statistics: normalise 2, scale 1, shift 1
    assert last == {"forward": (4 + 1 + 1) * pixels + 2, "backward": 2, "update": 2 * 8}
