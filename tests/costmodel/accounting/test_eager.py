"""The `eager` books against stock PyTorch: saved bytes and FLOPs without any difference, the peak nearly so."""

from __future__ import annotations

import importlib.metadata
import platform

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from networks import BLOCKS, TWELVE, build, meta_model, short, traced
from random_networks import ACTIVATIONS, RandomNetwork, random_networks, trained_parameters
from repository import ROOT
from torch import nn
from torch.nn import functional as F

from costmodel import RULES, Footprint, UnknownOperationError, block_count, footprint, trace
from costmodel.accounting import eager
from costmodel.checking.measuring import loss_of, peak_bytes, prepare, saved_bytes_by_module, step_flops

DEPTHS = (1, 3, 5)
PLAIN = ("full", "last", "norm", "bias")  # what stock PyTorch can do without this package's layers


def configurations(graph) -> list[tuple[str, int | None]]:
    """Return the methods and depths of the verification."""
    depths = [depth for depth in DEPTHS if depth <= block_count(graph)]
    return [(method, None) for method in PLAIN] + [("blocks", depth) for depth in depths]


def differences(predicted: Footprint, network: nn.Module, batch: int) -> dict[str, tuple[int, int]]:
    """Return the modules whose saved bytes differ: predicted and measured."""
    expected: dict[str, int] = {}
    for saved in predicted.books.saved.values():
        module = predicted.graph.layers[min(saved.uses)].module
        expected[module] = expected.get(module, 0) + saved.bytes(batch)
    prepare(network, predicted.graph, predicted.assignment)
    measured = saved_bytes_by_module(network, torch.randn(batch, *predicted.graph.input.shape[1:]))
    assert sum(expected.values()) == predicted.saved_bytes
    return {
        module: (expected.get(module, 0), measured.get(module, 0))
        for module in expected | measured
        if expected.get(module, 0) != measured.get(module, 0)
    }


# --- real networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWELVE, ids=short)
def test_saved_bytes_of_the_twelve(name):
    graph, network = traced(name, 64), build(name)
    for method, depth in configurations(graph):
        for batch in (2, 1) if method == "bias" else (2,):
            predicted = footprint(graph, method, depth, batch, accounting="eager")
            assert differences(predicted, network, batch) == {}, (method, depth, batch)


# Other habits: concatenation, chunks, in-place sums, max pooling, layer norm, standardised weights, two outputs.
OTHERS = {
    "torchvision:densenet121": 64, "torchvision:shufflenet_v2_x0_5": 64, "torchvision:squeezenet1_1": 64,
    "torchvision:googlenet": 96, "torchvision:resnet18": 64, "timm:resnetv2_18": 64, "timm:ghostnetv2_100": 64,
    "timm:mixnet_s": 64, "timm:regnety_002": 64, "timm:test_convnext": 64, "timm:skresnet18": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS, ids=short)
def test_saved_bytes_of_other_networks(name):
    graph, network = traced(name, OTHERS[name]), build(name)
    for method, depth in [setting for setting in configurations(graph) if setting[0] != "last"][:4]:
        predicted = footprint(graph, method, depth, 2, accounting="eager")
        assert differences(predicted, network, 2) == {}, (method, depth)


@pytest.mark.parametrize("name", TWELVE, ids=short)
def test_flops_of_the_twelve(name):
    graph, network = traced(name), build(name, "meta")
    assert network is not meta_model(name)  # which other tests share: this one is set up to train
    for method, depth in [("full", None), ("bias", None), ("blocks", 3)]:
        predicted = footprint(graph, method, depth, 2, accounting="eager")
        prepare(network, predicted.graph, predicted.assignment)
        counted = step_flops(network, torch.empty(2, 3, 224, 224, device="meta"))
        assert counted == (predicted.forward_flops, predicted.backward_flops), (method, depth)


def test_frozen_layers_whose_memory_stays():
    """A frozen convolution keeps its input, a frozen linear does not: why freezing saves so little."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, bias=False), nn.Flatten(), nn.Linear(80, 6), nn.Linear(6, 2)
    )
    graph = trace(network, 4)
    predicted = footprint(graph, trained=["0.bias", "4.bias"], batch=2, accounting="eager")
    # The image, 2 x 3 x 4 x 4, for the first convolution; its result, 2 x 4 x 4 x 4, for the second; linears nothing
    assert predicted.saved_bytes == 4 * (96 + 128)
    assert differences(predicted, network, 2) == {}
    # With the first linear's weight, its input too: the second convolution's result, 2 x 5 x 16
    predicted = footprint(graph, trained=["0.bias", "3.weight"], batch=2, accounting="eager")
    assert predicted.saved_bytes == 4 * (96 + 128 + 160)
    assert differences(predicted, network, 2) == {}


class Branches(nn.Module):
    """Three convolutions, of which one takes part in the loss, one in another output, one in nothing."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.first, self.second, self.dropped = (nn.Conv2d(4, 5, 1) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        torch.sigmoid(self.dropped(x))
        return self.first(x).mean((2, 3)), self.second(x).mean((2, 3))


