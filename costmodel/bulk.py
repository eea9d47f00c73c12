"""Many training steps priced at once: exactly what `footprint` says of each, in columns.

Everything in a step's memory is linear in the batch but for bits that are packed into bytes, and these come out alike
every 8 images. So the moments of the step at batches 1 to 8 and 16 give those at any batch; only the few that can be
the peak are looked at again. An optimizer adds its state to every moment, and its temporaries to the update. Books
whose kernels are no such function of the batch, or that have their own timeline, are worked out for each batch that is
asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .accounting import accounting as find_accounting
from .errors import unknown
from .graph import LayerGraph
from .optimizers import OPTIMIZERS, Optimizer
from .optimizers import optimizer as find_optimizer
from .step import FROZEN_BYTES, TrainingStep, training_step
from .timeline import CATEGORIES, update_working
from .traffic import update_bytes

_PERIOD = 8
_BASIS = np.array([*range(1, _PERIOD + 1), 2 * _PERIOD])
_STATELESS = Optimizer("none", 0, 0, 0, 0)
_OPTIMIZER, _TRANSIENT = CATEGORIES.index("optimizer"), CATEGORIES.index("transient")
_OF_MOMENTS = (*(f"{name}_bytes" for name in CATEGORIES), "peak_bytes", "place", "saved_bytes", "moved_bytes")
_PRICES = (*_OF_MOMENTS, "trained_parameters", "converted", "forward_flops", "backward_flops", "total_flops")
_COLUMNS = ("way", "frozen_dtype", "batches", "optimizer", *_PRICES)

Numbers = NDArray[np.int64]
Way = tuple[str, int | None]  # a method and its depth
Place = tuple[str, str]  # a phase and a layer


class Update(NamedTuple):
    """What an optimizer adds: its state, its temporary memory at most and with which parameter, what it moves."""

    state: int
    working: int
    name: str
    moved: int


@dataclass(frozen=True)
class Lines:
    """The moments that can be the peak, in order of time: `bytes` [moments, categories, batches], and their places.

    Without the optimizer; the last moment is the update. saved_bytes and pass_bytes (moved by one pass): [batches].
    updates: by optimizer, what it adds.
    """

    bytes: Numbers
    places: tuple[Place, ...]
    saved_bytes: Numbers
    pass_bytes: Numbers
    updates: dict[str, Update]


def _lines(step: TrainingStep, batches: Numbers, frozen_dtype: str, passes: int) -> Lines:
    sizes = step.sizes(batches, "float32", frozen_dtype)
    moments = step.moments(sizes, _STATELESS, passes)
    table = np.array([moment.by_category for moment in moments])
    # Of a whole step the last moment is its end, when the gradients are gone; that before is the update.
    whole = find_accounting(step.accounting).timeline is None
    table, moments = (table[:-1], moments[:-1]) if whole else (table, moments)
    totals = table.sum(axis=1)
    # At other batches totals grow by whole periods.
    growth = totals[:, -1:] - totals[:, -2:-1] if batches is _BASIS else totals[:, :0]
    beaten = np.zeros(len(totals), bool)
    for leader in np.unique(np.hstack((totals, growth)).argmax(axis=0)):
        grows_less = (growth[leader] >= growth).all(axis=1)
        later = np.arange(len(totals)) > leader
        beaten |= grows_less & (totals[leader] > totals).all(axis=1)
        beaten |= grows_less & (totals[leader] >= totals).all(axis=1) & later
    beaten[-1] = False
    keep = np.flatnonzero(~beaten)
    return Lines(
        table[keep],
        tuple((moments[index].phase, moments[index].layer) for index in keep),
        np.broadcast_to(step.saved_bytes(batches), batches.shape),
        np.broadcast_to(step.pass_bytes(batches, frozen_dtype=frozen_dtype), batches.shape),
        {optimizer.name: _update(sizes.trained, optimizer) for optimizer in OPTIMIZERS.values()},
    )


def _update(trained: dict[str, int], optimizer: Optimizer) -> Update:
    name, working = max(update_working(trained, optimizer), key=lambda each: each[1])
    return Update(sum(map(optimizer.state_bytes, trained.values())), working, name, update_bytes(trained, optimizer))


def _known_lines(graph: LayerGraph, step: TrainingStep, batches: Numbers, frozen_dtype: str, passes: int) -> Lines:
    """Return the lines, remembered with the graph where they serve any batch."""
    if batches is not _BASIS:
        return _lines(step, batches, frozen_dtype, passes)
    key = ("lines", step.method, step.blocks, step.accounting, frozen_dtype, passes)
    if key not in graph.memo:
        graph.memo[key] = _lines(step, batches, frozen_dtype, passes)
    return graph.memo[key]


def price(
    graph: LayerGraph,
    ways: Sequence[Way],
    batches: Sequence[tuple[int, int]],
    optimizers: Sequence[str] = ("sgd",),
    frozen_dtypes: Sequence[str] = ("float32",),
    accounting: str = "lean",
) -> tuple[dict[str, Numbers], tuple[Place, ...]]:
    """Return every combination's price in columns, and the places that the column `place` counts.

    ways: methods with their depths. batches: (images per update, images per pass) pairs. The columns `way`,
    `frozen_dtype`, `batches` and `optimizer` are indices into what was given; the others are named as in `Footprint`:
    `peak_bytes`, its parts, `saved_bytes`, `moved_bytes`, `trained_parameters`, FLOPs. `converted`: 1 where the
    method puts other operations into the network than it was pre-trained with.

    Errors: those of `footprint`.
    """
    books = find_accounting(accounting)
    for frozen_dtype in frozen_dtypes:
        if frozen_dtype not in FROZEN_BYTES:
            raise unknown("dtype of frozen weights", frozen_dtype, FROZEN_BYTES)
    updates = [find_optimizer(name) for name in optimizers]
    batch, micro = np.array(batches, np.int64).reshape(-1, 2).T
    passes = np.minimum(batch // micro, 2)
    if books.timeline is None and books.kernels == "none":
        basis, column, periods = _BASIS, (micro - 1) % _PERIOD, (micro - 1) // _PERIOD
    else:
        basis, column = np.unique(micro, return_inverse=True)
        periods = np.zeros_like(micro)
    whole = books.timeline is None
    alike = [(count, passes == count) for count in sorted(set(passes.tolist()))]
    if len(alike) == 1:
        alike = [(alike[0][0], slice(None))]
    places: dict[Place, int] = {}
    shape = (len(ways), len(frozen_dtypes), len(batch), len(updates))
    prices = np.empty((len(_PRICES), *shape), np.int64)
    for number, (method, blocks) in enumerate(ways):
        step = training_step(graph, method, blocks, accounting)
        flops = step.flops(batch, batch // micro)
        backward = flops["backward_input"] + flops["backward_weight"]
        of_the_way = (
            step.trained_parameters, step.is_converted, flops["forward"], backward,
            flops["forward"] + backward + flops["recompute"],
        )  # fmt: skip
        for row, value in enumerate(of_the_way, len(_OF_MOMENTS)):
            prices[row, number] = value[:, None] if np.ndim(value) else value
        for dtype, frozen_dtype in enumerate(frozen_dtypes):
            for count, mine in alike:
                lines = _known_lines(graph, step, basis, frozen_dtype, count)
                found = _peaks(lines, column[mine], periods[mine], batch[mine] // micro[mine], updates, places, whole)
                prices[: len(_OF_MOMENTS), number, dtype, mine] = found
    columns = (*np.indices(shape), *prices)
    return {name: values.ravel() for name, values in zip(_COLUMNS, columns, strict=True)}, tuple(places)


def _peaks(
    lines: Lines,
    column: Numbers,
    periods: Numbers,
    passes: Numbers,
    updates: Sequence[Optimizer],
    places: dict[Place, int],
    whole: bool,
) -> Numbers:
    """Return the columns of `_OF_MOMENTS`: [columns, batches, optimizers]; new places are added to `places`."""
    grow = periods.any()

    def at(values: Numbers) -> Numbers:
        found = values[..., column]
        return found + periods * (values[..., -1] - values[..., -2])[..., None] if grow else found

    moments = at(lines.bytes)
    totals, every = moments.sum(axis=1), np.arange(len(column))
    saved, moved = at(lines.saved_bytes), passes * at(lines.pass_bytes)
    ids = np.array([places.setdefault(place, len(places)) for place in lines.places])
    found = np.empty((len(_OF_MOMENTS), len(column), len(updates)), np.int64)
    for number, optimizer in enumerate(updates):
        update, those = lines.updates[optimizer.name], totals
        if not whole:
            update = Update(0, 0, "", update.moved)
        if update.working:
            those = totals.copy()
            those[-1] += update.working
        if whole:
            ids[-1] = places.setdefault(("update", update.name), len(places))
        peak = those.argmax(axis=0)
        parts = moments[peak, :, every].T
        parts[_OPTIMIZER] += update.state
        parts[_TRANSIENT] += update.working * (peak == len(those) - 1)
        found[: len(CATEGORIES), :, number] = parts
        rest = (those[peak, every] + update.state, ids[peak], saved, moved + update.moved)
        for row, values in enumerate(rest, len(CATEGORIES)):
            found[row, :, number] = values
    return found
