"""Working memory of kernels: predicted for one layer, next to what the profiler sees of the same call."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import NETWORKS
from torch import nn

from costmodel import trace, verify
from costmodel.accounting.kernels import Call, Kernels
from costmodel.checking.measuring import peak_bytes
from costmodel.layers.convolution import conv2d

SCRATCH_BYTES = 64  # scalars of the profiler's own events

avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the working memory of convolutions is known for AVX-512 alone",
)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured(call, tensors):
    """Return what forward and backward of a call take beside its results, in bytes."""
    box = {}

    def forward():
        box["y"] = call(*tensors)

    forward()
    box.clear()
    first = peak_bytes(forward) - box["y"].numel() * 4
    dy, wanted = torch.ones_like(box["y"]), [tensor for tensor in tensors if tensor.requires_grad]

    def backward():
        box["gradients"] = torch.autograd.grad(box["y"], wanted, dy)

    second = peak_bytes(backward)
    return first, second - sum(gradient.numel() * 4 for gradient in box["gradients"])


@st.composite
def small_convolutions(draw):
    """What PyTorch computes with kernels of its own: (arguments, batch, threads)."""
    pointwise = draw(st.booleans())
    count = draw(st.integers(1, 2))
    single = pointwise and count == 1
    kernel = 1 if pointwise else draw(st.sampled_from([1, 2, 3]))
    stride, dilation = (1, 1) if single else (draw(st.integers(1, 2)), draw(st.integers(1, 2)) if kernel > 1 else 1)
    padding = draw(st.integers(0, 1))
    channels, filters = draw(st.integers(2, 24)), draw(st.integers(2, 24))
    shape = (channels, filters, kernel, stride, padding, dilation)
    return shape, draw(st.integers(1, 15)) if single else 1, count


@given(small_convolutions(), st.sampled_from([(True, True), (True, False), (False, True)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_small_convolutions_unfold_their_input(drawn, wanted, own):
    """Exact, with both layers: 12 x 12 images, of which no kernel makes one of more than 20,480 numbers."""
    (channels, filters, kernel, stride, padding, dilation), batch, count = drawn
    module = nn.Conv2d(channels, filters, kernel, stride, padding, dilation, bias=False)
    layer = trace(nn.Sequential(nn.Conv2d(3, channels, 1), module), 12).layers[1]
    x = torch.randn(batch, channels, 12, 12, requires_grad=wanted[0])
    weight = module.weight.detach().requires_grad_(wanted[1])
    roles = tuple(role for role, want in zip(("input", "weight"), wanted, strict=True) if want)
    call = conv2d if own else F.conv2d
    with threads(count):
        found = measured(lambda x, w: call(x, w, None, stride, padding, dilation), (x, weight))
    kernels = Kernels("layers" if own else "onednn", count)
    expected = kernels.working(Call(layer, roles, batch, 4, False, count))
    assert found == tuple(pytest.approx(value, abs=SCRATCH_BYTES) for value in expected)


# Channels, filters, kernel, stride, groups: pointwise, dense and depthwise, with and without a stride.
CONVOLUTIONS = [
    (32, 32, 3, 2, 1), (24, 40, 3, 2, 1), (24, 48, 3, 1, 1), (48, 24, 1, 1, 1), (32, 32, 3, 1, 32), (32, 32, 3, 2, 32),
    (32, 32, 5, 1, 32), (32, 32, 5, 2, 32), (24, 24, 7, 1, 24),
]  # fmt: skip


@avx512
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("pixels", [14, 40])
@pytest.mark.parametrize("count", [1, 2])
def test_convolutions_copy_their_arguments(convolution, wanted, pixels, count):
    """Sixteen images, so that nothing unfolds that need not; up to the scratchpads of dense weight gradients."""
    channels, filters, kernel, stride, groups = convolution
    module = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
    layer = trace(nn.Sequential(nn.Conv2d(3, channels, 1), module), pixels).layers[1]
    x = torch.randn(16, channels, pixels, pixels, requires_grad=wanted[0])
    weight = module.weight.detach().requires_grad_(wanted[1])
    roles = tuple(role for role, want in zip(("input", "weight"), wanted, strict=True) if want)
    with threads(count):
        found = measured(lambda x, w: F.conv2d(x, w, None, stride, kernel // 2, 1, groups), (x, weight))
    expected = Kernels("onednn", count).working(Call(layer, roles, 16, 4, False, count))
    scratch = 2 * weight.numel() * 4 + 8192 if groups == 1 and wanted[1] else 256
    assert found[0] == pytest.approx(expected[0], abs=SCRATCH_BYTES)
    assert 0 <= found[1] - expected[1] <= scratch


# Of 20 to 48 channels a group, and of 10, which no block divides: 24 and 48 are padded.
STRIDED_GROUPS = (
    *((5 * channels, 5 * channels, 3, 2, 1, 5, 8) for channels in (10, 16, 20, 24, 32, 48)),
    (48, 48, 3, 2, 1, 2, 4), (48, 48, 5, 2, 1, 2, 16), (40, 40, 5, 2, 1, 2, 8),
)  # fmt: skip

# Channels, filters, kernel, stride, dilation, groups, pixels: what other implementations of oneDNN compute.
OTHERS = [
    (3, 24, 16, 16, 1, 1, 64), (3, 24, 4, 4, 1, 1, 32), (12, 16, 3, 1, 1, 1, 16), (6, 20, 5, 2, 1, 1, 20),
    (12, 12, 3, 1, 12, 1, 32), (32, 32, 3, 1, 2, 32, 24), (32, 32, 3, 2, 2, 32, 24), (16, 32, 3, 1, 1, 16, 20),
    (36, 36, 3, 1, 1, 6, 20), (32, 32, 3, 1, 1, 4, 16), (32, 32, 3, 1, 1, 4, 2), (32, 32, 3, 1, 1, 2, 16),
    (48, 64, 2, 2, 1, 1, 16), (64, 64, 1, 2, 1, 1, 16), (24, 48, 3, 2, 1, 1, 15), (32, 32, 3, 1, 1, 32, 2),
    *STRIDED_GROUPS,
]  # fmt: skip

UNFOLDED_GROUPS = ((16, 32, 3, 1, 1, 16, 20), (36, 36, 3, 1, 1, 6, 20), (32, 32, 3, 2, 2, 32, 24))


def called(convolution, wanted, last):
    """Return what a convolution of two images, padded to keep its pixels, takes: measured, and expected."""
    channels, filters, kernel, stride, dilation, groups, pixels = convolution
    padding = dilation * (kernel // 2) if stride < kernel - 1 or kernel == 3 else 0
    module = nn.Conv2d(channels, filters, kernel, stride, padding, dilation, groups, bias=False)
    order = torch.channels_last if last else torch.contiguous_format

    class Network(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).contiguous(memory_format=order))

    layer = next(one for one in trace(Network(nn.Conv2d(3, channels, 1), module), pixels).layers if one.name == "1")
    x = torch.randn(2, channels, pixels, pixels).contiguous(memory_format=order).requires_grad_(wanted[0])
    weight = module.weight.detach().requires_grad_(wanted[1])
    roles = tuple(role for role, want in zip(("input", "weight"), wanted, strict=True) if want)
    with threads(1):
        found = measured(lambda x, w: F.conv2d(x, w, None, stride, padding, dilation, groups), (x, weight))
    call = Call(layer, roles, 2, 4, False, 1, gradient=layer.output.strides)
    return found, Kernels("onednn", 1).working(call), layer


@avx512
@pytest.mark.parametrize("convolution", OTHERS)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("last", [False, True])
def test_convolutions_of_every_implementation(convolution, wanted, last):
    """Within a page, with the scratchpads."""
    if last and convolution in (*UNFOLDED_GROUPS, *STRIDED_GROUPS):
        pytest.skip("not counted")
    found, expected, layer = called(convolution, wanted, last)
    assert bool(layer.output.strides) == last
    assert found == tuple(pytest.approx(value, abs=4096) for value in expected)


ARITHMETIC = {"mul": torch.mul, "sub": torch.sub, "div": torch.div}


@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize(("op", "pixels"), [("mul", 16), ("mul", 1), ("sub", 1), ("div", 16), ("div", 1)])
def test_arithmetic(op, pixels, wanted):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(pixels)

        def forward(self, x):
            x = self.conv(x)
            return ARITHMETIC[op](x, self.pool(x))

    layer, batch = trace(Two(), 16).layers[-1], 64
    tensors = [torch.rand(batch, 8, 16, 16) + 1, torch.rand(batch, 8, pixels, pixels) + 1]
    for tensor, want in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(want)
    roles = tuple(role for role, want in zip(("input", "other"), wanted, strict=True) if want)
    _, found = measured(ARITHMETIC[op], tensors)
    if op == "sub" and wanted[0]:
        found += tensors[0].numel() * 4  # the gradient itself is passed on and takes no memory
    expected = Kernels("onednn").working(Call(layer, roles, batch, 4, False, 2))[1]
    assert found == pytest.approx(expected, rel=0.01, abs=SCRATCH_BYTES)


# --- whole steps ------------------------------------------------------------------------------------------------------


@avx512
@pytest.mark.parametrize(("batch", "count"), [(1, 2), (8, 1)])
@pytest.mark.parametrize(("method", "blocks"), [("full", None), ("blocks", 5), ("bias", None), ("tinytl-lb", None)])
def test_weights_that_are_computed_again_are_in_the_peak(method, blocks, batch, count):
    """Group norm and standardised weights, whose gradient goes back through what made them; within 1 %, no slack."""
    with threads(count):
        found = verify(NETWORKS["mobilenet_v2_group_norm"](), method, blocks, batch, 32, accounting="lean")
    saved, peak = found.checks[:2]
    assert saved.predicted == saved.measured
    assert abs(peak.relative_difference) < 0.01


@avx512
@pytest.mark.parametrize(("method", "blocks"), [("full", None), ("blocks", 3), ("bias", None)])
def test_a_formula_of_several_calls_too(method, blocks):
    """TinyTL's network standardises by a mean, a difference, a deviation and a quotient."""
    found = verify("zoo:proxylessnas_mobile_tinytl", method, blocks, 2, 64, accounting="lean")
    assert abs(found.checks[1].relative_difference) < 0.002


