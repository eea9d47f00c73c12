"""Relations over all methods, depths and the twelve networks; what trains, told again from the torch modules."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from networks import PLAIN_METHODS, WHOLE_STEP, block_modules, inside, meta_model, settings, traced
from torch import nn

from costmodel import ACCOUNTINGS, METHODS, InputError, Way, block_count, footprint, parts, trace, way
from costmodel.methods.table import assign

BATCH = 8


@pytest.fixture(params=WHOLE_STEP)
def accounting(request) -> str:
    return request.param


@cache
def answer(name: str, method: str, depth: int | None, batch: int, accounting: str):
    return footprint(traced(name), method, depth, batch, accounting=accounting)


def priced(graph, batch=BATCH, accounting="lean", methods=METHODS, depths=None) -> dict:
    """Return the footprint of every method and depth (or those given)."""
    return {
        (name, depth): answer(graph.model, name, depth, batch, accounting)
        for name, depth in settings(graph, depths)
        if name in methods
    }


# --- what trains ------------------------------------------------------------------------------------------------------


def expected_trained(name: str, method: str, depth: int | None) -> set[str]:
    """Return the trained parameters by walking the torch modules: types, and the order in which they are defined."""
    model = meta_model(name)
    everything = [key for key, _ in model.named_parameters()]
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    head = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    head_names = {f"{head}.weight", f"{head}.bias"}
    assert head_names == set(everything[-2:])
    if method == "full":
        return set(everything)
    if method == "last":
        return head_names
    if method == "norm":
        return head_names | {f"{path}.{kind}" for path in norms for kind in ("weight", "bias")}
    if method == "bias":
        return head_names | {key for key in everything if key.endswith(".bias")}
    tuned = block_modules(name)[-depth:]
    first = next(i for i, key in enumerate(everything) if inside(key, tuned[0]))
    trained = set(everything[first:])
    if method == "mobiletl":
        for paths in tuned:
            inner = [path for path, module in model.named_modules() if path in norms and inside(path, paths)][:-1]
            trained -= {f"{path}.weight" for path in inner}
    return trained


def test_trained_parameters(name, graph):
    for method, depth in settings(graph):
        if method in PLAIN_METHODS:
            _, assignment = assign(graph, way(method, depth))
            expected = expected_trained(name, method, depth)
            assert assignment.trained == expected, (method, depth)
            count = sum(parameter.numel() for key, parameter in meta_model(name).named_parameters() if key in expected)
            assert footprint(graph, method, depth).trained_parameters == count


def expected_frozen_norms(name: str, method: str, depth: int | None) -> set[str]:
    """Return the module paths of the norms with frozen statistics."""
    model = meta_model(name)
    norms = [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if method in ("last", "bias"):
        return set(norms)
    if method in ("full", "norm"):  # the first norm trains, so that none lies below what trains
        return set()
    everything = [key for key, _ in model.named_parameters()]
    tuned = block_modules(name)[-depth:]
    first = next(i for i, key in enumerate(everything) if inside(key, tuned[0]))
    frozen = {path for path in norms if everything.index(f"{path}.weight") < first}
    if method == "mobiletl":
        for paths in tuned:
            frozen |= set([path for path in norms if inside(path, paths)][:-1])
    return frozen


def test_norms_with_frozen_statistics(name, graph):
    for method, depth in settings(graph):
        if method in PLAIN_METHODS:
            _, assignment = assign(graph, way(method, depth))
            frozen = {graph.layers[index].inputs["weight"].name for index in assignment.frozen_statistics}
            assert frozen == {f"{path}.weight" for path in expected_frozen_norms(name, method, depth)}, (method, depth)


def test_mobiletl_masks_the_activations_of_its_blocks_and_no_gate(name, graph):
    for depth in (1, block_count(graph)):
        _, assignment = assign(graph, Way("mobiletl", depth))
        tuned = [path for paths in block_modules(name)[-depth:] for path in paths]
        masked = {graph.layers[index] for index in assignment.kept_inputs}
        assert all(inside(layer.module, tuple(tuned)) for layer in masked)
        # On the main path every activation works on maps; a gate's works on one pixel.
        activations = [
            layer
            for layer in graph.layers
            if inside(layer.module, tuple(tuned))
            and layer.op in ("relu", "relu6", "hardtanh", "hardswish", "silu")
            and layer.output.shape[2:] != (1, 1)
        ]
        assert masked == set(activations) and masked
        assert all(storage.bits == 1 for storage in assignment.kept_inputs.values())
        for layer in masked:  # the derivative of ReLU and ReLU6 takes two values, that of the others does not
            exact = layer.op in ("relu", "relu6", "hardtanh")
            assert assignment.kept_inputs[layer.index].exact == exact


def test_other_methods_keep_their_derivatives_exact(graph):
    for method, depth in settings(graph, [1]):
        if method != "mobiletl" and METHODS[method].has_layers:
            assert not assign(graph, way(method, depth))[1].kept_inputs


def test_plain_methods_train_the_network_as_it_is(graph):
    """And every other one rewrites it, so that none escapes the tests of this file by accident."""
    for method, depth in settings(graph, [1]):
        rewritten = assign(graph, way(method, depth))[0] is not graph
        assert rewritten == (method not in PLAIN_METHODS and (method == "lora" or not METHODS[method].options))


# --- training less never costs more -----------------------------------------------------------------------------------


def _less(one, other) -> bool:
    """Whether a setting trains a subset of what another trains, with no more batch statistics and no fewer masks."""
    a, b = one.assignment, other.assignment
    masked_in_other_only = {index for index in b.kept_inputs if index in one.wanted} - set(a.kept_inputs)
    return a.trained <= b.trained and a.frozen_statistics >= b.frozen_statistics and not masked_in_other_only


def test_training_less_never_costs_more(graph, accounting):
    prices = priced(graph, accounting=accounting, methods=PLAIN_METHODS)
    pairs = {(less, more) for less, more in itertools.permutations(prices, 2) if _less(prices[less], prices[more])}
    n = block_count(graph)
    expected = [
        [("last", None), *(("blocks", k) for k in range(1, n + 1)), ("full", None)],
        [("last", None), *(("mobiletl", k) for k in range(1, n + 1)), ("blocks", n)],
        *([("mobiletl", k), ("blocks", k)] for k in range(1, n + 1)),
        [("last", None), ("bias", None), ("full", None)],
        [("last", None), ("norm", None), ("full", None)],
    ]
    assert pairs >= {pair for chain in expected for pair in itertools.pairwise(chain)}
    for less, more in pairs:
        cheap, dear = prices[less], prices[more]
        for quantity in (
            "saved_bytes", "peak_bytes", "gradients_bytes", "trained_parameters", "backward_flops",
        ):  # fmt: skip
            assert getattr(cheap, quantity) <= getattr(dear, quantity), (less, more, quantity)
        assert cheap.forward_flops == dear.forward_flops
        for kind in ("backward", "update"):
            assert cheap.flops["elementwise"][kind] <= dear.flops["elementwise"][kind]


def test_mobiletl_is_strictly_below_blocks(graph):
    prices = priced(graph)
    for k in range(1, block_count(graph) + 1):
        assert prices["mobiletl", k].saved_bytes < prices["blocks", k].saved_bytes
        # It trains less: the scale of each inner norm is frozen.
        assert prices["mobiletl", k].trained_parameters < prices["blocks", k].trained_parameters
        # Convolutions are trained all the same.
        assert prices["mobiletl", k].flops["backward_weight"] == prices["blocks", k].flops["backward_weight"]


def test_one_more_block_stores_strictly_more(graph):
    prices = priced(graph)
    for method in ("blocks", "mobiletl"):
        for k in range(1, block_count(graph)):
            fewer, more = prices[method, k], prices[method, k + 1]
            assert fewer.saved_bytes < more.saved_bytes
            assert fewer.backward_flops < more.backward_flops
            assert fewer.trained_parameters < more.trained_parameters


def test_lean_is_never_above_eager(graph):
    lean, eager = priced(graph, accounting="lean"), priced(graph, accounting="eager")
    for setting, ours in lean.items():
        assert ours.saved_bytes <= eager[setting].saved_bytes, setting
        assert ours.peak_bytes <= eager[setting].peak_bytes, setting
        assert ours.flops["backward"] == eager[setting].flops["backward"]


# --- all blocks against everything ------------------------------------------------------------------------------------


def test_all_blocks_are_everything_but_the_stem(graph, accounting):
    n = block_count(graph)
    blocks = footprint(graph, "blocks", n, BATCH, accounting=accounting)
    full = footprint(graph, "full", None, BATCH, accounting=accounting)
    stem = parts(graph).stem
    first_readers = {
        layer.index
        for layer in graph.layers
        if layer.index not in stem and any(tensor.id in _made_by(graph, stem) for tensor in layer.inputs.values())
    }
    ours, theirs = (answer.to_frame("layer").to_dict("records") for answer in (blocks, full))
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if index in stem:
            assert mine["trained_parameters"] == mine["saved_bytes"] == mine["backward_flops"] == 0
            continue
        same = ["layer", "output", "parameters", "trained_parameters", "forward_flops"]
        if index not in first_readers:
            same += ["saved_bytes", "backward_flops"]
        assert {key: mine[key] for key in same} == {key: other[key] for key in same}
    # What reads the stem's result computes no gradient of it: only of its weight.
    for index in first_readers:
        facts = full.facts[index].backward_flops
        difference = theirs[index]["backward_flops"] - ours[index]["backward_flops"]
        assert difference == BATCH * facts.get("input", 0)
    # Every tensor that is kept for a layer above the stem is kept in both.
    above = {key for key, saved in full.books.saved.items() if any(index not in stem for index in saved.uses)}
    assert set(blocks.books.saved) == above
    stem_parameters = sum(row["parameters"] for index, row in enumerate(ours) if index in stem)
    assert full.trained_parameters - blocks.trained_parameters == stem_parameters > 0


def _made_by(graph, stem) -> set[int]:
    return {tensor.id for index in stem for tensor in graph.layers[index].outputs}


# --- batches ----------------------------------------------------------------------------------------------------------


def test_twice_the_batch_stores_twice_as_much(graph, accounting):
    """But for the statistics of batch norms, which do not grow, and the last byte of packed bits."""
    batch = 3  # an odd number of images, so that bits do not fill whole bytes by themselves
    once, twice = (priced(graph, size, accounting, depths=[1, block_count(graph)]) for size in (batch, 2 * batch))
    for setting, less in once.items():
        more = twice[setting]
        constant = sum(saved.bytes(batch) for saved in less.books.saved.values() if not saved.batched)
        packed = sum(saved.batched and saved.bits < 8 for saved in less.books.saved.values())
        growth = more.saved_bytes - constant
        assert 2 * (less.saved_bytes - constant) - packed <= growth <= 2 * (less.saved_bytes - constant)
        assert less.books.saved.keys() == more.books.saved.keys()
        if setting[0] in PLAIN_METHODS:
            # Two float32 statistics for every channel of a norm with batch statistics.
            frozen = less.assignment.frozen_statistics
            norms = [layer for layer in graph.layers if layer.op == "batch_norm" and layer.index not in frozen]
            channels = sum(layer.input.shape[1] for layer in norms)
            standardised = sum(saved.bytes(1) for saved in less.books.saved.values() if "weight" in saved.what)
            assert constant == 2 * 4 * channels and not standardised
        assert more.flops["total"] == 2 * less.flops["total"]
        assert more.weights_bytes == less.weights_bytes and more.gradients_bytes == less.gradients_bytes


def test_the_step_ends_as_it_began(graph, accounting):
    if ACCOUNTINGS[accounting].timeline is not None:
        pytest.skip("its moments are not those of a step of PyTorch")
    answers = list(priced(graph, accounting=accounting).values())
    answers += [
        footprint(graph, method, depth, accounting=accounting, inplace_update=True)
        for method, depth in settings(graph, [1, block_count(graph)])
    ]
    for step in answers:
        first, last = step.moments[0], step.moments[-1]
        assert (first.phase, last.phase) == ("start", "end")
        assert first.by_category == last.by_category, step
        assert all(min(moment.by_category) >= 0 for moment in step.moments), step


# --- the table of methods ---------------------------------------------------------------------------------------------


def test_unknown_method_names_the_near_ones_and_all():
    with pytest.raises(InputError) as error:
        METHODS.find("mobile-tl")
    text = str(error.value)
    assert text.startswith("unknown method 'mobile-tl'; did you mean 'mobiletl'?") and "\n" not in text
    assert all(name in text for name in METHODS)


def test_every_method_says_what_it_does_and_where_it_comes_from():
    assert {"full", "last", "norm", "bias", "blocks", "mobiletl"} == set(PLAIN_METHODS) <= set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name and method.summary and method.source
        assert "\n" not in method.summary


def test_nothing_flows_below_the_earliest_trained_parameter(graph):
    for setting, step in priced(graph, methods=PLAIN_METHODS).items():
        trained = step.assignment.trained
        first = min(
            layer.index for layer in graph.layers if {tensor.name for tensor in layer.parameters.values()} & trained
        )
        assert min(step.wanted) == first, setting
        assert "input" not in step.wanted[first], setting
        uses = [index for saved in step.books.saved.values() for index in saved.uses]
        assert min(uses) >= first


def test_network_without_norms_or_biases():
    """`norm` and `bias` of a network that has neither train its head."""
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)), 8)
    last = footprint(graph, "last")
    for method in ("norm", "bias"):
        step = footprint(graph, method)
        assert step.trained_parameters == last.trained_parameters == 4 * 36 * 3 + 3
        assert step.saved_bytes == last.saved_bytes == 8 * 4 * 36 * 4  # the head's input
