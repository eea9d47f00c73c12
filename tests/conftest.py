"""Settings and fixtures of the whole test suite."""

from __future__ import annotations

import os
import sys
import tempfile

# Threads that wait sleep: tests run side by side, and the programs that they start compute with several threads each.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import hypothesis
import pytest
import torch
from networks import TWELVE, short, traced

import costmodel.interface.cli

# The same examples on every machine; the first trace of a network may take longer than an example may.
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("reproducible")

# Traces of the tests' own, so that none made before is taken for today's; the programs that tests run inherit it.
_CACHE = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
os.environ["COSTMODEL_CACHE"] = _CACHE.name


@pytest.fixture(autouse=True)
def _alike():
    """Make every test draw the same random numbers and compute with one thread, whichever ran before.

    The tests' tensors are small: on a busy machine threads that wait for each other cost more than they bring.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(params=TWELVE, ids=short)
def name(request) -> str:
    """Name of each of the twelve networks in turn."""
    return request.param


@pytest.fixture
def graph(name):
    """Layer graph of each of the twelve networks in turn."""
    return traced(name)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line in this process; return (exit code, standard output, standard error)."""

    def run(*arguments: str, main=costmodel.interface.cli.main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return run
