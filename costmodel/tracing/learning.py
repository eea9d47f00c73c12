"""What a call does that has no rule: seen by running it, small, once for each pattern of wanted gradients.

The call runs on tensors of its own, laid out as the traced ones, at two batches: on a CPU, or on the meta device where
they would be large. Saved-tensor hooks tell what autograd keeps, the FLOP counter what it computes. A size that is the
same at both batches is absolute, one in proportion to them is per image, one that grows in steps both (a third batch
must agree); any other is refused.

Source of the second opinion: `derivatives.yaml`, which comes with PyTorch (tests/costmodel/tracing/test_learning.py).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from ..graph.learned import Held, Learned, Pattern
from .alone import BATCHES, THIRD_BATCH, Alone, TracedCall, address, device_of
from .calls import named_tensors, operation_name, tensors_in
from .flops import corrected_flop_counter
from .recorded import grows
from .working import working

FAR_BATCH = 61  # at which memory that a library asks for in bytes, and may round up, must be as predicted
MOST_ROLES = 6  # whose gradients are wanted in every combination; of more, those sets that training asks for
_BITS_OF_A_BYTE = 8


class Unlearnable(Exception):
    """The call cannot be run alone, or what it keeps does not follow from the batch; the text says which."""


@dataclass(frozen=True)
class _Seen:
    """One run: elements of its first result; what is kept, by (of, name), as (elements, bits); FLOPs; whose gradient
    was handed on."""

    elements: int
    kept: dict[tuple[str, str], tuple[int, int]]
    forward_flops: int
    backward_flops: int
    counts_flops: bool
    passes: tuple[str, ...]
    is_differentiable: bool


class Learner:
    """Learns the calls of one trace; calls that are alike are learned once."""

    def __init__(self) -> None:
        self._known: dict[Any, Learned | Unlearnable] = {}

    def learn(self, call: TracedCall, roles: list[str]) -> Learned:
        """Return what a call does. roles: of the arguments that may want a gradient.

        Errors: Unlearnable if that cannot be told.
        """
        key = _key(call, roles)
        if key not in self._known:
            self._known[key] = _learned_or_why_not(call, roles)
        known = self._known[key]
        if isinstance(known, Unlearnable):
            raise known
        return known


def _learned_or_why_not(call: TracedCall, roles: list[str]) -> Learned | Unlearnable:
    try:
        return _learn(call, roles)
    except Unlearnable as reason:
        return reason
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError) as error:
        return Unlearnable(" ".join(str(error).split())[:200])


def _key(call: TracedCall, roles: list[str]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.stride(), value.dtype
        return type(value), repr(value)

    leaves, structure = tree_flatten((call.args, call.kwargs))
    numbers = {id(leaf): number for number, leaf in enumerate(leaves)}
    same = tuple(numbers[id(leaf)] for leaf in leaves)  # which arguments are one tensor
    return call.function, structure, same, tuple(map(plain, leaves)), tuple(roles)


def _learn(call: TracedCall, roles: list[str]) -> Learned:
    seen: dict[tuple[str, ...], list[_Seen]] = {(): [_observe(call, (), batch) for batch in BATCHES]}
    roles = [role for role in roles if _observe(call, (role,), BATCHES[0]).is_differentiable]
    patterns = []
    for wanted in _sets(call, roles):
        few, more = seen[wanted] = [_observe(call, wanted, batch) for batch in BATCHES]
        if few.kept.keys() != more.kept.keys() or few.passes != more.passes:
            raise Unlearnable("what it keeps depends on the batch")
        kept = tuple(_held(few, more, partial(_observe, call, wanted)))
        flops = _per_image(few, more, "backward_flops")
        patterns.append(Pattern(wanted, kept, flops, few.passes, *working(call, wanted)))
    few, more = seen[()]
    _over_batch(few.elements, more.elements)
    counts = any(run.counts_flops for pair in seen.values() for run in pair)
    beside, _ = working(call, ())
    return Learned(tuple(patterns), _per_image(few, more, "forward_flops"), counts, beside)


def _sets(call: TracedCall, roles: list[str]) -> list[tuple[str, ...]]:
    """Return the sets of gradients that are wanted in turn.

    Of many roles: each alone; weights and biases, or biases, with the gradient for layers before and without.
    """
    if len(roles) <= MOST_ROLES:
        sizes = range(1, len(roles) + 1)
        return [*itertools.chain.from_iterable(itertools.combinations(roles, size) for size in sizes)]
    given = named_tensors(call.function, call.args, call.kwargs)
    own = {role for role in roles if not grows(given[role].shape, call.batch)}
    biases = {role for role in own if given[role].dim() == 1}
    passed_on = {*roles} - own
    sets = [*({role} for role in roles), biases, biases | passed_on, own, own | passed_on]
    return [*dict.fromkeys(tuple(role for role in roles if role in chosen) for chosen in sets if chosen)]


def _held(few: _Seen, more: _Seen, at: Callable[[int], _Seen]) -> Iterator[Held]:
    """Yield what is kept. at: the same call at another batch, which must agree where that is not certain."""
    for (of, name), (elements, bits) in few.kept.items():
        if of != "own":
            yield Held(of, name)  # pyright: ignore[reportArgumentType]  # as `_observe` names them
            continue
        each, once = _affine(elements, more.kept[of, name][0])
        further = [THIRD_BATCH] if each and once else []
        further += [FAR_BATCH] if bits == _BITS_OF_A_BYTE else []
        if any(at(batch).kept[of, name][0] != each * batch + once for batch in further):
            raise Unlearnable("a size does not grow with the batch in steps")
        if each:
            yield Held("own", name, each, bits, True)
        if once:
            yield Held("own", f"{name} for all" if each else name, once, bits, False)


def _over_batch(few: int, more: int) -> tuple[int, bool]:
    """Return a count per image and True, or an absolute one and False."""
    if few == more:
        return few, False
    if few * BATCHES[1] == more * BATCHES[0]:
        return few // BATCHES[0], True
    raise Unlearnable("a size is neither the same at every batch nor in proportion to it")


def _affine(few: int, more: int) -> tuple[int, int]:
    """Return a count per image and an absolute one that together give what was seen at both batches."""
    each, rest = divmod(more - few, BATCHES[1] - BATCHES[0])
    once = few - each * BATCHES[0]
    if rest or each < 0 or once < 0:
        raise Unlearnable("a size is neither the same at every batch nor grows with it in steps")
    return each, once


def _per_image(few: _Seen, more: _Seen, count: str) -> int:
    """Return FLOPs per image if the result grows with the batch, else the absolute ones."""
    each, batched = _over_batch(getattr(few, count), getattr(more, count))
    if each and batched != (few.elements != more.elements):
        raise Unlearnable("its FLOPs do not grow as its result does")
    return each


class _Token:
    """Stands for a saved tensor as long as its backward could ask for it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def _observe(call: TracedCall, wanted: tuple[str, ...], batch: int) -> _Seen:
    """Run a call at a batch, with the gradients of some arguments wanted, and its backward."""
    run = Alone(call, batch, device_of(call))
    traced = named_tensors(call.function, call.args, call.kwargs)
    given = {role: run.made[id(tensor)] for role, tensor in traced.items()}
    leaves = {role: given[role].requires_grad_() for role in wanted}
    writes = operation_name(call.function)[1] or bool(call.kwargs.get("inplace"))
    if writes:  # a leaf must not be written
        copies = {id(tensor): tensor.clone() for tensor in run.made.values()}
        run.args, run.kwargs = tree_map(lambda value: copies.get(id(value), value), (run.args, run.kwargs))
        given = {role: copies[id(tensor)] for role, tensor in given.items()}
    tokens: list[weakref.ref[_Token]] = []
    held: list[torch.Tensor] = []  # storages stay, so that no address is used again

    def pack(tensor: torch.Tensor) -> _Token:
        token = _Token(tensor.detach())
        held.append(token.tensor)
        tokens.append(weakref.ref(token))
        return token

    with torch.random.fork_rng(devices=[]), torch.enable_grad(), corrected_flop_counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda token: token.tensor):
            result = call.function(*run.args, **run.kwargs)
            results = [run.args[0]] if result is None else tensors_in(result)  # an assignment returns nothing
        forward = counter.get_total_flops()
        saved = [token.tensor for token in (each() for each in tokens) if token is not None]
        kept = _kept(saved, given, results, writes)
        passes = _passes(results, leaves)
        total = counter.get_total_flops()
    differentiable = any(result.requires_grad for result in results)
    return _Seen(results[0].numel(), kept, forward, total - forward, bool(total), passes, differentiable)


