"""The moments of a training step as a table, for plots: what is in memory at each, and how long it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from ..accounting.table import whole_step
from ..step.simulation import CATEGORIES

if TYPE_CHECKING:
    import pandas

    from ..answers.footprint import Footprint

# A moment lasts as long as its FLOPs at the processor's peak or its bytes at the memory's bandwidth, the longer one.
# Assumption: a processor with 9 FLOPs for each byte of bandwidth, as those of a Raspberry Pi Zero 2 W (8.9) and of a
# Raspberry Pi 5 (9.0) have; planner/devices has both numbers with their sources.
FLOPS_PER_BYTE = 9.0


def timeline_data(answer: Footprint) -> pandas.DataFrame:
    """Return a row per moment of the training step, in order.

    Columns: moment (from 0), phase, layer, `<category>_bytes` for each category, total_bytes, peak: whether it is the
    footprint's peak, and duration: its roofline time, in FLOPs at the peak rate. What happens at a moment's end, such
    as the loss, takes no time. Errors: InputError for an accounting that does not follow a whole step.
    """
    import pandas

    whole_step(answer.accounting, "has no moments to draw")
    columns = [f"{category}_bytes" for category in CATEGORIES]
    frame = pandas.DataFrame([moment.by_category for moment in answer.moments], columns=columns)
    frame["total_bytes"] = frame.sum(axis=1)
    frame["peak"] = [moment is answer.peak for moment in answer.moments]
    frame["duration"] = list(_durations(answer))
    frame.insert(0, "layer", [moment.layer for moment in answer.moments])
    frame.insert(0, "phase", [moment.phase for moment in answer.moments])
    return frame.rename_axis("moment").reset_index()


def _durations(answer: Footprint) -> Iterator[float]:
    """Yield each moment's roofline time; a layer that runs in several pieces has a share of its time in each."""
    works = {**_of_layers(answer), **_of_updates(answer)}
    moments = [(moment.phase, moment.layer) for moment in answer.moments]
    often = Counter(moments)
    # Of many micro-batches the moments are those of the first two.
    shown = min(answer.step.passes, 2) / answer.step.passes
    for phase, layer in moments:
        again = phase == "recompute"
        work = works.get(("forward" if again else phase, layer), 0)
        yield work * (1 if phase == "update" else shown) / often[phase, layer]


def _of_layers(answer: Footprint) -> dict[tuple[str, str], float]:
    each = answer.step.precision.activation_bytes
    works = {}
    for layer, row in zip(answer.graph.layers, answer.to_frame("layer").to_dict("records"), strict=True):
        tensors = [] if layer.is_view else [*layer.inputs.values(), *layer.outputs]
        moved = FLOPS_PER_BYTE * sum(tensor.bytes(answer.batch, each) for tensor in tensors)
        works["forward", layer.name] = max(row["forward_flops"], moved)
        # Backward reads what forward read or wrote, and reads or writes as much of gradients.
        works["backward", layer.name] = max(row["backward_flops"], 2 * moved)
    return works


def _of_updates(answer: Footprint) -> dict[tuple[str, str], float]:
    """An update reads a weight and its gradient and writes the weight."""
    trained = answer.requirements.trained_elements
    return {("update", name): FLOPS_PER_BYTE * 3 * 4 * elements for name, elements in trained.items()}


def phase_spans(data: pandas.DataFrame) -> list[tuple[str, int, int]]:
    """Return (phase, first moment, last moment) of each run of moments of one phase, in order."""
    spans = []
    for phase, moments in groupby(zip(data["phase"], data["moment"], strict=True), key=lambda pair: pair[0]):
        numbers = [number for _, number in moments]
        spans.append((phase, numbers[0], numbers[-1]))
    return spans
