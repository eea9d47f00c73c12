"""Saved bytes, FLOPs and peak that `eager` predicts, next to those of a real step, for one network of every family.

    python benchmarks/verify_families.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' [--resume]

The smallest network of every family of timm (a file of it) and every model of torchvision that trace_zoo.csv has as
priced, smallest first, at the lowest resolution that it accepts, by full, last, norm, bias, blocks 2 and two random
sets of parameters, at batch 2 and 3, in train mode. Saved bytes: one forward pass on this CPU under saved-tensor hooks.
FLOPs: PyTorch's counter (corrected for grouped convolutions) over the same pass and its backward. Peak: the profiler's
memory events of a step of plain SGD, above what is there when it begins.

No difference of bytes and FLOPs is allowed; goal for the peak: within 0.5 % in 95 % of the rows. Writes
benchmarks/results/verify_families.csv (a row per configuration, as they come; --resume skips those that are there) and
verify_families.md. Exit code 1 if a goal is missed. Takes hours on one core.
"""

from __future__ import annotations

import csv
import gc
import random
import re
import sys
import time
import warnings
from collections.abc import Iterator

import timm
import torch
from verifying import RESULTS, Rows, arguments, build, family_of, versions

from costmodel import CostModelError, Kernels, LayerGraph, block_count, footprint
from costmodel.checking.measuring import counted_step, loss_of, peak_bytes, prepare, result_of
from costmodel.tracing.inputs import Inputs
from costmodel.tracing.tracer import trace

RESOLUTIONS = (64, 96, 128, 160, 192, 224, 256, 299)
BATCHES = (2, 3)
PEAK_GOAL, SHARE_GOAL = 0.005, 0.95
SHARE_TRAINED = 0.3  # of the parameters, in a random set
EXPLAINED = (
    "To compute the gradient of a strided 1x1 convolution's input oneDNN lays the weight out in blocks of 64 input "
    "channels or of 48, and pads it (1,024 channels of ResNeXt-50 become 1,056): which, a search over its own cost "
    "model decides, which is not modelled. Of an LSTM's workspace in forward no rule is known; of the other rows the "
    "cause is not known."
)
COLUMNS = (
    "model", "resolution", "setting", "batch", "predicted_bytes", "measured_bytes", "difference_bytes",
    "predicted_flops", "counted_flops", "predicted_peak", "measured_peak", "peak_percent", "phase", "layer", "learned",
    "note",
)  # fmt: skip


def names() -> list[str]:
    """Return the smallest priced network of each family of timm and all of torchvision's, smallest first."""
    with (RESULTS / "trace_zoo.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["priced"] == "yes"]
    rows.sort(key=lambda row: int(row["parameters"]))
    smallest: dict[str, str] = {}
    for row in rows:
        model = row["model"]
        smallest.setdefault(model if model.startswith("torchvision:") else family_of(model), model)
    return [*smallest.values()]


def own_resolution(model: str) -> int:
    """Return the resolution that timm states for a network."""
    source, _, name = model.partition(":")
    config = timm.get_pretrained_cfg(name) if source == "timm" else None
    return config.input_size[-1] if config else 256


def smallest(model: str) -> tuple[LayerGraph, torch.nn.Module]:
    """Return the trace at the lowest resolution at which the network trains, and the network."""
    network = build(model)
    for resolution in dict.fromkeys((*RESOLUTIONS, own_resolution(model))):
        try:
            graph = trace(model, resolution)
            answer = footprint(graph, "full", batch=min(BATCHES))
            prepare(network, answer.graph, answer.assignment)
            result_of(network, zeros(graph, min(BATCHES)))
        except (CostModelError, RuntimeError, ValueError, AssertionError) as error:
            reason = error
            continue
        return graph, network
    raise reason


def zeros(graph: LayerGraph, batch: int) -> Inputs:
    """Return a batch of what a network is called with."""
    return Inputs(tuple(torch.zeros(batch, *tensor.shape[1:]) for tensor in graph.inputs), {})


def settings(graph: LayerGraph) -> Iterator[tuple[str, dict]]:
    """Yield names and arguments of `footprint`."""
    yield from ((name, {"method": name}) for name in ("full", "last", "norm", "bias"))
    if block_count(graph):
        yield "blocks 2", {"method": "blocks", "blocks": min(2, block_count(graph))}
    for seed in (0, 1):
        drawn = random.Random(f"{graph.model} {seed}")
        yield f"random {seed}", {"trained": [name for name in graph.parameters if drawn.random() < SHARE_TRAINED]}


def verify(model: str, batch: int, rows: Rows) -> None:
    """Add the rows of one network that are not there yet."""
    if {"model": model, "setting": "random 1", "batch": batch} in rows:
        return
    try:
        graph, network = smallest(model)
    except (CostModelError, RuntimeError, ValueError, AssertionError) as error:
        rows.add({"model": model, "setting": "random 1", "batch": batch, "note": " ".join(str(error).split())[:200]})
        return
    for setting, options in settings(graph):
        row = {"model": model, "resolution": graph.resolution, "setting": setting, "batch": batch}
        if row in rows:
            continue
        try:
            predicted = footprint(graph, batch=batch, accounting="eager", kernels=Kernels("onednn", 1), **options)
        except CostModelError as error:
            rows.add(row | {"note": str(error)})
            continue
        prepare(network, predicted.graph, predicted.assignment)
        images = zeros(graph, batch)
        saved, forward, backward = counted_step(network, images)
        network.zero_grad(set_to_none=True)
        update = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], 1e-6)

        def step(images=images, update=update) -> None:
            loss_of(result_of(network, images)).backward()
            update.step()
            update.zero_grad(set_to_none=True)

        measured = peak_bytes(step)
        peak = predicted.peak_bytes - predicted.moments[0].total_bytes
        rows.add(row | {
            "predicted_bytes": predicted.saved_bytes, "measured_bytes": saved,
            "difference_bytes": predicted.saved_bytes - saved,
            "predicted_flops": predicted.forward_flops + predicted.backward_flops, "counted_flops": forward + backward,
            "predicted_peak": peak, "measured_peak": measured, "peak_percent": f"{100 * (peak / measured - 1):.4f}",
            "phase": predicted.peak.phase, "layer": predicted.peak.layer,
            "learned": " ".join(sorted({layer.op for layer in graph.layers if layer.learned})),
        })  # fmt: skip


