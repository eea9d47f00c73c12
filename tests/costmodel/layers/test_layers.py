"""The layers against PyTorch's own functions, and what they keep against the arithmetic of bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from costmodel.accounting import kernels as workspaces
from costmodel.checking.measuring import peak_bytes
from costmodel.errors import InputError
from costmodel.layers import packing
from costmodel.layers.activations import MASKED, masked
from costmodel.layers.convolution import standardize, standardized_conv2d
from costmodel.layers.elementwise import scale
from costmodel.layers.lite_residual import LiteResidual, group_norm
from costmodel.layers.norms import norm_of_trained_shift
from costmodel.layers.table import LAYERS

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

IMAGES = (2, 6, 9, 8)


@dataclass(frozen=True)
class Case:
    """One layer in one use: `ours` and `stock` take the input and the parameters.

    parameters: shapes. trains: which of them. kept: (input, output) -> bytes kept for backward.
    """

    name: str
    ours: Callable
    stock: Callable
    kept: Callable = lambda x, y: 0
    parameters: tuple[tuple[int, ...], ...] = ()
    trains: tuple[int, ...] = ()
    input_trains: bool = True

    @property
    def exact(self) -> bool:
        """Whether gradients equal PyTorch's to the last bit (elsewhere sums are added in another order)."""
        return not self.parameters and "norm" not in self.name

    def __str__(self) -> str:
        return self.name


def _bits(count: int, bits: int = 1) -> int:
    return math.ceil(count * bits / 8)


def _mask(x, y) -> int:
    return _bits(x.numel())


def _input(x, y) -> int:
    return x.numel() * x.element_size()


def _output(x, y) -> int:
    return y.numel() * y.element_size()


def _activations():
    stocks = {
        "relu": F.relu,
        "relu6": F.relu6,
        "hardtanh": F.hardtanh,
        "leaky_relu": F.leaky_relu,
        "hardsigmoid": F.hardsigmoid,
    }
    for name, stock in stocks.items():
        for keep, kept in (("mask", _mask), ("output", _output), ("input", _input)):
            for inplace in (False, True):
                if (inplace and keep == "input") or (name == "hardsigmoid" and keep == "output"):
                    continue

                def ours(x, name=name, keep=keep, inplace=inplace):
                    return LAYERS[name](x, inplace=inplace, keep=keep)

                def theirs(x, stock=stock, inplace=inplace):
                    return stock(x, inplace=inplace)

                yield Case(f"{name}-{keep}{'-inplace' * inplace}", ours, theirs, kept)
    for name, stock in (("sigmoid", torch.sigmoid), ("tanh", torch.tanh)):
        for keep, kept in (("output", _output), ("input", _input)):
            yield Case(f"{name}-{keep}", lambda x, n=name, k=keep: LAYERS[n](x, keep=k), stock, kept)


def _seeded(function: Callable, **arguments) -> Callable:
    def run(x):
        torch.manual_seed(5)
        return function(x, p=0.3, **arguments)

    return run


CONVOLUTIONS = {
    "pointwise": ((4, 6, 1, 1), {}),
    "strided": ((4, 6, 3, 3), {"stride": 2, "padding": 1}),
    "depthwise": ((6, 1, 5, 5), {"stride": (2, 1), "padding": (2, 1), "groups": 6}),
    "dilated": ((4, 3, 3, 2), {"dilation": (1, 2), "groups": 2}),
    "same": ((4, 6, 4, 3), {"padding": "same", "dilation": (1, 2)}),
    "valid": ((4, 6, 2, 2), {"padding": "valid", "stride": 3}),
}


