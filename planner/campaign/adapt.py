"""Feature extractor adaptation: the sub-network of a super-network is chosen for the data, too.

1. the super-network is fine-tuned on the images, a sub-network at random in each step; once for each fold, without it;
2. some hundred sub-networks are measured on the images that were held out of that;
3. what each block adds to the accuracy is fitted to them, and the best sub-network that fits is found exactly;
4. it is fine-tuned from the pre-trained weights, as a device would, and tested.

Source: TinyTL (arXiv 2007.11622), section 3.3. Assumption: its appendix could not be read; the steps are those of
once-for-all, with a sum of blocks in place of its neural network, and dynamic programming in place of evolution.

1 and 2 are trials of one study, 4 of another, which is that of `measure` for the sub-network: its runs are evidence.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Subset

from costmodel import (
    BlockPrices,
    LayerGraph,
    Step,
    Subnetwork,
    SuperNetwork,
    Way,
    footprint,
    trace,
    values_per_norm,
)
from costmodel.errors import InputError, require_count
from costmodel.graph.elastic import split_name

from ..choosing.axes import axes
from ..choosing.candidate import Candidate
from ..choosing.candidates import price_all
from ..choosing.plan import Plan
from ..choosing.subnetworks import Found, Search, default_way, subnetwork_name
from ..estimates.subnetworks import LEAST, SubnetworkAccuracy, fit
from ..evidence.database import COUNTED
from ..evidence.rows import Row, pack
from .elastic import calibrated, folds_of, one_at_random, spread, train_elastic
from .fine_tuning import Run, classify, fine_tune
from .identity import settings_of
from .images import DataSet, list_folder, read_folder
from .loop import Recipe
from .measure import command, versions
from .rates import Rates
from .storage import Store, prepare
from .watch import Watch
from .weights import Weights, digest, load_weights, make_network, make_supernetwork

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STORAGE = "sqlite:///runs.db"
SUBNETWORKS, FOLDS = 200, 2
_MEASURED = Way("full")  # what stands for a sub-network's trial: all of the super-network was trained
_FIRST_FOLD = 2**30  # numbers of trials that train the super-network
_SEEDS = 1_000_000  # numbers of one seed's draws
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Adapted:
    """What an adaptation came to.

    found: the sub-network; model: its name. accuracy: what blocks add, with its quality. runs: accuracies in percent of
    the fine-tuned sub-network, by seed. plan: the sub-network's, with what was measured of it.
    """

    model: str
    found: Found
    accuracy: SubnetworkAccuracy
    runs: dict[int, float]
    plan: Plan
    notes: tuple[str, ...]
    ended: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "model": self.model,
            "expected_percent": self.found.expected_percent,
            "half_width_points": self.accuracy.half_points,
            "peak_bytes": self.found.peak_bytes,
            "predictor": asdict(self.accuracy.quality),
            "runs": {str(seed): percent for seed, percent in self.runs.items()},
            "ended": self.ended,
            "notes": list(self.notes),
            "plan": self.plan.model_dump(),
        }


class Adaptation:
    """One worker of an adaptation: a super-network, images, a recipe, and the database that workers share.

    name: the super-network's. way: how a sub-network is to be trained. seed: of the super-network's training and of the
    sub-networks that are drawn. Weights of super-networks in training are kept in `folder`.
    """

    def __init__(
        self, name: str, images: DataSet, dataset: str, weights: Weights, recipe: Recipe, storage: str,
        folder: Path, *, trained: Way | None = None, rates: Sequence[float] = (), subnetworks: int = SUBNETWORKS,
        folds: int = FOLDS, super_epochs: int | None = None, seed: int = 0, watch: Watch | None = None,
        **storage_options,
    ):  # fmt: skip
        self.name, self.images, self.dataset, self.weights, self.recipe = name, images, dataset, weights, recipe
        self.storage, self.folder, self.rates = storage, folder, rates
        self.subnetworks, self.folds, self.seed = subnetworks, folds, seed
        self.watch, self.storage_options = watch or Watch(), storage_options
        self.classes = len(set(images.train.labels))
        largest = trace(name, recipe.resolution, self.classes)
        self.start, self.head_note = make_supernetwork(largest, weights, 0)
        self.design = self.start.design
        self.way = trained or default_way(self.design)
        self.super_recipe = replace(recipe, epochs=super_epochs or recipe.epochs)
        self.settings = {
            "model": name,
            "dataset": dataset,
            "data": images.digest,
            "weights": f"{weights.label} {digest(self.start)}",
            "versions": settings_of(largest, dataset, images, self.start, weights, recipe, ())["versions"],
            "adaptation": {**asdict(self.super_recipe), "folds": folds, "seed": seed},
        }

    def model_of(self, chosen: Subnetwork) -> str:
        """Return the name of a sub-network."""
        return subnetwork_name(self.name, chosen)

    def graph_of(self, chosen: Subnetwork) -> LayerGraph:
        """Return the trace of a sub-network."""
        return trace(self.model_of(chosen), self.recipe.resolution, self.classes)

    # --- 1 and 2: measuring sub-networks ------------------------------------------------------------------------------

    def observed(self, until: float | None = None) -> tuple[list[tuple[Subnetwork, float]], str]:
        """Return measured sub-networks with their accuracies in percent, and why it ended; measures what is missing.

        until: the time (`time.monotonic`) after which no further trial starts.
        """
        store = self._store(self.settings, {_MEASURED.method}, 0)
        for fold in range(self.folds):
            while not self._fold_path(fold).exists():
                if not self._trains_fold(store, fold):
                    self.watch.waits([f"fold {fold + 1}"])
                    time.sleep(_LOOK_SECONDS)
        networks = [self._fold_network(fold) for fold in range(self.folds)]
        while True:
            trials = store.trials()
            done = {number: percent for number, percent in _finished(trials).items() if number < _FIRST_FOLD}
            taken = {trial.params["seed"] for trial in trials}
            self.watch.does("sub-networks measured", len(done), self.subnetworks)
            number = next((number for number in range(self.subnetworks) if number not in taken), None)
            late = until is not None and time.monotonic() > until
            if late or len(done) == self.subnetworks:
                break
            if number is None:
                self.watch.waits(["sub-networks"])
                time.sleep(_LOOK_SECONDS)
            else:
                self._measure(store, networks, number)
        found = [(self._drawn(number), percent) for number, percent in sorted(done.items())]
        return found, "the time is over" if late else f"all {self.subnetworks} sub-networks are measured"

    def _store(self, settings: dict[str, Any], methods: set[str], blocks: int) -> Store:
        return Store(self.storage, settings, methods, blocks, **self.storage_options)

    def _fold_path(self, fold: int) -> Path:
        told = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"supernetwork-{told}-fold-{fold}.pt"

    def _fold_network(self, fold: int) -> SuperNetwork:
        network = make_supernetwork(self.graph_of(self.design.largest), self.weights, 0)[0]
        path = self._fold_path(fold)
        try:
            network.load_state_dict(torch.load(path, weights_only=True))
        except Exception as error:  # the unpickler raises of every kind
            raise InputError(f"{path} is damaged; delete it, and the super-network is trained again") from error
        return network

    def _parts(self, fold: int) -> tuple[Subset, Subset]:
        """Return the images that a fold's super-network learns, and those that are held out."""
        folds = folds_of(self.images.train.labels, self.folds)
        rest = [number for other, numbers in enumerate(folds) if other != fold for number in numbers]
        return Subset(self.images.train, sorted(rest)), Subset(self.images.train, folds[fold])

    def _trains_fold(self, store: Store, fold: int) -> bool:
        """Train a super-network without a fold and keep it; return False if another worker is at it."""
        key = (_MEASURED, _FIRST_FOLD + fold)
        finished = key[1] in _finished(store.trials())
        claim = None if finished else store.claim(key, self.recipe.learning_rate, self._attributes(), None, "folds")
        if claim is None and not finished:
            return False
        train, _ = self._parts(fold)
        network = make_supernetwork(self.graph_of(self.design.largest), self.weights, 0)[0]

        def work() -> None:
            with torch.random.fork_rng(devices=[]):
                seed = self.seed * _SEEDS + fold
                torch.manual_seed(seed)
                for epoch in train_elastic(network, train, self.super_recipe, one_at_random(network, seed)):
                    self.watch.does(f"super-network without fold {fold + 1}", epoch, self.super_recipe.epochs)
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self._fold_path(fold).with_suffix(f".{os.getpid()}.part")
            torch.save(network.state_dict(), part)
            os.replace(part, self._fold_path(fold))

        if claim is None:  # it was trained, on another machine or before its file was lost
            work()
            return True
        with claim.alive():
            try:
                work()
            except BaseException as error:
                claim.fail(f"{type(error).__name__}: {error}"[:300])
                raise
            claim.complete(0.0, False, {"trained": True})
        return True

    def _measure(self, store: Store, networks: Sequence[SuperNetwork], number: int) -> None:
        """Measure the sub-network of a number on the images of all folds."""
        claim = store.claim((_MEASURED, number), self.recipe.learning_rate, self._attributes(), None, "sub-networks")
        if claim is None:
            return
        with claim.alive():
            try:
                chosen, correct = self._drawn(number), []
                for fold, network in enumerate(networks):
                    train, held_out = self._parts(fold)
                    correct += classify(calibrated(network, chosen, train), held_out)
            except BaseException as error:
                claim.fail(f"{type(error).__name__}: {error}"[:300])
                raise
            results = {"subnetwork": chosen.text, "held_out": len(correct), "held_out_correct": pack(tuple(correct))}
            claim.complete(100 * sum(correct) / len(correct), False, results)

    def _drawn(self, number: int) -> Subnetwork:
        """Return the sub-network of a trial."""
        return spread(self.start, self.seed * _SEEDS + number)

    def _attributes(self) -> dict[str, Any]:
        return {"command": command(), "versions": versions(), "skipped_images": list(self.images.skipped)}

    # --- 3: choosing --------------------------------------------------------------------------------------------------

    def step(self, graph: LayerGraph) -> Step:
        """Return the step of a sub-network as it is to be trained, in one pass."""
        return Step(graph, self.way, self.recipe.batch, optimizer=self.recipe.optimizer)

    def search(self, observed: Sequence[tuple[Subnetwork, float]]) -> Search:
        """Return the search among all sub-networks. Errors: InputError for too few observations."""
        if len(observed) < LEAST:
            raise InputError(
                f"{len(observed)} sub-networks are measured, and {LEAST} are needed to predict others; "
                "run the same command again to go on"
            )
        prices = BlockPrices(self.design, self.step(self.graph_of(self.design.smallest)), self.graph_of)
        return Search(prices, fit(self.design, observed))

    # --- 4: fine-tuning it --------------------------------------------------------------------------------------------

    def fine_tuned(
        self, chosen: Subnetwork, seeds: int, trainer: Callable[..., Run] = fine_tune
    ) -> tuple[dict[int, float], tuple[Row, ...]]:
        """Return the accuracies in percent of a sub-network fine-tuned from the pre-trained weights, by seed.

        And the runs as evidence, those that other workers have done too.
        """
        graph = self.graph_of(chosen)
        network, _ = self._pretrained(graph, 0)
        settings = settings_of(graph, self.dataset, self.images, network, self.weights, self.recipe, self.rates)
        store = self._store(settings, {self.way.method}, len(chosen.kernels) + 1)
        rates = Rates(self.rates or (self.recipe.learning_rate,), store, self.images.train, self.recipe)
        while True:
            trials = store.trials()
            done = _finished(trials)
            taken = {trial.params["seed"] for trial in trials}
            self.watch.does("runs of the chosen sub-network", len(done), seeds)
            if all(seed in done for seed in range(seeds)):
                return done, store.rows(trials)
            seed = next((seed for seed in range(seeds) if seed not in taken), None)
            if seed is None:
                self.watch.waits(["runs"])
                time.sleep(_LOOK_SECONDS)
            else:
                self._run(store, rates, graph, seed, trainer)

    def _pretrained(self, graph: LayerGraph, seed: int) -> tuple[torch.nn.Module, str | None]:
        """Return a sub-network with the super-network's pre-trained weights."""
        network, note = make_network(graph, self.weights, seed)
        if self.weights.state is None or self.design.norm != "batch":
            return network, note
        shared, _ = make_supernetwork(graph, self.weights, seed)
        return calibrated(shared, shared.active, self.images.train), note

    def _run(self, store: Store, rates: Rates, graph: LayerGraph, seed: int, trainer: Callable[..., Run]) -> None:
        claim = store.claim((self.way, seed), self.recipe.learning_rate, self._attributes(), None, "adaptation")
        if claim is None:
            return

        def tried(recipe: Recipe, images: Subset, validation: Subset, seed: int) -> Run:
            network, _ = self._pretrained(graph, seed)
            return trainer(network, images, validation, self.way, recipe, seed=seed, check_memory=False)

        with claim.alive():
            try:
                recipe = replace(self.recipe, learning_rate=rates.of(self.way, tried))
                network, _ = self._pretrained(graph, seed)
                run = trainer(
                    network, self.images.train, self.images.test, self.way, recipe, seed=seed,
                    report=lambda epoch, percent: claim.report(epoch, percent) and False,
                )  # fmt: skip
            except BaseException as error:
                claim.fail(f"{type(error).__name__}: {error}"[:300])
                raise
            results = {
                "test_images": run.test_images, "learning_rate": recipe.learning_rate, "diverged": run.diverged,
                "correct": pack(run.correct), "train_images": len(self.images.train), "epochs_run": run.epochs,
                "seconds": run.seconds, "memory": run.memory and asdict(run.memory),
            }  # fmt: skip
            claim.complete(run.accuracy_percent, False, results)
            if run.memory is not None and not run.memory.agrees:
                self.watch.notes(f"{graph.model}: its memory is not as predicted")

    def plan(self, found: Found, rows: Sequence[Row], images_per_class: int) -> Plan:
        """Return the plan of a sub-network, with what was measured of it."""
        graph = self.graph_of(found.chosen)
        space = axes(
            methods=self.way, batch=self.recipe.batch, optimizer=self.recipe.optimizer, evidence=rows,
            dataset=self.dataset if rows else None, images_per_class=images_per_class,
        )  # fmt: skip
        plain: Candidate = price_all([graph], space)[0]
        cost = footprint(replace(plain.step, schedule=found.schedule))
        return Plan.of(replace(
            plain, step=cost.step, peak_bytes=cost.peak_bytes, saved_bytes=cost.saved_bytes,
            memory_bytes=cost.memory_bytes, peak_layer=cost.peak.layer, peak_phase=cost.peak.phase,
            total_flops=cost.total_flops, moved_bytes=cost.moved_bytes,
        ))  # fmt: skip


