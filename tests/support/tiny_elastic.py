"""A super-network small enough to train in a test: two elastic stages of 8 channels."""

from __future__ import annotations

from costmodel.graph.elastic import Design, Stage
from costmodel.zoo.once_for_all import SuperNetwork

DESIGN = Design(
    8,
    8,
    "relu6",
    "relu6",
    (Stage(8, 2), Stage(16, 1), Stage(16, 1, most_blocks=1)),
    ((16, "relu6", True, False),),
    1e-5,
)


def make(num_classes: int = 3) -> SuperNetwork:
    """Return the super-network, untrained."""
    return SuperNetwork(DESIGN, num_classes)
