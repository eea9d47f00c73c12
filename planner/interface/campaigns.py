"""What the commands share whose runs are kept: the memory to fit in, the learning rates, what an interrupt says."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from costmodel import InputError
from costmodel.interface.running import INTERRUPTED
from costmodel.secrets import shown
from costmodel.units import parse_bytes

from .space import decimals, named_device


def ram_bytes_of(ram: str | None, device: str | None) -> int:
    """Return the memory for the training, the smaller if both are given. Errors: InputError if neither is."""
    target = named_device(device)
    limits = [] if ram is None else [parse_bytes(ram)]
    limits += [] if target is None else [target.training_ram_bytes]
    if not limits:
        raise InputError("no limit was given; give --ram 64MB, or --device raspberry-pi-zero-2w")
    return min(limits)


def rates_of(lr: str | None, optimizer: str) -> Sequence[float]:
    """Return the learning rates to choose among: those that are given, or that suit the optimizer."""
    from ..campaign.rates import default_rates  # which loads torch

    return default_rates(optimizer) if lr is None else decimals(lr, "--lr")


@contextmanager
def interruptible(storage: str) -> Iterator[None]:
    """Turn an interrupt into a line that says where the runs are, and the exit code for it."""
    try:
        yield
    except KeyboardInterrupt:
        print(
            f"finished runs are kept in {shown(storage)}; the same command continues with the next one",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