def test_what_the_forward_pass_drops_is_not_saved():
    network = Branches()
    graph = trace(network, 4)
    predicted = footprint(graph, trained=lambda name: True, batch=2, accounting="eager")
    assert predicted.saved_bytes == 4 * (2 * 3 * 16 + 2 * 4 * 16)  # the image and the stem's result
    assert differences(predicted, network, 2) == {}


# --- random networks --------------------------------------------------------------------------------------------------

seen_operations: set[tuple[str, bool]] = set()


@pytest.mark.xdist_group("random networks")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=300)
@given(random_networks(), st.sampled_from([2, 3]), st.data())
def test_random_networks(network: RandomNetwork, batch, data):
    graph = trace(network.module, network.resolution)
    assert graph.notes == ()
    trained = data.draw(trained_parameters(graph))
    predicted = footprint(graph, trained=trained, batch=batch, accounting="eager")
    module = network.fresh()
    assert differences(predicted, module, batch) == {}
    # Backward runs too: every in-place step of these networks is one that PyTorch allows.
    assert step_flops(module, network.images(batch)) == (predicted.forward_flops, predicted.backward_flops)
    lean = footprint(graph, trained=trained, batch=batch)
    assert lean.saved_bytes <= predicted.saved_bytes
    stock = footprint(graph, trained=trained, batch=batch, accounting="eager", kernels="none")
    # A mask comes beside a tensor that a variable of the program may still hold at the peak; stock keeps that tensor.
    masks = sum(saved.bytes(batch) for saved in lean.books.saved.values() if saved.storage is None)
    if not lean.books.recomputed:  # weights that are made again stand beside what they are made of; stock keeps them
        assert lean.peak_bytes <= stock.peak_bytes + masks
    seen_operations.update((layer.op, layer.inplace) for layer in graph.layers)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=60)
@given(random_networks(), st.sampled_from(["last", "norm", "bias"]))
def test_methods_on_random_networks(network: RandomNetwork, method):
    """As above, with the frozen statistics that methods choose."""
    graph = trace(network.module, network.resolution)
    predicted = footprint(graph, method, batch=2, accounting="eager")
    assert differences(predicted, network.fresh(), 2) == {}
    assert footprint(graph, method, batch=2).saved_bytes <= predicted.saved_bytes
    seen_operations.update((layer.op, layer.inplace) for layer in graph.layers)


VIEWS = {"clone", "squeeze", "swapaxes", "unflatten", "unsqueeze", "view_as", "expand"}  # no arithmetic
BY_HAND = {"conv3d", "standardized_conv2d", "frozen_batch_norm"}
# Operations of transformers and others, which tests/costmodel/rules and tests/costmodel/checking/test_families.py hold.
NOT_DRAWN = {
    "T", "abs", "celu", "clamp", "clamp_min", "elu", "flip", "glu", "log", "log_softmax", "mT", "movedim", "narrow",
    "neg", "pixel_shuffle", "pixel_unshuffle", "prelu", "repeat", "repeat_interleave", "roll",
    "scaled_dot_product_attention", "select", "selu", "softplus", "tile", "unbind",
}  # fmt: skip
EVERY_OPERATION = {(op, False) for op in RULES.keys() - VIEWS - BY_HAND - NOT_DRAWN | set(ACTIVATIONS)}
IN_PLACE = {name for name, (_, _, has_inplace, _) in ACTIVATIONS.items() if has_inplace} | {
    "add",
    "mul",
    "sub",
    "dropout",
}


def operations(network: RandomNetwork) -> set[tuple[str, bool]]:
    """Return the operations of a network, each with whether it works in place, and as one that does not."""
    layers = trace(network.module, network.resolution).layers
    return {(layer.op, inplace) for layer in layers for inplace in (layer.inplace, False)}


