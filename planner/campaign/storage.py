"""A campaign's runs in a database: Optuna trials that any number of workers share.

A run is claimed by creating its trial: one transaction gives it its number, its configuration and its worker. If two
workers claim the same, the lower number has it, and the other one withdraws. A worker at work writes a sign of life;
the trial of one that gave none for `grace_seconds` has failed, so that its configuration is free again. A trial is
finished once, in one transaction, by whoever has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from costmodel.secrets import shown

from ..evidence.database import (
    COUNTED,
    OPTIONS,
    SETTINGS,
    StorageError,
    changes,
    connect,
    errors,
    row,
    way_of,
)
from ..evidence.rows import Row
from .next_trial import TrialKey

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from costmodel import Way

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
PATIENCE_SECONDS = 60  # how long a finished run waits for a database that is away
MOST_RATE = 1e9  # Assumption: no optimizer takes a larger learning rate
_CLAIMED = {"campaign", "claimed", "worker"}  # the attributes that `Store.claim` gives a trial
_LIVE = (TrialState.RUNNING, *COUNTED)
_HEARTBEATS = text("SELECT trial_id, heartbeat FROM trial_heartbeats")
_ATTEMPTS = 8  # to set up a database that several workers set up at the same time


def key_of(trial: FrozenTrial) -> TrialKey:
    """Return what a trial runs."""
    return way_of(trial), trial.params["seed"]


class Hopeless(optuna.pruners.BasePruner):
    """Stops a run that, with the largest later gain of any finished run, would stay below its threshold.

    The threshold, in percent, is the trial's attribute: the low end of the pick's interval when it was claimed; none
    if it is not to be stopped. Assumption: no run gains more after an epoch than the best of two or more finished ones
    did after it.
    """

    def prune(self, study: optuna.study.Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial after its last epoch."""
        reachable, threshold = self.reachable_percent(study, trial), trial.user_attrs.get("threshold_percent")
        return reachable is not None and threshold is not None and reachable < threshold

    @staticmethod
    def reachable_percent(study: optuna.study.Study, trial: FrozenTrial) -> float | None:
        """Return the most that the run can still reach; None if too few have finished to tell."""
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        epoch = trial.last_step
        gains = [
            one.value - one.intermediate_values[epoch]
            for one in finished
            if one.value is not None and epoch in one.intermediate_values
        ]
        if epoch is None or len(gains) < 2:
            return None
        return min(100.0, trial.intermediate_values[epoch] + max(0.0, *gains))


