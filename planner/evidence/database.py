"""The database of `planner measure`: Optuna's, in a SQLite file or on a PostgreSQL server, and the runs in it as rows.

A study is one network on one data set by one recipe (epochs, learning rate, weights ...): its user attribute `planner`
holds that. Its trials are runs. A finished one counts with the accuracy of its last epoch, one that was stopped early
(pruned) too, with what it could still have reached; failed ones never count.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from costmodel import Way, way
from costmodel.errors import InputError, needs

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
    return location.replace("postgresql://", "postgresql+psycopg://", 1)  # SQLAlchemy's own choice changed with 2.1


def shown(location: str) -> str:
    """Return a database's name for people and records: without its password."""
    if "://" not in location:
        return location
    try:
        url = sqlalchemy.make_url(location)
    except SQLAlchemyError:
        return location
    return url.database or location if url.drivername.startswith("sqlite") else url.render_as_string(hide_password=True)


@contextmanager
def errors(location: str) -> Iterator[None]:
    """Turn what a database raises into a StorageError of one line."""
    try:
        yield
    except ImportError as error:
        raise needs("psycopg", shown(location)) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        if isinstance(error, NoSuchModuleError):
            raise StorageError(f"{shown(location)} is no database that can be used here: {error}") from error
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
        said = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
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
            with path.open("rb"):
                pass
        except OSError as error:
            raise StorageError(f"cannot {'write' if create else 'read'} {path}: {error.strerror}") from error
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
        studies = []
        for study in storage.get_all_studies():
            if SETTINGS in study.user_attrs:
                number = storage.get_study_id_from_name(study.study_name)
                studies.append((study.user_attrs[SETTINGS], storage.get_all_trials(number, states=COUNTED)))
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
        differing = [key for key in ("data", *RECIPE) if len({str(other[key]) for other in alike}) > 1]
        if len({other["weights"] for other in model}) > 1:
            differing.append("weights")
        more = ", ".join(f"{key.replace('_', ' ')} {own[key]}" for key in differing)
        names.append(f"{own['dataset']} ({more})" if more else own["dataset"])
    return names


def way_of(trial: FrozenTrial) -> Way:
    """Return what a trial trains."""
    params = trial.params
    return way(params["method"], params["blocks"] or None, trial.user_attrs.get(OPTIONS))


def row(trial: FrozenTrial, settings: Mapping[str, Any], dataset: str, place: str) -> Row:
    """Return a finished trial as evidence. place: the database's name."""
    ended, trained = trial.user_attrs, way_of(trial)
    reachable = ended.get("reachable_percent") if trial.state == TrialState.PRUNED else None
    stopped = "" if reachable is None else f", stopped after epoch {ended['epochs_run']} of {settings['epochs']}"
    day = f"{trial.datetime_complete:%Y-%m-%d}" if trial.datetime_complete else "undated"
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
        reachable_percent=reachable,
        source=f"{place}, trial {trial.number}, {day}{stopped}",
        file=place,
        line=trial.number,
    )
