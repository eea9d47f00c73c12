"""A table for people that fits in any terminal: as columns where they fit, else each row as a few lines below its key.

Nothing is ever cut off: a column of numbers keeps its width, a column of texts breaks between words.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

_NARROWEST = 16  # columns that a text is broken into at most
_BETWEEN, _INDENT = "   ", "  "
# The blanks of a number that stay on its line: before its unit, and around the sign of 'k = 5'.
_INSIDE = re.compile(r"(?<=\d) (?=(?:[kMGTP]?(?:B|FLOPs?|FLOP/s)?|ms|s|min|h)\b|%)|(?<=\bk) (?== \d)|(?<=\bk =) (?=\d)")
_HARD = "\N{NO-BREAK SPACE}"  # where `textwrap` breaks no line


@dataclass(frozen=True)
class Column:
    """name: its head. number: aligned to the right, and never broken; neither is a text that is not `long`.

    optional: left out where the columns do not fit, those with 1 first; 0 stands for never.
    """

    name: str
    number: bool = False
    long: bool = False
    optional: int = 0

    def narrowest(self, texts: Iterable[str]) -> int:
        """Return the fewest columns of the terminal that it can be shown in."""
        head = max(map(len, self.name.split()), default=0)
        texts = list(texts)
        if not self.long:
            return max(head, *map(len, texts), 0)
        words = max((len(word) for text in texts for word in text.split()), default=0)
        return max(head, words, min(_NARROWEST, *map(len, texts), _NARROWEST))


def wrap(text: str, width: int, first: str = "", then: str = "") -> list[str]:
    """Return a text in lines of a width, broken between words, never between a number and its unit.

    first, then: what the first line, and the others, begin with.
    """
    hard = _INSIDE.sub(_HARD, text)
    lines = textwrap.wrap(hard, width, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
    return [line.replace(_HARD, " ") for line in lines] or [first]


@dataclass(frozen=True)
class Listing:
    """Rows of texts, shown by rich.

    key: place of the column that says what a row is: it heads the row where the columns do not fit. bold: places of the
    rows that stand out.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    key: int = 0
    bold: frozenset[int] = frozenset()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or the rows below one another."""
        from rich.text import Text

        if self.title:
            yield Text(self.title, "bold")
        widths = [column.narrowest(row[place] for row in self.rows) for place, column in enumerate(self.columns)]
        for dropped in range(1 + max((column.optional for column in self.columns), default=0)):
            places = [p for p, column in enumerate(self.columns) if not 0 < column.optional <= dropped]
            room = options.max_width - sum(widths[place] for place in places) - 2 * len(places) - 1
            if room >= 0:
                yield self._table(self._widened(widths, places, room), places)
                return
        yield from self._stacked(options.max_width)

    def _table(self, widths: Sequence[int], places: Sequence[int]) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
        for place in places:
            column = self.columns[place]
            head = "\n".join(wrap(column.name, max(widths[place], 1)))
            table.add_column(head, justify="right" if column.number else "left", width=widths[place], no_wrap=True)
        for number, row in enumerate(self.rows):
            cells = (
                "\n".join(wrap(row[place], max(widths[place], 1))) if self.columns[place].long else row[place]
                for place in places
            )
            table.add_row(*map(Text, cells), style="bold" if number in self.bold else "")
        return table

    def _widened(self, widths: Sequence[int], places: Sequence[int], room: int) -> list[int]:
        """Return the columns' widths with what room there is shared among those of long texts, by what they lack."""
        lacks = [
            max((len(row[place]) for row in self.rows), default=0) - widths[place] if place in places else 0
            for place in range(len(widths))
        ]
        lacks = [max(lack, 0) for lack in lacks]
        share = min(1.0, max(room, 0) / max(sum(lacks), 1))
        return [width + int(share * lack) for width, lack in zip(widths, lacks, strict=True)]

    def _stacked(self, width: int) -> Iterator[Text]:
        from rich.text import Text

        for place, row in enumerate(self.rows):
            yield Text(row[self.key] or "-", "bold" if place in self.bold else "")
            parts = [
                f"{column.name} {text}".strip()
                for number, (column, text) in enumerate(zip(self.columns, row, strict=True))
                if text and number != self.key
            ]
            yield from map(Text, _lines(parts, width))
        yield Text("")


def _lines(parts: Sequence[str], width: int) -> Iterator[str]:
    """Yield lines that hold the parts, several where they fit; a long part is broken between words."""
    line = ""
    for part in parts:
        if line and len(line) + len(_BETWEEN) + len(part) <= width:
            line += _BETWEEN + part
            continue
        if line:
            yield line
        *before, line = wrap(part, width, _INDENT, 2 * _INDENT)
        yield from before
    if line:
        yield line


@dataclass(frozen=True)
class Fields:
    """Names with their texts, in a frame: (name, text) each; a text without a name goes on with the one before.

    bold: the names that stand out.
    """

    title: str
    fields: Sequence[tuple[str, str]]
    bold: frozenset[str] = frozenset()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the frame."""
        from rich.panel import Panel
        from rich.text import Text

        column = max(len(name) for name, _ in self.fields) + 2
        width = max(options.max_width - 4, column + _NARROWEST)
        lines = [
            (line, name in self.bold)
            for name, text in self.fields
            for line in wrap(text, width, name.ljust(column), " " * column)
        ]
        body = Text("\n").join(Text(line, "bold" if bold else "") for line, bold in lines)
        yield Panel(body, title=self.title, title_align="left")
