"""The `lean` books: the least there is on small networks, and one block by hand, tensor by tensor."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import BlockPlan, Planned, inside, plans
from torch import nn
from torch.nn import functional as F

from costmodel import block_count, footprint, trace
from costmodel.rules.facts import Dense, Private

# --- against an exhaustive search -------------------------------------------------------------------------------------


def least_bytes(answer) -> int:
    """Return the fewest bytes over all combinations of alternatives, by trying each: nothing of the ledger is used."""
    graph, batch = answer.graph, answer.batch
    resident = {tensor.storage.id for tensor in (*graph.parameters.values(), *graph.buffers.values())}

    def content(index: int, item) -> tuple | None:
        """Return (what it is, bytes of it at this batch); None for what is there in any case."""
        if isinstance(item, Private):
            size = -(-item.elements * item.bits * (batch if item.batched else 1) // 8)
            return ((index, item.label), size) if size else None
        tensor = item.tensor
        if tensor.storage.id in resident:
            return None
        if tensor.version < tensor.storage.writes:  # overwritten in place: the value needs memory of its own
            return (("value", tensor.id), tensor.elements * 4 * batch)
        return (("storage", tensor.storage.id), tensor.storage.elements * 4 * batch)

    always: dict = {}
    choices: dict[frozenset, None] = {}
    for index, roles in answer.wanted.items():
        layer = graph.layers[index]
        for role in roles:
            alternatives = answer.facts[index].needs[role]
            storage = answer.assignment.kept_inputs.get(index)
            if storage is not None:
                mask = (Private(storage.kind, layer.inputs[role].elements, storage.bits),)
                alternatives = (mask, *alternatives) if storage.exact else (mask,)
            # A value that another call overwrites is no choice: only the call that overwrites it can clone it before.
            lasting = [
                alternative
                for alternative in alternatives
                if not any(
                    isinstance(item, Dense)
                    and item.tensor.version < item.tensor.storage.writes
                    and not (layer.inplace and item.tensor.id == layer.input.id)
                    for item in alternative
                )
            ]
            options = [
                tuple(kept for item in alternative if (kept := content(index, item)))
                for alternative in lasting or alternatives
            ]
            if any(not option for option in options):
                continue
            if len(options) == 1:
                always.update(options[0])
            else:
                choices[frozenset(options)] = None
    # What is kept in any case costs nothing more; a choice that it settles is none.
    open_choices = [options for options in choices if not any(all(k in always for k, _ in o) for o in options)]
    best = None
    for combination in itertools.product(*open_choices):
        kept = dict(always)
        for option in combination:
            kept.update(option)
        best = min(sum(kept.values()), best if best is not None else sum(kept.values()))
    return best


class Mixed(nn.Module):
    """A chain of layers of all kinds, each with its own habits of keeping, that a list of words describes."""

    def __init__(self, words: list[str], inplace: bool):
        super().__init__()
        self.words, self.inplace = words, inplace
        self.convolutions = nn.ModuleDict()
        for i, word in enumerate(words):
            if word in ("conv", "depthwise"):
                self.convolutions[str(i)] = nn.Conv2d(4, 4, 3, padding=1, groups=4 if word == "depthwise" else 1)
            elif word == "norm":
                self.convolutions[str(i)] = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = x.repeat_interleave(2, 1)[:, :4] if x.shape[1] == 2 else x[:, :4]
        skip = x
        for i, word in enumerate(self.words):
            if str(i) in self.convolutions:
                x = self.convolutions[str(i)](x)
            elif word == "skip":
                skip, x = x + skip, x + skip
            elif word == "gate":
                x = x * F.adaptive_avg_pool2d(x, 1).sigmoid()
            elif word == "fork":
                x = x.sigmoid() + F.relu(x)
            elif word == "pool":
                x = F.max_pool2d(x, 3, 1, 1)
            elif word in ("sigmoid", "tanh"):
                x = getattr(x, word)()
            elif word == "dropout":
                x = F.dropout(x, 0.3)
            else:
                x = getattr(F, word)(x, inplace=self.inplace)
        return self.head(x.mean((2, 3)))


WORDS = (
    "conv", "depthwise", "norm", "skip", "gate", "fork", "pool", "sigmoid", "tanh", "dropout",
    "relu", "relu6", "hardswish", "silu", "hardsigmoid", "leaky_relu",
)  # fmt: skip


class Stem(nn.Module):
    """Four channels out of three."""

    def __init__(self, words: list[str], inplace: bool):
        super().__init__()
        self.stem, self.rest = nn.Conv2d(3, 4, 1), Mixed(words, inplace)

    def forward(self, x):
        return self.rest(self.stem(x))


@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from(["full", "bias", "norm", "last"]),
    st.integers(1, 3),
)
@example(["relu", "sigmoid"], False, "full", 1)  # the ReLU's mask is cheapest, but its output serves both
@example(["fork", "tanh"], False, "full", 1)
def test_lean_is_the_least_on_random_chains(words, inplace, method, batch):
    """Chains with skip connections, gates and forks."""
    answer = footprint(trace(Stem(words, inplace), 5), method, batch=batch)
    assert answer.saved_bytes == least_bytes(answer)


@settings(max_examples=50)
@given(st.lists(plans(), min_size=1, max_size=2), st.sampled_from(["blocks", "mobiletl", "full"]), st.data())
def test_lean_is_the_least_on_random_blocks(stack, method, data):
    graph = trace(Planned(stack, tail=False), 16)
    depth = None if method == "full" else data.draw(st.integers(1, block_count(graph)))
    answer = footprint(graph, method, depth, batch=3)
    assert answer.saved_bytes == least_bytes(answer)


# --- sharing ----------------------------------------------------------------------------------------------------------


def test_tensor_that_two_layers_need_is_stored_once():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head((self.a(x) + self.b(x)).mean((2, 3)))

    answer = footprint(trace(Two(), 6), "full", batch=2)
    # The image, 2 x 3 x 6 x 6 float32, once; the head's input, 2 x 4.
    assert answer.saved_bytes == 4 * (2 * 3 * 36) + 4 * (2 * 4)
    image = answer.to_frame("tensor").query("tensor.str.startswith('a:')").iloc[0]
    assert image["layers"] == 2 and "a: weight" in image["needed_for"] and "b: weight" in image["needed_for"]


@pytest.mark.parametrize(
    ("following", "kept"),
    [
        # The next convolution keeps the ReLU's output (2 x 4 x 6 x 6 float32), whose sign is the mask.
        (nn.Conv2d(4, 4, 1, bias=False), 4 * 2 * 4 * 36),
        # A mean needs nothing, so that the ReLU keeps one bit for each of the 288 elements.
        (nn.Identity(), 288 // 8),
    ],
    ids=["convolution", "mean"],
)
def test_relu_keeps_a_mask_only_if_nothing_keeps_its_output(following, kept):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.relu, self.following = nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), following
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.following(self.relu(self.stem(x))).mean((2, 3)))

    answer = footprint(trace(Net(), 6), "full", batch=2)
    image, head_input = 4 * 2 * 3 * 36, 4 * 2 * 4
    assert answer.saved_bytes == image + kept + head_input


def test_in_place_layer_does_not_keep_what_it_overwrote():
    """In place or not, lean keeps the same: a hard-swish needs its input, which an in-place one has to copy first."""
    sizes = set()
    for inplace in (False, True):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish(inplace), nn.Conv2d(4, 2, 1), nn.Flatten())
        sizes.add(footprint(trace(net, 6), "full", batch=2).saved_bytes)
    # image 2 x 3 x 36, hard-swish's input 2 x 4 x 36, the second convolution's input 2 x 4 x 36
    assert sizes == {4 * (216 + 288 + 288)}


# --- one block by hand ------------------------------------------------------------------------------------------------

CHANNELS, PIXELS = 16, 8 * 8  # the stem halves 16 x 16 images


def block_tensors(activation: str, squeeze: bool, method: str) -> dict[str, float]:
    """Return what one expansion-6 block keeps per image, in units of channels x pixels, by layer and what it is.

    Norms' statistics are left out here; the vectors of a squeeze-excite branch as well: both have their own tests.
    """
    plan = BlockPlan(CHANNELS, 6, squeeze=squeeze, activation=activation)
    graph = trace(Planned([plan], stem=CHANNELS), 16)
    batch = 4
    answer = footprint(graph, method, 1, batch=batch)
    rows = {}
    for saved in answer.books.saved.values():
        layer = graph.layers[min(saved.uses)]
        if not inside(layer.module, ("blocks.0",)) or saved.what == "statistics":
            continue
        size = saved.bytes(batch) / (4 * batch * CHANNELS * PIXELS)
        if saved.elements * 4 > CHANNELS:  # maps; vectors have at most 6 x 16 elements
            rows[f"{layer.name.removeprefix('blocks.0.body.')} {saved.what}"] = size
    return {name: size for name, size in rows.items() if size >= 6 / 32}


def fallen(less: dict[str, float], more: dict[str, float]) -> float:
    return 1 - sum(less.values()) / sum(more.values())


# The block's layers: 0 expansion, 1 norm, 2 activation, 3 depthwise, 4 norm, 5 activation, [6 squeeze-excite], then
# projection and norm (6, 7, or 7, 8). A map is named after the first layer that keeps it: an activation's output is
# the input of the convolution behind it.


def test_mobilenetv2_block_by_hand():
    """ReLU6. Its derivative is read from the output, which the next convolution keeps: no mask in either method."""
    blocks, mobiletl = (block_tensors("relu6", False, method) for method in ("blocks", "mobiletl"))
    assert blocks == {
        "0 input": 1,  # of the expansion
        "1 input": 6,  # of the first norm
        "2 output": 6,  # = input of the depthwise convolution
        "4 input": 6,  # of the second norm
        "5 output": 6,  # = input of the projection
        "7 input": 1,  # of the norm behind the projection
    }
    assert mobiletl == {"0 input": 1, "2 output": 6, "5 output": 6, "7 input": 1}
    # 26 -> 14: the inputs of both inner norms fall, 12 of 26 or 46.2 % (the paper: 46.3 %, with 2 bits per element for
    # a vanilla ReLU6 and 1 for MobileTL's: 26.75 -> 14.375).
    assert sum(blocks.values()) == 26 and sum(mobiletl.values()) == 14
    with_masks = (14 + 2 * 6 / 32) / (26 + 2 * 6 * 2 / 32)
    assert fallen(mobiletl, blocks) == pytest.approx(0.462, abs=5e-4)
    assert 1 - with_masks == pytest.approx(0.463, abs=5e-4)


def test_mobilenetv3_block_by_hand():
    """Hard-swish needs its input, a gate needs the map that it scales; MobileTL keeps one bit per element instead."""
    blocks, mobiletl = (block_tensors("hardswish", True, method) for method in ("blocks", "mobiletl"))
    assert blocks == {
        "0 input": 1,  # of the expansion
        "1 input": 6,  # of the first norm
        "2 input": 6,  # of the first hard-swish
        "3 input": 6,  # of the depthwise convolution
        "4 input": 6,  # of the second norm
        "5 input": 6,  # of the second hard-swish
        "6/mul input": 6,  # what the gate scales
        "7 input": 6,  # of the projection
        "8 input": 1,  # of the norm behind it
    }
    assert mobiletl == {
        "0 input": 1,
        "2 mask": 6 / 32,
        "3 input": 6,
        "5 mask": 6 / 32,
        "6/mul input": 6,
        "7 input": 6,
        "8 input": 1,
    }
    # 44 -> 20.375: 53.7 % less (the paper: 53.3 %, with the vectors of its squeeze-excite, see the next test)
    assert sum(blocks.values()) == 44 and sum(mobiletl.values()) == 20.375
    assert fallen(mobiletl, blocks) == pytest.approx(0.537, abs=5e-4)


def test_bytes_of_a_mobilenetv3_block_with_statistics_and_vectors():
    """Everything that the block keeps, in bytes, at batch 1."""
    plan = BlockPlan(CHANNELS, 6, squeeze=True, activation="hardswish")
    graph = trace(Planned([plan], stem=CHANNELS), 16)
    unit = 4 * CHANNELS * PIXELS  # 4096 bytes
    wide = 6 * CHANNELS
    # squeeze-excite: the pooled map (96), ReLU's output (2), the gate (96), float32
    vectors = 4 * (wide + 2 + wide)
    # mean and deviation per channel, float32: both inner norms and the last, or in MobileTL the last alone
    own = {"blocks": 2 * 4 * (wide + wide + CHANNELS), "mobiletl": 2 * 4 * CHANNELS}
    maps = {"blocks": 44 * unit, "mobiletl": 20 * unit + 2 * wide * PIXELS // 8}
    for method in ("blocks", "mobiletl"):
        frame = footprint(graph, method, 1, batch=1).to_frame("block").set_index("part")
        assert frame.loc["block 1", "saved_bytes"] == maps[method] + own[method] + vectors