def _convolutions():
    for name, (weight, arguments) in CONVOLUTIONS.items():

        def ours(x, w, b, arguments=arguments):
            return LAYERS["conv2d"](x, w, b, **arguments)

        def stock(x, w, b, arguments=arguments):
            return F.conv2d(x, w, b, **arguments)

        shapes = (weight, weight[:1])
        yield Case(f"conv2d-{name}-frozen", ours, stock, parameters=shapes)
        yield Case(f"conv2d-{name}-bias", ours, stock, parameters=shapes, trains=(1,))
        yield Case(f"conv2d-{name}-all", ours, stock, _input, shapes, (0, 1))
        yield Case(f"conv2d-{name}-first", ours, stock, _input, shapes, (0,), input_trains=False)

        def standardized(x, w, b, arguments=arguments):
            return standardized_conv2d(x, w, b, **arguments)

        def reference(x, w, b, arguments=arguments):
            return F.conv2d(x, standardize(w), b, **arguments)

        yield Case(f"standardized-{name}-bias", standardized, reference, parameters=shapes, trains=(1,))
        yield Case(f"standardized-{name}-all", standardized, reference, _input, shapes, (0, 1))
        yield Case(f"standardized-{name}-first", standardized, reference, _input, shapes, (0,), False)


def _other_dimensions():
    def conv1d(function):
        return lambda x, w: function(x.flatten(2), w, None, 2, 1)

    def conv3d(function):
        return lambda x, w: function(x[:, :, None], w, None, 1, (0, 1, 1), 1, 2)

    yield Case("conv1d", conv1d(LAYERS["conv1d"]), conv1d(F.conv1d), parameters=((4, 6, 3),))
    yield Case("conv3d", conv3d(LAYERS["conv3d"]), conv3d(F.conv3d), parameters=((4, 3, 1, 3, 3),))
    # One image without a batch.
    yield Case(
        "conv2d-one-image",
        lambda x, w: LAYERS["conv2d"](x[0], w, padding=1),
        lambda x, w: F.conv2d(x[0], w, padding=1),
        parameters=((4, 6, 3, 3),),
    )
    yield Case("max_pool2d-one-image", lambda x: LAYERS["max_pool2d"](x[0], 2), lambda x: F.max_pool2d(x[0], 2),
               lambda x, y: _bits(y.numel(), 2))  # fmt: skip
    yield Case("avg_pool2d-one-image", lambda x: LAYERS["avg_pool2d"](x[0], 2), lambda x: F.avg_pool2d(x[0], 2))
    linear = {"parameters": ((5, 8), (5,))}
    yield Case("linear-bias", LAYERS["linear"], F.linear, trains=(1,), **linear)
    yield Case("linear-all", LAYERS["linear"], F.linear, _input, trains=(0, 1), **linear)


def _norms():
    def ours(x, w, b):
        return LAYERS["frozen_batch_norm"](x, *_statistics(x), w, b, eps=1e-3)

    def stock(x, w, b):
        return F.batch_norm(x, *_statistics(x), w, b, training=False, eps=1e-3)

    shapes = ((6,), (6,))
    yield Case("frozen_batch_norm-frozen", ours, stock, parameters=shapes)
    yield Case("frozen_batch_norm-shift", ours, stock, parameters=shapes, trains=(1,))
    yield Case("frozen_batch_norm-all", ours, stock, _input, shapes, (0, 1))
    yield Case("frozen_batch_norm-first", ours, stock, parameters=shapes, trains=(1,), input_trains=False)
    yield Case(
        "frozen_batch_norm-plain",
        lambda x: LAYERS["frozen_batch_norm"](x, *_statistics(x)),
        lambda x: F.batch_norm(x, *_statistics(x)),
    )
    calls = {
        "batch_norm": lambda x, w, b: {"input": x, "running_mean": None, "running_var": None, "weight": w, "bias": b,
                                       "training": True},
        "group_norm": lambda x, w, b: {"input": x, "num_groups": 2, "weight": w, "bias": b},
        "layer_norm": lambda x, w, b: {"input": x, "normalized_shape": (8,), "weight": w, "bias": b},
    }  # fmt: skip
    for name, arguments in calls.items():
        norm = getattr(F, name)
        size = (8,) if name == "layer_norm" else (6,)
        yield Case(
            f"{name}-first-shift",
            lambda x, w, b, norm=norm, arguments=arguments: norm_of_trained_shift(norm, arguments(x, w, b)),
            lambda x, w, b, norm=norm, arguments=arguments: norm(**arguments(x, w, b)),
            parameters=(size, size),
            trains=(1,),
            input_trains=False,
        )


