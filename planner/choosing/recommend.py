"""Limits -> the one way to fine-tune that promises most, what lost to it and why, or why nothing fits.

The pick is, of all candidates within the limits, the one with the highest expected accuracy; of those that tie with it,
and with every better one that was measured, the one with the least peak memory, then the fewest FLOPs, then the fewest
trained parameters. Accuracy is that on the user's data where their evidence gives it to every candidate of known
recovery, else recovery.

Two candidates tie if each one's value lies in the other's interval: then which is more accurate is not known. Two
estimates of the same origin (one curve, one table and network) err alike: their order is kept. Of what was measured on
the user's data more is known: two measured ones tie if their difference is within its standard error. One that was not
measured ties with a measured one that promises more only within the latter's standard error: that little is known of it
is no reason to take it.

A candidate of unknown accuracy is picked only where none of known accuracy fits. Of those that differ in the
micro-batch alone only the largest that fits counts: accuracies are observed with whole batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodel import ACCOUNTINGS, InfeasibleError, InputError, LayerGraph, price
from costmodel.units import format_bytes

from ..estimates.intervals import Difference
from ..estimates.runs import Measured, difference
from .candidates import Axes, Candidate, axes, price_all, trace_all
from .objectives import DEFAULT, OBJECTIVES, check_limits, frontier, keeps
from .plan import Plan

TIE = 1e-9
CHEAPER_SHOWN = 3
MOST_BATCH = 4096  # no larger one is tried


@dataclass(frozen=True)
class Scale:
    """How candidates are compared: by 'accuracy' in percent, or by 'recovery'."""

    name: str

    def value(self, candidate: Candidate) -> float:
        """Return what is expected; below every known value if it is unknown."""
        guess = candidate.recovery
        value = guess.accuracy_percent if self.name == "accuracy" else guess.value
        return -np.inf if value is None else value

    def interval(self, candidate: Candidate) -> tuple[float, float]:
        """Return the ends of the interval; of an unknown one no number."""
        guess = candidate.recovery
        if not self.knows(candidate):
            return np.nan, np.nan
        if self.name == "accuracy":
            return guess.accuracy_low_percent, guess.accuracy_high_percent
        return guess.low, guess.high

    def knows(self, candidate: Candidate) -> bool:
        """Whether the candidate's value is known."""
        return self.value(candidate) > -np.inf

    def text(self, value: float) -> str:
        """Return a value as text; a recovery below 1 never reads as 1."""
        if value == -np.inf:
            return "unknown"
        if self.name == "accuracy":
            return f"{value:.1f} %"
        return ">0.999" if 0.9995 <= value < 1 - TIE else f"{value:.3f}"

    def gain(self, more: Candidate, less: Candidate) -> str:
        """Return how much more one promises than the other."""
        difference = self.value(more) - self.value(less)
        return f"{difference:+.1f} points" if self.name == "accuracy" else f"{difference:+.3f} of recovery"

    def kind(self, candidate: Candidate) -> str:
        """Return what the value is: measured, interpolated, prior ..."""
        guess = candidate.recovery
        return guess.accuracy_kind if self.name == "accuracy" else guess.kind

    def runs(self, candidate: Candidate) -> Measured | None:
        """Return the user's own whole runs of the candidate, if the scale is that of what they measured."""
        found = candidate.recovery.runs if self.name == "accuracy" else None
        return found if found and not found.stopped else None

    def difference(self, one: Candidate, other: Candidate) -> Difference | None:
        """Return how much more accurate one was than the other; None unless both were measured."""
        ours, theirs = self.runs(one), self.runs(other)
        return difference(ours, theirs) if ours and theirs else None

    def tied(self, candidate: Candidate, top: Candidate) -> bool:
        """Whether a candidate counts as equally accurate as the most promising one."""
        value, most = self.value(candidate), self.value(top)
        if most - value <= TIE or most == value:
            return True
        if not (self.knows(candidate) and self.knows(top)):
            return False
        if measured := self.difference(top, candidate):
            return measured.is_tie
        if measured := self.runs(top):
            return most - value <= measured.standard_error
        origins = {(each.model, each.recovery.source, self.kind(each)) for each in (candidate, top)}
        if len(origins) == 1 and self.kind(top) == "prior":
            return False
        (low, high), (least, best_case) = self.interval(candidate), self.interval(top)
        return least <= value <= best_case and low <= most <= high

    def may_win(self, rival: Candidate, chosen: Candidate) -> bool:
        """Whether a rival could be more accurate than the pick."""
        if not (self.knows(rival) and self.knows(chosen)):
            return self.knows(rival)
        if measured := self.difference(rival, chosen):
            return measured.value > 0 or measured.is_open
        return self.interval(rival)[1] >= self.interval(chosen)[0]


