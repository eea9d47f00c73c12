"""Calls, one after the other, whose results lie in one arena: when each lies there, and what shares its memory.

A value takes memory from the call that makes it to the last call that reads it. The result of an element-wise call lies
where an operand of its size lies that ends there. What nobody needs in the end is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(eq=False, slots=True)
class Value:
    """Something in the arena: its bytes, and the moments of the calls that make it and read it last."""

    size: int
    first: int
    last: int = -1
    owner: Value | None = None

    @property
    def is_needed(self) -> bool:
        """Whether a call that counts reads it, or it leaves the step."""
        return self.last >= 0

    @property
    def root(self) -> Value:
        """The value whose memory it takes."""
        return self if self.owner is None else self.owner.root


class Call(NamedTuple):
    """What is made of what. elementwise: one element after the other, so that results may lie where operands do."""

    made: tuple[Value, ...]
    given: tuple[Value, ...]
    elementwise: bool


@dataclass
class Program:
    """Calls; `places` says in which phase and layer each is."""

    calls: list[Call] = field(default_factory=list)
    places: list[tuple[str, str]] = field(default_factory=list)
    place: tuple[str, str] = ("start", "")

    def calls_for(self, sizes: list[int], *operands: Value | None, elementwise: bool = False) -> list[Value]:
        """Make values of some numbers of bytes from others, in one call; None stands for what is not in the arena."""
        made = [Value(size, len(self.places)) for size in sizes]
        self.places.append(self.place)
        self.calls.append(Call(tuple(made), tuple(one for one in operands if one is not None), elementwise))
        return made

    def call(self, size: int, *operands: Value | None) -> Value:
        """Make a value of a number of bytes from others."""
        return self.calls_for([size], *operands)[0]

    def chain(self, size: int, *operands: Value | None) -> Value:
        """Make a value by an element-wise call."""
        return self.calls_for([size], *operands, elementwise=True)[0]

    def hold(self, value: Value) -> None:
        """Keep a value until now."""
        value.last = len(self.places) - 1

    def leave(self, *values: Value) -> None:
        """Note that values leave the step, such as a parameter after its update, when they are made."""
        for value in values:
            value.last = value.first

    def finish(self) -> list[tuple[int, int, int]]:
        """Return (bytes, first, last) of what lies in the arena: values that share their memory are one."""
        for now in reversed(range(len(self.calls))):
            call = self.calls[now]
            if any(one.is_needed for one in call.made):
                for one in (*call.made, *call.given):
                    one.last = max(one.last, now)
        needed = [call for call in self.calls if call.made[0].is_needed]
        for call in needed:
            if call.elementwise:
                made = call.made[0]
                ending = (one for one in call.given if one.last == made.first and one.size == made.size)
                made.owner = next(ending, None)
        spans: dict[Value, tuple[int, int, int]] = {}
        for value in (one for call in needed for one in call.made):
            size, first, last = spans.get(value.root, (value.size, value.first, value.last))
            spans[value.root] = size, min(first, value.first), max(last, value.last)
        return list(spans.values())
