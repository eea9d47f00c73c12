"""What the verify_*.py scripts share: configurations, networks built by their own library, rows written as they go."""

from __future__ import annotations

import argparse
import csv
import inspect
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from costmodel import LayerGraph, block_count
from costmodel.zoo.table import ZOO

RESULTS = Path(__file__).parent / "results"
DEPTHS = (1, 3, 5)

# The project's twelve inverted-residual networks.
TWELVE = (
    "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0", "torchvision:mnasnet1_0", "timm:mobilenetv2_050", "timm:mobilenetv3_small_050",
    "timm:efficientnet_lite0", "timm:fbnetc_100", "timm:tinynet_e", "timm:mobilenetv4_conv_small",
    "zoo:proxylessnas_mobile",
)  # fmt: skip


def settings(graph: LayerGraph) -> Iterator[tuple[str, int | None]]:
    """Yield the methods and depths to verify: full, last, norm, bias, and blocks 1, 3, 5 if there are as many."""
    yield from ((name, None) for name in ("full", "last", "norm", "bias"))
    yield from (("blocks", depth) for depth in DEPTHS if depth <= block_count(graph))


def build(name: str, device: str = "cpu") -> nn.Module:
    """Return a network as its own library builds it; on a CPU without drawing its weights, which costs minutes.

    Every weight is 0.01 then, every buffer 0 (a running variance 1): bytes and FLOPs depend on no value.
    """
    source, _, model = name.partition(":")
    make = {
        "torchvision": lambda: _torchvision(model),
        "timm": lambda: timm.create_model(model),
        "zoo": lambda: ZOO[model](),
    }[source]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                network = make()
        except NotImplementedError:  # computes its widths with tensors (RegNet)
            network = make().to("meta")
    if device == "meta":
        return network
    network.to_empty(device=device)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
        for path, buffer in network.named_buffers():
            buffer.fill_(1 if path.endswith("running_var") else 0)
    return network


def _torchvision(name: str) -> nn.Module:
    accepted = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    return torchvision.models.get_model(
        name, **{each: None for each in ("weights", "weights_backbone") if each in accepted}
    )


def family_of(name: str) -> str:
    """Return the family of a network: torchvision, or the file of timm that defines it."""
    source, _, model = name.partition(":")
    return f"timm {timm.model_entrypoint(model).__module__.rpartition('.')[2]}" if source == "timm" else source


def versions() -> str:
    """Return what a table was made with."""
    return (
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}; CPU capability {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} thread(s)"
    )


def arguments(description: str) -> argparse.Namespace:
    """Return what the command line of a verify_*.py script gives: date, machine, resume, only."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True, help="the day of the run")
    parser.add_argument("--machine", required=True, help="such as '2-core x86-64 virtual machine'")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there, measure the rest")
    parser.add_argument("--only", default="", help="a regular expression: these models only")
    return parser.parse_args()


class Rows:
    """The rows of a CSV file, written as they come; with `resume` those that are there already are kept."""

    def __init__(self, path: Path, columns: tuple[str, ...], key: tuple[str, ...], resume: bool):
        self.path, self.columns, self.key = path, columns, key
        self.rows: list[dict[str, str]] = []
        path.parent.mkdir(exist_ok=True)
        if resume and path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))
        else:
            with path.open("w", newline="") as file:
                csv.DictWriter(file, columns, lineterminator="\n").writeheader()
        self.known = {self._key(row) for row in self.rows}

    def _key(self, row: dict) -> tuple[str, ...]:
        return tuple("" if row[name] is None else str(row[name]) for name in self.key)

    def __contains__(self, row: dict) -> bool:
        return self._key(row) in self.known

    def add(self, row: dict) -> None:
        """Append a row to the table and to its file."""
        text = {name: "" if row.get(name) is None else str(row[name]) for name in self.columns}
        self.rows.append(text)
        self.known.add(self._key(text))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(text)
