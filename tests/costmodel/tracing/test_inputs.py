"""Networks are called as they are: any shapes, several inputs, by name, tokens, dense outputs, losses with targets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from costmodel import InputError, LayerGraph, ModelError, apply, footprint, trace, verify
from costmodel.graph.values import TRACE_BATCH
from costmodel.tracing.inputs import of_examples, of_shapes


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.facts, self.head = nn.Conv2d(4, 8, 3), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, image, facts):
        return self.head(self.image(image).mean((2, 3)) + self.facts(facts))


class OneDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = TwoInputs()

    def forward(self, batch):
        return {"logits": self.inner(batch["image"], batch["facts"])}


class Tokens(nn.Module):
    """Sequence first: the batch is the second dimension."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x)).mean(0))


SHAPES = ((4, 32, 24), (10,))
NAMED = {"image": (4, 32, 24), "facts": (10,)}
EXAMPLES = {"image": torch.zeros(2, 4, 32, 24), "facts": torch.zeros(2, 10)}


@pytest.mark.parametrize(
    ("module", "how"),
    [
        (TwoInputs(), {"input": SHAPES}),
        (TwoInputs(), {"input": NAMED}),
        (TwoInputs(), {"input": ["image=4x32x24", "facts=10"]}),
        (TwoInputs(), {"resolution": tuple(EXAMPLES.values())}),
        (TwoInputs(), {"resolution": EXAMPLES}),
        (OneDict(), {"input": NAMED}),
        (OneDict(), {"resolution": EXAMPLES}),
    ],
)
def test_several_inputs_are_given_in_any_way(module, how):
    graph = trace(module, **how)
    assert [tensor.shape for tensor in graph.inputs] == [(TRACE_BATCH, 4, 32, 24), (TRACE_BATCH, 10)]
    assert graph.input_label == "4x32x24, 10" and graph.classes == 3
    answer = footprint(graph, "full", batch=5, accounting="eager")
    # Kept: both inputs (the linear and the convolution train), the sum of 8; the means keep nothing.
    assert answer.saved_bytes == 5 * 4 * (4 * 32 * 24 + 10 + 8)
    assert answer.moments[0].by_category[2] == 5 * 4 * (4 * 32 * 24 + 10)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 6, 2)), (3, 12, 8)),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14, 2)), (2, 16)),
        (nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 6 * 6, 2)), (3, 4, 8, 8)),
        (nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2)), (7,)),
    ],
    ids=["not square", "1-D", "video", "vectors"],
)
@pytest.mark.parametrize("accounting", ["eager", "lean"])
def test_what_is_kept_of_other_shapes_is_what_is_measured(network, shape, accounting):
    found = verify(network, "full", batch=3, input=shape, accounting=accounting)
    assert found.saved.agrees and found.forward.agrees and found.backward.agrees


def test_the_batch_is_found_in_the_dimension_that_all_examples_have_in_common():
    examples = of_examples(nn.Identity(), (torch.zeros(35, 20, 6), torch.zeros(2, 20, 8)))
    assert [leaf.batch_dimension for leaf in examples.leaves] == [1, 1]
    pairs = of_examples(nn.Identity(), torch.zeros(4, 64, 64), torch.zeros(4, dtype=torch.int64))
    assert [leaf.batch_dimension for leaf in pairs.leaves] == [0, 0]
    graph = trace(Tokens(), torch.zeros(35, 20, 6), loss=lambda logits, wanted: (logits - wanted).square().mean(),
                  targets=torch.zeros(20, 3))  # fmt: skip
    assert graph.input.shape == (35, TRACE_BATCH, 6) and graph.ends_in_loss
    assert graph.input.bytes(7) == 7 * 4 * 35 * 6


def test_a_loss_and_its_targets_are_priced_with_the_network():
    def loss(result, wanted):
        return (result - wanted).square().mean()

    what = {"resolution": tuple(EXAMPLES.values()), "loss": loss, "targets": torch.zeros(2, 3)}
    graph = trace(TwoInputs(), **what)
    assert graph.layers[-1].op == "mean" and graph.outputs[0].elements == 1 and not graph.outputs[0].batched
    plain = footprint(trace(TwoInputs(), input=SHAPES), batch=5, accounting="eager")
    # Beside what the network keeps, `square` keeps the difference of 3.
    assert footprint(graph, batch=5, accounting="eager").saved_bytes == plain.saved_bytes + 5 * 4 * 3
    found = verify(TwoInputs(), "full", batch=2, **what)
    assert found.saved.agrees and found.backward.agrees
    with pytest.raises(InputError, match="verify it with --accounting eager"):
        verify(TwoInputs(), "full", batch=2, accounting="lean", **what)


def test_a_graph_with_several_inputs_survives_a_file(tmp_path):
    graph = trace(TwoInputs(), input=SHAPES)
    graph.save(tmp_path / "two.trace")
    again = LayerGraph.load(tmp_path / "two.trace")
    assert again.input_label == graph.input_label
    assert footprint(again, batch=3).to_dict() == footprint(graph, batch=3).to_dict()


def test_an_applied_network_of_several_inputs_keeps_what_is_promised():
    found = verify(TwoInputs(), "bias", batch=4, input=SHAPES, accounting="lean")
    assert found.saved.agrees
    model = apply(TwoInputs(), "bias", input=SHAPES).train()
    model(torch.zeros(2, 4, 32, 24), facts=torch.zeros(2, 10)).sum().backward()
    assert model.image.weight.grad is None and model.image.bias.grad is not None


