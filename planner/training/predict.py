"""What a trained network says of images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from costmodel import trace
from costmodel.errors import InputError

from ..campaign.decoding import read_image
from ..campaign.images import Images
from ..campaign.weights import RANDOM, Weights, make_network
from ..choosing.plan import Plan
from .folder import PLAN, Folder
from .trained import Trained


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image: the classes with their probabilities, the likeliest first.

    problem: why the image cannot be read; then there are no classes.
    """

    image: str
    classes: tuple[tuple[str, float], ...]
    problem: str | None = None

    def to_dict(self) -> dict:
        """Return it as plain values for JSON."""
        if self.problem is not None:
            return {"image": self.image, "problem": self.problem}
        name, probability = self.classes[0]
        others = [{"class": name, "probability": value} for name, value in self.classes]
        return {"image": self.image, "class": name, "probability": probability, "classes": others}


def load_network(folder: str | Path) -> tuple[nn.Module, Trained]:
    """Return the network that a training has left in a folder, in eval mode, and what it comes with.

    It computes in the precision in which it was trained. `costmodel.restore` makes the plain network of it, where
    `Trained.is_plain` says that this computes the same.

    Errors: InputError if the folder has none, or one that does not belong to its plan.
    """
    place = Folder(folder)
    trained = place.trained()
    if trained is None:
        raise InputError(f"{place.path} has no trained network; make one with planner train PLAN --out {place.path}")
    plan = Plan.load(place.path / PLAN)
    if len(trained.classes) != plan.classes or trained.preprocessing.resolution != plan.resolution:
        raise InputError(f"{place.path} has a plan for another network than the trained one; train again")
    graph = trace(plan.model, plan.resolution, plan.classes)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that the function changes was said when it was trained
        network = plan.apply(make_network(graph, Weights(RANDOM, None), 0)[0])
    try:
        network.load_state_dict(place.weights())
    except RuntimeError as error:
        raise InputError(
            f"the weights in {place.path} are not those of its plan: {' '.join(str(error).split())[:200]}"
        ) from error
    return network.eval(), trained


@torch.no_grad()
def predict(folder: str | Path, images: Sequence[str | Path], top: int = 1) -> Iterator[Prediction]:
    """Yield what the trained network in a folder says of each image: its `top` likeliest classes.

    An image that cannot be read has its problem in place of classes. Errors: those of `load_network`.
    """
    network, trained = load_network(folder)
    shown = trained.preprocessing
    normalised = Images((tuple(shown.mean), tuple(shown.deviation))).normalised
    for path in images:
        try:
            pixels = read_image(path, shown.resolution).pixels
        except InputError as error:
            yield Prediction(str(path), (), str(error))
            continue
        chances = network(normalised(pixels)[None]).softmax(1)[0]
        best = chances.topk(min(top, len(trained.classes)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield Prediction(str(path), tuple((trained.classes[index], value) for index, value in found))
