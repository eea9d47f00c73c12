"""Every rule against PyTorch itself: one list of cases, each an operation alone, run through all tests.

Three oracles: gradients (are they a function of what the rule says is kept? do they change with it?), the tensors that
autograd saves, and the corrected FLOP counter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from costmodel import ACCOUNTINGS, RULES, CostModelError, trace
from costmodel.accounting.eager import KEEPS, WHY
from costmodel.checking.measuring import corrected_flop_counter
from costmodel.layers.convolution import standardize
from costmodel.methods.assignment import Assignment
from costmodel.rules.facts import Dense, Facts, Private
from costmodel.rules.reductions import index_bits
from costmodel.rules.table import facts, operation

BATCH = 3


@dataclass(frozen=True)
class Argument:
    """A tensor argument. kind: 'activation' (without its batch dimension in `shape`), 'parameter' or 'constant'."""

    kind: str
    shape: tuple[int, ...]
    positive: bool = False
    transposed: bool = False  # not contiguous

    def full_shape(self, batch: int) -> tuple[int, ...]:
        return (batch, *self.shape) if self.kind == "activation" else self.shape

    def finish(self, value: torch.Tensor) -> torch.Tensor:
        value = value.abs() + 0.5 if self.positive else value
        return value.transpose(-1, -2) if self.transposed else value

    def draw(self, batch: int) -> torch.Tensor:
        return self.finish(3 * torch.randn(self.full_shape(batch)))


def act(*shape: int, **options) -> Argument:
    return Argument("activation", shape, **options)


def par(*shape: int) -> Argument:
    return Argument("parameter", shape)


def const(*shape: int, **options) -> Argument:
    return Argument("constant", shape, **options)


@dataclass(frozen=True)
class Case:
    """One operation alone.

    run: the tensor arguments, in the order in which they are passed -> its result. same: by what a rule may keep
    privately ('mask', 'indices'), other values of the input for which this stays as it is. from_output: (y, dy) -> dx.
    random: what is kept privately is drawn, not computed from the input. replaces: what is traced in its place.
    """

    op: str
    run: Callable
    arguments: tuple[Argument, ...]
    same: dict[str, Callable] = field(default_factory=dict)
    from_output: Callable | None = None
    label: str = ""
    random: bool = False
    replaces: str = ""

    def __str__(self) -> str:
        return f"{self.op} {self.label}".strip()


def _other_inside(low: float, high: float) -> Callable:
    """Values strictly between the bounds become others, those outside land anywhere outside."""

    def same(x):
        inside = (x > low) & (x < high)
        between = low + (high - low) * (0.01 + 0.98 * torch.rand_like(x))
        outside = torch.where(torch.rand_like(x) > 0.5, high + x.abs(), low - x.abs())
        return torch.where(inside, between, outside)

    return same


def _same_sign(x):
    return x * (0.5 + torch.rand_like(x))


def _anything(x):
    return 3 * torch.randn_like(x)


def _one(op: str, run: Callable, label: str = "", shape=(4, 6, 6), **options) -> Case:
    """Return a case with one activation as its argument."""
    positive = options.pop("positive", False)
    transposed = options.pop("transposed", False)
    return Case(op, run, (act(*shape, positive=positive, transposed=transposed),), label=label, **options)


def _log_softmax_backward(y, dy):
    return dy - y.exp() * dy.sum(1, keepdim=True)


IMAGE = act(4, 6, 6)

CASES = [
    # convolutions and matrix products
    Case("conv1d", lambda x, w: F.conv1d(x, w, None, 2, 1), (act(4, 9), par(6, 4, 3))),
    Case("conv2d", lambda x, w, b: F.conv2d(x, w, b), (IMAGE, par(5, 4, 3, 3), par(5))),
    Case("conv2d", lambda x, w: F.conv2d(x, w, None, 2, 1), (IMAGE, par(5, 4, 3, 3)), label="no bias, stride 2"),
    Case("conv2d", lambda x, w: F.conv2d(x, w, None, 1, 1, 1, 4), (IMAGE, par(4, 1, 3, 3)), label="depthwise"),
    Case("conv2d", lambda x, w, b: F.conv2d(x, w, b, 1, 1, 1, 2), (IMAGE, par(6, 2, 3, 3), par(6)), label="grouped"),
    Case("conv2d", lambda x, w: F.conv2d(x, w), (IMAGE, par(5, 4, 1, 1)), label="pointwise"),
    # No call that a network makes: a method puts it in a convolution's place.
    Case(
        "standardized_conv2d",
        lambda x, w: F.conv2d(x, standardize(w), None, 1, 1),
        (IMAGE, par(5, 4, 3, 3)),
        replaces="conv2d",
    ),
    Case("conv3d", lambda x, w, b: F.conv3d(x, w, b), (act(2, 4, 5, 5), par(3, 2, 3, 3, 3), par(3))),
    Case("linear", F.linear, (act(7), par(5, 7), par(5))),
    Case("linear", F.linear, (act(3, 7), par(5, 7)), label="no bias, rows"),
    Case("matmul", lambda a, b: a @ b, (act(3, 7), act(7, 2))),
    Case("bmm", torch.bmm, (act(3, 7), act(7, 2))),
    Case("scaled_dot_product_attention", F.scaled_dot_product_attention, (act(2, 5, 4), act(2, 7, 4), act(2, 7, 4))),
    # norms
    Case(
        "batch_norm",
        lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b, training=True),
        (IMAGE, const(4), const(4, positive=True), par(4), par(4)),
    ),
    Case(
        "batch_norm",
        lambda x, m, v: F.batch_norm(x, m, v, training=True),
        (IMAGE, const(4), const(4, positive=True)),
        label="without scale and shift",
    ),
    Case(
        "frozen_batch_norm",
        lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b, training=False),
        (IMAGE, const(4), const(4, positive=True), par(4), par(4)),
    ),
    Case("group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), (IMAGE, par(4), par(4))),
    Case("layer_norm", lambda x, w, b: F.layer_norm(x, (6,), w, b), (act(4, 6), par(6), par(6))),
    # element-wise functions
    _one("relu", F.relu, same={"mask": _same_sign}, from_output=lambda y, dy: dy * (y > 0)),
    _one("relu6", F.relu6, same={"mask": _other_inside(0, 6)}, from_output=lambda y, dy: dy * ((y > 0) & (y < 6))),
    _one(
        "hardtanh",
        lambda x: F.hardtanh(x, -1.0, 2.0),
        same={"mask": _other_inside(-1, 2)},
        from_output=lambda y, dy: dy * ((y > -1) & (y < 2)),
    ),
    _one(
        "leaky_relu",
        lambda x: F.leaky_relu(x, 0.1),
        same={"mask": _same_sign},
        from_output=lambda y, dy: torch.where(y > 0, dy, 0.1 * dy),
    ),
    _one("hardsigmoid", F.hardsigmoid, same={"mask": _other_inside(-3, 3)}),
    _one("sigmoid", torch.sigmoid, from_output=lambda y, dy: dy * y * (1 - y)),
    _one("tanh", torch.tanh, from_output=lambda y, dy: dy * (1 - y * y)),
    _one("exp", torch.exp, from_output=lambda y, dy: dy * y),
    _one("sqrt", torch.sqrt, positive=True, from_output=lambda y, dy: dy / (2 * y)),
    _one("rsqrt", torch.rsqrt, positive=True, from_output=lambda y, dy: -dy * y**3 / 2),
    _one("softmax", lambda x: F.softmax(x, 1), from_output=lambda y, dy: y * (dy - (dy * y).sum(1, keepdim=True))),
    _one("hardswish", F.hardswish),
    _one("silu", F.silu),
    _one("gelu", F.gelu),
    _one("mish", F.mish),
    _one("log_softmax", lambda x: F.log_softmax(x, 1), from_output=_log_softmax_backward),
    _one("glu", lambda x: F.glu(x, 1)),
    _one("elu", F.elu),
    _one("celu", lambda x: F.celu(x, 0.5)),
    _one("selu", F.selu),
    _one("softplus", F.softplus),
    _one("log", torch.log, positive=True),
    _one("abs", torch.abs),
    _one("clamp", lambda x: x.clamp(-1, 2)),
    _one("clamp_min", lambda x: x.clamp_min(0.5)),
    Case("prelu", F.prelu, (IMAGE, par(4))),
    _one("dropout", lambda x: F.dropout(x, 0.4), same={"mask": _anything}, random=True),
    # arithmetic
    Case("add", lambda a, b: a + b, (IMAGE, IMAGE)),
    Case("add", lambda a, b: a + b, (IMAGE, act(4, 1, 1)), label="broadcast"),
    _one("add", lambda x: x + 3.0, "number"),
    Case("sub", lambda a, b: a - b, (IMAGE, IMAGE)),
    Case("mul", lambda a, b: a * b, (IMAGE, act(4, 1, 1)), label="gate"),
    Case("mul", lambda a, b: a * b, (IMAGE, par(4, 1, 1)), label="layer scale"),
    _one("mul", lambda x: x * 0.3, "number"),
    Case("div", lambda a, b: a / b, (IMAGE, act(4, 6, 6, positive=True))),
    _one("div", lambda x: x / 6, "number"),
    _one("pow", lambda x: x**2),
    _one("pow", lambda x: x.pow(3), "cubed"),
    _one("square", torch.square),
    Case("addcmul", torch.addcmul, (IMAGE, IMAGE, IMAGE)),
    Case("addcmul", torch.addcmul, (act(4, 1, 1), IMAGE, act(4, 1, 1)), label="broadcast"),
    _one("neg", lambda x: -x),
    # pooling, sums
    _one("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1), "one pixel"),
    _one("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 2), "four pixels"),
    _one("avg_pool2d", lambda x: F.avg_pool2d(x, 2)),
    _one("interpolate", lambda x: F.interpolate(x, scale_factor=2), "nearest"),
    _one("interpolate", lambda x: F.interpolate(x, size=(9, 9), mode="bilinear"), "bilinear"),
    _one("mean", lambda x: x.mean((2, 3), keepdim=True)),
    _one("sum", lambda x: x.sum((2, 3))),
    _one("var", lambda x: x.var((2, 3))),
    _one("norm", lambda x: x.norm(p=2, dim=(2, 3), keepdim=True)),
    # 3 x + 1 leaves every window's largest pixel where it is
    _one("max_pool2d", lambda x: F.max_pool2d(x, 2), same={"indices": lambda x: 3 * x + 1}),
    _one("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), "overlapping", same={"indices": lambda x: 3 * x + 1}),
    # shapes
    Case("cat", lambda a, b: torch.cat([a, b], 1), (IMAGE, act(2, 6, 6))),
    Case("stack", lambda a, b: torch.stack([a, b], 1), (IMAGE, IMAGE)),
    _one("contiguous", lambda x: x.contiguous(), transposed=True),
    _one("clone", lambda x: x.clone()),
    _one("flatten", lambda x: x.flatten(1)),
    _one("permute", lambda x: x.permute(0, 2, 3, 1)),
    _one("reshape", lambda x: x.reshape(x.shape[0], 2, 72)),
    Case("reshape_as", lambda x, other: x.reshape_as(other), (IMAGE, act(2, 72))),
    _one("squeeze", lambda x: x.squeeze(1), shape=(1, 6)),
    _one("swapaxes", lambda x: x.swapaxes(1, 2)),
    _one("transpose", lambda x: x.transpose(1, 2)),
    _one("unflatten", lambda x: x.unflatten(1, (2, 2))),
    _one("unsqueeze", lambda x: x.unsqueeze(1)),
    _one("view", lambda x: x.view(x.shape[0], -1)),
    Case("view_as", lambda x, other: x.view_as(other), (IMAGE, act(2, 72))),
    _one("chunk", lambda x: x.chunk(2, 1)),
    _one("expand", lambda x: x.expand(-1, 4, 5), shape=(4, 1)),
    Case("expand_as", lambda x, other: x.expand_as(other), (act(4, 1, 1), IMAGE)),
    _one("getitem", lambda x: x[:, 1:3]),
    _one("pad", lambda x: F.pad(x, (1, 1, 1, 1))),
    _one("pad", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "reflected"),
    _one("movedim", lambda x: x.movedim(1, 2)),
    _one("T", lambda x: x.T, shape=(4,)),
    _one("mT", lambda x: x.mT),
    _one("unbind", lambda x: x.unbind(1)),
    _one("narrow", lambda x: x.narrow(1, 1, 2)),
    _one("select", lambda x: x.select(1, 2)),
    _one("flip", lambda x: x.flip(1)),
    _one("roll", lambda x: x.roll(1, 1)),
    _one("repeat", lambda x: x.repeat(1, 2, 1, 1)),
    _one("tile", lambda x: x.tile(2, 1)),
    _one("repeat_interleave", lambda x: x.repeat_interleave(2, 1)),
    _one("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2)),
    _one("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2)),
    _one("split", lambda x: x.split([1, 3], 1)),
]


def test_every_rule_has_a_case():
    assert {case.op for case in CASES} == set(RULES)
    assert len({str(case) for case in CASES}) == len(CASES)


def test_every_rule_says_what_stock_pytorch_keeps():
    """Of attention the rule says it, together with what was seen of it in the trace."""
    assert set(KEEPS) == set(RULES) - {"scaled_dot_product_attention"}


# --- an operation alone: in the graph, and for real -------------------------------------------------------------------


class _Alone(nn.Module):
    """Cuts the operation's activations out of the image, then calls it: it is the last layer."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        for i, argument in enumerate(case.arguments):
            if argument.kind == "parameter":
                self.register_parameter(f"a{i}", nn.Parameter(torch.zeros(argument.shape)))
            elif argument.kind == "constant":
                self.register_buffer(f"a{i}", torch.zeros(argument.shape))

    def forward(self, x):
        given = []
        for i, argument in enumerate(self.case.arguments):
            if argument.kind == "activation":
                count = torch.Size(argument.shape).numel()
                own = torch.sigmoid(x.flatten(1)[:, :count] * (i + 1))
                given.append(own.reshape(argument.full_shape(x.shape[0])))
                given[-1] = given[-1].transpose(-1, -2) if argument.transposed else given[-1]
            else:
                given.append(getattr(self, f"a{i}"))
        return self.case.run(*given)


