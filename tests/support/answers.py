"""Five hundred questions drawn at random, and everything that `footprint` answers to each.

`python tests/support/answers.py` writes answers.csv anew. Do that only where an answer was wrong, and say in the commit
which answers changed and why: the file is there so that a change of the code that should change no answer shows that it
does not.
"""

from __future__ import annotations

import csv
import hashlib
import random
from functools import cache
from pathlib import Path
from typing import Any

from costmodel import (
    ACCOUNTINGS,
    METHODS,
    OPTIMIZERS,
    Footprint,
    InputError,
    LayerGraph,
    block_count,
    footprint,
    trace,
)

FILE = Path(__file__).parent / "answers.csv"
SEED, COUNT = 12, 500
NETWORKS = (
    "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0", "torchvision:mnasnet1_0", "torchvision:resnet18", "torchvision:densenet121",
    "torchvision:regnet_y_400mf", "torchvision:shufflenet_v2_x0_5", "timm:mobilenetv2_050", "timm:fbnetc_100",
    "timm:efficientnet_lite0", "timm:mobilenetv4_conv_small", "timm:ghostnet_050", "timm:mixnet_s", "timm:resnetv2_18",
    "timm:resnetv2_50x1_bit", "timm:nf_resnet26", "timm:test_convnext", "zoo:proxylessnas_mobile",
    "zoo:proxylessnas_mobile_tinytl", "zoo:mcunet_5fps", "zoo:mobilenet_v2_w035",
)  # fmt: skip
OPTIONS = {
    "last-convs": ({}, {"convolutions": 4}),
    "gradient-filter": ({}, {"convolutions": 4, "patch": 4}, {"patch": 1}),
    "sparse-update": ({}, {"layers": 10}),
    "back-razor": ({}, {"dropped": 0.5}, {"dropped": 0.0}),
}
QUESTION = (
    "model", "resolution", "classes", "method", "blocks", "options", "batch", "micro_batch", "optimizer", "accounting",
    "activation_dtype", "frozen_dtype", "inplace_update", "first_step", "kernels",
)  # fmt: skip


@cache
def graph_of(model: str, resolution: int, classes: int | None) -> LayerGraph:
    """Return a network's graph, traced once."""
    return trace(model, resolution, classes)


def ask(case: dict[str, Any]) -> Footprint:
    """Return the footprint that a case asks for."""
    graph = graph_of(case["model"], case["resolution"], case["classes"])
    names = ("optimizer", "accounting", "micro_batch", "activation_dtype", "frozen_dtype", "inplace_update",
             "first_step", "kernels")  # fmt: skip
    return footprint(
        graph, case["method"], case["blocks"], case["batch"], options=case["options"],
        **{name: case[name] for name in names},
    )  # fmt: skip


def digest(value: Any) -> str:
    """Return what tells two plain values apart."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def answer(found: Footprint) -> dict[str, Any]:
    """Return everything that a footprint says, as plain values."""
    flops = {name: count for name, count in found.flops.items() if name != "convention"}
    elementwise = flops.pop("elementwise")
    moments = [(moment.phase, moment.layer, *map(int, moment.by_category)) for moment in found.moments]
    return {
        "saved_bytes": found.saved_bytes,
        **{f"{name}_bytes": size for name, size in found.memory_bytes.items()},
        "peak_phase": found.peak.phase,
        "peak_layer": found.peak.layer,
        **{f"{name}_flops": count for name, count in flops.items()},
        **{f"elementwise_{name}": count for name, count in elementwise.items()},
        "trained_parameters": found.trained_parameters,
        "moved_bytes": found.moved_bytes,
        "moments": digest(moments),
        "tensors": digest(found.to_frame("tensor").to_dict("records")),
    }


def draw(random_: random.Random) -> dict[str, Any]:
    """Return a random question; it may be one that makes no sense."""
    model, method = random_.choice(NETWORKS), random_.choice(list(METHODS))
    batch = random_.choice((1, 2, 3, 4, 6, 8, 16, 33))
    one_pass = random_.random() < 0.75
    pieces = [size for size in range(1, batch + 1) if batch % size == 0]
    case = {
        "model": model,
        "resolution": random_.choice((128, 160, 224, 224)),
        "classes": random_.choice((None, None, 10, 102)),
        "method": method,
        "blocks": None,
        "options": random_.choice(OPTIONS.get(method, ({},))),
        "batch": batch,
        "micro_batch": None if one_pass else random_.choice(pieces),
        "optimizer": random_.choice(list(OPTIMIZERS)),
        "accounting": random_.choice(("lean", "lean", "eager", "eager", *ACCOUNTINGS)),
        "activation_dtype": random_.choice(("float32", "float32", "float32", "float16", "bfloat16")),
        "frozen_dtype": random_.choice(("float32", "float32", "float16", "int8")),
        "inplace_update": one_pass and random_.random() < 0.25,
        "first_step": random_.random() < 0.2,
        "kernels": random_.choice((None, None, None, "none", "onednn", "layers")),
    }
    if METHODS[method].takes_blocks:
        count = block_count(graph_of(model, case["resolution"], case["classes"]))
        case["blocks"] = random_.randint(1, max(1, count))
    return case


def read() -> list[dict[str, str]]:
    """Return the rows of answers.csv."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def question(row: dict[str, str]) -> dict[str, Any]:
    """Return the question of a row."""
    integers = {"resolution", "classes", "blocks", "batch", "micro_batch"}
    case: dict[str, Any] = {}
    for name in QUESTION:
        text = row[name]
        if name == "options":
            case[name] = dict(pair.split("=") for pair in text.split())
        elif name in integers:
            case[name] = int(text) if text else None
        elif name in ("inplace_update", "first_step"):
            case[name] = text == "True"
        else:
            case[name] = text or None
    return case


def write() -> None:
    """Draw the questions and write them with their answers."""
    random_, rows, asked = random.Random(SEED), [], set()
    while len(rows) < COUNT:
        case = draw(random_)
        if repr(case) in asked:
            continue
        asked.add(repr(case))
        try:
            found = answer(ask(case))
        except InputError:  # a method that this network has no blocks for
            continue
        options = " ".join(f"{name}={value}" for name, value in case["options"].items())
        rows.append({**case, "options": options, **found})
    with FILE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    write()