@dataclass
class Claim:
    """A trial that this worker has, from the claim to the result."""

    store: Store
    trial: optuna.trial.Trial
    id: int
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def number(self) -> int:
        """The trial's number."""
        return self.trial.number

    def report(self, epoch: int, accuracy_percent: float) -> bool:
        """Store the accuracy after an epoch; return whether to stop. A database that is away does not stop a run."""
        try:
            with errors(self.store.location):
                self.trial.report(accuracy_percent, epoch)
                return self.trial.should_prune()
        except StorageError:
            return False

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life while the block runs."""
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self.store.heartbeat_seconds):
            with contextlib.suppress(StorageError):
                self.store.sign_of_life(self.id)

    def complete(self, accuracy_percent: float, stopped: bool, results: Mapping[str, Any]) -> bool:
        """Store the result, waiting for a database that is away; return False if the trial was given up meanwhile.

        Errors: StorageError, with the accuracy, if it stays away.
        """
        until = time.monotonic() + self.store.patience_seconds
        while True:
            try:
                with errors(self.store.location):
                    return self._complete(accuracy_percent, stopped, results)
            except StorageError as error:
                if time.monotonic() > until:
                    raise StorageError(
                        f"{error}; what it could not take: {self.trial.params}, accuracy {accuracy_percent:.2f} %"
                    ) from error
                time.sleep(min(2.0, self.store.patience_seconds / 10))

    def _complete(self, accuracy_percent: float, stopped: bool, results: Mapping[str, Any]) -> bool:
        study = self.store.study
        try:
            if stopped:
                frozen = next(t for t in study.get_trials(deepcopy=False) if t.number == self.number)
                results = {**results, "reachable_percent": Hopeless.reachable_percent(study, frozen)}
            for name, value in results.items():
                self.trial.set_user_attr(name, value)
            if stopped:
                study.tell(self.number, state=TrialState.PRUNED)  # with the last reported accuracy
            else:
                study.tell(self.number, accuracy_percent)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):  # another worker has failed it
            return self._is_mine_and_counted()
        return True

    def _is_mine_and_counted(self) -> bool:
        """Whether an earlier attempt, whose answer was lost, has stored the result."""
        return any(t.number == self.number and t.state in COUNTED for t in self.store.study.get_trials(deepcopy=False))

    def fail(self, reason: str) -> None:
        """Give the trial up, so that its configuration is free again."""
        finished = optuna.exceptions.UpdateFinishedTrialError, ValueError
        with contextlib.suppress(StorageError, *finished), errors(self.store.location):
            self.trial.set_user_attr("failed", reason)
            self.store.study.tell(self.number, state=TrialState.FAIL)


class Store:
    """The study of one network, data set and recipe.

    location: a file, or a URL. settings: what makes it this study and no other. methods, block_count: what may run.
    """

    def __init__(
        self,
        location: str,
        settings: Mapping[str, Any],
        methods: Collection[str],
        block_count: int,
        *,
        heartbeat_seconds: int = HEARTBEAT_SECONDS,
        grace_seconds: int = GRACE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ):
        self.location, self.settings = location, dict(settings)
        self.heartbeat_seconds, self.grace_seconds = heartbeat_seconds, grace_seconds
        self.patience_seconds = patience_seconds
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.distributions = {
            "method": CategoricalDistribution(sorted(methods)),
            "blocks": IntDistribution(0, block_count),  # 0: a method without a depth
            "seed": IntDistribution(0, 2**31 - 1),
            "learning_rate": FloatDistribution(0.0, MOST_RATE),
        }
        told = json.dumps([self.settings, sorted(methods), block_count], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        self.name = f"{settings['model']} on {settings['dataset']} {digest}"
        with errors(location):
            self.storage = _set_up(location, heartbeat_seconds, grace_seconds)
            self.study = optuna.create_study(
                storage=self.storage,
                sampler=optuna.samplers.RandomSampler(),  # draws nothing: every trial comes with its configuration
                pruner=Hopeless(),
                study_name=self.name,
                direction="maximize",
                load_if_exists=True,
            )
            self.study.set_user_attr(SETTINGS, self.settings)
            self.study_id = self.storage.get_study_id_from_name(self.name)
            self.note = self._note()
        self._beats: dict[int, tuple[object, float]] = {}

    def _note(self) -> str | None:
        """Return what a new study differs in from the nearest that the database has of the network and data set."""
        if self.study.get_trials(deepcopy=False):
            return None
        found = []
        for study in self.storage.get_all_studies():
            other = study.user_attrs.get(SETTINGS, {})
            alike = all(other.get(name) == self.settings[name] for name in ("model", "dataset"))
            if alike and study.study_name != self.name:
                found.append(changes(self.settings, other))
        if not found:
            return None
        return f"a new study, for what differs from earlier runs, which are kept: {'; '.join(min(found, key=len))}"

    def trials(self) -> list[FrozenTrial]:
        """Return all that run or count, the first claims first; those of dead workers are failed before.

        Trials that something else has put into the study are none of the campaign's.
        """
        with errors(self.location), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
            beats = self._heartbeats()
            for trial in self._live():
                if trial.state == TrialState.RUNNING and self._is_silent(trial, beats.get(trial._trial_id)):
                    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
                        self.study.tell(trial.number, state=TrialState.FAIL)
            return self._live()

    def _live(self) -> list[FrozenTrial]:
        found = self.study.get_trials(deepcopy=False, states=_LIVE)
        return [trial for trial in found if trial.user_attrs.keys() >= _CLAIMED]

    def _heartbeats(self) -> dict[int, object]:
        """Return the last sign of life of every trial that gave one, by the trial's id."""
        with self.storage.engine.connect() as connection:
            return {number: beat for number, beat in connection.execute(_HEARTBEATS)}

    def _is_silent(self, trial: FrozenTrial, beat: object) -> bool:
        """Whether a trial's worker has given no new sign of life for the grace time, by this worker's own watch.

        Optuna compares signs of life with the clock, which may have been set: one in the future would never be old. Of
        a worker that died before its first sign of life it cannot tell at all.
        """
        last, since = self._beats.get(trial._trial_id, (None, 0.0))
        if beat != last or trial._trial_id not in self._beats:
            self._beats[trial._trial_id] = beat, time.monotonic()
            since = time.monotonic()
        never = beat is None and time.time() - trial.user_attrs["claimed"] > self.grace_seconds
        return never or time.monotonic() - since > self.grace_seconds

    def rows(self, trials: Collection[FrozenTrial]) -> tuple[Row, ...]:
        """Return the finished ones of some trials as evidence."""
        place = shown(self.location)
        counted = (trial for trial in trials if trial.state in COUNTED)
        return tuple(row(trial, self.settings, self.settings["dataset"], place) for trial in counted)

    def validated(self, way: Way) -> dict[float, float]:
        """Return the accuracy on validation images, in percent, of each learning rate that was tried for a way."""
        prefix = _validated(way)
        with errors(self.location):
            kept = self.storage.get_study_user_attrs(self.study_id)
        return {float(name.removeprefix(prefix)): value for name, value in kept.items() if name.startswith(prefix)}

    def keep_validated(self, way: Way, rate: float, accuracy_percent: float) -> None:
        """Store the accuracy on validation images of a learning rate."""
        with errors(self.location):
            self.storage.set_study_user_attr(self.study_id, f"{_validated(way)}{rate:g}", accuracy_percent)

    def claim(
        self, key: TrialKey, learning_rate: float, attributes: Mapping[str, Any], most: int | None, campaign: str
    ) -> Claim | None:
        """Return the run, taken by this worker, or None if another has it or the campaign has all its trials.

        most: how many trials the campaign may have; campaign: its name.
        """
        way, seed = key
        params = {"method": way.method, "blocks": way.blocks or 0, "seed": seed, "learning_rate": learning_rate}
        own = {"worker": self.worker, "campaign": campaign, "claimed": time.time(), "learning_rate": learning_rate}
        if options := way.to_dict().get("options"):
            own[OPTIONS] = options
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING, params=params, distributions=self.distributions,
            user_attrs={**attributes, **own},
        )  # fmt: skip
        with errors(self.location):
            trial_id = self.storage.create_new_trial(self.study_id, template)
            self.sign_of_life(trial_id)
            claim = Claim(self, optuna.trial.Trial(self.study, trial_id), trial_id)
            earlier = [t for t in self._live() if t.number < claim.number]
        if any(key_of(trial) == key for trial in earlier):
            claim.fail("another worker has it")
            return None
        if most is not None and sum(trial.user_attrs["campaign"] == campaign for trial in earlier) >= most:
            claim.fail("the campaign has all its trials")
            return None
        return claim

    def sign_of_life(self, trial_id: int) -> None:
        """Record that the worker of a trial is alive."""
        with errors(self.location):
            self.storage.record_heartbeat(trial_id)


