"""A torch network made to train in a way: apply, restore."""

from importlib import import_module

_LATER = {"CachedImages": "cache", "cached_prefix": "cache", "update_in_place": "optimizers"}


def __getattr__(name: str):
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
