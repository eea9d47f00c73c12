"""`executorch`: a step as `costmodel.export` writes it for ExecuTorch, value by value in the runtime's arena.

What is counted differs from PyTorch's step:

    the arena    a value takes memory from the call that makes it to the last call that reads it; a view takes none, and
                 the result of an element-wise call lies where an operand of its size lies that ends there. The
                 gradient of a parameter ends with its update, which comes as soon as it is there.
    the state    trained parameters and the optimizer's state lie in memory of their own, beside the arena
    the file     frozen weights and buffers are mapped from the program's file; of what trains the file holds first
                 values, whose pages are let go when they are copied
    the calls    take memory for themselves: instructions in the file, structures of the runtime; counted with buffers
    flash        `executorch-flash` is the same on a microcontroller, which reads the file where it is stored: weights
                 that do not train and instructions take no RAM
    the batch    lies once more beside the arena, as the runner read it; counted with buffers

    a schedule   of a prefix in pieces, each image is copied into its piece, and the results into one tensor; what runs
                 again is computed again when it is asked for; gradients of passes are added up in the arena

Kept for backward is what `lean` keeps; working memory of kernels is none: portable kernels are loops. Values of one
number per channel count where they are kept (mean and deviation of a norm); smaller ones do not, nor that the runtime
rounds every size up to 16 bytes.

Source: costmodel/export; compared with the plans of exported programs in tests/costmodel/export/test_export.py and
benchmarks/export_executorch.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate

from ..graph.layer_graph import LayerGraph
from ..methods.assignment import Assignment
from .books import Accounting, Books, Execution, Instant, Part, PartBytes
from .exported_step import ExportedStep
from .lean import LEAN

# What the process takes beside arena, state, weights and calls: pages of libraries, 8,752 KiB, and some heap. Source:
# /proc/PID/smaps of the C++ runner on x86-64; executorch 1.5.1, portable kernels. Assumption: as much on Arm; with
# XNNPACK's library more.
RUNTIME_BYTES = 9_000_000
# Source: two programs of one network that differ in 668 calls: 259,968 bytes of file, and 749 KiB of heap (smaps),
# which is the part in RAM of a device that reads the file in its flash.
CALL_BYTES, CALL_BYTES_IN_RAM = 1_540, 1_150


def _timeline(
    graph: LayerGraph, assignment: Assignment, books: Books, how: Execution, in_flash: bool = False
) -> list[Instant]:
    """Return the arena at each call, beside the file and the state. in_flash: with the file in flash."""
    step = ExportedStep(graph, assignment, books, how)
    step.run()
    program = step.program
    turns = [number for number, (phase, _) in enumerate(program.places) if phase == "loss"]
    changes = [[0, 0, 0] for _ in range(len(program.places) + 1)]
    for size, first, last in program.finish():
        kind = 0 if first == 0 else 1 if any(first < turn <= last for turn in turns) else 2
        changes[first][kind] += size
        changes[last + 1][kind] -= size
    calls = len(program.places) + step.further_calls
    stays = {*graph.parameters, *graph.buffers} - assignment.trained - step.running_statistics if in_flash else set()
    weights, buffers = (
        sum(tensor.bytes(1) for name, tensor in each.items() if name not in stays)
        for each in (graph.parameters, graph.buffers)
    )
    batch = how.passes * graph.input.bytes(how.batch, how.float_bytes)  # as the runner read it
    of_calls = calls * (CALL_BYTES_IN_RAM if in_flash else CALL_BYTES)
    fixed = {"weights": weights, "buffers": buffers + batch + of_calls}
    now, found = [0, 0, 0], []
    for (phase, layer), change in zip(program.places, changes, strict=False):
        now = [one + more for one, more in zip(now, change, strict=True)]
        found.append((phase, layer, fixed | dict(zip(("input", "saved_activations", "transient"), now, strict=True))))
    return found


def _part(graph: LayerGraph, assignment: Assignment, books: Books, how: Execution, part: Part) -> PartBytes:
    """Return what the layers of a part take of the arena by themselves."""
    step = ExportedStep(graph, assignment, books, how)
    program = step.program
    step.made = {part.given.id: program.call(0 if part.given_is_kept else step.size(part.given))}
    step.run_forward(part.layers)
    turn = len(program.places)
    if part.result is None:
        step.loss()
    else:
        program.leave(program.call(0, step.value(part.result)))  # which the next part reads
        if part.counts_result:
            program.leave(program.call(0, step.value(part.result)))  # in its backward, too
        step.gradients[part.result.id] = program.call(step.size(part.result))
    step.run_backward(part.layers)
    program.leave(program.call(0, step.gradients.get(part.given.id)))
    live = [0] * (len(program.places) + 1)
    kept = 0
    for size, first, last in program.finish():
        live[first] += size
        live[last + 1] -= size
        kept += size if first < turn < last else 0
    live = list(accumulate(live))
    return PartBytes(kept, max(live[:turn]), max(live[turn:]))


EXECUTORCH = Accounting(
    "executorch",
    "a step exported to ExecuTorch: values in its arena, the state beside it, weights in the program's file",
    "costmodel/export, checked against the plans of exported programs",
    LEAN.keep,
    timeline=_timeline,
    part=_part,
    is_carried_out=True,
    runtime_bytes=RUNTIME_BYTES,
    leaves_out="the runtime's own code",
)
EXECUTORCH_FLASH = replace(
    EXECUTORCH,
    name="executorch-flash",
    summary="executorch on a microcontroller: weights that do not train stay in flash",
    timeline=partial(_timeline, in_flash=True),
    runtime_bytes=None,
    in_flash=True,
)
