"""The trained part of a network as a chain of links, and what every way of carrying it out takes.

The links lie between places that one tensor passes (a network's blocks, where it has some). Each run of links is a
segment that keeps everything, makes cheap work again, runs again, or both; what it takes alone is known from the
simulation of its layers (`step.timeline.alone`).

Exact dynamic programming from the end of the chain to its start. For every place: the least cost C of carrying out all
that is behind it, by the bytes s that are to spare there; a segment o that ends at e(o) needs own(o) bytes while it
works and keeps kept(o):

    C[p](s) = min over o with own(o) <= s of  flops(o) + C[e(o)](s - kept(o))

C is a step function, held as its steps. It tells the answer for every budget, and, since it looks only ahead, for every
depth of training: ways whose layers from a place on need and keep the same share it (`Table`). Source of the scheme:
Beaumont et al., Optimal checkpointing for heterogeneous chains, arXiv 1911.13214.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ..accounting.kernels import as_kernels
from ..accounting.requirements import Requirements
from ..accounting.table import ACCOUNTINGS
from ..answers.footprint import footprint
from ..errors import InputError
from ..graph.blocks import parts
from ..graph.layer_graph import LayerGraph
from ..graph.passages import passages
from ..kept import kept
from ..step.optimizers import OPTIMIZERS
from ..step.schedule import Schedule
from ..step.segments import CHEAP, Segment, can_be_cut, prefix_end, segment
from ..step.sizes import trained_bytes
from ..step.step import Step
from ..step.timeline import Alone, Carried, alone, alone_at_least
from ..units import Counts

_LONGEST = 5  # links that run again together


@dataclass(frozen=True)
class Option:
    """A run of links in one mode: how many there are, what it takes, and what is done again.

    flops, elementwise: of one image. mode: one of `MODES`, or empty: everything is kept. is_exact: else `alone` is a
    lower bound.
    """

    count: int
    mode: str
    alone: Alone
    flops: int
    elementwise: int
    is_exact: bool = True


@dataclass(frozen=True, eq=False)
class Steps:
    """The least cost of what is behind a place, by the bytes to spare there: it falls with every step.

    spare: the least bytes of each step, rising. flops, elementwise: the cost, of one image. option: which option at
    this place comes first. rest: which step at the option's end follows.
    """

    spare: Counts
    flops: Counts
    elementwise: Counts
    option: Counts
    rest: Counts

    def cut(self, on: Counts) -> Steps:
        """Return some of the steps, by their numbers."""
        return Steps(self.spare[on], self.flops[on], self.elementwise[on], self.option[on], self.rest[on])

    @cached_property
    def front(self) -> Steps:
        """Those that cost less than all that need no more bytes; of equal ones the last."""
        in_order = self.cut(np.argsort(self.spare, kind="stable"))
        cheap = in_order.cut(np.flatnonzero(in_order.flops == np.minimum.accumulate(in_order.flops)))
        # Where FLOPs are equal the element-wise work decides: each run of equal FLOPs is moved below the one before.
        run = np.cumsum(np.diff(cheap.flops, prepend=cheap.flops[0]) != 0)
        cost = cheap.elementwise - run * (cheap.elementwise.max() + 1)
        least = np.minimum.accumulate(cost)
        cheaper = cheap.cut(np.flatnonzero(np.diff(least, prepend=least[0] + 1) < 0))
        return cheaper.cut(np.flatnonzero(np.diff(cheaper.spare, append=cheaper.spare[-1] + 1) > 0))


_NOTHING = Alone(0, 0, 0, 0)
_ZERO = np.zeros(1, np.int64)
_END = Steps(_ZERO, _ZERO, _ZERO, _ZERO, _ZERO)


@dataclass(frozen=True, eq=False)
class Place:
    """A place of the chain: what can come next (exact, if it is on the front), and what it takes to get to the end.

    gradients: bytes of the gradients of all parameters behind it.
    """

    options: tuple[Option, ...]
    gradients: int
    steps: Steps


@dataclass(frozen=True)
class Table:
    """What was worked out for the places of a network: a way finds there what it shares with others.

    signatures: a number for everything that the layers from a link on need and keep, so that equal ones are found fast.
    """

    signatures: dict[Hashable, int] = field(default_factory=dict)
    places: dict[Hashable, Place] = field(default_factory=dict)

    def number(self, signature: Hashable) -> int:
        """Return the number that stands for a signature."""
        return self.signatures.setdefault(signature, len(self.signatures))


@kept
def table(graph: LayerGraph) -> Table:
    """Return the table of a network, empty at first."""
    return Table()


@kept
def links(required: Requirements) -> tuple[int, ...]:
    """Return where the links of the trained part begin: at blocks, or, without any, before what is not cheap work.

    Errors: InputError where there is nothing to cut.
    """
    graph, end = required.graph, prefix_end(required)
    if not can_be_cut(required):
        raise InputError(
            f"{required.way.label} on {graph.model} computes weights, or has layers of its own: no part of it can run "
            "again; the levers inplace and micro-batch remain"
        )
    places = passages(graph)
    begins = [block.first for block in parts(graph).blocks] + [parts(graph).tail.start]
    if not parts(graph).blocks:
        begins = [place for place in places if graph.layers[place].op not in CHEAP]
    first = end if end in places else 0
    return tuple(sorted({first, *(place for place in begins if place in places and place > first)}))


@kept
def signatures(required: Requirements) -> tuple[int, ...]:
    """Return for each link what it and all behind need and keep, as a number that equal ones share."""
    graph, books, frozen = required.graph, required.books, required.assignment.frozen_statistics
    numbers, behind = table(graph).number, -1
    found: list[int] = []
    starts = links(required)
    for start, end in reversed([*zip(starts, (*starts[1:], len(graph.layers)), strict=True)]):
        of_layers = tuple(
            (
                required.wanted.get(index),
                index in frozen,
                tuple(
                    (key, saved.elements, saved.bits, saved.extra_bits, tuple(saved.uses))
                    for key in books.by_layer.get(index, ())
                    for saved in (books.saved[key],)
                ),
                tuple(required.trained_elements.get(each.name) for each in graph.layers[index].parameters.values()),
            )
            for index in range(start, end)
        )
        behind = numbers((start, of_layers, behind))
        found.append(behind)
    return tuple(reversed(found))


class Chain:
    """The trained part of a network as links, for one step but for its segments."""

    def __init__(self, step: Step, modes: tuple[str, ...]):
        self.step, self.required, self.modes = step, step.requirements, modes
        self.starts = links(self.required)
        self.ends = [*self.starts[1:], len(self.required.graph.layers)]
        kernels = step.kernels or ACCOUNTINGS.find(step.accounting).kernels
        self.carried = Carried(
            Schedule(step.schedule.micro_batch, step.schedule.inplace_update), step.precision, as_kernels(kernels),
            OPTIMIZERS.find(step.optimizer), step.micro_batch, step.passes,
        )  # fmt: skip
        plain = footprint(replace(step, schedule=replace(step.schedule, segments=())))
        self.base_flops = plain.total_flops
        self.base_elementwise = plain.flops["elementwise"]["backward"]
        of_chain = {layer.name for layer in self.required.graph.layers[self.starts[0] :]}
        self.own_parts = ACCOUNTINGS.find(step.accounting).part is not None
        # Then updates are part of the links' backward.
        self.in_place = step.schedule.inplace_update or self.own_parts
        outside = ("fill", "start", "end", *(() if self.in_place else ("update",)))
        others = [m for m in plain.moments if m.phase in outside]
        others += [m for m in plain.moments if m.phase == "forward" and m.layer not in of_chain]
        self.floor = max(moment.total_bytes for moment in others)
        # From the second pass on all gradients are there.
        held = sum(trained_bytes(self.required, step.precision).values()) if step.passes > 1 else 0
        self.always = plain.start.total_bytes + held
        if self.own_parts:  # where images lie with values, and those of further passes wait
            images = self.required.graph.input.bytes(step.micro_batch, step.precision.activation_bytes)
            waiting = max((step.passes - 1) * images, (step.passes - 2) * images + held)
            self.always = plain.start.total_bytes - step.passes * images + waiting
        self.places = self._places()
        self.steps = self.places[0].steps

    def _places(self) -> list[Place]:
        """Return what is known of each link's start, worked out from the last to the first where it is new."""
        known, numbers = table(self.required.graph).places, signatures(self.required)
        cached = self.step.schedule.cache is not None
        places: list[Place] = []
        for first in reversed(range(len(self.starts))):
            key = (numbers[first], self.carried, self.step.accounting, self.modes, cached and not first)
            if key not in known:
                known[key] = self._place(first, places)
            places.insert(0, known[key])
        return places

    def _place(self, first: int, behind: list[Place]) -> Place:
        """Work out a place; behind: the places after it.

        An option that by the least that it takes is on no step of the front need not be simulated.
        """
        options = list(self._options(first))
        every = [self._continued(number, each, behind) for number, each in enumerate(options)]
        while True:
            front = Steps(*(np.concatenate(columns) for columns in zip(*every, strict=True))).front
            rough = [number for number in sorted(set(front.option.tolist())) if not options[number].is_exact]
            for number in rough:
                options[number] = self.exact(first, options[number])
                every[number] = self._continued(number, options[number], behind)
            if not rough:
                gradients = options[0].alone.gradients + (behind[0].gradients if behind else 0)
                return Place(tuple(options), gradients, front)

    def _continued(self, number: int, option: Option, behind: list[Place]) -> tuple[Counts, ...]:
        """Return the steps at a place if an option comes first; those that need no fewer bytes than dearer ones go."""
        place = behind[option.count - 1] if option.count <= len(behind) else None
        rest = place.steps if place else _END
        own = max(option.alone.forward, option.alone.backward + self._later(place))
        from_ = max(int(np.searchsorted(rest.spare, own - option.alone.kept, side="right")) - 1, 0)
        spare = np.maximum(own, option.alone.kept + rest.spare[from_:])
        return (
            spare, option.flops + rest.flops[from_:], option.elementwise + rest.elementwise[from_:],
            np.full(spare.size, number), np.arange(from_, rest.spare.size),
        )  # fmt: skip

    def _later(self, behind: Place | None) -> int:
        """Return the bytes of gradients of parameters behind a place that stay until the update."""
        one_pass_kept = self.step.passes == 1 and not self.in_place
        return behind.gradients if behind and one_pass_kept else 0

    def _options(self, first: int) -> Iterator[Option]:
        """Yield what can come first at a place; runs of several links with the least that they take."""
        for count in range(1, min(_LONGEST, len(self.starts) - first) + 1):
            if count == 1:
                yield self.exact(first, Option(1, "", _NOTHING, 0, 0))
            for mode in self.modes:
                own = self._segment(first, count, mode)
                if own is None:
                    continue
                again = [self.required.facts[index] for index in own.again]
                flops, elementwise = (sum(f.forward_flops for f in again), sum(f.forward_elementwise for f in again))
                if count == 1 or not own.runs_again or self.own_parts:
                    yield self.exact(first, Option(count, mode, _NOTHING, flops, elementwise))
                    continue
                least = alone_at_least(self.required, self.carried, own, self._is_counted(first))
                yield Option(count, mode, least, flops, elementwise, is_exact=False)

    def exact(self, first: int, option: Option) -> Option:
        """Return an option with what the simulation of its layers says that it takes."""
        part = range(self.starts[first], self.ends[first + option.count - 1])
        own = self._segment(first, option.count, option.mode) if option.mode else None
        found = alone(self.required, self.carried, part, own, self._is_counted(first))
        return replace(option, alone=found, is_exact=True)

    def every_option(self, first: int) -> list[Option]:
        """Return what can come first at a place, all of it simulated: to check the front against."""
        return [each if each.is_exact else self.exact(first, each) for each in self.places[first].options]

    def own_bytes(self, first: int, option: Option) -> int:
        """Return the most that an option at a place takes while it works, with the gradients that stay."""
        behind = first + option.count
        later = self._later(self.places[behind] if behind < len(self.places) else None)
        return max(option.alone.forward, option.alone.backward + later)

    def _segment(self, first: int, count: int, mode: str) -> Segment | None:
        """Return the segment of some links; None if there is nothing to gain."""
        try:
            return segment(self.required, self.starts[first], self.ends[first + count - 1] - 1, mode)
        except InputError:
            return None

    def _is_counted(self, first: int) -> bool:
        """Whether what a link reads is kept by what comes before."""
        place, books = self.starts[first], self.required.books
        before = passages(self.required.graph)[place]
        return (self.step.schedule.cache is not None and not first) or any(
            min(saved.uses) < place for saved in books.saved.values() if saved.storage is before.storage
        )

    @property
    def peak_bytes(self) -> Counts:
        """The most memory of each step of the frontier, by the sum of its links."""
        return np.maximum(self.floor, self.always + self.steps.spare)

    @property
    def total_flops(self) -> Counts:
        """The FLOPs of each step of the frontier."""
        return self.base_flops + self.step.batch * self.steps.flops

    @property
    def elementwise_flops(self) -> Counts:
        """The element-wise work of backward of each step of the frontier."""
        return self.base_elementwise + self.step.batch * self.steps.elementwise

    def fitting(self, budget: int) -> int | None:
        """Return the number of the cheapest step of the frontier that fits; None if none does."""
        number = int(np.searchsorted(self.steps.spare, budget - self.always, side="right")) - 1
        return number if number >= 0 and self.floor <= budget else None

    def within(self, most_flops: float) -> int | None:
        """Return the number of the step of the frontier that takes the least memory within FLOPs; None if none does."""
        number = int(np.argmax(self.total_flops <= most_flops))
        return number if self.total_flops[number] <= most_flops else None

    def schedule(self, number: int) -> Schedule:
        """Return the schedule of a step of the frontier."""
        found, first = [], 0
        while first < len(self.starts):
            place = self.places[first]
            option = place.options[place.steps.option[number]]
            behind = first + option.count
            if option.mode:
                found.append((self.starts[first], self.ends[behind - 1] - 1, option.mode))
            first, number = behind, int(place.steps.rest[number])
        return replace(self.step.schedule, segments=tuple(found))
