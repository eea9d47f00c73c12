"""Why the pick of a recommendation won, and what its numbers must not be read as: in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from costmodel.units import format_bytes, format_count

from .candidate import Candidate
from .choice import Choice, best
from .objectives import OBJECTIVES, keeps
from .scale import TIE

ACROSS_MODELS = (
    "recovery is relative to each network's own full fine-tuning: networks are compared by how much of its own "
    "potential each reaches. How accurate full fine-tuning of each is on your data is not known here; a network at 0.8 "
    "may be more accurate than another at 1.0"
)
# What is named where candidates differ in it, and how.
_NAMED: dict[str, Callable[[Candidate], object]] = {
    "batch": lambda candidate: candidate.batch,
    "micro-batch": lambda candidate: candidate.micro_batch,
    "at": lambda candidate: candidate.resolution,
    "by": lambda candidate: candidate.step.optimizer,
    "frozen in": lambda candidate: candidate.step.precision.frozen,
}


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return each model's name without its library, where that still tells the models apart."""
    models = list(dict.fromkeys(models))
    short = {model: model.rpartition(":")[2] for model in models}
    return short if len(set(short.values())) == len(models) else {model: model for model in models}


def namer(priced: Sequence[Candidate]) -> Callable[..., str]:
    """Return what names a candidate by all that tells it from the others."""
    short = short_names(candidate.model for candidate in priced)
    varying = [what for what, value in _NAMED.items() if len({value(candidate) for candidate in priced}) > 1]
    if all(candidate.micro_batch == candidate.batch for candidate in priced):
        varying = [what for what in varying if what != "micro-batch"]

    def name(candidate: Candidate, with_model: bool = True) -> str:
        parts = [candidate.label, *(f"{what} {_NAMED[what](candidate)}" for what in varying)]
        return ", ".join(parts) + (f" on {short[candidate.model]}" if with_model and len(short) > 1 else "")

    return name


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


def reasons(answer: Choice) -> Iterator[str]:
    """Yield why the pick won: against all, against better ones, cheaper ones, and every other method."""
    scale, chosen, priced, fits = answer.scale, answer.chosen, answer.candidates, answer.fitting
    name = namer(priced)

    def promise(candidate: Candidate) -> str:
        if candidate is not chosen and abs(scale.value(candidate) - scale.value(chosen)) <= TIE:
            return "promises the same"
        known = scale.knows(candidate)
        return f"promises {scale.text(scale.value(candidate))}" if known else "its accuracy is unknown"

    def lacking(candidate: Candidate) -> str:
        broken = [OBJECTIVES[each] for each, limit in answer.limits.items() if not keeps(candidate, {each: limit})]
        if not broken or broken[0].name == "memory":
            more = format_bytes(candidate.peak_bytes - (answer.ram_bytes or 0))
            return f"needs {format_bytes(candidate.peak_bytes)}, {more} more than there is"
        found = broken[0]
        return (
            f"its {found.summary} is {found.text(found.value(candidate))}, not {found.text(answer.limits[found.name])}"
        )

    limits = ", ".join(
        f"in {format_bytes(limit)}" if each == "memory" else f"{each} {OBJECTIVES[each].text(limit)}"
        for each, limit in answer.limits.items()
    )
    top = min(fits, key=lambda candidate: (-scale.value(candidate), candidate.peak_bytes))
    fit = f"{len(fits)} of {len(priced)} candidates" + (f" that fit {limits}" if limits else "")
    spare = f"; {format_bytes(answer.ram_bytes - chosen.peak_bytes)} stay free" if answer.ram_bytes else ""
    if scale.value(top) > scale.value(chosen) + TIE:
        why = "each one's value lies in the other's interval"
        if measured := scale.difference(top, chosen) or scale.runs(top):
            why = f"{scale.gain(top, chosen)}, with a standard error of {measured.standard_error:.1f}"
        yield (
            f"{name(chosen)} is the cheapest of those that tie with the most promising of the {fit}, {name(top)} "
            f"({scale.text(scale.value(top))}): {why}{spare}"
        )
    else:
        yield f"{name(chosen)} promises the most ({scale.text(scale.value(chosen))}) of the {fit}{spare}"
    nearest, unfit = answer.next_better, answer.best_unfit
    if unfit is None:
        yield "nothing that does not fit promises more"
    else:
        if nearest is not unfit:
            more = ""
            if answer.ram_bytes and nearest.peak_bytes > answer.ram_bytes and scale.knows(chosen):
                lack = format_bytes(nearest.peak_bytes - answer.ram_bytes)
                more = f"{lack} more would allow {name(nearest)}: {scale.gain(nearest, chosen)}"
            yield more or f"{name(nearest)} {promise(nearest)}, but {lacking(nearest)}"
        yield f"{name(unfit)} {promise(unfit)}, but {lacking(unfit)}; its peak is {unfit.where}"
    for lost in answer.cheaper[:1]:
        yield f"{name(lost)} takes {_difference(lost, chosen)}, but {promise(lost)}"
    said = {candidate.way.method for candidate in (chosen, nearest, unfit, *answer.cheaper[:1]) if candidate}
    for method in dict.fromkeys(candidate.way.method for candidate in priced if candidate.way.method not in said):
        own = [candidate for candidate in fits if candidate.way.method == method]
        if own:
            lost = best(own, scale)
            yield f"{name(lost)} takes {_difference(lost, chosen)}, and {promise(lost)}"
        else:
            lost = min(
                (candidate for candidate in priced if candidate.way.method == method), key=lambda c: c.peak_bytes
            )
            yield f"{name(lost)} {lacking(lost)}, and {promise(lost)}"
    for model in dict.fromkeys(candidate.model for candidate in priced):
        if not any(candidate.model == model for candidate in fits):
            lost = min((candidate for candidate in priced if candidate.model == model), key=lambda c: c.peak_bytes)
            yield f"nothing fits on {model}: its smallest footprint, {lost.label}, {lacking(lost)}"


def notes(answer: Choice) -> Iterator[str]:
    """Yield what is not known, and what to measure to become sure."""
    scale, chosen, name = answer.scale, answer.chosen, namer(answer.candidates)
    if len({candidate.model for candidate in answer.candidates}) > 1 and scale.name == "recovery":
        yield ACROSS_MODELS
    if chosen.micro_batch < chosen.batch:
        yield (
            f"norms with batch statistics see the images of one micro-batch ({chosen.micro_batch}); the accuracies "
            "that the estimate rests on are of whole batches"
        )
    if not scale.knows(chosen):
        yield f"nothing of known accuracy fits; {name(chosen)} is the cheapest, not the most accurate"
    elif answer.rivals:
        yield (
            f"{len(answer.rivals)} other candidates that fit could be more accurate than the pick: their order is "
            "expected, not certain"
        )
        ends = "" if scale.name == "accuracy" else ", and last and full, which turn recovery into accuracy"
        yield f"to become sure, measure {name(chosen)} and {name(answer.rivals[0])} on your data{ends}"
    unknown = list(dict.fromkeys(candidate.label for candidate in answer.unknown))
    if unknown and scale.knows(chosen):
        yield f"{len(unknown)} ways that fit have no known accuracy and were not considered: {', '.join(unknown)}"
