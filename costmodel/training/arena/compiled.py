"""The arena's allocator, compiled for the installed torch on first use and kept for later; tight malloc without it.

c10 has no stable binary interface, so the library is built against the headers that come with torch, by the compiler
that is installed, in a few seconds, and kept in the user's cache by version of torch, architecture and source.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from ...errors import one_line
from ...machine.folder import cache_folder

_SOURCE = files("costmodel.training.arena") / "allocator.cpp"
_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-shared")
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 120  # a compiler that takes longer is given up

# glibc's names for what `mallopt` sets. Source: malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
TIGHT_BYTES = 65536  # blocks of this size and more go back to the system when they are freed


class NotBuiltError(Exception):
    """The library cannot be built or used here; the text says why."""


@cache
def library() -> ctypes.CDLL:
    """Return the allocator's library, built if that was not done before. Errors: NotBuiltError."""
    path = _path()
    if not path.exists():
        _build(path)
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotBuiltError(f"the library does not load ({one_line(error)})") from error
    numbers, count = ctypes.POINTER(ctypes.c_int64), ctypes.c_int64
    for name, result, arguments in (
        ("arena_install", ctypes.c_int, [ctypes.c_int, ctypes.c_int]),
        ("arena_rest", None, []),
        ("arena_close", None, []),
        ("arena_plan", count, [numbers, numbers, count, count]),
        ("arena_enter", None, [ctypes.c_int, count]),
        ("arena_leave", None, [numbers]),
        ("arena_log", None, [ctypes.c_int]),
        ("arena_read_log", count, [numbers, count]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def _path() -> Path:
    digest = hashlib.sha256(_SOURCE.read_bytes() + repr(_FLAGS).encode()).hexdigest()[:12]
    return cache_folder("arena") / f"torch-{torch.__version__}-{platform.machine()}-{digest}.so"


def _build(path: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "")) or [next(filter(None, map(shutil.which, _COMPILERS)), "")]
    if not compiler[0]:
        raise NotBuiltError(f"there is no C++ compiler (none of {', '.join(_COMPILERS)})")
    torch_folder = Path(torch.__file__).parent
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # beside it, to be moved in one go
            made = Path(folder) / path.name
            source = Path(folder) / "allocator.cpp"
            source.write_bytes(_SOURCE.read_bytes())
            command = [
                *compiler, *_FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
                f"-I{torch_folder / 'include'}", str(source), "-o", str(made), f"-L{torch_folder / 'lib'}", "-lc10",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            if done.returncode:
                first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
                raise NotBuiltError(f"the compiler {compiler[0]} fails: {one_line(first)[:300]}")
            made.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuiltError(f"the library cannot be built ({one_line(error)})") from error


def tighten_malloc() -> bool:
    """Have malloc give freed memory back at once; return whether this system's malloc can.

    Source: mallopt(3) of glibc. Blocks of TIGHT_BYTES and more are mapped one by one, the heap's end is trimmed, and
    all threads share one heap.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    wanted = ((_MMAP_THRESHOLD, TIGHT_BYTES), (_TRIM_THRESHOLD, TIGHT_BYTES), (_ARENA_MAX, 1))
    return all([mallopt(what, value) == 1 for what, value in wanted])