@pytest.mark.xdist_group("random networks")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_random_networks_hold_every_operation():
    """Runs after the random networks: what they did not draw by chance is drawn, and checked, now."""
    if not seen_operations:
        pytest.skip("needs the tests of random networks to have run before")
    seen = seen_operations | {(op, False) for op, _ in seen_operations}
    rare = settings(max_examples=3000, phases=[Phase.generate], database=None)
    while missing := (EVERY_OPERATION | {(op, True) for op in IN_PLACE}) - seen:
        network = find(
            random_networks(), lambda network, wanted=missing: bool(operations(network) & wanted), settings=rare
        )
        graph = trace(network.module, network.resolution)
        assert differences(footprint(graph, batch=2, accounting="eager"), network.fresh(), 2) == {}
        seen |= operations(network)


# --- habits that the strides or the arguments of one call decide ------------------------------------------------------


class Habit(nn.Module):
    """A convolution, ReLU (which keeps its result), one habit, a head."""

    def __init__(self, habit, module=None):
        super().__init__()
        self.conv, self.habit, self.module, self.head = nn.Conv2d(3, 8, 3, 1, 1), habit, module, nn.Linear(8, 5)
        self.exponent = nn.Parameter(torch.full((8, 1, 1), 2.0))

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.head(self.habit(self, x).flatten(2).mean(2))


HABITS = {
    "linear of permuted pixels": (
        lambda self, x: self.module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), lambda: nn.Linear(8, 8)
    ),
    "linear of contiguous pixels": (
        lambda self, x: self.module(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2), lambda: nn.Linear(8, 8)
    ),
    "linear of a slice of each row": (lambda self, x: self.module(x[..., 1:]), lambda: nn.Linear(7, 7)),
    "channels last": (
        lambda self, x: self.module(x.contiguous(memory_format=torch.channels_last)), lambda: nn.Conv2d(8, 8, 3)
    ),
    "same padding of an even kernel": (lambda self, x: self.module(x), lambda: nn.Conv2d(8, 8, 4, padding="same")),
    "same padding of an odd kernel": (lambda self, x: self.module(x), lambda: nn.Conv2d(8, 8, 3, padding="same")),
    "circular padding": (
        lambda self, x: self.module(x),
        lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    ),
    "reflected padding": (
        lambda self, x: self.module(x),
        lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    ),
    "area resampling": (lambda self, x: F.interpolate(x + 1, size=(3, 3), mode="area"), None),
    "bicubic resampling": (lambda self, x: F.interpolate(x + 1, scale_factor=2, mode="bicubic"), None),
    "power of a tensor": (lambda self, x: (x + 1) ** self.exponent, None),
    "indices in a tensor": (lambda self, x: x[:, torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])], None),
    "in place on a view": (lambda self, x: F.hardswish((x + 1).flatten(1), inplace=True).view(x.shape), None),
    "product with itself": (lambda self, x: (x + 1) * (x + 1), None),
    "number on the left": (lambda self, x: 1 - 0.5 * x, None),
    "a factor without a gradient": (lambda self, x: (x + 1) * x.detach(), None),
    "a part under no_grad": (lambda self, x: x * torch.no_grad()(torch.sigmoid)(x), None),
    "keyword arguments": (lambda self, x: F.silu(input=F.relu6(inplace=True, input=x + 1)), None),
    "batch norm without parameters": (lambda self, x: self.module(x), lambda: nn.BatchNorm2d(8, affine=False)),
    "batch norm without running statistics": (
        lambda self, x: self.module(x), lambda: nn.BatchNorm2d(8, track_running_stats=False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HABITS)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_habit(name):
    habit, make = HABITS[name]
    network = Habit(habit, make and make())
    graph = trace(network, 8)
    for trained in (lambda name: name != "exponent", lambda name: name.startswith("head"), lambda name: "bias" in name):
        predicted = footprint(graph, trained=trained, batch=2, accounting="eager")
        assert differences(predicted, network, 2) == {}


def test_an_operation_that_only_these_books_do_not_know(monkeypatch):
    monkeypatch.delitem(eager.KEEPS._entries, "relu")
    with pytest.raises(UnknownOperationError, match=r"'relu'.*costmodel.register_rule"):
        footprint(trace(Habit(lambda self, x: x), 8), accounting="eager")


# --- the peak ---------------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 1e-6),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 1e-6, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, 1e-6),
}


def measured_peak(
    predicted: Footprint, network: nn.Module, optimizer: str = "sgd", micro_batches: int = 1, in_place: bool = False
) -> int:
    """Return the peak of the second step, above what was there when it began."""
    prepare(network, predicted.graph, predicted.assignment)
    images = torch.randn(predicted.micro_batch, *predicted.graph.input.shape[1:])
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    hooks = []
    if in_place:
        for parameter in trained:
            own = OPTIMIZERS[optimizer]([parameter])

            def update(parameter, own=own):
                own.step()
                own.zero_grad()

            hooks.append(parameter.register_post_accumulate_grad_hook(update))
    together = OPTIMIZERS[optimizer](trained)

    def step() -> None:
        for _ in range(micro_batches):
            loss_of(network(images)).backward()
        if not in_place:
            together.step()
            together.zero_grad()

    step()
    peak = peak_bytes(step)
    for hook in hooks:
        hook.remove()
    return peak


