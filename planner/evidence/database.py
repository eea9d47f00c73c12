"""The database of `planner measure`: Optuna's, in a SQLite file or on a PostgreSQL server, and the runs in it as rows.

A study is one network on one data set by one recipe: its user attribute `planner` holds all that its accuracies depend
on, and two that differ in any of it are two studies. Of one that an older version made not all is known: its identity
is unknown. Its trials are runs. A finished one counts with the accuracy of its last epoch, one that was stopped early
(pruned) too, with what it could still have reached; failed ones never count.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import ValidationError

from costmodel import Way, way
from costmodel.errors import InputError, needs, one_line, shortened
from costmodel.reading import check_file, first_problem
from costmodel.secrets import hidden, shown

from .rows import Row

try:
    import optuna
    import sqlalchemy
    from optuna.trial import TrialState
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError
except ImportError as error:
    raise needs("optuna", "a database of runs") from error

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SETTINGS = "planner"  # the study's attribute
OPTIONS = "options"  # a trial's: those of its method
RECIPE = ("epochs", "learning_rate", "optimizer")  # what accuracies depend on, beside the columns of a row
# The parts of a study's identity, by the names of its settings.
IDENTITY = {
    "data": "the images", "weights": "the weights", "graph": "the network's layers", "versions": "what is installed",
    "epochs": "the epochs", "learning_rate": "the learning rate", "optimizer": "the optimizer", "batch": "the batch",
    "resolution": "the resolution",
}  # fmt: skip
UNKNOWN = "unknown"
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
_SQLITE_WAIT_SECONDS = 60  # for another process that writes

optuna.logging.set_verbosity(optuna.logging.ERROR)


class StorageError(InputError):
    """A database that cannot be reached, read or written."""


def url_of(location: str) -> str:
    """Return the URL of a database: 'runs.db' -> 'sqlite:///runs.db'.

    Errors: InputError for what is neither a file nor a sqlite or postgresql URL.
    """
    if "://" not in location:
        return f"sqlite:///{location}"
    kind = location.partition("://")[0]
    if kind.partition("+")[0] not in ("sqlite", "postgresql"):
        raise InputError(f"cannot keep runs in {kind!r}; allowed: sqlite:///runs.db, postgresql://user@host/database")
    url = location.replace("postgresql://", "postgresql+psycopg://", 1)  # SQLAlchemy's own choice changed with 2.1
    try:
        sqlalchemy.make_url(url)
    except (SQLAlchemyError, ValueError):  # the port is not a number
        raise InputError(
            f"{shown(location)} is not a URL of a database; write postgresql://user@host:5432/database, and the "
            "password in PGPASSWORD or ~/.pgpass"
        ) from None
    return url


@contextmanager
def errors(location: str) -> Iterator[None]:
    """Turn what a database raises into a StorageError of one line."""
    try:
        yield
    except ImportError as error:
        raise needs("psycopg", shown(location)) from error
    except UnicodeDecodeError as error:
        raise StorageError(f"the database {shown(location)} is damaged: it holds text that is not UTF-8") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:  # or of another version
        if isinstance(error, NoSuchModuleError):
            raise StorageError(f"{shown(location)} is not a database that can be used here: {error}") from error
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
        said = (str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(cause).__name__])[0]
        said = hidden(said, [location])
        raise StorageError(f"the database {shown(location)} cannot be used: {said}") from error


def connect(location: str, *, create: bool, **options) -> optuna.storages.RDBStorage:
    """Return Optuna's storage; options: as `RDBStorage` takes them. create: whether it may be new, and is written to.

    Errors: StorageError if it cannot be used.
    """
    url, arguments = url_of(location), {}
    if url.startswith("sqlite"):
        path = Path(sqlalchemy.make_url(url).database or "")
        try:
            if create:
                path.touch()  # a file that is lost later must not come back empty: SQLite only opens what is there
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
        check_file(path, "database")
        url = f"sqlite:///file:{quote(str(path))}?mode={'rw' if create else 'ro'}&uri=true"
        arguments = {"timeout": _SQLITE_WAIT_SECONDS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(
            url, {"connect_args": arguments, "pool_pre_ping": True}, skip_table_creation=not create, **options
        )


def measured(location: str) -> tuple[Row, ...]:
    """Return the finished runs in a database.

    Errors: StorageError if it cannot be read; InputError if it holds no finished runs.
    """
    with errors(location):
        storage = connect(location, create=False)
        try:
            studies = [
                (study.user_attrs[SETTINGS], storage.get_all_trials(study._study_id, states=COUNTED))
                for study in storage.get_all_studies()
                if is_of_campaign(study.user_attrs.get(SETTINGS))
            ]
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # dates, JSON and names of distributions
            raise StorageError(f"the database {shown(location)} is damaged: {one_line(error)[:200]}") from error
    studies = [(settings, [one for one in trials if "test_images" in one.user_attrs]) for settings, trials in studies]
    studies = [(settings, trials) for settings, trials in studies if trials]
    names = data_set_names([settings for settings, _ in studies])
    rows = [
        row(trial, settings, name, shown(location))
        for (settings, trials), name in zip(studies, names, strict=True)
        for trial in trials
    ]
    if not rows:
        raise InputError(f"{shown(location)} holds no finished runs; planner measure --storage makes some")
    return tuple(rows)


def data_set_names(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what to call each study's data set: its name, with what else tells studies of that name apart.

    Accuracies of different recipes are not repeated runs of one another, so they must not go by one name.
    """
    settings = list(settings)
    names = []
    for own in settings:
        alike = [other for other in settings if other["dataset"] == own["dataset"]]
        model = [other for other in alike if other["model"] == own["model"]]
        differing = [
            key
            for keys, others in ((("data", *RECIPE, "versions"), alike), (("weights", "graph"), model))
            for key in keys
            if len({str(other.get(key, UNKNOWN)) for other in others}) > 1
        ]
        more = ", ".join(f"{key.replace('_', ' ')} {own.get(key, UNKNOWN)}" for key in differing)
        names.append(f"{own['dataset']} ({more})" if more else own["dataset"])
    return names


