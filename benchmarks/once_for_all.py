"""The elastic super-networks next to once-for-all's own code: names, shapes, order and what they compute.

    pip download ofa --no-deps && unzip ofa-*.whl -d FOLDER
    python benchmarks/once_for_all.py --ofa FOLDER --date 2026-11-21 --machine '2-core x86-64 virtual machine'

Of both networks at the published widths and a small one: the state dict, after the names that later versions gave to a
part of each block are turned back into those of the published checkpoints; and, with random weights, the logits of
random sub-networks, and of these taken out of the super-network. Writes `results/once_for_all.md`; exit code 1 if a
name or shape differs, or a logit by more than rounding.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from dataclasses import replace

import torch
from verifying import RESULTS, versions

from costmodel.graph.elastic import Design, Subnetwork
from costmodel.zoo.elastic import ELASTIC
from costmodel.zoo.once_for_all import SuperNetwork

THEIRS = {"ofa_proxyless": "OFAProxylessNASNets", "ofa_mobilenet_v3": "OFAMobileNetV3"}
WIDTHS = (1.0, 1.2, 1.3, 0.35)
DRAWN = 20
ROUNDING = 1e-5  # of the largest logit


def theirs(name: str, width: float) -> torch.nn.Module:
    """Return once-for-all's own network."""
    from ofa.imagenet_classification.elastic_nn import networks  # pyright: ignore[reportMissingImports]

    make = getattr(networks, THEIRS[name])
    lists = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4]}
    return make(n_classes=10, width_mult=width, dropout_rate=0, **lists).eval()


def choose(network: torch.nn.Module, design: Design, chosen: Subnetwork) -> None:
    """Make a sub-network active in once-for-all's own network."""
    kernels, expansions = [3] * design.most_blocks, [3] * design.most_blocks
    for number, kernel, expansion in zip(design.numbers_of(chosen)[1:], chosen.kernels, chosen.expansions, strict=True):
        kernels[number - 1], expansions[number - 1] = kernel, expansion
    network.set_active_subnet(ks=kernels, e=expansions, d=list(design.depths_of(chosen)))


@torch.no_grad()
def compare(name: str, width: float) -> dict:
    """Return what agrees."""
    torch.manual_seed(0)
    other, design = theirs(name, width), replace(ELASTIC[name], width=width)
    for value in other.state_dict().values():
        if value.is_floating_point():
            value.add_(0.05 * torch.rand_like(value))
    published = {
        re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", n): v for n, v in other.state_dict().items()
    }
    own = SuperNetwork(design, 10).eval()
    shapes = [[(n, tuple(v.shape)) for n, v in state.items()] for state in (published, own.state_dict())]
    own.load_state_dict(published)
    randomness, off, taken_off = random.Random(0), 0.0, 0.0
    for _ in range(DRAWN):
        chosen, images = design.draw(randomness), torch.randn(2, 3, 64, 64)
        choose(other, design, chosen)
        own.active = chosen
        expected, found = other(images), own(images)
        off = max(off, float((expected - found).abs().max() / expected.abs().max()))
        taken_off = max(taken_off, float((own.extract(chosen)(images) - found).abs().max()))
    return {
        "network": name, "width": f"{width:g}", "tensors": len(published), "names": shapes[0] == shapes[1],
        "parameters": sum(each.numel() for each in own.parameters()), "off": off, "taken_off": taken_off,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ofa", required=True, help="the folder that holds the package ofa")
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    given = parser.parse_args()
    sys.path.insert(0, given.ofa)
    rows = [compare(name, width) for name in THEIRS for width in WIDTHS]
    text = ["# Elastic super-networks next to once-for-all's own code", ""]
    text += [f"{given.date}, {given.machine}; {versions()}; ofa 0.1.0.post202307202001.", ""]
    text += [
        f"Names, shapes and order of the state dict, and the largest difference of a logit over {DRAWN} random "
        "sub-networks with random weights, as a share of the largest logit; taken out: of a sub-network on its own "
        "against the super-network's forward.", "",
        "| network | width | tensors | parameters | names, shapes, order | logits differ by | taken out, by |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        same = "equal" if row["names"] else "DIFFER"
        text.append(
            f"| `{row['network']}` | {row['width']} | {row['tensors']} | {row['parameters']:,} | {same} | "
            f"{row['off']:.1e} | {row['taken_off']:.1e} |"
        )
    (RESULTS / "once_for_all.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    if not all(row["names"] and row["off"] <= ROUNDING for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