@pytest.mark.parametrize(
    ("name", "pixels", "method"),
    [("torchvision:lraspp_mobilenet_v3_large", 64, "bias"), ("torchvision:ssdlite320_mobilenet_v3_large", 96, "bias")],
)
@pytest.mark.parametrize("accounting", ["eager", "lean"])
def test_segmenters_and_detectors_by_name(name, pixels, method, accounting):
    found = verify(name, method, batch=2, resolution=pixels, accounting=accounting)
    assert found.saved.agrees and found.forward.agrees and found.backward.agrees
    graph = trace(name, pixels, 7)
    assert graph.classes == 7 and not graph.classifies and trace(TwoInputs(), input=SHAPES).classifies


def test_a_detector_in_two_stages_is_refused():
    with pytest.raises(ModelError, match=r"second stage .*ssdlite320"):
        trace("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", 64)


class RegisteredLastFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Conv2d(8, 3, 1), nn.Conv2d(1, 8, 3)

    def forward(self, x):
        return self.last(self.first((x - 0.5) / 2)).mean((2, 3))


def test_channels_are_those_that_the_first_convolution_asks_for():
    assert trace(RegisteredLastFirst(), 8).input.shape == (TRACE_BATCH, 1, 8, 8)


@dataclass
class Result:
    logits: torch.Tensor
    features: torch.Tensor


class Dataclass(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        return Result(self.head(features), features)


def test_outputs_may_be_a_dataclass():
    graph = trace(Dataclass(), 8)
    assert [tensor.shape for tensor in graph.outputs] == [(TRACE_BATCH, 2), (TRACE_BATCH, 4)]


class Query(nn.Module):
    """A learned query, repeated for every image of the batch."""

    def __init__(self):
        super().__init__()
        self.body, self.query = nn.Conv2d(3, 16, 3), nn.Parameter(torch.zeros(1, 5, 16))
        self.project, self.head = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        query = self.project(self.query.expand(len(x), -1, -1))
        return self.head(query.mean(1) + self.body(x).mean((2, 3)))


@pytest.mark.parametrize("accounting", ["eager", "lean"])
def test_what_is_made_of_parameters_at_the_batchs_size_grows_with_the_batch(accounting):
    found = verify(Query(), "full", batch=2, resolution=8, accounting=accounting)
    assert found.saved.agrees, found.saved


class HalfOfTheBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        y = self.head(x.mean((2, 3)))
        return y[: len(y) // 2]


class AllPairs(HalfOfTheBatch):
    def forward(self, x):
        y = self.head(x.mean((2, 3)))
        return y @ y.mT


class MeanOfTheBatch(HalfOfTheBatch):
    def forward(self, x):
        y = self.head(x.mean((2, 3)))
        return y - y.mean(0)


def test_sizes_that_are_not_in_proportion_to_the_batch():
    with pytest.raises(ModelError, match=r"48x2 at batch 97.*in proportion"):
        trace(HalfOfTheBatch(), 8)
    with pytest.raises(ModelError, match="square of the batch"):
        trace(AllPairs(), 8)
    graph = trace(MeanOfTheBatch(), 8)
    mean = next(layer for layer in graph.layers[1:] if layer.op == "mean")
    assert not mean.output.batched and mean.output.elements == 2


@pytest.mark.parametrize(
    "shape", ["3x", "x3", "3x320x", "-3x3", "3*3", "a=b", "3x0x3", (3, 0), (3, -1), (3.5,), 7, "3:x"]
)
def test_what_is_no_shape_is_refused_in_one_line(shape):
    with pytest.raises(InputError) as error:
        trace(TwoInputs(), input=shape)
    assert "\n" not in str(error.value)


@given(text=st.text(max_size=30))
def test_any_text_as_a_shape_is_a_shape_or_an_error(text):
    try:
        specs = of_shapes(nn.Identity(), text).leaves
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(size >= 1 for spec in specs for size in spec.shape)


def test_a_network_of_other_inputs_says_how_to_give_them():
    network = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 14, 3))
    with pytest.raises(ModelError, match=r"0 \(conv1d\).*--input 3x320x240"):
        trace(network)
    with pytest.raises(ModelError, match="it returns str"):
        trace(Text(), 8)


class Text(nn.Module):
    def forward(self, x):
        return "nothing"


class AsksForANumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.head(x) if x.sum().item() > 0 else x


def test_a_network_that_asks_for_a_number_is_told_so():
    with pytest.raises(ModelError, match=r"\(item\).*a number in a tensor, of which the trace has the shape only"):
        trace(AsksForANumber(), 8)


def test_a_batch_norm_that_averages_all_batches():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert verify(network, "full", batch=2, resolution=8).saved.agrees
    assert network[1].momentum is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["full", "bias"])
def test_a_network_of_another_type_is_priced_in_its_type(dtype, method):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(),
        nn.MaxPool2d(2), nn.Dropout(0.1), nn.Flatten(), nn.LayerNorm(8 * 9), nn.Linear(8 * 9, 2),
    ).to(dtype)  # fmt: skip
    found = verify(network, method, batch=3, resolution=8)
    assert found.saved.agrees and found.forward.agrees and found.backward.agrees
    graph = trace(network, 8)
    # 3 x 8 x 9 + 8, 2 x 8, 8 x 8 x 9 + 8, 2 x 8, 2 x 72, 72 x 2 + 2 parameters, 3 x 3 x 8 x 8 numbers of input
    answer = footprint(graph, "full", batch=3, accounting="eager")
    weights, given, gradients = (answer.start.by_category[0], answer.start.by_category[2], 1130 * dtype.itemsize)
    assert (weights, given) == (1130 * dtype.itemsize, 576 * dtype.itemsize)
    assert max(moment.by_category[4] for moment in answer.moments) == gradients
    assert any(f"is in {str(dtype).removeprefix('torch.')}" in note for note in graph.notes)
    assert trace(network.float(), 8).notes == ()