@lru_cache
def _buffers(channels: int, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    indices = torch.arange(channels, dtype=dtype)
    return indices / 4 - 1, indices / 3 + 0.5


def _statistics(x):
    return _buffers(x.shape[1], x.dtype)


# Arguments of max_pool2d, and the bits that tell the pixels of a window apart.
MAX_POOLS = {
    "2": ((2,), 2),
    "3": ((3, 2, 1), 4),
    "row": (((1, 2),), 1),
    "ceil": ((3, 2, 1, 1, True), 4),
    "dilated": (((3, 2), (2, 1), (1, 0), (2, 3), True), 4),
    "5": ((5, 1, 2), 8),
    "17": ((17, 1, 8), 16),
}
AVERAGE_POOLS = {"2": (2,), "overlapping": (3, 2, 1), "uncounted": ((3, 2), (2, 1), (1, 0), True, False, 5)}


def _pools():
    for name, (arguments, bits) in MAX_POOLS.items():
        stock = lambda x, a=arguments: F.max_pool2d(x, *a)  # noqa: E731
        ours = lambda x, a=arguments: LAYERS["max_pool2d"](x, *a)  # noqa: E731
        yield Case(f"max_pool2d-{name}", ours, stock, lambda x, y, bits=bits: _bits(y.numel(), bits))
        kept = lambda x, a=arguments: LAYERS["max_pool2d"](x, *a, keep="input")  # noqa: E731
        yield Case(f"max_pool2d-{name}-input", kept, stock, _input)
    for name, arguments in AVERAGE_POOLS.items():
        yield Case(
            f"avg_pool2d-{name}",
            lambda x, a=arguments: LAYERS["avg_pool2d"](x, *a),
            lambda x, a=arguments: F.avg_pool2d(x, *a),
        )
    for size in ((4, 3), (None, 2), 1, 9):
        yield Case(
            f"adaptive_avg_pool2d-{size}",
            lambda x, size=size: LAYERS["adaptive_avg_pool2d"](x, size),
            lambda x, size=size: F.adaptive_avg_pool2d(x, size),
        )


def _with_its_transpose(matmul: Callable) -> Callable:
    """Both arguments are wanted, and lie in the same memory; PyTorch would copy what is not contiguous."""

    def run(x):
        x = x.contiguous()
        return matmul(x, x.mT)

    return run


def _simple():
    yield Case("matmul", _with_its_transpose(LAYERS["matmul"]), _with_its_transpose(torch.matmul), _input)
    for inplace in (False, True):
        suffix = "-inplace" * inplace
        arguments = {"inplace": inplace}
        yield Case(f"dropout{suffix}", _seeded(LAYERS["dropout"], **arguments), _seeded(F.dropout, **arguments), _mask)
        yield Case(f"scale{suffix}", lambda x, i=inplace: scale(x, 3.0, inplace=i), lambda x: x * 3.0)
        yield Case(f"divide{suffix}", lambda x, i=inplace: scale(x, 3.0, True, i), lambda x: x / 3.0)
    for mode in ("reflect", "replicate", "constant"):
        yield Case(
            f"pad-{mode}",
            lambda x, mode=mode: LAYERS["pad"](x, (1, 2, 0, 3), mode),
            lambda x, mode=mode: F.pad(x, (1, 2, 0, 3), mode),
        )


CASES = [*_activations(), *_convolutions(), *_other_dimensions(), *_norms(), *_pools(), *_simple()]

# Each gives a tensor that is not a leaf (so that it may be written in place) of the shape of IMAGES.
LAYOUTS = {
    "contiguous": lambda leaf: leaf * 1,
    "channels_last": lambda leaf: (leaf * 1).contiguous(memory_format=torch.channels_last),
    "transposed": lambda leaf: (leaf * 1).transpose(0, 1).contiguous().transpose(0, 1),
    "sliced": lambda leaf: torch.stack([leaf, leaf], 4)[..., 0],
}


def _dense(y):
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)


