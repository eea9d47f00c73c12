"""Steps carried out by schedules: the same loss, gradients and running statistics, in the memory that is predicted."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import build, short, traced
from random_networks import random_networks, trained_parameters
from torch import nn

import costmodel
from costmodel import InputError, ModelError, Schedule, Step, Way, apply, best_schedule, footprint, restore, verify, way
from costmodel.checking.measuring import loss_of, prepare, saved_bytes_by_module, step_flops
from costmodel.graph.passages import passages
from costmodel.step.schedule import MODES
from costmodel.step.segments import prefix_end, segment
from costmodel.training.optimizers import update_in_place

RESOLUTION, BATCH = 64, 4
NETWORKS = ("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:resnet18")


def after_three_steps(network: nn.Module, images: torch.Tensor, in_place: bool = False) -> dict[str, torch.Tensor]:
    """Return the losses, parameters and buffers after three steps, dropout and stochastic depth drawing the same."""
    torch.manual_seed(3)
    network.train()
    update = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.01, momentum=0.9)
    hooks = update_in_place(network, update) if in_place else None
    found = {}
    for number in range(3):
        loss = loss_of(network(images))
        loss.backward()
        if hooks is None:
            update.step()
            update.zero_grad(set_to_none=True)
        found[f"loss {number}"] = loss.detach()
    return found | {name: value.clone() for name, value in network.state_dict().items()}


def segments_of(required, modes=tuple(MODES)) -> list[tuple]:
    """Return every run of links that can be a segment, with each of its modes."""
    graph, end = required.graph, prefix_end(required)
    places = [place for place in passages(graph) if place >= end]
    found = []
    for number, first in enumerate(places):
        for stop in [*places[number + 1 : number + 5], len(graph.layers)]:
            for mode in modes:
                try:
                    segment(required, first, stop - 1, mode)
                except InputError:
                    continue
                found.append((first, stop - 1, mode))
    return found


def drawn(data: st.DataObject, required) -> Schedule:
    """Draw a schedule: pieces of the prefix if there is one, disjoint segments."""
    prefix = data.draw(st.sampled_from([None, 1, 2, 3])) if prefix_end(required) else None
    chosen, end = [], 0
    for first, last, mode in sorted(data.draw(st.lists(st.sampled_from(options), max_size=4)) if (
        options := segments_of(required)) else []):  # fmt: skip
        if first >= end:
            chosen.append((first, last, mode))
            end = last + 1
    return Schedule(prefix_batch=prefix, segments=tuple(chosen), inplace_update=data.draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(network=random_networks(), data=st.data())
def test_random_networks_and_schedules_train_the_same(network, data):
    graph = costmodel.trace(network.module, network.resolution)
    one = Way("custom", trained=data.draw(trained_parameters(graph)))
    schedule = drawn(data, Step(graph, one).requirements)
    assume(schedule != Schedule())
    plain = apply(copy.deepcopy(network.module).double(), one, resolution=network.resolution)
    other = apply(copy.deepcopy(network.module).double(), one, resolution=network.resolution, schedule=schedule)
    images = torch.randn(BATCH, graph.input.shape[1], network.resolution, network.resolution, dtype=torch.double)
    expected, found = after_three_steps(plain, images), after_three_steps(other, images, schedule.inplace_update)
    for name, value in expected.items():
        # In pieces, kernels may take sums in another order; the same whole batch gives the same bits.
        same = torch.equal(found[name], value) or bool(value.isnan().all())
        close = torch.allclose(found[name].double(), value.double(), rtol=1e-6, atol=1e-9, equal_nan=True)
        assert same if schedule.prefix_batch is None else close, (name, schedule)


@pytest.mark.parametrize("name", NETWORKS, ids=short)
@pytest.mark.parametrize("one", [way("blocks", 3), way("mobiletl", 5), way("full"), way("norm"), way("bias")], ids=str)
def test_the_best_schedules_train_the_same_in_the_memory_that_is_predicted(name, one):
    graph, network = traced(name, RESOLUTION), build(name)
    images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    plain = after_three_steps(apply(copy.deepcopy(network), one, resolution=RESOLUTION), images)
    for most in (1.0, 1.33):
        allow = ("prefix", "inplace", "cheap", "recompute")
        schedule = best_schedule(graph, one, batch=BATCH, most_flops=most, allow=allow)
        applied = apply(copy.deepcopy(network), one, resolution=RESOLUTION, schedule=schedule)
        found = after_three_steps(applied, images, schedule.inplace_update)
        for key, value in plain.items():
            assert torch.allclose(found[key].float(), value.float(), rtol=1e-4, atol=1e-5), (key, schedule)
        answer = verify(network, one, batch=BATCH, resolution=RESOLUTION, accounting="lean", schedule=schedule)
        assert answer.agrees, [check for check in answer.checks if not check.agrees]
        step = Step(graph, one, BATCH, schedule)
        assert footprint(step).peak_bytes <= footprint(Step(graph, one, BATCH)).peak_bytes


@pytest.mark.parametrize("one", [way("blocks", 3), way("full"), way("bias")], ids=str)
@pytest.mark.parametrize("name", NETWORKS[1:], ids=short)
def test_stock_layers_follow_schedules_too(name, one):
    graph, network = traced(name, RESOLUTION), build(name)
    images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    plain = after_three_steps(apply(copy.deepcopy(network), one, resolution=RESOLUTION, accounting="eager"), images)
    for allow in (("prefix", "inplace", "cheap"), ("prefix", "inplace", "recompute")):
        schedule = best_schedule(graph, one, batch=BATCH, most_flops=1.33, allow=allow, accounting="eager")
        assert schedule.is_cut
        own = copy.deepcopy(network)
        applied = apply(own, one, resolution=RESOLUTION, schedule=schedule, accounting="eager")
        found = after_three_steps(applied, images, schedule.inplace_update)
        for key, value in plain.items():
            assert torch.allclose(found[key].float(), value.float(), rtol=1e-4, atol=1e-5), (key, schedule)
        answer = verify(network, one, batch=BATCH, resolution=RESOLUTION, accounting="eager", schedule=schedule)
        assert answer.agrees, [check for check in answer.checks if not check.agrees]


def test_stock_layers_stay_stock_under_autocast():
    network = apply(build("torchvision:mobilenet_v3_small"), "bias", resolution=RESOLUTION, accounting="eager")
    required, images = network.training_plan.required, torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    stock = prepare(build("torchvision:mobilenet_v3_small"), required.graph, required.assignment)
    with torch.autocast("cpu", torch.bfloat16):
        assert saved_bytes_by_module(network.train(), images) == saved_bytes_by_module(stock, images)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_gives_the_same_bits(mode):
    """On the whole batch nothing is summed in another order: losses, weights and statistics are the same to the bit."""
    name, one = "torchvision:mobilenet_v3_small", way("full")
    required = Step(traced(name, RESOLUTION), one).requirements
    blocks = [(b.first, b.last, mode) for b in costmodel.parts(required.graph).blocks]
    chosen = [each for each in blocks if each in segments_of_blocks(required, blocks)]
    assert len(chosen) > 5
    network, images = build(name), torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    schedule = Schedule(segments=tuple(chosen))
    plain = after_three_steps(apply(copy.deepcopy(network), one, resolution=RESOLUTION), images)
    found = after_three_steps(apply(copy.deepcopy(network), one, resolution=RESOLUTION, schedule=schedule), images)
    assert all(torch.equal(found[key], value) for key, value in plain.items())


def segments_of_blocks(required, blocks) -> list[tuple]:
    found = []
    for each in blocks:
        try:
            segment(required, *each)
        except InputError:
            continue
        found.append(each)
    return found


def test_stochastic_depth_and_dropout_draw_the_same():
    name = "timm:efficientnet_lite0"
    network = costmodel.build(name)
    for block in (block for stage in network.blocks for block in stage):
        if hasattr(block, "drop_path"):
            from timm.layers import DropPath

            block.drop_path = DropPath(0.3)
    graph = costmodel.trace(network, RESOLUTION)
    schedule = best_schedule(graph, "full", batch=BATCH, most_flops=1.3, allow=("cheap", "recompute"))
    assert schedule.segments
    images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    plain = after_three_steps(apply(copy.deepcopy(network), "full", resolution=RESOLUTION), images)
    found = after_three_steps(apply(copy.deepcopy(network), "full", resolution=RESOLUTION, schedule=schedule), images)
    assert all(torch.equal(found[key], value) for key, value in plain.items())


def scheduled(name: str = "torchvision:mobilenet_v2", one: Way | None = None, most: float = 1.3) -> nn.Module:
    one = one or way("blocks", 5)
    schedule = best_schedule(traced(name, RESOLUTION), one, batch=BATCH, most_flops=most)
    assert schedule.is_cut
    return apply(build(name), one, resolution=RESOLUTION, schedule=schedule).train()


def test_hooks_fire_once_and_a_smaller_last_batch_runs():
    network, counts = scheduled(), []
    first = network.features[1].register_forward_hook(lambda *_: counts.append("prefix"))
    last = network.features[16].register_forward_hook(lambda *_: counts.append("segment"))
    for batch in (BATCH, 3, 1):
        counts.clear()
        loss_of(network(torch.randn(batch, 3, RESOLUTION, RESOLUTION))).backward()
        assert counts == ["prefix", "segment"]
    first.remove(), last.remove()


def test_gradients_of_several_batches_add_up():
    """The user's own micro-batches, and parts that are frozen later on."""
    network, plain = (
        scheduled(),
        apply(build("torchvision:mobilenet_v2"), way("blocks", 5), resolution=RESOLUTION).train(),
    )
    plain.load_state_dict(network.state_dict())
    for each in (network, plain):
        each.zero_grad(set_to_none=True)
        for seed in (0, 1):
            torch.manual_seed(seed)
            loss_of(each(torch.randn(BATCH, 3, RESOLUTION, RESOLUTION))).backward()
    pairs = zip(network.named_parameters(), plain.named_parameters(), strict=True)
    for (name, ours), (_, theirs) in pairs:
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_autocast_is_the_same_when_a_segment_runs_again():
    network, plain = (
        scheduled(),
        apply(build("torchvision:mobilenet_v2"), way("blocks", 5), resolution=RESOLUTION).train(),
    )
    plain.load_state_dict(network.state_dict())
    images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    found = []
    for each in (network, plain):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(each(images))
        loss.backward()
        found.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    whole = sum((found[0][name] - value).square().sum() for name, value in found[1].items())
    assert whole / sum(value.square().sum() for value in found[1].values()) < 1e-3


