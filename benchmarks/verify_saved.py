"""Saved bytes and FLOPs that `eager` predicts, next to those of the real networks: no difference is allowed.

    python benchmarks/verify_saved.py --date 2026-11-20 --machine '2-core x86-64 virtual machine' [--resume]

Every convolutional classification model of torchvision (all but ViT, Swin and MaxViT) and timm models of thirteen
families, by full, last, norm, bias and blocks 1, 3, 5 (if there are as many), at batch 1, 2 and 8, in train mode.
Saved bytes: one forward pass of the real network on this CPU under saved-tensor hooks. FLOPs: PyTorch's counter
(corrected for grouped convolutions) over forward and backward on the meta device, at batch 2.

Large networks are measured at a lower resolution, to save time: the highest of 224, 160, 128, 96 and 64 pixels at which
an image takes less than 4 GFLOPs (Inception v3 always at 299, which it needs). Writes benchmarks/results/
verify_saved.csv (a row per configuration, as they come; --resume skips those that are there) and verify_saved.md.
Exit code 1 if anything differs. Takes about ten minutes on one core.
"""

from __future__ import annotations

import gc
import re
import sys
import time
from collections import Counter

import torch
import torchvision
from verifying import RESULTS, Rows, arguments, build, settings, versions

from costmodel import footprint
from costmodel.checking.measuring import prepare, saved_bytes, step_flops
from costmodel.tracing.tracer import trace

TRANSFORMERS = ("vit", "swin", "maxvit")
TIMM = (
    "mobilenetv1_100", "mobilenetv2_050", "mobilenetv2_110d", "mobilenetv3_small_050", "mobilenetv3_large_100",
    "tf_mobilenetv3_small_minimal_100", "mobilenet_edgetpu_100", "mobilenetv4_conv_small", "mobilenetv4_conv_medium",
    "mobilenetv4_conv_aa_medium", "mobilenetv4_conv_blur_medium", "efficientnet_lite0", "efficientnet_b0",
    "efficientnet_es", "efficientnet_b0_gn", "tf_efficientnetv2_b0", "tf_efficientnet_cc_b0_4e", "mnasnet_small",
    "semnasnet_100", "fbnetc_100", "fbnetv3_b", "ghostnet_100", "ghostnetv2_100", "ghostnetv3_100",
    "repghostnet_100", "lcnet_050", "lcnet_100", "lcnetv2_base", "tinynet_a", "tinynet_e", "mixnet_s", "mixnet_m",
    "hardcorenas_a", "hardcorenas_f", "resnet10t", "resnet18d", "resnet26", "resnetblur18", "resnetv2_18",
    "resnetv2_50x1_bit", "ecaresnet26t", "seresnet18", "skresnet18", "nf_resnet26", "regnetx_002", "regnety_002",
    "regnetz_005", "nf_regnet_b0", "convnext_atto", "convnext_pico_ols", "convnextv2_atto", "test_convnext",
)  # fmt: skip
BATCHES = (1, 2, 8)
RESOLUTIONS = (224, 160, 128, 96, 64)
FIXED_RESOLUTION = {"torchvision:inception_v3": 299}
MOST_FLOPS = 4e9  # of the forward pass of an image
COLUMNS = (
    "model", "resolution", "method", "blocks", "batch", "predicted_bytes", "measured_bytes", "difference_bytes",
    "predicted_flops", "counted_flops", "note",
)  # fmt: skip


def names() -> list[str]:
    """Return the networks."""
    ours = (name for name in torchvision.models.list_models(module=torchvision.models)
            if not name.startswith(TRANSFORMERS))  # fmt: skip
    return [f"torchvision:{name}" for name in ours] + [f"timm:{name}" for name in TIMM]


def graph_of(model: str):
    """Return the trace at the highest resolution that is quick enough."""
    if model in FIXED_RESOLUTION:
        return trace(model, FIXED_RESOLUTION[model])
    for resolution in RESOLUTIONS:
        graph = trace(model, resolution)
        if footprint(graph, "last", batch=1, kernels="none").forward_flops < MOST_FLOPS:
            break
    return graph


def verify(model: str, rows: Rows) -> None:
    """Add the rows of one network that are not there yet."""
    graph = graph_of(model)
    wanted = [
        {"model": model, "resolution": graph.resolution, "method": method, "blocks": depth, "batch": batch}
        for method, depth in settings(graph) for batch in BATCHES
    ]  # fmt: skip
    wanted = [row for row in wanted if row not in rows]
    if not wanted:
        return
    network, shapes_only = build(model), build(model, "meta")
    for row in wanted:
        predicted = footprint(graph, row["method"], row["blocks"], row["batch"], accounting="eager")
        prepare(network, predicted.graph, predicted.assignment)
        size = (row["batch"], *graph.input.shape[1:])
        row["predicted_bytes"] = predicted.saved_bytes
        try:
            row["measured_bytes"] = saved_bytes(network, torch.zeros(size))
            row["difference_bytes"] = row["predicted_bytes"] - row["measured_bytes"]
        except ValueError as error:  # batch norm on one value
            row["note"] = str(error).split(",")[0]
        if row["batch"] == 2:
            prepare(shapes_only, predicted.graph, predicted.assignment)
            row["counted_flops"] = sum(step_flops(shapes_only, torch.zeros(size, device="meta")))
            row["predicted_flops"] = predicted.forward_flops + predicted.backward_flops
            shapes_only.zero_grad(set_to_none=True)
        rows.add(row)


