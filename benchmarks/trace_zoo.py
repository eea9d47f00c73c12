"""Traces every model of torchvision and of timm, and prices it; counts the failures and names them.

    python benchmarks/trace_zoo.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' [--resume] [--only REGEX]

Writes benchmarks/results/trace_zoo.csv (a row per model, as they come; --resume skips those that are there) and
trace_zoo.md (counts, failures and their reasons). A model *traces* if `trace` gives a graph at 224 x 224 (or, if it
accepts only its own resolution, at that one) in which every parameter of the network stands, counted on a network that
its library built by itself. It is *priced* if `footprint(graph, "full")` answers; otherwise the operation is named that
has no rule and could not be learned. `learned` names the operations that were.
"""

from __future__ import annotations

import gc
import inspect
import random
import re
import statistics
import sys
import time
import warnings
from collections import Counter

import timm
import torch
import torchvision
from verifying import RESULTS, Rows, arguments, family_of, versions

from costmodel import CostModelError, UnknownOperationError, block_count, footprint
from costmodel.tracing.tracer import trace

RESOLUTION = 224
COLUMNS = (
    "model", "family", "traces", "resolution", "layers", "parameters", "blocks", "priced", "learned", "reason", "notes",
    "seconds",
)  # fmt: skip
DETECTORS = {"ssd300_vgg16": 300}  # made for this size alone; a detector's transforms do not say it
GOAL = 0.97  # of timm's models that can be built


def names() -> list[str]:
    """Return everything that the libraries list, timm's in an order drawn once: a run cut short is a fair sample."""
    found = [f"timm:{name}" for name in timm.list_models()]
    random.Random(0).shuffle(found)
    return [f"torchvision:{name}" for name in torchvision.models.list_models()] + found


def own_resolution(model: str) -> int:
    """Return the resolution that the model's library states for it."""
    source, _, name = model.partition(":")
    if source == "timm":
        config = timm.get_pretrained_cfg(name)
        return config.input_size[-1] if config else RESOLUTION
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return getattr(transforms, "crop_size", [DETECTORS.get(name, RESOLUTION)])[0]


def parameters(model: str) -> int:
    """Return the parameters of the network that its library builds, without the cost model's help."""
    source, _, name = model.partition(":")
    options = {}
    if source == "torchvision":
        accepted = inspect.signature(torchvision.models.get_model_builder(name)).parameters
        options = {each: None for each in ("weights", "weights_backbone") if each in accepted}
    make = timm.create_model if source == "timm" else torchvision.models.get_model
    try:
        with torch.device("meta"):
            network = make(name, **options)
    except Exception:  # draws random numbers or computes with tensors while it is built
        network = make(name, **options)
    return sum(parameter.numel() for parameter in network.parameters())


def examine(model: str) -> dict:
    """Return the row of one model."""
    row = {"model": model, "family": family_of(model), "traces": "no", "priced": "no", "reason": ""}
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
        row |= {
            "resolution": resolution, "layers": len(graph.layers), "parameters": graph.parameter_count,
            "learned": " ".join(sorted({layer.op for layer in graph.layers if layer.learned})),
            "notes": "; ".join(graph.notes), "seconds": f"{time.perf_counter() - start:.2f}",
        }  # fmt: skip
        expected = parameters(model)
        if graph.parameter_count != expected:
            return row | {"reason": f"{graph.parameter_count} parameters traced, but the network has {expected}"}
        row |= {"traces": "yes", "reason": "", "blocks": block_count(graph)}
        try:
            footprint(graph, "full")
            row["priced"] = "yes"
        except UnknownOperationError as error:
            row["reason"] = re.sub(r" of \S+\), (and|so).*", ")", str(error))
        return row
    return row


def _named(rows: list[dict[str, str]]) -> list[str]:
    """Return the models of rows by their reason, as a list."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(row["reason"].replace(row["model"], "it"), []).append(f"`{row['model']}`")
    found = [f"- {', '.join(models)} ({len(models)}): {reason}" for reason, models in by_reason.items()]
    return sorted(found) or ["None."]


def report(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the Markdown table."""
    lines = [
        "# Which networks trace, and which are priced",
        "",
        f"{date}; {versions()}; {machine}. Written by `python benchmarks/trace_zoo.py`; a row per model stands in "
        "`trace_zoo.csv`.",
        "",
        "A timm model belongs to the file of timm that defines it. *Traced*: a graph at 224 x 224 or the network's own "
        "resolution, with every parameter. *Priced*: every operation has a rule, or was learned.",
        "",
        "| family | models | traced | priced |",
        "|---|---|---|---|",
    ]
    families = dict.fromkeys(row["family"] for row in rows)
    for group, chosen in [
        *((family, [row for row in rows if row["family"] == family]) for family in families),
        ("timm, all of these", [row for row in rows if row["model"].startswith("timm:")]),
    ]:
        traced, priced = (sum(row[key] == "yes" for row in chosen) for key in ("traces", "priced"))
        share = f" ({100 * priced / len(chosen):.1f} %)" if chosen else ""
        lines.append(f"| {group} | {len(chosen)} | {traced} | {priced}{share} |")
    seconds = [float(row["seconds"]) for row in rows if row["seconds"]]
    lines += ["", f"Seconds to trace one (building it included): median {statistics.median(seconds):.2f}, "
                  f"most {max(seconds):.1f}."]  # fmt: skip
    lines += ["", "## Not traced", "", *_named([row for row in rows if row["traces"] == "no"])]
    unpriced = [row for row in rows if row["traces"] == "yes" and row["priced"] == "no"]
    lines += ["", "## Traced, but with an operation whose cost is not known", "", *_named(unpriced)]
    lines += ["", "## Operations without a rule, which were learned", ""]
    learned = Counter(op for row in rows for op in row["learned"].split())
    lines += [f"- `{op}`: {count} models" for op, count in learned.most_common()] or ["None."]
    lines += ["", "## Followed with a note", ""]
    noted = Counter(row["notes"].split(": ", 1)[-1] for row in rows if row["notes"])
    lines += [f"- {count} models: {note}" for note, count in noted.most_common()] or ["None."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trace everything, write both tables; exit code 1 if less than the goal is priced."""
    given = arguments(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = Rows(RESULTS / "trace_zoo.csv", COLUMNS, ("model",), given.resume)
    for model in names():
        if {"model": model} in rows or not re.search(given.only, model):
            continue
        row = examine(model)
        rows.add(row)
        print(f"{model:50} {row['traces']:3} {row['priced']:3} {row.get('seconds', '')} {row['reason']}", flush=True)
        gc.collect()
    (RESULTS / "trace_zoo.md").write_text(report(rows.rows, given.date, given.machine))
    priced = [row["priced"] == "yes" for row in rows.rows if row["model"].startswith("timm:")]
    sys.exit(sum(priced) < GOAL * len(priced))


if __name__ == "__main__":
    main()
