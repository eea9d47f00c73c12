"""The backbones that no library carries, against what is known of them."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from networks import meta_model, traced
from torch import nn

from costmodel import footprint
from costmodel.checking.measuring import step_flops
from costmodel.tracing.models import LIBRARIES
from costmodel.tracing.tracer import trace
from costmodel.zoo.proxylessnas_mobile import STAGES
from costmodel.zoo.table import ZOO


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """Return pytorchcv's own definition of ProxylessNAS-Mobile."""
    from pytorchcv.models.proxylessnas import proxylessnas_mobile

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return proxylessnas_mobile(pretrained=False)


def test_known_size():
    graph = traced("zoo:proxylessnas_mobile")
    assert graph.parameter_count == 4_080_512
    # 319.2 M multiply-accumulates without the classifier, whose size is the user's: convolutions 319.15 M, and one
    # operation for each of the 1280 x 7 x 7 numbers that are averaged. The 1000-class head adds 1.28 M.
    pool, head = 1280 * 7 * 7, 1280 * 1000
    macs = footprint(graph, batch=1).forward_flops / 2
    assert (macs - head + pool) / 1e6 == pytest.approx(319.2, abs=0.05)


def test_parameters_are_those_of_an_independent_definition(theirs):
    def shapes(model: nn.Module) -> Counter:
        return Counter(tuple(parameter.shape) for parameter in model.parameters())

    ours = meta_model("zoo:proxylessnas_mobile")
    assert shapes(ours) == shapes(theirs)
    # And in the same order, layer by layer.
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]


def test_layers_are_those_of_an_independent_definition(theirs):
    def settings(model: nn.Module, kind: type, *names: str) -> list:
        return [[getattr(module, name) for name in names] for module in model.modules() if isinstance(module, kind)]

    ours = meta_model("zoo:proxylessnas_mobile")
    convolution = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
    assert settings(ours, nn.Conv2d, *convolution) == settings(theirs, nn.Conv2d, *convolution)
    norm = ("num_features", "eps", "affine", "track_running_stats")
    assert settings(ours, nn.BatchNorm2d, *norm) == settings(theirs, nn.BatchNorm2d, *norm)
    count = sum(isinstance(module, nn.ReLU6) for module in ours.modules())
    assert count == sum(isinstance(module, nn.ReLU6) for module in theirs.modules()) > 0


def test_costs_are_those_of_an_independent_definition(theirs):
    images = torch.empty(2, 3, 224, 224, device="meta")
    answer = footprint(traced("zoo:proxylessnas_mobile"), "full", batch=2)
    assert step_flops(theirs, images) == (answer.forward_flops, answer.backward_flops)
    # The same maps, masks and statistics; pytorchcv pools with a 7 x 7 average, which keeps nothing either.
    assert footprint(trace(theirs), "full", batch=2).saved_bytes == answer.saved_bytes
    for method, depth in (("last", None), ("mobiletl", 5), ("blocks", 20)):
        assert (
            footprint(trace(theirs), method, depth).saved_bytes
            == footprint(traced("zoo:proxylessnas_mobile"), method, depth).saved_bytes
        )


def test_twenty_blocks_of_which_the_first_of_each_stage_has_no_skip():
    assert sum(len(blocks) for *_, blocks in STAGES) == 20
    graph = traced("zoo:proxylessnas_mobile")
    sums = [layer for layer in graph.layers if layer.op == "add"]
    assert len(sums) == 20 - len(STAGES)


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo_builds_with_any_number_of_classes(name):
    assert name in LIBRARIES["zoo"][0]()
    graph = trace(f"zoo:{name}", 64, classes=7)
    assert graph.classes == 7 and graph.outputs[0].shape[-1] == 7
    assert footprint(graph).peak_bytes > 0


def test_forward_pass_with_real_numbers():
    model = ZOO["proxylessnas_mobile"](num_classes=3).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 3) and logits.isfinite().all()