def scale_of(priced: Iterable[Candidate]) -> Scale:
    """Return the scale on which candidates can be compared."""
    known = [candidate.recovery for candidate in priced if candidate.recovery.value is not None]
    return Scale("accuracy" if known and all(guess.accuracy_percent is not None for guess in known) else "recovery")


@dataclass(frozen=True)
class Recommendation:
    """The pick and what it was picked from.

    plan: the pick, to be saved and applied; largest_batch: the most images per pass within the limits, all else as in
    the pick (both None where only prices were given). next_better: of those that promise more and do not fit, the one
    that lacks the fewest bytes. best_unfit: of those, the one that promises most. cheaper: the best of the frontier
    that take less memory and promise less. faster: the most promising that takes at most 0.8 of the pick's FLOPs per
    image. safer: the one with the highest low end, if that is above the pick's. rivals: those that fit and could be
    more accurate than the pick, the one that could be best first: their intervals overlap; of two that were measured,
    the interval of their difference holds 0. best_per_model: the best that fits of each network, if there are several.
    unknown: those that fit, whose accuracy has no basis. trace_notes: what the tracer could not follow.
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
    trace_notes: tuple[str, ...] = ()
    plan: Plan | None = None
    largest_batch: int | None = None

    @property
    def ram_bytes(self) -> float | None:
        """The memory budget, if there is one."""
        return self.limits.get("memory")

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the pick won, in words."""
        from .reasons import reasons

        return tuple(reasons(self))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers must not be read as, and what to measure."""
        from .reasons import notes

        return (*notes(self), *self.trace_notes)

    def to_dict(self) -> dict:
        """Return everything as plain values, for JSON."""

        def plain(value):
            if isinstance(value, Candidate):
                return value.to_dict()
            return [plain(item) for item in value] if isinstance(value, tuple) else value

        names = [name for name in self.__dataclass_fields__ if name not in ("scale", "fitting", "plan", "trace_notes")]
        return {
            "plan": self.plan and self.plan.model_dump(),
            "compared_by": self.scale.name,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            **{name: plain(getattr(self, name)) for name in names},
        }


def recommend(
    models: str | Sequence[str],
    ram_bytes: int | None = None,
    batch: int | Iterable[int] = 8,
    optimizer: str | Iterable[str] = "sgd",
    resolution: int | Iterable[int] = 224,
    classes: int | None = None,
    accounting: str = "lean",
    limits: Mapping[str, float] | None = None,
    objectives: Sequence[str] = DEFAULT,
    **more,
) -> Recommendation:
    """Return the best way to fine-tune one of `models` whose step takes at most `ram_bytes` and keeps other `limits`.

    limits: by objective (`OBJECTIVES`). objectives: what the frontier, and with it the alternatives, is made of. more:
    further axes and the user's evidence, as in `candidates.axes`.

    Errors: InfeasibleError, naming the smallest footprint, if nothing fits; InputError for a limit that is not
    positive; those of `candidates.candidates`.
    """
    if ram_bytes is not None and ram_bytes <= 0:
        raise InputError(f"the memory budget must be a positive number of bytes, not {ram_bytes}")
    kept = check_limits({**({} if ram_bytes is None else {"memory": ram_bytes}), **(limits or {})})
    if accounting in ACCOUNTINGS and not ACCOUNTINGS[accounting].whole_step:
        whole = ", ".join(name for name, entry in ACCOUNTINGS.items() if entry.whole_step)
        raise InputError(
            f"the books {accounting!r} leave parts of a training step out, so they cannot be held against a memory "
            f"budget; allowed: {whole}"
        )
    graphs = trace_all(models, resolution, classes)
    space = axes(batch=batch, optimizer=optimizer, accounting=accounting, **more)
    answer = choose(price_all(graphs, space), kept, objectives)
    graph = next(g for g in graphs if (g.model, g.resolution) == (answer.chosen.model, answer.chosen.resolution))
    return _with_plan(answer, graph, space, [f"{graph.model}: {note}" for graph in graphs for note in graph.notes])


def _with_plan(answer: Recommendation, graph: LayerGraph, space: Axes, notes: Sequence[str]) -> Recommendation:
    chosen = answer.chosen
    largest = None
    if answer.ram_bytes is not None:
        batches = [(size, size) for size in range(1, MOST_BATCH + 1)]
        columns, _ = price(
            graph,
            [(chosen.method, chosen.blocks)],
            batches,
            [chosen.optimizer],
            [chosen.frozen_dtype],
            space.accounting,
        )
        fitting = columns["batches"][columns["peak_bytes"] <= answer.ram_bytes]
        largest = batches[fitting.max()][0] if len(fitting) else None
    return replace(answer, plan=Plan.of(chosen, graph), largest_batch=largest, trace_notes=tuple(notes))


def choose(
    priced: Sequence[Candidate], limits: Mapping[str, float] | int, objectives: Sequence[str] = DEFAULT
) -> Recommendation:
    """Return the recommendation among priced candidates; limits: by objective, or a number of bytes.

    Errors: InfeasibleError if none fits.
    """
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
    same = (chosen.model, chosen.label)
    rivals = [c for c in fits if (c.model, c.label) != same and scale.may_win(c, chosen)]
    models = list(dict.fromkeys(candidate.model for candidate in priced))
    per_model = [best(own, scale) for model in models if (own := [c for c in fits if c.model == model])]
    return Recommendation(
        dict(limits),
        scale,
        chosen,
        min(better, key=lambda c: (c.peak_bytes, _order(c, scale)), default=None),
        best(better, scale) if better else None,
        tuple(cheaper[:CHEAPER_SHOWN]),
        best(light, scale) if light and (best(light, scale).recovery.value or 0) > 0 else None,
        safer if scale.knows(chosen) and scale.interval(safer)[0] > low + TIE else None,
        tuple(sorted(rivals, key=lambda c: (-scale.interval(c)[1], _order(c, scale)))),
        tuple(per_model) if len(models) > 1 else (),
        tuple(candidate for candidate in fits if not scale.knows(candidate)),
        tuple(fits),
        tuple(priced),
    )


def _in_largest_passes(fitting: Iterable[Candidate]) -> list[Candidate]:
    """Return, of candidates that differ in their micro-batch alone, the one with the largest."""
    largest: dict[tuple, Candidate] = {}
    for c in fitting:
        key = (c.model, c.label, c.batch, c.resolution, c.optimizer, c.frozen_dtype)
        if key not in largest or c.micro_batch > largest[key].micro_batch:
            largest[key] = c
    return list(largest.values())


def best(fitting: Sequence[Candidate], scale: Scale) -> Candidate:
    """Return the cheapest of those that tie with the one that promises most, and with every measured better one."""
    top = min(fitting, key=lambda candidate: _order(candidate, scale))
    above = [top, *(candidate for candidate in fitting if scale.runs(candidate))]
    tied = (c for c in fitting if all(scale.tied(c, t) for t in above if scale.value(t) >= scale.value(c)))
    return min(tied, key=lambda candidate: (*_cost(candidate), -scale.value(candidate)))


def _cost(candidate: Candidate) -> tuple[int, int, int]:
    return candidate.peak_bytes, candidate.total_flops, candidate.trained_parameters


def _order(candidate: Candidate, scale: Scale) -> tuple:
    """What sorts the most promising first, of equals the cheapest."""
    return -scale.value(candidate), *_cost(candidate)


def where(candidate: Candidate) -> str:
    """Return where a candidate's peak is."""
    return f"in {candidate.peak_phase}" + (f" at {candidate.peak_layer}" if candidate.peak_layer else "")


def _infeasible(priced: Sequence[Candidate], limits: Mapping[str, float]) -> InfeasibleError:
    least = min(priced, key=_cost)
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
            f"{least.resolution} pixels, its peak {where(least)}; allow that much, or take a smaller batch, resolution "
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
