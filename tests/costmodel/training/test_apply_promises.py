"""What an applied network promises holds in eval mode, in threads and within a compiler, or is refused in one line."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from costmodel import ModelError, apply, footprint, trace
from costmodel.checking.measuring import prepare, saved_bytes
from costmodel.layers.activations import sigmoid

RESOLUTION = 8


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 5),
    )  # fmt: skip


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(1))


def test_second_derivatives_are_refused_also_where_autograd_would_take_them_for_zero():
    x = torch.randn(5, requires_grad=True)
    result = sigmoid(x, keep="input").sum()
    with pytest.raises(ModelError, match=r"second derivatives .* costmodel\.restore"):  # the gradient given is constant
        torch.autograd.grad(result, x, create_graph=True)
    model = apply(small(), "bias", resolution=RESOLUTION).train()
    given = images().requires_grad_()
    loss = model(given).logsumexp(1).sum()
    with pytest.raises(ModelError, match="second derivatives"):
        torch.autograd.grad(loss, given, create_graph=True)
    loss = model(given).logsumexp(1).sum()
    assert torch.autograd.grad(loss, given)[0].shape == given.shape  # the first ones are there as ever


def test_functional_transforms_are_refused():
    model = apply(small(), "bias", resolution=RESOLUTION).train()
    parameters = dict(model.named_parameters())

    def loss(values):
        return torch.func.functional_call(model, values, (images(),)).sum()

    with pytest.raises(ModelError, match=r"torch\.func .* costmodel\.restore"):
        torch.func.grad(loss)(parameters)


def kept(run, model: nn.Module) -> int:
    """The bytes that `run` keeps for backward, parameters and buffers left out."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run(images())
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    del result
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


def test_a_compiler_leaves_an_applied_network_as_it_is():
    model = apply(small(), "bias", resolution=RESOLUTION).train()
    predicted = footprint(trace(small(), RESOLUTION), "bias", batch=4).saved_bytes
    assert kept(model, model) == predicted
    stock = small().requires_grad_(False)
    for name, parameter in stock.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    assert kept(stock, stock) > predicted  # so that the compiled one's number says something
    assert kept(torch.compile(model, backend="aot_eager"), model) == predicted
    assert kept(torch.compile(lambda x: model(x) * 1, backend="aot_eager"), model) == predicted


def test_half_precision_weights_serve_in_eval_mode():
    model = small().eval()
    expected = model(images())
    applied = apply(model, "last", resolution=RESOLUTION, frozen_dtype="float16").eval()
    assert model[0].weight.dtype == torch.float16
    with torch.no_grad():
        assert torch.allclose(applied(images()), expected, atol=1e-2)
    assert applied(images()).shape == (4, 5)


def test_threads_share_an_applied_network():
    model = apply(small(), "bias", resolution=RESOLUTION).train()
    expected = saved_bytes(model, images())
    found, errors = [], []

    def work() -> None:
        try:
            for _ in range(20):
                model(images()).sum().backward()
            found.append(saved_bytes(model, images()))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and found == [expected] * 3


@pytest.mark.parametrize("method", ["full", "last", "bias", "norm"])
@pytest.mark.parametrize("accounting", ["eager", "lean"])
def test_casts_of_weights_under_autocast(method, accounting):
    """Stock PyTorch keeps a copy of every weight that it casts for a gradient; this package's layers keep none."""
    graph = trace(small(), RESOLUTION)
    predicted = footprint(graph, method, batch=4, accounting=accounting, activation_dtype="bfloat16")
    stock = prepare(small(), predicted.graph, predicted.assignment)
    model = stock if accounting == "eager" else apply(small(), method, resolution=RESOLUTION).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert saved_bytes(model, images()) == predicted.saved_bytes
        model(images()).float().logsumexp(1).sum().backward()
        stock(images()).float().logsumexp(1).sum().backward()
    trained = {name: each.grad for name, each in stock.named_parameters() if each.requires_grad}
    assert trained
    for name, gradient in model.named_parameters():
        if name in trained:
            scale = trained[name].abs().max() * (2 if accounting == "eager" else 1)  # it went through twice
            assert gradient.grad.dtype == torch.float32
            torch.testing.assert_close(gradient.grad, trained[name], rtol=0.05, atol=0.02 * scale.item())


def test_what_becomes_float32_under_autocast_is_said():
    class Scaled(nn.Sequential):
        def __init__(self):
            super().__init__(*small())
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return super().forward(x) * self.scale

    graph = trace(Scaled(), RESOLUTION)
    assert ("left out", "mul in the network itself computes in float32 under autocast: with a parameter") in footprint(
        graph, "full", activation_dtype="bfloat16"
    ).summary()
    assert not [label for label, _ in footprint(graph, "full").summary() if label == "left out"]