@dataclass(frozen=True)
class Alone:
    """A case's layer in its graph, the facts of it, and the positions of its arguments by role."""

    case: Case
    graph: object
    layer: object
    facts: Facts
    positions: dict[str, int]

    @property
    def roles(self) -> list[str]:
        return list(self.facts.needs)

    def draw(self) -> list[torch.Tensor]:
        return [argument.draw(BATCH) for argument in self.case.arguments]

    def outputs(self, given: list[torch.Tensor], seed: int = 1) -> list[torch.Tensor]:
        torch.manual_seed(seed)  # dropout draws the same mask every time
        result = self.case.run(*given)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def gradients(self, given: list[torch.Tensor], roles=None, seed: int = 1) -> dict[str, torch.Tensor | None]:
        """Return the gradient of each role for a fixed gradient of the result; None if autograd has none."""
        roles = self.roles if roles is None else roles
        leaves = [tensor.detach() for tensor in given]
        for role in roles:
            leaves[self.positions[role]].requires_grad_()
        outputs = self.outputs(leaves, seed)
        wanted = [leaves[self.positions[role]] for role in roles]
        found = torch.autograd.grad(outputs, wanted, self.result_gradients(outputs), allow_unused=True)
        return dict(zip(roles, found, strict=True))

    @staticmethod
    def result_gradients(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(2)
        return [torch.randn(out.shape, generator=generator) for out in outputs]

    def times(self) -> int:
        return BATCH if self.layer.output.batched else 1


@pytest.fixture(params=CASES, ids=str)
def alone(request) -> Alone:
    case = request.param
    traced_case = replace(case, run=lambda x, w: F.conv2d(x, w, None, 1, 1)) if case.replaces else case
    graph = trace(_Alone(traced_case), 16)
    layer = graph.layers[-1]
    if case.replaces:
        assert layer.op == case.replaces
        layer = replace(layer, op=case.op)
        graph = replace(graph, layers=(*graph.layers[:-1], layer))
    assert operation(layer) == case.op
    assert len(layer.inputs) == len(case.arguments)
    return Alone(case, graph, layer, facts(graph, layer), {role: i for i, role in enumerate(layer.inputs)})


def kept_positions(alone: Alone, alternative) -> set[int]:
    return {
        alone.positions[role]
        for item in alternative
        if isinstance(item, Dense)
        for role, tensor in alone.layer.inputs.items()
        if tensor is item.tensor
    }


def keeps_output(alone: Alone, alternative) -> bool:
    return any(isinstance(item, Dense) and item.tensor in alone.layer.outputs for item in alternative)


# --- gradients --------------------------------------------------------------------------------------------------------


def test_roles_are_those_that_autograd_has_a_gradient_for(alone):
    given = alone.draw()
    every = alone.gradients(given, [role for role in alone.positions if alone.layer.inputs[role].kind != "constant"])
    assert set(alone.facts.needs) == {role for role, gradient in every.items() if gradient is not None}


def test_gradient_is_a_function_of_what_is_kept(alone):
    """Whatever an alternative does not keep may change: the gradient stays. Parameters are there in any case."""
    given = alone.draw()
    expected = alone.gradients(given)
    for role, alternatives in alone.facts.needs.items():
        assert alternatives
        for alternative in alternatives:
            private = [item.label for item in alternative if isinstance(item, Private) and item.label != "statistics"]
            if keeps_output(alone, alternative) and not kept_positions(alone, alternative):
                (y,) = alone.outputs(given)
                (dy,) = alone.result_gradients([y])
                torch.testing.assert_close(alone.case.from_output(y, dy), expected[role])
                continue
            changed = list(given)
            for i, argument in enumerate(alone.case.arguments):
                if argument.kind == "activation" and i not in kept_positions(alone, alternative):
                    if private:
                        changed[i] = alone.case.same[private[0]](given[i])
                    else:
                        changed[i] = argument.draw(BATCH)
                    assert not torch.equal(changed[i], given[i])
            torch.testing.assert_close(alone.gradients(changed)[role], expected[role])


def test_gradient_changes_with_each_thing_that_is_kept(alone):
    """An argument that a rule keeps is needed: with another value of it alone the gradient is another one."""
    given = alone.draw()
    expected = alone.gradients(given)
    for role, alternatives in alone.facts.needs.items():
        if () in alternatives:
            continue
        for alternative in alternatives:
            positions = kept_positions(alone, alternative)
            if not positions:  # a mask, indices or the result: another input makes it another one
                positions = {0}
            for i in positions:
                changed = list(given)
                changed[i] = alone.case.arguments[i].draw(BATCH)
                found = alone.gradients(changed, seed=3 if alone.case.random else 1)
                assert not torch.allclose(found[role], expected[role]), (role, i)


def test_passed_gradient_takes_no_memory_and_others_do(alone):
    given = alone.draw()
    for role in alone.roles:
        leaves = [tensor.detach().clone() for tensor in given]
        leaf = leaves[alone.positions[role]].requires_grad_()
        outputs = alone.outputs(leaves)
        ours = alone.result_gradients(outputs)
        gradient = torch.autograd.grad(outputs, leaf, ours)[0]
        shares = gradient.untyped_storage().data_ptr() in {item.untyped_storage().data_ptr() for item in ours}
        assert (role in alone.facts.passes_gradient) == shares, role


# --- what is kept -----------------------------------------------------------------------------------------------------


def autograd_saves(alone: Alone, roles) -> int:
    """Return the bytes that autograd saves if these roles' gradients are wanted, parameters and buffers left out."""
    kept = {}
    leaves = [tensor.detach().clone() for tensor in alone.draw()]
    if any(argument.transposed for argument in alone.case.arguments):
        leaves = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in leaves]
    for role in roles:
        leaves[alone.positions[role]].requires_grad_()
    resident = {
        leaf.untyped_storage()._cdata
        for leaf, argument in zip(leaves, alone.case.arguments, strict=True)
        if argument.kind != "activation"
    }

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in resident:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = alone.outputs(leaves)
    assert outputs
    return sum(storage.nbytes() for storage in kept.values())


