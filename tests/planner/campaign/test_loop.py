"""The training loop: what a step draws, and what it adds up."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.data import TensorDataset

from costmodel import Schedule
from planner.campaign.loop import Loop, Recipe

RECIPE = Recipe(epochs=3, learning_rate=0.1, batch=4)


def network(dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)).train()


def images(count: int = 18) -> TensorDataset:
    draw = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 5, generator=draw), torch.arange(count) % 3)


def test_an_epoch_takes_full_batches_of_different_images_in_a_new_order():
    loop = Loop(network(), images(), RECIPE, seed=3)
    assert loop.steps_per_epoch == 4  # 18 images, two left out
    seen = {
        epoch: [tuple(image.tolist()) for step in range(4) for given, _ in loop.passes(epoch, step) for image in given]
        for epoch in (1, 2)
    }
    assert len(set(seen[1])) == len(seen[1]) == 16 and seen[1] != seen[2]
    again, other = Loop(network(), images(), RECIPE, seed=3), Loop(network(), images(), RECIPE, seed=4)
    assert [tuple(each.tolist()) for each in next(again.passes(2, 0))[0]] == seen[2][:4]
    assert [tuple(each.tolist()) for each in next(other.passes(2, 0))[0]] != seen[2][:4]


def test_a_step_follows_from_its_place_whatever_was_drawn_before():
    straight, later = network(), network()
    first = Loop(straight, images(), RECIPE, seed=3)
    for step in range(3):
        first.train_step(1, step)
    second = Loop(later, images(), RECIPE, seed=3)
    second.train_step(1, 0)
    torch.rand(7)
    ahead = list(second.passes(1, 1))  # asked for before the step, as its memory is measured
    second.train_step(1, 1, ahead)
    state = copy.deepcopy(second.update.state_dict())
    third = Loop(later, images(), RECIPE, seed=3, state=state)
    third.train_step(1, 2)
    assert all(torch.equal(straight.state_dict()[name], value) for name, value in later.state_dict().items())


def test_gradients_of_micro_batches_add_up_to_that_of_the_mean_loss():
    found = []
    for micro_batch in (None, 2, 1):
        model = network(dropout=0.0)
        loop = Loop(model, images(), RECIPE, schedule=Schedule(micro_batch))
        parts = [len(labels) for _, labels in loop.passes(1, 0)]
        found.append((model, loop.train_step(1, 0), parts))
    assert [parts for _, _, parts in found] == [[4], [2, 2], [1, 1, 1, 1]]
    for model, outcome, _ in found[1:]:
        torch.testing.assert_close(model[0].weight, found[0][0][0].weight)
        assert abs(outcome.loss - found[0][1].loss) < 1e-6 and outcome.right == found[0][1].right


def test_the_rate_falls_along_a_half_cosine():
    loop = Loop(network(), images(), RECIPE)
    rates = []
    for epoch in (1, 2, 3):
        for step in range(4):
            loop.train_step(epoch, step)
            rates.append(loop.update.param_groups[0]["lr"])
    # 12 steps: cos(0) = 1; cos(pi/2) = 0 after six; the last one has (1 + cos(11 pi / 12)) / 2 = 0.017 of the rate
    assert rates[0] == 0.1 and abs(rates[6] - 0.05) < 1e-12 and abs(rates[-1] - 0.1 * 0.0170370868) < 1e-9
    assert rates == sorted(rates, reverse=True)
