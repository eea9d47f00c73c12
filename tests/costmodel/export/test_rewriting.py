"""Rewrites of a recorded graph: they change nothing of what it computes, and leave out the copies."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from costmodel.export.rewriting import simplify

_aten = torch.ops.aten


def test_the_gradient_of_padding_is_a_cut():
    """The runtime's kernel pads by no negative number."""

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(nn.functional.pad(x, (1, 2, 0, 3)).pow(3).sum(), x)

    given = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    graph = make_fx(gradient)(given)
    assert any(node.target is _aten.constant_pad_nd.default and min(node.args[1]) < 0 for node in graph.graph.nodes)
    simplify(graph.graph)
    graph.recompile()
    pads = [node.args[1] for node in graph.graph.nodes if node.target is _aten.constant_pad_nd.default]
    assert all(min(pad) >= 0 for pad in pads)
    torch.testing.assert_close(graph(given), gradient(given), rtol=0, atol=0)


def gradients(x, first, second):
    """Return the gradients of two linear maps' weights."""
    first, second = first.detach().requires_grad_(), second.detach().requires_grad_()
    out = nn.functional.linear(nn.functional.linear(x, first).relu(), second)
    return torch.autograd.grad(out.square().sum(), (first, second))


def test_no_weight_of_a_linear_map_is_transposed():
    """Of a weight (6 x 4) a runtime without views would copy the transpose forward, backward and in the update."""
    source = torch.Generator().manual_seed(0)
    given = tuple(torch.randn(shape, generator=source) for shape in ((3, 4), (6, 4), (2, 6)))
    graph = make_fx(gradients)(*given)
    before = copy.deepcopy(graph)
    weights = {(4, 6), (6, 2)}

    def transposes(module) -> list:
        return [
            node for node in module.graph.nodes
            if node.target in (_aten.t.default, _aten.permute.default) and tuple(node.meta["val"].shape) in weights
        ]  # fmt: skip

    assert transposes(before)
    simplify(graph.graph)
    graph.recompile()
    assert not transposes(graph)
    torch.testing.assert_close(graph(*given), before(*given), rtol=0, atol=1e-5)
