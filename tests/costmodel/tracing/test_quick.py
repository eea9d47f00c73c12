"""Calls that tracing does not work out again and again: what they give, and refuse, is what PyTorch does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from random_networks import random_networks
from torch.nn import functional as F

from costmodel.graph.store import encode
from costmodel.tracing.quick import SAME_SHAPE, QuickCalls
from costmodel.tracing.tracer import trace

ACTIVATIONS = sorted(SAME_SHAPE - {F.batch_norm}, key=lambda function: function.__name__)
WITHOUT_INPLACE = {F.gelu, F.softplus}


def images(*shape: int, **more) -> torch.Tensor:
    return torch.empty(shape or (97, 4, 5, 5), device="meta", **more)


def channels(count: int = 4) -> torch.Tensor:
    return torch.empty(count, device="meta")


def norm_arguments(count: int = 4) -> tuple:
    return (channels(count), channels(count), channels(count), channels(count), True)


def look(tensor: torch.Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type


def check(function, make, *more, **options) -> None:
    """The second and third call are like a real one, and give new memory or, in place, their input."""
    run, expected = QuickCalls(), function(make(), *more, **options)
    for _ in range(3):
        x = make()
        result = run(function, (x, *more), options)
        assert look(result) == look(expected)
        assert (result is x) == bool(options.get("inplace"))
        assert (result.untyped_storage()._cdata == x.untyped_storage()._cdata) == (result is x)


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda function: function.__name__)
def test_activations(function):
    check(function, images)
    for inplace in (False, True) if function not in WITHOUT_INPLACE else ():
        check(function, images, inplace=inplace)
    check(function, lambda: images(97, 8))
    check(function, lambda: images(97, 4, 6, 6).to(memory_format=torch.channels_last))
    check(function, lambda: images(97, 4, 6, 6)[:, ::2])
    check(function, lambda: images(dtype=torch.float16))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training):
    for make in (images, lambda: images(97, 4), lambda: images(97, 4, 6, 6).to(memory_format=torch.channels_last)):
        check(F.batch_norm, make, *norm_arguments()[:-1], training)
        check(F.batch_norm, make, *norm_arguments()[:2], training=training, eps=1e-3)


def test_a_call_is_worked_out_once_for_each_set_of_options():
    run, x, seen = QuickCalls(), images(), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Watch():
        for slope in (0.1, 0.1, 0.2, 0.2):
            run(F.leaky_relu, (x, slope), {})
    assert [str(function) for function in seen].count("aten.leaky_relu.default") == 2


@pytest.mark.parametrize(
    ("function", "x", "more", "options"),
    [
        (F.batch_norm, images(), norm_arguments(5), {}),  # channels that do not match
        (F.batch_norm, images(97, 4), (None, None, channels(), channels(), False), {}),  # no running statistics
        (F.batch_norm, images(1, 4), norm_arguments(), {}),  # one value per channel
        (F.hardtanh, images(), (6.0, 0.0), {}),
        (F.gelu, images(), (), {"approximate": "somehow"}),
    ],
)
def test_what_pytorch_refuses_is_refused_each_time(function, x, more, options):
    run = QuickCalls()
    run(F.batch_norm, (images(), *norm_arguments()), {})  # a good call before does not help a bad one
    with pytest.raises(Exception) as real:
        function(x, *more, **options)
    for _ in range(2):
        with pytest.raises(real.type) as raised:
            run(function, (x, *more), options)
        assert str(raised.value) == str(real.value)


@settings(max_examples=30)
@given(random_networks())
def test_networks_trace_as_if_every_call_were_made(network):
    quick = encode(trace(network.fresh(), network.resolution))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuickCalls, "__call__", lambda self, function, args, kwargs: function(*args, **kwargs))
        assert encode(trace(network.fresh(), network.resolution)) == quick
