"""A table for people that fits in any terminal: as columns where they fit, else each row as a few lines below its key.

Nothing is ever cut off: a column of numbers keeps its width, a column of texts breaks between words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

_NARROWEST = 16  # columns that a text is broken into at most
_BETWEEN, _INDENT = "   ", "  "


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
            if sum(widths[place] for place in places) + 2 * len(places) + 1 <= options.max_width:
                yield self._table(widths, places)
                return
        yield from self._stacked(options.max_width)

    def _table(self, widths: Sequence[int], places: Sequence[int]) -> Table:
        from textwrap import wrap

        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
        for place in places:
            column = self.columns[place]
            table.add_column(
                "\n".join(wrap(column.name, max(widths[place], 1))),
                justify="right" if column.number else "left",
                min_width=widths[place],
                overflow="fold",
                no_wrap=not column.long,
            )
        for number, row in enumerate(self.rows):
            table.add_row(*(Text(row[place]) for place in places), style="bold" if number in self.bold else "")
        return table

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
    from textwrap import wrap

    line = ""
    for part in parts:
        if line and len(line) + len(_BETWEEN) + len(part) <= width:
            line += _BETWEEN + part
            continue
        if line:
            yield line
        *before, line = wrap(part, width, initial_indent=_INDENT, subsequent_indent=2 * _INDENT, break_on_hyphens=False)
        yield from before
    if line:
        yield line
