"""What was seen of a call that has no rule, when the tracer ran it: a plain value, without torch.

Counts are per image where the layer's result grows with the batch, else absolute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal


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
    gradient is the result's gradient itself or a view of it.
    """

    wanted: tuple[str, ...]
    kept: tuple[Held, ...]
    backward_flops: int
    passes_gradient: tuple[str, ...]


@dataclass(frozen=True)
class Learned:
    """What a call does. patterns: by wanted gradients; one for each set of roles that can be wanted together.

    counts_flops: whether PyTorch's counter has a formula for anything in it; else its FLOPs are not counted.
    working: bytes beside arguments, results and what is kept: in forward where no gradient is wanted, in forward and in
    backward where all are; of each the bytes per image, and those beside. Empty where it was not seen.
    """

    patterns: tuple[Pattern, ...]
    forward_flops: int
    counts_flops: bool
    working: tuple[int, ...] = ()

    def to_rows(self) -> list[Any]:
        """Return it as lists, texts and numbers."""
        patterns = [
            [
                list(each.wanted),
                [[held.of, held.name, held.elements, held.bits, held.batched] for held in each.kept],
                each.backward_flops,
                list(each.passes_gradient),
            ]
            for each in self.patterns
        ]
        return [patterns, self.forward_flops, self.counts_flops, *([list(self.working)] if self.working else [])]

    @staticmethod
    def from_rows(rows: Any, roles: Iterable[str], outputs: int) -> Learned:
        """Return what `to_rows` wrote of a layer with these arguments and so many results.

        Errors: ValueError, TypeError or LookupError for what it cannot have written.
        """
        roles, numbers = set(roles), {str(number) for number in range(outputs)}
        patterns = []
        for wanted, kept, flops, passes in rows[0]:
            held = tuple(Held(*_checked(row, roles, numbers)) for row in kept)
            _require(set(wanted) <= roles and set(passes) <= set(wanted) and _is_count(flops))
            patterns.append(Pattern(tuple(wanted), held, flops, tuple(passes)))
        _, flops, counts = rows[:3]
        working = rows[3] if len(rows) > 3 else []
        _require(_is_count(flops) and type(counts) is bool and type(working) is list and len(working) in (0, 6))
        _require(all(map(_is_count, working)))
        return Learned(tuple(patterns), flops, counts, tuple(working))


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
