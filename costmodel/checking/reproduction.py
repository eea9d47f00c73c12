"""Published next to computed: every number of `accounting/published.csv` recomputed by the rule of its paper.

A row's `expected` is 'reproduced' (the computed number prints as the published one) or 'differs': then `rule_gives`
says what the rule gives, and `reason` why or how far that is understood. An expectation breaks if either is not so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ..accounting.mobiletl_figure1 import FigureBooks
from ..answers.footprint import Footprint, footprint
from ..errors import InputError
from ..graph.blocks import block_count, parts
from ..graph.layer_graph import LayerGraph
from ..methods.table import way
from ..methods.way import Way, read_options
from ..step.step import Step
from ..traces.stored import trace
from ..units import scale_of

SAVING, STORED_IN, STORED, FLOPS_SAVING = "saving of block ", "stored in block ", "stored activations", "FLOPs saving"
PASSES = {"forward FLOPs": "forward", "backward FLOPs": "backward"}


def _or_none(text: object) -> object:
    return None if text == "" else text


Depth = Annotated[int | None, BeforeValidator(_or_none)]
Number = Annotated[float | None, BeforeValidator(_or_none)]


class Published(BaseModel):
    """A published number and how it is recomputed. `blocks` and `classes` are None where they play no part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    table: str
    network: str
    method: str
    blocks: Depth
    options: Annotated[dict[str, str], BeforeValidator(lambda text: read_options(text.split()))]
    classes: Depth
    resolution: int
    batch: int
    accounting: str
    quantity: str
    value: float
    unit: str
    tolerance: float
    rounding: str
    expected: str
    rule_gives: Number
    reason: str

    @property
    def way(self) -> Way:
        """What trains."""
        return way(self.method, self.blocks, self.options)


@dataclass(frozen=True)
class Reproduction:
    """A published number and what the rule gives, in the same unit."""

    published: Published
    computed: float

    @property
    def reproduced(self) -> bool:
        """Whether the computed number prints as the published one."""
        return _prints_as(self.computed, self.published.value, self.published)

    @property
    def as_expected(self) -> bool:
        """Whether the row's expectation holds."""
        if self.published.expected == "reproduced":
            return self.reproduced
        gives = self.published.rule_gives
        return not self.reproduced and gives is not None and _prints_as(self.computed, gives, self.published)


def _prints_as(computed: float, value: float, row: Published) -> bool:
    if row.rounding == "down":  # printed without what is behind the point
        return 0 <= computed - value < row.tolerance
    return abs(computed - value) <= row.tolerance * (1 + 1e-9)


@cache
def published() -> tuple[Published, ...]:
    """Return the published numbers in the file's order."""
    text = files("costmodel.checking").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(Published.model_validate(row) for row in csv.DictReader(text.splitlines()))


@cache
def _traced(network: str, resolution: int, classes: int | None) -> LayerGraph:
    return trace(network, resolution, classes)


def reproduce() -> list[Reproduction]:
    """Return every published number with what the rule gives."""
    return [Reproduction(row, compute(row)) for row in published()]


def compute(row: Published) -> float:
    """Return the number of a row by its rule, in its unit."""
    graph = _traced(row.network, row.resolution, row.classes)

    def of(way: Way) -> Footprint:
        return footprint(Step(graph, way, row.batch, accounting=row.accounting))

    answer = of(row.way)
    if row.quantity == "memory":
        return answer.peak_bytes / scale_of(row.unit)
    if row.quantity == "parameters":
        return answer.weights_bytes / scale_of(row.unit)
    if row.quantity == "trained":
        return answer.trained_parameters
    if row.quantity == STORED:
        return answer.saved_bytes / scale_of(row.unit)
    if row.quantity.startswith(STORED_IN):
        return _of_part(answer, f"block {row.quantity.removeprefix(STORED_IN)}") / scale_of(row.unit)
    if row.quantity in PASSES:
        return _flops(answer, PASSES[row.quantity]) / 1e6
    if row.quantity == FLOPS_SAVING:
        ours, full = (sum(_flops(each, name) for name in PASSES.values()) for each in (answer, of(Way("full"))))
        return 100 * (1 - ours / full)
    if row.quantity.startswith(SAVING):
        part = f"block {row.quantity.removeprefix(SAVING)}"
        plain = of(Way("blocks", row.blocks))
        return 100 * (1 - _of_part(answer, part) / _of_part(plain, part))
    raise InputError(f"unknown quantity {row.quantity!r} in published.csv")


