"""What tests register in the package's tables, taken away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from costmodel.table import Table


@contextmanager
def as_before(*tables: Table) -> Iterator[None]:
    """Take away again what a test registers."""
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, entries in zip(tables, before, strict=True):
            table._entries = entries
