"""A trace as a file: what is loaded is what was saved, and a damaged or hostile file is one clear error."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import BLOCKS, traced
from networks import settings as every_setting
from random_networks import random_networks
from torch import nn

from costmodel import ACCOUNTINGS, InputError, LayerGraph, ModelError, footprint, trace
from costmodel.graph.store import FORMAT, encode, pack, unpack
from costmodel.graph.store import decode as decode_fields


def decode(text: str) -> LayerGraph:
    return LayerGraph(**decode_fields(text))


def contents(value: Any, seen: dict[int, int]) -> Any:
    """Return every field of a graph, types included; an object that was met before is told by when that was."""
    if dataclasses.is_dataclass(value):
        if id(value) in seen:
            return ("again", seen[id(value)])
        seen[id(value)] = len(seen)
        # The parts of a rewritten graph are found by its method; no file holds them.
        names = [field.name for field in dataclasses.fields(value) if field.name != "known_parts"]
        return {name: contents(getattr(value, name), seen) for name in names}
    if isinstance(value, dict):
        return "dict", [(contents(key, seen), contents(item, seen)) for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        return type(value).__name__, [contents(item, seen) for item in value]
    return type(value).__name__, repr(value)


def same(one: LayerGraph, other: LayerGraph) -> bool:
    """Return whether two graphs are the same value, down to which of their objects are one."""
    return contents(one, {}) == contents(other, {})


# --- round trip -------------------------------------------------------------------------------------------------------


def test_a_loaded_graph_is_the_saved_one(graph, tmp_path):
    path = tmp_path / "graph.trace"
    graph.save(path)
    assert same(LayerGraph.load(path), graph)
    assert path.stat().st_size < 20_000
    assert [file.name for file in tmp_path.iterdir()] == ["graph.trace"]


@settings(max_examples=40)
@given(random_networks())
def test_any_network_survives(network):
    graph = trace(network.module, network.resolution)
    assert same(decode(unpack(pack(encode(graph)))), graph)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:mobilenetv4_conv_small"])
def test_a_loaded_graph_costs_the_same(name):
    graph = traced(name)
    again = decode(encode(graph))
    for method, blocks in every_setting(graph, (1, 5, BLOCKS[name])):
        for books in ACCOUNTINGS:
            one, other = (footprint(g, method, blocks, accounting=books) for g in (graph, again))
            assert one.to_dict() == other.to_dict() and one.moments == other.moments, (method, blocks, books)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "zoo:proxylessnas_mobile"])
@pytest.mark.parametrize("method", ["tinytl-lb", "mobiletl"])
def test_a_rewritten_graph_survives_too(name, method):
    graph = footprint(traced(name), method, 3 if method == "mobiletl" else None).graph
    assert same(decode(encode(graph)), graph)


def test_arguments_of_every_kind_survive():
    class Slices(nn.Module):
        def forward(self, x):
            """Return a sum that is made with arguments of many kinds."""
            y = x[..., 1:, :-1] + x.new_ones(1)
            y = nn.functional.interpolate(y, size=[3, 4], mode="nearest", antialias=False)
            return y.permute([0, 2, 3, 1]).reshape(y.shape[0], -1).clamp(min=float("-inf")).to(dtype=x.dtype).sum(1)

    graph = trace(Slices(), 5)
    attributes = [value for layer in graph.layers for value in layer.attributes.values()]
    assert (Ellipsis, slice(1, None), slice(None, -1)) in attributes and float("-inf") in attributes
    assert [3, 4] in attributes
    assert same(decode(encode(graph)), graph)


def test_an_argument_that_is_no_plain_value_is_an_error(tmp_path):
    graph = traced("torchvision:mobilenet_v3_small")
    odd = dataclasses.replace(graph.layers[0], attributes={"stride": object()})
    graph = dataclasses.replace(graph, layers=(odd, *graph.layers[1:]))
    with pytest.raises(InputError, match=r"conv2d in features\.0\.0 has an argument that cannot be saved: a object"):
        graph.save(tmp_path / "graph.trace")
    assert not list(tmp_path.iterdir())


# --- bad files --------------------------------------------------------------------------------------------------------

TINY = trace(
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2)), 4
)
FILE = pack(encode(TINY))


def load_bytes(data: bytes) -> LayerGraph:
    return decode(unpack(data))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not a trace"),
        (b"\x80\x04pickle", "is not a trace"),
        (FILE.replace(b"trace %d\n" % FORMAT, b"trace 99\n", 1), f"of format '99', but this version reads {FORMAT}"),
        (FILE[:-1], "is damaged"),
        (FILE[:200], "is damaged"),
        (FILE + b"x", "is damaged"),
        (pack("{"), "is damaged"),
        (pack("[" * 100_000), "is damaged"),
        (pack("[[]]"), "is damaged: it does not hold that its rows have the right fields"),
        (pack(" " * 2**27), "is damaged"),  # 20 kB that unpack to 128 MiB
    ],
    ids=range(10),
)
def test_a_bad_file_is_one_clear_error(data, says, tmp_path):
    path = tmp_path / "bad.trace"
    path.write_bytes(data)
    with pytest.raises(InputError, match=says) as error:
        LayerGraph.load(path)
    message = str(error.value)
    assert message.startswith(repr(str(path))) and "trace the network again" in message and "\n" not in message


@pytest.mark.parametrize("place", ["none.trace", "", "no\0name"])
def test_a_file_that_cannot_be_read_or_written(place, tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        LayerGraph.load(tmp_path / place)
    if place != "none.trace":
        with pytest.raises(InputError, match="cannot write"):
            TINY.save(tmp_path / place)
    with pytest.raises(InputError, match="cannot write"):
        TINY.save(tmp_path / "no folder" / "graph.trace")
    assert not list(tmp_path.iterdir())


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_no_damaged_byte_passes(position, change):
    data = bytearray(FILE)
    data[position] ^= change
    with pytest.raises(InputError):
        load_bytes(bytes(data))


NUMBERS = st.sampled_from((0, 1, 2, 3, 4, 5, 97, 194, -1, 2**62, 2**64, 10**400))
WORDS = st.sampled_from(
    ("", "add", "conv2d", "weight", "int8", "float32", "activation", "constant", "derived", "4.bias")
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(("list", "slice", "dict", "x")), inner),
    max_leaves=5,
)
DOCUMENT = json.loads(encode(TINY))


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the path of every value in a JSON document."""
    inner = enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for i, item in inner for place in places(item, (*path, i)))]


