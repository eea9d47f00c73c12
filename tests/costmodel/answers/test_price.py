"""Prices in bulk are those of single footprints, exactly."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SPREAD, traced
from random_networks import random_networks

from costmodel import (
    ACCOUNTINGS,
    METHODS,
    OPTIMIZERS,
    InputError,
    Kernels,
    Precision,
    Schedule,
    Step,
    Way,
    block_count,
    footprint,
    trace,
    way,
)
from costmodel.answers.price import price
from costmodel.methods.table import as_way
from costmodel.step.simulation import CATEGORIES
from planner.choosing.axes import axes

BATCHES = [(1, 1), (2, 2), (7, 7), (8, 8), (9, 9), (24, 3), (32, 16), (1000, 1000), (1001, 143)]
DTYPES = [("float32", "float32"), ("float32", "float16"), ("float32", "int8"), ("bfloat16", "float16")]


def assert_same(
    graph, ways, batches=BATCHES, optimizers=tuple(OPTIMIZERS), dtypes=DTYPES, accounting="lean", inplace=False,
    first_step=False, kernels=None,
):  # fmt: skip
    carried = [(batch, Schedule(None if micro == batch else micro, inplace)) for batch, micro in batches]
    precisions = [Precision(frozen=frozen, activations=activations) for activations, frozen in dtypes]
    prices = price(graph, ways, carried, optimizers, precisions, accounting, first_step=first_step, kernels=kernels)
    columns, places = prices.columns, prices.places
    count = len(ways) * len(batches) * len(optimizers) * len(dtypes)
    assert {len(column) for column in columns.values()} == {count}
    seen = set()
    for row in range(count):
        value = {name: int(column[row]) for name, column in columns.items()}
        key = tuple(value[name] for name in ("way", "batches", "optimizer", "precision"))
        seen.add(key)
        batch, schedule = carried[key[1]]
        single = footprint(Step(
            graph, as_way(ways[key[0]]), batch, schedule, precisions[key[3]], optimizers[key[2]], accounting,
            first_step, None if kernels is None else Kernels(kernels),
        ))  # fmt: skip
        assert value["peak_bytes"] == single.peak_bytes, key
        assert places[value["place"]] == (single.peak.phase, single.peak.layer), key
        assert tuple(value[f"{name}_bytes"] for name in CATEGORIES) == single.peak.by_category, key
        for name in (
            "saved_bytes",
            "moved_bytes",
            "trained_parameters",
            "forward_flops",
            "backward_flops",
            "total_flops",
        ):
            assert value[name] == getattr(single, name), (name, key)
    assert len(seen) == count


def ways_of(graph) -> list[tuple[str, int | None]]:
    count = block_count(graph)
    return [
        (name, k)
        for name, method in METHODS.items()
        if not method.why_not(graph) and not method.options
        for k in (sorted({1, 2, count}) if method.takes_blocks else (None,))
    ]


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "timm:tinynet_e"])
def test_bulk_is_single_for_every_method(name):
    graph = traced(name, 96)
    assert_same(graph, ways_of(graph), dtypes=[("float32", "float32"), ("float16", "int8")], optimizers=["sgd", "adam"])


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
def test_bulk_is_single_in_every_book(accounting):
    graph = traced("torchvision:mobilenet_v3_small", 96)
    ways = [("full", None), ("bias", None), ("blocks", 2), ("mobiletl", 3)]
    assert_same(graph, ways, [(1, 1), (5, 5), (12, 4)], ["momentum", "adam"], DTYPES[:1], accounting)


@settings(max_examples=40)
@given(random_networks(), st.data())
def test_bulk_is_single_on_random_networks(network, data):
    graph = trace(network.fresh(), network.resolution)
    method = data.draw(st.sampled_from(["full", "last", "norm", "bias"]))
    micro = data.draw(st.integers(1, 40))
    batches = [(micro, micro), (micro * data.draw(st.integers(2, 5)), micro), (8, 8)]
    assert_same(graph, [(method, None)], batches, ["sgd", "adamw"], DTYPES[:2])


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "timm:tinynet_e"])
@pytest.mark.parametrize(
    "how",
    [
        {"inplace": True},
        {"first_step": True},
        {"inplace": True, "first_step": True},
        {"kernels": "onednn"},
        {"kernels": "layers", "first_step": True},
    ],
    ids=str,
)
def test_all_that_a_footprint_prices_is_priced_in_bulk(name, how):
    graph, ways = traced(name, 96), [("bias", None), ("mobiletl", 3), way("gradient-filter", options={"patch": 4})]
    batches = [(1, 1), (6, 6), (17, 17)] + ([] if how.get("inplace") else [(12, 4)])
    assert_same(graph, ways, batches, ["sgd", "adam"], DTYPES[2:], **how)


ATTENTION = {"timm:mobilenetv4_hybrid_medium"}  # which has no rule


@pytest.mark.parametrize("name", [*sorted({*SPREAD} - ATTENTION), "timm:resnetv2_50x1_bit", "timm:nfnet_l0"])
def test_every_family_has_candidates(name):
    """Every method that applies prices; one that does not says what the network lacks."""
    graph = traced(name, 96)
    ways = axes().ways(graph)
    assert {Way("full"), Way("last"), Way("bias")} <= set(ways)
    columns = price(graph, ways, [8]).columns
    assert (columns["peak_bytes"] > 0).all() and set(columns["way"]) == set(range(len(ways)))
    for method in METHODS.values():
        if lacking := method.why_not(graph):
            with pytest.raises(InputError, match=f"cannot train .*: {re.escape(lacking)}"):
                footprint(graph, method.name, 1 if method.takes_blocks else None)
