"""What MobileTL saves in one block, measured: bytes that one inverted residual block keeps for backward.

    python benchmarks/mobiletl_block.py --date 2026-11-20

Four ways of training the same block, in a network from there to its end, measured with saved-tensor hooks at batch 8
and 224 x 224: stock PyTorch training the block as usual and with MobileTL's trained set; this package's layers for
both. Blocks at expansion 6, stride 1, as many channels out as in. Writes benchmarks/results/mobiletl_block.md.

The paper's 46.3 % and 53.3 % count by its own rule (a vanilla ReLU6 at 2 bits per element).
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from costmodel import apply, footprint, trace
from costmodel.checking.measuring import prepare, saved_bytes_by_module
from costmodel.tracing.models import build

# Network, the block's path, its depth from the output.
BLOCKS = (
    ("torchvision:mobilenet_v2", "features.9", 9, "MobileNetV2, 64 channels, 14 x 14"),
    ("torchvision:mobilenet_v3_large", "features.12", 4, "MobileNetV3-Large, 112 channels, squeeze-excite, 14 x 14"),
)
BATCH, RESOLUTION = 8, 224


def measured(network: torch.nn.Module, path: str) -> int:
    """Return the bytes that the modules below `path` keep."""
    images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    kept = saved_bytes_by_module(network.train(), images)
    return sum(size for module, size in kept.items() if f"{module}.".startswith(f"{path}."))


def rows():
    """Yield (block, way, bytes)."""
    for name, path, depth, label in BLOCKS:
        graph = trace(name, RESOLUTION)
        for way, method, stock in (
            ("stock PyTorch, trained as usual", "blocks", True),
            ("stock PyTorch, MobileTL's trained set", "mobiletl", True),
            ("this package, trained as usual (`blocks`, exact)", "blocks", False),
            ("this package, `mobiletl`", "mobiletl", False),
        ):
            network = build(name)
            plan = footprint(graph, method, depth, BATCH)
            if stock:
                prepare(network, plan.graph, plan.assignment)
            else:
                apply(network, method, depth, RESOLUTION)
            yield label, way, measured(network, path)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--date", required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [
        "# What MobileTL saves in one block, measured",
        "",
        f"{options.date}; torch {torch.__version__}; batch {BATCH}, {RESOLUTION} x {RESOLUTION}, float32. "
        "Written by `python benchmarks/mobiletl_block.py`.",
        "",
        "| block (expansion 6) | way | MiB kept | against stock as usual | against `blocks` here |",
        "|---|---|---|---|---|",
    ]
    found = list(rows())
    for label, way, size in found:
        own = [other for block, _, other in found if block == label]
        against = [f"{(size - base) / base:+.1%}" if size != base else "" for base in (own[0], own[2])]
        lines.append(f"| {label} | {way} | {size / 2**20:.3f} | {against[0]} | {against[1]} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "mobiletl_block.md").write_text(text)


if __name__ == "__main__":
    main()