def _flops(answer: Footprint, name: str) -> int:
    """Return the FLOPs of a pass, element-wise work included."""
    return answer.flops[name] + answer.flops["elementwise"][name]


def _of_part(answer: Footprint, part: str) -> int:
    frame = answer.to_frame("block")
    return int(frame.loc[frame.part == part, "saved_bytes"].sum())


@dataclass(frozen=True)
class Variant:
    """A way of counting that was tried, and what it gives for a published number (in %)."""

    claim: str
    published: float
    counting: str
    gives: float


def variants() -> Iterator[Variant]:
    """Yield the ways of counting that were tried for MobileTL's blocks, whose rule is not stated in full."""
    yield from _block_variants()


_BOOKS = {
    "ReLU6 at 2 bits, squeeze-excite's feature map and vectors": {},
    "ReLU6 at 1 bit": {"relu6_bits": 1},
    "ReLU6 at 32 bits (its input)": {"relu6_bits": 32},
    "without squeeze-excite's vectors": {"gate_vectors": False},
    "without squeeze-excite's feature map": {"gate_input": False},
}


def _block_variants() -> Iterator[Variant]:
    """Yield the saving of a block of expansion 6, as wide at its end as at its beginning."""
    for network, block, claimed in (("mobilenet_v2", 16, 46.3), ("mobilenet_v3_large", 15, 53.3)):
        graph = _traced(f"torchvision:{network}", 224, None)
        inside = parts(graph).blocks[block - 1]
        for counting, choices in _BOOKS.items():
            sums = []
            for method in ("blocks", "mobiletl"):
                answer = footprint(graph, method, block_count(graph), 1)
                books = FigureBooks(**choices)(answer.graph, answer.assignment, list(answer.facts), answer.wanted)
                first_users = ((saved, graph.layers[min(saved.uses)]) for saved in books.saved.values())
                sums.append(sum(saved.total_bits(1) for saved, layer in first_users if layer in inside))
            yield Variant(f"stored activations of a block, {network}", claimed, counting, 100 * (1 - sums[1] / sums[0]))


@dataclass(frozen=True)
class NotRecomputed:
    """A published number that nobody can recompute: why not, and the least and most that it could be, in MB."""

    claim: str
    published: float
    reason: str
    low: float
    high: float


def not_recomputed() -> Iterator[NotRecomputed]:
    """Yield the numbers whose network is not published, with what can be checked. Errors: those of `trace`."""
    sizes = []
    for chosen in ("d=2,k=3,e=3", "d=4,k=7,e=6"):
        step = Step(_traced(f"zoo:ofa_proxyless@{chosen}", 256, 102), Way("tinytl-lb"), 8, accounting="tinytl")
        sizes.append(footprint(step).peak_bytes / 1e6)
    yield NotRecomputed(
        "TinyTL with feature extractor adaptation, memory at 256 pixels, Table 3", 66.0,
        "the sub-networks that were chosen are not published; all of zoo:ofa_proxyless lie between the smallest and "
        "the largest, by the same rule with 102 classes", *sizes,
    )  # fmt: skip


CONCLUSION = "MobileTL's 46.3 % and 53.3 %, and the megabytes of its block figure, come out of one rule."


def to_records(results: list[Reproduction]) -> list[dict[str, Any]]:
    """Return the rows as plain values."""
    return [
        {
            **result.published.model_dump(),
            "computed": result.computed,
            "reproduced": result.reproduced,
            "as_expected": result.as_expected,
        }
        for result in results
    ]
