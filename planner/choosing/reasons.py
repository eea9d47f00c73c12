"""Why the pick of a recommendation won, and what its numbers do not mean, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from costmodel import footprint
from costmodel.units import counted, format_bytes, format_count

from ..estimates.anchored import FULL, LAST
from ..estimates.setting import LEAST_IMAGES
from ..evidence.rows import imagenet_top1
from .candidate import Candidate
from .choice import Choice, best
from .naming import namer, short_names
from .objectives import OBJECTIVES, keeps
from .scale import TIE, TOLERANCE, is_observed
from .scheduling import levers

RELATIVE = (
    "recovery is relative to each network's own full fine-tuning: one at 0.8 may be more accurate than another at 1.0"
)
NOT_RANKED = f"{RELATIVE}. These networks' accuracy on ImageNet is not known here, so that they are listed, not ranked"
_SHOWN = 4  # of a list; the others are counted


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


def surety(answer: Choice, budget: str) -> tuple[str, str]:
    """Return in one sentence how sure the choice is, and the command that makes it surer ('' if none does).

    budget: the option of the command line that sets it, such as '--ram 64MB'; empty if no memory is asked for.
    """
    chosen, fitting = answer.chosen, len(answer.fitting)
    if not answer.scale.knows(chosen):
        said = "no candidate that fits has a known accuracy, so this is the cheapest one"
    elif answer.rivals:
        said = (
            f"{len(answer.rivals)} of the {counted(fitting, 'candidate')} that fit could be better on your data by "
            f"more than {TOLERANCE} points"
        )
    elif fitting == 1:
        return "it is the only candidate that fits", ""
    else:
        return f"none of the {fitting} candidates that fit is expected to be better by more than {TOLERANCE} points", ""
    if not budget:
        return said, ""
    if chosen.step.accounting != "lean":  # by which `planner measure` holds its runs against a budget
        in_pytorch = (replace(each.step, accounting="lean") for each in (chosen, *answer.rivals))
        budget = f"--ram {max(footprint(step).peak_bytes for step in in_pytorch)}"
    others = [("--resolution", chosen.resolution, 224), ("--batch", chosen.batch, 8)]
    given = "".join(f" {option} {value}" for option, value, usual in others if value != usual)
    return said, f"planner measure {chosen.model} --data YOUR_IMAGES {budget}{given}"


def reasons(answer: Choice) -> Iterator[str]:
    """Yield why the pick won: against all, against better ones, and against cheaper ones."""
    said = _Sentences(answer)
    yield said.pick()
    yield from said.better()
    for lost in answer.cheaper[:1]:
        yield f"{said.name(lost)} takes {_difference(lost, answer.chosen)}, but {said.expected(lost)}"
    yield from said.models_that_do_not_fit()


def method_reasons(answer: Choice) -> Iterator[str]:
    """Yield, of every method that `reasons` does not speak of, what its best candidate takes and is expected to reach.

    The best is the best that fits, or the smallest if none does.
    """
    said = _Sentences(answer)
    for lost in other_methods(answer):
        if keeps(lost, answer.limits):
            yield f"{said.name(lost)} takes {_difference(lost, answer.chosen)}, and {said.expected(lost)}"
        else:
            yield f"{said.name(lost)} {said.lacking(lost)}, and {said.expected(lost)}"


def other_methods(answer: Choice) -> list[Candidate]:
    """Return the best candidate that fits, or the smallest, of each method that `reasons` does not speak of."""
    named = (answer.chosen, answer.next_better, answer.best_unfit, *answer.cheaper[:1])
    said = {candidate.way.method for candidate in named if candidate}
    of_method: dict[str, list[Candidate]] = {}
    for candidate in answer.candidates:
        of_method.setdefault(candidate.way.method, []).append(candidate)
    found = []
    for candidates in (some for method, some in of_method.items() if method not in said):
        own = [candidate for candidate in answer.fitting if candidate.way.method == candidates[0].way.method]
        found.append(best(own, answer.scale) if own else min(candidates, key=lambda candidate: candidate.peak_bytes))
    return found


def schedule_reasons(answer: Choice, plainly: Candidate | None) -> Iterator[str]:
    """Yield what the pick's schedule brings; plainly: what would be picked without schedules."""
    chosen, said = answer.chosen, _Sentences(answer)
    if not chosen.step.schedule.is_cut and not chosen.step.schedule.inplace_update:
        return
    brought = levers(chosen.step)
    saved = chosen.peak_bytes - sum(each.bytes for each in brought)
    yield (
        f"the schedule changes no result and lowers the peak from {format_bytes(saved)} to "
        f"{format_bytes(chosen.peak_bytes)}: {'; '.join(map(str, brought))}"
    )
    if plainly is None:
        yield "without a schedule nothing fits"
    elif (plainly.model, plainly.way) != (chosen.model, chosen.way):
        yield f"without a schedule {said.name(plainly)} would win: {said.expected(plainly)}"


