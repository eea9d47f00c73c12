"""What a trace depends on besides the network's name: the versions of the libraries, found without importing them."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "timm")
# The rooms whose code says what a trace holds: the tracer's own, and those that the zoo's networks are built from.
TRACING = ("*.py", "graph", "tracing", "zoo", "layers", "methods", "rules", "accounting")


def installed(library: str) -> str | None:
    """Return the version of an installed library; None if it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def release(text: str) -> str:
    """Return the part of a version that tells which code runs: '2.15.0+cpu' -> '2.15'."""
    return ".".join(text.split("+")[0].split(".")[:2])


def tracing_files(package: Path = Path(__file__).parents[1]) -> list[Path]:
    """Return the files of TRACING, which are all that `tracing` and `zoo` import, and more."""
    patterns = (name if name.endswith(".py") else f"{name}/*.py" for name in TRACING)
    return sorted(path for pattern in patterns for path in package.glob(pattern))


@cache
def tracer_version() -> str:
    """Return a digest of the code that traces, so that what an older tracer saw is not taken for today's."""
    digest = hashlib.sha256()
    for path in tracing_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def environment() -> str:
    """Return all of it on one line, such as 'torch 2.15.0, torchvision 0.29.2, timm none, python 3.13, ...'."""
    libraries = [f"{library} {installed(library) or 'none'}" for library in LIBRARIES]
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    return ", ".join([*libraries, python, f"tracer {tracer_version()}"])
