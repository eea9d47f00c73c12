"""Models made ready to train: stock gradients, the bytes that `lean` says, and nothing else moved."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import BLOCKS, TWELVE, build, short, traced
from random_networks import random_networks
from repository import ROOT
from torch import nn

import costmodel
from costmodel import METHODS, InputError, apply, footprint, restore
from costmodel.checking.measuring import loss_of, peak_bytes, prepare, saved_bytes
from costmodel.layers.convolution import standardize
from costmodel.layers.lite_residual import LiteResidual
from costmodel.training.applied import Applied
from costmodel.training.derivation import Derivations

EXACT = [("full", None), ("last", None), ("norm", None), ("bias", None), ("blocks", 3)]
RESOLUTION, BATCH = 64, 2


@pytest.fixture(autouse=True)
def _no_warnings():
    """TinyTL's conversion warns; one test asks for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def images(batch: int = BATCH, resolution: int = RESOLUTION, **options) -> torch.Tensor:
    return torch.randn(batch, 3, resolution, resolution, generator=torch.Generator().manual_seed(1)).to(**options)


def gradients(model: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of one step from the same seed (dropout and stochastic depth draw the same masks)."""
    torch.manual_seed(7)
    model.zero_grad(set_to_none=True)
    loss_of(model(batch)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    # A shift before a norm has no gradient but rounding: it is measured by the others.
    least = 1e-3 * max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp_min(least).clamp_min(1e-12)
        worst = ((found[name] - gradient).abs().max() / scale).item()
        assert worst < tolerance, (name, worst)


@pytest.mark.parametrize("name", TWELVE, ids=short)
def test_saved_bytes_are_those_of_lean_for_every_method_and_depth(name):
    graph, batch = traced(name, RESOLUTION), images()
    count = BLOCKS[name]
    for method in (method for method in METHODS.values() if method.has_layers):
        for k in sorted({1, 3, 5, count}) if method.takes_blocks else (None,):
            model = apply(build(name), method.name, k, RESOLUTION).train()
            predicted = footprint(graph, method.name, k, BATCH).saved_bytes
            assert saved_bytes(model, batch) == predicted, (method.name, k)


@settings(max_examples=60)
@given(network=random_networks(), data=st.data())
def test_random_networks_and_freeze_patterns_keep_what_lean_says(network, data):
    graph = costmodel.trace(network.module, network.resolution)
    names = sorted({t.name for layer in graph.layers for t in layer.parameters.values()})
    trained = data.draw(st.sets(st.sampled_from(names), min_size=1))
    model = copy.deepcopy(network.module)
    apply(model, resolution=network.resolution, trained=trained).train()
    batch = torch.randn(BATCH, graph.input.shape[1], network.resolution, network.resolution)
    assert saved_bytes(model, batch) == footprint(graph, trained=trained, batch=BATCH).saved_bytes


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "torchvision:efficientnet_b0", "torchvision:resnet18",
                                  "timm:mobilenetv4_conv_small", "torchvision:googlenet"], ids=short)  # fmt: skip
@pytest.mark.parametrize(("method", "k"), EXACT)
def test_exact_methods_have_the_gradients_of_stock_pytorch(name, method, k):
    if METHODS[method].takes_blocks and name == "torchvision:googlenet":
        return  # it has no blocks; test_footprint has the error
    stock = build(name)
    applied = apply(copy.deepcopy(stock), method, k, RESOLUTION).train()
    plan = footprint(traced(name, RESOLUTION), method, k)
    prepare(stock, plan.graph, plan.assignment)
    # In float32 to rounding, which batch norm over a few values makes larger: as a whole, not number by number.
    found, expected = gradients(applied, images()), gradients(stock, images())
    error = sum((found[name] - gradient).square().sum() for name, gradient in expected.items())
    assert error / sum(gradient.square().sum() for gradient in expected.values()) < 1e-6
    batch = images(dtype=torch.double)
    assert_same_gradients(gradients(applied.double(), batch), gradients(stock.double(), batch), 1e-8)


@settings(max_examples=40)
@given(network=random_networks(), data=st.data())
def test_random_networks_have_the_gradients_of_stock_pytorch(network, data):
    stock = copy.deepcopy(network.module).double().train()
    graph = costmodel.trace(stock, network.resolution)
    names = sorted({t.name for layer in graph.layers for t in layer.parameters.values()})
    trained = data.draw(st.sets(st.sampled_from(names), min_size=1))
    applied = apply(copy.deepcopy(stock), resolution=network.resolution, trained=trained).train()
    for name, parameter in stock.named_parameters():
        parameter.requires_grad_(name in trained)
    batch = torch.randn(BATCH, graph.input.shape[1], network.resolution, network.resolution, dtype=torch.double)
    assert_same_gradients(gradients(applied, batch), gradients(stock, batch), 1e-9)


@pytest.mark.parametrize("name", ["zoo:proxylessnas_mobile_tinytl", "timm:resnetv2_50x1_bit", "timm:nf_regnet_b0"])
@pytest.mark.parametrize(("method", "k"), [("full", None), ("bias", None), ("blocks", 2)])
def test_weights_computed_from_parameters_are_computed_again_and_not_kept(name, method, k):
    stock = build(name)
    applied = apply(copy.deepcopy(stock), method, k, RESOLUTION).train()
    plan = footprint(costmodel.trace(stock, RESOLUTION), method, k, BATCH)
    prepare(stock, plan.graph, plan.assignment)
    assert saved_bytes(applied, images()) == plan.saved_bytes
    batch = images(dtype=torch.double)
    assert_same_gradients(gradients(applied.double(), batch), gradients(stock.double(), batch), 1e-8)


class PassWhereAbove(torch.autograd.Function):
    """MobileTL's definition, slowly: hard-swish forward, the gradient passes where the input is above 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.hardswish(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, grad, torch.zeros_like(grad))


class MaskedHardswish(nn.Module):
    def forward(self, x):
        return PassWhereAbove.apply(x)


def test_mobiletl_has_the_gradients_of_its_definition():
    stock = build("torchvision:mobilenet_v3_small").double()
    applied = apply(copy.deepcopy(stock), "mobiletl", 3, RESOLUTION).train()
    plan = footprint(traced("torchvision:mobilenet_v3_small", RESOLUTION), "mobiletl", 3)
    prepare(stock, plan.graph, plan.assignment)
    # Written from the network's own structure: features.9 to 11 are the last three blocks, their hard-swishes stand
    # after expansion (block.0) and depthwise convolution (block.1); the squeeze-excite gate (block.2) stays exact.
    for block in (9, 10, 11):
        for part in (0, 1):
            assert isinstance(stock.features[block].block[part][2], nn.Hardswish)
            stock.features[block].block[part][2] = MaskedHardswish()
            assert not stock.features[block].block[part][1].training
        assert stock.features[block].block[3][1].training
    batch = images(dtype=torch.double)
    found = gradients(applied, batch)
    assert_same_gradients(found, gradients(stock, batch), 1e-9)
    assert "features.9.block.0.1.bias" in found
    assert "features.9.block.0.1.weight" not in found


def test_mobiletl_of_relu6_networks_is_exact():
    stock = build("torchvision:mobilenet_v2").double()
    applied = apply(copy.deepcopy(stock), "mobiletl", 3, RESOLUTION).train()
    plan = footprint(traced("torchvision:mobilenet_v2", RESOLUTION), "mobiletl", 3)
    prepare(stock, plan.graph, plan.assignment)
    batch = images(dtype=torch.double)
    assert_same_gradients(gradients(applied, batch), gradients(stock, batch), 1e-9)


@pytest.mark.parametrize("method", ["tinytl-b", "tinytl-l", "tinytl-lb"])
def test_tinytl_gradients_are_derivatives(method):
    """Along a random direction the loss changes as the gradients say (central difference, in double)."""
    model = apply(build("torchvision:mobilenet_v2").double(), method, resolution=RESOLUTION).train()
    for module in model.modules():  # dropout would draw other masks
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, LiteResidual):
            nn.init.ones_(module.norm2.weight)  # zero at first, which would hide what lies before it
    batch = images(dtype=torch.double)
    found = gradients(model, batch)
    assert found
    named = dict(model.named_parameters())
    direction = {name: torch.randn_like(gradient) for name, gradient in found.items()}
    slope = sum((found[name] * direction[name]).sum() for name in found).item()
    step = 1e-9

    def loss_at(distance: float) -> float:
        with torch.no_grad():
            for name, along in direction.items():
                named[name] += distance * along
            value = loss_of(model(batch)).item()
            for name, along in direction.items():
                named[name] -= distance * along
        return value

    assert (loss_at(step) - loss_at(-step)) / (2 * step) == pytest.approx(slope, rel=1e-4)


