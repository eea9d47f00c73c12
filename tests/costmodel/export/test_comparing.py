"""When a program agrees with PyTorch: in each step alone, as closely as rounding lets PyTorch agree with itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from costmodel import apply
from costmodel.export.comparing import CHANGE_TOLERANCE, TIMES_ROUNDING, Check, compare
from costmodel.export.recording import STEP, Recording, record

SIDE, BATCH, CLASSES, RATE, STEPS = 12, 4, 3, 0.01, 3


@pytest.mark.parametrize(("differences", "agrees"), [
    ({}, True),
    ({"loss_difference": 2e-4}, False),
    ({"logit_difference": 2e-3}, False),
    ({"statistics_difference": 2e-4}, False),
    ({"change_difference": 2 * CHANGE_TOLERANCE}, False),
    ({"change_difference": 0.2, "rounding": 0.21 / TIMES_ROUNDING}, True),
    ({"change_difference": 0.2, "rounding": 0.19 / TIMES_ROUNDING}, False),
    ({"loss_difference": float("inf")}, False),
])  # fmt: skip
def test_agreement(differences, agrees):
    none = {"loss_difference": 0.0, "logit_difference": 0.0, "statistics_difference": 0.0, "weight_difference": 0.0,
            "tensor": "w", "change_difference": 0.0, "rounding": 0.0}  # fmt: skip
    assert Check(1, (1.0,), (1.0,), **{**none, **differences}, right=True).agrees is agrees


class Network(nn.Module):
    """Two convolutions with norms, whose biases before the second norm get no gradient but rounding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
            nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        """Return logits."""
        return self.head(self.body(x).mean((2, 3)))


@dataclass
class Program:
    """A recorded step that PyTorch runs, in place of the runtime: the same calls and the same state.

    wrong: by tensor, a factor on the change of each step, from the step `first` to the step `last`.
    """

    recording: Recording
    wrong: dict[str, float] = field(default_factory=dict)
    first: int = 0
    last: int = 1_000

    def __post_init__(self):
        self.values = {name: value.clone() for name, value in self.recording.values.items()}
        self.names = list(self.values)

    def step(self, x, y, rate):
        """Train on a batch; return its loss, and how many images were right before the update."""
        given = [value.clone() for value in self.values.values()]
        loss, right = self.recording.step.program(given, x, y, torch.tensor(rate))
        wrong = self.wrong if self.first <= int(self.values[STEP]) <= self.last else {}
        for (name, value), new in zip(list(self.values.items()), given, strict=True):
            self.values[name] = value + (new - value) * wrong[name] if name in wrong else new
        return float(loss), int(right)

    def predict(self, x):
        """Return the logits of one image."""
        return self.recording.predict.program(list(self.values.values()), x)

    def state(self):
        """Return copies of what training changes."""
        return {name: value.clone() for name, value in self.values.items()}

    def restore(self, values):
        """Set what training changes."""
        self.values = {name: value.clone() for name, value in values.items()}


@pytest.fixture(scope="module")
def network():
    return apply(Network(), "full", resolution=SIDE)


def checked(network, optimizer="sgd", rate=RATE, steps=STEPS, **how) -> Check:
    """Return how a program that is wrong in some tensors compares."""
    recording = record(network, optimizer, BATCH, SIDE, BATCH)
    return compare(Program(recording, **how), network, recording, optimizer, rate, steps)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_the_recorded_step_agrees(network, optimizer):
    found = checked(network, optimizer)
    assert found.agrees and found.right and len({round(loss, 4) for loss in found.losses}) == STEPS
    assert found.loss_difference < 1e-6


@pytest.mark.parametrize("rate", [0.1, 1e-3])
@pytest.mark.parametrize("name", ["body.0.weight", "body.1.weight", "head.bias"])
def test_a_wrong_gradient_is_found_whatever_the_learning_rate(network, name, rate):
    """With a rate of 0.001 a gradient that is 10 % off moves weights by less than 1e-4."""
    found = checked(network, rate=rate, wrong={name: 1.1})
    assert not found.agrees and found.tensor == name


def test_wrong_momentum_and_wrong_statistics_are_found(network):
    state = "optimizer:momentum_buffer:body.3.weight"
    assert checked(network, "momentum", wrong={state: 0.9}).tensor == state
    assert not checked(network, wrong={"body.1.running_var": 0.5}).agrees


def test_what_is_wrong_from_the_second_step_on_is_found_and_a_jump_in_one_step_is_rounding(network):
    wrong = {"head.weight": 1.2}
    assert not checked(network, steps=5, wrong=wrong, first=1).agrees
    assert checked(network, steps=5, wrong=wrong, first=2, last=2).agrees


def test_a_tensor_whose_gradient_is_rounding_alone_says_nothing(network):
    assert checked(network, wrong={"body.3.bias": -5.0}).agrees


def test_every_step_begins_from_pytorchs_state(network):
    """The number of steps, too: of it come the random numbers of dropout."""
    recording = record(network, "sgd", BATCH, SIDE, BATCH)
    program = Program(recording)
    program.values = {name: value + 1 for name, value in program.values.items()}  # some other start
    assert compare(program, network, recording, "sgd", RATE, STEPS).agrees
    assert int(program.values[STEP]) == STEPS
