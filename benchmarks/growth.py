"""How cost grows: with the layers of a network, to 10,000; with the batch; with how many depths and batches are priced.

    python benchmarks/growth.py --date 2026-11-20 --machine '2-core x86-64 virtual machine'

The networks are chains of inverted residual blocks (torchvision's, nine layers each) at 32 x 32, on the meta device, on
one thread; medians of the rounds. The exponent is the slope of a line through the logarithms of layers and seconds:
1 is linear growth. Writes benchmarks/results/growth.md; exit code 1 if an exponent is above the limit, or if batch
1024 takes longer than batch 1 by more than a quarter.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual

from costmodel import LayerGraph, block_count, footprint, price, trace
from costmodel.kept import answers_of

BLOCKS = (12, 34, 111, 333, 1111)
RESOLUTION, CHANNELS, CLASSES = 32, 8, 10
MOST_EXPONENT, MOST_OF_BATCH_ONE = 1.1, 1.25
LARGE = 1024
DEPTHS, BATCHES = (1, 5, 17), (1, 16, 256)
TRACE, FIRST, AGAIN, OTHER, LINES = (
    "trace", "first footprint (full)", "further footprint (full)", "footprint of another method (mobiletl, half)",
    "price (mobiletl, half), first",
)  # fmt: skip
AT_ONE, AT_LARGE = "footprint (mobiletl, half), batch 1", f"footprint (mobiletl, half), batch {LARGE}"


def chain(blocks: int) -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, 2, 1),
            *(InvertedResidual(CHANNELS, CHANNELS, 1, 6) for _ in range(blocks)),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES),
        )  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    gc.collect()  # so that what was made before is not collected here
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def questions(graph: LayerGraph, way: tuple[str, int]) -> dict[str, Callable[[], object]]:
    """Return what is asked of a graph, in this order."""
    return {
        FIRST: lambda: footprint(graph, "full").peak_bytes,
        AGAIN: lambda: footprint(graph, "full", batch=16).peak_bytes,
        OTHER: lambda: footprint(graph, *way).peak_bytes,
        AT_ONE: lambda: footprint(graph, *way, batch=1).peak_bytes,
        AT_LARGE: lambda: footprint(graph, *way, batch=LARGE).peak_bytes,
        LINES: lambda: price(graph, [way], [8]),
    }


def costs(blocks: int, rounds: int) -> tuple[int, dict[str, float]]:
    """Return the layers of a chain, and the median seconds of its trace and of each question."""
    network, way = chain(blocks), ("mobiletl", blocks // 2)
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        graphs: list[LayerGraph] = []
        times = {TRACE: seconds(lambda graphs=graphs: graphs.append(trace(network, RESOLUTION)))}
        (graph,) = graphs
        assert block_count(graph) == blocks
        answers_of(graph).clear()
        found.append(times | {name: seconds(call) for name, call in questions(graph, way).items()})
    return len(graph.layers), {name: statistics.median(each[name] for each in found) for name in found[0]}


def exponent(layers: list[int], times: list[float]) -> float:
    return float(np.polyfit(np.log(layers), np.log(times), 1)[0])


def bulk(rounds: int) -> dict[tuple[int, int], tuple[float, float]]:
    """Return the seconds of pricing so many depths at so many batches of MobileNetV2, first and again."""
    graph, found = trace("torchvision:mobilenet_v2"), {}
    footprint(graph, "full")
    before = dict(answers_of(graph))
    for depths in DEPTHS:
        for batches in BATCHES:
            ways, pairs = [("mobiletl", k) for k in range(1, depths + 1)], range(1, batches + 1)
            first, again = [], []
            for _ in range(rounds):
                answers_of(graph).clear()
                answers_of(graph).update(before)
                first.append(seconds(lambda ways=ways, pairs=pairs: price(graph, ways, pairs)))
                again.append(seconds(lambda ways=ways, pairs=pairs: price(graph, ways, pairs)))
            found[depths, batches] = statistics.median(first), statistics.median(again)
    return found


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True, help="the day of the run")
    parser.add_argument("--machine", required=True, help="such as '2-core x86-64 virtual machine'")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    costs(BLOCKS[0], 1)  # imports
    layers, rows = zip(*(costs(blocks, given.rounds) for blocks in BLOCKS), strict=True)
    exponents = {name: exponent(list(layers), [row[name] for row in rows]) for name in rows[0]}
    large = statistics.median(row[AT_LARGE] / row[AT_ONE] for row in rows)
    lines = [
        "# How cost grows",
        "",
        f"{given.date}; torch {torch.__version__}; {given.machine}, one thread; ms, medians of {given.rounds}. Written "
        "by `python benchmarks/growth.py`.",
        "",
        f"| layers | {' | '.join(f'{count:,}' for count in layers)} | exponent |",
        "|---|" + "---|" * (len(layers) + 1),
        *(
            f"| {name} | {' | '.join(f'{1e3 * row[name]:.1f}' for row in rows)} | {exponents[name]:.2f} |"
            for name in rows[0]
        ),
        "",
        f"Exponent 1 is linear growth; small networks have a fixed cost beside. Batch {LARGE} takes {large:.2f} times "
        "what batch 1 takes (median over the networks).",
        "",
        "MobileNetV2, `price` of mobiletl: ms, first (each depth's closed form is worked out) and again. A depth is a "
        "network of its own to train, so the first time grows with the number of depths; batches cost next to nothing.",
        "",
        f"| depths | {' | '.join(f'batches: {count}, first | again' for count in BATCHES)} |",
        "|---|" + "---|" * (2 * len(BATCHES)),
    ]
    found = bulk(given.rounds)
    for depths in DEPTHS:
        cells = (f"{1e3 * value:.2f}" for batches in BATCHES for value in found[depths, batches])
        lines.append(f"| {depths} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "growth.md").write_text(text)
    sys.exit(max(exponents.values()) > MOST_EXPONENT or large > MOST_OF_BATCH_ONE)


if __name__ == "__main__":
    main()