def booked(alone: Alone, accounting: str, roles) -> int:
    graph = alone.graph
    every = [facts(graph, layer) for layer in graph.layers]
    books = ACCOUNTINGS[accounting].keep(graph, Assignment(frozenset()), every, {alone.layer.index: tuple(roles)})
    return sum(saved.bytes(BATCH) for saved in books.saved.values())


def subsets(roles: list[str]):
    return itertools.chain.from_iterable(itertools.combinations(roles, n) for n in range(1, len(roles) + 1))


def test_eager_books_are_what_autograd_saves(alone):
    for roles in subsets(alone.roles):
        assert booked(alone, "eager", roles) == autograd_saves(alone, roles), roles


def test_lean_keeps_no_more_than_autograd_and_less_only_for_a_stated_reason(alone):
    for roles in subsets(alone.roles):
        lean, stock = booked(alone, "lean", roles), autograd_saves(alone, roles)
        assert lean <= stock
        if lean < stock:
            assert alone.case.op in WHY
        if alone.case.op in ("batch_norm", "group_norm", "layer_norm") and roles != ("bias",):
            assert lean == stock  # the input and two statistics: there is no less


def test_indices_fit_their_bits():
    for height, width in itertools.product(range(1, 8), repeat=2):
        bits = index_bits((height, width))
        assert 2**bits >= height * width and bits in (1, 2, 4, 8)
        assert bits == 1 or 2 ** (bits // 2) < height * width  # half as many would not do


# --- FLOPs ------------------------------------------------------------------------------------------------------------


def test_flops_are_the_counters(alone):
    given = alone.draw()
    with corrected_flop_counter() as counter:
        alone.outputs(given)
        assert counter.get_total_flops() == alone.times() * alone.facts.forward_flops
    for role in alone.roles:
        leaves = [tensor.detach().clone() for tensor in given]
        leaf = leaves[alone.positions[role]].requires_grad_()
        outputs = alone.outputs(leaves)
        with corrected_flop_counter() as counter:
            torch.autograd.grad(outputs, leaf, alone.result_gradients(outputs))
        assert counter.get_total_flops() == alone.times() * alone.facts.backward_flops.get(role, 0), role


def test_elementwise_work_stands_where_flops_do_not(alone):
    """Every operation computes something or moves elements; what moves elements says no work at all."""
    known = alone.facts
    moves = RULES[alone.case.op].__module__.endswith("shapes")
    assert set(known.backward_flops) <= set(known.needs) and set(known.backward_elementwise) <= set(known.needs)
    if moves:
        assert (
            not known.forward_flops and not known.forward_elementwise and not any(known.backward_elementwise.values())
        )
    else:
        assert known.forward_flops or known.forward_elementwise
        for role in known.needs:
            works = known.backward_flops.get(role) or known.backward_elementwise.get(role)
            assert works or role in known.passes_gradient, role


# --- an operation without a rule --------------------------------------------------------------------------------------


class _Correlated(nn.Module):
    """Mixes images: what it keeps grows with the square of the batch."""

    def forward(self, x):
        rows = x.flatten(1)
        return (torch.cdist(rows, rows) @ rows).view_as(x)


class NoRule(nn.Module):
    def __init__(self):
        super().__init__()
        self.strange = nn.Sequential(_Correlated())
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.strange(x).mean((2, 3)))


def test_operation_without_a_rule_that_cannot_be_learned_is_an_error_and_never_zero():
    with pytest.raises(CostModelError) as error:
        trace(NoRule(), 8)
    text = str(error.value)
    assert "cdist" in text and "strange.0" in text and "NoRule" in text and "the square of the batch" in text
    assert "\n" not in text
