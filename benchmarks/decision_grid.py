"""Every method at every depth fine-tuned on `tasks.glyphs_to_digits`: what decisions are replayed on.

    OMP_NUM_THREADS=1 python benchmarks/decision_grid.py

A run that is there already is not done again, so that a rerun goes on where it was stopped. Writes
`results/decision_quality_runs.csv`, one line per run with its memory predicted and measured, and from it the evidence
`results/decision_quality_grid.csv`.

Every run: 20 epochs of Adam, batch 8. The learning rate is that of four which, with other seeds, gave the best mean
accuracy on 200 further labelled images of the first half of the data, for each network, method and depth.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from tasks import NETWORKS, RESOLUTION, digits, glyphs_to_digits

from costmodel import LayerGraph, Way, block_count, trace, way
from planner.campaign.fine_tuning import Recipe, fine_tune
from planner.evidence.rows import COLUMNS, pack

RESULTS = Path(__file__).parent / "results"
RUNS, GRID = RESULTS / "decision_quality_runs.csv", RESULTS / "decision_quality_grid.csv"

DEPTHS = (1, 2, 3, 5, 8, None)  # None: all blocks
WITHOUT_DEPTH = ("full", "last", "norm", "bias", "tinytl-b", "tinytl-l", "tinytl-lb")
ON_GROUP_NORM = ("last", "bias", "tinytl-l", "tinytl-lb")  # where bias is what tinytl-b is
SEEDS, EPOCHS, BATCH, OPTIMIZER = (0, 1, 2), 20, 8, "adam"
RATES, RATE_SEEDS, RATE_IMAGES = (0.0003, 0.001, 0.003, 0.01), (100, 101), range(20, 40)


@dataclass(frozen=True)
class Line:
    """One run. purpose: 'grid', or 'rate' for those that choose the learning rate."""

    purpose: str
    network: str
    images_per_class: int
    method: str
    blocks: int | None
    seed: int
    learning_rate: float
    accuracy_percent: float
    test_images: int
    steps: int
    seconds: float
    saved_bytes: int
    measured_saved_bytes: int
    above_start_bytes: int
    measured_above_start_bytes: int
    agrees: bool
    correct: str  # as `planner.evidence.pack` writes it

    @property
    def key(self) -> tuple:
        """What is run once."""
        rate = self.learning_rate if self.purpose == "rate" else None
        return self.purpose, self.network, self.images_per_class, self.method, self.blocks, self.seed, rate


@cache
def graph_of(network: str) -> LayerGraph:
    return replace(trace(NETWORKS[network](10), RESOLUTION), model=f"tasks:{network}_0.35")


def ways(network: str) -> list[Way]:
    """Return the ways of a network's grid.

    TinyTL's own on the network that is pre-trained as it asks for.
    """
    if "group_norm" in network:
        return [way(method) for method in ON_GROUP_NORM]
    count = block_count(graph_of(network))
    depths = [count if depth is None else depth for depth in DEPTHS]
    found = [way(method) for method in WITHOUT_DEPTH if "v3" not in network or not method.startswith("tinytl")]
    return found + [way(method, k) for method in ("blocks", "mobiletl") for k in depths]


def read_lines() -> list[Line]:
    if not RUNS.exists():
        return []
    kinds = {"blocks": lambda text: int(text) if text else None, "agrees": lambda text: text == "True"}
    kinds |= {name: int for name in ("images_per_class", "seed", "test_images", "steps")}
    kinds |= {field.name: int for field in fields(Line) if field.name.endswith("_bytes")}
    kinds |= {name: float for name in ("learning_rate", "accuracy_percent", "seconds")}
    with RUNS.open() as file:
        return [
            Line(**{name: kinds.get(name, str)(text) for name, text in row.items()}) for row in csv.DictReader(file)
        ]


def write_line(line: Line) -> None:
    new = not RUNS.exists()
    with RUNS.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(line))


def run(
    purpose: str, network: str, images_per_class: int, method: str, blocks: int | None, seed: int, rate: float
) -> Line:
    task = glyphs_to_digits(network, images_per_class, seed, progress=print)
    test = task.test if purpose == "grid" else further_images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TinyTL on a network of batch norm: that is what is measured
        found = fine_tune(
            task.model, task.train, test, way(method, blocks), Recipe(EPOCHS, rate, BATCH, RESOLUTION, OPTIMIZER),
            seed=seed, evaluate_every=EPOCHS,
        )  # fmt: skip
    memory = found.memory
    assert memory is not None  # checked with every run
    return Line(
        purpose, network, images_per_class, method, blocks, seed, rate, round(found.accuracy_percent, 3),
        found.test_images, found.steps, round(found.seconds, 1), memory.saved_bytes, memory.measured_saved_bytes,
        memory.above_start_bytes, memory.measured_above_start_bytes, memory.agrees,
        pack(found.correct),
    )  # fmt: skip


def further_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return labelled digits of the first half that no run trains on (they come after the first 20 of each class)."""
    images, labels = digits()
    half = labels[: len(labels) // 2]
    chosen = torch.cat([torch.nonzero(half == digit).flatten()[list(RATE_IMAGES)] for digit in range(10)])
    return images[chosen], labels[chosen]


def grid(networks: Sequence[str], images_per_class: int) -> None:
    lines = read_lines()
    done = {line.key for line in lines}

    def once(*what) -> None:
        if (*what[:-1], what[-1] if what[0] == "rate" else None) in done:
            return
        line = run(*what)
        write_line(line)
        lines.append(line)
        done.add(line.key)
        print(
            f"{line.network} {line.method} {line.blocks} seed {line.seed} rate {line.learning_rate}: "
            f"{line.accuracy_percent:.1f} % in {line.seconds} s, memory agrees: {line.agrees}",
            flush=True,
        )

    for network in networks:
        for one, rate, seed in itertools.product(ways(network), RATES, RATE_SEEDS):
            once("rate", network, images_per_class, one.method, one.blocks, seed, rate)
        for seed, one in itertools.product(SEEDS, ways(network)):
            rate = best_rate(lines, network, images_per_class, one.method, one.blocks)
            once("grid", network, images_per_class, one.method, one.blocks, seed, rate)
    write_evidence(read_lines())


def best_rate(lines: Sequence[Line], network: str, images_per_class: int, method: str, blocks: int | None) -> float:
    """Return the learning rate of the best mean accuracy, of equals the lowest."""
    setting = ("rate", network, images_per_class, method, blocks)
    tried = [one for one in lines if one.key[:5] == setting]

    def mean(rate: float) -> float:
        return statistics.fmean(line.accuracy_percent for line in tried if line.learning_rate == rate)

    return max(RATES, key=lambda rate: (mean(rate), -rate))


def write_evidence(lines: Sequence[Line]) -> None:
    packages = ("torch", "torchvision", "scikit-learn", "matplotlib", "pillow")
    source = f"benchmarks/decision_quality.py grid; {', '.join(f'{name} {version(name)}' for name in packages)}"
    with GRID.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for line in lines:
            if line.purpose == "grid":
                writer.writerow({
                    "model": graph_of(line.network).model, "method": line.method, "trained_blocks": line.blocks,
                    "dataset": f"digits, {line.images_per_class} per class", "top1_percent": line.accuracy_percent,
                    "resolution": RESOLUTION, "batch": BATCH, "seed": line.seed, "test_images": line.test_images,
                    "correct": line.correct,
                    "source": source,
                    "locator": f"{OPTIMIZER}, learning rate {line.learning_rate}, {EPOCHS} epochs, {line.steps} steps",
                    "memory_mb": line.measured_above_start_bytes / 1e6,
                    "memory_convention": "peak above a step's start",
                })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["mobilenet_v2"])
    parser.add_argument("--images-per-class", type=int, default=5)
    options = parser.parse_args()
    grid(options.networks, options.images_per_class)


if __name__ == "__main__":
    main()
