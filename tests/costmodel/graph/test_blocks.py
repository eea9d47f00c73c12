"""Blocks are found from the structure: the same ones that each library's own classes say."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import (
    BLOCKS,
    PLAIN_METHODS,
    BlockPlan,
    Planned,
    SqueezeExcite,
    block_modules,
    build,
    inside,
    plans,
    traced,
)
from networks import settings as every_setting
from torch import nn

from costmodel import METHODS, InputError, block_count, footprint, parts
from costmodel.graph.blocks import head_layers
from costmodel.tracing.tracer import trace


def test_known_number_of_blocks(name, graph):
    assert block_count(graph) == BLOCKS[name]


def test_blocks_are_the_librarys_own(name, graph):
    """Every block holds the layers of one block module, and only those."""
    modules = block_modules(name)
    if name == "timm:mobilenetv4_conv_small":
        assert len(modules) == 12
    cut = parts(graph)
    assert len(modules) == len(cut.blocks)
    for block, paths in zip(cut.blocks, modules, strict=True):
        expected = [layer.index for layer in graph.layers if inside(layer.module, paths)]
        assert expected == list(range(block.first, block.last + 1)), paths


def test_parts_cover_the_network_once(graph):
    cut = parts(graph)
    covered = [*cut.stem, *(i for block in cut.blocks for i in range(block.first, block.last + 1)), *cut.tail]
    assert sorted(covered) == list(range(len(graph.layers))) and len(set(covered)) == len(covered)
    head = graph.layers[cut.head]
    assert head.op == "linear" and head.parameters and cut.head in cut.tail
    assert not any(layer.parameters for layer in graph.layers[cut.head + 1 :])
    assert cut.where(graph.layers[0]) == "stem" and cut.where(head) == "head"
    for block in cut.blocks:
        assert cut.where(graph.layers[block.first]) == cut.where(graph.layers[block.last]) == f"block {block.index}"


def test_closing_norm_is_the_last_of_its_block(name, graph):
    """Of each block's norm modules, in the order they were defined, the last one follows the projection."""
    for block in parts(graph).blocks:
        norms = [i for i in range(block.first, block.last + 1) if graph.layers[i].op == "batch_norm"]
        assert block.closing_norms == {norms[-1]}
        assert not graph.consumers[graph.layers[norms[-1]].output.id][0].op.startswith("relu")


def test_squeeze_layers_are_those_of_the_squeeze_modules(name, graph):
    """Named `se` or `block.2`-like by the libraries, always with two convolutions on pooled, 1x1 maps."""
    for block in parts(graph).blocks:
        inner = [graph.layers[i] for i in range(block.first, block.last + 1)]
        on_one_pixel = {
            layer.index for layer in inner if layer.output.shape[2:] == (1, 1) and layer.input.shape[2:] == (1, 1)
        }
        assert on_one_pixel <= block.squeeze
        assert all(graph.layers[i].output.shape[2:] == (1, 1) for i in block.squeeze)


# --- networks put together at random ----------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(plans(), min_size=1, max_size=5), st.booleans())
@example([BlockPlan(4, None, skip=False), BlockPlan(4, None, skip=False)], False)
@example([BlockPlan(4, 1, squeeze=True), BlockPlan(4, 6, early_depthwise=True)], True)
def test_blocks_of_a_random_stack(stack, tail):
    network = Planned(stack, tail=tail)
    gates = tuple(path for path, module in network.named_modules() if isinstance(module, SqueezeExcite))
    graph = trace(network, 32)
    cut = parts(graph)
    assert len(cut.blocks) == len(stack)
    for i, block in enumerate(cut.blocks):
        layers = [layer for layer in graph.layers if inside(layer.module, (f"blocks.{i}",))]
        assert [layer.index for layer in layers] == list(range(block.first, block.last + 1)), stack[i]
        # The product that applies the gate belongs to the main path.
        assert block.squeeze == {layer.index for layer in layers if inside(layer.module, gates) and layer.op != "mul"}
        norms = [layer.index for layer in layers if layer.op == "batch_norm"]
        assert block.closing_norms == {norms[-1]}


def test_plain_convolution_between_two_blocks_goes_with_the_later_one():
    plain = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    network = Planned([BlockPlan(4, 2), BlockPlan(4, 2)])
    network.blocks.insert(1, plain)
    graph = trace(network, 32)
    first, second = parts(graph).blocks
    between = [layer.index for layer in graph.layers if inside(layer.module, ("blocks.1",))]
    assert first.last < between[0] and second.first == between[0] and second.last > between[-1]


