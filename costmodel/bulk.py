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

import numpy as np
from numpy.typing import NDArray

from .accounting import accounting as find_accounting
from .errors import unknown
from .graph import LayerGraph
from .optimizers import Optimizer
from .optimizers import optimizer as find_optimizer
from .step import FROZEN_BYTES, TrainingStep, training_step
from .timeline import CATEGORIES, update_working
from .traffic import update_bytes

_PERIOD = 8
_BASIS = np.array([*range(1, _PERIOD + 1), 2 * _PERIOD])
_STATELESS = Optimizer("none", 0, 0, 0, 0)

Numbers = NDArray[np.int64]
Way = tuple[str, int | None]  # a method and its depth
Place = tuple[str, str]  # a phase and a layer


@dataclass(frozen=True)
class Lines:
    """The moments that can be the peak, in order of time: `bytes` [moments, categories, batches], and their places.

    Without the optimizer; the last moment is the update. saved_bytes and pass_bytes (moved by one pass): [batches].
    trained_bytes: by parameter.
    """

    bytes: Numbers
    places: tuple[Place, ...]
    saved_bytes: Numbers
    pass_bytes: Numbers
    trained_bytes: dict[str, int]


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
        sizes.trained,
    )


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
    places: dict[Place, int] = {}
    parts = []
    for number, (method, blocks) in enumerate(ways):
        step = training_step(graph, method, blocks, accounting)
        converted = any(layer.in_place_of for layer in step.graph.layers)
        constant = {"way": number, "trained_parameters": step.trained_parameters, "converted": int(converted)}
        flops = step.flops(batch, batch // micro)
        backward = flops["backward_input"] + flops["backward_weight"]
        constant |= {
            "forward_flops": flops["forward"], "backward_flops": backward,
            "total_flops": flops["forward"] + backward + flops["recompute"],
        }  # fmt: skip
        for dtype, frozen_dtype in enumerate(frozen_dtypes):
            for count in np.unique(passes):
                mine = np.flatnonzero(passes == count)
                lines = _known_lines(graph, step, basis, frozen_dtype, int(count))
                parts.append(
                    {
                        "frozen_dtype": dtype,
                        **_peaks(
                            lines, column[mine], periods[mine], batch[mine] // micro[mine], updates, places, whole
                        ),
                    }
                    | {"batches": mine[:, None], "optimizer": np.arange(len(updates))}
                    | {k: v[mine, None] if np.ndim(v) else v for k, v in constant.items()}
                )
    columns = {
        name: np.concatenate([np.broadcast_to(part[name], part["peak_bytes"].shape).ravel() for part in parts])
        for name in parts[0]
    }
    return columns, tuple(places)


def _peaks(
    lines: Lines,
    column: Numbers,
    periods: Numbers,
    passes: Numbers,
    updates: Sequence[Optimizer],
    places: dict[Place, int],
    whole: bool,
) -> dict[str, Numbers]:
    """Return the peak, its parts and its place, each [batches, optimizers]; new places are added to `places`."""

    def at(values: Numbers) -> Numbers:
        found = values[..., column]
        return found + periods * (values[..., -1] - values[..., -2])[..., None] if periods.any() else found

    moments = at(lines.bytes)
    totals, every = moments.sum(axis=1), np.arange(len(column))
    found: dict[str, list[Numbers]] = {}
    for update in updates:
        state, (name, working) = 0, ("", 0)
        ids = [places.setdefault(place, len(places)) for place in lines.places]
        if whole:
            state = sum(map(update.state_bytes, lines.trained_bytes.values()))
            name, working = max(update_working(lines.trained_bytes, update), key=lambda each: each[1])
            ids[-1] = places.setdefault(("update", name), len(places))
        those = totals.copy()
        those[-1] += working
        peak = those.argmax(axis=0)
        rows = dict(zip((f"{name}_bytes" for name in CATEGORIES), moments[peak, :, every].T, strict=True))
        rows["optimizer_bytes"] = rows["optimizer_bytes"] + state
        rows["transient_bytes"] = rows["transient_bytes"] + working * (peak == len(those) - 1)
        rows |= {
            "peak_bytes": those[peak, every] + state,
            "place": np.array(ids)[peak],
            "saved_bytes": at(lines.saved_bytes),
            "moved_bytes": passes * at(lines.pass_bytes) + update_bytes(lines.trained_bytes, update),
        }
        for key, value in rows.items():
            found.setdefault(key, []).append(value)
    return {key: np.stack(values, axis=1) for key, values in found.items()}
