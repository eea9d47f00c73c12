"""A memory budget -> the one way to fine-tune that promises most, what lost to it and why, or why nothing fits.

The pick has the highest expected recovery of all candidates whose peak fits; of equals (within `TIE`) the one with the
least peak memory, then the fewest FLOPs, then the fewest trained parameters. A candidate of unknown recovery is picked
only where no candidate of known recovery fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from costmodel import ACCOUNTINGS, InfeasibleError, InputError
from costmodel.units import format_bytes, format_count

from .candidates import Candidate, axes, price_all, trace_all
from .pareto import non_dominated

TIE = 1e-9
CHEAPER_SHOWN = 3

ACROSS_MODELS = (
    "recovery is relative to each network's own full fine-tuning: networks are compared by how much of its own "
    "potential each reaches. How accurate full fine-tuning of each is on your data is not known here; a network at 0.8 "
    "may be more accurate than another at 1.0"
)


@dataclass(frozen=True)
class Recommendation:
    """The pick and what it was picked from.

    next_better: of those that promise more and do not fit, the one that lacks the fewest bytes. best_unfit: of those,
    the one that promises most. cheaper: the best of the frontier (peak memory, FLOPs of a step, recovery) that fit and
    promise less. best_per_model: the best that fits of each network, if there are several. unknown: those that fit,
    whose recovery has no basis. reasons: why the pick won, in words. notes: what the numbers must not be read as.
    """

    ram_bytes: int
    chosen: Candidate
    next_better: Candidate | None
    best_unfit: Candidate | None
    cheaper: tuple[Candidate, ...]
    best_per_model: tuple[Candidate, ...]
    unknown: tuple[Candidate, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    candidates: tuple[Candidate, ...]

    def to_dict(self) -> dict:
        """Return everything as plain values, for JSON."""

        def plain(value):
            if isinstance(value, Candidate):
                return value.to_dict()
            return [plain(item) for item in value] if isinstance(value, tuple) else value

        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}


def recommend(
    models: str | Sequence[str],
    ram_bytes: int,
    batch: int = 8,
    optimizer: str = "sgd",
    resolution: int = 224,
    classes: int | None = None,
    accounting: str = "lean",
) -> Recommendation:
    """Return the best way to fine-tune one of `models` whose step takes at most `ram_bytes`.

    Errors: InfeasibleError, naming the smallest footprint, if nothing fits; InputError for a budget that is not
    positive; those of `candidates.candidates`.
    """
    if ram_bytes <= 0:
        raise InputError(f"the memory budget must be a positive number of bytes, not {ram_bytes}")
    if accounting in ACCOUNTINGS and not ACCOUNTINGS[accounting].whole_step:
        whole = ", ".join(name for name, entry in ACCOUNTINGS.items() if entry.whole_step)
        raise InputError(
            f"the books {accounting!r} leave parts of a training step out, so they cannot be held against a memory "
            f"budget; allowed: {whole}"
        )
    graphs = trace_all(models, resolution, classes)
    traced = [f"{graph.model}: {note}" for graph in graphs for note in graph.notes]
    space = axes(batch=batch, optimizer=optimizer, accounting=accounting)
    return choose(price_all(graphs, space), ram_bytes, traced)


def choose(priced: Sequence[Candidate], ram_bytes: int, notes: Sequence[str] = ()) -> Recommendation:
    """Return the recommendation among priced candidates; `notes` are passed on.

    Errors: InfeasibleError if none fits.
    """
    fits = [candidate for candidate in priced if candidate.peak_bytes <= ram_bytes]
    if not fits:
        raise _infeasible(priced, ram_bytes)
    chosen = best(fits)
    better = [
        candidate
        for candidate in priced
        if candidate.peak_bytes > ram_bytes and _value(candidate) > _value(chosen) + TIE
    ]
    costs = [(c.peak_bytes, c.total_flops, -_value(c) if _known(c) else np.nan) for c in priced]
    frontier = [candidate for candidate, on in zip(priced, non_dominated(costs), strict=True) if on]
    cheaper = sorted(
        (c for c in frontier if c.peak_bytes <= ram_bytes and _value(c) < _value(chosen) - TIE), key=_order
    )
    models = list(dict.fromkeys(candidate.model for candidate in priced))
    per_model = [best(own) for model in models if (own := [c for c in fits if c.model == model])]
    name = _namer(models)
    next_better = min(better, key=lambda c: (c.peak_bytes, _order(c)), default=None)
    best_unfit = best(better) if better else None
    unknown = tuple(candidate for candidate in fits if not _known(candidate))
    return Recommendation(
        ram_bytes,
        chosen,
        next_better,
        best_unfit,
        tuple(cheaper[:CHEAPER_SHOWN]),
        tuple(per_model) if len(models) > 1 else (),
        unknown,
        tuple(_reasons(priced, fits, chosen, next_better, best_unfit, cheaper[:1], ram_bytes, name)),
        (*_notes(chosen, fits, unknown, models, name), *notes),
        tuple(priced),
    )


def best(fitting: Sequence[Candidate]) -> Candidate:
    """Return the one that promises most; of equals (within `TIE`) the cheapest."""
    most = max(_value(candidate) for candidate in fitting)
    return min((c for c in fitting if _value(c) >= most - TIE), key=_cost)


def _known(candidate: Candidate) -> bool:
    return candidate.recovery.value is not None


def _value(candidate: Candidate) -> float:
    """The expected recovery; below every known one if it is unknown."""
    return candidate.recovery.value if _known(candidate) else -np.inf


def _cost(candidate: Candidate) -> tuple[int, int, int]:
    return candidate.peak_bytes, candidate.total_flops, candidate.trained_parameters


def _order(candidate: Candidate) -> tuple:
    """What sorts the most promising first, of equals the cheapest."""
    return -_value(candidate), *_cost(candidate)


def _infeasible(priced: Sequence[Candidate], ram_bytes: int) -> InfeasibleError:
    least = min(priced, key=_cost)
    return InfeasibleError(
        f"nothing fits in {format_bytes(ram_bytes)}: the smallest footprint is {least.label} on {least.model}, "
        f"{format_bytes(least.peak_bytes)} ({least.peak_bytes} bytes) at batch {least.batch} and {least.resolution} "
        f"pixels, its peak {_where(least)}; allow that much, or take a smaller batch, resolution or network"
    )


def _where(candidate: Candidate) -> str:
    return f"in {candidate.peak_phase}" + (f" at {candidate.peak_layer}" if candidate.peak_layer else "")


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return each model's name without its library, where that still tells the models apart."""
    models = list(dict.fromkeys(models))
    short = {model: model.rpartition(":")[2] for model in models}
    return short if len(set(short.values())) == len(models) else {model: model for model in models}


