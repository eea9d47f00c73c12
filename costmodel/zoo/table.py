"""Backbones that no library carries. One file each; adding one is a file and a line in `ZOO`."""

from .mcunet import mcunet_5fps, mobilenet_v2_w035, proxylessnas_mobile_w03
from .proxylessnas_mobile import proxylessnas_mobile
from .proxylessnas_mobile_tinytl import proxylessnas_mobile_tinytl

ZOO = {
    "mcunet_5fps": mcunet_5fps,
    "mobilenet_v2_w035": mobilenet_v2_w035,
    "proxylessnas_mobile": proxylessnas_mobile,
    "proxylessnas_mobile_tinytl": proxylessnas_mobile_tinytl,
    "proxylessnas_mobile_w03": proxylessnas_mobile_w03,
}
