"""The sub-network of which most accuracy is expected within a budget, and the frontier over budgets.

Each schedule is a search of its own (`programme`); what fits is priced again.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from costmodel import BlockPrices, Design, LayerGraph, Schedule, Step, Subnetwork, Way, supernetwork, trace, way
from costmodel.errors import InfeasibleError, InputError, shortened
from costmodel.graph.elastic import DEPTHS, EXPANSIONS, KERNELS, split_name
from costmodel.reading import read_file
from costmodel.units import format_bytes

from ..estimates.subnetworks import LEAST, Quality, SubnetworkAccuracy, fit
from .programme import Programme

# The unit of accuracy in which sub-networks are told apart, in logits; of 50 percent that is a hundredth of a point.
# Assumption: far below any predictor's error.
UNIT_LOGITS = 0.0004
_TRIED_FIRST = 3000  # sub-networks at random: the best that fits is what the search has to beat
_REPEATS = 8
_BUDGETS = 12  # of a frontier
_MOBILETL_BLOCKS = (
    8  # Source: benchmarks/results/decision_quality.md: more gains little, and every sub-network has them
)


@dataclass(frozen=True)
class Found:
    """A sub-network with its prices. schedule: with which it fits; peak_bytes: what it takes so."""

    chosen: Subnetwork
    expected_percent: float
    schedule: Schedule
    peak_bytes: int
    total_flops: int


class Search:
    """The search in one super-network: prices of its blocks, and what they add to the accuracy."""

    def __init__(self, prices: BlockPrices, accuracy: SubnetworkAccuracy):
        self.prices, self.accuracy, self.design = prices, accuracy, prices.design
        self.tried = list(dict.fromkeys(_tried(self.design)))
        self.known = prices.price(self.tried)
        self.units = {key: round(value / UNIT_LOGITS) for key, value in accuracy.values.items()}
        self.tried_units = np.array([self._units(chosen) for chosen in self.tried])

    def _units(self, chosen: Subnetwork) -> int:
        blocks = zip(self.design.places_of(chosen), chosen.kernels, chosen.expansions, strict=True)
        return sum(self.units[*place, kernel, expansion] for place, kernel, expansion in blocks)

    def best(self, ram_bytes: int) -> Found:
        """Return the sub-network of the highest expected accuracy that fits, and the schedule with the fewest FLOPs.

        Errors: InfeasibleError, naming the least, if none fits.
        """
        fits = self.known.peaks.min(axis=0) <= ram_bytes
        chosen: Subnetwork | None = None
        units = -(2**60)
        if fits.any():
            at = int(np.where(fits, self.tried_units, -(2**60)).argmax())
            chosen, units = self.tried[at], int(self.tried_units[at])
        for s in range(len(self.prices.schedules)):
            budget = ram_bytes
            for _ in range(_REPEATS):
                found = Programme(self.prices, self.units, s, budget, units).solve()
                if found is None:
                    break
                excess = int(self.prices.price([found]).peaks[s, 0]) - ram_bytes
                if excess <= 0:
                    chosen, units = found, self._units(found)
                    break
                budget -= excess  # of the update's temporary memory, which the programme leaves out
        if chosen is None:
            least = int(self.known.peaks.min())
            raise InfeasibleError(
                f"no sub-network fits in {format_bytes(ram_bytes)}: the least of those tried takes "
                f"{format_bytes(least)} ({least} bytes); allow more, or take a smaller batch, resolution or width"
            )
        prices = self.prices.price([chosen])
        s = next(s for s in range(len(prices.schedules)) if prices.peaks[s, 0] <= ram_bytes)
        return Found(
            chosen, self.accuracy.percent(chosen), prices.schedules[s], int(prices.peaks[s, 0]),
            int(prices.total_flops[0]),
        )  # fmt: skip

    def frontier(self, budgets: Sequence[int]) -> list[Found]:
        """Return the best for each budget that something fits in, each sub-network once."""
        found: dict[Subnetwork, Found] = {}
        for budget in budgets:
            try:
                one = self.best(budget)
            except InfeasibleError:
                continue
            found.setdefault(one.chosen, one)
        return list(found.values())


def _tried(design: Design) -> Iterator[Subnetwork]:
    """Yield sub-networks that together have every block in every place, and others at random."""
    for depths in product(DEPTHS, repeat=len(design.elastic)):
        for kernel, expansion in product(KERNELS, EXPANSIONS):
            yield design.subnetwork(depths, (kernel,), (expansion,))
    randomness = random.Random(0)
    yield from (design.draw(randomness) for _ in range(_TRIED_FIRST))


@dataclass(frozen=True)
class Frontier:
    """The best sub-networks by the accuracies that are given, the smallest first."""

    model: str
    batch: int
    best: tuple[Found, ...]
    quality: Quality

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        found = [
            {
                "subnetwork": one.chosen.text, "expected_percent": one.expected_percent, "peak_bytes": one.peak_bytes,
                "total_flops": one.total_flops, "schedule": one.schedule.to_dict(self.batch),
            }
            for one in self.best
        ]  # fmt: skip
        return {"model": self.model, "batch": self.batch, "predictor": asdict(self.quality), "frontier": found}


def plan_without_data(
    model: str, accuracies: str, ram_bytes: int | None = None, trained: Way | None = None, resolution: int = 224,
    classes: int | None = None, batch: int = 8, optimizer: str = "sgd",
) -> Frontier:  # fmt: skip
    """Return the frontier over a super-network's sub-networks by accuracies that are known of some, as on ImageNet.

    accuracies: a CSV file with columns subnetwork (d=...,k=...,e=...) and top1_percent. ram_bytes: the largest budget;
    that of the largest sub-network if None.

    Errors: InputError for a network that is not elastic, and a file that cannot be used; InfeasibleError if nothing
    fits.
    """
    design = supernetwork(model, classes, device="meta").design
    observed = _read(design, accuracies)
    accuracy = fit(design, observed)

    def graph_of(chosen: Subnetwork) -> LayerGraph:
        return trace(subnetwork_name(model, chosen), resolution, classes)

    way = trained or default_way(design)
    prices = BlockPrices(design, Step(graph_of(design.smallest), way, batch, optimizer=optimizer), graph_of)
    search = Search(prices, accuracy)
    least, most = int(search.known.peaks.min()), int(search.known.least_bytes.max())
    top = search.best(most if ram_bytes is None else ram_bytes)  # refused if nothing fits
    budgets = np.geomspace(least, top.peak_bytes, _BUDGETS)[:-1].round().astype(int).tolist()
    return Frontier(model, batch, (*search.frontier(budgets), top), accuracy.quality)


def default_way(design: Design) -> Way:
    """Return how sub-networks train: by TinyTL where they have its norm, else by MobileTL."""
    blocks = len(design.smallest.kernels) + 1
    return way("tinytl-lb") if design.norm == "group" else way("mobiletl", min(_MOBILETL_BLOCKS, blocks))


def subnetwork_name(model: str, chosen: Subnetwork) -> str:
    """Return the full name of a super-network's sub-network."""
    base, choice = split_name(model)
    parts = [part for part in (choice or "").split(",") if part.partition("=")[0] in ("w", "norm")]
    return f"{base}@{','.join([*parts, chosen.text])}"


def _read(design: Design, path: str) -> list[tuple[Subnetwork, float]]:
    """Return the accuracies in a file. Errors: InputError, naming the line, for what cannot be used."""
    text = read_file(path, "evidence").decode("utf-8-sig", errors="replace")
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not {"subnetwork", "top1_percent"} <= rows[0].keys():
        raise InputError(f"{path} needs a first line with the columns subnetwork and top1_percent, and rows")
    found = []
    for number, row in enumerate(rows, 2):
        try:
            percent = float(row["top1_percent"] or "")
            if not 0 <= percent <= 100:
                raise ValueError
        except (TypeError, ValueError):
            given = shortened(str(row["top1_percent"]))
            raise InputError(f"{path}, line {number}: top1_percent is {given}; it must be a number, 0 to 100") from None
        try:
            found.append((design.read((row["subnetwork"] or "").rpartition("@")[2])[1], percent))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    if len(found) < LEAST:
        raise InputError(f"{path} has {len(found)} sub-networks; {LEAST} are needed to predict others")
    return found
