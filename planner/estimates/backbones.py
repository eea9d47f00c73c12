"""How accurate a network is on a typical data set, by its accuracy on ImageNet and by the resolution.

Networks that are more accurate on ImageNet are more accurate after transfer, the logit of the one growing with the
logit of the other (Kornblith, Shlens, Le: Do Better ImageNet Models Transfer Better?, CVPR 2019, arXiv 1805.08974:
r = 0.96 for fine-tuned networks).

Assumption: the slope is 1. Checked with the networks of TinyTL's Table 3 that are trained in full at 224 pixels on the
same seven data sets, and ProxylessNAS-Mobile of its Table 2: their mean logits differ from such a line by 0.04 to 0.14
(a test has the numbers). These four lie too close, 74.0 to 76.1 %, to tell the slope: a fitted one would be 2.2.
"""

from __future__ import annotations

import math

from ..evidence.rows import imagenet_top1
from .logits import logit
from .setting import Setting

SLOPE = 1.0
# Standard deviation of a network about the line, in logits. Source: the four networks of the check above.
NETWORK_DEVIATION = 0.09
# Logits for each doubling of the resolution. Source: TinyTL, Table 2, tinytl-lb at 224 and 320 pixels on eight data
# sets: 0.21 on average, from 0.00 (CIFAR100) to 0.42 (Aircraft), for a factor of 1.43.
PER_DOUBLING = 0.21 / math.log2(320 / 224)
# The network and resolution that most evidence is of.
REFERENCE, REFERENCE_RESOLUTION = "zoo:proxylessnas_mobile", 224


def shift(setting: Setting) -> float | None:
    """Return by how much the logits of a network lie above those of the reference; None if its top-1 is not known."""
    top1 = imagenet_top1()
    if setting.model not in top1:
        return None
    relative = float(logit(top1[setting.model]) - logit(top1[REFERENCE]))
    larger = math.log2(setting.resolution / REFERENCE_RESOLUTION) if setting.resolution else 0.0
    return SLOPE * relative + PER_DOUBLING * larger
