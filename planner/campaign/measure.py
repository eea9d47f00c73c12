"""A campaign: fine-tuning runs of the candidates that matter, on the user's images, until the best one is known.

`next_trial` says what to run next, `fine_tuning` runs it with the real layers and checks its memory, and
`storage` keeps the result, so that any number of workers share a campaign and any of them may die.
"""

from __future__ import annotations

import math
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.utils.data import Subset

from costmodel import Arena, CostModelError, LayerGraph, ModelError, Way, block_count, trace
from costmodel.errors import InputError, one_line, require_count
from costmodel.secrets import shown_in

from ..choosing.axes import Axes, axes
from ..choosing.candidate import Candidate
from ..choosing.candidates import price_all
from ..choosing.recommend import Recommendation, choose, choose_within
from ..choosing.scheduling import Scheduling, scheduled
from ..estimates.intervals import Z95
from ..estimates.observations import sampling_points
from ..evidence.database import COUNTED, StorageError
from ..evidence.rows import Row, pack
from .fine_tuning import Recipe, Run, fine_tune
from .identity import settings_of, start_of
from .images import DataSet, list_folder, read_folder
from .next_trial import SEEDS, Trial, anchors, most_left, next_trial
from .rates import Rates
from .storage import MOST_RATE, Claim, Store, key_of, prepare
from .watch import Watch
from .weights import Weights, load_weights, make_network

STORAGE = "sqlite:///runs.db"
_LOOK_SECONDS = 1.0  # how often to look whether another worker has finished
_RECORDED = ("finetune-planner", "torch", "torchvision", "timm", "optuna")


@dataclass(frozen=True)
class Finished:
    """A finished run. stopped: it was hopeless and ended early, its accuracy that of its last epoch. diverged: its
    weights are not finite numbers any more.

    Bytes are those of a whole step; the predicted saved bytes must be the measured ones, and the peaks differ by at
    most 1 % of what a step adds: `memory_agrees`.
    """

    number: int
    way: Way
    seed: int
    accuracy_percent: float
    stopped: bool
    test_images: int
    seconds: float
    peak_bytes: int
    measured_peak_bytes: int
    saved_bytes: int
    measured_saved_bytes: int
    memory_agrees: bool
    learning_rate: float
    diverged: bool

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        own = {name: value for name, value in vars(self).items() if name != "way"}
        return {"number": self.number, **self.way.to_dict(), **own}


@dataclass(frozen=True)
class Outcome:
    """What a campaign came to. before, after: what is recommended without its runs, and with them.

    ended: why it ended. failed: candidates that could not be trained, with the reason. notes: on data and weights.
    chance_percent: the accuracy of always naming the test images' largest class.
    """

    before: Recommendation
    after: Recommendation
    runs: tuple[Finished, ...]
    ended: str
    failed: dict[str, str]
    notes: tuple[str, ...]
    chance_percent: float

    @property
    def above_chance(self) -> bool:
        """Whether the pick is better than always naming the largest class, as far as its runs can tell."""
        runs = [run for run in self.runs if run.way == self.after.chosen.way]
        if not runs:
            return True
        error = sampling_points(self.chance_percent, runs[0].test_images) / math.sqrt(len(runs))
        return fmean(run.accuracy_percent for run in runs) > self.chance_percent + Z95 * error

    @property
    def changed(self) -> bool:
        """Whether the runs changed the pick."""
        return self.before.chosen.way != self.after.chosen.way

    def to_dict(self) -> dict:
        """Return everything as plain values, for JSON."""
        return {
            "ended": self.ended,
            "changed": self.changed,
            "above_chance": self.above_chance,
            "chance_percent": self.chance_percent,
            "runs": [run.to_dict() for run in self.runs],
            "failed": self.failed,
            "notes": list(self.notes),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }


