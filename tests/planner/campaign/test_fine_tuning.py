"""Fine-tuning runs: what they train, that they repeat, that they leave the model alone, and their memory."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tasks import NETWORKS
from torch import nn
from torch.utils.data import TensorDataset

from costmodel import footprint, trace, verify, way
from costmodel.errors import InputError
from planner.campaign.fine_tuning import Memory, Recipe, classify, fine_tune, measure_memory

SIZE = 16


def _block(channels: int, stride: int, out: int) -> nn.Sequential:
    hidden = 2 * channels
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
        nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden),
        nn.ReLU6(inplace=True), nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out),
    )  # fmt: skip


class Small(nn.Module):
    """Three inverted residual blocks."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
            _block(16, 1, 16), _block(16, 2, 32), _block(32, 1, 32),
        )  # fmt: skip
        self.classifier = nn.Linear(32, 2)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small()


@pytest.fixture(scope="module")
def data() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Two classes: bright above, or bright below."""

    def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        pixels = torch.randn(count, 3, SIZE, SIZE, generator=draw)
        pixels[labels == 0, :, : SIZE // 2] += 1
        pixels[labels == 1, :, SIZE // 2 :] += 1
        return pixels, labels

    return images(34, 1), images(30, 2)


RECIPE = Recipe(epochs=2, learning_rate=0.01, optimizer="adam", resolution=SIZE)


def run(model, data, method="full", blocks=None, **options):
    recipe = {name: options.pop(name) for name in set(options) & {field.name for field in fields(Recipe)}}
    given = {"check_memory": False} | options
    return fine_tune(model, *data, way(method, blocks), replace(RECIPE, **recipe), **given)


def test_training_learns(model, data):
    assert run(model, data, epochs=8).accuracy_percent >= 90  # chance is 50 %


def test_the_same_seed_gives_the_same_run_and_another_one_another(model, data):
    torch.manual_seed(5)
    first = run(model, data, seed=3, check_memory=True)
    torch.manual_seed(6)
    second = run(model, data, seed=3)  # neither the check nor the program's random numbers have a say
    assert first.history == second.history

    def tells_apart(seed: int) -> float:
        """The sum of a run's last logits stands for the run: its accuracy is too coarse."""
        seen = []

        def keep(module, args, out) -> None:
            if not out.is_meta:  # as in the trace
                seen.append(float(out.detach().sum()))

        hooked = copy.deepcopy(model)
        hooked.classifier.register_forward_hook(keep)
        run(hooked, data, seed=seed, epochs=1)
        return seen[-1]

    assert tells_apart(3) == tells_apart(3) != tells_apart(4)


def test_the_model_and_the_random_numbers_stay_as_they_were(model, data):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kind, needs = type(model), [parameter.requires_grad for parameter in model.parameters()]
    state = torch.random.get_rng_state()
    run(model, data, "mobiletl", blocks=1, check_memory=True)
    assert type(model) is kind
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_run_counts_full_batches_only(model, data):
    # 34 images: 4 batches of 8, two images left out in each of 3 epochs
    found = run(model, data, epochs=3, evaluate_every=2)
    assert (found.epochs, found.steps, found.test_images) == (3, 12, 30)
    assert [epoch for epoch, _ in found.history] == [2, 3]
    assert not found.stopped
    assert found.memory is None


def test_report_stops_a_run(model, data):
    told = []

    def report(epoch: int, percent: float) -> bool:
        told.append((epoch, percent))
        return epoch == 2

    found = run(model, data, epochs=5, report=report)
    assert found.history == tuple(told)
    assert (found.epochs, found.steps, found.stopped) == (2, 8, True)
    assert 0 <= found.accuracy_percent <= 100


def test_tensors_and_data_sets_train_alike(model, data):
    sets = tuple(TensorDataset(*pair) for pair in data)
    assert run(model, data).history == run(model, sets).history


def test_each_image_is_right_or_not(model):
    class First(nn.Module):
        def forward(self, x):
            return torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1)

    labels = torch.tensor([0, 0, 0, 1])
    assert classify(First(), (torch.zeros(4, 3, 2, 2), labels)) == (True, True, True, False)


@pytest.mark.parametrize(
    ("name", "method", "blocks"),
    [
        ("mobilenet_v2", "full", None),  # its peak is in a batch norm's backward
        ("mobilenet_v2", "tinytl-lb", None),  # in the packing of a mask
        ("mobilenet_v3_small", "bias", None),  # in the backward of a squeeze-excite product
        ("mobilenet_v3_small", "mobiletl", 3),
    ],
)
@pytest.mark.filterwarnings("ignore:.*puts.*in place of")
def test_memory_is_as_predicted(name, method, blocks):
    network = NETWORKS[name](10)
    found = measure_memory(network, way(method, blocks), replace(RECIPE, resolution=32))
    assert found.agrees
    above = found.above_start_bytes, found.measured_above_start_bytes
    assert above[0] == pytest.approx(above[1], rel=0.01)  # without any slack
    expected = footprint(trace(network, 32), method, blocks, 8, "adam")
    assert found.measured_saved_bytes == expected.saved_bytes
    assert found.peak_bytes >= expected.peak_bytes  # kernels' working memory comes on top


def test_memory_that_differs_does_not_agree():
    found = verify(NETWORKS["mobilenet_v3_small"](10), "bias", batch=8, resolution=32, accounting="lean")
    assert Memory.of(found).agrees
    more = replace(found.saved, measured=found.saved.predicted + 1)
    assert not Memory.of(replace(found, saved=more)).agrees
    more = replace(found.peak, measured=round(1.02 * found.peak.predicted), slack=0)
    assert not Memory.of(replace(found, peak=more)).agrees


@given(st.sampled_from(["epochs", "batch", "evaluate_every"]), st.sampled_from([0, -1, 1.5, True, None, "8"]))
def test_counts_that_make_no_sense(name, value):
    images = torch.zeros(8, 3, SIZE, SIZE), torch.zeros(8, dtype=torch.long)
    with pytest.raises(InputError, match=f"{name} must be a whole number of 1 or more"):
        run(nn.Linear(1, 1), (images, images), **{name: value})


@given(st.sampled_from([0.0, -0.1, math.inf, math.nan]))
def test_learning_rates_that_make_no_sense(rate):
    images = torch.zeros(8, 3, SIZE, SIZE), torch.zeros(8, dtype=torch.long)
    with pytest.raises(InputError, match="the learning rate must be a positive number"):
        run(nn.Linear(1, 1), (images, images), learning_rate=rate)


def test_too_little_data(model, data):
    train, test = data
    with pytest.raises(InputError, match="34 training images are less than a batch of 35"):
        run(model, data, batch=35)
    with pytest.raises(InputError, match="there are no test images"):
        run(model, (train, (test[0][:0], test[1][:0])))


def test_unknown_optimizer_and_method(model, data):
    with pytest.raises(InputError, match="unknown optimizer 'adan'; did you mean 'adam'"):
        run(model, data, optimizer="adan")
    with pytest.raises(InputError, match="unknown method 'mobile-tl'"):
        run(model, data, "mobile-tl")