# --- networks without inverted residual blocks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("torchvision:resnet18", "BasicBlock"),
        ("timm:resnet10t", "BasicBlock"),
        ("torchvision:regnet_x_400mf", "ResBottleneckBlock"),
        ("timm:regnety_002", "Bottleneck"),
    ],
)
def test_residual_blocks_are_the_fallback(name, classes):
    modules = [path for path, module in build(name, "cpu").named_modules() if type(module).__name__ == classes]
    graph = traced(name)
    cut = parts(graph)
    assert len(cut.blocks) == len(modules) > 1
    for block, path in zip(cut.blocks, modules, strict=True):
        expected = [layer.index for layer in graph.layers if inside(layer.module, (path,))]
        assert expected == list(range(block.first, block.last + 1))
        assert block.kind == "residual"
    # What blocks and mobiletl say of them is priced like any other.
    for method in ("blocks", "mobiletl"):
        assert 0 < footprint(graph, method, 1).saved_bytes < footprint(graph, method, len(modules)).saved_bytes


def test_known_number_of_residual_blocks():
    assert block_count(traced("torchvision:resnet18")) == 8  # 2 in each of 4 stages
    assert block_count(trace("torchvision:resnet50")) == 16  # 3 + 4 + 6 + 3


def test_network_without_blocks():
    graph = trace("torchvision:vgg11_bn")
    cut = parts(graph)
    assert cut.blocks == () and len(cut.stem) == 0 and len(cut.tail) == len(graph.layers)
    without_depth = [name for name in PLAIN_METHODS if not METHODS[name].takes_blocks]
    assert without_depth == ["full", "last", "norm", "bias"]
    for name in without_depth:
        assert footprint(graph, name).peak_bytes > 0
    for name in ("blocks", "mobiletl"):
        for blocks in (None, 1):
            with pytest.raises(InputError) as error:
                footprint(graph, name, blocks)
            text = str(error.value)
            assert "vgg11_bn" in text and f"'{name}'" in text and "\n" not in text
            assert all(other in text for other in without_depth)


def test_too_many_blocks(name, graph):
    for method, method_entry in METHODS.items():
        if not method_entry.takes_blocks:
            with pytest.raises(InputError, match="takes no number of blocks"):
                footprint(graph, method, 1)
            continue
        for blocks in (BLOCKS[name] + 1, 0, -1):
            with pytest.raises(InputError, match=rf"has {BLOCKS[name]} blocks"):
                footprint(graph, method, blocks)
        for blocks in (2.0, True, "3"):
            with pytest.raises(InputError, match="blocks must be a whole number of 1 or more, not"):
                footprint(graph, method, blocks)
        with pytest.raises(InputError, match=rf"from 1 to {BLOCKS[name]}"):
            footprint(graph, method)


def test_every_setting_is_accepted(graph):
    for method, depth in every_setting(graph, [1, block_count(graph)]):
        assert footprint(graph, method, depth).blocks == depth


def test_blocks_do_not_depend_on_the_resolution(name, graph):
    """At 32 x 32 the last maps have one pixel each, so that a gate is as large as what it scales."""
    small, large = parts(traced(name, 32)), parts(graph)
    assert small == large


# --- networks in a row ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm:mobilenetv1_100", "timm:lcnet_050"])
@pytest.mark.parametrize("pixels", [32, 224])
def test_depthwise_separable_units_are_blocks(name, pixels):
    """MobileNetV1 has 13 of them (Howard et al., table 1), and LCNet as many (Cui et al., table 1)."""
    graph = traced(name, pixels)
    modules = [path for path, module in build(name, "meta").named_modules() if "SeparableConv" in type(module).__name__]
    cut = parts(graph)
    assert len(cut.blocks) == len(modules) == 13
    for block, path in zip(cut.blocks, modules, strict=True):
        own = [layer.index for layer in graph.layers if inside(layer.module, (path,))]
        assert own == list(range(block.first, block.last + 1))
        assert block.closing_norms == {max(i for i in own if graph.layers[i].op == "batch_norm")}
    costs = [footprint(graph, "mobiletl", depth).saved_bytes for depth in (1, 5, 13)]
    assert costs == sorted(costs) and footprint(graph, "blocks", 5).saved_bytes > costs[1]


@pytest.mark.parametrize(
    ("model", "resolution", "heads"),
    [
        ("torchvision:lraspp_mobilenet_v3_large", 64, {"classifier.low_classifier", "classifier.high_classifier"}),
        ("torchvision:fcos_resnet50_fpn", 64,
         {f"head.{name}" for name in ("classification_head.cls_logits", "regression_head.bbox_reg",
                                      "regression_head.bbox_ctrness")}),
        ("timm:deit_tiny_distilled_patch16_224", 224, {"head", "head_dist"}), ("timm:lcnet_050", 64, {"classifier"}),
    ],
)  # fmt: skip
def test_the_heads_of_a_network_with_several_results(model, resolution, heads):
    graph = trace(model, resolution)
    found = head_layers(graph)
    assert {graph.layers[index].module for index in found} == heads
    trained = {name.rpartition(".")[0] for name in footprint(graph, "last").assignment.trained}
    assert trained == heads