def test_tinytl_computes_group_norm_and_standardised_convolutions_in_eval_mode_too():
    plain = build("torchvision:mobilenet_v2").double()
    applied = apply(copy.deepcopy(plain), "tinytl-b", resolution=RESOLUTION).eval()
    layer = plain.features[0]
    x = images(dtype=torch.double)
    expected = F.conv2d(x, standardize(layer[0].weight), None, 2, 1)
    expected = F.group_norm(expected, 4, layer[1].weight, layer[1].bias, layer[1].eps).clamp(0, 6)
    seen = []
    applied.features[0].register_forward_hook(lambda _, __, output: seen.append(output))
    applied(x)
    torch.testing.assert_close(seen[0], expected)


def test_lite_residuals_start_as_zero_and_train():
    plain = build("timm:tinynet_e")
    bare = apply(copy.deepcopy(plain), "tinytl-b", resolution=RESOLUTION).eval()
    torch.manual_seed(3)
    lite = apply(copy.deepcopy(plain), "tinytl-l", resolution=RESOLUTION).eval()
    assert torch.equal(bare(images()), lite(images()))
    assert sorted(lite.lite_residual) == sorted(f"block{k}" for k in range(2, 11))
    lite.train()
    assert gradients(lite, images()).keys() == {
        name for name, _ in lite.named_parameters() if name.startswith(("lite_residual.", "classifier."))
    }


