"""What a trained network comes with, as a small JSON file: classes, preprocessing, accuracy, memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

WEIGHTS, TRAINED = "weights.safetensors", "trained.json"  # the files of a trained network
Count = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
Channels = Annotated[list[Finite], Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Epoch(_Part):
    """An epoch: its mean training loss, and loss and accuracy on the held-out images.

    train_percent: of the training images, as they were augmented, classified right in passing.
    """

    number: int
    train_loss: Finite
    train_percent: Percent
    test_loss: Finite
    accuracy_percent: Percent


class StepMemory(_Part):
    """The peak of one training step in bytes.

    planned: what the plan promises. predicted: with the working memory of this machine's kernels, by the books that the
    training keeps. measured: by PyTorch's profiler, on the second step. agrees: whether the last two do.
    """

    planned_bytes: Count
    predicted_bytes: Count
    measured_bytes: Count
    agrees: bool


class Preprocessing(_Part):
    """How an image becomes the network's input: see `planner.campaign.decoding`, then (x / 255 - mean) / deviation."""

    square: Literal["middle"] = "middle"
    resolution: Annotated[int, Field(ge=1, le=4096)]
    interpolation: Literal["bilinear"] = "bilinear"
    mean: Channels
    deviation: Channels


class Trained(_Part):
    """A trained network, or the best so far of one that is being trained.

    is_plain: whether the state dict is that of the network as its library builds it, and that network alone computes
    the same; if not, `Plan.apply` has to come first. best: the epoch whose weights are kept. ended: why the training
    ended; None while it goes on. process_bytes: the most memory that the process held, as the system counts it.
    """

    version: Literal[1] = 1
    model: str
    weights: str
    is_plain: bool
    classes: Annotated[list[str], Field(min_length=2)]
    preprocessing: Preprocessing
    train_images: Count
    test_images: Count
    best: Epoch
    history: list[Epoch]
    memory: StepMemory | None
    process_bytes: Count | None
    ended: str | None = None

    @property
    def accuracy_percent(self) -> float:
        """The accuracy on the held-out images, of the epoch whose weights are kept."""
        return self.best.accuracy_percent
