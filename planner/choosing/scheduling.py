"""Candidates carried out by the schedule that fits: the same training in less memory.

A schedule changes no accuracy, so that of each way only the cheapest one that fits counts. It is looked for where it
can matter: of ways that do not fit as they are, the most promising first, down to those that tie with the best that
fits. All others stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import Any

from costmodel import (
    ACCOUNTINGS,
    LEVERS,
    MOST_FLOPS,
    ON_DEMAND,
    PLAIN,
    CacheCost,
    Footprint,
    Schedule,
    Scheduled,
    Step,
    footprint,
    nearest_schedule,
)  # fmt: skip
from costmodel.errors import InputError, unknown
from costmodel.units import counted, format_bytes

from .candidate import Candidate
from .objectives import keeps
from .scale import Scale, is_observed, scale_of

SecondsOf = Callable[[Footprint], float | None]


def untimed(cost: Footprint) -> None:
    """Where no time of a step is known."""


@dataclass(frozen=True)
class Scheduling:
    """How far a step may be carried out in another way than plainly.

    levers: which of `costmodel.LEVERS` and `costmodel.ON_DEMAND` may be used; none leaves every step as it is.
    most_flops: how many times the plain step's FLOPs, at most.

    Errors: InputError for a lever that does not exist, and for FLOPs below those of the plain step.
    """

    levers: tuple[str, ...] = LEVERS
    most_flops: float = MOST_FLOPS

    def __post_init__(self) -> None:
        for lever in self.levers:
            if lever not in LEVERS + ON_DEMAND:
                raise unknown("lever", lever, LEVERS + ON_DEMAND)
        if not 1 <= self.most_flops <= _MOST_TIMES:
            raise InputError(
                f"most_flops is {self.most_flops}; allowed: 1 (nothing is computed twice) to {_MOST_TIMES} times the "
                "plain step's"
            )


_MOST_TIMES = 100


def scheduled(
    priced: Sequence[Candidate], limits: Mapping[str, float], how: Scheduling, seconds_of: SecondsOf = untimed
) -> list[Candidate]:
    """Return candidates for limits: those that could be picked by the cheapest schedule that fits, or that is nearest.

    seconds_of: the time of a step.
    """
    budget = limits.get("memory")
    if budget is None or not how.levers or not priced:
        return list(priced)
    if not ACCOUNTINGS.find(priced[0].step.accounting).is_carried_out:
        return list(priced)
    others = {name: limit for name, limit in limits.items() if name != "memory"}
    found: dict[int, Candidate] = {}

    def fitting(candidate: Candidate) -> Candidate | None:
        may_fit = _there_anyway(candidate) <= budget and keeps(candidate, others)
        if may_fit and not keeps(candidate, {"memory": budget}):
            if id(candidate) not in found:
                found[id(candidate)] = by_schedule(candidate, limits, how, seconds_of)
            candidate = found[id(candidate)]
        return candidate if keeps(candidate, limits) else None

    can_train = [candidate for candidate in priced if not candidate.cannot_train]
    scale = scale_of(can_train)
    tops = (
        _search(sorted(pool, key=lambda candidate: -scale.value(candidate)), fitting, scale)
        for pool in _pools(can_train, scale)
    )
    anything_fits = any(tops)
    of_each_method = _smallest_of_each_method(can_train)
    for smallest in of_each_method:  # for comparison
        fitting(smallest)
    if not anything_fits and of_each_method:  # to say how much would do
        smallest = of_each_method[0]
        found[id(smallest)] = by_schedule(smallest, limits, how, seconds_of)
    return [found.get(id(candidate), candidate) for candidate in priced]


def _smallest_of_each_method(priced: Sequence[Candidate]) -> list[Candidate]:
    smallest: dict[tuple[str, str], Candidate] = {}
    for candidate in sorted(priced, key=lambda candidate: candidate.peak_bytes):
        smallest.setdefault((candidate.model, candidate.way.method), candidate)
    return list(smallest.values())


def _there_anyway(candidate: Candidate) -> int:
    """Return the bytes that no schedule saves."""
    return sum(candidate.memory_bytes[name] for name in ("weights", "buffers", "optimizer"))


def _pools(priced: Sequence[Candidate], scale: Scale) -> Iterator[list[Candidate]]:
    """Yield among which the pick is looked for, one after the other, until something fits."""
    yield [candidate for candidate in priced if scale.knows(candidate) and is_observed(candidate)]
    yield [candidate for candidate in priced if scale.knows(candidate)]
    yield list(priced)


def _search(
    ordered: Iterable[Candidate], fitting: Callable[[Candidate], Candidate | None], scale: Scale
) -> Candidate | None:
    """Try candidates, the most promising first, as long as they tie with the first that fits; return that one."""
    top = None
    for candidate in ordered:
        if top is not None and not scale.tied(candidate, top):
            break
        fits = fitting(candidate)
        top = top or fits
    return top


def by_schedule(candidate: Candidate, limits: Mapping[str, float], how: Scheduling, seconds_of: SecondsOf) -> Candidate:
    """Return a candidate by the cheapest schedule that keeps limits of memory and storage, or the nearest to that."""
    memory = limits.get("memory")
    if "cache" in how.levers and not _may_cache(candidate.step, limits.get("storage", inf)):
        how = replace(how, levers=tuple(lever for lever in how.levers if lever != "cache"))
    found = _nearest(candidate.step, None if memory is None else int(memory), how)
    if found.schedule == candidate.step.schedule:
        return candidate
    return carried_out(candidate, replace(candidate.step, schedule=found.schedule), seconds_of)


def _may_cache(step: Step, bytes_per_image: float) -> bool:
    """Whether a step has frozen layers at its start, whose outputs take at most so much storage."""
    try:
        cost = CacheCost.of(replace(step, schedule=Schedule(cache="float32")))
    except InputError:  # nothing at its start is frozen
        return False
    return cost is not None and cost.bytes_per_image <= bytes_per_image


@lru_cache(maxsize=10_000)  # a campaign asks again after each run
def _nearest(step: Step, ram_bytes: int | None, how: Scheduling) -> Scheduled:
    return nearest_schedule(step, ram_bytes, how.most_flops, how.levers)


def carried_out(candidate: Candidate, step: Step, seconds_of: SecondsOf = untimed) -> Candidate:
    """Return a candidate with the same accuracy and another schedule."""
    cost, prices = _cost(step)
    return replace(candidate, step=step, step_seconds=seconds_of(cost), **prices)


@lru_cache(maxsize=256)  # with every moment of a step; a network has some dozens of candidates
def _cost(step: Step) -> tuple[Footprint, dict[str, Any]]:
    cost = footprint(step)
    names = (
        "peak_bytes", "saved_bytes", "memory_bytes", "forward_flops", "backward_flops", "total_flops", "moved_bytes",
    )  # fmt: skip
    prices = {name: getattr(cost, name) for name in names}
    return cost, {**prices, "peak_layer": cost.peak.layer, "peak_phase": cost.peak.phase}


@dataclass(frozen=True)
class Lever:
    """What one change to a step's schedule brings: bytes of its peak, and FLOPs."""

    said: str
    bytes: int
    flops: int
    base_flops: int

    def __str__(self) -> str:
        more = 100 * self.flops / self.base_flops
        compute = "no more FLOPs" if not self.flops else f"{more:+.{0 if abs(more) >= 1 else 1}f} % FLOPs"
        sign = "-" if self.bytes < 0 else "+"
        return f"{self.said}: {sign}{format_bytes(abs(self.bytes))}, {compute}"


