"""What is derived from a value once, and kept with it as long as it lives."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

_ATTRIBUTE = "_kept"


def kept(
    function: Callable[Concatenate[Owner, Arguments], Answer],
) -> Callable[Concatenate[Owner, Arguments], Answer]:
    """Work a function of an immutable value and hashable arguments out once; the first argument keeps the answer.

    Every function finds its own answers only. The value's class needs a `__dict__`.
    """

    @wraps(function)
    def remembered(owner: Owner, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        answers = answers_of(owner)
        key = (function, args, tuple(kwargs.items())) if kwargs else (function, args)
        if key not in answers:
            answers[key] = function(owner, *args, **kwargs)
        return answers[key]

    return remembered


def answers_of(owner: object) -> dict[Any, Any]:
    """Return what was derived from a value so far; who measures a first answer clears it."""
    return owner.__dict__.setdefault(_ATTRIBUTE, {})


def derived(owner: object) -> set[str]:
    """Return the names of the attributes that hold what was derived: no part of the value, so left out of pickles."""
    properties = (
        name for cls in type(owner).__mro__ for name, item in vars(cls).items() if isinstance(item, cached_property)
    )
    return {_ATTRIBUTE, *properties}