def _namer(models: Sequence[str]) -> Callable[[Candidate], str]:
    short = short_names(models)
    return lambda candidate: f"{candidate.label} on {short[candidate.model]}" if len(models) > 1 else candidate.label


def recovery_text(value: float | None) -> str:
    """Return a recovery as text, to three decimals; what is below 1 never reads as 1."""
    if value is None:
        return "unknown"
    return ">0.999" if 0.9995 <= value < 1 - TIE else f"{value:.3f}"


def _reasons(
    priced: Sequence[Candidate],
    fits: Sequence[Candidate],
    chosen: Candidate,
    next_better: Candidate | None,
    best_unfit: Candidate | None,
    cheaper: Sequence[Candidate],
    ram_bytes: int,
    name: Callable[[Candidate], str],
) -> Iterator[str]:
    """Yield why the pick won: against all, against better ones, cheaper ones, and every other method."""

    def promise(candidate: Candidate) -> str:
        same = candidate is not chosen and abs(_value(candidate) - _value(chosen)) <= TIE
        if same:
            return "promises the same"
        known = _known(candidate)
        return f"promises {recovery_text(candidate.recovery.value)}" if known else "its recovery is unknown"

    def lacking(candidate: Candidate) -> str:
        more = format_bytes(candidate.peak_bytes - ram_bytes)
        return f"needs {format_bytes(candidate.peak_bytes)}, {more} more than there is"

    yield (
        f"{name(chosen)} promises the most ({recovery_text(chosen.recovery.value)}) of the {len(fits)} of "
        f"{len(priced)} candidates that fit in {format_bytes(ram_bytes)}; "
        f"{format_bytes(ram_bytes - chosen.peak_bytes)} stay free"
    )
    if best_unfit is None:
        yield "nothing that needs more memory promises more"
    else:
        if next_better is not best_unfit:
            yield f"{name(next_better)} {promise(next_better)}, but {lacking(next_better)}"
        yield f"{name(best_unfit)} {promise(best_unfit)}, but {lacking(best_unfit)}; its peak is {_where(best_unfit)}"
    for lost in cheaper:
        yield f"{name(lost)} takes {_difference(lost, chosen)}, but {promise(lost)}"
    said = {candidate.method for candidate in (chosen, next_better, best_unfit, *cheaper) if candidate}
    for method in dict.fromkeys(candidate.method for candidate in priced if candidate.method not in said):
        own = [candidate for candidate in fits if candidate.method == method]
        if own:
            lost = best(own)
            yield f"{name(lost)} takes {_difference(lost, chosen)}, and {promise(lost)}"
        else:
            lost = min((candidate for candidate in priced if candidate.method == method), key=_cost)
            yield f"{name(lost)} {lacking(lost)}, and {promise(lost)}"
    for model in dict.fromkeys(candidate.model for candidate in priced):
        if not any(candidate.model == model for candidate in fits):
            lost = min((candidate for candidate in priced if candidate.model == model), key=_cost)
            yield f"nothing fits on {model}: its smallest footprint, {lost.label}, {lacking(lost)}"


def _difference(other: Candidate, chosen: Candidate) -> str:
    """Return what `other` takes more or less than the pick, such as '3.28 MB less and 401 MFLOPs more'."""
    memory, compute = other.peak_bytes - chosen.peak_bytes, other.total_flops - chosen.total_flops
    parts = [
        f"{text} {'more' if difference > 0 else 'less'}"
        for difference, text in (
            (memory, format_bytes(abs(memory))),
            (compute, f"{format_count(abs(compute))}FLOPs"),
        )
        if difference
    ]
    return " and ".join(parts) or "as much memory and compute"


def _notes(
    chosen: Candidate,
    fits: Sequence[Candidate],
    unknown: Sequence[Candidate],
    models: Sequence[str],
    name: Callable[[Candidate], str],
) -> Iterator[str]:
    if len(models) > 1:
        yield ACROSS_MODELS
    if not _known(chosen):
        yield f"nothing of known accuracy fits; {name(chosen)} is the cheapest, not the most accurate"
    else:
        low = chosen.recovery.low
        rivals = [c for c in fits if c is not chosen and _known(c) and c.recovery.high >= low]
        if rivals:
            yield (
                f"the intervals of {len(rivals)} other candidates that fit overlap with the pick's: "
                "their order is expected, not certain"
            )
    if unknown and _known(chosen):
        yield (
            f"{len(unknown)} candidates that fit have no known accuracy and were not considered: "
            + ", ".join(name(candidate) for candidate in unknown)
        )
