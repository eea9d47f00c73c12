"""What an estimate of the accuracy is, and what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .runs import Measured

Kind = Literal["definition", "measured", "interpolated", "prior", "unknown"]


@dataclass(frozen=True)
class Setting:
    """What of a network and its training the accuracy may depend on.

    `model` as in `LayerGraph.model`, such as 'zoo:proxylessnas_mobile'; `resolution` and `batch` None where a source
    does not state them; `block_count` 0 where it has no blocks. `converted`: the method puts other operations into the
    network than it was pre-trained with.
    """

    model: str
    resolution: int | None = 224
    batch: int | None = 8
    block_count: int = 0
    has_norm: bool = True
    converted: bool = False

    @property
    def name(self) -> str:
        """The network's name without its library."""
        return self.model.rpartition(":")[2]


@dataclass(frozen=True)
class Estimate:
    """An expected recovery, and the accuracy if there are measurements of the user's own to tell it from.

    `value`, `low` and `high` are None if `kind` is 'unknown'. `source`: where the numbers come from. `rests_on`: in a
    sentence, what leads from there to this value. `interval`: what low and high mean. The `accuracy_` fields say the
    same of the top-1 accuracy on the user's data set, in percent. `runs`: the user's own runs of this very method and
    depth, which say more than an interval of how it compares with another.
    """

    value: float | None
    low: float | None
    high: float | None
    kind: Kind
    source: str
    rests_on: str
    interval: str
    accuracy_percent: float | None = None
    accuracy_low_percent: float | None = None
    accuracy_high_percent: float | None = None
    accuracy_kind: Kind = "unknown"
    accuracy_rests_on: str = "no accuracy on your data was given"
    accuracy_interval: str = "none"
    runs: Measured | None = field(default=None, repr=False, compare=False)

    @classmethod
    def reported(cls) -> tuple[str, ...]:
        """Return the names of the fields that are plain values."""
        return tuple(field.name for field in fields(cls) if field.name != "runs")

    def to_dict(self) -> dict:
        """Return the plain values by name."""
        return {name: getattr(self, name) for name in self.reported()}
