"""torchvision's detectors as networks with dense outputs: from a batch of images to what every anchor is given.

Their own forward takes lists of images and boxes, and its sizes depend on what is in the images. What trains, and
nearly all that a step takes, lies between the batch that their transform makes and the results of their heads; the
matching of boxes to anchors is left out. A detector in two stages cuts its second stage's inputs out by what the first
one found: that has no size of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import ModelError

# Source: torchvision/models/detection/{ssd,retinanet,fcos}.py: `self.head(list(self.backbone(images.tensors)))`.
_ONE_STAGE = {"torchvision.models.detection.ssd.SSD", "torchvision.models.detection.retinanet.RetinaNet",
              "torchvision.models.detection.fcos.FCOS"}  # fmt: skip
_TWO_STAGES = {"torchvision.models.detection.generalized_rcnn.GeneralizedRCNN"}


def run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Return a network's result; of a one-stage detector of torchvision its heads' results for a batch of images.

    Errors: ModelError for a detector in two stages.
    """
    lineage = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
    if lineage & _TWO_STAGES:
        raise ModelError(
            f"{type(module).__name__} has a second stage whose sizes depend on what is in the images, so its cost is "
            "not known; one-stage detectors are, such as torchvision:ssdlite320_mobilenet_v3_large"
        )
    if not lineage & _ONE_STAGE or len(args) != 1 or not isinstance(args[0], torch.Tensor):
        return module(*args, **kwargs)
    planned: Any = getattr(module, "planned", None)  # of a network that `apply` made ready to train
    return _heads_of(module, args[0]) if planned is None else planned(lambda images: _heads_of(module, images), args[0])


def _heads_of(detector: Any, images: torch.Tensor) -> Any:
    features = detector.backbone(images)
    return detector.head([features] if isinstance(features, torch.Tensor) else list(features.values()))