GRADIENTS = {
    "dense": _dense,
    "expanded": lambda y: torch.full((), 0.75, dtype=y.dtype).expand(y.shape),
    "reordered": lambda y: _dense(y).transpose(-1, -2).contiguous().transpose(-1, -2),
}


def _tensors(case: Case, dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, generator=generator) * 3
    if dtype != torch.float64:  # which is for numerical derivatives
        images[0, 0, 0] = torch.tensor([0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 3e-39])
    leaf = images.to(dtype).requires_grad_(case.input_trains)
    parameters = [torch.randn(shape, generator=generator).to(dtype) for shape in case.parameters]
    return leaf, [p.requires_grad_(i in case.trains) for i, p in enumerate(parameters)]


def _run(case: Case, function, dtype, layout, gradient):
    """Return the result and the gradients of everything that trains."""
    leaf, parameters = _tensors(case, dtype)
    y = function(LAYOUTS[layout](leaf), *parameters)
    wanted = [tensor for tensor in (leaf, *parameters) if tensor.requires_grad]
    return y.detach(), torch.autograd.grad(y, wanted, GRADIENTS[gradient](y))


# Of gradients that are not exact, relative to the largest entry.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 5e-3, torch.float64: 1e-14}


def _assert_equal(case: Case, dtype, layout, gradient):
    y, gradients = _run(case, case.ours, dtype, layout, gradient)
    expected, references = _run(case, case.stock, dtype, layout, gradient)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    for ours, theirs in zip(gradients, references, strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = 0 if case.exact else TOLERANCES[dtype] * theirs.abs().max()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_every_layer_has_a_case():
    assert {case.name.split("-")[0] for case in CASES} >= LAYERS.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_result_and_gradients_equal_pytorchs(case, layout):
    for gradient in GRADIENTS:
        _assert_equal(case, torch.float32, layout, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_low_precision_equals_pytorchs(case, dtype):
    for layout in ("contiguous", "channels_last"):
        _assert_equal(case, dtype, layout, "dense")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_the_derivatives(case):
    leaf, parameters = _tensors(case, torch.float64)
    assert torch.autograd.gradcheck(lambda x, *p: case.ours(x * 1, *p), (leaf, *parameters), fast_mode=True)


def _kept_bytes(function: Callable, x: torch.Tensor, parameters) -> tuple[int, torch.Tensor]:
    """Return the bytes of the storages that a call keeps, each once, without parameters and buffers; and its result."""
    resident = {tensor.untyped_storage().data_ptr() for tensor in (*parameters, *_statistics(x))}
    kept, held = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in resident:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(storage)  # so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x, *parameters)
    return sum(kept.values()), y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_keeps_what_it_says_to_the_byte(case, dtype):
    for layout in ("contiguous", "channels_last"):
        leaf, parameters = _tensors(case, dtype)
        x = LAYOUTS[layout](leaf)
        kept, y = _kept_bytes(case.ours, x, parameters)
        assert kept == case.kept(x, y)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_kept_where_no_gradient_is_wanted(case):
    leaf, parameters = _tensors(case, torch.float32)
    frozen = [p.detach() for p in parameters]
    kept, y = _kept_bytes(case.ours, leaf.detach() * 1, frozen)
    assert (kept, y.requires_grad) == (0, False)
    with torch.no_grad():
        assert not case.ours(leaf * 1, *parameters).requires_grad


# 16 elements or one image at a time: masks and indices are put together from many pieces.
@pytest.mark.parametrize("case", [case for case in CASES if case.exact], ids=str)
def test_pieces_fit_together(case, monkeypatch):
    monkeypatch.setattr(workspaces, "PIECE", 16)
    for layout in ("channels_last", "sliced"):
        _assert_equal(case, torch.float32, layout, "dense")


def test_a_view_is_written_in_place():
    for name, stock in (("relu", F.relu), ("relu6", F.relu6), ("hardsigmoid", F.hardsigmoid)):
        gradients = []
        for function in (LAYERS[name], stock):
            leaf = torch.linspace(-8, 8, 24).reshape(4, 6).requires_grad_()
            base = leaf * 1
            function(base[:, 1:4], inplace=True)
            (base**2).sum().backward()
            gradients.append(leaf.grad)
        assert torch.equal(*gradients)


def test_a_leaf_is_not_written_in_place():
    with pytest.raises(RuntimeError, match="leaf"):
        LAYERS["relu"](torch.ones(3, requires_grad=True), inplace=True)


def test_what_cannot_be_kept_is_refused():
    x = torch.ones(2, 3, 4, 4, requires_grad=True) * 1
    with pytest.raises(InputError, match=r"cannot keep 'input' .* in place; it can keep: mask, output"):
        LAYERS["relu"](x, inplace=True, keep="input")
    with pytest.raises(InputError, match="it can keep: indices, input"):
        LAYERS["max_pool2d"](x, 2, keep="output")


def test_infinite_gradients_stop_at_the_mask():
    x = torch.tensor([-1.0, 1.0], requires_grad=True)
    y = LAYERS["relu"](x)
    assert torch.autograd.grad(y, x, torch.full((2,), math.inf))[0].tolist() == [0.0, math.inf]


# ---- the 1-bit form of MobileTL


def _definition(x, threshold, gradient):
    """Return the gradient, element by element: it passes where the input is above the threshold."""
    pairs = zip(x.flatten().tolist(), gradient.flatten().tolist(), strict=True)
    return torch.tensor([g if value > threshold else 0.0 for value, g in pairs]).reshape(x.shape)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.75, -0.5])
