"""A training step: a network trained in a way, carried out by a schedule, in a precision.

It is what is priced, verified, planned and applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..accounting.kernels import Kernels, as_kernels
from ..accounting.requirements import Requirements, requirements
from ..accounting.table import ACCOUNTINGS
from ..errors import InputError, require_count
from ..graph.layer_graph import LayerGraph
from ..methods.table import Trained, way_of
from ..methods.way import Options, Way
from .optimizers import OPTIMIZERS
from .precision import Precision
from .schedule import PLAIN, Schedule

FLOAT32, FULL = Precision(), Way()


@dataclass(frozen=True)
class Step:
    """One training step.

    batch: images per update. optimizer, accounting: names in `OPTIMIZERS` and `ACCOUNTINGS`. first_step: the step in
    which the optimizer's state is made, not a later one. kernels: whose working memory counts; None is the accounting's
    own.

    Errors: InputError for a name or number that does not exist or does not fit.
    """

    graph: LayerGraph
    way: Way = FULL
    batch: int = 8
    schedule: Schedule = PLAIN
    precision: Precision = FLOAT32
    optimizer: str = "sgd"
    accounting: str = "lean"
    first_step: bool = False
    kernels: Kernels | None = None

    def __post_init__(self) -> None:
        require_count("batch", self.batch)
        self.schedule.images_per_pass(self.batch)
        OPTIMIZERS.find(self.optimizer)
        ACCOUNTINGS.find(self.accounting)

    @property
    def micro_batch(self) -> int:
        """Images per forward and backward pass."""
        return self.schedule.images_per_pass(self.batch)

    @property
    def passes(self) -> int:
        """Forward and backward passes per update."""
        return self.batch // self.micro_batch

    @property
    def requirements(self) -> Requirements:
        """What the way requires of the network, worked out. Errors: those of `requirements`."""
        return requirements(self.graph, self.way, self.accounting)

    @property
    def label(self) -> str:
        """The step for people, but for the network and the way."""
        schedule, graph = self.schedule.label(self.batch), self.graph
        parts = [
            f"batch {self.batch}{' ' + schedule if schedule else ''}", graph.input_label,
            f"{graph.classes} classes", self.optimizer, f"accounting {self.accounting}",
        ]  # fmt: skip
        return ", ".join([*parts, *([self.precision.label] if self.precision.label else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return the step as plain values for JSON."""
        return {
            "model": self.graph.model,
            **self.way.to_dict(),
            "batch": self.batch,
            "resolution": self.graph.resolution,
            "input": self.graph.input_label,
            "classes": self.graph.classes,
            "optimizer": self.optimizer,
            "accounting": self.accounting,
            **self.schedule.to_dict(self.batch),
            **self.precision.to_dict(),
        }


def step_of(
    graph: LayerGraph,
    method: str | None = None,
    blocks: int | None = None,
    batch: int = 8,
    optimizer: str = "sgd",
    accounting: str = "lean",
    *,
    options: Options | None = None,
    trained: Trained | None = None,
    micro_batch: int | None = None,
    activation_dtype: str = "float32",
    frozen_dtype: str = "float32",
    inplace_update: bool = False,
    first_step: bool = False,
    kernels: Kernels | str | None = None,
    schedule: Schedule | None = None,
) -> Step:
    """Return the step that the short form of a question means; see `costmodel.footprint` for the arguments.

    Errors: InputError for a name, depth or number that does not exist or does not fit.
    """
    if schedule is not None and (micro_batch is not None or inplace_update):
        raise InputError("a schedule says the micro-batch and the updates itself; give it alone, or these without it")
    return Step(
        graph, way_of(graph, method, blocks, options, trained), batch,
        schedule or Schedule(micro_batch, inplace_update),
        Precision(frozen=frozen_dtype, activations=activation_dtype), optimizer, accounting, first_step,
        None if kernels is None else as_kernels(kernels),
    )  # fmt: skip
