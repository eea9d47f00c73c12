"""Traces every torchvision classification model and timm's models of the convolutional families; counts the failures.

    python benchmarks/trace_zoo.py --date 2026-11-20 --machine '2-core x86-64 virtual machine'

Writes benchmarks/results/trace_zoo.csv (a row per model) and trace_zoo.md (counts, failures and their reasons). A model
*traces* if `trace` gives a graph at 224 x 224 (or, if it accepts only its own resolution, at that one) in which every
parameter of the network stands, counted on a network that its library built by itself. It is *priced* if
`footprint(graph, "full")` answers; otherwise the operation without a rule is named.
"""

from __future__ import annotations

import argparse
import csv
import gc
import re
import statistics
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import timm
import torch
import torchvision

from costmodel import CostModelError, UnknownOperationError, block_count, footprint
from costmodel.tracing.tracer import trace

FAMILIES = (
    "mobilenetv4", "mobilenet", "efficientnet", "mnasnet", "fbnet", "ghostnet", "lcnet", "tinynet", "mixnet",
    "hardcorenas", "resnet", "regnet", "convnext",
)  # fmt: skip
RESOLUTION = 224
RESULTS = Path(__file__).parent / "results"
COLUMNS = ("model", "family", "traces", "resolution", "layers", "parameters", "blocks", "priced", "reason", "notes")


def names() -> list[tuple[str, str]]:
    """Return (model, family) of everything that is in scope; timm's families by what the name contains."""
    found = [
        (f"torchvision:{name}", "torchvision") for name in torchvision.models.list_models(module=torchvision.models)
    ]
    for name in timm.list_models():
        family = next((family for family in FAMILIES if family in name), None)
        if family:
            found.append((f"timm:{name}", f"timm {family}"))
    return found


def own_resolution(model: str) -> int:
    """Return the resolution that the model's library states for it."""
    source, _, name = model.partition(":")
    if source == "timm":
        config = timm.get_pretrained_cfg(name)
        return config.input_size[-1] if config else RESOLUTION
    return torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]


def parameters(model: str) -> int:
    """Return the parameters of the network that its library builds, without the cost model's help."""
    source, _, name = model.partition(":")
    make = timm.create_model if source == "timm" else torchvision.models.get_model
    try:
        with torch.device("meta"):
            network = make(name)
    except Exception:  # draws random numbers or computes with tensors while it is built
        network = make(name)
    return sum(parameter.numel() for parameter in network.parameters())


def examine(model: str, family: str) -> tuple[dict, float]:
    """Return the row of one model, and the seconds that tracing it took."""
    row = dict.fromkeys(COLUMNS, "") | {"model": model, "family": family, "traces": "no", "priced": "no"}
    for resolution in dict.fromkeys((RESOLUTION, own_resolution(model))):
        start = time.perf_counter()
        try:
            graph = trace(model, resolution)
        except CostModelError as error:
            row["reason"] = row["reason"] or str(error)
            continue
        except Exception as error:  # a defect of the tracer: the table shall say so
            row["reason"] = row["reason"] or f"unexpected {type(error).__name__}: {error}"
            continue
        seconds = time.perf_counter() - start
        row |= {
            "resolution": resolution, "layers": len(graph.layers), "parameters": graph.parameter_count,
            "notes": "; ".join(graph.notes),
        }  # fmt: skip
        expected = parameters(model)
        if graph.parameter_count != expected:
            row["reason"] = f"{graph.parameter_count} parameters traced, but the network has {expected}"
            return row, seconds
        row |= {"traces": "yes", "reason": ""}
        try:
            footprint(graph, "full")
            row["priced"] = "yes"
        except UnknownOperationError as error:
            row["reason"] = re.sub(r" of \S+\), so its cost.*", ")", str(error))
        row["blocks"] = block_count(graph)
        return row, seconds
    return row, float("nan")


def report(rows: list[dict], seconds: list[float], date: str, machine: str) -> str:
    """Return the Markdown table."""
    lines = [
        "# Which networks trace, and which are priced",
        "",
        f"{date}; torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}; "
        f"{machine}. Written by `python benchmarks/trace_zoo.py`; a row per model stands in `trace_zoo.csv`.",
        "",
        "A timm model belongs to the first family whose name its own contains. *Traced*: a graph at 224 x 224 or the "
        "network's own resolution, with every parameter. *Priced*: every operation has a rule.",
        "",
        "| family | models | traced | priced |",
        "|---|---|---|---|",
    ]
    groups = ["torchvision", *(f"timm {family}" for family in FAMILIES)]
    for group, chosen in [
        *((group, [row for row in rows if row["family"] == group]) for group in groups),
        ("timm, all of these", [row for row in rows if row["family"] != "torchvision"]),
    ]:
        traced, priced = (sum(row[key] == "yes" for row in chosen) for key in ("traces", "priced"))
        share = f" ({100 * traced / len(chosen):.1f} %)" if chosen else ""
        lines.append(f"| {group} | {len(chosen)} | {traced}{share} | {priced} |")
    lines += ["", f"Seconds to trace one (building it included): median {statistics.median(seconds):.2f}, "
                  f"most {max(seconds):.1f}."]  # fmt: skip
    lines += ["", "## Not traced", ""]
    failures = [row for row in rows if row["traces"] == "no"]
    lines += [f"- `{row['model']}`: {row['reason']}" for row in failures] or ["None."]
    lines += ["", "## Traced, but with an operation that has no rule yet", ""]
    unpriced: dict[str, list[str]] = {}
    for row in rows:
        if row["traces"] == "yes" and row["priced"] == "no":
            operation = re.search(r"operation '([^']+)'", row["reason"])
            unpriced.setdefault(operation[1] if operation else row["reason"], []).append(row["model"])
    lines += [f"- `{name}` ({len(models)}): {', '.join(models)}" for name, models in sorted(unpriced.items())] or [
        "None."
    ]
    lines += ["", "## Followed with a note", ""]
    noted = Counter(row["notes"].split(": ", 1)[-1] for row in rows if row["notes"])
    lines += [f"- {count} models: {note}" for note, count in noted.most_common()] or ["None."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trace everything, write both tables; exit code 1 if less than was promised traces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True, help="the day of the run")
    parser.add_argument("--machine", required=True, help="such as '2-core x86-64 virtual machine'")
    parser.add_argument("--only", default="", help="a regular expression: trace matching models, write nothing")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, seconds = [], []
    for model, family in names():
        if not re.search(given.only, model):
            continue
        row, took = examine(model, family)
        rows.append(row)
        if row["traces"] == "yes":
            seconds.append(took)
        print(f"{model:50} {row['traces']:3} {row['priced']:3} {took:6.2f} s {row['reason']}", flush=True)
        gc.collect()
    if given.only:
        return
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "trace_zoo.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "trace_zoo.md").write_text(report(rows, seconds, given.date, given.machine))
    traced = Counter((row["family"] == "torchvision", row["traces"]) for row in rows)
    ours, theirs = traced[True, "no"], traced[False, "yes"] / (traced[False, "yes"] + traced[False, "no"])
    sys.exit(bool(ours) or theirs < 0.95)


if __name__ == "__main__":
    main()