def measure(
    model: str,
    data: str | Path,
    limits: dict[str, float],
    *,
    weights: str | None = None,
    recipe: Recipe | None = None,
    rates: Sequence[float] = (),
    trials: int | None = None,
    hours: float | None = None,
    seeds: int = SEEDS,
    storage: str = STORAGE,
    strict: bool = False,
    watch: Watch | None = None,
    trainer: Callable[..., Run] = fine_tune,
    allocator: str = "default",
    **storage_options,
) -> Outcome:
    """Fine-tune candidates on a folder of images until none can take the pick's place any more.

    limits: by objective, as in `recommend`. weights: DEFAULT, a file, or random. rates: learning rates to choose among,
    for each way apart, on a fifth of the training images; the recipe's alone if there are none. trials: of all workers
    together, at most; hours: after which this worker starts no further run; seeds: runs of one candidate, at most.
    storage: a file or a URL. trainer: what trains a candidate, as `fine_tune` does. allocator: how freed memory is
    dealt with, a name in `costmodel.POLICIES`; it changes no result. storage_options: as `storage.Store` takes them.

    Errors: InputError for what cannot be used, StorageError for a database that cannot, InfeasibleError if nothing
    keeps the limits.
    """
    recipe, watch = recipe or Recipe(), watch or Watch()
    _check(recipe, rates, {"trials": trials, "seeds": seeds}, hours)
    folder = list_folder(data)
    graph = trace(model, recipe.resolution, len(folder.classes))
    start = load_weights(graph.model, weights)
    campaign = _Campaign(graph, limits, recipe, seeds, folder.name, folder.images_per_class)
    before = campaign.decide(())
    network, head_note = start_of(graph, start)  # weights that do not fit are refused before anything is read
    prepare(storage)  # and so is a database that cannot be used
    images = read_folder(folder, recipe.resolution, start.normalisation, strict, watch.reads)
    settings = settings_of(graph, folder.name, images, network, start, recipe, rates)
    ways = campaign.space(()).ways(graph)
    store = Store(storage, settings, {way.method for way in ways}, block_count(graph), **storage_options)
    labels = Counter(images.test.labels)
    chance_percent = 100 * max(labels.values()) / len(images.test)
    more = [note for note in (head_note, store.note) if note]
    notes = (_counted(images, len(folder.classes), chance_percent), *images.notes, *more)
    for note in notes:
        watch.notes(note)
    try:
        with closing(Arena(allocator)) as arena:
            one = trainer if allocator == "default" else partial(trainer, arena=arena)
            worker = _Worker(campaign, store, images, start, watch, one, rates or (recipe.learning_rate,))
            ended = worker.work(trials, hours)
        found = store.trials()
    except StorageError as error:
        raise StorageError(f"{error}; what is stored stays: mend it and run the same command again to go on") from error
    rows = store.rows(found)
    runs = tuple(_finished(trial) for trial in found if trial.state in COUNTED)
    return Outcome(before, campaign.decide(rows), runs, ended, worker.failed, notes, chance_percent)


def _check(recipe: Recipe, rates: Sequence[float], counts: dict[str, int | None], hours: float | None) -> None:
    """Raise InputError for a number that makes no sense, before anything is read."""
    given = {"epochs": recipe.epochs, "batch": recipe.batch, "resolution": recipe.resolution, **counts}
    for name, value in given.items():
        if value is not None:
            require_count(name, value)
    if hours is not None and not 0 < hours < math.inf:
        raise InputError(f"hours must be positive and finite, not {hours}")
    for rate in (recipe.learning_rate, *rates):
        if not 0 < rate <= MOST_RATE:
            raise InputError(f"a learning rate must be above 0 and at most {MOST_RATE:g}, not {rate:g}")


def _counted(images: DataSet, classes: int, chance_percent: float) -> str:
    return (
        f"{len(images.train)} training and {len(images.test)} test images of {classes} classes; naming the largest "
        f"class each time would be right for {chance_percent:.1f} % of the test images"
    )


@dataclass(frozen=True)
class _Campaign:
    """What is chosen among, and within which limits."""

    graph: LayerGraph
    limits: dict[str, float]
    recipe: Recipe
    seeds: int
    dataset: str
    images_per_class: int

    @property
    def name(self) -> str:
        """What the trials of a campaign are counted by: a study may serve several budgets."""
        return ", ".join(f"{name} {limit:g}" for name, limit in sorted(self.limits.items()))

    def space(self, rows: Sequence[Row]) -> Axes:
        return axes(
            batch=self.recipe.batch, optimizer=self.recipe.optimizer, evidence=rows,
            dataset=self.dataset if rows else None, images_per_class=self.images_per_class,
        )  # fmt: skip

    def priced(self, rows: Sequence[Row]) -> list[Candidate]:
        space = self.space(rows)
        return scheduled(price_all([self.graph], space), self.limits, Scheduling())

    def decide(self, rows: Sequence[Row]) -> Recommendation:
        return choose_within(self.priced(rows), self.limits, self.space(rows))


