"""Weights that a network computes from its parameters (weight standardisation): recorded, so that they can be made
again in backward, and not kept until then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from .nested import leaves, mapped


@dataclass(frozen=True, eq=False)
class Recipe:
    """A call that made a tensor, with recipes in place of those arguments that were made likewise."""

    function: Callable
    args: tuple
    kwargs: dict[str, Any]
    part: int | None = None

    def ingredients(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors, each once, that it starts from."""
        found: dict[int, torch.Tensor] = {}
        for value in leaves((self.args, self.kwargs)):
            inner = value.ingredients() if isinstance(value, Recipe) else (value,) if _is_tensor(value) else ()
            found.update((id(tensor), tensor) for tensor in inner)
        return tuple(found.values())

    def made_of(self, *ingredients: torch.Tensor) -> torch.Tensor:
        """Return the tensor, made again from others in place of its ingredients, in their order."""
        return self._made({id(old): new for old, new in zip(self.ingredients(), ingredients, strict=True)})

    def _made(self, made: dict[int, Any]) -> torch.Tensor:
        """Return the tensor, given what is made already; no function may refer to itself and keep `made` alive."""

        def found(value: Any) -> Any:
            return value._made(made) if isinstance(value, Recipe) else made.get(id(value), value)

        if id(self) not in made:
            args, kwargs = mapped(found, self.args), mapped(found, self.kwargs)
            result = self.function(*args, **kwargs)
            made[id(self)] = result if self.part is None else result[self.part]
        return made[id(self)]


class Derivations:
    """The recipes of the tensors that a forward pass has derived so far; they hold none of these alive."""

    def __init__(self) -> None:
        self.recipes = WeakIdKeyDictionary()

    def run(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a call without a gradient, and record how to make its result again."""
        with torch.no_grad():
            result = function(*args, **kwargs)
        known_args, known_kwargs = mapped(lambda value: self.recipe(value) or value, (args, kwargs))
        if _is_tensor(result):
            self.recipes[result] = Recipe(function, known_args, known_kwargs)
        else:
            for part, value in enumerate(result):
                self.recipes[value] = Recipe(function, known_args, known_kwargs, part)
        return result

    def recipe(self, value: Any) -> Recipe | None:
        """Return how a tensor was made, if it was derived here."""
        return self.recipes.get(value) if _is_tensor(value) else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
