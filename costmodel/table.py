"""A table of named entries, such as methods or operations: a name stands once, and an unknown one is a clear error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar, cast

from .errors import InputError, unknown

Entry = TypeVar("Entry")


class Table(Mapping[str, Entry]):
    """Entries by name, in the order in which they were added.

    kind: what an entry is, for messages, such as 'method'. `table[name]` raises KeyError as a dictionary does;
    `table.find(name)` is for names that a person wrote.
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry] | Iterable[tuple[str, Entry]] = ()):
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        pairs = cast("Mapping[str, Entry]", entries).items() if isinstance(entries, Mapping) else entries
        for name, entry in pairs:
            self.add(name, entry)

    def add(self, name: str, entry: Entry) -> None:
        """Add an entry. Errors: InputError if the name is taken."""
        if name in self._entries:
            raise InputError(f"the {self.kind} {name!r} exists already; give this one another name")
        self._entries[name] = entry

    def find(self, name: str) -> Entry:
        """Return the entry of a name. Errors: InputError for an unknown one, with the near ones."""
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Table({self.kind!r}: {', '.join(self)})"
