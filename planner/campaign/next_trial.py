"""Which fine-tuning run comes next: the one that helps most to tell which candidate is best within the limits.

First the two anchors, which turn every recovery into an accuracy: last, and full or the best that fits. Then, as long
as a rival could be better than the pick, of the pick and the rival with the highest upper end the one with fewer runs.
Where both have all their seeds, the rival with the next upper end takes the place.

Source: the pair is that of LUCB (Kalyanakrishnan, Tewari, Auer, Stone: PAC subset selection in stochastic multi-armed
bandits, ICML 2012): the arm that seems best, and of the others the one with the highest upper bound.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from costmodel import Way, anchor

from ..choosing.candidate import Candidate
from ..choosing.choice import Choice, best
from ..choosing.objectives import keeps
from ..choosing.recommend import choose
from ..estimates.runs import concerns
from ..estimates.setting import Setting
from ..evidence.rows import Row

SEEDS = 3
TrialKey = tuple[Way, int]


@dataclass(frozen=True)
class Trial:
    """One run: a candidate with a seed."""

    candidate: Candidate
    seed: int

    @property
    def key(self) -> TrialKey:
        """The way and the seed, which tell the runs of a campaign apart."""
        return self.candidate.way, self.seed

    @property
    def label(self) -> str:
        """The trial's name for people."""
        return f"{self.candidate.label}, seed {self.seed}"


def next_trial(
    priced: Sequence[Candidate],
    rows: Sequence[Row],
    limits: Mapping[str, float],
    seeds: int = SEEDS,
    running: Collection[TrialKey] = (),
) -> Trial | None:
    """Return the run to do next, or None if none can change the recommendation.

    priced: the candidates, their estimates made with `rows` as evidence (`axes(evidence=rows)`). rows: what was
    measured on the data set. seeds: runs of one candidate at most. running: the `Trial.key` of those that others do.

    Errors: InfeasibleError if nothing keeps the limits.
    """
    decision = choose(priced, limits)
    if not decision.rivals:
        return None

    def trial(candidate: Candidate, taken: Collection[int | None]) -> Trial:
        return Trial(candidate, next(seed for seed in range(len(taken) + 1) if seed not in taken))

    for end in anchors(decision):
        if not seeds_of(end, rows, running):
            return trial(end, ())
    for rival in decision.rivals:  # the highest upper end first
        pair = [(candidate, seeds_of(candidate, rows, running)) for candidate in (decision.chosen, rival)]
        candidate, taken = min(pair, key=lambda one: len(one[1]))
        if len(taken) < seeds:
            return trial(candidate, taken)
    return None


def most_left(
    priced: Sequence[Candidate],
    rows: Sequence[Row],
    limits: Mapping[str, float],
    seeds: int = SEEDS,
    running: Collection[TrialKey] = (),
) -> int:
    """Return how many runs `next_trial` could still ask for, as things stand now."""
    decision = choose(priced, limits)
    open_ones = {id(c): c for c in (decision.chosen, *decision.rivals)} if decision.rivals else {}
    left = sum(max(0, seeds - len(seeds_of(candidate, rows, running))) for candidate in open_ones.values())
    ends = anchors(decision) if open_ones else []
    return left + sum(1 for one in ends if id(one) not in open_ones and not seeds_of(one, rows, running))


def seeds_of(candidate: Candidate, rows: Sequence[Row], running: Collection[TrialKey] = ()) -> list[int | None]:
    """Return the seeds of a candidate's runs, measured and running; None for a run that states none."""
    setting = Setting(candidate.model, candidate.resolution, candidate.batch)
    measured = [row.seed for row in rows if row.way == candidate.way and concerns(row, setting)]
    return measured + [seed for way, seed in running if way == candidate.way]


def anchors(decision: Choice) -> list[Candidate]:
    """Return the runs that turn recovery into accuracy: last, and full if it keeps the limits, else the best one."""
    last = [candidate for candidate in decision.candidates if candidate.way == anchor("last")]
    others = [c for c in decision.fitting if c.way != anchor("last") and decision.scale.knows(c)]
    full = [c for c in others if c.way == anchor("full") and keeps(c, decision.limits)]
    return last[:1] + (full[:1] or ([best(others, decision.scale)] if others else []))