def _kept(saved: list[torch.Tensor], given: dict[str, torch.Tensor], results: list[torch.Tensor], writes: bool):
    """Return what is kept, each storage once: an argument, a result, or memory of the call's own.

    writes: whether the call works in place, so that what was the argument is the result.
    """
    owners: dict[int, tuple[str, str]] = {}
    for role, tensor in given.items():
        owners.setdefault(address(tensor), ("input", role))
    for number, tensor in enumerate(results):
        if writes or address(tensor) not in owners:  # of a view, what it is a view of
            owners[address(tensor)] = ("output", str(number))
    kept: dict[tuple[str, str], tuple[int, int]] = {}
    for tensor in saved:
        number = sum(of == "own" for of, _ in kept)
        owner = owners.setdefault(address(tensor), ("own", f"own {number}"))
        kept[owner] = tensor.untyped_storage().nbytes() // tensor.element_size(), 8 * tensor.element_size()
    return kept


def _passes(results: list[torch.Tensor], leaves: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Run the backward; return the roles whose gradient lives in the memory of a result's."""
    results = [result for result in results if result.requires_grad]
    if not results or not leaves:
        return ()
    given = [torch.ones_like(result) for result in results]
    made = torch.autograd.grad(results, [*leaves.values()], given, allow_unused=True)
    there = {address(tensor) for tensor in given}
    return tuple(
        role for role, tensor in zip(leaves, made, strict=True) if tensor is not None and address(tensor) in there
    )
