"""Limits -> the one way to fine-tune that promises most, why, and the plan to do it; or why nothing fits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from costmodel import InfeasibleError, InputError, LayerGraph, Step, body_digest, price, whole_step
from costmodel.units import format_bytes

from ..estimates.runs import data_set, unused
from ..estimates.setting import Setting
from ..evidence.rows import Row
from .axes import Axes, axes
from .candidate import Candidate
from .candidates import price_all, trace_all
from .choice import Choice, pick
from .objectives import DEFAULT, check_limits
from .plan import Plan
from .reasons import method_reasons, notes, reasons, schedule_reasons
from .scheduling import Scheduling, scheduled
from .ways_out import ways_out

MOST_BATCH = 4096  # no larger one is tried


@dataclass(frozen=True)
class Recommendation(Choice):
    """The pick, with the reasons and the plan.

    plan: the pick, to be saved and applied; largest_batch: the most images per pass within the limits, all else as in
    the pick (both None where only prices were given; the second also where a schedule is used). plainly: what would be
    picked if every step were carried out plainly; None if nothing fitted then. further_notes: what evidence does not
    apply, and what the tracer could not follow.
    """

    plan: Plan | None = None
    largest_batch: int | None = None
    plainly: Candidate | None = None
    further_notes: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the pick won, in words."""
        brought = schedule_reasons(self, self.plainly)
        return (*reasons(self), *method_reasons(self), *brought, *self._batch_reason())

    def _batch_reason(self) -> tuple[str, ...]:
        if self.largest_batch is None or self.ram_bytes is None:
            return ()
        more = " (no larger one was tried)" if self.largest_batch >= MOST_BATCH else ""
        limit = format_bytes(self.ram_bytes)
        return (f"the largest batch that fits in {limit} this way, in one pass, is {self.largest_batch}{more}",)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers must not be read as, and what to measure."""
        return (*notes(self), *self.further_notes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""

        def plain(value):
            if isinstance(value, Candidate):
                return value.to_dict()
            return [plain(item) for item in value] if isinstance(value, tuple) else value

        names = [
            name for name in self.__dataclass_fields__ if name not in ("scale", "fitting", "plan", "further_notes")
        ]
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
    whole_step(accounting, "cannot be held against a memory budget")
    graphs = trace_all(models, resolution, classes)
    space = axes(batch=batch, optimizer=optimizer, accounting=accounting, **more)

    def found(graphs: Sequence[LayerGraph], space: Axes) -> Recommendation:
        return choose_within(price_all(graphs, space), kept, space, objectives)

    try:
        answer = found(graphs, space)
    except InfeasibleError as error:
        helps = ways_out(graphs, kept, space, lambda graphs, space: found(graphs, space).chosen)
        raise InfeasibleError(f"{error}{helps}") from None
    settings = [Setting(graph.model, graph.resolution, each) for graph in graphs for each in space.batches]
    about = unused(space.evidence, data_set(space.evidence, space.dataset), settings)
    about += _changed(space.evidence, graphs)
    return _with_plan(answer, [*about, *(f"{graph.model}: {note}" for graph in graphs for note in graph.notes)])


def _changed(evidence: Sequence[Row], graphs: Sequence[LayerGraph]) -> list[str]:
    """Return which of the user's runs are of networks whose layers are others today."""
    today = {(graph.model, graph.resolution): body_digest(graph) for graph in graphs}
    names = []
    for row in evidence:
        now = today.get((row.model, row.resolution or 0))
        if row.graph and now and now != row.graph:
            names.append(row.model)
    return [
        f"{names.count(name)} of {len(evidence)} rows of your evidence are of {name} as it was when they were "
        "measured; its layers have changed since, so measure again"
        for name in dict.fromkeys(names)
    ]


def _with_plan(answer: Recommendation, notes: Sequence[str]) -> Recommendation:
    chosen = answer.chosen
    return replace(
        answer,
        plan=Plan.of(chosen),
        largest_batch=None
        if answer.ram_bytes is None or chosen.step.schedule.is_cut
        else _largest_batch(chosen, answer.ram_bytes),
        further_notes=tuple(notes),
    )


def _largest_batch(chosen: Candidate, ram_bytes: float) -> int | None:
    """Return the most images per pass that fit, all else as in a candidate."""
    step, batches = chosen.step, range(1, MOST_BATCH + 1)
    if step.kernels is not None:  # whose memory is not a linear function of the batch: found by halving
        over = bisect_left(batches, True, key=lambda batch: _peak_bytes(step, [batch])[0] > ram_bytes)
        return batches[over - 1] if over else None
    fitting = np.flatnonzero(_peak_bytes(step, batches) <= ram_bytes)
    return batches[fitting.max()] if len(fitting) else None


def _peak_bytes(step: Step, batches: Sequence[int]) -> np.ndarray:
    """Return the peak of a step at other batches, in one pass."""
    prices = price(
        step.graph, [step.way], batches, [step.optimizer], [step.precision], step.accounting, kernels=step.kernels
    )
    return prices.columns["peak_bytes"]


def choose_within(
    priced: Sequence[Candidate], limits: Mapping[str, float], space: Axes, objectives: Sequence[str] = DEFAULT
) -> Recommendation:
    """Return the recommendation among priced candidates, carried out by the schedules that fit.

    Errors: InfeasibleError if none fits.
    """
    how = space.scheduling or Scheduling()
    answer = choose(scheduled(priced, limits, how, space.seconds_of), limits, objectives)
    if answer.chosen.step.schedule in {candidate.step.schedule for candidate in priced}:
        return answer
    try:
        return replace(answer, plainly=pick(priced, limits, objectives).chosen)
    except InfeasibleError:
        return answer


def choose(
    priced: Sequence[Candidate], limits: Mapping[str, float] | int, objectives: Sequence[str] = DEFAULT
) -> Recommendation:
    """Return the recommendation among priced candidates; limits: by objective, or a number of bytes.

    Errors: InfeasibleError if none fits.
    """
    return Recommendation(**vars(pick(priced, limits, objectives)))
