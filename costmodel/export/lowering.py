"""From a recorded step to an ExecuTorch program.

What the runtime needs that it does not do by itself is done here: buffers start with their values, updates are written
where they are made, and a delegate gets no weight that changes (it would keep its first value and train wrongly,
without a word).
"""

# pyright: reportMissingImports=false
# The types of the runtime's package are checked where the extra is installed.
from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.dialects._ops import ops
from executorch.exir.dialects.edge._ops import EdgeOpOverload
from executorch.exir.memory_planning import MemoryPlanningAlgorithmSuite, greedy
from executorch.exir.pass_base import PassBase, PassResult
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass
from executorch.runtime import Runtime
from torch.export import ExportedProgram

from ..errors import ModelError
from .delegating import check_delegates, partitioner
from .planning import in_place
from .recording import STEP, Recording, buffer_name
from .rewriting import hoist_updates, is_write, simplify, write_back_early

DELEGATES = ("none", "xnnpack")
STEP_METHOD, PREDICT_METHOD, STATE_METHOD = "step", "predict", "state"
_aten = torch.ops.aten


@dataclass(frozen=True)
class Program:
    """A program of the runtime.

    content: the file's bytes. arena_bytes: of intermediate values, the largest method's. state_bytes: of what changes:
    trained parameters, running statistics, the optimizer's state. state: name, shape and dtype of each of these, in the
    order in which the method `state` returns them. calls: of a step. delegated: how many parts a delegate took over.
    """

    content: bytes
    arena_bytes: dict[str, int]
    state_bytes: int
    state: tuple[tuple[str, tuple[int, ...], str], ...]
    operators: tuple[str, ...]
    calls: int
    delegated: int


class _WriteBackEarly(PassBase):
    def call(self, graph_module: torch.fx.GraphModule) -> PassResult:
        """Move the writes up."""
        views = (ops.edge.aten.view_copy.default, _aten.view_copy.default)
        write_back_early(graph_module.graph, views)
        graph_module.recompile()
        return PassResult(graph_module, True)


class _Planning(MemoryPlanningPass):
    """Plans memory, but none for what a write into a buffer returns, which is the buffer.

    The runtime's pass says so of the write, and leaves to the output a tensor of its own: together as large as the
    state, all at the end (executorch 1.5.1).
    """

    def run(self, graph_module: torch.fx.GraphModule, graph_signature: Any = None) -> PassResult:
        """Plan one method."""
        output = graph_module.graph.output_node()
        for node in output.all_input_nodes:
            if is_write(node):
                node.meta["spec"] = node.all_input_nodes[0].meta["spec"]
        results: Any = output.args[0]
        output.meta["spec"] = tuple(node.meta["spec"] for node in results)
        return super().run(graph_module, graph_signature)


def lower(recording: Recording, delegate: str = "none") -> Program:
    """Return the program of a recorded step.

    delegate: one of `DELEGATES`. Errors: ModelError, naming them, for operations that the runtime has not.
    """
    with _quiet():
        programs = {
            STEP_METHOD: _exported(recording.step, recording.inputs, recording),
            PREDICT_METHOD: _exported(recording.predict, (recording.inputs[0][:1],), recording),
        }
        state = tuple(_names(recording)[buffer] for buffer in _written(programs[STEP_METHOD]))
        programs[STATE_METHOD] = _exported(_State(recording, state), (), recording)
        edge = to_edge(
            programs,
            compile_config=EdgeCompileConfig(_check_ir_validity=False, preserve_ops=[_aten.linear.default]),
        )
        changed = {buffer_name(name) for name in state}
        if delegate == "xnnpack":
            edge = edge.to_backend(partitioner(changed))
        delegated = sum(check_delegates(edge.exported_program(name), changed) for name in programs)
        if refused := {each for name in programs for each in _refused(edge.exported_program(name).graph)}:
            raise _no_kernel(refused)
        made = edge.to_executorch(
            ExecutorchBackendConfig(
                passes=[InitializedMutableBufferPass([""]), _WriteBackEarly()],
                memory_planning_pass=_Planning(
                    MemoryPlanningAlgorithmSuite([greedy, in_place]), share_mutable_buffers=True
                ),
            )
        )
    plans = {plan.name: plan for plan in made.executorch_program.execution_plan}
    operators = sorted({_name(operator) for plan in plans.values() for operator in plan.operators})
    if missing := set(operators) - set(Runtime.get().operator_registry.operator_names):
        raise _no_kernel(missing)
    sizes = {name: plan.non_const_buffer_sizes for name, plan in plans.items()}
    return Program(
        bytes(made.buffer),
        {name: each[1] for name, each in sizes.items()},
        sizes[STEP_METHOD][2],
        tuple((name, *_shown(recording.values[name])) for name in state),
        tuple(operators),
        sum(len(chain.instructions) for chain in plans[STEP_METHOD].chains),
        delegated,
    )


