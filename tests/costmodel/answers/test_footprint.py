"""The answer as a whole: its groupings add up, its options do what they say, bad options are refused in one line."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import BLOCKS, PLAIN_METHODS, WHOLE_STEP, short, traced

from costmodel import (
    ACCOUNTINGS,
    METHODS,
    OPTIMIZERS,
    CostModelError,
    InputError,
    block_count,
    footprint,
    parts,
)
from costmodel.step.simulation import CATEGORIES

# What the program promised to print, and what it prints beside.
KEYS = {
    "input",
    "model", "method", "blocks", "batch", "resolution", "classes", "optimizer", "accounting", "saved_bytes",
    "memory_bytes", "peak", "flops", "trained_parameters", "schedule",
}  # fmt: skip
OPTION_KEYS = {"micro_batch", "activation_dtype", "frozen_dtype", "inplace_update"}
MEMORY_KEYS = {
    "weights", "buffers", "input", "saved_activations", "gradients", "optimizer", "transient", "peak",
}  # fmt: skip
FLOPS_KEYS = {
    "forward", "backward", "backward_input", "backward_weight", "recompute", "total", "elementwise", "convention",
}  # fmt: skip


def some_settings(graph) -> list[tuple[str, int | None]]:
    return [(name, min(3, block_count(graph)) if method.takes_blocks else None) for name, method in METHODS.items()]


# --- groupings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@pytest.mark.parametrize("options", [{}, {"micro_batch": 2, "activation_dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:mobilenetv4_conv_small"], ids=short)
def test_groupings_add_up(name, accounting, options):
    graph = traced(name)
    for method, depth in some_settings(graph):
        answer = footprint(graph, method, depth, accounting=accounting, **options)
        totals = {
            "parameters": answer.graph.parameter_count,
            "trained_parameters": answer.trained_parameters,
            "saved_bytes": answer.saved_bytes,
            "forward_flops": answer.forward_flops,
            "backward_flops": answer.backward_flops,
        }
        for by in ("layer", "block", "operation"):
            frame = answer.to_frame(by)
            assert {column: frame[column].sum() for column in totals} == totals, (method, by)
        tensors = answer.to_frame("tensor")
        assert tensors["bytes"].sum() == answer.saved_bytes
        assert len(answer.to_frame("layer")) == len(answer.graph.layers)
        assert set(answer.to_frame("operation")["operation"]) == {layer.op for layer in answer.graph.layers}


def test_groupings_by_block_are_sums_of_layers(graph):
    answer = footprint(graph, "mobiletl", 3)
    layers, blocks = answer.to_frame("layer"), answer.to_frame("block")
    expected = ["stem", *(f"block {i + 1}" for i in range(block_count(graph))), "tail", "head"]
    assert list(blocks["part"]) == expected
    for _, row in blocks.iterrows():
        chosen = layers[layers["part"] == row["part"]]
        for column in ("parameters", "saved_bytes", "forward_flops", "backward_flops"):
            assert chosen[column].sum() == row[column]
    frozen = blocks[blocks["part"].isin(expected[: -(3 + 2)])]
    assert frozen["trained_parameters"].sum() == 0 and frozen["backward_flops"].sum() == 0


def test_tensor_view_says_who_needs_what(graph):
    answer = footprint(graph, "full")
    frame = answer.to_frame("tensor")
    names = {layer.name for layer in graph.layers}
    assert len(frame) == len(answer.books.saved) and frame["tensor"].is_unique
    for row, saved in zip(frame.to_dict("records"), answer.books.saved.values(), strict=True):
        owner, _, what = row["tensor"].rpartition(": ")
        assert owner in names and what
        users = [item.rpartition(": ") for item in row["needed_for"].split(", ")]
        assert len(users) == row["layers"] == len(saved.uses)
        for layer, _, roles in users:
            used = next(other for other in graph.layers if other.name == layer)
            assert set(roles.split()) <= set(answer.wanted[used.index])
        assert row["bytes"] == -(-saved.elements * row["bits"] * (answer.batch if saved.batched else 1) // 8)
    # A convolution's weight gradient needs its input: each trained convolution stands among those it is needed for.
    needed = " ".join(frame["needed_for"])
    for layer in graph.layers:
        if layer.op == "conv2d":
            assert f"{layer.name}: weight" in needed


def test_tensor_kept_by_two_layers_is_called_what_the_first_calls_it():
    """MobileNetV2's first ReLU6: its result is the depthwise convolution's input."""
    frame = footprint(traced("torchvision:mobilenet_v2"), "full").to_frame("tensor")
    row = frame[frame["needed_for"].str.contains("features.1.conv.0.0: weight")].iloc[0]
    assert row["tensor"] == "features.0.2: output"
    assert row["needed_for"] == "features.0.2: input, features.1.conv.0.0: weight"
    assert row["shape"] == "N x 32 x 112 x 112" and row["bytes"] == 8 * 32 * 112 * 112 * 4


def test_unknown_grouping():
    answer = footprint(traced("torchvision:mobilenet_v3_small"), "last")
    with pytest.raises(InputError, match=r"unknown grouping 'layers'; did you mean 'layer'"):
        answer.to_frame("layers")


# --- as plain values --------------------------------------------------------------------------------------------------


def test_keys_and_values_of_the_dictionary(name, graph):
    for method, depth in some_settings(graph):
        answer = footprint(graph, method, depth, 4, "adam")
        result = answer.to_dict()
        assert set(result) == KEYS | OPTION_KEYS | ({"options"} if METHODS[method].options else set())
        assert set(result["memory_bytes"]) == MEMORY_KEYS == {*CATEGORIES, "peak"}
        assert set(result["peak"]) == {"layer", "phase"}
        assert set(result["flops"]) == FLOPS_KEYS
        assert set(result["flops"]["elementwise"]) == {"forward", "backward", "update"}
        assert json.loads(json.dumps(result)) == result
        assert (result["model"], result["method"], result["blocks"]) == (name, method, depth)
        assert (result["batch"], result["resolution"], result["classes"]) == (4, 224, 1000)
        assert (result["optimizer"], result["accounting"]) == ("adam", "lean")
        assert result["saved_bytes"] == answer.saved_bytes
        assert result["memory_bytes"]["peak"] == answer.peak_bytes
        flops = result["flops"]
        assert flops["backward"] == flops["backward_input"] + flops["backward_weight"]
        assert flops["total"] == flops["forward"] + flops["backward"] + flops["recompute"]
        assert flops["elementwise"]["update"] > 0 and "1 MAC = 2 FLOPs" in flops["convention"]


def test_answer_shows_itself_everywhere():
    from rich.console import Console

    answer = footprint(traced("torchvision:mobilenet_v3_small"), "mobiletl", 5)
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(answer)
    for text in (capture.get(), answer._repr_html_()):
        for part in (
            "torchvision:mobilenet_v3_small",
            "mobiletl, the last k = 5 blocks",
            "batch 8",
            "224x224",
            "peak memory",
        ):
            assert part in text
    assert "mobiletl, k = 5" in repr(answer)


def test_answer_and_graph_can_be_pickled():
    answer = footprint(traced("torchvision:mobilenet_v3_small"), "full", activation_dtype="float16")
    assert pickle.loads(pickle.dumps(answer)).to_dict() == answer.to_dict()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accounting", WHOLE_STEP)
def test_half_precision_halves_activations_and_leaves_the_rest(name, graph, accounting):
    methods = METHODS if name == "torchvision:mobilenet_v3_small" else PLAIN_METHODS
    for method, depth in some_settings(graph):
        if method not in methods:
            continue
        plain = footprint(graph, method, depth, accounting=accounting)
        for dtype in ("float16", "bfloat16"):
            half = footprint(graph, method, depth, accounting=accounting, activation_dtype=dtype)
            # Batched float maps halve; masks, statistics and indices stay as they are.
            following = sum(saved.bytes(8) for saved in plain.books.saved.values() if saved.follows_precision)
            # Stock PyTorch keeps its casts of weights, two bytes a number.
            weights = {layer.index: layer.inputs["weight"].elements for layer in half.graph.layers
                       if layer.op in ("conv2d", "linear")}  # fmt: skip
            casts = sum(2 * weights[key.id] for key, saved in plain.books.saved.items() if saved.cast)
            assert (casts > 0) == (accounting == "eager" and method != "last")
            assert half.saved_bytes == plain.saved_bytes - following // 2 + casts
            assert half.weights_bytes == plain.weights_bytes
            assert half.gradients_bytes == plain.gradients_bytes
            assert half.flops == plain.flops


def test_resolution_scales_maps_quadratically():
    """Four times the pixels: four times the maps; the vectors behind the global pool stay."""
    # Both are multiples of 32, by which the network divides the side.
    small, large = (footprint(traced("torchvision:mobilenet_v2", side), "full") for side in (96, 192))
    behind_pool = 8 * 1280 * 4 + 8 * 1280 // 8  # the classifier's input, and the dropout's mask
    statistics = 2 * 4 * 17056  # mean and deviation of every norm: 17,056 channels
    assert large.saved_bytes - behind_pool - statistics == 4 * (small.saved_bytes - behind_pool - statistics)
    assert large.weights_bytes == small.weights_bytes


@pytest.mark.parametrize(
    ("options", "parts_of_message"),
    [
        ({"method": "mobile-tl"}, ["unknown method 'mobile-tl'", "'mobiletl'"]),
        ({"optimizer": "adamax"}, ["unknown optimizer 'adamax'", "adam"]),
        ({"accounting": "leen"}, ["unknown accounting 'leen'", "'lean'"]),
        ({"activation_dtype": "fp8"}, ["unknown activation dtype 'fp8'", "float16"]),
        ({"frozen_dtype": "int4"}, ["unknown dtype of frozen weights 'int4'", "'int8'"]),
        ({"batch": 0}, ["batch must be a whole number of 1 or more, not 0"]),
        ({"batch": 2.0}, ["batch", "2.0"]),
        ({"batch": True}, ["batch", "True"]),
        ({"micro_batch": 3}, ["micro_batch must divide batch", "3", "8"]),
        ({"micro_batch": 16}, ["micro_batch must divide batch", "16", "8"]),
        ({"micro_batch": 0}, ["micro_batch must be a whole number"]),
        ({"micro_batch": 4, "inplace_update": True}, ["inplace_update", "micro_batch"]),
        ({"method": "full", "blocks": 3}, ["'full'", "takes no number of blocks", "3"]),
        ({"method": "blocks"}, ["'blocks'", "1 to 11"]),
        ({"method": "blocks", "blocks": 12}, ["has 11 blocks", "not 12"]),
    ],
    ids=str,
)
def test_bad_option_is_refused_in_one_line(options, parts_of_message):
    with pytest.raises(InputError) as error:
        footprint(traced("torchvision:mobilenet_v3_small"), **options)
    text = str(error.value)
    assert "\n" not in text
    for part in parts_of_message:
        assert part in text


NUMBERS = st.one_of(st.integers(-2, 40), st.none(), st.just(2.5), st.just("8"), st.booleans())


@settings(max_examples=300)
@given(
    model=st.sampled_from(
        ["torchvision:mobilenet_v3_small", "timm:tinynet_e", "timm:resnet10t", "torchvision:alexnet"]
    ),
    method=st.sampled_from([*METHODS, "fulll"]),
    blocks=NUMBERS,
    batch=NUMBERS,
    optimizer=st.sampled_from([*OPTIMIZERS, "rmsprop"]),
    accounting=st.sampled_from(sorted(WHOLE_STEP)),
    micro_batch=NUMBERS,
    activation_dtype=st.sampled_from(["float32", "float16", "bfloat16", "int8"]),
    frozen_dtype=st.sampled_from(["float32", "float16", "int8", "bool"]),
    inplace_update=st.booleans(),
    first_step=st.booleans(),
)
def test_any_options_give_a_sound_answer_or_a_clear_refusal(model, **options):
    graph = traced(model)
    try:
        answer = footprint(graph, **options)
    except CostModelError as error:
        assert isinstance(error, InputError)
        assert "\n" not in str(error) and str(error)
        return
    assert METHODS[options["method"]].takes_blocks == (options["blocks"] is not None)
    assert answer.batch % answer.micro_batch == 0 and type(answer.batch) is int
    first, last = answer.moments[0], answer.moments[-1]
    differences = [a - b for a, b in zip(last.by_category, first.by_category, strict=True) if a != b]
    own_timeline = ACCOUNTINGS[answer.accounting].timeline is not None
    assert own_timeline or differences in ([], [answer.optimizer_bytes])
    assert first.total_bytes < answer.peak_bytes
    assert answer.peak_bytes >= answer.weights_bytes + answer.moments[0].by_category[CATEGORIES.index("buffers")]
    assert all(min(moment.by_category) >= 0 for moment in answer.moments)
    assert 0 < answer.trained_parameters <= answer.graph.parameter_count
    assert 0 <= answer.backward_flops <= 2 * answer.forward_flops
    assert answer.forward_flops > 0 and answer.saved_bytes > 0
    assert answer.forward_flops == answer.batch * footprint(graph, *_minimal(options)).forward_flops


def _minimal(options) -> tuple:
    return options["method"], options["blocks"], 1


def test_default_is_full_training_at_batch_8():
    graph = traced("torchvision:mobilenet_v3_small")
    answer = footprint(graph)
    assert (answer.method, answer.batch, answer.optimizer, answer.accounting) == ("full", 8, "sgd", "lean")
    assert answer.to_dict() == footprint(graph, "full").to_dict()


def test_asking_again_gives_the_same_answer_whatever_was_asked_between(graph):
    before = footprint(graph, "mobiletl", 3).to_dict()
    for method, depth in some_settings(graph):
        footprint(graph, method, depth, accounting="eager")
    assert footprint(graph, "mobiletl", 3).to_dict() == before


def test_trained_parameters_by_hand():
    """MobileNetV2 has 17,056 channels with a norm; its head 1280 x 1000 weights and 1000 biases."""
    graph = traced("torchvision:mobilenet_v2")
    assert footprint(graph, "last").trained_parameters == 1_281_000
    assert footprint(graph, "bias").trained_parameters == 1_281_000 + 17_056
    assert footprint(graph, "norm").trained_parameters == 1_281_000 + 2 * 17_056
    assert footprint(graph, "full").trained_parameters == 3_504_872


def test_where_names_every_part(name, graph):
    cut = parts(graph)
    assert {cut.where(layer) for layer in graph.layers} == {
        "stem", "tail", "head", *(f"block {i}" for i in range(1, BLOCKS[name] + 1)),
    }  # fmt: skip
    assert set(PLAIN_METHODS) <= set(METHODS)
