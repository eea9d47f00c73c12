"""Tracing: what is recorded is what a real run does; the given module stays as it was; errors are one clear line."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from networks import SPREAD, build, inside, short, traced
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from costmodel import InputError, ModelError, footprint, verify
from costmodel.graph.values import TRACE_BATCH
from costmodel.tracing.models import resolve
from costmodel.tracing.tracer import trace

# --- many networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPREAD, ids=short)
def test_network_traces_with_every_parameter(name):
    graph = traced(name)
    real = build(name, "cpu" if "convnext" not in name else "meta")  # drawing convnext's random numbers takes a second
    expected = {key: tuple(parameter.shape) for key, parameter in real.named_parameters()}
    assert {key: tensor.shape for key, tensor in graph.parameters.items()} == expected
    assert graph.parameter_count == sum(parameter.numel() for parameter in real.parameters())
    assert {key: tuple(buffer.shape) for key, buffer in real.named_buffers()} == {
        key: tensor.shape for key, tensor in graph.buffers.items()
    }
    used = {tensor.name for layer in graph.layers for tensor in layer.parameters.values()}
    assert used == set(expected)  # none of these networks has a parameter that its forward pass leaves out
    assert graph.outputs[0].shape == (TRACE_BATCH, 1000) and graph.classes == 1000
    assert len({layer.name for layer in graph.layers}) == len(graph.layers)
    assert graph.notes == ()


def test_spread_is_at_least_forty():
    assert len(set(SPREAD)) >= 40


# --- against a real run -----------------------------------------------------------------------------------------------


@dataclass
class _Call:
    name: str
    elements: list[int]
    held: list[int]  # by output: index of the last call that started while its memory was still referred to


class _RealRun(TorchFunctionMode):
    """Watches a run with real numbers: which calls autograd records, how large results are, when their memory dies.

    A call counts if its result needs a gradient, so the network's input and its parameters have to need one. Memory is
    watched through weak references to storages: nothing is known here of how the tracer watches.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[_Call] = []
        self.watched: list[tuple[_Call, int, StorageWeakRef]] = []
        self.started = -1

    def alive(self) -> list[tuple[_Call, int, StorageWeakRef]]:
        self.watched = [item for item in self.watched if not item[2].expired()]
        return self.watched

    def __torch_function__(self, function, types, args=(), kwargs=None):
        started_alive = self.alive()  # whether this call counts is only known once it has run
        result = function(*args, **(kwargs or {}))
        outputs = [result] if isinstance(result, torch.Tensor) else result if isinstance(result, (tuple, list)) else []
        outputs = [item for item in outputs if isinstance(item, torch.Tensor) and item.requires_grad]
        given = [item for item in args if isinstance(item, torch.Tensor)]
        name = function.__name__
        changes = name.endswith("_") and not name.endswith("__") or name in ("__iadd__", "__imul__")
        changes = changes or bool((kwargs or {}).get("inplace"))
        if not outputs or not changes and all(any(out is item for item in given) for out in outputs):
            return result
        index = len(self.calls)
        for call, position, _ in started_alive:
            call.held[position] = index
        call = _Call(name, [out.numel() for out in outputs], [index] * len(outputs))
        self.calls.append(call)
        new = [(call, position, StorageWeakRef(out.untyped_storage())) for position, out in enumerate(outputs)]
        self.watched = [*started_alive, *new]
        return result


def real_run(module: nn.Module, images: torch.Tensor) -> list[_Call]:
    """Return the calls of one forward pass in train mode, in which autograd keeps nothing alive."""
    module.train().requires_grad_(True)
    images = images.clone().requires_grad_(True)
    run = _RealRun()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: None), run:
        outputs = module(images)
    for call, position, _ in run.alive():
        call.held[position] = len(run.calls)
    del outputs
    return run.calls