@pytest.mark.parametrize("name", MASKED)
def test_masked_passes_the_gradient_above_the_threshold(name, threshold, inplace):
    leaf = (torch.randn(IMAGES) * 2).requires_grad_()
    with torch.no_grad():
        leaf[0, 0, 0, :3] = torch.tensor([threshold, 0.0, -0.0])  # at the threshold itself nothing passes
    for layout, make in LAYOUTS.items():
        x = make(leaf)
        kept, y = _kept_bytes(lambda x: masked(name, x, threshold, inplace=inplace), x, ())
        assert torch.equal(y, getattr(F, name)(make(leaf.detach()))), layout
        assert kept == _bits(leaf.numel())
        gradient = _dense(y)
        (found,) = torch.autograd.grad(y, leaf, gradient)
        assert torch.equal(found, _definition(leaf.detach(), threshold, gradient)), layout


def test_masked_takes_the_functions_own_arguments():
    x = torch.linspace(-3, 3, 50, requires_grad=True)
    assert torch.equal(masked("gelu", x, arguments=("tanh",)), F.gelu(x, approximate="tanh"))
    assert torch.equal(masked("leaky_relu", x, arguments=(0.3,)), F.leaky_relu(x, 0.3))
    y = masked("hardtanh", x, 1.5, (-1.0, 2.0))
    y.sum().backward()
    assert torch.equal(y, F.hardtanh(x, -1.0, 2.0))
    assert torch.equal(x.grad, ((x > -1) & (x < 2)).float())  # the exact test, whatever the threshold


