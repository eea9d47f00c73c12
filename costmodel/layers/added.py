"""The modules that methods put beside calls of a network, by the name of the module that holds them."""

from __future__ import annotations

from torch import nn

from ..table import Table
from .lite_residual import LiteResidual
from .lora import Lora

ADDED: Table[type[nn.Module]] = Table("added module", {"lite_residual": LiteResidual, "lora": Lora})
