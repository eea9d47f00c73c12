"""Why the pick of a recommendation won, and what its numbers must not be read as: in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from costmodel.units import format_bytes, format_count

from ..estimates.anchored import FULL, LAST
from ..estimates.setting import LEAST_IMAGES
from ..evidence.rows import imagenet_top1
from .candidate import Candidate
from .choice import Choice, best
from .objectives import OBJECTIVES, keeps
from .scale import TIE, TOLERANCE, is_observed
from .scheduling import levers

RELATIVE = (
    "recovery is relative to each network's own full fine-tuning: one at 0.8 may be more accurate than another at 1.0"
)
NOT_RANKED = f"{RELATIVE}. These networks' accuracy on ImageNet is not known here, so that they are listed, not ranked"
_SHOWN = 4  # of a list; the others are counted
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
    said = _Sentences(answer)
    yield said.pick()
    yield from said.better()
    for lost in answer.cheaper[:1]:
        yield f"{said.name(lost)} takes {_difference(lost, answer.chosen)}, but {said.promise(lost)}"
    named = (answer.chosen, answer.next_better, answer.best_unfit, *answer.cheaper[:1])
    yield from said.other_methods({candidate.way.method for candidate in named if candidate})
    yield from said.models_that_do_not_fit()


def schedule_reasons(answer: Choice, plainly: Candidate | None) -> Iterator[str]:
    """Yield what the pick's schedule brings; plainly: what would be picked without schedules."""
    chosen, said = answer.chosen, _Sentences(answer)
    if not chosen.step.schedule.is_cut and not chosen.step.schedule.inplace_update:
        return
    brought = levers(chosen.step)
    saved = chosen.peak_bytes - sum(each.bytes for each in brought)
    yield (
        f"the schedule keeps the result and brings {format_bytes(saved)} down to {format_bytes(chosen.peak_bytes)}: "
        f"{'; '.join(map(str, brought))}"
    )
    if plainly is None:
        yield "carried out plainly, nothing fits"
    elif (plainly.model, plainly.way) != (chosen.model, chosen.way):
        yield f"carried out plainly, {said.name(plainly)} would be the pick: {said.promise(plainly)}"


class _Sentences:
    """What can be said of a choice."""

    def __init__(self, answer: Choice) -> None:
        self.answer, self.scale, self.chosen, self.name = answer, answer.scale, answer.chosen, namer(answer.candidates)

    def promise(self, candidate: Candidate) -> str:
        """Return the accuracy that a candidate promises."""
        scale = self.scale
        if candidate is not self.chosen and abs(scale.value(candidate) - scale.value(self.chosen)) <= TIE:
            return "promises the same"
        known = scale.knows(candidate)
        return f"promises {scale.text(scale.value(candidate))}" if known else "its accuracy is unknown"

    def lacking(self, candidate: Candidate) -> str:
        """Return why a candidate does not fit."""
        limits = self.answer.limits
        broken = [OBJECTIVES[each] for each, limit in limits.items() if not keeps(candidate, {each: limit})]
        if not broken or broken[0].name == "memory":
            more = format_bytes(candidate.peak_bytes - (self.answer.ram_bytes or 0))
            return f"needs {format_bytes(candidate.peak_bytes)}, {more} more than there is"
        found = broken[0]
        return f"its {found.summary} is {found.text(found.value(candidate))}, not {found.text(limits[found.name])}"

    def pick(self) -> str:
        """Return why the pick is better than all that fit."""
        answer, scale, chosen = self.answer, self.scale, self.chosen
        limits = ", ".join(
            f"in {format_bytes(limit)}" if each == "memory" else f"{each} {OBJECTIVES[each].text(limit)}"
            for each, limit in answer.limits.items()
        )
        fit = f"{len(answer.fitting)} of {len(answer.candidates)} candidates{f' that fit {limits}' if limits else ''}"
        spare = f"; {format_bytes(answer.ram_bytes - chosen.peak_bytes)} stay free" if answer.ram_bytes else ""
        top = min(answer.fitting, key=lambda candidate: (-scale.value(candidate), candidate.peak_bytes))
        if scale.value(top) <= scale.value(chosen) + TIE:
            return f"{self.name(chosen)} promises the most ({scale.text(scale.value(chosen))}) of the {fit}{spare}"
        why = scale.gain(top, chosen)
        if apart := scale.difference(top, chosen):
            where = "" if scale.name == "accuracy" else " on a typical data set"
            why = f"{apart.value:+.1f} points{where}, with a standard error of {apart.standard_error:.1f}"
        return (
            f"{self.name(chosen)} is the cheapest of those that promise within {TOLERANCE} points of the best of the "
            f"{fit}, {self.name(top)} ({scale.text(scale.value(top))}): {why}{spare}"
        )

    def better(self) -> Iterator[str]:
        """Yield what would be better, and what it lacks."""
        nearest, unfit = self.answer.next_better, self.answer.best_unfit
        if nearest is None or unfit is None:  # if one is, both are
            yield "nothing that does not fit promises more"
            return
        if nearest is not unfit:
            yield self._next_better(nearest)
        yield f"{self.name(unfit)} {self.promise(unfit)}, but {self.lacking(unfit)}; its peak is {unfit.where}"

    def _next_better(self, nearest: Candidate) -> str:
        budget = self.answer.ram_bytes
        if budget and nearest.peak_bytes > budget and self.scale.knows(self.chosen):
            gain = self.scale.gain(nearest, self.chosen)
            return f"{format_bytes(nearest.peak_bytes - budget)} more would allow {self.name(nearest)}: {gain}"
        return f"{self.name(nearest)} {self.promise(nearest)}, but {self.lacking(nearest)}"

    def other_methods(self, said: set[str]) -> Iterator[str]:
        """Yield, for every method that was not spoken of, the best that fits or the smallest that does not."""
        of_method: dict[str, list[Candidate]] = {}
        for candidate in self.answer.candidates:
            of_method.setdefault(candidate.way.method, []).append(candidate)
        for method, candidates in of_method.items():
            if method in said:
                continue
            if own := [candidate for candidate in self.answer.fitting if candidate.way.method == method]:
                lost = best(own, self.scale)
                yield f"{self.name(lost)} takes {_difference(lost, self.chosen)}, and {self.promise(lost)}"
            else:
                lost = min(candidates, key=lambda candidate: candidate.peak_bytes)
                yield f"{self.name(lost)} {self.lacking(lost)}, and {self.promise(lost)}"

    def models_that_do_not_fit(self) -> Iterator[str]:
        """Yield the networks of which nothing fits."""
        fit = {candidate.model for candidate in self.answer.fitting}
        for model in dict.fromkeys(candidate.model for candidate in self.answer.candidates):
            if model not in fit:
                own = (candidate for candidate in self.answer.candidates if candidate.model == model)
                lost = min(own, key=lambda candidate: candidate.peak_bytes)
                yield f"nothing fits on {model}: its smallest footprint, {lost.label}, {self.lacking(lost)}"