def test_masked_results_do_not_depend_on_where_the_tensor_is_cut(monkeypatch):
    # Vectorised functions round differently at the end of a piece.
    x = torch.randn(100_003, requires_grad=True)
    monkeypatch.setattr(workspaces, "PIECE", 37_008)
    for name in MASKED:
        assert torch.equal(masked(name, x), getattr(F, name)(x.detach())), name


def test_unknown_function_to_mask():
    with pytest.raises(InputError, match="did you mean 'hardswish'"):
        masked("hard_swish", torch.ones(2))


# ---- packing


@pytest.mark.parametrize("numpy", [True, False])
@given(data=st.data(), bits=st.sampled_from([1, 2, 4, 8]))
def test_packing_round_trip(numpy, data, bits):
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    with pytest.MonkeyPatch.context() as patch:
        if not numpy:
            patch.setattr(packing, "_is_plain", lambda tensor: False)
        packed = packing.pack(torch.tensor(values, dtype=torch.uint8), bits)
        assert packed.dtype == torch.uint8
        assert packed.numel() == packed.untyped_storage().nbytes() == packing.packed_bytes(len(values), bits)
        assert packing.unpack(packed, len(values), bits).tolist() == values
    # The first value takes the highest bits, and what is left of the last byte is 0.
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    assert packed.tolist() == [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


# ---- precision


@pytest.mark.parametrize("trains", [False, True])
def test_autocast_keeps_the_low_precision_input(trains):
    gradients = []
    weight = (torch.randn(4, 6, 3, 3) / 8).requires_grad_(trains)
    shift = torch.zeros(4, requires_grad=True)
    images = torch.randn(IMAGES, requires_grad=True)

    def network(conv, norm, act):
        return act(norm(conv(images * 1, weight, None, 2, 1), *_buffers(4, torch.float32), None, shift))

    def stock_norm(x, mean, variance, scale, shift):
        return F.batch_norm(x, mean, variance, scale, shift, False)

    wanted = [tensor for tensor in (images, weight, shift) if tensor.requires_grad]
    for functions in (
        (LAYERS["conv2d"], LAYERS["frozen_batch_norm"], LAYERS["relu6"]),
        (F.conv2d, stock_norm, F.relu6),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            kept, y = _kept_bytes(lambda x, *_, f=functions: network(*f), images[:, :4], (weight, shift))
        gradients.append([y, *torch.autograd.grad(y, wanted, _dense(y))])
        if functions[0] is not F.conv2d:
            # The mask, and where the weight trains the convolution's input in 2 bytes per element.
            assert kept == _bits(y.numel()) + (2 * images.numel() if trains else 0)
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2 * theirs.abs().max().item())


def test_a_frozen_weight_in_half_precision_is_cast_for_the_call_only():
    for name, shape, arguments in (("conv2d", (4, 6, 3, 3), {"padding": 1}), ("linear", (4, 8), {})):
        leaf = torch.randn(IMAGES, requires_grad=True)
        weight = (torch.randn(shape) / 8).half()
        kept, y = _kept_bytes(lambda x, w: LAYERS[name](x, w, **arguments), leaf * 1, (weight,))  # noqa: B023
        assert kept == 0
        expected = getattr(F, name)(leaf, weight.float(), **arguments)
        assert torch.equal(y, expected)
        gradient = _dense(y)
        ours, theirs = (torch.autograd.grad(out, leaf, gradient)[0] for out in (y, expected))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6 * theirs.abs().max().item())


