"""Weights from anywhere: a whole state dict of finite numbers, or one line that says why not."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from repository import ROOT
from safetensors.torch import save_file
from tiny_network import make

from costmodel import InputError, trace
from planner.campaign.weights import digest, load_weights, make_network

TINY = f"{ROOT / 'tests' / 'support' / 'tiny_network.py'}:make"
NORM = "stem.1"


@pytest.fixture(scope="module")
def graph():
    return trace(TINY, 16, 3)


@pytest.fixture
def state():
    return make(3).state_dict()


def load(tmp_path, graph, state, name="weights.pth"):
    path = tmp_path / name
    torch.save(state, path)
    return make_network(graph, load_weights(graph.model, str(path)), 0)


def test_safetensors_are_the_same_as_a_pickle(tmp_path, graph, state):
    save_file(state, tmp_path / "weights.safetensors")
    network, note = make_network(graph, load_weights(graph.model, str(tmp_path / "weights.safetensors")), 0)
    assert note is None and digest(network) == digest(load(tmp_path, graph, state)[0])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="not a file of weights only"):
        load_weights(graph.model, str(tmp_path / "cut.safetensors"))


def test_no_flipped_bit_is_loaded(tmp_path, graph, state):
    """Of 200 files with one flipped bit each, all are refused or hold the values that were saved."""
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for place, bit in zip(random.integers(0, len(whole), 200), random.integers(0, 8, 200), strict=True):
        content = bytearray(whole)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        try:
            found = load_weights(graph.model, str(path)).state
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    assert refused > 100


def changed(state, name, value):
    return {**state, name: value}


WRONG = {
    "nan": (NORM + ".weight", torch.full((8,), torch.nan), "has values that are not finite"),
    "infinite": (NORM + ".bias", torch.full((8,), torch.inf), "has values that are not finite"),
    "negative variance": (NORM + ".running_var", torch.full((8,), -1.0), "has negative variances"),
    "sparse": ("head.weight", torch.zeros(3, 12).to_sparse(), "is sparse, quantized or without content"),
    "meta": ("head.weight", torch.zeros(3, 12, device="meta"), "is sparse, quantized or without content"),
    "quantized": (
        "head.weight", torch.quantize_per_tensor(torch.zeros(3, 12), 0.1, 0, torch.qint8), "is sparse, quantized",
    ),
    "complex": ("head.weight", torch.zeros(3, 12, dtype=torch.complex64), "is of torch.complex64"),
    "number as key": (7, torch.zeros(1), "7 is not a name of a parameter"),
    "larger than it is": ("head.weight", torch.zeros(1).expand(10**12), "has more elements than are stored"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_no_network_has_is_named(tmp_path, graph, state, kind):
    name, value, said = WRONG[kind]
    with pytest.raises(InputError, match=said) as error:
        load(tmp_path, graph, changed(state, name, value))
    assert "\n" not in str(error.value) and str(name) in str(error.value)


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.zeros(0), torch.zeros(5, 11), torch.zeros(5, 12, 1)])
def test_a_head_of_another_network_is_refused(tmp_path, graph, state, value):
    with pytest.raises(InputError, match=r"the file has 'head\.weight' as"):
        load(tmp_path, graph, changed(state, "head.weight", value))


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path, graph, state):
    """A zip file of zeros, a thousandth of what it unpacks to."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
        packed.writestr("archive/data/zeros", bytes(10**7))
    with pytest.raises(InputError, match="unpack to more than the file"):
        load_weights(graph.model, str(tmp_path / "w.pth"))


def test_the_digest_is_of_values_names_and_kinds(graph, state, tmp_path):
    first = load(tmp_path, graph, state)[0]
    assert digest(first) == digest(load(tmp_path, graph, {"model": state}, "other.pth")[0])
    with torch.no_grad():
        first.head.weight[0, 0] += 1
    assert digest(first) != digest(load(tmp_path, graph, state)[0])
