"""Backbones that no library carries. One file each; adding one is a file and a line in `ZOO`."""

from .proxylessnas_mobile import proxylessnas_mobile
from .proxylessnas_mobile_tinytl import proxylessnas_mobile_tinytl

ZOO = {
    "proxylessnas_mobile": proxylessnas_mobile,
    "proxylessnas_mobile_tinytl": proxylessnas_mobile_tinytl,
}
