"""Ways of training as values: one way has one form, however it is written; what does not exist is refused."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import traced

from costmodel import METHODS, InputError, Way, anchor, footprint, read_options, way, way_from
from costmodel.methods.table import as_way, assign, way_of
from costmodel.methods.way import show

SMALL = "zoo:mcunet_5fps"


@pytest.mark.parametrize(
    ("given_", "same"),
    [
        (way("gradient-filter"), way("gradient-filter", options={"convolutions": "2", "patch": 2})),
        (
            way("sparse-update", options={"weights": "21:1,36:1/8"}),
            way("sparse-update", options={"weights": {36: 0.125, 21: 1}}),
        ),
        (way("back-razor", options={"dropped": "0.5"}), way("back-razor", options={"dropped": 0.5})),
        (way("bias", options={"norm_statistics": "own"}), way("bias")),
        (way(), Way("full")),
        (as_way("bias"), Way("bias")),
        (as_way(("mobiletl", 3)), Way("mobiletl", 3)),
    ],
)  # fmt: skip
def test_one_way_has_one_form(given_, same):
    assert given_ == same and hash(given_) == hash(same) and given_.label == same.label
    assert as_way(given_) is given_


@given(
    st.sampled_from(
        [Way("full"), Way("mobiletl", 3), way("gradient-filter", options={"patch": 7}),
         way("sparse-update", options={"layers": 30, "weights": "21:1,24:1/2"}), way("last-convs"),
         way("blocks", 2, {"norm_statistics": "running"}), Way("custom", trained=frozenset({"a.weight", "b"}))]
    )
)  # fmt: skip
def test_what_is_written_is_read_back(one):
    assert way_from(json.loads(json.dumps(one.to_dict()))) == one
    assert pickle.loads(pickle.dumps(one)) == one
    options = read_options(f"{name}={show(value)}" for name, value in one.options)
    if one.trained is None:
        assert way(one.method, one.blocks, options) == one


def test_labels_for_people():
    assert Way("bias").label == "bias"
    assert Way("mobiletl", 5).label == "mobiletl, k = 5"
    assert Way("mobiletl", 5).description == "mobiletl, the last k = 5 blocks"
    assert way("gradient-filter", options={"patch": 4}).label == "gradient-filter, convolutions 2, patch 4"
    weights = way("sparse-update", options={"weights": "36:1/8,21:1"})
    assert weights.label == "sparse-update, layers 8, weights 21:1,36:0.125" and weights["layers"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mobile-tl", 3), "unknown method 'mobile-tl'; did you mean 'mobiletl'"),
        (("bias", 3), "takes no number of blocks, but 3 was given"),
        (("blocks", 1.5), "blocks must be a whole number of 1 or more, not 1.5"),
        (("full", None, {"patch": 2}), "unknown option of method 'full' 'patch'. All: norm_statistics"),
        (("gradient-filter", None, {"patch": 0}), "option patch of method 'gradient-filter' is 0; it must be a whole"),
        (("gradient-filter", None, {"patch": True}), "is True; it must be a whole number"),
        (("full", None, {"norm_statistics": "batch"}), "is 'batch'; it must be own .* or running"),
        (("sparse-update", None, {"weights": "3:2"}), "is '3:2'; write pairs"),
        (("sparse-update", None, {"weights": "3:1,3:1/2"}), "each convolution once"),
        (("back-razor", None, {"dropped": 1}), "a share of the values from 0 to below 1"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        way(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("texts", [["patch"], ["=2"], ["patch="], ["patch=2", "patch=3"]])
def test_options_that_cannot_be_read(texts):
    with pytest.raises(InputError, match="option"):
        read_options(texts)


def test_the_ends_of_the_scale_are_declared_once():
    assert (anchor("last"), anchor("full")) == (Way("last"), Way("full"))
    assert [method.name for method in METHODS.values() if method.anchor] == ["full", "last"]


def test_every_method_can_train_with_running_statistics():
    """Norms with running statistics keep their input only if their scale trains: never more than before."""
    graph = traced("torchvision:mobilenet_v2")
    for name, method in METHODS.items():
        depth = 3 if method.takes_blocks else None
        own, running = (footprint(graph, name, depth, options={"norm_statistics": s}) for s in ("own", "running"))
        norms = {layer.index for layer in running.graph.layers if layer.op == "batch_norm"}
        assert running.assignment.frozen_statistics == norms
        assert running.assignment.trained == own.assignment.trained
        assert running.saved_bytes <= own.saved_bytes and running.peak_bytes <= own.peak_bytes
        always = norms == own.assignment.frozen_statistics
        assert (running.saved_bytes == own.saved_bytes) == always


def test_parameters_by_name_or_rule():
    graph = traced(SMALL)
    by_rule = way_of(graph, trained=lambda name: name.endswith("bias"))
    by_name = way_of(graph, trained=sorted(name for name in graph.parameters if name.endswith("bias")))
    assert by_rule == by_name and by_rule.label == "custom"
    assert assign(graph, by_rule)[1].trained == by_rule.trained
    with pytest.raises(InputError, match="give either method"):
        way_of(graph, "bias", trained=["a"])
    with pytest.raises(InputError, match=r"unknown parameter of zoo:mcunet_5fps 'classifier\.wieght'"):
        way_of(graph, trained=["classifier.wieght"])