class _Worker:
    """One process of a campaign."""

    def __init__(
        self, campaign: _Campaign, store: Store, images: DataSet, weights: Weights, watch: Watch,
        trainer: Callable[..., Run], rates: Sequence[float],
    ):  # fmt: skip
        self.campaign, self.store, self.images = campaign, store, images
        self.rates = Rates(rates, store, images.train, campaign.recipe)
        self.weights, self.watch, self.trainer = weights, watch, trainer
        self.failed: dict[str, str] = {}
        self.succeeded = False

    def work(self, most: int | None, hours: float | None) -> str:
        """Run trials until the campaign ends; return why it ended."""
        until = None if hours is None else time.monotonic() + 3600 * hours
        campaign, store = self.campaign, self.store
        while True:
            trials = store.trials()
            rows = store.rows(trials)
            running = [trial for trial in trials if trial.state not in COUNTED]
            taken = [key_of(trial) for trial in running]
            own = [trial for trial in trials if trial.user_attrs["campaign"] == campaign.name]
            priced = [candidate for candidate in campaign.priced(rows) if candidate.label not in self.failed]
            trial = next_trial(priced, rows, campaign.limits, campaign.seeds, taken)
            spent = most is not None and len(own) >= most
            if until is not None and time.monotonic() > until:
                return f"the time is over: {hours:g} h"
            if trial is None or spent:
                if running:  # a result may open the decision again, and a worker may have died
                    self.watch.waits([f"trial {one.number}" for one in running])
                    time.sleep(_LOOK_SECONDS)
                    continue
                return f"all {most} trials are done" if spent else _why(priced, rows, campaign)
            done = sum(one.state in COUNTED for one in own)
            left = most_left(priced, rows, campaign.limits, campaign.seeds, taken) + len(running)
            self._run(trial, choose(priced, campaign.limits), done, min(done + left, most or done + left), most)

    def _run(self, trial: Trial, decision: Recommendation, done: int, total: int, most: int | None) -> None:
        candidate, recipe = trial.candidate, self.campaign.recipe
        kept = [decision.chosen, *anchors(decision)]
        threshold = None if candidate in kept else decision.scale.interval(decision.chosen)[0]
        attributes = {
            "threshold_percent": threshold if decision.scale.name == "accuracy" else None,
            "command": command(),
            "versions": versions(),
            "skipped_images": list(self.images.skipped),
        }
        claim = self.store.claim(trial.key, recipe.learning_rate, attributes, most, self.campaign.name)
        if claim is None:
            return
        self.watch.starts(trial, claim.number, done, total, recipe.epochs)
        with claim.alive():
            try:
                self._train(trial, claim)
            except (KeyboardInterrupt, StorageError):
                claim.fail("interrupted")
                raise
            except (CostModelError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:300]
                claim.fail(reason)
                if not self.succeeded:  # then it is likely to be so with every candidate
                    kind = type(error) if isinstance(error, CostModelError) else ModelError
                    raise kind(f"{candidate.label} cannot be trained: {reason}") from error
                self.failed[candidate.label] = reason
                self.watch.notes(f"{candidate.label} cannot be trained and is left out: {reason}")

    def _train(self, trial: Trial, claim: Claim) -> None:
        candidate, recipe = trial.candidate, self.campaign.recipe

        def tried(recipe: Recipe, images: Subset, validation: Subset, seed: int) -> Run:
            network, _ = make_network(self.campaign.graph, self.weights, seed)
            self.watch.tries(trial, recipe.learning_rate)
            return self.trainer(network, images, validation, candidate.way, recipe, seed=seed, report=followed)

        def followed(epoch: int, accuracy_percent: float) -> bool:
            self.watch.epoch(epoch, accuracy_percent)
            return False

        recipe = replace(recipe, learning_rate=self.rates.of(candidate.way, tried))
        network, _ = make_network(self.campaign.graph, self.weights, trial.seed)

        def report(epoch: int, accuracy_percent: float) -> bool:
            self.watch.epoch(epoch, accuracy_percent)
            return claim.report(epoch, accuracy_percent) and epoch < recipe.epochs

        run = self.trainer(
            network, self.images.train, self.images.test, candidate.way, recipe, seed=trial.seed, report=report,
            schedule=candidate.step.schedule,
        )  # fmt: skip
        memory = run.memory
        assert memory is not None  # it is checked with every run of a campaign
        results = {
            "test_images": run.test_images,
            "learning_rate": recipe.learning_rate,
            "diverged": run.diverged,
            "correct": pack(run.correct),
            "train_images": len(self.images.train),
            "epochs_run": run.epochs,
            "seconds": run.seconds,
            "memory": asdict(memory),
        }
        if claim.complete(run.accuracy_percent, run.stopped, results):
            self.succeeded = True
            self.watch.ends(trial, run.accuracy_percent, run.stopped)
            if run.diverged:
                self.watch.notes(f"{trial.label} diverged: its weights are not finite numbers any more")
            if not memory.agrees:
                self.watch.notes(f"{candidate.label}: its memory is not as predicted")
        else:
            self.watch.notes(f"trial {claim.number} was abandoned by another worker; its result does not count")


def _why(priced: Sequence[Candidate], rows: Sequence[Row], campaign: _Campaign) -> str:
    decision = choose(priced, campaign.limits)
    if not decision.rivals:
        return "decided: no other candidate could be more accurate than the pick"
    return (
        f"every candidate that could still win has its {campaign.seeds} runs; {len(decision.rivals)} cannot be told "
        "from the pick with these test images and seeds"
    )


def _finished(trial) -> Finished:
    way, seed = key_of(trial)
    ended, memory = trial.user_attrs, trial.user_attrs["memory"]
    more = memory["measured_above_start_bytes"] - memory["above_start_bytes"]
    return Finished(
        trial.number, way, seed, trial.value, trial.state.name == "PRUNED", ended["test_images"],
        ended["seconds"], memory["peak_bytes"], memory["peak_bytes"] + more, memory["saved_bytes"],
        memory["measured_saved_bytes"], memory["agrees"], ended["learning_rate"], ended.get("diverged", False),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command() -> str:
    """Return the command that runs, without passwords."""
    return shlex.join(one_line(shown_in(word)) for word in sys.argv)