@pytest.fixture
def two_threads():
    """As many threads as the table of working memory was measured with."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def above_the_start(predicted: Footprint) -> int:
    return predicted.peak_bytes - predicted.moments[0].total_bytes


@pytest.mark.parametrize(
    ("name", "method", "depth"),
    [("torchvision:mobilenet_v2", "full", None), ("torchvision:mobilenet_v2", "last", None),
     ("timm:mobilenetv2_050", "bias", None), ("zoo:proxylessnas_mobile", "norm", None)],
)  # fmt: skip
def test_peak_lies_between_no_working_memory_and_that_of_the_kernels(name, method, depth):
    """With one thread small convolutions take another kernel, which copies less."""
    graph, network = traced(name, 96), build(name)
    least, most = (footprint(graph, method, depth, 4, accounting="eager", kernels=of) for of in ("none", "onednn"))
    measured = measured_peak(most, network)
    assert above_the_start(least) <= measured
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert measured <= 1.002 * above_the_start(most)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="other blocks of channels")
def test_peak(two_threads):
    """One of benchmarks/verify_peak.py's networks at a lower resolution, where scratchpads weigh more: 1 %."""
    name = "torchvision:mobilenet_v3_small"
    predicted = footprint(traced(name, 96), "blocks", 3, 4, accounting="eager")
    assert above_the_start(predicted) == pytest.approx(measured_peak(predicted, build(name)), rel=0.01)


@pytest.mark.parametrize(
    ("options", "loop"),
    [
        ({"optimizer": "adam"}, {"optimizer": "adam"}),
        ({"micro_batch": 2}, {"micro_batches": 2}),
        ({"inplace_update": True}, {"in_place": True}),
        ({"optimizer": "adam", "inplace_update": True}, {"optimizer": "adam", "in_place": True}),
    ],
)
def test_peak_of_other_loops(options, loop):
    """A network whose weights outweigh its activations: gradients and the optimizer make the peak, not kernels."""
    graph, network = traced("torchvision:mobilenet_v3_small", 64), build("torchvision:mobilenet_v3_small")
    predicted = footprint(graph, "full", batch=4, accounting="eager", **options)
    measured = measured_peak(predicted, network, **loop)
    assert above_the_start(predicted) == pytest.approx(measured, rel=0.001)


# --- against lean, and the versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWELVE, ids=short)
def test_lean_is_never_above_eager_kernels_apart(name):
    """With the same kernels in both books, so that only what is kept differs."""
    graph = traced(name)
    for method, depth in [*((name, None) for name in PLAIN), *(("blocks", d) for d in range(1, BLOCKS[name] + 1)),
                          ("mobiletl", 1), ("mobiletl", 5)]:  # fmt: skip
        for kernels in ("none", "onednn"):
            ours, stock = (
                footprint(graph, method, depth, 2, accounting=name, kernels=kernels) for name in ("lean", "eager")
            )
            assert ours.saved_bytes <= stock.saved_bytes and ours.peak_bytes <= stock.peak_bytes


def test_no_caveat_where_there_is_no_torch(monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(eager, "version", missing)
    assert eager.caveat() is None


def test_no_caveat_where_it_was_verified(monkeypatch):
    monkeypatch.setattr(eager, "version", lambda package: "2.15.3+cpu")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert eager.caveat() is None


@pytest.mark.parametrize(("version", "machine"), [("2.99.0", "x86_64"), ("2.15.0", "aarch64"), ("2.1.5", "x86_64")])
def test_caveat(monkeypatch, version, machine):
    monkeypatch.setattr(eager, "version", lambda package: version)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    text = eager.caveat()
    assert version in text and machine in text and "costmodel verify" in text and "\n" not in text


def test_verified_versions_are_those_of_the_tables():
    """The committed tables were made with a version that the caveat lets pass."""

    for name in ("verify_saved.md", "verify_peak.md"):
        text = (ROOT / "benchmarks" / "results" / name).read_text()
        assert any(f"torch {version}" in text for version in eager.VERIFIED_TORCH)
    assert importlib.metadata.version("torch")  # what `caveat` asks
