"""An adaptation of a tiny super-network, from images to a plan; and what its parts must keep to."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from repository import ROOT
from tiny_elastic import DESIGN, make

from costmodel import InputError, footprint, trace, way
from costmodel.errors import InfeasibleError
from planner import Plan
from planner.campaign.adapt import Adaptation, adapt
from planner.campaign.elastic import calibrated, folds_of, one_at_random, sandwich, spread, train_elastic
from planner.campaign.fine_tuning import Recipe
from planner.campaign.images import list_folder, read_folder
from planner.campaign.weights import Weights, load_weights, make_network
from planner.evidence import load

TINY = f"{ROOT / 'tests' / 'support' / 'tiny_elastic.py'}:make"
RECIPE = Recipe(epochs=1, learning_rate=0.05, resolution=16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Noisy images, each class of one colour."""
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir()
        for number in range(15):
            pixels = noise.normal(100, 40, (16, 16, 3))
            pixels[..., index] += 60
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / name / f"{number}.png")
    return folder


def test_an_adaptation_ends_in_a_plan_and_a_rerun_does_nothing_again(pictures, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(make(37).state_dict(), path)  # of another task: the head starts anew
    arguments = {
        "weights": str(path), "recipe": RECIPE, "subnetworks": 20, "storage": f"sqlite:///{tmp_path}/runs.db",
        "folder": tmp_path / "work", "trained": way("bias"),
    }  # fmt: skip
    first = adapt(TINY, pictures, 600_000, **arguments)
    # 1 and 2: two folds and 20 sub-networks; 4: one run
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/runs.db")
    trials = [len(storage.get_all_trials(study._study_id)) for study in storage.get_all_studies()]
    assert sorted(trials) == [1, 22]
    assert any("37 classes" in note for note in first.notes)
    assert first.accuracy.quality.observations == 20 and list(first.runs) == [0]
    # The plan is of a network that fits, and makes it ready to train.
    plan = first.plan
    graph = trace(first.model, 16, 3)
    step = replace(footprint(graph, plan.way.method, plan.way.blocks).step, schedule=plan.schedule)
    assert footprint(step).peak_bytes == plan.peak_bytes == first.found.peak_bytes <= 600_000
    assert plan.promises.accuracy_percent == pytest.approx(first.runs[0])
    plan.save(tmp_path / "plan.json")
    network, _ = make_network(graph, load_weights(TINY, str(path)), 0)
    Plan.load(tmp_path / "plan.json").apply(network)
    assert json.dumps(first.to_dict())
    # Its run is evidence; what was measured inside the super-network is none.
    (row,) = load(tmp_path / "runs.db")
    assert row.model == first.model and row.top1_percent == first.runs[0]
    again = adapt(TINY, pictures, 600_000, **arguments)
    assert (again.model, again.runs) == (first.model, first.runs)
    after = [len(storage.get_all_trials(study._study_id)) for study in storage.get_all_studies()]
    assert sorted(after) == [1, 22]
    with pytest.raises(InfeasibleError, match="no sub-network fits"):
        adapt(TINY, pictures, 1000, **arguments)


def test_other_images_or_weights_are_another_study(pictures, tmp_path):
    images = read_folder(list_folder(pictures), 16)

    def work(images=images, weights=None, **more):
        start = weights or Weights("random", None)
        return Adaptation(TINY, images, "data", start, RECIPE, f"sqlite:///{tmp_path}/r.db", tmp_path, **more)

    base = work().settings
    assert work().settings == base
    torch.manual_seed(1)
    others = [
        work(replace(images, digest="other")), work(weights=Weights("random", make(3).state_dict())),
        work(folds=3), work(seed=1), work(super_epochs=5),
    ]  # fmt: skip
    assert all(one.settings != base for one in others)


def test_every_image_is_held_out_once():
    labels = [0] * 7 + [1] * 5 + [2] * 2
    folds = folds_of(labels, 3)
    assert sorted(number for fold in folds for number in fold) == list(range(14))
    for fold in folds:  # 7 = 3 + 2 + 2, 5 = 2 + 2 + 1, 2 = 1 + 1 + 0
        counts = Counter(labels[number] for number in fold)
        assert counts[0] in (2, 3) and counts[1] in (1, 2) and counts[2] in (0, 1)


def test_measured_sub_networks_are_small_and_large():
    network = make()
    sizes = [sum(spread(network, number).expansions) for number in range(200)]
    drawn = [sum(DESIGN.draw(random.Random(number)).expansions) for number in range(200)]
    assert np.std(sizes) > 1.3 * np.std(drawn)
    assert [spread(network, 7)] == [spread(network, 7)]


def test_calibration_sets_the_statistics_of_the_images():
    """The running statistics of the first norm are the mean over batches of those of its input."""
    network, images = make(), torch.randn(128, 3, 16, 16)
    own = calibrated(network, DESIGN.smallest, (images, torch.zeros(128, dtype=torch.long)))
    seen = own.first_conv.conv(images)  # two batches of 64
    means = torch.stack([half.mean((0, 2, 3)) for half in seen.split(64)]).mean(0)
    variances = torch.stack([half.var((0, 2, 3)) for half in seen.split(64)]).mean(0)
    assert torch.allclose(own.first_conv.bn.running_mean, means, atol=1e-5)
    assert torch.allclose(own.first_conv.bn.running_var, variances, atol=1e-4)
    assert not torch.allclose(
        network.get_buffer("first_conv.bn.running_mean"), means, atol=1e-3
    )  # the shared ones stay


def test_training_trains_what_is_drawn():
    torch.manual_seed(0)
    network = make()
    data = torch.randn(64, 3, 16, 16), torch.randint(3, (64,))
    before = {name: value.clone() for name, value in network.named_parameters()}
    recipe = Recipe(epochs=1, learning_rate=0.1, batch=16, resolution=16)
    assert list(train_elastic(network, data, recipe, lambda: [DESIGN.smallest])) == [1]
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert "blocks.1.mobile_inverted_conv.depth_conv.conv.5to3_matrix" in changed
    assert not any(name.startswith("blocks.3.") for name in changed)  # a third block of the first stage
    list(train_elastic(network, data, recipe, sandwich(network, 0)))
    assert all(
        not torch.equal(value, before[name]) for name, value in network.named_parameters() if "blocks.3." in name
    )
    assert len(sandwich(network, 0, others=2)()) == 4 and len(one_at_random(network, 0)()) == 1


def test_weights_of_a_super_network_serve_its_sub_networks(tmp_path):
    torch.manual_seed(0)
    network = make(3)
    chosen = DESIGN.read("d=3,k=5,e=4")[1]
    graph, expected = trace(f"{TINY}@{chosen.text}", 16, 3), network.extract(chosen).state_dict()
    published = network.state_dict()
    later = {name.replace(".mobile_inverted_conv.", ".conv.", 1): value for name, value in published.items()}
    for state in (published, {"state_dict": published}, later):
        torch.save(state, tmp_path / "weights.pth")
        own, note = make_network(graph, load_weights(TINY, str(tmp_path / "weights.pth")), 0)
        assert note is None
        assert all(torch.equal(value, expected[name]) for name, value in own.state_dict().items())
    torch.save(published | {"first_conv.conv.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="has 'first_conv\\.conv\\.weight' as"):
        make_network(graph, load_weights(TINY, str(tmp_path / "weights.pth")), 0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"subnetworks": 19}, "must be 20 or more"),
        ({"folds": 1}, "folds must be 2 or more"),
        ({"seeds": 0}, "seeds must"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(pictures, tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        adapt(TINY, pictures, 600_000, weights="random", recipe=RECIPE, folder=tmp_path, **more)


def test_a_network_that_is_not_elastic_is_refused(pictures, tmp_path):
    with pytest.raises(InputError, match="not an elastic super-network"):
        adapt(
            "zoo:mcunet_5fps", pictures, 600_000, weights="random", recipe=RECIPE, folder=tmp_path,
            storage=f"sqlite:///{tmp_path}/r.db",
        )  # fmt: skip