def notes(answer: Choice) -> Iterator[str]:
    """Yield what is not known, and what to measure to become sure."""
    scale, chosen, name = answer.scale, answer.chosen, namer(answer.candidates)
    yield from _between_models(answer)
    if said := _no_gap(chosen):
        yield said
    if not is_observed(chosen) and scale.knows(chosen):
        yield (
            f"accuracies were observed with batches of {LEAST_IMAGES} and more; that {chosen.batch} reach the same is "
            "an assumption"
        )
    if answer.untrainable:
        ways = list(dict.fromkeys(name(candidate, with_model=False) for candidate in answer.untrainable))
        yield f"cannot train: {_listed(ways)}: {answer.untrainable[0].cannot_train}"
    if not scale.knows(chosen):
        yield f"nothing of known accuracy fits; {name(chosen)} is the cheapest, not the most accurate"
    elif answer.rivals:
        yield (
            f"{_count(len(answer.rivals), 'other candidate')} that fit could be more accurate than the pick by more "
            f"than {TOLERANCE} points: their order is expected, not certain"
        )
        ends = "" if scale.name == "accuracy" else ", and last and full, which tell how much there is to gain"
        yield f"to become sure, measure {name(chosen)} and {name(answer.rivals[0])} on your data{ends}"
    for reason, unknown in _unknown(answer).items():
        if scale.knows(chosen):
            yield f"not considered, though they fit, their accuracy being unknown: {_listed(unknown)}: {reason}"


def _unknown(answer: Choice) -> dict[str, list[str]]:
    """Return the names of those that fit and whose accuracy is unknown, by the reason."""
    found: dict[str, list[str]] = {}
    for candidate in answer.unknown:
        guess = candidate.recovery
        reason = guess.rests_on if guess.kind == "unknown" else "the network's accuracy on ImageNet is not known here"
        label = candidate.model if guess.kind != "unknown" else candidate.label
        names = found.setdefault(reason, [])
        if label not in names:
            names.append(label)
    return found


def _listed(names: Sequence[str]) -> str:
    """Return names as text, the first few of many; none of them has a semicolon."""
    return "; ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _between_models(answer: Choice) -> Iterator[str]:
    """Yield what a choice between networks, or resolutions, rests on."""
    models = list(dict.fromkeys(candidate.model for candidate in answer.candidates))
    if answer.scale.name == "typical":
        known = {model: top1 for model in models if (top1 := imagenet_top1().get(model)) is not None}
        shown = ", ".join(f"{short_names(known)[model]} {top1:.1f} %" for model, top1 in known.items())
        yield (
            f"networks and resolutions are compared on a typical data set, by the accuracy on ImageNet ({shown}), "
            "whose logit carries over to other data sets: Kornblith, Shlens, Le, CVPR 2019. On your data the order "
            "may be another; measure last and full of each to know"
        )
    elif len(models) > 1 and answer.scale.name == "recovery":
        yield NOT_RANKED


def _no_gap(chosen: Candidate) -> str:
    """Return that training more is not expected to help, where last and full were measured and say so."""
    believed = chosen.recovery.believed
    if chosen.recovery.accuracy_percent is None or believed is None or believed.expected.training_more_helps:
        return ""
    points, error = believed.expected.difference(FULL, LAST)
    return (
        "training more than the last layer is not expected to help on this data: full is expected "
        f"{points:+.1f} points above last, with a standard error of {error:.1f}"
    )