class TrickyLifetimes(nn.Module):
    """Variables that live longer than the call they were made for, views, in-place calls, and a result thrown away."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.branch = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        """Return N x 2."""
        kept = self.first(x)  # held until it is deleted, two calls after its last use
        y = self.second(kept)
        y += kept
        rows = y.flatten(2)  # a view
        torch.sigmoid(rows)  # nobody reads it
        del kept
        left, right = y.chunk(2, dim=1)
        y = torch.cat([right, left], dim=1)
        y = y * y.mean((2, 3), keepdim=True)
        y = y + self.branch(y)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Dense(nn.Module):
    """Every layer's result is held in a list until the end, as DenseNet does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 1) for i in range(3))

    def forward(self, x):
        """Return N x 9."""
        kept = [x]
        for layer in self.layers:
            kept.append(F.relu(layer(torch.cat(kept, 1))))
        return torch.cat(kept, 1).mean((2, 3))


LIFETIMES = {
    "own: tricky": (TrickyLifetimes, 12),
    "own: dense": (Dense, 8),
    **{
        name: ((lambda name=name: build(name)), 64)
        for name in (
            "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0",
            "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5", "torchvision:densenet121",
            "timm:mobilenetv4_conv_small", "timm:ghostnet_050", "timm:resnetv2_18", "timm:regnety_002",
            "zoo:proxylessnas_mobile",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("name", LIFETIMES)
def test_sizes_and_lifetimes_are_those_of_a_real_run(name, batch):
    """Call by call: as many elements as the graph says for this batch, and memory that dies during the same call."""
    make, resolution = LIFETIMES[name]
    module = make()
    graph = trace(module, resolution)
    calls = real_run(module, torch.randn(batch, 3, resolution, resolution))
    assert len(calls) == len(graph.layers)
    for layer, call in zip(graph.layers, calls, strict=True):
        sizes = [tensor.elements * (batch if tensor.batched else 1) for tensor in layer.outputs]
        assert sizes == call.elements, layer.name
        assert [tensor.storage.held_until for tensor in layer.outputs] == call.held, (layer.name, call.name)


def test_lifetimes_of_a_written_out_example():
    """Calls: 0 first, 1 second, 2 iadd, 3 flatten, 4 sigmoid, 5 chunk, 6 cat, 7 mean, 8 mul, then the branch 9 to 12,
    13 add, 14 pool, 15 flatten, 16 head."""
    graph = trace(TrickyLifetimes(), 12)
    operations = [layer.op for layer in graph.layers]
    assert operations == [
        "conv2d", "conv2d", "add", "flatten", "sigmoid", "chunk", "cat", "mean", "mul",
        "conv2d", "batch_norm", "relu", "conv2d", "add", "adaptive_avg_pool2d", "flatten", "linear",
    ]  # fmt: skip
    held = [layer.output.storage.held_until for layer in graph.layers]
    # `kept` is deleted after the sigmoid (4), whose own result nobody holds (4). y, the sum in place, is one storage
    # with its view `rows` and the chunks; `rows`, `left` and `right` are variables until the end (16).
    assert held[0] == 4 and held[4] == 4
    assert held[1] == held[2] == held[3] == held[5] == 16
    assert held[6] == 8 and held[7] == 8  # the gate and what it scales are gone once the product is bound to y
    assert held[8] == 13  # the branch's input lives until the sum replaces y
    assert held[9] == 10 and held[10] == held[11] == 12
    assert held[16] == 17  # the network's output outlives the forward pass


# --- storages ---------------------------------------------------------------------------------------------------------


def test_in_place_and_view_calls_share_a_storage():
    graph = trace(TrickyLifetimes(), 12)
    first, second, total, rows, sigmoid, chunk, cat = graph.layers[:7]
    storage = second.output.storage
    assert total.inplace and not total.is_view
    assert total.output.storage is storage and storage.writes == 1
    assert second.output.overwritten and not total.output.overwritten
    for view in (rows, chunk):
        assert view.is_view and not view.inplace
        assert all(tensor.storage is storage for tensor in view.outputs)
    assert [tensor.elements for tensor in chunk.outputs] == [2 * 10 * 10] * 2  # half of 4 channels of 10 x 10
    assert storage.elements == 4 * 10 * 10
    for own in (first, sigmoid, cat):
        assert own.output.storage is not storage and not own.is_view and not own.inplace
    relu = next(layer for layer in graph.layers if layer.op == "relu")
    norm = next(layer for layer in graph.layers if layer.op == "batch_norm")
    assert relu.inplace and relu.output.storage is norm.output.storage and norm.output.overwritten


def test_call_that_does_nothing_is_no_layer():
    class Idle(nn.Module):
        def forward(self, x):
            x = F.dropout(x, 0.0).contiguous()
            return F.relu(x).flatten(1)

    assert [layer.op for layer in trace(Idle(), 4).layers if not layer.is_view] in (["relu"], ["dropout", "relu"])


def test_tied_parameter_is_counted_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(12, 12)
            self.b = nn.Linear(12, 12)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x.flatten(1)))

    graph = trace(Tied(), 2)
    assert graph.parameter_count == 12 * 12 + 12 + 12
    weights = [layer.inputs["weight"] for layer in graph.layers if layer.op == "linear"]
    assert weights[0] is weights[1]


def test_standardised_weight_is_derived_and_does_not_grow_with_the_batch():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    graph = trace(nn.Sequential(Standardised(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 4, 2)), 6)
    mean, difference, conv = graph.layers[:3]
    assert [layer.output.kind for layer in (mean, difference, conv)] == ["derived", "derived", "activation"]
    assert conv.inputs["weight"] is difference.output
    assert difference.output.elements == 4 * 3 * 3 * 3 and not difference.output.batched
    assert conv.output.elements == 4 * 4 * 4 and conv.output.batched


# --- the given module -------------------------------------------------------------------------------------------------


def _fingerprint(module: nn.Module) -> dict:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "tensors": {name: (id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()},
        "gradients": {name: (tensor.requires_grad, tensor.grad) for name, tensor in module.named_parameters()},
        "devices": {name: tensor.device for name, tensor in tensors.items()},
        "training": {name: child.training for name, child in module.named_modules()},
        "hooks": {
            name: (dict(child._forward_hooks), dict(child._forward_pre_hooks), dict(child._backward_hooks))
            for name, child in module.named_modules()
        },
        "attributes": {name: sorted(vars(child)) for name, child in module.named_modules()},
        "modules": {name: id(child) for name, child in module.named_modules()},
    }


@pytest.mark.parametrize("classes", [None, 3])
def test_given_module_is_not_altered(classes):
    module = build("torchvision:mobilenet_v3_small").eval()
    module.features[2].train()
    module.features[3].requires_grad_(False)
    seen = []
    module.classifier[0].register_forward_hook(lambda *_: seen.append(1))
    values = copy.deepcopy(module.state_dict())
    before, random_state = _fingerprint(module), torch.get_rng_state()
    graph = trace(module, 64, classes)
    assert _fingerprint(module) == before
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in values.items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()
    assert graph.classes == (classes or 1000)


def test_frozen_module_in_eval_mode_traces_as_in_train_mode():
    """What a module's flags say does not matter: a method decides what trains."""
    module = build("torchvision:mobilenet_v3_small")
    as_built = trace(module, 64)
    frozen = trace(module.eval().requires_grad_(False), 64)
    assert [(layer.name, layer.attributes) for layer in frozen.layers] == [
        (layer.name, layer.attributes) for layer in as_built.layers
    ]
    norms = [layer for layer in frozen.layers if layer.op == "batch_norm"]
    assert norms and all(layer.attributes["training"] for layer in norms)


class _OnlyMeta(TorchDispatchMode):
    """Notes the largest tensor that any operation makes on a real device."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, torch.Tensor) and item.device.type != "meta":
                self.largest = max(self.largest, item.numel())
        return result


@pytest.mark.parametrize("model", ["torchvision:mobilenet_v2", "timm:tinynet_e", "zoo:proxylessnas_mobile", "module"])
def test_weights_are_never_materialised(model):
    given = build("torchvision:resnet18") if model == "module" else model
    with _OnlyMeta() as watch:
        trace(given)
        traced_largest = watch.largest
        torch.empty(10_000)  # the watch sees what is made
    assert watch.largest == 10_000
    assert traced_largest < 100


def test_network_too_large_for_this_machine_traces():
    with torch.device("meta"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2**32), nn.ReLU(), nn.Linear(2**32, 2))
    graph = trace(module, 32)  # 3072 x 2^32 float32 weights: 52 TB
    assert graph.parameter_count == 3072 * 2**32 + 2**32 + 2**32 * 2 + 2


def test_graph_survives_pickling():
    graph = traced("torchvision:mobilenet_v3_small")
    again = pickle.loads(pickle.dumps(graph))
    assert [layer.name for layer in again.layers] == [layer.name for layer in graph.layers]
    assert again.parameter_count == graph.parameter_count
    relu = next(layer for layer in again.layers if layer.inplace)
    assert relu.output.storage is relu.input.storage  # identity of storages is kept


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_resolve():
    assert resolve("torchvision:mobilenet_v2") == "torchvision:mobilenet_v2"
    assert resolve("mobilenet_v2") == "torchvision:mobilenet_v2"
    assert resolve("tinynet_e") == "timm:tinynet_e"
    assert resolve("proxylessnas_mobile") == "zoo:proxylessnas_mobile"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("torchvision:mobilnet_v2", ["unknown torchvision model 'mobilnet_v2'", "'mobilenet_v2'"]),
        ("timm:tinynet_z", ["unknown timm model 'tinynet_z'", "'tinynet_"]),
        ("zoo:proxyless", ["unknown zoo model 'proxyless'", "proxylessnas_mobile"]),
        ("mobilenet_v22", ["unknown model 'mobilenet_v22'", "'torchvision:mobilenet_v2'"]),
        ("hub:mobilenet_v2", ["unknown source of models 'hub'", "torchvision", "timm", "zoo", "path/file.py"]),
        ("resnet18", ["several", "torchvision:resnet18", "timm:resnet18"]),
        ("nowhere/net.py:make", ["no file 'nowhere/net.py'", "path/file.py:function"]),
        ("", ["unknown model ''"]),
    ],
)
def test_bad_name_is_an_error_that_helps(name, parts):
    with pytest.raises(InputError) as error:
        trace(name)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


OWN_FILE = """
from torch import nn

def tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2) if False else nn.Linear(4 * 30 * 30, 7))