PLACES = places(DOCUMENT)[1:]


def another(old: Any, data: st.DataObject) -> Any:
    """Draw something in place of a value, mostly of its own kind, so that much of it passes the first checks."""
    if data.draw(st.integers(0, 4)) == 0:
        return data.draw(JSON)
    if isinstance(old, list):
        start = data.draw(st.integers(0, len(old)))
        return data.draw(st.sampled_from((old[:start] + old[start + 1 :], old[:start] + old[start - 1 :], old[::-1])))
    return data.draw({bool: st.booleans(), int: NUMBERS, str: WORDS, float: st.floats()}.get(type(old), JSON))


@settings(max_examples=200)
@given(st.data())
def test_a_forged_document_is_refused_or_is_a_graph(data):
    document = copy.deepcopy(DOCUMENT)
    for _ in range(data.draw(st.integers(1, 2))):
        where, path = document, data.draw(st.sampled_from(PLACES))
        try:
            for step in path[:-1]:
                where = where[step]
            where[path[-1]] = another(where[path[-1]], data)
        except (LookupError, TypeError):  # the first change took the place of the second away
            continue
    try:
        graph = decode(json.dumps(document))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert same(decode(encode(graph)), graph)
        assert graph.reaches_output <= set(range(len(graph.layers))) and graph.digraph and graph.consumers


@given(JSON)
def test_any_json_is_refused(document):
    with pytest.raises(InputError, match="is damaged"):
        decode(json.dumps(document))


# --- writing at the same time -----------------------------------------------------------------------------------------

WRITER = """
import sys
from costmodel import LayerGraph
graph = LayerGraph.load(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(15):
    graph.save(sys.argv[2])
"""


def test_writers_at_the_same_time_never_tear_a_file(tmp_path):
    graphs = [traced(name) for name in ("torchvision:mobilenet_v3_small", "timm:tinynet_e")]
    shared = tmp_path / "shared" / "graph.trace"
    shared.parent.mkdir()
    writers = []
    for i, graph in enumerate(graphs):
        graph.save(tmp_path / f"{i}.trace")
        writers.append(subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path / f"{i}.trace", shared], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        ))  # fmt: skip
    TINY.save(shared)
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.close()
    found = set()
    while any(writer.poll() is None for writer in writers):
        found.add(LayerGraph.load(shared).model)
    assert [writer.returncode for writer in writers] == [0, 0]
    names = {graph.model for graph in graphs}
    assert LayerGraph.load(shared).model in names and found <= names | {TINY.model}
    assert [path.name for path in shared.parent.iterdir()] == ["graph.trace"]


def test_a_layer_that_lacks_an_argument_is_named(tmp_path):
    text = encode(traced("torchvision:mobilenet_v3_small", 64)).replace('[["input",', '[["inptu",', 30)
    (tmp_path / "odd.trace").write_bytes(pack(text))
    with pytest.raises(ModelError, match=r"\(conv2d\) lacks the argument 'input': its trace is damaged"):
        footprint(LayerGraph.load(tmp_path / "odd.trace"), "last")
