"""Bytes moved by a training step: against a count by module hooks, by hand, and by how they must relate."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from networks import settings, traced
from torch import nn

from costmodel import METHODS, OPTIMIZERS, footprint, trace

SIDE = 16


class Small(nn.Module):
    """Convolution, norm, ReLU, convolution, ReLU6, mean, linear."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.second, self.relu6 = nn.Conv2d(4, 6, 3, stride=2), nn.ReLU6()
        self.mean, self.flat, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)

    def forward(self, x):
        """Return N x 5."""
        x = self.second(self.relu(self.norm(self.first(x))))
        return self.head(self.flat(self.mean(self.relu6(x))))


@dataclass
class Call:
    """Bytes of one module's input, output and parameters, seen by a hook."""

    x: int
    y: int
    weight: int
    bias: int


def calls(batch: int) -> dict[str, Call]:
    found = {}

    def note(name):
        def hook(module, inputs, output):
            sizes = [4 * getattr(module, role).numel() if hasattr(module, role) else 0 for role in ("weight", "bias")]
            found[name] = Call(4 * inputs[0].numel(), 4 * output.numel(), *sizes)

        return hook

    network = Small()
    for name, module in network.named_children():
        module.register_forward_hook(note(name))
    network(torch.zeros(batch, 3, SIDE, SIDE))
    return found


STATISTICS = 2 * 4 * 4  # mean and deviation (or running variance) of 4 channels


def forward(call: dict[str, Call], statistics: int) -> int:
    """Everything is read and written once; flatten is a view; the norm reads its running statistics besides."""
    total = sum(c.x + c.weight + c.bias + c.y for name, c in call.items() if name != "flat")
    return total + STATISTICS + statistics


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_full_training_against_a_count_by_hooks(batch):
    call = calls(batch)
    mask = -(-call["relu6"].x // 4 // 8)  # one bit per element
    total = forward(call, STATISTICS) + mask
    first, norm, relu, second, relu6, mean, head = (
        call[name] for name in ("first", "norm", "relu", "second", "relu6", "mean", "head")
    )
    total += first.y + first.x + first.weight + first.bias  # dy, x; dW, db: the image gets no gradient
    for c, kept in ((norm, STATISTICS), (second, 0), (head, 0)):  # dy, x, W, b; dx, dW, db
        total += c.y + c.x + c.weight + c.bias + kept + c.x + c.weight + c.bias
    total += relu.y + relu.y + relu.x  # dy, its output, which the next convolution keeps; dx
    total += relu6.y + mask + relu6.x
    total += mean.y + mean.x
    parameters = sum(c.weight + c.bias for c in call.values())
    graph = trace(Small(), SIDE)
    for name, state in (("sgd", 0), ("momentum", 1), ("adam", 2)):
        update = parameters * (1 + 2 + 2 * state) + (2 * 4 * 8 if name == "adam" else 0)  # 8 tensors count their steps
        assert footprint(graph, "full", batch=batch, optimizer=name).moved_bytes == total + update


def test_training_the_head_only_by_hand():
    """Forward, norm with running statistics; then dy, x; dW, db of the linear layer alone; its update."""
    call = calls(2)
    head = call["head"]
    # 2 images x 5 logits x 4 = 40, 2 x 6 features x 4 = 48, 5 x 6 weights x 4 = 120, 5 biases x 4 = 20
    assert (head.y, head.x, head.weight, head.bias) == (40, 48, 120, 20)
    expected = forward(call, 0) + 40 + 48 + 120 + 20 + 3 * (120 + 20)
    assert footprint(trace(Small(), SIDE), "last", batch=2).moved_bytes == expected


def test_micro_batches_move_parameters_again():
    graph = trace(Small(), SIDE)
    whole, halves, single = (footprint(graph, "full", batch=8, micro_batch=m).moved_bytes for m in (8, 4, 1))
    parameters = 4 * graph.parameter_count
    # A further pass: forward reads parameters, backward all but the first layer's, and writes gradients; the norm's
    # statistics are read (running), written and read.
    first = 4 * (4 * 3 * 9 + 4)
    again = parameters + parameters - first + parameters + 3 * STATISTICS
    assert halves - whole == again
    # ReLU6's mask, written and read: 6 x 7 x 7 = 294 bits per image take 37 bytes alone, 8 images together 294.
    assert single - whole == 7 * again + 2 * (8 * 37 - 294)


def test_more_training_moves_more():
    graph = traced("torchvision:mobilenet_v3_small")
    moved = [footprint(graph, "blocks", depth).moved_bytes for depth in range(1, 12)]
    last, full = footprint(graph, "last").moved_bytes, footprint(graph, "full").moved_bytes
    assert [last, *moved, full] == sorted([last, *moved, full])
    assert len({last, *moved, full}) == 13


def test_lower_precision_moves_less():
    graph = traced("torchvision:mobilenet_v3_small")
    plain = footprint(graph, "blocks", 3)
    half = footprint(graph, "blocks", 3, activation_dtype="float16")
    int8 = footprint(graph, "blocks", 3, frozen_dtype="int8")
    assert half.moved_bytes < 0.6 * plain.moved_bytes
    # What is frozen is read once, forward; and where a gradient passes, in backward, where little is frozen.
    assert plain.weights_bytes - int8.weights_bytes <= plain.moved_bytes - int8.moved_bytes
    assert plain.moved_bytes - int8.moved_bytes <= 2 * (plain.weights_bytes - int8.weights_bytes)


def test_every_method_and_optimizer_has_an_answer():
    graph = traced("torchvision:mobilenet_v3_small")
    for method, depth in settings(graph, [3]):
        assert method in METHODS
        moved = [footprint(graph, method, depth, optimizer=name).moved_bytes for name in ("sgd", "momentum", "adam")]
        weights = footprint(graph, method, depth).weights_bytes
        assert weights < moved[0] < moved[1] < moved[2]
        assert all(type(value) is int for value in moved)
    assert set(OPTIMIZERS) >= {"sgd", "momentum", "adam"}
