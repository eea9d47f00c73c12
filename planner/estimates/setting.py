"""What of a network and its training the accuracy may depend on."""

from __future__ import annotations

from dataclasses import dataclass


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
