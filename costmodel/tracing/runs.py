"""One forward pass of a network on the meta device, recorded; and whether its sizes follow from the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..graph.values import TRACE_BATCH
from .calls import tensors_in
from .detectors import run as run_network
from .inputs import Inputs
from .recorded import counts
from .recorder import USUAL_CHANNELS, Recorder
from .slices import StaleRead

_NUMBERS = {"item", "float", "int", "bool", "index", "tolist"}  # calls that ask for what is in a tensor


class OtherChannels(Exception):
    """A network's first convolution asks for images of other channels."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.channels = channels


class Run:
    """One forward pass on the meta device, recorded."""

    def __init__(
        self, module: nn.Module, label: str, inputs: Inputs, loss: Callable[..., Any] | None, batch: int = TRACE_BATCH,
        follows_slices: bool = False,
    ):  # fmt: skip
        self.label, self.inputs, self.batch, self.has_loss = label, inputs, batch, loss is not None
        self.recorder = recorder = Recorder(module, batch, follows_slices)
        made = inputs.meta(batch)
        with torch.enable_grad():
            self.parameters = {n: recorder.value(each, "parameter", n) for n, each in module.named_parameters()}
            self.buffers = {n: recorder.value(each, "constant", n) for n, each in module.named_buffers()}
            self.given = [recorder.value(each, "input", "input") for each in made.leaves]
            try:
                with recorder:
                    result = _call(module, made, loss)
                    outputs = tensors_in(result)
                    for output in outputs:
                        recorder.refuse_unseen(output)
            except (ModelError, StaleRead):
                raise
            except Exception as error:
                raise self._failed(error) from error
        self.finished = [recorder.known[id(tensor)] for tensor in outputs if id(tensor) in recorder.known]
        if not any(value.kind == "activation" for value in self.finished):
            raise ModelError(self._no_output(result))

    @property
    def input_label(self) -> str:
        """What the network is given, for messages."""
        shapes = [leaf.of(self.batch)[1:] for leaf in self.inputs.leaves]
        if len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][1] == shapes[0][2]:
            return f"images of {shapes[0][1]}x{shapes[0][2]}"
        return f"inputs of {', '.join('x'.join(map(str, shape)) or '1' for shape in shapes)}"

    def _failed(self, error: Exception) -> Exception:
        recorder, first = self.recorder, self.inputs.leaves[0].shape
        channels = recorder.asked_channels
        if channels not in (None, USUAL_CHANNELS) and first[1:2] == (USUAL_CHANNELS,):
            return OtherChannels(channels)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        small = min(first[2:], default=224) < 224 or "size" in reason  # 'Kernel size can't be greater than ...'
        hint = "its input may be another (--input 3x320x240, trace(..., input=(3, 320, 240))), or "
        if recorder.running in _NUMBERS:
            hint = "it asks for a number in a tensor, of which the trace has the shape only; "
        elif small:
            hint = f"the resolution may be too small for it, or {hint}"
        return ModelError(
            f"the forward pass of {self.label} on {self.input_label} failed in {recorder.place} "
            f"({recorder.running or type(error).__name__}): {reason}; {hint}its forward needs mending"
        )

    def _no_output(self, result: Any) -> str:
        if not tensors_in(result):
            return (
                f"no output of {self.label} could be found: it returns {type(result).__name__}; what can be followed "
                "are tensors, and tuples, lists, dicts and dataclasses of them"
            )
        return f"no output of {self.label} depends on its input through calls that could be followed"

    @property
    def _fixed(self) -> list[tuple[int, ...]]:
        """Shapes of results that do not grow with the batch."""
        values = (value for call in self.recorder.calls for value in call.outputs or () if value.kind == "activation")
        return [value.shape for value in values if math.prod(value.shape) % self.batch]

    @property
    def has_fixed_sizes(self) -> bool:
        """Whether results of more than one number do not grow with the batch, or not in proportion to it."""
        return any(math.prod(shape) > 1 for shape in self._fixed)

    @property
    def _made(self) -> list[tuple[int, ...]]:
        return [value.shape for call in self.recorder.calls for value in call.outputs or ()]

    @property
    def seems_squared(self) -> bool:
        """Whether a result has two sizes that the batch divides; one may do so by accident (96 pixels and a border)."""
        return any(counts(shape, self.batch) > 1 for shape in self._made)

    def is_proportional(self, other: Run) -> bool:
        """Whether such results are in proportion to the batch, compared with a run of another one."""
        pairs = zip(self._made, other._made, strict=True)
        return all(
            math.prod(ours) * other.batch == math.prod(theirs) * self.batch
            for ours, theirs in pairs
            if counts(ours, self.batch) > 1
        )

    def compare(self, other: Run) -> None:
        """Compare with a run of another batch. Errors: ModelError if sizes are not in proportion to the batch."""
        if self._fixed != other._fixed:
            shape = next((one for one in self._fixed if one not in other._fixed), self._fixed[0])
            raise ModelError(
                f"{self.label}: a tensor has the shape {'x'.join(map(str, shape))} at batch {self.batch}, which does "
                "not grow with the batch in proportion; networks whose sizes depend on the data cannot be followed"
            )


def _call(module: nn.Module, made: Inputs, loss: Callable[..., Any] | None) -> Any:
    """Return a network's result, or the loss of it; nothing here refers to the result then."""
    if loss is None:
        return run_network(module, *made.args, **made.kwargs)
    result = run_network(module, *made.args, **made.kwargs)
    return loss(result) if made.targets is None else loss(result, made.targets)
