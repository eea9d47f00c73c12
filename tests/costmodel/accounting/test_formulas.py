"""What PyTorch's formulas make on the way: the peak of networks whose peak lies there, against the profiler.

`benchmarks/verify_families.py` measures whole families; here each formula stands alone between a stem and a head.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from costmodel import trace, verify
from costmodel.accounting.formulas import _steps


class Between(nn.Module):
    """A stem, `call` on what it gives and on the network itself, and a head."""

    def __init__(self, call, **modules: nn.Module | tuple[int, ...]):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        for name, module in modules.items():
            given = nn.Parameter(0.1 * torch.rand(module)) if isinstance(module, tuple) else module
            setattr(self, name, given)
        self.call, self.head = call, nn.LazyLinear(5)
        self(torch.zeros(2, 3, 32, 32))

    def forward(self, x):
        return self.head(self.call(self.norm(self.stem(x)).relu(), self).flatten(2).mean(2))


def rows(x):
    return x.flatten(2).mT


def conv(**options):
    return nn.Conv2d(16, 16, 3, **options)


def part(x):
    """Channels of what lies as rows of pixels: a slice in the order of channels last."""
    return x.permute(0, 2, 3, 1).contiguous()[..., 4:].permute(0, 3, 1, 2)


def pixels(x):
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


CALLS = {
    "largest of a part": (lambda x, own: F.max_pool2d(part(x), 2), {}),
    "average of a part": (lambda x, own: F.avg_pool2d(part(x), 2), {}),
    "average in an order": (lambda x, own: F.avg_pool2d(pixels(x), 2).flatten(2), {}),
    "largest in an order": (lambda x, own: F.max_pool2d(pixels(x), 2).flatten(2), {}),
    "adaptive average in an order": (lambda x, own: F.adaptive_avg_pool2d(pixels(x), 9).flatten(2), {}),
    "adaptive average across": (lambda x, own: F.adaptive_avg_pool2d(x.transpose(2, 3), 9), {}),
    "groups of a part": (lambda x, own: own.g(part(x)), {"g": nn.GroupNorm(3, 12)}),
    "power": (lambda x, own: own.c(x.clamp(min=1e-6) ** 3), {"c": conv()}),
    "generalised mean": (lambda x, own: own.c(x.clamp(min=1e-6).pow(own.p)), {"c": conv(), "p": (1,)}),
    "square root": (lambda x, own: own.c((x + 1).sqrt()), {"c": conv()}),
    "absolute": (lambda x, own: own.c((x - 1).abs()), {"c": conv()}),
    "clamp": (lambda x, own: own.c(x.add(own.c2(x))).clamp_(-1, 1), {"c": conv(), "c2": conv(padding=1)}),
    "variance": (lambda x, own: own.c((x - x.mean(1, True)) * (x.var(1, keepdim=True) + 1).rsqrt()), {"c": conv()}),
    "quotient": (lambda x, own: own.c(x / (1 + x.mean(1, keepdim=True))), {"c": conv()}),
    "response norm": (lambda x, own: own.c(x * x.norm(dim=(2, 3), keepdim=True)), {"c": conv()}),
    "prelu": (lambda x, own: own.c(own.a(x)), {"c": conv(), "a": nn.PReLU(16)}),
    "layer norm of all": (lambda x, own: own.c(own.n(x)), {"c": conv(), "n": nn.LayerNorm([16, 16, 16])}),
    "layer norm": (lambda x, own: own.c(own.n(rows(x))), {"c": nn.Linear(16, 8), "n": nn.LayerNorm(16)}),
    "every other pixel": (
        lambda x, own: own.c(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2]], 1)),
        {"c": nn.Conv2d(48, 16, 1)},
    ),
    "dense": (lambda x, own: torch.cat([own.c(torch.cat([x, own.d(x)], 1)), x], 1),
              {"c": nn.Conv2d(24, 8, 3, padding=1), "d": nn.Conv2d(16, 8, 3, padding=1)}),
    "part of the channels": (lambda x, own: torch.cat([own.c(x[:, :4]), x[:, 4:]], 1),
                             {"c": nn.Conv2d(4, 4, 3, padding=1)}),
    "views added": (lambda x, own: own.c(x).flatten(2).softmax(2) @ x.flatten(2).mT, {"c": nn.Conv2d(16, 4, 1)}),
    "product with itself": (lambda x, own: own.c(x.flatten(2) @ x.flatten(2).mT), {"c": nn.Linear(16, 4)}),
    "broadcast factor": (lambda x, own: own.p @ x.flatten(2), {"p": (1, 4, 16)}),
    "permuted rows": (lambda x, own: own.c(x.permute(0, 2, 3, 1)), {"c": nn.Linear(16, 8)}),
    "mixed tokens": (lambda x, own: own.c(rows(x).mT), {"c": nn.Linear(256, 128)}),
    "bilinear": (lambda x, own: own.c(F.interpolate(own.d(x), (16, 16), mode="bilinear") + x),
                 {"c": nn.Conv2d(16, 16, 1), "d": conv(stride=2)}),
    "bilinear, large": (lambda x, own: own.c(F.interpolate(x, (80, 80), mode="bilinear")), {"c": nn.Conv2d(16, 2, 1)}),
    "pixels of padding": (lambda x, own: own.c(x), {"c": nn.Conv2d(16, 24, 1, 2, 1)}),
    "transposed in groups": (lambda x, own: own.c(x), {"c": nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=4)}),
    "transposed, one dimension": (lambda x, own: own.c(x.flatten(2)).mT, {"c": nn.ConvTranspose1d(16, 16, 4, 2, 1)}),
    "root mean square": (lambda x, own: own.c(own.n(rows(x))), {"c": nn.Linear(16, 16), "n": nn.RMSNorm(16)}),
    "larger of two": (lambda x, own: own.c(torch.maximum(x * own.s, own.t)),
                      {"c": conv(), "s": (1, 16, 1, 1), "t": (1, 16, 1, 1)}),
    "Fourier transform": (lambda x, own: own.c(torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(own.w))),
                          {"c": conv(), "w": (16, 16, 9, 2)}),
}  # fmt: skip


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the working memory of convolutions is known for AVX-512 alone",
)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("method", ["full", "last", "bias"])
def test_the_peak_of_a_formula(name, method):
    call, modules = CALLS[name]
    found = verify(Between(call, **modules), method, batch=2, resolution=32)
    assert found.agrees and not found.peak.slack, [check for check in found.checks if not check.agrees]


@pytest.mark.parametrize("trained", [["p"], ["p", "c.weight"], ["stem.weight"]])
@pytest.mark.parametrize("accounting", ["eager", "lean"])
def test_an_exponent_trains(trained, accounting):
    call, modules = CALLS["generalised mean"]
    assert verify(Between(call, **modules), batch=3, resolution=32, trained=trained, accounting=accounting).saved.agrees


@pytest.mark.parametrize(
    ("index", "shapes"),
    [
        (lambda x: x[:, :4], [(97, 4, 16, 16)]),
        (lambda x: x[..., ::2, 1::2], [(97, 16, 8, 16), (97, 16, 8, 8)]),
        (lambda x: x[:, 0, None, 2:], [(97, 16, 16), (97, 1, 14, 16)]),
        (lambda x: x[:], []),
    ],
)
def test_selections_are_undone_one_by_one(index, shapes):
    network = Between(lambda x, own: index(x) * 1)
    layer = next(layer for layer in trace(network, 32).layers if layer.op in ("getitem", "mul"))
    assert (_steps(layer) if layer.op == "getitem" else []) == shapes
