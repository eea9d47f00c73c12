"""The user's traces: one file per network, resolution and number of classes, in a folder per set of versions.

The folder is the system's for caches, or that of the environment variable COSTMODEL_CACHE. The cache never stands
between a question and its answer: an entry that cannot be read, or does not fit its name, is as good as none and is
written again; a folder that cannot be written stays as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..graph.layer_graph import LayerGraph
from ..graph.store import TEMPORARY
from ..machine.folder import cache_folder
from .versions import environment

SUFFIX = ".trace"
_NAME = re.compile(r"(?:(\w+):)?([\w.-]+)")
_FOLDER = re.compile(r"torch .+")  # as `environment` begins, whatever the version
_FILE = re.compile(rf"(?:(\w+)=)?([\w.-]+)@(\d+)(?:x(\d+))?{re.escape(SUFFIX)}")


@dataclass(frozen=True)
class Entry:
    """A trace in the cache. `classes` is None for the network's own; `current`: made with the versions of today."""

    model: str
    resolution: int
    classes: int | None
    file_bytes: int
    versions: str
    current: bool


def folder() -> Path:
    """Return the folder that holds the cache; it need not exist."""
    if chosen := os.environ.get("COSTMODEL_CACHE"):
        return Path(chosen)
    return cache_folder("traces")


def _path(model: str, resolution: int, classes: int | None) -> Path | None:
    """Return the file of a trace; None for a name that is no library's."""
    name = _NAME.fullmatch(model)
    if name is None:
        return None
    source = f"{name[1]}=" if name[1] else ""
    ending = "" if classes is None else f"x{classes}"
    return folder() / environment() / f"{source}{name[2]}@{resolution}{ending}{SUFFIX}"


def find(model: str, resolution: int, classes: int | None) -> LayerGraph | None:
    """Return a trace from the cache; None if there is none that can be used."""
    path = _path(model, resolution, classes)
    if path is None:
        return None
    try:
        graph = LayerGraph.load(path)
    except InputError:  # none yet, or damaged
        return None
    same_name = model in (graph.model, graph.model.partition(":")[2])
    return graph if same_name and graph.resolution == resolution and classes in (None, graph.classes) else None


def keep(graph: LayerGraph, model: str, resolution: int, classes: int | None) -> None:
    """Put a trace into the cache, if that is possible."""
    path = _path(model, resolution, classes)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        graph.save(path)
    except (OSError, InputError):  # no room, no right to write, or an argument that is not a plain value
        return


def entries() -> Iterator[Entry]:
    """Yield what the cache holds, of all versions."""
    today = environment()
    for path in sorted(folder().glob(f"*/*{SUFFIX}")):
        if name := _FILE.fullmatch(path.name):
            model = f"{name[1]}:{name[2]}" if name[1] else name[2]
            classes = int(name[4]) if name[4] else None
            versions = path.parent.name
            with suppress(OSError):  # deleted meanwhile
                yield Entry(model, int(name[3]), classes, path.stat().st_size, versions, versions == today)


def clear() -> int:
    """Delete every trace, and nothing else: files and folders of other names stay. Return how many there were.

    Errors: InputError if one cannot be deleted.
    """
    count = 0
    for place in folder().glob("*/"):
        if not _FOLDER.fullmatch(place.name):
            continue
        for path in place.iterdir():
            stem = path.name.partition(f"{SUFFIX}.")[0] + SUFFIX if path.suffix == TEMPORARY else path.name
            if _FILE.fullmatch(stem) and not path.is_dir():
                _delete(path)
                count += path.suffix == SUFFIX
        with suppress(OSError):  # it holds something else
            place.rmdir()
    return count


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot delete {str(path)!r}: {error.strerror}") from error


def writable() -> bool:
    """Return whether traces can be kept."""
    nearest = next(path for path in (folder(), *folder().absolute().parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)
