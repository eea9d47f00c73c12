"""A small elastic super-network, pre-trained on rendered letters (see `tasks`): what `adaptation.py` adapts.

    python benchmarks/elastic_letters.py     # pre-trains it, in a few minutes on two cores, and keeps the weights

ProxylessNAS's stages at width 0.35, the strides fitted to 32 x 32 (the last maps are 4 x 4), with group norm and
standardised weights, as TinyTL's networks. As a model: `benchmarks/elastic_letters.py:supernetwork@d=2,k=3,e=3`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from tasks import LETTERS, RESOLUTION, letters

from costmodel.zoo.elastic import PROXYLESS
from costmodel.zoo.once_for_all import SuperNetwork
from planner.campaign.elastic import sandwich, train_elastic
from planner.campaign.fine_tuning import Recipe, classify

STRIDES = (2, 1, 2, 1, 1, 1)
DESIGN = replace(
    PROXYLESS, width=0.35, norm="group", epsilon=1e-5,
    stages=tuple(replace(stage, stride=stride) for stage, stride in zip(PROXYLESS.stages, STRIDES, strict=True)),
)  # fmt: skip
RENDERED = 8_000
# The largest network alone, then all with the sandwich rule: an untrained network has nothing to teach the others.
# Source: progressive shrinking, once-for-all (Cai et al., ICLR 2020), section 3.3.
LARGEST = Recipe(epochs=4, learning_rate=3e-3, batch=32, resolution=RESOLUTION, optimizer="adam")
ALL = replace(LARGEST, epochs=2, learning_rate=1e-3)
FOLDER = Path(__file__).parent / ".cache"
WEIGHTS = FOLDER / f"elastic-{RENDERED}-letters-{LARGEST.epochs}-{ALL.epochs}-epochs.pt"


def supernetwork(num_classes: int = len(LETTERS)) -> SuperNetwork:
    """Return the super-network, untrained."""
    return SuperNetwork(DESIGN, num_classes)


def start_as_identity(network: SuperNetwork) -> None:
    """Let blocks with a skip start as the identity: without it, a few hundred steps train nothing with group norm.

    Source: Goyal et al.: Accurate, Large Minibatch SGD (arXiv 1706.02677), section 5.1.
    """
    design = network.design
    for number, (_, place) in zip(design.numbers_of(design.largest)[1:], design.places_of(design.largest), strict=True):
        if place > 0:
            torch.nn.init.zeros_(
                network.get_parameter(f"blocks.{number}.mobile_inverted_conv.point_linear.bn.bn.weight")
            )


def pretrain(seed: int = 0) -> None:
    """Pre-train and keep the weights."""
    torch.manual_seed(seed)
    network = supernetwork()
    start_as_identity(network)
    train, test = letters(RENDERED, seed), letters(RENDERED // 15, seed + 1)
    start = time.perf_counter()
    for what, recipe, draw in (
        ("the largest", LARGEST, lambda: [DESIGN.largest]), ("all", ALL, sandwich(network, seed)),
    ):  # fmt: skip
        for epoch in train_elastic(network, train, recipe, draw):
            print(f"{what}: epoch {epoch} of {recipe.epochs}, {time.perf_counter() - start:.0f} s", flush=True)
        for name in ("largest", "smallest"):
            network.active = getattr(DESIGN, name)
            right = classify(network, test)
            print(f"{name}: {100 * sum(right) / len(right):.1f} % of {len(right)} new letters", flush=True)
    FOLDER.mkdir(exist_ok=True)
    torch.save(network.state_dict(), WEIGHTS)
    print(f"wrote {WEIGHTS}")


if __name__ == "__main__":
    pretrain()