def adapt(
    name: str,
    data: str | Path,
    ram_bytes: int,
    *,
    weights: str | None = None,
    recipe: Recipe | None = None,
    trained: Way | None = None,
    rates: Sequence[float] = (),
    subnetworks: int = SUBNETWORKS,
    folds: int = FOLDS,
    super_epochs: int | None = None,
    seeds: int = 1,
    hours: float | None = None,
    storage: str = STORAGE,
    folder: Path | None = None,
    strict: bool = False,
    watch: Watch | None = None,
    **storage_options,
) -> Adapted:
    """Choose a sub-network of a super-network for a folder of images and a budget, and fine-tune it.

    name: of an elastic super-network. weights: a file of its weights, or random. trained: how the sub-network is to be
    trained; TinyTL-L+B where the super-network has group norm, else MobileTL. subnetworks: how many are measured;
    folds: into how many parts the training images are cut for that. super_epochs: of training the super-network; those
    of the recipe if None. seeds: runs of the chosen sub-network. hours: after which no further sub-network is measured.
    folder: where super-networks in training are kept; the user's cache if None. The rest is as in `measure`.

    Errors: InputError for what cannot be used, StorageError for a database that cannot, InfeasibleError if no
    sub-network fits.
    """
    recipe, watch = recipe or Recipe(), watch or Watch()
    for label, value in (("subnetworks", subnetworks), ("folds", folds), ("seeds", seeds), ("epochs", recipe.epochs)):
        require_count(label, value)
    if folds < 2:
        raise InputError("folds must be 2 or more: images that it was trained with say nothing about it")
    if subnetworks < LEAST:
        raise InputError(f"--subnetworks must be {LEAST} or more, not {subnetworks}: fewer cannot predict others")
    listed = list_folder(data)
    start = load_weights(split_name(name)[0], weights)
    prepare(storage)
    images = read_folder(listed, recipe.resolution, start.normalisation, strict, watch.reads)
    if folder is None:
        from platformdirs import user_cache_path

        folder = user_cache_path("finetune-planner", appauthor=False) / "adapt"
    work = Adaptation(
        name, images, listed.name, start, recipe, storage, folder, trained=trained, rates=rates,
        subnetworks=subnetworks, folds=folds, super_epochs=super_epochs, watch=watch, **storage_options,
    )  # fmt: skip
    if values_per_norm(work.graph_of(work.design.smallest), work.way) is not None:
        watch.notes(f"{work.way.label} trains batch norms with the batch's statistics: no smaller passes are tried")
    notes = [note for note in (work.head_note, *images.notes) if note]
    observed, ended = work.observed(None if hours is None else time.monotonic() + 3600 * hours)
    search = work.search(observed)
    found = search.best(ram_bytes)
    runs, rows = work.fine_tuned(found.chosen, seeds)
    plan = work.plan(found, rows, listed.images_per_class)
    return Adapted(work.model_of(found.chosen), found, search.accuracy, runs, plan, tuple(notes), ended)


def _finished(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Return the results of finished trials by their seed."""
    found = {trial.params["seed"]: trial.value for trial in trials if trial.state in COUNTED}
    return {seed: value for seed, value in found.items() if value is not None}