class _Sentences:
    """What can be said of a choice."""

    def __init__(self, answer: Choice) -> None:
        self.answer, self.scale, self.chosen, self.name = answer, answer.scale, answer.chosen, namer(answer.candidates)

    @property
    def what(self) -> str:
        """What candidates are compared by."""
        return "recovery" if self.scale.name == "recovery" else "accuracy"

    def expected(self, candidate: Candidate) -> str:
        """Return what accuracy is expected of a candidate, as the end of a sentence."""
        scale = self.scale
        if not scale.knows(candidate):
            return "its accuracy is unknown"
        if candidate is not self.chosen and abs(scale.value(candidate) - scale.value(self.chosen)) <= TIE:
            return f"its expected {self.what} is the same"
        return f"its expected {self.what} is {scale.text(scale.value(candidate))}"

    def lacking(self, candidate: Candidate) -> str:
        """Return why a candidate does not fit."""
        limits = self.answer.limits
        broken = [OBJECTIVES[each] for each, limit in limits.items() if not keeps(candidate, {each: limit})]
        if not broken or broken[0].name == "memory":
            more = format_bytes(candidate.peak_bytes - (self.answer.ram_bytes or 0))
            return f"needs {format_bytes(candidate.peak_bytes)}, {more} more than the budget"
        found = broken[0]
        return (
            f"has {found.summary} {found.text(found.value(candidate))}, and the limit is "
            f"{found.text(limits[found.name])}"
        )

    def pick(self) -> str:
        """Return why the pick is better than all that fit."""
        answer, scale, chosen = self.answer, self.scale, self.chosen
        limits = ", ".join(
            f"in {format_bytes(limit)}" if each == "memory" else f"{each} {OBJECTIVES[each].text(limit)}"
            for each, limit in answer.limits.items()
        )
        fit = f"{len(answer.fitting)} of {counted(len(answer.candidates), 'candidate')}"
        fit += f" fit {limits}" if limits else " fit"
        spare = f"; {format_bytes(answer.ram_bytes - chosen.peak_bytes)} left" if answer.ram_bytes else ""
        top = min(answer.fitting, key=lambda candidate: (-scale.value(candidate), candidate.peak_bytes))
        if not scale.knows(chosen):
            return f"{self.name(chosen)} is the cheapest that fits, and no accuracy is known; {fit}{spare}"
        if scale.value(top) <= scale.value(chosen) + TIE:
            value = scale.text(scale.value(chosen))
            return f"{self.name(chosen)} has the highest expected {self.what} that fits, {value}; {fit}{spare}"
        why = scale.gain(top, chosen)
        if apart := scale.difference(top, chosen):
            where = "" if scale.name == "accuracy" else " on a typical data set"
            why = f"{apart.value:+.1f} points{where}, standard error {apart.standard_error:.1f}"
        return (
            f"{self.name(chosen)} is the cheapest within {TOLERANCE} points of the best that fits, {self.name(top)} "
            f"({self.what} {scale.text(scale.value(top))}: {why}); {fit}{spare}"
        )

    def better(self) -> Iterator[str]:
        """Yield what would be better, and what it lacks."""
        nearest, unfit = self.answer.next_better, self.answer.best_unfit
        if nearest is None or unfit is None:  # if one is, both are
            yield f"no candidate beyond the limits has a higher expected {self.what}"
            return
        if nearest is not unfit:
            yield self._next_better(nearest)
        yield f"{self.name(unfit)} {self.lacking(unfit)}; {self.expected(unfit)}; its peak is {unfit.where}"

    def _next_better(self, nearest: Candidate) -> str:
        budget = self.answer.ram_bytes
        if budget and nearest.peak_bytes > budget and self.scale.knows(self.chosen):
            gain = self.scale.gain(nearest, self.chosen)
            return f"{format_bytes(nearest.peak_bytes - budget)} more would allow {self.name(nearest)}: {gain}"
        return f"{self.name(nearest)} {self.lacking(nearest)}; {self.expected(nearest)}"

    def models_that_do_not_fit(self) -> Iterator[str]:
        """Yield the networks of which nothing fits."""
        fit = {candidate.model for candidate in self.answer.fitting}
        for model in dict.fromkeys(candidate.model for candidate in self.answer.candidates):
            if model not in fit:
                own = (candidate for candidate in self.answer.candidates if candidate.model == model)
                lost = min(own, key=lambda candidate: candidate.peak_bytes)
                yield f"nothing fits on {model}: its smallest footprint, {lost.label}, {self.lacking(lost)}"


def notes(answer: Choice) -> Iterator[str]:
    """Yield what is not known, and what the expected accuracy rests on."""
    scale, chosen, name = answer.scale, answer.chosen, namer(answer.candidates)
    yield from _between_models(answer)
    if said := _no_gap(chosen):
        yield said
    if not is_observed(chosen) and scale.knows(chosen):
        yield (
            f"all observed accuracies are of batches of {LEAST_IMAGES} or more; that a batch of {chosen.batch} reaches "
            "the same is an assumption"
        )
    if answer.untrainable:
        ways = list(dict.fromkeys(name(candidate, with_model=False) for candidate in answer.untrainable))
        yield f"cannot train: {_listed(ways)}: {answer.untrainable[0].cannot_train}"
    if not scale.knows(chosen):
        yield f"no candidate that fits has a known accuracy; {name(chosen)} is the cheapest, not the most accurate"
    elif answer.rivals:
        ends = "" if scale.name == "accuracy" else ", and last and full, the ends of the scale"
        yield f"to become sure, measure {name(chosen)} and {name(answer.rivals[0])} on your data{ends}"
    for reason, unknown in _unknown(answer).items():
        if scale.knows(chosen):
            yield f"left out, because their accuracy is unknown: {_listed(unknown)}: {reason}"


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
