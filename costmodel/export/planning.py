"""A memory plan for ExecuTorch: results of element-wise kernels take the memory of an operand that ends there.

An element-wise kernel reads an element before it writes the element of the same place, so that its result may lie where
an operand of the same size lies that nobody reads any more. The runtime's own plan ('greedy') gives each result memory
of its own.
"""

# pyright: reportMissingImports=false
# The types of the runtime's package are checked where the extra is installed.
from __future__ import annotations

import torch
from executorch.exir.memory_planning import MemoryAlgoResult, SpecAllocResult, get_node_tensor_specs
from executorch.exir.tensor import TensorSpec

from .placing import Block, place

# Kernels that look at one element at a time. Source: kernels/portable/cpu/op_*.cpp of ExecuTorch 1.5.
ELEMENTWISE = {
    "add", "sub", "mul", "div", "neg", "where", "hardtanh", "clamp", "relu", "sigmoid", "tanh", "exp", "expm1", "sqrt",
    "rsqrt", "abs", "minimum", "maximum", "pow", "reciprocal", "rsub", "log", "erf", "leaky_relu", "elu",
    "_native_batch_norm_legit_no_training",
}  # fmt: skip


def in_place(
    alignment: int, specs: set[TensorSpec], graph_module: torch.fx.GraphModule, graph_signature, extra_padding: int = 0
) -> MemoryAlgoResult:
    """Return where each tensor lies. The arguments are those of the runtime's planning algorithms."""
    owner = _owners(specs, graph_module)
    members: dict[TensorSpec, list[TensorSpec]] = {}
    for spec in sorted(specs, key=lambda spec: (spec.lifetime[0], spec.lifetime[1], -spec.allocated_memory)):
        spec.realign(alignment)
        members.setdefault(_root(owner, spec), []).append(spec)
    blocks = [
        Block(
            max(spec.allocated_memory for spec in group),
            min(spec.lifetime[0] for spec in group),
            max(spec.lifetime[1] for spec in group),
        )
        for group in members.values()
    ]
    offsets, total = place(blocks)
    found = {
        spec: SpecAllocResult(1, number, offset)
        for number, (group, offset) in enumerate(zip(members.values(), offsets, strict=True))
        for spec in group
    }
    return MemoryAlgoResult(found, [0, total + extra_padding])


def _owners(specs: set[TensorSpec], graph_module: torch.fx.GraphModule) -> dict[TensorSpec, TensorSpec]:
    """Return by tensor the one whose memory it takes."""
    owner: dict[TensorSpec, TensorSpec] = {}
    for moment, node in enumerate(graph_module.graph.nodes):
        name = getattr(node.target, "_schema", None)
        if node.op != "call_function" or name is None or name.name.removeprefix("aten::") not in ELEMENTWISE:
            continue
        result = get_node_tensor_specs(node)[0]
        for given in node.all_input_nodes:
            for spec in get_node_tensor_specs(given)[:1]:
                ends_here = spec in specs and spec.lifetime[1] == moment and spec is not result
                if ends_here and result in specs and result not in owner and _alike(spec, result):
                    owner[result] = spec
    return owner


def _alike(one: TensorSpec, two: TensorSpec) -> bool:
    return one.dtype == two.dtype and list(one.shape) == list(two.shape) and one.dim_order == two.dim_order


def _root(owner: dict[TensorSpec, TensorSpec], spec: TensorSpec) -> TensorSpec:
    while spec in owner:
        spec = owner[spec]
    return spec
