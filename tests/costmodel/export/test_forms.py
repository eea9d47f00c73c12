"""The forms of calls that are recorded give the results and gradients of the calls that they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from costmodel.export.forms import Forms, pack, unpack
from costmodel.export.updates import UPDATES
from costmodel.layers import activations, pooling
from costmodel.layers.convolution import conv2d
from costmodel.step.optimizers import OPTIMIZERS
from costmodel.training.optimizers import TORCH_OPTIMIZERS

CALLS = {
    "relu": activations.relu,
    "relu in place": lambda x: activations.relu(x * 1, inplace=True),
    "relu6": lambda x: activations.relu6(3 * x),
    "hardtanh around 0": lambda x: activations.hardtanh(x, -0.5, 0.25),
    "leaky_relu": lambda x: activations.leaky_relu(x, 0.2),
    "hardsigmoid": lambda x: activations.hardsigmoid(4 * x),
    "masked hardswish": lambda x: activations.masked("hardswish", x),
    "masked gelu": lambda x: activations.masked("gelu", x, 0.1, ("tanh",)),
    "max pool": lambda x: pooling.max_pool2d(x, 3, 2, 1),
    "max pool, ceil": lambda x: pooling.max_pool2d(x, 2, ceil_mode=True),
    "average pool": lambda x: pooling.avg_pool2d(x, 2),
    "average pool, padded": lambda x: pooling.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average pool, padding not counted": lambda x: pooling.avg_pool2d(x, (3, 2), (2, 1), (1, 1), False, False),
    "average to 1": lambda x: pooling.adaptive_avg_pool2d(x, 1),
    "average to 3 x 4": lambda x: pooling.adaptive_avg_pool2d(x, (3, 4)),
    "bilinear": lambda x: F.interpolate(x, (9, 11), mode="bilinear", align_corners=False),
    "nearest, by a factor": lambda x: F.interpolate(x, scale_factor=2),
    "pointwise": lambda x: conv2d(x, torch.linspace(-1, 1, 15).view(3, 5, 1, 1)),
    "batch norm": lambda x: F.batch_norm(x, None, None, torch.arange(1.0, 6.0), torch.ones(5), training=True),
    "batch norm, one image of vectors": lambda x: F.batch_norm(x.flatten(2), None, None, training=True),
}


def _both(call, x):
    """Return result and gradient of a call for a weighted sum of its result."""
    x = x.clone().requires_grad_()
    y = call(x)
    y.mul(torch.linspace(-1, 2, y.numel()).view(y.shape)).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("name", CALLS)
def test_a_form_gives_what_the_call_gives(name):
    x = torch.randn(2, 5, 7, 8, generator=torch.Generator().manual_seed(3))
    with Forms(torch.tensor(0)):
        found = _both(CALLS[name], x)
    for one, other in zip(found, _both(CALLS[name], x), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def test_batch_norm_moves_running_statistics_as_pytorch_does():
    norm = nn.BatchNorm2d(5).train()
    other, x = copy.deepcopy(norm), 3 + 2 * torch.randn(4, 5, 3, 3)
    other(x)
    with Forms(torch.tensor(0)):
        norm(x)
    torch.testing.assert_close(dict(norm.named_buffers()), dict(other.named_buffers()))
    assert not norm.running_mean.eq(0).any()  # they moved


def test_batch_norm_of_a_large_mean_keeps_its_digits():
    """With sums of x and of dy alone a mean of 1000 deviations would leave three digits of a gradient."""
    x = 1000 + torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    exact = _both(lambda x: F.batch_norm(x, None, None, training=True), x.double())[1]
    with Forms(torch.tensor(0)):
        found = _both(lambda x: F.batch_norm(x, None, None, training=True), x)[1]
    assert (found - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.parametrize("shape", [(8,), (3, 5), (1,), (2, 4, 4, 4)])
def test_bits_come_back_from_bytes(shape):
    bits = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    packed = pack(bits)
    assert packed.numel() == -(-bits.numel() // 8)  # eight to a byte
    assert torch.equal(unpack(packed, bits.shape), bits)


def test_dropout_draws_by_step_and_call():
    def draw(step):
        torch.manual_seed(0)
        with Forms(torch.tensor(step)):
            return F.dropout(torch.ones(20_000), 0.3), F.dropout(torch.ones(20_000), 0.3)

    first, second = draw(0)
    assert torch.equal(first, draw(0)[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw(1)[0])
    share = first.eq(0).float().mean()
    # Of 20,000 independent draws the share's standard deviation is sqrt(0.3 x 0.7 / 20000) = 0.0032.
    assert abs(share - 0.3) < 4 * 0.0033
    assert first.max() == pytest.approx(1 / 0.7)
    agree = first.ne(0).eq(second.ne(0)).float().mean()
    assert abs(agree - (0.7**2 + 0.3**2)) < 0.02  # independent of each other


def test_what_is_dropped_gets_no_gradient():
    x = torch.ones(999, requires_grad=True)
    with Forms(torch.tensor(5)):
        y = F.dropout(x, 0.5)
        y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # 0 or 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_that_of_pytorch(name):
    parameter = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    stock = TORCH_OPTIMIZERS[name]([parameter], 0.01)
    update = UPDATES[name]
    own, state = parameter.detach().clone(), {kind: torch.zeros(50) for kind in update.state}
    for step in range(1, 30):
        gradient = torch.randn(50, generator=torch.Generator().manual_seed(step)) / step**2
        parameter.grad = gradient.clone()
        stock.step()
        own, state = update.change(own, gradient, state, torch.tensor(0.01), torch.tensor(float(step)))
        torch.testing.assert_close(own, parameter.detach(), rtol=1e-5, atol=2e-6)
