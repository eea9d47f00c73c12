"""Backbones that no library carries. One file each; adding one is a file and a line in `ZOO`."""

from .proxylessnas_mobile import proxylessnas_mobile

ZOO = {"proxylessnas_mobile": proxylessnas_mobile}
