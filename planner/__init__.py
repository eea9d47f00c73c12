"""What to do about the cost of fine-tuning: every method and depth priced, with the accuracy to expect, and one pick.

    answer = recommend("torchvision:mobilenet_v3_small", ram_bytes=64_000_000)
    answer.plan.save("plan.json")

`candidates` gives everything it chose from. What the accuracies mean, and how runs of your own become one, is in
`planner.estimates`; `planner.evidence.load` reads yours.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import costmodel

if TYPE_CHECKING:
    from .choosing.candidate import Candidate
    from .choosing.candidates import candidates
    from .choosing.frames import sweep
    from .choosing.plan import Plan
    from .choosing.recommend import Recommendation, recommend
    from .devices.device import Device, device
    from .training.predict import predict
    from .training.train import train

_LATER = {
    "Candidate": "choosing.candidate",
    "Device": "devices.device",
    "Plan": "choosing.plan",
    "Recommendation": "choosing.recommend",
    "candidates": "choosing.candidates",
    "device": "devices.device",
    "predict": "training.predict",
    "recommend": "choosing.recommend",
    "sweep": "choosing.frames",
    "train": "training.train",
}


def __getattr__(name: str):
    if name == "__version__":
        return costmodel.__version__
    if name in _LATER:
        value = getattr(import_module(f".{_LATER[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Candidate",
    "Device",
    "Plan",
    "Recommendation",
    "candidates",
    "device",
    "predict",
    "recommend",
    "sweep",
    "train",
]
