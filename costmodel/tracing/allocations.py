"""What PyTorch allocates on the CPU while something runs, as its profiler sees it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate

from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]  # it has no other name
from torch.profiler import ProfilerActivity, profile


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the profiler's C++ code writes to standard error; Python's errors are raised as ever."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Leave what others dropped in memory, so that nothing is freed that `run` did not make."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def allocations(run: Callable[[], object]) -> list[int]:
    """Return the bytes of each allocation on the CPU, and of each free as a negative number, in their order."""
    with _without_collection(), _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    recorded = profiler.profiler
    assert recorded is not None and recorded.kineto_results is not None  # there once it has run
    return _sizes(recorded.kineto_results.events())


def _sizes(events) -> list[int]:
    is_memory = (each for each in events if each.name() == "[memory]")
    return [each.nbytes() for each in is_memory if each.device_type() == DeviceType.CPU]


def peak_of(sizes: list[int]) -> int:
    """Return the most that is allocated at any moment, above the start."""
    return max(accumulate(sizes), default=0)