def _refused(graph: torch.fx.Graph) -> Iterator[str]:
    """Yield what the compiler has no form of that writes into given memory, and what the runtime's kernels refuse."""
    for node in graph.nodes:
        target: Any = node.target
        if node.op != "call_function" or not isinstance(target, EdgeOpOverload):
            continue
        name = target._schema.name
        if name == "aten::convolution_backward" and (node.args[7] or node.args[2].meta["val"].dim() != 4):
            # Source: check_convolution_backward_args in kernels/portable/cpu/op_convolution_backward.cpp.
            yield f"{name} of {'a transposed convolution' if node.args[7] else 'other than two dimensions'}"
        try:
            target.to_out_variant()
        except RuntimeError:
            yield name


def _no_kernel(names: Set[str]) -> ModelError:
    return ModelError(
        f"the runtime has no kernel for {', '.join(sorted(names))}, which this network's training step needs; train it "
        "with PyTorch, or in a way that does not go through that layer"
    )


class _State(torch.nn.Module):
    """Returns how many steps were made, and what a step changes: the buffers themselves, not copies.

    The runtime's planner asks for a result that it may place, so that the number of steps is computed.
    """

    def __init__(self, recording: Recording, names: tuple[str, ...]):
        super().__init__()
        self.names = [buffer_name(name) for name in names]
        for name in names:
            self.register_buffer(buffer_name(name), recording.values[name])

    def forward(self):
        """Return them all."""
        return getattr(self, STEP) + 0, *(getattr(self, name) for name in self.names)


def _shown(value: torch.Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(value.shape), str(value.dtype).removeprefix("torch.")


def _names(recording: Recording) -> dict[str, str]:
    """Return state-dict names by those of buffers."""
    return {buffer_name(name): name for name in recording.values}


def _written(program: ExportedProgram) -> tuple[str, ...]:
    """Return the buffers that a program writes."""
    return tuple(program.graph_signature.buffers_to_mutate.values())


def _name(operator: Any) -> str:
    return f"{operator.name}.{operator.overload}" if operator.overload else operator.name


def _exported(module: torch.nn.Module, inputs: tuple, recording: Recording) -> ExportedProgram:
    program = torch.export.export(module, inputs, strict=False).run_decompositions({})
    graph, signature = program.graph_module.graph, program.graph_signature
    inputs_by_name: Any = signature.user_inputs  # names, since all inputs are tensors
    simplify(graph)
    if signature.buffers_to_mutate:
        nodes = {node.name: node for node in graph.nodes}
        images, labels = (nodes[name] for name in inputs_by_name[:2])
        parameters = {buffer_name(name): name for name in recording.trained}
        updates = {nodes[made]: _parameter(buffer, parameters) for made, buffer in signature.buffers_to_mutate.items()}
        hoist_updates(graph, labels, images, {node: name for node, name in updates.items() if name})
    program.graph_module.recompile()
    return program


def _parameter(buffer: str, parameters: dict[str, str]) -> str:
    """Return the parameter that a buffer belongs to: its own name, or what stands behind 'optimizer:kind:'."""
    return parameters.get(buffer.rpartition(":")[2], "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the compiler says of itself; errors come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