def test_eval_and_no_grad_run_the_network_as_it_is():
    network = scheduled()
    images = torch.randn(2, 3, RESOLUTION, RESOLUTION)
    plain = build("torchvision:mobilenet_v2").eval()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(images), plain(images))
    with torch.no_grad():
        assert network.train()(images).shape == (2, 1000)


def test_restore_pickle_and_copy():
    network = scheduled()
    again = pickle.loads(pickle.dumps(network))
    images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    for each in (copy.deepcopy(network), again):
        assert each.training_plan.schedule == network.training_plan.schedule
        loss_of(each(images)).backward()
    assert type(restore(network)) is type(build("torchvision:mobilenet_v2"))


def test_what_cannot_be_done_is_refused():
    graph = traced("torchvision:mobilenet_v2", RESOLUTION)
    own = best_schedule(graph, "full", batch=BATCH)
    with pytest.raises(InputError, match=r"is of another network or way|keep nothing"):
        apply(build("torchvision:resnet18"), "full", resolution=RESOLUTION, schedule=own)
    with pytest.raises(InputError, match="no frozen prefix"):
        apply(build("torchvision:mobilenet_v2"), "full", resolution=RESOLUTION, schedule=Schedule(prefix_batch=1))
    with pytest.raises(InputError, match="must not overlap"):
        footprint(Step(graph, schedule=Schedule(segments=((8, 15, "recompute"), (8, 15, "recompute")))))
    with pytest.raises(InputError, match="unknown mode of a segment 'recomptue'; did you mean 'recompute'"):
        Schedule(segments=((8, 15, "recomptue"),))
    network = scheduled(one=way("full"))
    loss = loss_of(network(torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)))
    with pytest.raises(ModelError, match="second derivatives"):
        torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], create_graph=True)
    with pytest.raises(InputError, match="LBFGS"):
        update_in_place(network, torch.optim.LBFGS(network.parameters()))
    some = torch.optim.SGD([next(network.parameters())], 0.1)
    with pytest.raises(InputError, match="lacks the trained parameter"):
        update_in_place(network, some)


