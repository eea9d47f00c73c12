"""Networks of many families, others every day: what is predicted is what a real step keeps and computes.

`benchmarks/verify_families.py` measures one of every family by every method; here are a few small ones a day.
"""

from __future__ import annotations

import datetime
import random

import pytest
import torch

from costmodel import build, footprint, trace
from costmodel.checking.measuring import counted_step, prepare

SMALL = {
    "timm:mobilevit_xxs": 64, "timm:mobilevitv2_050": 64, "timm:edgenext_xx_small": 64, "timm:fastvit_t8": 64,
    "timm:efficientvit_b0": 64, "timm:pvt_v2_b0": 64, "timm:swiftformer_xs": 64, "timm:poolformer_s12": 64,
    "timm:repvit_m0_9": 64, "timm:starnet_s1": 64, "timm:convnext_atto": 64, "timm:mobilenetv4_hybrid_medium": 64,
    "timm:test_vit": 160, "timm:test_efficientnet": 64, "timm:levit_128s": 224, "timm:efficientvit_m0": 224,
    "timm:mambaout_femto": 64, "timm:fasternet_t0": 64, "timm:inception_next_atto": 64, "timm:hgnetv2_b0": 64,
    "timm:xcit_nano_12_p16_224": 224, "timm:deit_tiny_patch16_224": 224, "torchvision:shufflenet_v2_x0_5": 64,
    "torchvision:squeezenet1_1": 64,
}  # fmt: skip
DRAWN = random.Random(datetime.date.today().isoformat())
TODAY = DRAWN.sample(sorted(SMALL), 3)


@pytest.mark.parametrize("name", TODAY)
def test_a_days_networks(name):
    graph = trace(name, SMALL[name])
    network = build(name)
    drawn = random.Random(name + datetime.date.today().isoformat())
    some = [each for each in graph.parameters if drawn.random() < 0.3]
    for options in ({"method": "bias"}, {"trained": some}):
        answer = footprint(graph, batch=2, accounting="eager", **options)
        prepare(network, answer.graph, answer.assignment)
        measured = counted_step(network, torch.zeros(2, *graph.input.shape[1:]))
        assert measured == (answer.saved_bytes, answer.forward_flops, answer.backward_flops), (name, options)
