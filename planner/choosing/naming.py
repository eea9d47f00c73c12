"""Short names of networks and candidates: as much as tells one from the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .candidate import Candidate

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

    def name(candidate: Candidate, with_model: bool = True) -> str:
        parts = [candidate.label, *(f"{what} {_NAMED[what](candidate)}" for what in varying)]
        return ", ".join(parts) + (f" on {short[candidate.model]}" if with_model and len(short) > 1 else "")

    if "micro-batch" in varying:  # most often the schedule's, and no candidate is told from another by it
        varying.remove("micro-batch")
        if len({name(candidate) for candidate in priced}) < len(priced):
            varying.insert(min(1, len(varying)), "micro-batch")
    return name
