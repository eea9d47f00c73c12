"""Every candidate of one or more networks, with its cost and expected accuracy. Prices come in bulk."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodel import (
    ACCOUNTINGS,
    METHODS,
    InputError,
    LayerGraph,
    Prices,
    Schedule,
    Step,
    Way,
    block_count,
    convolutions,
    price,
    trace,
    values_per_norm,
)

from ..estimates.accuracy import estimates
from ..estimates.estimated import Estimate
from ..estimates.setting import LEAST_IMAGES, Setting
from .axes import Axes, OneOrMore, axes, several
from .candidate import Candidate
from .scheduling import by_schedule

# Assumption: nobody reads more, and one by one these take ten seconds; in columns they take half a GB.
MOST_CANDIDATES, MOST_PRICED = 50_000, 2_000_000


@dataclass(frozen=True)
class Priced:
    """The candidates of one network: prices in columns, what their indices count, and what to expect of each.

    estimates, cannot_train: by the numbers of way and batch. step_seconds: roofline time, if there is a device.
    """

    graph: LayerGraph
    space: Axes
    ways: list[Way]
    carried: list[tuple[int, Schedule]]
    prices: Prices
    estimates: dict[tuple[int, int], Estimate]
    cannot_train: dict[tuple[int, int], str]
    step_seconds: np.ndarray | None

    def rows(self) -> Iterator[Candidate]:
        """Yield the candidates one by one."""
        columns = self.prices.columns
        seconds = itertools.repeat(None) if self.step_seconds is None else self.step_seconds.tolist()
        for number, *values in zip(seconds, *(column.tolist() for column in columns.values()), strict=False):
            row = dict(zip(columns, values, strict=True))
            batch, schedule = self.carried[row["batches"]]
            phase, layer = self.prices.places[row["place"]]
            memory = {part: row[f"{part}_bytes"] for part in self.prices.categories} | {"peak": row["peak_bytes"]}
            step = Step(
                self.graph, self.ways[row["way"]], batch, schedule, self.space.precisions[row["precision"]],
                self.space.optimizers[row["optimizer"]], self.space.accounting, kernels=self.space.kernels,
            )  # fmt: skip
            if self.space.step_time is not None:
                number = self.space.step_time.predict(step).value
            yield Candidate(
                step, row["peak_bytes"], row["saved_bytes"], memory, layer, phase, row["forward_flops"],
                row["backward_flops"], row["total_flops"], row["trained_parameters"],
                self.estimates[row["way"], row["batches"]], row["moved_bytes"], number,
                self.cannot_train.get((row["way"], row["batches"]), ""),
            )  # fmt: skip


def candidates(
    models: str | Sequence[str],
    batch: OneOrMore[int] = 8,
    optimizer: OneOrMore[str] = "sgd",
    resolution: OneOrMore[int] = 224,
    classes: int | None = None,
    accounting: str = "lean",
    **more,
) -> list[Candidate]:
    """Return every method at every depth of every model, priced.

    models: one or a list of what `costmodel.trace` takes. classes: the number the head is made for; the model's own if
    None. more: the other axes, as in `axes`. Every axis is one value, a list or a range. With schedules each is carried
    out by the one that takes the least memory.

    Errors: those of `costmodel.trace` and `costmodel.footprint`.
    """
    space = axes(batch=batch, optimizer=optimizer, accounting=accounting, **more)
    priced = price_all(trace_all(models, resolution, classes), space)
    if space.scheduling is None or not space.scheduling.levers:
        return priced
    return [by_schedule(candidate, {}, space.scheduling, space.seconds_of) for candidate in priced]


def price_all(graphs: Iterable[LayerGraph], space: Axes) -> list[Candidate]:
    """Return every candidate of traced networks.

    Errors: InputError if there are more than MOST_CANDIDATES; those of `costmodel.footprint`.
    """
    found: list[Candidate] = []
    for table in priced_tables(graphs, space):
        _check_count(len(found) + len(table.prices.columns["way"]), MOST_CANDIDATES, "or price them with planner sweep")
        found += table.rows()
    return found


def priced_tables(graphs: Iterable[LayerGraph], space: Axes) -> Iterator[Priced]:
    """Yield the candidates of each network. Errors: those of `costmodel.footprint`; InputError if there are none."""
    graphs, empty = list(graphs), True
    ACCOUNTINGS.find(space.accounting)
    _check_depths(graphs, space)
    for graph in graphs:
        ways, carried = space.ways(graph), space.carried
        if not ways:
            continue
        empty = False
        count = len(ways) * len(carried) * len(space.optimizers) * len(space.precisions)
        _check_count(count, MOST_PRICED, "or several times")
        prices = price(graph, ways, carried, space.optimizers, space.precisions, space.accounting,
                       kernels=space.kernels)  # fmt: skip
        columns, seconds = prices.columns, None
        if space.device is not None:
            seconds = space.device.step_seconds(columns["total_flops"], columns["moved_bytes"])
        converted = frozenset(ways[number] for number in np.unique(columns["way"][columns["converted"] == 1]))
        norms = {way: values for way in ways if (values := values_per_norm(graph, way)) is not None}
        yield Priced(
            graph, space, ways, carried, prices, _estimates(graph, space, ways, carried, converted, norms),
            _cannot_train(ways, carried, norms), seconds,
        )  # fmt: skip
    if empty:
        raise _no_way(graphs, space)


def _check_count(count: int, most: int, instead: str) -> None:
    if count > most:
        raise InputError(f"{count:,} candidates are more than {most:,}; ask for fewer values of an axis, {instead}")


def _check_depths(graphs: Sequence[LayerGraph], space: Axes) -> None:
    """Raise InputError for a depth that no network has: its rows would be missing without a word."""
    deepest = max((block_count(graph) for graph in graphs), default=0)
    if space.blocks and deepest and min(space.blocks) > deepest:
        raise InputError(f"no network has {min(space.blocks)} blocks; the deepest that is asked about has {deepest}")


def _no_way(graphs: Sequence[LayerGraph], space: Axes) -> InputError:
    """Return the error where no way applies to any network: what is lacking."""
    names = [each.method if isinstance(each, Way) else each for each in space.methods or METHODS]
    for graph, name in itertools.product(graphs, names):
        if lacking := METHODS.find(name).why_not(graph):
            return InputError(f"method {name!r} cannot train {graph.model}: {lacking}; leave it out")
    return InputError(f"no network has blocks for {', '.join(names)} at the depths asked for")


def _cannot_train(
    ways: Sequence[Way], carried: Sequence[tuple[int, Schedule]], norms: Mapping[Way, int]
) -> dict[tuple[int, int], str]:
    """Return why ways cannot train at batches, by their numbers: of one value there is no variance."""
    return {
        (number, place): (
            "a batch norm would take its mean and variance of a single value per channel; take a larger batch or "
            "resolution, or the option norm_statistics=running"
        )
        for number, way in enumerate(ways)
        for place, (batch, schedule) in enumerate(carried)
        if norms.get(way, 2) * schedule.images_per_pass(batch) < 2
    }


def _estimates(
    graph: LayerGraph, space: Axes, ways: Sequence[Way], carried: Sequence[tuple[int, Schedule]],
    converted: frozenset[Way], norms: Mapping[Way, int],
) -> dict[tuple[int, int], Estimate]:  # fmt: skip
    """Return what to expect of each way at each batch, by their numbers."""
    setting = Setting(
        graph.model, graph.resolution, None, block_count(graph),
        any(layer.op.endswith("_norm") for layer in graph.layers), converted,
        len(convolutions(graph)), space.images_per_class, classifies=graph.classifies,
    )  # fmt: skip
    told_apart = {row.batch for row in space.evidence}
    known: dict[tuple[int | None, int], list[Estimate]] = {}
    found = {}
    for place, (batch, schedule) in enumerate(carried):
        stated = batch if batch in told_apart else None
        seen = min(schedule.images_per_pass(batch), LEAST_IMAGES)  # evidence tells no larger ones apart
        if (stated, seen) not in known:
            own = replace(setting, batch=stated, images_per_norm=dict.fromkeys(norms, seen))
            known[stated, seen] = estimates(ways, own, space.observed, space.evidence, space.dataset)
        found |= {(number, place): guess for number, guess in enumerate(known[stated, seen])}
    return found


def trace_all(
    models: str | Sequence[str], resolution: OneOrMore[int] = 224, classes: int | None = None
) -> list[LayerGraph]:
    """Return the layer graph of each model at each resolution; one that is named twice, in two ways even, appears once.

    Errors: InputError if there is no model; those of `costmodel.trace`.
    """
    given = [models] if isinstance(models, str) else list(models)
    if not given:
        raise InputError("no model was given; name one or more, such as torchvision:mobilenet_v2")
    graphs = [
        trace(model, resolution=pixels, classes=classes)
        for model in dict.fromkeys(given)
        for pixels in several(resolution)
    ]
    return list({(graph.model, graph.resolution): graph for graph in graphs}.values())
