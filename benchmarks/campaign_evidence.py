"""The accuracies of this project's own campaigns as the evidence that comes with the package.

    python benchmarks/campaign_evidence.py
    python -m planner.estimates.fitting

Takes `results/decision_quality_grid.csv` (two small networks, rendered letters to handwritten digits) and
`results/real_weights.csv` (EfficientNet-Lite with ImageNet weights), and writes
`planner/evidence/data/accuracy_campaigns.csv`. TinyTL on a network with batch norm is left out: the network was not
pre-trained for what it computes then.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from decision_grid import GRID
from real_weights import EVIDENCE, TASKS

from costmodel import METHODS, block_count, convolutions, trace
from planner.evidence import load
from planner.evidence.rows import CAMPAIGNS, Row

COLUMNS = (
    "source", "locator", "protocol", "model", "method", "trained_blocks", "depth_of", "options", "images_per_class",
    "resolution", "batch", "optimizer", "epochs", "seed", "dataset", "top1_percent", "test_images",
)  # fmt: skip
BLOCKS = {"mobilenet_v2": 17, "mobilenet_v3_small": 11}  # of the networks of `decision_grid`


def depth_of(row: Row, count: int) -> int | None:
    """Return of how many blocks, or convolutions, a row's depth is; count: the network's blocks."""
    method = METHODS[row.method]
    if method.depth_option:
        return len(convolutions(trace(row.model, row.resolution or 224)))
    return count if method.takes_blocks else None


def digits() -> Iterator[dict]:
    for row in load(GRID):
        if row.method.startswith("tinytl") and "group_norm" not in row.model:
            continue
        count = next(count for name, count in BLOCKS.items() if name in row.model)
        yield entry(row, depth_of(row, count), "letters to digits", 20)


def real() -> Iterator[dict]:
    for row in load(EVIDENCE):
        task = next(
            task for task in TASKS.values() if (f"timm:{task.network}", task.dataset) == (row.model, row.dataset)
        )
        count = block_count(trace(row.model, row.resolution or 224))
        yield entry(row, depth_of(row, count), "ImageNet weights, Adam, batch 8", task.epochs)


def entry(row: Row, depth: int | None, protocol: str, epochs: int) -> dict:
    """Return a row of the package's table."""
    per_class = int(re.search(r"(\d+) per class", row.dataset)[1])
    more = {"depth_of": depth, "protocol": protocol, "images_per_class": per_class, "optimizer": "adam",
            "epochs": epochs}  # fmt: skip
    return {name: value for name, value in (row.model_dump() | more).items() if name in COLUMNS}


def main() -> None:
    with Path(str(CAMPAIGNS)).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*digits(), *real()])


if __name__ == "__main__":
    main()
