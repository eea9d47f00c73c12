"""Elastic super-networks: their names against the published ones, their sub-networks, and the prices of these."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from costmodel import BlockPrices, InputError, Step, apply, best_schedule, build, footprint, supernetwork, trace, way
from costmodel.graph.elastic import Subnetwork, split_name
from costmodel.schedules.block_prices import LEVERS
from costmodel.zoo.elastic import ELASTIC, MOBILENET_V3, PROXYLESS
from costmodel.zoo.once_for_all import Static, SuperNetwork

TINY = f"{ROOT / 'tests' / 'support' / 'tiny_elastic.py'}:make"
# Names and shapes in their order, of ofa 0.1.0.post202307202001 with 1000 classes (benchmarks/once_for_all.py compares
# with that package, and what both compute).
PUBLISHED = {
    ("ofa_mobilenet_v3", "1"): ("4ce117110af2b110", 7_678_880),
    ("ofa_mobilenet_v3", "1.2"): ("9e4c8a2265dbbc13", 10_715_752),
    ("ofa_proxyless", "1"): ("62dc40f31181100b", 5_118_162),
    ("ofa_proxyless", "1.3"): ("06457729d157c453", 7_956_882),
}


@pytest.mark.parametrize(("name", "width"), PUBLISHED)
def test_state_dict_is_that_of_the_published_checkpoints(name, width):
    network = supernetwork(f"zoo:{name}@w={width}", device="meta")
    text = "\n".join(f"{n} {'x'.join(map(str, value.shape))}" for n, value in network.state_dict().items())
    count = sum(parameter.numel() for parameter in network.parameters())
    assert (hashlib.sha256(text.encode()).hexdigest()[:16], count) == PUBLISHED[name, width]


@pytest.fixture(scope="module", params=["batch", "group"])
def network(request):
    torch.manual_seed(0)
    made = SuperNetwork(replace(PROXYLESS, width=0.25, norm=request.param), 5)
    with torch.no_grad():  # every part of every kernel's transformation should matter
        for value in made.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return made


def test_sub_networks_taken_out_compute_the_same(network):
    drawn, images = random.Random(1), torch.randn(2, 3, 32, 32)
    for _ in range(4):
        network.active = chosen = network.design.draw(drawn)
        own = network.eval().extract(chosen)
        with torch.no_grad():
            assert torch.allclose(own(images), network(images), rtol=1e-5, atol=1e-5)


def test_smaller_kernels_and_fewer_channels_by_their_definition(network):
    """The middle of the kernel, as a vector, times the matrix: 7 to 5, then 5 to 3; the first channels of all."""
    shared = network.state_dict()
    path = "blocks.1.mobile_inverted_conv.depth_conv.conv."
    large = shared[path + "conv.weight"]
    five = torch.einsum("cj,ij->ci", large[:, 0, 1:6, 1:6].flatten(1), shared[path + "7to5_matrix"]).reshape(-1, 5, 5)
    three = torch.einsum("cj,ij->ci", five[:, 1:4, 1:4].flatten(1), shared[path + "5to3_matrix"]).reshape(-1, 3, 3)
    for kernel, expected in ((7, large[:, 0]), (5, five), (3, three)):
        own = network.extract(network.design.subnetwork((2,), (kernel,), (4,))).state_dict()
        found = own["blocks.1.mobile_inverted_conv.depth_conv.conv.weight"]
        assert torch.allclose(found[:, 0], expected[: len(found)], atol=1e-6)
        # The first block's input has 8 channels (16 at width 0.25), and 4 times these inside.
        assert len(found) == 32
    projection = own["blocks.1.mobile_inverted_conv.point_linear.conv.weight"]
    same = shared["blocks.1.mobile_inverted_conv.point_linear.conv.conv.weight"]
    assert torch.equal(projection, same[:, :32])


def test_training_reaches_the_shared_weights(network):
    network.active = network.design.smallest
    network.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    shared = dict(network.named_parameters())
    assert shared["blocks.1.mobile_inverted_conv.depth_conv.conv.5to3_matrix"].grad is not None
    assert shared["blocks.3.mobile_inverted_conv.point_linear.conv.conv.weight"].grad is None  # the third is not there
    network.zero_grad(set_to_none=True)


def test_statistics_of_a_sub_network_are_noted_in_the_shared_ones():
    network = SuperNetwork(replace(PROXYLESS, width=0.25), 5)
    network.active = network.design.smallest
    before = network.get_buffer("blocks.1.mobile_inverted_conv.depth_conv.bn.bn.running_mean").clone()
    network.train()(torch.randn(4, 3, 32, 32))
    after = network.get_buffer("blocks.1.mobile_inverted_conv.depth_conv.bn.bn.running_mean")
    assert not torch.equal(before[:24], after[:24]) and torch.equal(before[24:], after[24:])  # expansion 3 of 8


def test_names_mean_sub_networks():
    graph = trace("zoo:ofa_mobilenet_v3@d=2-3-2-2-4,k=5,e=3", 64, 7)
    assert graph.model == "zoo:ofa_mobilenet_v3@d=2-3-2-2-4,k=5,e=3" and graph.classes == 7
    own = Static(MOBILENET_V3, MOBILENET_V3.read("d=2-3-2-2-4,k=5,e=3")[1], 7)
    assert {n: tuple(p.shape) for n, p in own.named_parameters()} == {n: t.shape for n, t in graph.parameters.items()}
    largest = build("zoo:ofa_proxyless@norm=group", 7, "meta")
    assert isinstance(largest, Static) and len(largest.blocks) == 22  # the fixed one, 5 x 4, and the last
    assert supernetwork(TINY, 3).num_classes == 3
    assert len(build(f"{TINY}@d=2,k=3,e=3").blocks) == 1 + 2 + 2 + 1


def test_lists_may_be_those_of_the_whole_super_network():
    every = [3, 5, 7, 3] * 5
    _, chosen = MOBILENET_V3.read(f"d=2-3-4-2-3,k={'-'.join(map(str, every))},e=6")
    assert chosen.kernels == (3, 5, 3, 5, 7, 3, 5, 7, 3, 3, 5, 3, 5, 7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("d=5", "d has 5; allowed: 2, 3, 4"),
        ("d=2-2", "d has 2 numbers, not 5"),
        ("k=3-5", "k has 2 numbers, not 20"),
        ("e=2", "e has 2; allowed: 3, 4, 6"),
        ("r=224", "unknown part of a sub-network 'r'"),
        ("d=2,d=3", "d= must stand once"),
        ("w=0", "must be above 0"),
        ("w=wide", "write such as w=1.2"),
        ("norm=layer", "unknown norm"),
    ],
)
def test_what_means_no_sub_network_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        MOBILENET_V3.read(text)


def test_a_network_that_is_not_elastic_has_no_sub_networks():
    with pytest.raises(InputError, match="not an elastic super-network"):
        build("zoo:mcunet_5fps@d=2")
    with pytest.raises(InputError, match="not an elastic super-network"):
        supernetwork("zoo:mcunet_5fps")


@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_any_text_is_read_or_refused(text):
    for part in (text, f"d={text}", f"k={text},e=3", f"w={text}"):
        try:
            design, chosen = PROXYLESS.read(part)
        except InputError:
            continue
        assert design.read(chosen.text) == (design, chosen)


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_sub_networks_are_read_back(seed):
    chosen = MOBILENET_V3.draw(random.Random(seed))
    assert MOBILENET_V3.read(chosen.text)[1] == chosen
    assert split_name(f"zoo:net@{chosen.text}") == ("zoo:net", chosen.text)


def test_a_path_with_an_at_sign_is_no_sub_network():
    assert split_name("a@b/c.py:make") == ("a@b/c.py:make", None)


# --- prices -----------------------------------------------------------------------------------------------------------


CASES = {
    "TinyTL, the last blocks differ": ("zoo:ofa_proxyless@norm=group,w=0.35", way("tinytl-lb"), "sgd", "lean"),
    "a depth, two temporaries in the update": ("zoo:ofa_mobilenet_v3", way("mobiletl", 6), "adam", "lean"),
    "stock books, everything trains": ("zoo:ofa_mobilenet_v3", way("full"), "momentum", "eager"),
    "smaller passes": ("zoo:ofa_proxyless", way("bias"), "adam", "lean"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_prices_are_those_of_a_trace(case):
    name, trained, optimizer, accounting = case
    design = supernetwork(name, device="meta").design

    def graph_of(chosen: Subnetwork):
        return trace(name + ("," if "@" in name else "@") + chosen.text, 64, 10)

    step = Step(graph_of(design.smallest), trained, optimizer=optimizer, accounting=accounting)
    prices = BlockPrices(design, step, graph_of)
    drawn = random.Random(3)
    known = [design.draw(drawn) for _ in range(5)]
    prices.price(known)
    # Others, which are made of blocks that the first ones brought, at least in part.
    chosen = [design.draw(drawn) for _ in range(2)]
    found = prices.price(chosen)
    for number, one in enumerate(chosen):
        own = replace(step, graph=graph_of(one))
        plain, best = footprint(own), best_schedule(own, allow=LEVERS)
        assert plain.saved_bytes == found.saved_bytes[number] and plain.peak_bytes == found.peak_bytes[number]
        assert plain.forward_flops == found.forward_flops[number]
        assert plain.backward_flops == found.backward_flops[number]
        assert plain.total_flops == found.total_flops[number]
        assert plain.trained_parameters == found.trained_parameters[number]
        assert footprint(replace(own, schedule=best)).peak_bytes == found.least_bytes[number]
        assert found.schedules[found.schedule[number]] == best


def test_books_without_a_step_of_their_own_are_refused():
    step = Step(trace(TINY, 16, 3), way("tinytl-lb"), accounting="tinytl")
    with pytest.raises(InputError, match="cannot be priced block by block"):
        BlockPrices(supernetwork(TINY).design, step, lambda chosen: step.graph)


def test_a_sub_network_trains_like_any_network():
    network = apply(build("zoo:ofa_proxyless@norm=group,w=0.35,d=2,k=3,e=3", 4), "tinytl-lb", resolution=64)
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    trained = {name for name, each in network.named_parameters() if each.grad is not None}
    assert trained and all("lite_residual" in n or n.endswith("bias") or n.startswith("classifier") for n in trained)


def test_every_elastic_network_of_the_zoo_is_checked():
    assert {name for name, _ in PUBLISHED} == ELASTIC.keys()