@avx512
@pytest.mark.parametrize("accounting", ["eager", "lean"])
def test_a_call_that_leaves_its_defaults_out(accounting):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(32, 3, 3, 3)), nn.Linear(32, 4)

        def forward(self, x):
            return self.head(F.conv2d(x, self.weight).relu().mean((2, 3)))

    found = verify(Functional(), "full", None, 2, 32, accounting=accounting)
    assert abs(found.checks[1].relative_difference) < 0.01


@avx512
@pytest.mark.parametrize("accounting", ["eager", "lean"])
def test_one_thread_and_one_image(accounting):
    for count, batch in ((1, 8), (1, 1), (2, 1)):
        with threads(count):
            found = verify(NETWORKS["mobilenet_v2"](), "full", None, batch, 32, accounting=accounting)
        assert abs(found.checks[1].relative_difference) < 0.001, (count, batch)


@avx512
@pytest.mark.parametrize(("depth", "kernel"), [(1, 3), (2, 3), (3, 3), (3, 5), (4, 5)])
def test_a_kernel_deeper_than_a_volume_is_unfolded(depth, kernel):
    layers = (nn.Conv3d(channels, 32, kernel, padding=kernel // 2) for channels in (3, 32))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 4))
    with threads(1):
        found = verify(network, "full", batch=2, input=(3, depth, 8, 8))
    assert abs(found.checks[1].relative_difference) < 0.001
