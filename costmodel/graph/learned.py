"""What was seen of a call that has no rule, when the tracer ran it: a plain value, without torch.

Counts are per image where the layer's result grows with the batch, else absolute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Working(NamedTuple):
    """Bytes for a moment: of each image, and beside that. Below 0 where other memory is gone before the most is there.

    0 of both where nothing was seen.
    """

    each: int
    once: int

    def at(self, batch: int) -> int:
        """Return the bytes at a batch."""
        return self.each * batch + self.once


UNSEEN = Working(0, 0)


@dataclass(frozen=True)
class Held:
    """A piece of memory that backward keeps.

    of: an argument ('input', and its role), a result ('output', and its number) or memory that nothing else has
    ('own', and a label), of which there are `elements` of `bits` each, per image if `batched`.
    """

    of: Literal["input", "output", "own"]
    name: str
    elements: int = 0
    bits: int = 0
    batched: bool = False


@dataclass(frozen=True)
class Pattern:
    """What a call does if the gradients of `wanted`, its arguments by role, are wanted, and no others.

    kept: from forward to backward. backward_flops: of convolutions and matrix products. passes_gradient: roles whose
    gradient is the result's gradient itself or a view of it. forward_working, backward_working: beside arguments,
    results and what is kept.
    """

    wanted: tuple[str, ...]
    kept: tuple[Held, ...]
    backward_flops: int
    passes_gradient: tuple[str, ...]
    forward_working: Working = UNSEEN
    backward_working: Working = UNSEEN


@dataclass(frozen=True)
class Learned:
    """What a call does. patterns: by wanted gradients; one for each set of roles that can be wanted together.

    counts_flops: whether PyTorch's counter has a formula for anything in it; else its FLOPs are not counted.
    working: beside arguments and results, in forward where no gradient is wanted.
    """

    patterns: tuple[Pattern, ...]
    forward_flops: int
    counts_flops: bool
    working: Working = UNSEEN

    def working_of(self, wanted: tuple[str, ...]) -> tuple[Working, Working]:
        """Return the working memory in forward and backward; of a set that was not seen, that of all together."""
        if not wanted:
            return self.working, UNSEEN
        seen = {pattern.wanted: pattern for pattern in self.patterns}
        pattern = seen.get(wanted) or max(self.patterns, key=lambda each: len(each.wanted))
        return pattern.forward_working, pattern.backward_working

    def to_rows(self) -> list[Any]:
        """Return it as lists, texts and numbers."""
        patterns = [
            [
                list(each.wanted),
                [[held.of, held.name, held.elements, held.bits, held.batched] for held in each.kept],
                each.backward_flops,
                list(each.passes_gradient),
                [*each.forward_working, *each.backward_working],
            ]
            for each in self.patterns
        ]
        return [patterns, self.forward_flops, self.counts_flops, list(self.working)]

    @staticmethod
    def from_rows(rows: Any, roles: Iterable[str], outputs: int) -> Learned:
        """Return what `to_rows` wrote of a layer with these arguments and so many results.

        Errors: ValueError, TypeError or LookupError for what it cannot have written.
        """
        roles, numbers = set(roles), {str(number) for number in range(outputs)}
        patterns = []
        for wanted, kept, flops, passes, working in rows[0]:
            held = tuple(Held(*_checked(row, roles, numbers)) for row in kept)
            _require(set(wanted) <= roles and set(passes) <= set(wanted) and _is_count(flops))
            _require(type(working) is list and len(working) == 4)
            forward, backward = _working(working[:2]), _working(working[2:])
            patterns.append(Pattern(tuple(wanted), held, flops, tuple(passes), forward, backward))
        _, flops, counts, working = rows
        _require(_is_count(flops) and type(counts) is bool)
        return Learned(tuple(patterns), flops, counts, _working(working))


def _working(row: list) -> Working:
    _require(type(row) is list and len(row) == 2 and all(type(each) is int and abs(each) < 2**63 for each in row))
    return Working(*row)


def _checked(row: list, roles: set[str], numbers: set[str]) -> list:
    of, name, elements, bits, batched = row
    names = {"input": roles, "output": numbers, "own": {name}}[of]
    _require(type(name) is str and name in names and _is_count(elements) and _is_count(bits) and type(batched) is bool)
    return row


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("it does not hold that what was learned of a call is possible")
