"""A way of training: which method, how deep, with which options. It is what an accuracy belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

CUSTOM = "custom"  # the method's name where the trained parameters were given

OptionValue = bool | int | float | str | tuple["OptionValue", ...]


@dataclass(frozen=True)
class Way:
    """What trains, and how: a method, its depth if it takes one, and its options.

    blocks: how many of the last blocks train. options: (name, value) pairs by name; `costmodel.way` fills in what is
    not given. trained: instead of a method's choice, the names of the parameters that train.
    """

    method: str = "full"
    blocks: int | None = None
    options: tuple[tuple[str, OptionValue], ...] = ()
    trained: frozenset[str] | None = None

    def __getitem__(self, option: str) -> OptionValue:
        """Return the value of an option. Errors: KeyError if the way has no such option."""
        return dict(self.options)[option]

    @property
    def label(self) -> str:
        """The way's name for people, such as 'mobiletl, k = 5'."""
        depth = [] if self.blocks is None else [f"k = {self.blocks}"]
        return ", ".join(
            [self.method, *depth, *(f"{name} {show(value)}" for name, value in self.options if value != ())]
        )

    @property
    def description(self) -> str:
        """The label for who does not know what k is, such as 'mobiletl, the last k = 5 blocks'."""
        blocks = "block (k = 1)" if self.blocks == 1 else f"k = {self.blocks} blocks"
        return self.label.replace(f"k = {self.blocks}", f"the last {blocks}", 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the way as plain values for JSON; `options` and `trained` only where there are any."""
        return {
            "method": self.method,
            "blocks": self.blocks,
            **({"options": {name: _plain(value) for name, value in self.options}} if self.options else {}),
            **({} if self.trained is None else {"trained": sorted(self.trained)}),
        }


def show(value: OptionValue) -> str:
    """Return an option's value as text, which the option reads back: ((21, 1.0), (24, 0.5)) -> '21:1,24:0.5'."""
    if isinstance(value, tuple):
        return ",".join(
            ":".join(show(part) for part in item) if isinstance(item, tuple) else show(item) for item in value
        )
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: OptionValue) -> bool | int | float | str:
    return show(value) if isinstance(value, tuple) else value


def read_options(texts: Iterable[str]) -> dict[str, str]:
    """Return options from texts such as 'layers=22', 'weights=21:1,24:1/2'.

    Errors: InputError for a text without a '=', and for a name that stands twice.
    """
    options: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise InputError(f"cannot read the option {text!r}; write name=value, such as patch=2")
        if name in options:
            raise InputError(f"the option {name!r} is given twice: {options[name]} and {value}; give it once")
        options[name] = value
    return options


ShortWay = Way | str | tuple[str, int | None]
Options = Mapping[str, object]