def _validated(way: Way) -> str:
    return f"validation of {way.label}, learning rate "


def prepare(location: str) -> None:
    """Make a database ready for runs. Errors: StorageError if it cannot be used."""
    with errors(location):
        _set_up(location, HEARTBEAT_SECONDS, GRACE_SECONDS).engine.dispose()


def _set_up(location: str, heartbeat_seconds: int, grace_seconds: int) -> optuna.storages.RDBStorage:
    """Return the storage, its tables made if there are none."""
    attempt = 0
    while True:
        try:
            storage = connect(location, create=True, heartbeat_interval=heartbeat_seconds, grace_period=grace_seconds)
            break
        except (OperationalError, ProgrammingError, IntegrityError) as error:
            # Optuna looks whether a table is there and then makes it: another worker may make it in between.
            raced = any(word in str(error).lower() for word in ("exist", "unique", "locked"))
            if attempt == _ATTEMPTS - 1 or not raced:
                raise
            time.sleep(0.1 + random.random() * attempt / 2)
            attempt += 1
    if storage.engine.dialect.name == "sqlite":
        # What reads and then writes must not have another process write in between; PostgreSQL locks the row.
        # Source: SQLAlchemy, SQLite dialect, on transaction control of the driver.
        @event.listens_for(storage.engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return storage
