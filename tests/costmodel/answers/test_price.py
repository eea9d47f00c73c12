"""Prices in bulk are those of single footprints, exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SPREAD, traced
from random_networks import random_networks

from costmodel import ACCOUNTINGS, METHODS, OPTIMIZERS, InputError, block_count, footprint, trace
from costmodel.answers.price import price
from costmodel.step.timeline import CATEGORIES
from planner.choosing.candidates import axes

BATCHES = [(1, 1), (2, 2), (7, 7), (8, 8), (9, 9), (24, 3), (32, 16), (1000, 1000), (1001, 143)]
DTYPES = ["float32", "float16", "int8"]


def assert_same(graph, ways, batches=BATCHES, optimizers=tuple(OPTIMIZERS), dtypes=tuple(DTYPES), accounting="lean"):
    columns, places = price(graph, ways, batches, optimizers, dtypes, accounting)
    count = len(ways) * len(batches) * len(optimizers) * len(dtypes)
    assert {len(column) for column in columns.values()} == {count}
    seen = set()
    for row in range(count):
        value = {name: int(column[row]) for name, column in columns.items()}
        key = tuple(value[name] for name in ("way", "batches", "optimizer", "frozen_dtype"))
        seen.add(key)
        (method, blocks), (batch, micro) = ways[key[0]], batches[key[1]]
        single = footprint(
            graph, method, blocks, batch, optimizers[key[2]], accounting, micro_batch=micro, frozen_dtype=dtypes[key[3]]
        )
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
        if method.applies(graph) and not method.options
        for k in (sorted({1, 2, count}) if method.takes_blocks else (None,))
    ]


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "timm:tinynet_e"])
def test_bulk_is_single_for_every_method(name):
    graph = traced(name, 96)
    assert_same(graph, ways_of(graph), dtypes=["float32", "int8"], optimizers=["sgd", "adam"])


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
def test_bulk_is_single_in_every_book(accounting):
    graph = traced("torchvision:mobilenet_v3_small", 96)
    ways = [("full", None), ("bias", None), ("blocks", 2), ("mobiletl", 3)]
    assert_same(graph, ways, [(1, 1), (5, 5), (12, 4)], ["momentum", "adam"], ["float32"], accounting)


@settings(max_examples=40)
@given(random_networks(), st.data())
def test_bulk_is_single_on_random_networks(network, data):
    graph = trace(network.fresh(), network.resolution)
    method = data.draw(st.sampled_from(["full", "last", "norm", "bias"]))
    micro = data.draw(st.integers(1, 40))
    batches = [(micro, micro), (micro * data.draw(st.integers(2, 5)), micro), (8, 8)]
    assert_same(graph, [(method, None)], batches, ["sgd", "adamw"], ["float32", "float16"])


ATTENTION = {"timm:mobilenetv4_hybrid_medium"}  # which has no rule


@pytest.mark.parametrize("name", [*sorted({*SPREAD} - ATTENTION), "timm:resnetv2_50x1_bit", "timm:nfnet_l0"])
def test_every_family_has_candidates(name):
    """Every method that applies prices; one that does not says what the network lacks."""
    graph = traced(name, 96)
    ways = axes().ways(graph)
    assert {("full", None), ("last", None), ("bias", None)} <= set(ways)
    columns, _ = price(graph, ways, [(8, 8)])
    assert (columns["peak_bytes"] > 0).all() and set(columns["way"]) == set(range(len(ways)))
    for method in METHODS.values():
        if not method.applies(graph):
            with pytest.raises(InputError, match=r"needs|cannot train"):
                method(graph, 1 if method.takes_blocks else None)
