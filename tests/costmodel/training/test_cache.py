"""The frozen prefix from a cache: the same training, in the memory that is predicted; files that can be trusted."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import build, traced
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import costmodel
from costmodel import InputError, Schedule, apply, footprint, price, restore, verify
from costmodel.checking.measuring import loss_of, peak_bytes, saved_bytes, step_flops
from costmodel.step.segments import prefix_end
from costmodel.training import cached_prefix
from costmodel.training.cache import _prefix_output

RESOLUTION, IMAGES, BATCH = 64, 10, 5
V2, SMALL = "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small"
CACHED = Schedule(cache="float32")


def images(count: int = IMAGES, seed: int = 0) -> TensorDataset:
    """Return images with labels."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 3, RESOLUTION, RESOLUTION, generator=generator), torch.arange(count) % 7)


def loader(data: TensorDataset, batch: int = 4) -> DataLoader:
    """Return a loader in order."""
    return DataLoader(data, batch)


def network(
    name: str = SMALL, schedule: Schedule = CACHED, method: str = "blocks", blocks: int | None = 3
) -> nn.Module:
    """Return a network that trains by a schedule, the same weights each time."""
    torch.manual_seed(1)
    return apply(build(name), method, blocks, RESOLUTION, schedule=schedule).train()


def trained(model: nn.Module, data, order: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the losses and the state after three steps on batches in an order."""
    torch.manual_seed(3)
    update = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, momentum=0.9)
    found = {}
    for step, batch in enumerate(order.reshape(-1, BATCH)[:3]):
        inputs = torch.stack([data[int(one)][0] for one in batch])
        loss = nn.functional.cross_entropy(model(inputs), torch.tensor([int(data[int(one)][1]) for one in batch]))
        loss.backward()
        update.step()
        update.zero_grad()
        found[f"loss {step}"] = loss.detach()
    return found | {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "method", "blocks"),
    [(SMALL, "blocks", 3), (V2, "mobiletl", 5), (V2, "last", None), (SMALL, "norm", None)],
)
def test_training_from_the_cache_is_training_with_the_prefix_image_by_image(name, method, blocks, tmp_path):
    data, order = images(), torch.randperm(2 * IMAGES, generator=torch.Generator().manual_seed(5)) % IMAGES
    plain = network(name, Schedule(prefix_batch=1), method, blocks)
    expected = trained(plain, data, order)
    model = network(name, CACHED, method, blocks)
    cache = cached_prefix(model, CACHED, loader(data), tmp_path / "cache")
    assert len(cache) == IMAGES and cache.largest_error == 0
    found = trained(model, cache, order)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    # The trained suffix is in the network: in eval mode it takes images, and restored it is the plain network.
    with torch.no_grad():
        given_images = data.tensors[0][:2]
        assert torch.equal(model.eval()(given_images), plain.eval()(given_images))
        assert torch.equal(restore(model)(given_images), restore(plain)(given_images))


@pytest.mark.parametrize(("dtype", "most"), [("float16", 2**-12), ("int8", 0.5 / 127)])
def test_smaller_types_are_off_by_no_more_than_they_say(dtype, most, tmp_path):
    data = images()
    exact = cached_prefix(network(), CACHED, loader(data), tmp_path / "exact")
    cache = cached_prefix(
        network(schedule=Schedule(cache=dtype)), Schedule(cache=dtype), loader(data), tmp_path / dtype
    )
    assert 0 < cache.largest_error <= most * 1.0001
    for number in range(IMAGES):
        true, stored = exact[number][0], cache[number][0]
        largest = true.abs().max()
        assert bool(((true - stored).abs() <= cache.largest_error * largest * 1.0001).all())
        assert exact[number][1] == cache[number][1] == number % 7


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_storage_is_what_is_predicted(dtype, tmp_path):
    schedule = Schedule(cache=dtype)
    cached_prefix(network(schedule=schedule), schedule, loader(images()), tmp_path)
    answer = footprint(traced(SMALL, RESOLUTION), "blocks", 3, BATCH, schedule=schedule).to_dict()["schedule"]["cache"]
    assert (tmp_path / "outputs").stat().st_size == IMAGES * answer["bytes_per_image"]


def test_memory_and_flops_are_what_is_predicted(tmp_path):
    model, graph = network(), traced(SMALL, RESOLUTION)
    predicted = footprint(graph, "blocks", 3, BATCH, schedule=CACHED)
    plain = footprint(graph, "blocks", 3, BATCH)
    cache = cached_prefix(model, CACHED, loader(images()), tmp_path)
    batch = torch.stack([cache[number][0] for number in range(BATCH)])
    assert saved_bytes(model, batch) == predicted.saved_bytes
    forward, backward = step_flops(model, batch)
    assert (forward, backward) == (predicted.forward_flops, predicted.backward_flops)
    assert predicted.forward_flops < plain.forward_flops and predicted.backward_flops == plain.backward_flops
    # Weights and buffers that only the prefix needs are read from the file: what is left is what the step starts with.
    mapped = torch.load(tmp_path / "prefix", weights_only=True)
    own = sum(t.nbytes for name, t in model.state_dict().items() if name not in mapped)
    assert own + batch.nbytes == predicted.start.total_bytes
    # Once for each image what is saved in each epoch.
    once = predicted.to_dict()["schedule"]["cache"]["fill_flops_per_image"]
    assert BATCH * once == plain.forward_flops - predicted.forward_flops


def test_filling_takes_what_is_predicted(tmp_path):
    model, graph = network(), traced(SMALL, RESOLUTION)
    (given_images, _), *_ = loader(images())
    predicted = [m for m in footprint(graph, "blocks", 3, BATCH, schedule=CACHED, kernels="layers").moments
                 if m.phase == "fill"]  # fmt: skip
    there = predicted[0].total_bytes - predicted[0].by_category[-1]  # all but what the first layer works with
    measured = peak_bytes(lambda: bool(_prefix_output(model, given_images[:1]).numel()))
    assert measured == pytest.approx(max(m.total_bytes for m in predicted) - there, rel=0.01)


def test_verify_proves_a_cached_step():
    result = verify(SMALL, "blocks", 3, 4, RESOLUTION, accounting="lean", schedule=CACHED)
    assert result.agrees, result.checks


def test_many_are_priced_as_one():
    graph = traced(SMALL, RESOLUTION)
    for schedule in (CACHED, Schedule(cache="int8", prefix_batch=4, inplace_update=True)):
        prices = price(graph, [("blocks", 3)], [(8, schedule), (3, schedule)]).columns
        for row, batch in enumerate((8, 3)):
            one = footprint(graph, "blocks", 3, batch, schedule=schedule)
            names = ("peak_bytes", "saved_bytes", "moved_bytes", "total_flops", "forward_flops", "backward_flops")
            found = {name: int(prices[name][row]) for name in names}
            assert found == {name: getattr(one, name) for name in found}


def test_filling_goes_on_where_it_stopped(tmp_path):
    data = images()
    whole = cached_prefix(network(), CACHED, loader(data), tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(done: int) -> None:
        if done >= 4:
            raise Stopped

    with pytest.raises(Stopped):
        cached_prefix(network(), CACHED, loader(data), tmp_path / "cut", stop)
    with open(tmp_path / "cut" / "outputs", "ab") as file:
        file.write(b"half a record")  # as if killed in the middle of writing
    runs = []
    model = network()
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    again = cached_prefix(model, CACHED, loader(data), tmp_path / "cut")
    assert len(again) == len(whole) == IMAGES
    assert all(torch.equal(again[n][0], whole[n][0]) and again[n][1] == whole[n][1] for n in range(IMAGES))
    # The parts of the file are equal to the last byte.
    assert (tmp_path / "cut" / "outputs").read_bytes() == (tmp_path / "whole" / "outputs").read_bytes()


def test_what_does_not_belong_together_is_refused(tmp_path):
    data, model = images(), network()
    cached_prefix(model, CACHED, loader(data), tmp_path / "cache")
    with pytest.raises(InputError, match="image 0 differs"):
        cached_prefix(network(), CACHED, loader(images(seed=9)), tmp_path / "cache")
    with pytest.raises(InputError, match="holds 10 images, but the loader gave 4"):
        cached_prefix(network(), CACHED, loader(images(4)), tmp_path / "cache")
    with pytest.raises(InputError, match="another network"):
        cached_prefix(network(blocks=5), CACHED, loader(data), tmp_path / "cache")
    other = network()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    with pytest.raises(InputError, match="other weights"):
        cached_prefix(other, CACHED, loader(data), tmp_path / "cache")
    with pytest.raises(InputError, match="shuffle=False"):
        cached_prefix(network(), CACHED, DataLoader(data, 4, shuffle=True), tmp_path / "new")
    with pytest.raises(InputError, match="was applied for"):
        small = TensorDataset(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long))
        cached_prefix(network(), CACHED, loader(small), tmp_path / "new")
    with pytest.raises(InputError, match="needs a model that was applied"):
        cached_prefix(build(SMALL), CACHED, loader(data), tmp_path / "new")
    with pytest.raises(InputError, match="not a cache of this program"):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
        cached_prefix(network(), CACHED, loader(data), tmp_path / "photos")
    with pytest.raises(InputError, match="trains from a cache"):
        model.train()(torch.randn(2, 7, 4, 4))
    with pytest.raises(InputError, match="no frozen prefix that could be cached"):
        network(method="full", blocks=None)
    with pytest.raises(InputError, match="type of a cache 'float8'"):
        Schedule(cache="float8")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.just(b'{"network": 1, "dtype": [], "shape": "x"}'))
def test_a_damaged_manifest_is_one_line(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="delete this one"):
        cached_prefix(network(), CACHED, loader(images(2)), tmp_path)


def test_values_beyond_float16_are_held(tmp_path):
    model = network(schedule=Schedule(cache="float16"))
    data = TensorDataset(1e12 * torch.randn(2, 3, RESOLUTION, RESOLUTION), torch.zeros(2, dtype=torch.long))
    cache = cached_prefix(model, Schedule(cache="float16"), loader(data), tmp_path)
    assert cache[0][0].max() > 65504 and cache.largest_error <= 2**-12 * 1.0001


def test_copies_pickles_and_workers(tmp_path):
    model = network()
    cache = cached_prefix(model, CACHED, loader(images()), tmp_path)
    batches = list(DataLoader(cache, BATCH, num_workers=2))
    assert torch.equal(batches[1][0][0], cache[BATCH][0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        losses = []
        for one in (model, other):
            torch.manual_seed(3)  # of dropout
            losses.append(loss_of(one(batches[0][0])))
        assert torch.equal(*losses)


def test_with_segments_and_the_best_schedule(tmp_path):
    graph = traced(SMALL, RESOLUTION)
    way = costmodel.way("blocks", 5)
    least = costmodel.best_schedule(costmodel.Step(graph, way, BATCH, CACHED), most_flops=1.5)
    assert least.cache == "float32" and least.segments
    step = costmodel.Step(graph, way, BATCH, least)
    assert footprint(step).peak_bytes < footprint(costmodel.Step(graph, way, BATCH, CACHED)).peak_bytes
    data, order = images(), torch.arange(3 * BATCH) % IMAGES
    expected = trained(network(schedule=Schedule(prefix_batch=1), blocks=5), data, order)
    model = network(schedule=least, blocks=5)
    found = trained(model, cached_prefix(model, least, loader(data), tmp_path), order)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert prefix_end(step.requirements) <= least.segments[0][0]
    assert Path(tmp_path / "outputs").exists()