def with_classes(num_classes=5):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, num_classes))

def broken():
    raise RuntimeError("no weights\\nfound")

def number():
    return 3
"""


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(OWN_FILE)
    return path


def test_own_file(own_file):
    graph = trace(f"{own_file}:tiny", 32)
    assert graph.model == f"{own_file}:tiny" and graph.classes == 7
    assert trace(f"{own_file}:with_classes", 32).classes == 5
    assert trace(f"{own_file}:with_classes", 32, classes=11).classes == 11  # its builder sets them
    assert trace(f"{own_file}:tiny", 32, classes=11).classes == 11  # its builder cannot: the head is replaced


@pytest.mark.parametrize(
    ("function", "kind", "parts"),
    [
        ("tinny", InputError, ["tinny", "'tiny'"]),
        ("broken", ModelError, ["building", "RuntimeError", "no weights found"]),
        ("number", ModelError, ["torch.nn.Module", "int"]),
    ],
)
def test_own_file_with_a_mistake(own_file, function, kind, parts):
    with pytest.raises(kind) as error:
        trace(f"{own_file}:{function}", 32)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_own_file_that_python_cannot_read(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("def tiny(:\n")
    with pytest.raises(ModelError, match="SyntaxError") as error:
        trace(f"{path}:tiny")
    assert "\n" not in str(error.value)


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:tinynet_e", "zoo:proxylessnas_mobile"])
def test_classes_change_the_head_alone(name):
    plain, graph = traced(name), trace(name, classes=10)
    changed = {key for key in plain.parameters if plain.parameters[key].shape != graph.parameters[key].shape}
    heads = {key for key, module in build(name, "meta").named_modules() if isinstance(module, nn.Linear)}
    last = list(plain.parameters)[-1].rpartition(".")[0]
    assert last in heads and changed == {f"{last}.weight", f"{last}.bias"}
    assert graph.classes == 10 and graph.outputs[0].shape == (TRACE_BATCH, 10)
    assert [layer.op for layer in graph.layers] == [layer.op for layer in plain.layers]


def test_classes_of_an_own_module_with_a_convolution_as_head():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1))
    graph = trace(nn.Sequential(module, nn.Flatten()), 16, classes=9)
    assert graph.parameters["0.2.weight"].shape == (9, 8, 1, 1) and graph.classes == 9
    assert module[2].out_channels == 5


def test_classes_of_a_module_without_a_replaceable_head():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.BatchNorm1d(8 * 14 * 14))
    with pytest.raises(ModelError, match=r"last layer with parameters.*BatchNorm1d"):
        trace(module, 16, classes=9)


# --- errors -----------------------------------------------------------------------------------------------------------


class WrongShape(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(99, 2))

    def forward(self, x):
        return self.stem(x)


class NoTensor(nn.Module):
    def forward(self, x):
        return "nothing"


class Constant(nn.Module):
    def forward(self, x):
        return torch.ones(3)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


class Branch(nn.Module):
    """A branch beside the main path, whose cost a trace that did not see it would leave out without a word."""

    def __init__(self):
        super().__init__()
        self.main, self.side, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.main(x)
        return self.head((x + self.branch(x)).mean((2, 3)))


class CustomFunction(Branch):
    def branch(self, x):
        return Doubled.apply(self.side(x))


class ReentrantCheckpoint(Branch):
    def branch(self, x):
        return checkpoint(self.side, x, use_reentrant=True)


class SavedElsewhere(Branch):
    def branch(self, x):
        with torch.autograd.graph.save_on_cpu():
            return self.side(x)


class HiddenCall(Branch):
    def branch(self, x):
        x = self.side(x)
        with torch._C.DisableTorchFunction():  # as extensions in C++ are
            return 2 * x


class WithoutGradient(Branch):
    def branch(self, x):
        with torch.no_grad():
            return self.side(x)


class Detached(Branch):
    def branch(self, x):
        return self.side(x).detach()


@pytest.mark.parametrize(
    ("module", "operations"),
    [
        (WithoutGradient(), ["conv2d", "conv2d", "add", "mean", "linear"]),
        (Detached(), ["conv2d", "conv2d", "detach", "add", "mean", "linear"]),
    ],
    ids=["no_grad", "detach"],
)
def test_branch_without_gradient_keeps_nothing(module, operations):
    graph = trace(module, 16)
    assert [layer.op for layer in graph.layers] == operations
    answer = footprint(graph, "full", batch=2)
    # The image, 2 x 3 x 16 x 16, and the head's input, 2 x 4: the branch, which no gradient reaches, keeps nothing.
    assert answer.saved_bytes == 4 * (2 * 3 * 16 * 16 + 2 * 4)


class FrozenTrunk(nn.Module):
    """A common idiom: the trunk runs without gradients, the head is trained."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3))
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 10 * 10, 2))

    def forward(self, x):
        with torch.no_grad():
            x = self.trunk(x)
        return self.head(x)