# ---- temporary memory


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["pointwise", "strided", "depthwise", "dilated"])
def test_a_convolution_makes_no_copy_of_the_input_it_did_not_keep(name, layout):
    shape, arguments = CONVOLUTIONS[name]
    weight = torch.randn(shape)
    leaf = torch.randn(4, 6, 64, 64, requires_grad=True)

    def peak(function):
        x = LAYOUTS[layout](leaf).detach().requires_grad_()
        y = function(x, weight, **arguments)
        gradient = _dense(y).contiguous(
            memory_format=torch.channels_last if layout != "contiguous" else torch.contiguous_format
        )
        return peak_bytes(lambda: torch.autograd.grad(y, x, gradient))

    assert peak(LAYERS["conv2d"]) <= 1.02 * peak(F.conv2d)


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_needs_one_chunk_of_temporary_memory(inplace):
    chunk = workspaces.PIECE
    x = torch.randn(3 * chunk + 5, requires_grad=True) * 1
    floats, packed = 4 * x.numel(), _bits(x.numel())
    # One byte per element of a chunk; in place a float as well, else the result. A few bytes for alignment.
    expected = packed + chunk + (4 * chunk if inplace else floats)
    assert abs(peak_bytes(lambda: LAYERS["relu6"](x, inplace=inplace)) - expected) < 256


def test_an_activations_backward_allocates_the_gradient_only():
    x = torch.randn(3 * workspaces.PIECE + 5, requires_grad=True)
    y = LAYERS["relu6"](x)
    gradient = torch.ones_like(y)
    assert peak_bytes(lambda: torch.autograd.grad(y, x, gradient)) < 4 * x.numel() + 256


def test_layers_run_on_fake_tensors():
    with FakeTensorMode():
        x = torch.randn(IMAGES, requires_grad=True)
        y = LAYERS["max_pool2d"](LAYERS["relu6"](LAYERS["conv2d"](x, torch.randn(4, 6, 3, 3), padding=1)), 2)
        y.sum().backward()
        assert x.grad.shape == IMAGES


# ---- weight standardisation and the lite residual module


def test_standardize_follows_the_definition():
    weight = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    rows = weight.numpy().reshape(5, -1)
    deviation = rows.std(1, ddof=1, keepdims=True)
    expected = (rows - rows.mean(1, keepdims=True)) / (deviation + 0.1)
    np.testing.assert_allclose(standardize(weight, eps=0.1).numpy().reshape(5, -1), expected, rtol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(32, 4), (24, 3), (12, 2), (4, 1), (7, 1)])
def test_group_norm_has_eight_channels_per_group_or_the_most_that_divide_them(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("stride", [1, 2])
def test_lite_residual_starts_as_nothing_and_adds_the_branch(stride):
    torch.manual_seed(0)
    module = LiteResidual(16, 24, kernel_size=3, stride=stride)
    x = torch.randn(2, 16, 14, 14, requires_grad=True)
    output = torch.randn(2, 24, 14 // stride, 14 // stride)
    assert torch.equal(module(x, output), output)
    assert not any(gradient.any() for gradient in torch.autograd.grad(module(x, output).sum(), [x]))
    torch.nn.init.ones_(module.norm2.weight)
    branch = F.conv2d(F.avg_pool2d(x, 2), standardize(module.conv1.weight), None, stride, 1, 1, 2)
    branch = F.relu(F.group_norm(branch, 2))
    branch = F.group_norm(F.conv2d(branch, standardize(module.conv2.weight)), 3)
    expected = output + F.interpolate(branch, output.shape[2:], mode="bilinear")
    torch.testing.assert_close(module(x, output), expected)


def test_a_frozen_lite_residual_keeps_norm_inputs_and_a_mask():
    module = LiteResidual(16, 24).requires_grad_(False)
    leaf = torch.randn(2, 16, 12, 12, requires_grad=True)
    kept, _ = _kept_bytes(lambda x, *_: module(x, torch.zeros(2, 24, 12, 12)), leaf * 1, tuple(module.parameters()))
    # 6 x 6 pixels after the pool. Group norms keep input, mean and deviation: of 16 channels in 2 groups, 24 in 3.
    norms = 4 * (2 * 16 * 36 + 2 * 2 * 2) + 4 * (2 * 24 * 36 + 2 * 2 * 3)
    assert kept == norms + 2 * 16 * 36 // 8
