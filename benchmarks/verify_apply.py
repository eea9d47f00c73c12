"""Applied hybrids and transformers: gradients against stock PyTorch in float64, kept bytes against `lean`.

    python benchmarks/verify_apply.py --date 2026-11-21 --machine '2-core x86-64 virtual machine' [--resume]

Thirty small networks with attention or what stands in its place, by full, norm, bias, blocks 2 and lora, in train
mode, batch 2. Gradients: the largest difference of any, relative to the largest of any; goal 1e-10 (lora has no stock
counterpart and is compared with itself, merged). Kept bytes: one forward pass under saved-tensor hooks, in float32; no
difference is allowed. Writes benchmarks/results/verify_apply.csv (a row per configuration, as they come) and
verify_apply.md. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections.abc import Iterator

import timm
import torch
from torch import nn
from verifying import RESULTS, Rows, arguments, versions

from costmodel import CostModelError, LayerGraph, apply, block_count, footprint, restore
from costmodel.checking.measuring import loss_of, prepare, saved_bytes
from costmodel.tracing.tracer import trace

NETWORKS = {
    "mobilevit_xxs": 64, "mobilevitv2_050": 64, "edgenext_xx_small": 64, "levit_128s": 224, "efficientformer_l1": 224,
    "efficientformerv2_s0": 224, "fastvit_t8": 64, "poolformer_s12": 64, "mobilenetv4_hybrid_medium": 64,
    "xcit_nano_12_p16_224": 224, "pit_ti_224": 224, "tiny_vit_5m_224": 224, "deit_tiny_patch16_224": 224,
    "cait_xxs24_224": 224, "swin_tiny_patch4_window7_224": 224, "pvt_v2_b0": 64, "swiftformer_xs": 64,
    "repvit_m0_9": 64, "efficientvit_b0": 64, "efficientvit_m0": 224, "convnextv2_atto": 64, "visformer_tiny": 224,
    "coat_tiny": 224, "crossvit_tiny_240": 240, "nest_tiny": 224, "halonet26t": 256, "mixer_s16_224": 224,
    "gmlp_s16_224": 224, "caformer_s18": 64, "mvitv2_tiny": 224,
}  # fmt: skip
METHODS = ("full", "norm", "bias", "blocks", "lora")
BATCH, GOAL = 2, 1e-10
COLUMNS = ("model", "resolution", "method", "predicted_bytes", "measured_bytes", "gradient_difference", "note")


def gradients(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradients of a loss, by parameter; dropout draws the same numbers each time."""
    torch.manual_seed(1)
    loss_of(network(images)).backward()
    return {name: each.grad for name, each in network.named_parameters() if each.grad is not None}


def difference(ours: dict[str, torch.Tensor], stock: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any gradient, relative to the largest gradient; infinity if one is missing."""
    if ours.keys() != stock.keys():
        return float("inf")
    largest = max(each.abs().max().item() for each in stock.values())
    return max((ours[name] - each).abs().max().item() for name, each in stock.items()) / largest


def merged_difference(applied: nn.Module, images: torch.Tensor) -> float:
    """Return how far the merged network's outputs are from those of the network with LoRA beside it."""
    with torch.no_grad():
        for name, parameter in applied.named_parameters():
            if name.startswith("lora.") or not parameter.any():  # a head of zeros would hide everything
                parameter.normal_(std=0.01)
    applied.eval()
    with torch.no_grad():
        before = applied(images)
        after = restore(applied, merge=True).eval()(images)
    return ((before - after).abs().max() / before.abs().max()).item()


def rows_of(name: str, graph: LayerGraph, known: Rows) -> Iterator[dict]:
    """Yield the rows of one network that are not there yet."""
    network = None
    for method in METHODS:
        row = {"model": name, "resolution": graph.resolution, "method": method}
        blocks = min(2, block_count(graph)) if method == "blocks" else None
        if row in known or blocks == 0:
            continue
        network = network or timm.create_model(name)
        try:
            applied = apply(copy.deepcopy(network), method, blocks, graph.resolution).train()
        except CostModelError as error:
            yield row | {"note": str(error)}
            continue
        answer = footprint(graph, method, blocks, batch=BATCH)
        row["predicted_bytes"] = answer.saved_bytes
        row["measured_bytes"] = saved_bytes(applied, torch.zeros(BATCH, *graph.input.shape[1:]))
        images = torch.rand(BATCH, *graph.input.shape[1:], dtype=torch.float64)
        if method == "lora":
            found = merged_difference(applied.double(), images)
        else:
            stock = prepare(copy.deepcopy(network), answer.graph, answer.assignment).double()
            found = difference(gradients(applied.double(), images), gradients(stock, images))
        yield row | {"gradient_difference": f"{found:.1e}"}


def report(rows: list[dict[str, str]], date: str, machine: str) -> str:
    """Return the summary."""
    run = [row for row in rows if row["measured_bytes"]]
    off = [row for row in run if row["predicted_bytes"] != row["measured_bytes"]]
    wrong = [row for row in run if not float(row["gradient_difference"]) <= GOAL]
    worst = max((float(row["gradient_difference"]) for row in run), default=0.0)
    lines = [
        "# Applied hybrids and transformers against stock PyTorch", "",
        f"{date}; {versions()}; {machine}. Written by `python benchmarks/verify_apply.py`; a row per configuration "
        "stands in `verify_apply.csv`.", "",
        f"{len({row['model'] for row in run})} networks, {len(run)} configurations. Kept bytes differ from `lean` in "
        f"{len(off)}; gradients are beyond {GOAL:.0e} in {len(wrong)} (largest difference {worst:.1e}).", "",
    ]  # fmt: skip
    for title, found in (("Kept bytes differ", off), ("Gradients differ", wrong),
                         ("Cannot be applied", [row for row in rows if row["note"]])):  # fmt: skip
        lines += [f"## {title}", ""]
        lines += [
            f"- `{row['model']}` {row['method']}: {row['note'] or row['gradient_difference']} "
            f"({row['predicted_bytes']} bytes predicted, {row['measured_bytes']} measured)"
            for row in found
        ] or ["None."]
        lines += [""]
    return "\n".join(lines)


def main() -> None:
    """Verify everything and write both tables."""
    given = arguments(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = Rows(RESULTS / "verify_apply.csv", COLUMNS, ("model", "method"), given.resume)
    for name, resolution in NETWORKS.items():
        if not re.search(given.only, name) or all({"model": name, "method": each} in rows for each in METHODS):
            continue
        for row in rows_of(name, trace(f"timm:{name}", resolution), rows):
            rows.add(row)
            print(*(row.get(column, "") for column in COLUMNS), flush=True)
        (RESULTS / "verify_apply.md").write_text(report(rows.rows, given.date, given.machine))
    run = [row for row in rows.rows if row["measured_bytes"]]
    wrong = any(
        row["predicted_bytes"] != row["measured_bytes"] or float(row["gradient_difference"]) > GOAL for row in run
    )
    sys.exit(wrong)


if __name__ == "__main__":
    main()