class DetachedTrunk(FrozenTrunk):
    def forward(self, x):
        return self.head(self.trunk(x).detach())


@pytest.mark.parametrize("module", [FrozenTrunk(), DetachedTrunk()], ids=["no_grad", "detach"])
@pytest.mark.parametrize("accounting", ["eager", "lean"])
@pytest.mark.parametrize("method", ["full", "bias"])
def test_trunk_without_gradient_is_run_and_keeps_nothing(module, accounting, method):
    found = verify(module, method, batch=2, resolution=16, accounting=accounting)
    assert found.saved.agrees and found.forward.agrees and found.backward.agrees


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (CustomFunction(), ["torch.autograd.Function", "cannot be followed"]),
        (ReentrantCheckpoint(), ["torch.autograd.Function", "re-entrant checkpoint"]),
        (SavedElsewhere(), ["side keeps its saved tensors by hooks (save_on_cpu)"]),
        (HiddenCall(), ["C++", "cannot be followed"]),
        (nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()), ["Sequential cannot be copied", "lazy layers"]),
        (WrongShape(), ["WrongShape", "stem.1", "linear", "16x16"]),
        (NoTensor(), ["NoTensor", "no output"]),
        (Constant(), ["Constant", "no output"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_module_that_cannot_be_followed(module, parts):
    with pytest.raises(ModelError) as error:
        trace(module, 16)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    for part in parts:
        assert part in str(error.value)


def test_resolution_too_small_for_the_network():
    with pytest.raises(ModelError, match=r"16x16.*resolution may be too small"):
        trace("torchvision:alexnet", 16)
    with pytest.raises(ModelError, match=r"224x224 failed in AuxLogits.*resolution may be too small"):
        trace("torchvision:inception_v3")  # made for 299 x 299
    assert trace("torchvision:inception_v3", 299).classes == 1000


@pytest.mark.parametrize("option", ["resolution", "classes"])
@pytest.mark.parametrize("value", [0, -224, 2.5, True, "224"])
def test_number_that_is_no_count(option, value):
    with pytest.raises(InputError, match=option):
        trace("torchvision:mobilenet_v2", **{option: value})


@pytest.mark.parametrize("model", [None, 3, nn.Module, lambda x: x])
def test_what_is_no_network(model):
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        trace(model)


def test_failed_trace_leaves_the_module_usable():
    module = WrongShape()
    before = _fingerprint(module)
    with pytest.raises(ModelError):
        trace(module, 16)
    assert _fingerprint(module) == before


def test_attention_of_pytorchs_own_module_is_followed_call_by_call():
    """`F.multi_head_attention_forward` is made of linear maps, attention and views."""
    graph = trace("torchvision:vit_b_32")
    assert graph.parameter_count == sum(tensor.numel() for tensor in build("torchvision:vit_b_32", "meta").parameters())
    block = "encoder.layers.encoder_layer_0.self_attention"
    ops = [layer.op for layer in graph.layers if layer.module == block]
    assert ops.count("linear") == 2 and ops.count("scaled_dot_product_attention") == 1
    assert footprint(graph, "full").forward_flops > 0


def test_module_paths_are_those_of_the_network():
    graph = traced("torchvision:mobilenet_v2")
    paths = {path for path, _ in build("torchvision:mobilenet_v2", "meta").named_modules()}
    assert all(layer.module in paths for layer in graph.layers)
    first = next(layer for layer in graph.layers if layer.op == "conv2d")
    assert inside(first.inputs["weight"].name, (first.module,)) and first.name == "features.0.0"


class Packed(nn.Module):
    """Holds numbers of a type that is not priced."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.packed = nn.Buffer(torch.zeros(4, dtype=torch.uint16))

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def test_numbers_of_a_type_that_is_not_priced_are_refused_in_one_line():
    with pytest.raises(ModelError, match=r"numbers of the type uint16; priced are .*complex64"):
        trace(Packed(), 8)