def levers(step: Step) -> list[Lever]:
    """Return what each lever of a step's schedule brings, applied one after the other, best first."""
    schedule, found = step.schedule, []
    cheap = tuple(each for each in schedule.segments if each[2] == "cheap")
    others = tuple(each for each in schedule.segments if each[2] != "cheap")
    wanted = {
        f"micro-batches of {schedule.micro_batch}": {"micro_batch": schedule.micro_batch},
        "frozen layers from a cache": {"cache": schedule.cache} if schedule.cache else {},
        f"frozen layers {counted(schedule.prefix_batch or 0, 'image')} at a time": {
            "prefix_batch": schedule.prefix_batch
        },
        "parameters updated in place": {"inplace_update": schedule.inplace_update},
        f"norms and activations recomputed in {counted(len(cheap), 'segment')}": {"segments": cheap},
        f"{counted(len(others), 'segment')} recomputed": {"segments": others},
    }
    before = plain = footprint(replace(step, schedule=PLAIN))
    while True:
        reached = before.step.schedule
        after = {
            said: footprint(replace(step, schedule=changed))
            for said, change in wanted.items()
            if (changed := _with(reached, change)) != reached and _is_valid(changed, step.batch)
        }
        if not after:
            return found
        said = min(after, key=lambda each: after[each].peak_bytes)
        more_flops = after[said].total_flops - before.total_flops
        found.append(Lever(said, after[said].peak_bytes - before.peak_bytes, more_flops, plain.total_flops))
        del wanted[said]
        before = after[said]


def _with(schedule: Schedule, change: Mapping[str, Any]) -> Schedule:
    """Return a schedule with a lever more; segments come on top of those that are there."""
    segments = tuple(sorted({*schedule.segments, *change.get("segments", ())}))
    return replace(schedule, **{**change, "segments": segments})


def _is_valid(schedule: Schedule, batch: int) -> bool:
    """Whether the numbers of a schedule fit together."""
    images, piece = schedule.images_per_pass(batch), schedule.prefix_batch
    return schedule.cache is not None or piece is None or images % min(piece, images) == 0