def test_updates_in_place_follow_a_scheduler_and_keep_the_state():
    made = []
    for in_place in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        update = torch.optim.Adam(network.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.StepLR(update, 1, 0.5)
        hooks = update_in_place(network, update) if in_place else None
        for _ in range(3):
            network(torch.ones(2, 4)).square().sum().backward()
            update.step()
            update.zero_grad(set_to_none=True)
            schedule.step()
        made.append((network.state_dict(), update.state_dict()["state"]))
        if hooks:
            assert all(p.grad is None for p in network.parameters())
            hooks.remove()
            network(torch.ones(2, 4)).sum().backward()
            assert all(p.grad is not None for p in network.parameters())
    (plain, state), (inplace, other) = made
    assert all(torch.equal(plain[name], inplace[name]) for name in plain)
    assert all(torch.equal(state[n]["exp_avg"], other[n]["exp_avg"]) for n in state)


def test_updates_in_place_go_on_from_a_loaded_state():
    def trained(load: bool) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Linear(4, 2)
        update = torch.optim.Adam(network.parameters(), 0.1)
        update_in_place(network, update)
        for number in range(4):
            if load and number == 2:
                update.load_state_dict(copy.deepcopy(update.state_dict()))
            network(torch.ones(2, 4)).square().sum().backward()
        assert update.state[network.weight]["step"] == 4
        return network

    assert torch.equal(trained(load=True).weight, trained(load=False).weight)


def test_flops_are_those_of_the_counter():
    name, one = "torchvision:mobilenet_v3_small", way("blocks", 6)
    graph = traced(name, RESOLUTION)
    schedule = best_schedule(graph, one, batch=BATCH, most_flops=1.2)
    network = apply(build(name), one, resolution=RESOLUTION, schedule=schedule).train()
    forward, backward = step_flops(network, torch.randn(BATCH, 3, RESOLUTION, RESOLUTION))
    found = footprint(Step(graph, one, BATCH, schedule))
    assert (forward, backward) == (found.forward_flops, found.total_flops - found.forward_flops)
    assert found.flops["recompute"] > 0
