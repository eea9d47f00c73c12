"""Priced candidates and limits -> the pick, and what else there is to know.

The pick is the most accurate candidate within the limits; ties go to the cheapest: the least time (FLOPs per image,
where no device is named), then the plainest schedule, then the least memory. What accuracy means says `scale`.

What cannot train is not a candidate. One of unknown accuracy is picked only where none of known accuracy fits. Of those
that differ in the micro-batch alone only the largest that fits counts: accuracies are observed with whole batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodel import InfeasibleError
from costmodel.units import format_bytes

from .candidate import Candidate
from .objectives import DEFAULT, OBJECTIVES, frontier, keeps
from .scale import TIE, Scale, is_observed, scale_of

CHEAPER_SHOWN = 3


@dataclass(frozen=True)
class Choice:
    """The pick and what it was picked from.

    next_better: of those that promise more and do not fit, the one
    that lacks the fewest bytes. best_unfit: of those, the one that promises most. cheaper: the best of the frontier
    that take less memory and promise less. faster: the most promising that takes at most 0.8 of the pick's FLOPs per
    image. safer: the one with the highest low end, if that is above the pick's. rivals: those that fit and could be
    more accurate than the pick by more than a tolerance, the one that could be best first: so far reaches the interval
    of their difference. best_per_model: the best that fits of each network, if there are several. unknown: those that
    fit, whose accuracy has no basis. untrainable: those that cannot train, and are not candidates.
    """

    limits: dict[str, float]
    scale: Scale
    chosen: Candidate
    next_better: Candidate | None
    best_unfit: Candidate | None
    cheaper: tuple[Candidate, ...]
    faster: Candidate | None
    safer: Candidate | None
    rivals: tuple[Candidate, ...]
    best_per_model: tuple[Candidate, ...]
    unknown: tuple[Candidate, ...]
    fitting: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    untrainable: tuple[Candidate, ...]

    @property
    def ram_bytes(self) -> float | None:
        """The memory budget, if there is one."""
        return self.limits.get("memory")


def pick(priced: Sequence[Candidate], limits: Mapping[str, float] | int, objectives: Sequence[str] = DEFAULT) -> Choice:
    """Return the pick among priced candidates; limits: by objective, or a number of bytes.

    Errors: InfeasibleError if none fits, or none can train.
    """
    untrainable = tuple(candidate for candidate in priced if candidate.cannot_train)
    priced = [candidate for candidate in priced if not candidate.cannot_train]
    if not priced:
        raise InfeasibleError(f"nothing can train here: {untrainable[0].label}: {untrainable[0].cannot_train}")
    limits = limits if isinstance(limits, Mapping) else {"memory": limits}
    fits = _in_largest_passes(candidate for candidate in priced if keeps(candidate, limits))
    if not fits:
        raise _infeasible(priced, limits)
    scale = scale_of(priced)
    chosen = best(fits, scale)
    value, low = scale.value(chosen), scale.interval(chosen)[0]
    inside = {id(candidate) for candidate in priced if keeps(candidate, limits)}
    better = [c for c in priced if id(c) not in inside and scale.value(c) > value + TIE]
    names = [scale.name if name == "recovery" else name for name in objectives]
    on = [c for c in frontier(priced, names) if id(c) in inside and c.peak_bytes < chosen.peak_bytes]
    cheaper = sorted((c for c in on if scale.value(c) < value - TIE), key=lambda c: _order(c, scale))
    light = [c for c in fits if c.total_flops / c.batch <= 0.8 * chosen.total_flops / chosen.batch]
    safer = max(fits, key=lambda c: (np.nan_to_num(scale.interval(c)[0], nan=-np.inf), *(-n for n in _cost(c))))
    same = (chosen.model, chosen.way)
    rivals = [c for c in fits if (c.model, c.way) != same and scale.may_win(c, chosen)]
    models = list(dict.fromkeys(candidate.model for candidate in priced))
    per_model = [best(own, scale) for model in models if (own := [c for c in fits if c.model == model])]
    return Choice(
        dict(limits),
        scale,
        chosen,
        min(better, key=lambda c: (c.peak_bytes, _order(c, scale)), default=None),
        best(better, scale) if better else None,
        tuple(cheaper[:CHEAPER_SHOWN]),
        best(light, scale) if light and (best(light, scale).recovery.value or 0) > 0 else None,
        safer if scale.knows(chosen) and scale.interval(safer)[0] > low + TIE else None,
        tuple(sorted(rivals, key=lambda c: (-scale.reach(c, chosen), _order(c, scale)))),
        tuple(per_model) if len(models) > 1 else (),
        tuple(candidate for candidate in fits if not scale.knows(candidate)),
        tuple(fits),
        tuple(priced),
        untrainable,
    )


def _in_largest_passes(fitting: Iterable[Candidate]) -> list[Candidate]:
    """Return, of candidates that differ in their micro-batch alone, the one with the largest."""
    largest: dict[tuple, Candidate] = {}
    for c in fitting:
        step = c.step
        key = (step.graph, step.way, step.batch, step.optimizer, step.precision, step.schedule.inplace_update)
        if key not in largest or c.micro_batch > largest[key].micro_batch:
            largest[key] = c
    return list(largest.values())


def best(fitting: Sequence[Candidate], scale: Scale) -> Candidate:
    """Return the cheapest of those that tie with the one that promises most.

    Of batches that evidence has, where any of these fits: what smaller ones do to the accuracy nobody observed.
    """
    fitting = [candidate for candidate in fitting if scale.knows(candidate) and is_observed(candidate)] or fitting
    top = min(fitting, key=lambda candidate: _order(candidate, scale))
    tied = (candidate for candidate in fitting if scale.tied(candidate, top))
    return min(tied, key=lambda candidate: (*_cost(candidate), -scale.value(candidate)))


def _cost(candidate: Candidate) -> tuple[float, ...]:
    """What sorts the cheapest first: the time of an image (its FLOPs where no device is named), then memory."""
    time = candidate.total_flops if candidate.step_seconds is None else candidate.step_seconds
    schedule = candidate.step.schedule
    levers = (bool(schedule.segments), schedule.has_prefix, schedule.inplace_update)
    return time / candidate.batch, sum(levers), candidate.peak_bytes, candidate.trained_parameters


def _order(candidate: Candidate, scale: Scale) -> tuple:
    """What sorts the most promising first, of equals the cheapest."""
    return -scale.value(candidate), *_cost(candidate)


def _infeasible(priced: Sequence[Candidate], limits: Mapping[str, float]) -> InfeasibleError:
    least = min(priced, key=lambda candidate: (candidate.peak_bytes, *_cost(candidate)))
    broken = {name: limit for name, limit in limits.items() if not any(keeps(c, {name: limit}) for c in priced)}
    if not broken:
        said = ", ".join(f"{name} {OBJECTIVES[name].text(limit)}" for name, limit in limits.items())
        return InfeasibleError(
            f"nothing keeps all of the limits {said} at once, though each one alone can be kept; ease one of them"
        )
    if "memory" in broken:
        return InfeasibleError(
            f"nothing fits in {format_bytes(limits['memory'])}: the smallest footprint is {least.label} on "
            f"{least.model}, {format_bytes(least.peak_bytes)} ({least.peak_bytes} bytes) at batch {least.batch} and "
            f"{least.resolution} pixels, its peak {least.where}; allow that much, or take a smaller batch, resolution "
            "or network"
        )
    name, limit = next(iter(broken.items()))
    found = OBJECTIVES[name]
    known = [candidate for candidate in priced if not np.isnan(found.value(candidate))]
    if not known:
        return InfeasibleError(f"the {found.summary} is not known of any candidate, so that no limit on it can be kept")
    nearest = min(known, key=found.cost)
    return InfeasibleError(
        f"nothing keeps {name} {found.text(limit)} ({found.summary}): the nearest is {nearest.label} on "
        f"{nearest.model} with {found.text(found.value(nearest))}; ease the limit, or take another network"
    )