@pytest.mark.parametrize(
    "method", [name for name, m in METHODS.items() if m.has_layers and not name.startswith(("tinytl", "lora"))]
)
def test_eval_output_and_state_dict_stay_to_the_last_bit(method):
    k = 3 if METHODS[method].takes_blocks else None
    plain = build("torchvision:mobilenet_v3_small").eval()
    before = plain(images())
    applied = apply(copy.deepcopy(plain), method, k, RESOLUTION)
    assert not applied.training
    assert torch.equal(applied(images()), before)
    assert list(applied.state_dict()) == list(plain.state_dict())
    applied.load_state_dict(plain.state_dict())
    plain.load_state_dict(applied.state_dict())


def test_frozen_norms_stay_frozen_through_train():
    model = apply(build("torchvision:mobilenet_v2"), "mobiletl", 2, RESOLUTION)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.eval()
    model.train()
    model(images())
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, statistics[name])}
    # features.16 and 17 are the last two blocks: their closing norm is conv.3; features.18 is the tail.
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{norm}.{s}" for norm in ("features.16.conv.3", "features.17.conv.3", "features.18.1")
                       for s in names}  # fmt: skip


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        loss_of(model(torch.randn(BATCH, 3, RESOLUTION, RESOLUTION))).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)


def test_trained_saved_restored_and_resumed():
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return apply(build("timm:mobilenetv3_small_050"), "mobiletl", 3, RESOLUTION).train()

    straight = fresh()
    optimizer = new_optimizer(straight)
    train_steps(straight, optimizer, range(4))

    interrupted = fresh()
    optimizer = new_optimizer(interrupted)
    train_steps(interrupted, optimizer, range(2))
    file = io.BytesIO()
    torch.save({"model": interrupted.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    resumed = fresh()
    resumed.load_state_dict(checkpoint["model"])
    optimizer = new_optimizer(resumed)
    optimizer.load_state_dict(checkpoint["optimizer"])
    train_steps(resumed, optimizer, range(2, 4))
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    straight.eval()
    trained_output = straight(images())
    plain = build("timm:mobilenetv3_small_050").eval()
    plain.load_state_dict(straight.state_dict())
    assert torch.equal(plain(images()), trained_output)
    restored = restore(straight)
    assert type(restored) is type(plain)
    assert torch.equal(restored(images()), trained_output)
    assert all(parameter.requires_grad for parameter in restored.parameters())


def test_frozen_weights_in_half_precision():
    model = build("torchvision:mobilenet_v2")
    weights = sum(p.numel() * 4 for p in model.parameters())
    applied = apply(model, "blocks", 2, RESOLUTION, frozen_dtype="float16").train()
    graph = traced("torchvision:mobilenet_v2", RESOLUTION)
    priced = footprint(graph, "blocks", 2, BATCH, frozen_dtype="float16")
    held = sum(p.numel() * p.element_size() for p in applied.parameters())
    assert held == priced.weights_bytes < weights
    assert saved_bytes(applied, images()) == priced.saved_bytes
    assert gradients(applied, images()).keys() == priced.assignment.trained
    rounded = applied.eval()(images())
    restored = restore(applied)
    assert all(p.dtype == torch.float32 for p in restored.parameters())
    torch.testing.assert_close(restored(images()), rounded)  # in eval mode, too, weights are cast where they are used


def test_copies_train_on_their_own():
    applied = apply(build("timm:tinynet_e"), "bias", resolution=RESOLUTION).train()
    twin = copy.deepcopy(applied)
    assert_same_gradients(gradients(twin, images()), gradients(applied, images()), 1e-6)
    restore(twin)
    assert isinstance(applied, Applied)


@pytest.mark.parametrize("store", [
    lambda model, path: pickle.loads(pickle.dumps(model)),
    lambda model, path: (torch.save(model, path), torch.load(path, weights_only=False))[1],
], ids=["pickle", "torch.save"])  # fmt: skip
@pytest.mark.parametrize(("name", "method", "k"), [("timm:tinynet_e", "mobiletl", 2), ("timm:tinynet_e", "bias", None),
                         ("torchvision:mobilenet_v2", "tinytl-lb", None),
                         ("zoo:proxylessnas_mobile_tinytl", "full", None)])  # fmt: skip
def test_an_applied_network_survives_a_file(name, method, k, store, tmp_path):
    applied = apply(build(name), method, k, RESOLUTION).train()
    again = store(applied, tmp_path / "applied.pt")
    assert type(again) is type(applied) and isinstance(again, Applied) and again.training
    assert again.state_dict().keys() == applied.state_dict().keys()
    assert saved_bytes(again, images()) == saved_bytes(applied, images())
    assert_same_gradients(gradients(again, images()), gradients(applied, images()), 1e-6)
    again.eval(), applied.eval()
    with torch.no_grad():
        assert torch.equal(again(images()), applied(images()))
    plain = restore(again)
    assert not isinstance(plain, Applied) and all(parameter.requires_grad for parameter in plain.parameters())


def test_a_file_of_an_applied_network_is_little_larger_than_its_weights(tmp_path):
    applied = apply(build("torchvision:mobilenet_v2"), "mobiletl", 5, RESOLUTION)
    plain = build("torchvision:mobilenet_v2")
    assert len(pickle.dumps(applied)) - len(pickle.dumps(plain)) < 500_000  # the plan names modules, holds none


class ScaledByWhatItComputes(nn.Module):
    """A scale of the activations that is computed from a parameter."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(3, 1, 1)), nn.Linear(3, 2)

    def forward(self, x):
        return self.head((x * self.scale.exp()).mean((2, 3)))


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="unknown method 'mobile-tl'; did you mean 'mobiletl'"):
        apply(build("timm:tinynet_e"), "mobile-tl", resolution=RESOLUTION)
    with pytest.raises(InputError, match="has 10 blocks"):
        apply(build("timm:tinynet_e"), "mobiletl", 11, RESOLUTION)
    with pytest.raises(InputError, match="'int8' can only be priced"):
        apply(build("timm:tinynet_e"), "bias", resolution=RESOLUTION, frozen_dtype="int8")
    with pytest.raises(InputError, match="'back-razor' can only be priced"):
        apply(build("timm:tinynet_e"), "back-razor", resolution=RESOLUTION)
    model = apply(build("timm:tinynet_e"), "bias", resolution=RESOLUTION)
    with pytest.raises(InputError, match="already been applied"):
        apply(model, "bias", resolution=RESOLUTION)
    with pytest.raises(InputError, match="has not been applied"):
        restore(build("timm:tinynet_e"))


@pytest.mark.parametrize("n", [1, 4])
def test_options_of_a_method_are_applied(n):
    name = "timm:tinynet_e"
    model = apply(build(name), "last-convs", resolution=RESOLUTION, options={"convolutions": n}).train()
    plan = footprint(traced(name, RESOLUTION), "last-convs", batch=BATCH, options={"convolutions": n})
    assert {k for k, parameter in model.named_parameters() if parameter.requires_grad} == plan.assignment.trained
    assert saved_bytes(model, images()) == plan.saved_bytes


def test_tinytl_warns_that_the_function_changes():
    with pytest.warns(UserWarning, match="group_norm in place of batch_norm"):
        apply(build("timm:tinynet_e"), "tinytl-b", resolution=RESOLUTION)


def test_a_failed_apply_leaves_the_model_as_it_was():
    model = ScaledByWhatItComputes()
    with pytest.raises(InputError):
        apply(model, "full", resolution=8, frozen_dtype="int8")
    assert type(model) is ScaledByWhatItComputes
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("method", "k"), [("bias", None), ("mobiletl", 3), ("tinytl-l", None)])
def test_the_measured_peak_is_within_one_percent(method, k):
    name = "torchvision:mobilenet_v3_small"
    torch.set_num_threads(2)  # with one, PyTorch runs other convolutions than the oneDNN ones that are priced
    try:
        model = apply(build(name), method, k, 128).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        update, batch = torch.optim.SGD(trained, 1e-6), images(8, 128)

        def step() -> None:
            loss_of(model(batch)).backward()
            update.step()
            update.zero_grad(set_to_none=True)

        step()
        measured = peak_bytes(step)
    finally:
        torch.set_num_threads(1)
    priced = footprint(traced(name, 128), method, k, 8, kernels="layers")
    predicted = priced.peak_bytes - priced.moments[0].total_bytes
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert predicted == pytest.approx(measured, rel=0.01)
    else:
        bare = footprint(traced(name, 128), method, k, 8)
        assert bare.peak_bytes - bare.moments[0].total_bytes <= measured


def test_the_example_trains(tmp_path):
    script = ROOT / "examples" / "finetune.py"
    arguments = ["--steps", "3", "--resolution", "32", "--out", str(tmp_path / "weights.pt")]
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    assert (tmp_path / "weights.pt").exists()


def test_a_weight_made_again_is_freed_at_once():
    """Not when the garbage collector comes by: weights of all layers would be alive together."""
    derivations, weight = Derivations(), torch.ones(3)
    doubled = derivations.run(torch.mul, (weight, 2), {})
    total = derivations.run(torch.add, (doubled, 1), {})
    recipe = derivations.recipe(total)
    gc.disable()
    try:
        made = recipe.made_of(weight)
        assert torch.equal(made, torch.full((3,), 3.0))
        alive = weakref.ref(made)
        del made
        assert alive() is None
    finally:
        gc.enable()