def _off(row: dict[str, str]) -> bool:
    return abs(float(row["peak_percent"])) > 100 * PEAK_GOAL


def report(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the summary."""
    measured = [row for row in rows if row["measured_bytes"]]
    differing = [row for row in measured if int(row["difference_bytes"])]
    miscounted = [row for row in measured if row["counted_flops"] != row["predicted_flops"]]
    off = [row for row in measured if _off(row)]
    lines = [
        "# One network of every family: `eager` predicted, and measured",
        "",
        f"{date}; {versions()}; {machine}. Written by `python benchmarks/verify_families.py`; a row per configuration "
        "stands in `verify_families.csv`.",
        "",
        f"{len({row['model'] for row in measured})} networks, {len(measured)} configurations (what trains, batch); the "
        f"list has {len(names())} networks, each at batch 2 and 3, and a run can be resumed. "
        f"Saved bytes differ in {len(differing)}, FLOPs in {len(miscounted)}; the peak is off by more than "
        f"{100 * PEAK_GOAL:.1f} % in {len(off)} ({100 * len(off) / max(1, len(measured)):.1f} %).",
        "",
        "| networks | number | configurations | bytes differ | FLOPs differ | peak beyond 0.5 % |",
        "|---|---|---|---|---|---|",
    ]
    for source in ("timm", "torchvision"):
        counts = [
            sum(row["model"].startswith(source) for row in chosen) for chosen in (measured, differing, miscounted, off)
        ]
        number = len({row["model"] for row in measured if row["model"].startswith(source)})
        lines.append(f"| {source} | {number} | " + " | ".join(map(str, counts)) + " |")
    for title, found in (("Saved bytes differ", differing), ("FLOPs differ", miscounted)):
        lines += ["", f"## {title}", ""]
        lines += [
            f"- `{row['model']}` {row['setting']} batch {row['batch']}: {row['predicted_bytes']} bytes predicted, "
            f"{row['measured_bytes']} measured; FLOPs {row['predicted_flops']}, {row['counted_flops']} counted"
            for row in found
        ] or ["None."]
    lines += ["", "## Peak off by more than 0.5 %", "", EXPLAINED, ""]
    by_model: dict[str, list[str]] = {}
    for row in off:
        text = (
            f"{row['setting']} at {row['batch']} {float(row['peak_percent']):+.1f} % ({row['phase']}, {row['layer']})"
        )
        by_model.setdefault(row["model"], []).append(text)
    lines += [f"- `{model}`: {'; '.join(texts)}" for model, texts in by_model.items()] or ["None."]
    lines += ["", "## Not measured", ""]
    lines += [
        f"- `{row['model']}`, {row['setting']} at {row['batch']}: {row['note']}"
        for row in rows if not row["measured_bytes"]
    ] or ["None."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Verify everything and write both tables."""
    given = arguments(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # scratchpads for reductions over threads are not in the model
    rows = Rows(RESULTS / "verify_families.csv", COLUMNS, ("model", "setting", "batch"), given.resume)
    for batch in BATCHES:
        for model in names():
            if not re.search(given.only, model):
                continue
            start, before = time.perf_counter(), len(rows.rows)
            verify(model, batch, rows)
            new = [row for row in rows.rows[before:] if row["measured_bytes"]]
            wrong = sum(row["difference_bytes"] != "0" or row["counted_flops"] != row["predicted_flops"] for row in new)
            print(f"{model:46} {len(new):3} rows, {wrong} differ, {sum(map(_off, new))} peaks off, "
                  f"{time.perf_counter() - start:6.1f} s", flush=True)  # fmt: skip
            gc.collect()
            (RESULTS / "verify_families.md").write_text(report(rows.rows, given.date, given.machine))
    measured = [row for row in rows.rows if row["measured_bytes"]]
    wrong = any(row["difference_bytes"] != "0" or row["counted_flops"] != row["predicted_flops"] for row in measured)
    sys.exit(wrong or sum(map(_off, measured)) > (1 - SHARE_GOAL) * len(measured))


if __name__ == "__main__":
    main()
