"""The elastic super-networks of once-for-all, as designs.

Source: ofa/imagenet_classification/elastic_nn/networks/ofa_proxyless.py and ofa_mbv3.py of mit-han-lab/once-for-all.
"""

from __future__ import annotations

from ..graph.elastic import Design, Stage

PROXYLESS = Design(
    32, 16, "relu6", "relu6",
    (Stage(24, 2), Stage(40, 2), Stage(80, 2), Stage(96, 1), Stage(192, 2), Stage(320, 1, most_blocks=1)),
    ((1280, "relu6", True, False),), 1e-3,
)  # fmt: skip
MOBILENET_V3 = Design(
    16, 16, "h_swish", "relu",
    (
        Stage(24, 2, "relu"), Stage(40, 2, "relu", True), Stage(80, 2, "h_swish"), Stage(112, 1, "h_swish", True),
        Stage(160, 2, "h_swish", True),
    ),
    ((960, "h_swish", True, False), (1280, "h_swish", False, True)), 1e-5,
)  # fmt: skip

# By the names of the zoo.
ELASTIC = {"ofa_proxyless": PROXYLESS, "ofa_mobilenet_v3": MOBILENET_V3}
