"""Parts of a network that its own code runs again in backward, by torch.utils.checkpoint."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable

import torch
import torch.utils.checkpoint
from torch._C._autograd import _top_saved_tensors_default_hooks

from ..errors import ModelError


class Checkpoints:
    """Numbers the parts while they run: calls inside one find the hooks that it has set for saved tensors."""

    def __init__(self) -> None:
        # By their hooks, which hold what a part starts from, so that they are not to be held here.
        self._numbers: weakref.WeakKeyDictionary[Callable, int] = weakref.WeakKeyDictionary()
        self._count = 0

    def running(self, place: str) -> int | None:
        """Return the number of the part that is running, if one is. place: in the network, for messages.

        Errors: ModelError where one part is within another, and where hooks do something else with saved tensors: a
        prediction would leave that out.
        """
        if (hooks := _top_saved_tensors_default_hooks(False)) is None:
            return None
        pack = hooks[0]
        if pack.__module__ != "torch.utils.checkpoint":
            name = pack.__qualname__.partition(".")[0]
            raise ModelError(
                f"{place} keeps its saved tensors by hooks ({name}), which is not priced; leave the hooks out for the "
                "trace"
            )
        if pack not in self._numbers:
            _refuse_nested(place)
            self._numbers[pack] = self._count
            self._count += 1
        return self._numbers[pack]


def _refuse_nested(place: str) -> None:
    codes = [frame.f_code for frame, _ in traceback.walk_stack(None)]
    own = torch.utils.checkpoint.__file__
    if sum(code.co_name == "checkpoint" and code.co_filename == own for code in codes) > 1:
        raise ModelError(
            f"{place} runs a part again within a part that runs again (torch.utils.checkpoint), which is not priced; "
            "leave one of the two out"
        )