def report(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the summary."""
    measured = [row for row in rows if row["measured_bytes"]]
    counted = [row for row in rows if row["counted_flops"]]
    differing = [row for row in measured if int(row["difference_bytes"])]
    miscounted = [row for row in counted if row["counted_flops"] != row["predicted_flops"]]
    impossible = [row for row in rows if not row["measured_bytes"]]
    lines = [
        "# Saved bytes and FLOPs: `eager` predicted, and measured",
        "",
        f"{date}; {versions()}; {machine}. Written by `python benchmarks/verify_saved.py`; a row per configuration "
        "stands in `verify_saved.csv`. Another version or processor (64-bit Arm, for one) is unverified until somebody "
        "runs the script there.",
        "",
        f"{len({row['model'] for row in rows})} networks, {len(rows)} configurations (method, depth, batch). "
        f"Saved bytes differ in {len(differing)} of the {len(measured)} that can run; FLOPs in {len(miscounted)} of "
        f"the {len(counted)} counted (at batch 2).",
        "",
        "| networks | number | configurations measured | bytes differ | largest difference | FLOPs counted | differ |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in ("torchvision", "timm"):
        here = [row for row in measured if row["model"].startswith(source)]
        flops = [row for row in counted if row["model"].startswith(source)]
        wrong = sum(row["counted_flops"] != row["predicted_flops"] for row in flops)
        lines.append(
            f"| {source} | {len({row['model'] for row in here})} | {len(here)} | "
            f"{sum(row in differing for row in here)} | "
            f"{max((abs(int(row['difference_bytes'])) for row in here), default=0)} bytes | {len(flops)} | {wrong} |"
        )
    lines += ["", "## Resolution", "", "The highest at which an image takes less than 4 GFLOPs:", ""]
    by_resolution: dict[int, list[str]] = {}
    for model, resolution in dict.fromkeys((row["model"], int(row["resolution"])) for row in rows):
        by_resolution.setdefault(resolution, []).append(model)
    for resolution, models in sorted(by_resolution.items(), reverse=True):
        lines.append(f"- {resolution}: {', '.join(models) if resolution != 224 else f'the other {len(models)}'}")
    lines += ["", "## Cannot train", ""]
    reasons = Counter((row["model"], row["resolution"], row["batch"], row["note"]) for row in impossible)
    lines += [
        f"- `{model}` at {resolution}, batch {batch}, {count} methods: {note}"
        for (model, resolution, batch, note), count in reasons.items()
    ] or ["None."]
    for title, found in (("Saved bytes that differ", differing), ("FLOPs that differ", miscounted)):
        lines += ["", f"## {title}", ""]
        lines += [
            f"- `{row['model']}` {row['method']} {row['blocks']} batch {row['batch']}: bytes "
            f"{row['predicted_bytes']} predicted, {row['measured_bytes']} measured; FLOPs {row['predicted_flops']} "
            f"predicted, {row['counted_flops']} counted"
            for row in found
        ] or ["None."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Verify everything and write both tables."""
    given = arguments(__doc__)
    torch.set_num_threads(1)  # on a busy machine threads that wait for each other cost more than they bring
    rows = Rows(RESULTS / "verify_saved.csv", COLUMNS, ("model", "method", "blocks", "batch"), given.resume)
    for model in names():
        if not re.search(given.only, model):
            continue
        start, before = time.perf_counter(), len(rows.rows)
        verify(model, rows)
        new = rows.rows[before:]
        wrong = sum(row["difference_bytes"] not in ("0", "") or row["counted_flops"] != row["predicted_flops"]
                    for row in new)  # fmt: skip
        seconds = time.perf_counter() - start
        print(f"{model:46} {len(new):3} rows, {wrong} differ, {seconds:6.1f} s", flush=True)
        gc.collect()
    text = report(rows.rows, given.date, given.machine)
    (RESULTS / "verify_saved.md").write_text(text)
    print(text.split("\n\n")[2])
    sys.exit(any(row["difference_bytes"] not in ("0", "") or row["counted_flops"] != row["predicted_flops"]
                 for row in rows.rows))  # fmt: skip


if __name__ == "__main__":
    main()
