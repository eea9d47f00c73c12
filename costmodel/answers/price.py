"""Many training steps priced at once: exactly what `footprint` says of each, in columns.

Everything in a step's memory is linear in the batch but for bits that are packed into bytes, and these come out alike
every 8 images. So the moments of the step at batches 1 to 8 and 16 give those at any batch; only the few that can be
the peak are looked at again. An optimizer adds its state to every moment, and its temporaries to the update. Books or
kernels that are no such function of the batch are worked out for each batch that is asked for; a step that updates in
place, or makes the optimizer's state, for each optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..accounting.books import Accounting
from ..accounting.kernels import Kernels, as_kernels
from ..accounting.requirements import Requirements, requirements
from ..accounting.table import ACCOUNTINGS
from ..graph.layer_graph import LayerGraph
from ..kept import kept
from ..methods.table import as_way
from ..methods.way import ShortWay
from ..step.optimizers import OPTIMIZERS, STATELESS, Optimizer
from ..step.precision import Precision
from ..step.regions import again, recomputed_flops, saved_bytes, skipped, skipped_flops
from ..step.schedule import PLAIN, Schedule
from ..step.segments import checkpoints
from ..step.simulation import CATEGORIES, update_working
from ..step.sizes import trained_bytes
from ..step.timeline import Carried, simulate
from ..step.traffic import pass_bytes, update_bytes
from ..units import Counts

_PERIOD = 8
_BASIS = np.array([*range(1, _PERIOD + 1), 2 * _PERIOD])
_OPTIMIZER, _TRANSIENT = CATEGORIES.index("optimizer"), CATEGORIES.index("transient")
_OF_MOMENTS = (*(f"{name}_bytes" for name in CATEGORIES), "peak_bytes", "place", "saved_bytes", "moved_bytes")
_PRICES = (*_OF_MOMENTS, "trained_parameters", "converted", "forward_flops", "backward_flops", "total_flops")
_COLUMNS = ("way", "precision", "batches", "optimizer", *_PRICES)

FLOAT32 = (Precision(),)
Place = tuple[str, str]  # a phase and a layer
Batch = int | tuple[int, Schedule]  # images per update, and how they are carried out


@dataclass(frozen=True)
class Prices:
    """The price of every combination, in columns of equal length.

    columns: `way`, `precision`, `batches` and `optimizer` are indices into what was asked for; `place` is one into
    `places`, (phase, layer) pairs, where the peak is. The others are named as in `Footprint`: `peak_bytes`, its parts,
    `saved_bytes`, `moved_bytes`, `trained_parameters`, FLOPs. `converted`: 1 where the method puts other operations
    into the network than it was pre-trained with. categories: of memory, each with a column `<category>_bytes`.
    """

    columns: dict[str, Counts]
    places: tuple[Place, ...]
    categories: tuple[str, ...] = CATEGORIES


class _Update(NamedTuple):
    """What an optimizer adds: its state, its temporary memory at most and with which parameter, what it moves."""

    state: int
    working: int
    name: str
    moved: int


@dataclass(frozen=True)
class _How:
    """How steps are carried out that differ in batch and optimizer alone: one schedule, in one pass or several."""

    schedule: Schedule
    precision: Precision
    kernels: Kernels
    first_step: bool
    passes: int

    def is_linear(self, books: Accounting) -> bool:
        """Whether the moments at a few batches give those at any batch."""
        whole = not self.schedule.has_prefix  # a pass may be of fewer images than its pieces
        return books.linear_in_batch and self.kernels.library == "none" and whole

    def adds_optimizer(self, books: Accounting) -> bool:
        """Whether an optimizer only adds its state to every moment, and its temporaries to the last, the update."""
        return books.timeline is None and not self.schedule.inplace_update and not self.first_step


@dataclass(frozen=True)
class _Lines:
    """The moments that can be the peak, in order of time: `bytes` [moments, categories, batches], and their places.

    saved_bytes and pass_bytes (moved by one pass): [batches]. updates: by optimizer, what it adds, where the moments
    are those without one; the last moment is the update then.
    """

    bytes: Counts
    places: tuple[Place, ...]
    saved_bytes: Counts
    pass_bytes: Counts
    updates: dict[str, _Update]

    @cached_property
    def totals(self) -> Counts:
        """Bytes at each moment: [moments, batches]."""
        return self.bytes.sum(axis=1)


def _lines(required: Requirements, how: _How, optimizer: Optimizer, batches: Counts) -> _Lines:
    """Return the moments of a step at several batches, without an optimizer where it can be added."""
    precision, trained = how.precision, trained_bytes(required, how.precision)
    adds = how.adds_optimizer(ACCOUNTINGS.find(required.accounting))
    one = STATELESS if adds else optimizer
    carried = Carried(how.schedule, precision, how.kernels, one, batches, how.passes, how.first_step)
    found = simulate(required, carried)
    # The last moment is the step's end, when the gradients are gone; the one before is the update.
    found = found[:-1] if adds else found
    updates = {each.name: _update(trained, each, adds) for each in OPTIMIZERS.values()}
    return _Lines(
        np.array([moment.by_category for moment in found]),
        tuple((moment.phase, moment.layer) for moment in found),
        saved_bytes(required, how.schedule, batches, precision.activation_bytes),
        pass_bytes(required, precision, batches, again(required, how.schedule), skipped(required, how.schedule)),
        updates,
    )


@kept
def _closed_lines(required: Requirements, how: _How, optimizer: Optimizer) -> _Lines:
    """Return the lines at the basis batches of those moments that can be the peak at some batch."""
    lines = _lines(required, how, optimizer, _BASIS)
    totals = lines.totals
    growth = totals[:, -1:] - totals[:, -2:-1]  # at other batches totals grow by whole periods
    beaten = np.zeros(len(totals), bool)
    for leader in np.unique(np.hstack((totals, growth)).argmax(axis=0)):
        grows_less = (growth[leader] >= growth).all(axis=1)
        later = np.arange(len(totals)) > leader
        beaten |= grows_less & (totals[leader] > totals).all(axis=1)
        beaten |= grows_less & (totals[leader] >= totals).all(axis=1) & later
    beaten[-1] = False  # an optimizer's temporaries may make it the peak
    keep = np.flatnonzero(~beaten)
    return replace(lines, bytes=lines.bytes[keep], places=tuple(lines.places[index] for index in keep))


def _update(trained: dict[str, int], optimizer: Optimizer, adds: bool) -> _Update:
    moved = update_bytes(trained, optimizer)
    if not adds:  # the moments have the rest
        return _Update(0, 0, "", moved)
    name, working = max(update_working(trained, optimizer), key=lambda each: each[1])
    return _Update(sum(map(optimizer.state_bytes, trained.values())), working, name, moved)


def price(
    graph: LayerGraph,
    ways: Sequence[ShortWay],
    batches: Sequence[Batch],
    optimizers: Sequence[str] = ("sgd",),
    precisions: Sequence[Precision] = FLOAT32,
    accounting: str = "lean",
    *,
    first_step: bool = False,
    kernels: Kernels | str | None = None,
) -> Prices:
    """Return every combination's price: what `footprint` says of each, many at once.

    ways: `Way`s, or methods' names, or (name, depth) pairs. batches: images per update, or pairs of these with the
    schedule that carries them out. The rest is as in `footprint`.

    Errors: those of `footprint`.
    """
    ways = [as_way(way) for way in ways]
    books, updates = ACCOUNTINGS.find(accounting), [OPTIMIZERS.find(name) for name in optimizers]
    used = books.kernels if kernels is None else as_kernels(kernels)
    batch, micro, alike = _batches(batches, books)
    places: dict[Place, int] = {}
    shape = (len(ways), len(precisions), len(batch), len(updates))
    prices = np.empty((len(_PRICES), *shape), np.int64)
    for number, way in enumerate(ways):
        required = requirements(graph, way, accounting)
        for row, value in enumerate(_of_the_way(required, batch, batch // micro), len(_OF_MOMENTS)):
            prices[row, number] = value[:, None] if isinstance(value, np.ndarray) else value
        for (schedule, _), mine in alike:
            if not schedule.is_cut and not checkpoints(graph):
                continue
            more, less = (
                flops(required, schedule, batch[mine], (batch // micro)[mine])[0]
                for flops in (recomputed_flops, skipped_flops)
            )
            prices[_PRICES.index("total_flops"), number][:, mine] += (more - less)[:, None]
            prices[_PRICES.index("forward_flops"), number][:, mine] -= less[:, None]
        for which, precision in enumerate(precisions):
            for (schedule, passes), mine in alike:
                how = _How(schedule, precision, used, first_step, passes)
                found = _peaks(required, how, updates, batch[mine], micro[mine], places)
                prices[: len(_OF_MOMENTS), number, which, mine] = found
    columns = (*np.indices(shape), *prices)
    return Prices({name: values.ravel() for name, values in zip(_COLUMNS, columns, strict=True)}, tuple(places))


_Alike = list[tuple[tuple[Schedule, int], slice | Counts]]


def _batches(given: Sequence[Batch], books: Accounting) -> tuple[Counts, Counts, _Alike]:
    """Return images per update, images per pass, and the places of the batches whose moments are alike.

    These have one schedule, and one pass or several; in books with a timeline of their own, as many passes.
    """
    if all(isinstance(each, int) for each in given):
        batch = np.array(given, np.int64)
        return batch, batch, [((PLAIN, 1), slice(None))]
    pairs = [(each, PLAIN) if isinstance(each, int) else each for each in given]
    batch, micro = np.array([(size, schedule.images_per_pass(size)) for size, schedule in pairs], np.int64).T
    groups: dict[tuple[Schedule, int], list[int]] = {}
    passes = batch // micro if books.timeline is not None else np.minimum(batch // micro, 2)
    for place, ((_, schedule), several) in enumerate(zip(pairs, passes.tolist(), strict=True)):
        # Which images make a micro-batch is said by the batch: the moments are those of a pass.
        groups.setdefault((replace(schedule, micro_batch=None), several), []).append(place)
    if len(groups) == 1:
        return batch, micro, [(key, slice(None)) for key in groups]
    return batch, micro, [(key, np.array(mine)) for key, mine in groups.items()]


def _of_the_way(required: Requirements, batch: Counts, passes: Counts) -> tuple[int | Counts, ...]:
    """Return the last columns of `_PRICES`."""
    flops = required.flops(batch, passes)
    backward = flops["backward_input"] + flops["backward_weight"]
    total = flops["forward"] + backward + flops["recompute"]
    return required.trained_parameters, required.is_converted, flops["forward"], backward, total


def _peaks(
    required: Requirements,
    how: _How,
    optimizers: Sequence[Optimizer],
    batch: Counts,
    micro: Counts,
    places: dict[Place, int],
) -> Counts:
    """Return the columns of `_OF_MOMENTS`, [columns, batches, optimizers]; new places are added to `places`."""
    books, found = ACCOUNTINGS[required.accounting], np.empty((len(_OF_MOMENTS), len(batch), len(optimizers)), np.int64)
    lines = _lines_at(required, how, books, STATELESS, micro) if how.adds_optimizer(books) else None
    for number, each in enumerate(optimizers):
        mine = lines or _lines_at(required, how, books, each, micro)
        for row, values in enumerate(_peak(mine, each.name, batch // micro, places)):
            found[row, :, number] = values
    return found


def _lines_at(required: Requirements, how: _How, books: Accounting, optimizer: Optimizer, micro: Counts) -> _Lines:
    """Return the lines at each number of images per pass."""
    if how.is_linear(books):
        lines = _closed_lines(required, how, optimizer)
        column, periods = (micro - 1) % _PERIOD, (micro - 1) // _PERIOD
    else:
        basis, column = np.unique(micro, return_inverse=True)
        lines, periods = _lines(required, how, optimizer, basis), np.zeros_like(micro)
    grow = periods.any()

    def at(values: Counts) -> Counts:
        chosen = values[..., column]
        return chosen + periods * (values[..., -1] - values[..., -2])[..., None] if grow else chosen

    return _Lines(at(lines.bytes), lines.places, at(lines.saved_bytes), at(lines.pass_bytes), lines.updates)


def _peak(lines: _Lines, optimizer: str, passes: Counts, places: dict[Place, int]) -> tuple[Counts, ...]:
    """Return the columns of `_OF_MOMENTS` at each of the lines' batches; new places are added to `places`."""
    update, totals, every = lines.updates[optimizer], lines.totals, np.arange(len(passes))
    ids = np.array([places.setdefault(place, len(places)) for place in lines.places])
    if update.name:
        ids[-1] = places.setdefault(("update", update.name), len(places))
    if update.working:
        totals = totals.copy()
        totals[-1] += update.working
    peak = totals.argmax(axis=0)
    parts = lines.bytes[peak, :, every].T
    parts[_OPTIMIZER] += update.state
    parts[_TRANSIENT] += update.working * (peak == len(totals) - 1)
    moved = passes * lines.pass_bytes + update.moved
    return (*parts, totals[peak, every] + update.state, ids[peak], lines.saved_bytes, moved)
