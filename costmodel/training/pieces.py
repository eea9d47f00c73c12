"""The frozen prefix of a forward pass, some images at a time, or to and from a cache.

In pieces, the network sees stand-ins that have the shape of the whole batch and no memory; each call runs on the first
piece and is recorded. Where the prefix ends the tape runs on the other pieces; the network goes on with all results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import InputError
from .nested import mapped, tensors
from .tape import Tape


class _Count(int):
    """A number that grows with the batch, as the network sees it: of the whole batch, or some times that."""

    def __mul__(self, other: Any) -> Any:
        """Stay a count under products with whole numbers."""
        return _Count(int(self) * other) if isinstance(other, int) else int(self) * other

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        """Stay a count under division without rest."""
        exact = isinstance(other, int) and other and not int(self) % other
        return _Count(int(self) // other) if exact else int(self) // other


def _counted(whole: Any, piece: Any) -> Any:
    """Return sizes of the whole batch; those that are others for a piece of it as counts."""
    if isinstance(whole, torch.Size):
        return torch.Size([_counted(*each) for each in zip(whole, piece, strict=True)])
    is_number = isinstance(whole, int) and not isinstance(whole, bool)
    return _Count(whole) if is_number and whole != piece else whole


class Filled(BaseException):
    """Ends a forward pass where its frozen prefix is done; `output`: what the prefix gave."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output


class PrefixToCache:
    """The frozen prefix alone, for all images that are given; what comes behind does not run."""

    def __init__(self):
        self.results = WeakIdKeyDictionary()

    def run(self, run: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Make a call."""
        with torch.no_grad():
            result = run(*args, **kwargs)
        _note(self.results, result)
        return result

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        """End the pass. Errors: `Filled`, with the output."""
        raise Filled(output)


class PrefixFromCache:
    """The frozen prefix whose outputs are there: its calls run on tensors without memory.

    given: the outputs. images: the shape of what the network is called with, without the batch.
    """

    def __init__(self, given: torch.Tensor, images: tuple[int, ...]):
        self.given, self.results = given, WeakIdKeyDictionary()
        self.images = torch.empty((len(given), *images), dtype=given.dtype, device="meta")

    def run(self, run: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Make a call on tensors without memory."""
        with torch.no_grad(), torch._C._DisableTorchDispatch():  # nothing is computed that a counter should see
            result = run(*mapped(_without_memory, args), **mapped(_without_memory, kwargs))
        _note(self.results, result)
        return result

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        """Return what is there in place of the output. Errors: InputError if it has another shape."""
        if output.shape != self.given.shape:
            raise InputError(
                f"the network trains from a cache whose outputs are {tuple(output.shape)} in size, but was called with "
                f"{tuple(self.given.shape)}; train with the data set of cached_prefix, or call .eval() for images"
            )
        return self.given


def _without_memory(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _note(results: WeakIdKeyDictionary, made: Any) -> None:
    for value in tensors(made):
        results[value] = True


class PrefixInPieces:
    """The frozen prefix in one forward pass, `piece` images at a time."""

    def __init__(self, own: frozenset[int], images: list[torch.Tensor], piece: int):
        self.tape, self.images, self.piece = Tape(own), images, min(piece, len(images[0]))
        self.first = {id(each): each[:piece] for each in images}
        self.results = WeakIdKeyDictionary()  # of the first piece, by the stand-in that the network sees

    def run(self, run: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Make a call on the first piece; return stand-ins of its results."""
        stand_ins: dict[int, torch.Tensor] = {}

        def real(value: Any) -> Any:
            if isinstance(value, _Count):
                return int(value) * self.piece // len(self.images[0])
            if not isinstance(value, torch.Tensor):
                return value
            found = self.first.get(id(value))
            if found is None:
                found = self.results.get(value)
            if found is not None:
                stand_ins[id(found)] = value
            return value if found is None else found

        def stand_in(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or id(value) in self.tape.own:
                return value
            if id(value) not in stand_ins:
                shown = value.new_empty(()).expand(self._whole(value), *value.shape[1:])
                self.results[shown] = value
                return shown
            return stand_ins[id(value)]

        inner = mapped(real, args), mapped(real, kwargs)
        with torch.no_grad():
            result = self.tape.record(run, *inner)
        if not tensors(result):
            return _counted(run(*args, **kwargs), result)  # a size
        return mapped(stand_in, result)

    def _whole(self, value: torch.Tensor) -> int:
        """Return the first dimension of all images together."""
        return len(value) * len(self.images[0]) // self.piece

    def finish(self, stand_in: torch.Tensor) -> torch.Tensor:
        """Run the other pieces; return the tensor that a stand-in stands for, of all images."""
        first = self.results[stand_in]
        number = self.tape.numbers[first].number
        whole = torch.empty_like(first.new_empty(()).expand(stand_in.shape), memory_format=_memory_format(first))
        whole[: len(first)].copy_(first)
        each_image, batch = len(first) // self.piece, len(self.images[0])
        whole_of = {id(self.first[id(each)]): each for each in self.images}
        given = [(each, whole_of.get(id(each))) for each in self.tape.outside]
        self.results.clear()
        del first
        with torch.no_grad():
            for start in range(self.piece, batch, self.piece):
                start = min(start, batch - self.piece)  # all pieces have one size: the last may run some images again
                pieces = [own if all_ is None else all_[start : start + self.piece] for own, all_ in given]
                made = self.tape.replay(pieces, wanted=number)
                assert made is not None  # it was asked for
                whole[start * each_image : start * each_image + len(made)].copy_(made)
                del made
        return whole


def _memory_format(tensor: torch.Tensor) -> torch.memory_format:
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
