"""The transfer task: its images, its networks, and pre-training that is kept and repeats."""

from __future__ import annotations

import pytest
import tasks
import torch
from tasks import LETTERS, NETWORKS, RESOLUTION, digits, glyphs_to_digits, letters

from costmodel import METHODS, Way, apply, block_count, footprint, restore, trace
from costmodel.errors import InputError
from planner.campaign.fine_tuning import Recipe, fine_tune

QUICK = {"rendered": 64, "epochs": 1}


def test_letters_are_37_classes_without_a_digit():
    # 26 upper-case letters and the 11 lower-case ones that look different: 47 EMNIST classes less 10 digits
    assert len(LETTERS) == len(set(LETTERS)) == 37
    assert LETTERS.isalpha()


def test_letters_repeat_by_seed():
    images, labels = letters(40, seed=1)
    assert images.shape == (40, 3, RESOLUTION, RESOLUTION)
    assert images.min() >= -1
    assert images.max() <= 1
    again, other = letters(40, seed=1), letters(40, seed=2)
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])
    assert not torch.equal(images, other[0])
    # every glyph is seen: none is blank (all -1), none fills the image
    bright = (images[:, 0] > 0).float().mean((1, 2))
    assert (images.flatten(1).max(1).values > -0.8).all()
    assert bright.max() < 0.8


def test_every_font_has_every_letter():
    glyphs, classes = tasks._glyphs()
    assert len(glyphs) == len(classes) == 52 * len(tasks._FONTS)
    assert set(classes.tolist()) == set(range(37))
    assert (glyphs.flatten(1).max(1).values > 0.5).all()
    for font in glyphs.view(len(tasks._FONTS), 52, -1):  # a missing glyph is the same box for every letter
        assert len(torch.unique(font, dim=0)) == 52


def test_digits_are_those_of_scikit_learn():
    images, _ = digits()
    assert images.shape == (1797, 3, RESOLUTION, RESOLUTION)
    assert (images.min(), images.max()) == (-1, 1)
    # bilinear upsampling by 4 keeps the mean of 8 x 8 pixels (0 to 16) nearly
    from sklearn.datasets import load_digits

    means = torch.from_numpy(load_digits().images.mean((1, 2)) / 8 - 1).float()
    assert torch.allclose(images.mean((1, 2, 3)), means, atol=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_trace_and_train_small(name):
    network = NETWORKS[name](10)
    graph = trace(network, RESOLUTION)
    assert block_count(graph) == (11 if "v3" in name else 17)
    maps = [layer.output.shape[2:] for layer in graph.layers if layer.op == "conv2d" and len(layer.output.shape) == 4]
    assert max(maps) == (16, 16)
    assert (4, 4) in maps
    assert min(edge for shape in maps for edge in shape if edge > 1) == 4
    assert NETWORKS[name](10).state_dict().keys() == network.state_dict().keys()


def test_group_norm_network_takes_tinytl_as_it_is(recwarn):
    network = NETWORKS["mobilenet_v2_group_norm"](10).eval()
    images = torch.randn(2, 3, RESOLUTION, RESOLUTION)
    before = network(images)
    apply(network, "tinytl-lb", resolution=RESOLUTION)
    assert not [w for w in recwarn if "in place of" in str(w.message)]
    assert torch.equal(network(images), before)  # lite residuals start at zero
    for lite in network.lite_residual.values():
        torch.nn.init.ones_(lite.norm2.weight)
    assert not torch.equal(network(images), before)  # in eval mode they count too
    assert torch.equal(restore(network)(images), before)


@pytest.mark.parametrize("method", ["tinytl-l", "tinytl-lb"])
def test_lite_residuals_train_beside_group_norms_of_the_network(method):
    from costmodel.checking.measuring import saved_bytes

    network = NETWORKS["mobilenet_v2_group_norm"](10)
    expected = footprint(trace(network, RESOLUTION), method, batch=2).saved_bytes
    apply(network, method, resolution=RESOLUTION).train()
    assert saved_bytes(network, torch.randn(2, 3, RESOLUTION, RESOLUTION)) == expected
    network(torch.randn(2, 3, RESOLUTION, RESOLUTION)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    assert any(name.startswith("lite_residual") for name, p in network.named_parameters() if p.requires_grad)


def test_the_split_is_fixed(tmp_path):
    images, _ = digits()
    one = glyphs_to_digits(images_per_class=5, folder=tmp_path, **QUICK)
    other = glyphs_to_digits(images_per_class=20, seed=1, folder=tmp_path, **QUICK)
    assert one.train[1].bincount().tolist() == [5] * 10
    assert other.train[1].bincount().tolist() == [20] * 10
    # the second half of the data, 1797 - 898 images
    assert len(one.test[1]) == 899
    assert torch.equal(one.test[0], other.test[0])
    assert torch.equal(one.test[0], images[898:])
    first_half = {image.numpy().tobytes() for image in images[:898]}
    assert all(image.numpy().tobytes() in first_half for image in other.train[0])
    smaller = {image.numpy().tobytes() for image in one.train[0]}
    assert smaller <= {image.numpy().tobytes() for image in other.train[0]}


def test_pretraining_is_done_once_and_repeats(tmp_path):
    told: list[str] = []
    first = glyphs_to_digits(folder=tmp_path / "a", progress=told.append, **QUICK)
    assert "pre-training" in told[0]
    told.clear()
    again = glyphs_to_digits(folder=tmp_path / "a", progress=told.append, **QUICK)
    assert not told
    afresh = glyphs_to_digits(folder=tmp_path / "b", **QUICK)
    for other in (again, afresh):
        for name, value in first.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
    head = glyphs_to_digits(seed=1, folder=tmp_path / "a", **QUICK).model.classifier[-1]
    assert not torch.equal(head.weight, first.model.classifier[-1].weight)
    assert [path.suffix for path in (tmp_path / "a").iterdir()] == [".pt"]  # nothing half-written is left


def test_a_damaged_cache_is_made_again(tmp_path):
    first = glyphs_to_digits(folder=tmp_path, **QUICK)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    told: list[str] = []
    again = glyphs_to_digits(folder=tmp_path, progress=told.append, **QUICK)
    assert "cannot be read" in told[0]
    assert torch.equal(first.model.features[0][0].weight, again.model.features[0][0].weight)
    torch.load(path, weights_only=True)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    told: list[str] = []
    task = glyphs_to_digits(folder=tmp_path / "file" / "cache", progress=told.append, **QUICK)
    assert "could not be kept" in told[-1]
    assert len(task.train[1]) == 50


def test_the_task_is_what_fine_tune_takes(tmp_path):
    task = glyphs_to_digits(folder=tmp_path, **QUICK)
    test = task.test[0][:20], task.test[1][:20]
    recipe = Recipe(epochs=1, learning_rate=0.1, resolution=task.resolution)
    found = fine_tune(task.model, task.train, test, Way("last"), recipe)
    assert found.test_images == 20
    assert found.memory.agrees
    assert "last" in METHODS


@pytest.mark.parametrize("count", [-1, 0, 200])
def test_more_images_than_there_are(count):
    with pytest.raises(InputError, match="images_per_class must be 1 to"):
        glyphs_to_digits(images_per_class=count)


def test_unknown_network():
    with pytest.raises(InputError, match="unknown network 'mobilenetv2'; did you mean"):
        glyphs_to_digits("mobilenetv2")
