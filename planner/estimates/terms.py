"""A way of training as the model of accuracies sees it: which of its coefficients a recovery is made of.

The recovery r is counted between the logits of the accuracies, 0 for the last layer only and 1 for everything:

    a method with a depth, k of K:    r = 1 - a (1 - log k / log K) + b_method
    a method without:                 r = c_method

and d is added where an option makes every norm use its running statistics. So a depth counts by its number and by its
share: from the first block on each doubling of k closes the same part of what is left to training all K. Source: the
form is that of MobileTL's curves (1 to 4 of 20 blocks, six data sets) and of HOSVD's (1 to 7 convolutions), whose
logits grow by about the same with each doubling; a further term in k / K comes out as 0 (`fitting.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from costmodel import METHODS, Way, anchor

from .setting import Setting

RUNNING = ("norm_statistics", "running")


@dataclass(frozen=True)
class Terms:
    """What a recovery is made of: offset + the sum of coefficient x value.

    coefficients: (name, value) pairs. shortfall: how much of what separates it from training everything is left to the
    depth, 1 - log k / log K; 1 for a method without a depth. has_depth, family: which rows it resembles.
    """

    offset: float
    coefficients: tuple[tuple[str, float], ...]
    shortfall: float
    has_depth: bool
    family: str


ANCHORS = {"last": Terms(0.0, (), 0.0, False, "last"), "full": Terms(1.0, (), 0.0, False, "full")}


def prior(name: str) -> tuple[float, float]:
    """Return what is expected of a coefficient before any evidence: mean and standard deviation.

    Assumption: wide enough that a few data sets with a gap between last and full decide; where the gap is within its
    error they do not, and the value stays between last (0) and full (1).
    """
    if name.startswith("depth") or not _has_depth(name):
        return 0.5, 0.5  # a slope over depth; a method without one
    return 0.0, 0.2  # how a method with a depth, or running statistics, differs from the plain one


def _has_depth(name: str) -> bool:
    method = METHODS.get(name)
    return name == "running statistics" or (method is not None and (method.takes_blocks or bool(method.depth_option)))


def terms(way: Way, setting: Setting) -> Terms | None:
    """Return the terms of a way; None if nothing of the kind was published, whatever the method.

    Errors: ValueError if a depth is not in 1 to what the network has.
    """
    method = METHODS.get(way.method)
    if method is None:
        return Terms(0.0, ((way.method, 1.0),), 1.0, False, way.method) if way.trained is None else None
    if way == anchor("last") or way == anchor("full"):
        return ANCHORS[way.method]
    running = (("running statistics", 1.0),) if RUNNING in way.options else ()
    depth, most = way.blocks, setting.block_count
    if method.depth_option:
        depth, most = dict(way.options)[method.depth_option], setting.convolution_count
        if not most:
            return None
    elif method.anchor is not None:
        return Terms(ANCHORS[method.anchor].offset, running, 0.0, False, method.name)
    elif not method.takes_blocks:
        return Terms(0.0, ((method.name, 1.0), *running), 1.0, False, method.name)
    if not isinstance(depth, int) or not 1 <= depth <= most:
        raise ValueError(f"method {method.name!r} needs k from 1 to {most}, not {depth!r}")
    left = 1.0 - (math.log(depth) / math.log(most) if most > 1 else 1.0)
    slope = "depth" if method.takes_blocks else f"depth of {method.name}"
    return Terms(1.0, ((slope, -left), (method.name, 1.0), *running), left, True, method.name)