def is_of_campaign(settings: object) -> bool:
    """Whether a study's attribute is what `planner measure` writes there, whichever version."""
    needed = {"model": str, "dataset": str, "data": str, "weights": str, "resolution": int, "batch": int, "epochs": int}
    return isinstance(settings, Mapping) and all(isinstance(settings.get(name), kind) for name, kind in needed.items())


def identity_of(settings: Mapping[str, Any]) -> str:
    """Return what tells a study from all others; UNKNOWN where an older version did not record it in full."""
    if not all(name in settings for name in IDENTITY):
        return UNKNOWN
    told = json.dumps({name: settings[name] for name in ("model", "dataset", *IDENTITY)}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def changes(settings: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return what differs between two studies, in words: each part, as it is and as it was."""
    return [
        f"{part}: {settings[name]}, before {other.get(name, UNKNOWN)}"
        for name, part in IDENTITY.items()
        if settings.get(name) != other.get(name)
    ]


def way_of(trial: FrozenTrial) -> Way:
    """Return what a trial trains."""
    params = trial.params
    return way(params["method"], params["blocks"] or None, trial.user_attrs.get(OPTIONS))


def row(trial: FrozenTrial, settings: Mapping[str, Any], dataset: str, place: str) -> Row:
    """Return a finished trial as evidence. place: the database's name.

    Errors: InputError for a trial whose values cannot be: something else has written into the database.
    """
    ended = trial.user_attrs
    try:
        trained = way_of(trial)
        stopped = ended.get("reachable_percent") if trial.state == TrialState.PRUNED else None
        epochs = "" if stopped is None else f", stopped after epoch {ended['epochs_run']} of {settings['epochs']}"
        day = f"{trial.datetime_complete:%Y-%m-%d}" if trial.datetime_complete else "undated"
        identity = identity_of(settings)
        return Row(
            model=settings["model"],
            method=trained.method,
            trained_blocks=trained.blocks,
            options=" ".join(f"{name}={value}" for name, value in ended.get(OPTIONS, {}).items()),
            dataset=dataset,
            top1_percent=trial.value,
            resolution=settings["resolution"],
            batch=settings["batch"],
            seed=trial.params["seed"],
            test_images=ended["test_images"],
            correct=ended.get("correct", ""),
            reachable_percent=stopped,
            source=f"{place}, trial {trial.number}, {day}{epochs}, identity {identity}",
            identity=identity,
            graph=settings.get("graph", ""),
            file=place,
            line=trial.number,
        )
    except ValidationError as error:
        problem = first_problem(error)
        given, reason = shortened(problem.given), problem.reason
        raise InputError(f"{place}, trial {trial.number}: {problem.key} is {given}: {reason}") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{place}, trial {trial.number} is not of planner measure: {one_line(error)}") from error
