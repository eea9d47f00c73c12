"""What the XNNPACK delegate may take over: heavy calls that read no buffer that changes.

A delegate copies constants into its own program when it is made. Of a weight that trains it would keep the first value
and compute with that for ever, without a word: so no call that reads such a buffer is offered to it, and afterwards
every delegate is searched for one (`check_delegates`).
"""

# pyright: reportMissingImports=false
# The types of the runtime's package are checked where the extra is installed.
from __future__ import annotations

from collections.abc import Set
from typing import Any

from executorch.backends.xnnpack.partition import config
from executorch.backends.xnnpack.partition.config.xnnpack_config import XNNPartitionerConfig
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import fx
from torch.export import ExportedProgram

from ..errors import ModelError

# Convolutions and products, and what stands between them, so that whole chains are taken over. Sums and products of
# updates stay outside: each would be a delegate of its own.
_CONFIGS = (
    config.ConvolutionConfig, config.LinearConfig, config.MMConfig, config.AddConfig,
    config.BatchNormConfig, config.HardtanhConfig, config.ReLUConfig, config.ClampConfig,
)  # fmt: skip


def partitioner(changed: Set[str]) -> XnnpackPartitioner:
    """Return what picks the calls to delegate. changed: the buffers, by name, that a step writes."""

    def reads_only_constants(base: type[XNNPartitionerConfig]) -> type[XNNPartitionerConfig]:
        class Constants(base):
            def check_constraints(self, node: fx.Node, ep: ExportedProgram) -> bool:
                """Whether the delegate may have the call."""
                buffers = ep.graph_signature.inputs_to_buffers
                if any(buffers.get(given.name) in changed for given in node.all_input_nodes):
                    return False
                if base is config.AddConfig and not _same_shapes(node):
                    return False
                return super().check_constraints(node, ep)

        return Constants

    return XnnpackPartitioner(configs=[reads_only_constants(base) for base in _CONFIGS])


def _same_shapes(node: fx.Node) -> bool:
    shapes = [given.meta["val"].shape for given in node.all_input_nodes]
    return len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 4


def check_delegates(program: ExportedProgram, changed: Set[str]) -> int:
    """Return how many delegates a program has. Errors: ModelError if one holds a buffer that changes."""
    found = 0
    for module in program.graph_module.modules():
        if not isinstance(module, LoweredBackendModule):
            continue
        found += 1
        inner: Any = module.original_module
        signature = inner.graph_signature
        held = {*signature.inputs_to_buffers.values(), *signature.inputs_to_parameters.values()} & changed
        if held:
            raise ModelError(
                f"the delegate {module.backend_id} holds first values of {', '.join(sorted(held))}, which train: it "
                "would compute with these values for ever; nothing was exported"
            )
    return found
