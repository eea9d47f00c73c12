"""What it costs to fine-tune a network by a method: the one entry point that puts the parts together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .accounting import Books
from .assignment import Assignment
from .blocks import parts
from .errors import InputError, unknown
from .gradients import Wanted
from .graph import LayerGraph
from .methods import Trained
from .optimizers import optimizer as find_optimizer
from .rules import Facts
from .step import ACTIVATION_BYTES, FROZEN_BYTES, TrainingStep, training_step
from .timeline import CATEGORIES, Moment
from .traffic import update_bytes
from .units import format_bytes, format_count

if TYPE_CHECKING:
    import pandas

CONVENTION = (
    "1 MAC = 2 FLOPs; forward, backward and recompute count convolutions and matrix products, elementwise apart; "
    "one update of `batch` images"
)
GROUPINGS = ("layer", "block", "operation", "tensor")
_TENSOR_COLUMNS = ["tensor", "part", "shape", "bits", "bytes", "needed_for", "layers"]


@dataclass(frozen=True)
class Footprint:
    """The cost of one training step, from the second one on (the optimizer's state exists).

    `batch` images per update, in micro-batches of `micro_batch`. Bytes are exact integers; FLOPs are those of the whole
    update (see `CONVENTION`).
    """

    step: TrainingStep
    batch: int
    micro_batch: int
    optimizer: str
    activation_dtype: str
    frozen_dtype: str
    inplace_update: bool
    moments: tuple[Moment, ...]

    # --- what was asked -------------------------------------------------------------------------------------------

    @property
    def graph(self) -> LayerGraph:
        """The network that trains, with what the method put into it."""
        return self.step.graph

    @property
    def method(self) -> str:
        """The method's name; 'custom' where the trained parameters were given."""
        return self.step.method

    @property
    def blocks(self) -> int | None:
        """The number of trained blocks, if the method takes one."""
        return self.step.blocks

    @property
    def options(self) -> Mapping[str, object]:
        """What else was chosen of the method."""
        return self.step.options

    @property
    def accounting(self) -> str:
        """The name of the books."""
        return self.step.accounting

    @property
    def assignment(self) -> Assignment:
        """What trains, and how."""
        return self.step.assignment

    @property
    def facts(self) -> tuple[Facts, ...]:
        """What the rules say of each layer."""
        return self.step.facts

    @property
    def wanted(self) -> Wanted:
        """By layer index, the arguments whose gradient is computed."""
        return self.step.wanted

    @property
    def books(self) -> Books:
        """What is kept for backward."""
        return self.step.books

    # --- memory ---------------------------------------------------------------------------------------------------

    @property
    def saved_bytes(self) -> int:
        """Bytes kept by one forward pass for backward: unique storages, the network's input included if kept."""
        return self.step.saved_bytes(self.micro_batch, ACTIVATION_BYTES[self.activation_dtype])

    @cached_property
    def peak(self) -> Moment:
        """The moment of the step at which most memory is taken (the first of equals)."""
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most memory that the step takes at any moment."""
        return self.peak.total_bytes

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes by category at the peak, and their sum `peak`."""
        return {**dict(zip(CATEGORIES, self.peak.by_category, strict=True)), "peak": self.peak_bytes}

    def _most(self, category: str) -> int:
        index = CATEGORIES.index(category)
        return max(moment.by_category[index] for moment in self.moments)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters as they are stored."""
        return self._most("weights")

    @property
    def gradients_bytes(self) -> int:
        """The most bytes of parameter gradients at any moment."""
        return self._most("gradients")

    @property
    def optimizer_bytes(self) -> int:
        """Bytes that the optimizer keeps between steps."""
        return self._most("optimizer")

    @property
    def trained_parameters(self) -> int:
        """How many numbers train."""
        return self.step.trained_parameters

    # --- compute --------------------------------------------------------------------------------------------------

    def _times(self, index: int) -> int:
        """How often a layer's counts happen per update: per image, or per micro-batch if they do not grow with it."""
        return self.batch if self.graph.layers[index].output.batched else self.batch // self.micro_batch

    @cached_property
    def flops(self) -> dict[str, Any]:
        """FLOPs of one update by phase; see `CONVENTION`."""
        counts = self.step.flops(self.batch, self.batch // self.micro_batch)
        backward = counts["backward_input"] + counts["backward_weight"]
        return {
            "forward": counts["forward"],
            "backward": backward,
            "backward_input": counts["backward_input"],
            "backward_weight": counts["backward_weight"],
            "recompute": counts["recompute"],
            "total": counts["forward"] + backward + counts["recompute"],
            "elementwise": {
                "forward": counts["elementwise_forward"],
                "backward": counts["elementwise_backward"],
                "update": find_optimizer(self.optimizer).flops_per_parameter * self.trained_parameters,
            },
            "convention": CONVENTION,
        }

    @cached_property
    def moved_bytes(self) -> int:
        """Bytes that one update reads from and writes to memory; see `costmodel.traffic` for what is assumed."""
        each = self.step.pass_bytes(self.micro_batch, self.activation_dtype, self.frozen_dtype)
        update = update_bytes(self.step.trained_bytes, find_optimizer(self.optimizer))
        return self.batch // self.micro_batch * each + update

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward passes."""
        return self.flops["forward"]

    @property
    def backward_flops(self) -> int:
        """FLOPs of the backward passes, gradients of inputs and weights together, nothing recomputed."""
        return self.flops["backward"]

    @property
    def total_flops(self) -> int:
        """FLOPs of forward, backward and what is recomputed."""
        return self.flops["total"]

    # --- views ----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain values."""
        return {
            "model": self.graph.model,
            "method": self.method,
            "blocks": self.blocks,
            **({"options": dict(self.options)} if self.options else {}),
            "batch": self.batch,
            "micro_batch": self.micro_batch,
            "resolution": self.graph.resolution,
            "classes": self.graph.classes,
            "optimizer": self.optimizer,
            "accounting": self.accounting,
            "activation_dtype": self.activation_dtype,
            "frozen_dtype": self.frozen_dtype,
            "inplace_update": self.inplace_update,
            "saved_bytes": self.saved_bytes,
            "memory_bytes": self.memory_bytes,
            "peak": {"layer": self.peak.layer, "phase": self.peak.phase},
            "flops": self.flops,
            "trained_parameters": self.trained_parameters,
        }

    def to_frame(self, by: str = "layer") -> pandas.DataFrame:
        """Return the same numbers in rows: by `layer`, `block`, `operation` or saved `tensor`.

        Bytes of a tensor that several layers keep stand with the first of them, so that every grouping adds up to
        `saved_bytes`; FLOPs add up to `flops`.
        """
        import pandas

        if by not in GROUPINGS:
            raise unknown("grouping", by, GROUPINGS)
        if by == "tensor":
            return pandas.DataFrame(self._tensor_rows(), columns=_TENSOR_COLUMNS)
        frame = pandas.DataFrame(self._layer_rows())
        if by == "layer":
            return frame
        key = {"block": "part", "operation": "operation"}[by]
        numbers = ["parameters", "trained_parameters", "saved_bytes", "forward_flops", "backward_flops"]
        return frame.groupby(key, sort=False)[numbers].sum().reset_index()

    def _layer_rows(self) -> list[dict[str, Any]]:
        cut = parts(self.graph)
        each = ACTIVATION_BYTES[self.activation_dtype]
        first_user = {key: min(saved.uses) for key, saved in self.books.saved.items()}
        rows, counted = [], set()
        for layer, facts in zip(self.graph.layers, self.facts, strict=True):
            own = {tensor.name: tensor.elements for tensor in layer.parameters.values() if tensor.name not in counted}
            counted.update(own)
            times, roles = self._times(layer.index), self.wanted.get(layer.index, ())
            saved = (self.books.saved[key] for key in self.books.by_layer.get(layer.index, ())
                     if first_user[key] == layer.index)  # fmt: skip
            rows.append({
                "layer": layer.name,
                "operation": layer.op,
                "part": cut.where(layer),
                "output": layer.output.shape_text,
                "parameters": sum(own.values()),
                "trained_parameters": sum(
                    self.assignment.trained_elements.get(name, n)
                    for name, n in own.items()
                    if name in self.assignment.trained
                ),
                "saved_bytes": sum(item.bytes(self.micro_batch, each) for item in saved),
                "forward_flops": times * facts.forward_flops,
                "backward_flops": times * sum(facts.backward_flops.get(role, 0) for role in roles),
            })  # fmt: skip
        return rows

    def _tensor_rows(self) -> list[dict[str, Any]]:
        cut, layers = parts(self.graph), self.graph.layers
        each = ACTIVATION_BYTES[self.activation_dtype]
        return [
            {
                "tensor": f"{layers[min(saved.uses)].name}: {saved.what}",
                "part": cut.where(layers[min(saved.uses)]),
                "shape": saved.shape,
                "bits": 8 * each if saved.follows_precision else saved.bits,
                "bytes": saved.bytes(self.micro_batch, each),
                "needed_for": ", ".join(
                    f"{layers[index].name}: {' '.join(roles)}" for index, roles in sorted(saved.uses.items())
                ),
                "layers": len(saved.uses),
            }
            for saved in self.books.saved.values()
        ]

    def summary(self) -> list[tuple[str, str]]:
        """Return the answer as (label, text) pairs for people."""
        depth = f", last {self.blocks} blocks" if self.blocks is not None else ""
        depth += "".join(f", {name} {value}" for name, value in self.options.items())
        micro = f" in micro-batches of {self.micro_batch}" if self.micro_batch != self.batch else ""
        flops = self.flops
        rows = [
            ("method", f"{self.method}{depth}"),
            ("step", f"batch {self.batch}{micro}, {self.graph.resolution}x{self.graph.resolution}, {self.optimizer}, "
                     f"accounting {self.accounting}"),
            ("peak memory", f"{format_bytes(self.peak_bytes)} ({self.peak.phase}, {self.peak.layer or '-'})"),
        ]  # fmt: skip
        rows += [
            (f"  {name.replace('_', ' ')}", format_bytes(count))
            for name, count in self.memory_bytes.items()
            if name != "peak"
        ]
        rows += [
            ("saved for backward", format_bytes(self.saved_bytes)),
            ("FLOPs", f"{format_count(flops['total'])} (forward {format_count(flops['forward'])}, "
                      f"backward {format_count(flops['backward'])})"),
            ("trained parameters", f"{format_count(self.trained_parameters)} of "
                                   f"{format_count(self.graph.parameter_count)}"),
        ]  # fmt: skip
        return rows

    def __rich__(self):
        from rich.table import Table

        table = Table(title=self.graph.model, show_header=False, title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column(justify="left")
        for label, text in self.summary():
            table.add_row(label, text, style="bold" if label == "peak memory" else "")
        return table

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in self.summary())
        return f"<table><caption>{escape(self.graph.model)}</caption>{rows}</table>"

    def __repr__(self) -> str:
        depth = "" if self.blocks is None else f", blocks={self.blocks}"
        return (
            f"Footprint({self.graph.model}, {self.method}{depth}, batch={self.batch}, accounting={self.accounting}: "
            f"peak {format_bytes(self.peak_bytes)}, saved {format_bytes(self.saved_bytes)})"
        )


def footprint(
    graph: LayerGraph,
    method: str | None = None,
    blocks: int | None = None,
    batch: int = 8,
    optimizer: str = "sgd",
    accounting: str = "lean",
    *,
    options: Mapping[str, object] | None = None,
    trained: Trained | None = None,
    micro_batch: int | None = None,
    activation_dtype: str = "float32",
    frozen_dtype: str = "float32",
    inplace_update: bool = False,
    first_step: bool = False,
    kernels: str | None = None,
) -> Footprint:
    """Return what one training step of a traced network costs.

    method, blocks: a name in `METHODS` (default: full), and the number of trained blocks if it takes one.
    options: what else the method lets one choose (`METHODS[name].options` has the defaults), such as {"patch": 4}.
    trained: instead of a method, which parameters train: their names, or a function of the name. All batch norms use
        the batch's statistics then, as after a plain `model.train()`.
    batch: images per update. micro_batch: images per forward pass (default: all); their gradients are added up.
    optimizer: a name in `OPTIMIZERS`. accounting: a name in `ACCOUNTINGS`.
    activation_dtype: float32, or float16 or bfloat16 under autocast (weights and gradients stay float32).
    frozen_dtype: how frozen parameters are stored: float32, float16 or int8. inplace_update: every parameter is updated
    and its gradient freed as soon as it is there. first_step: the step in which the optimizer's state is made.
    kernels: whose working memory counts, a name in `costmodel.workspaces` (default: the accounting's own).

    Errors: InputError for a name, depth or number that does not exist or does not fit; UnknownOperationError for a
    layer without a rule.
    """
    update = find_optimizer(optimizer)
    micro_batch = _check_batches(batch, micro_batch, inplace_update)
    for kind, given, allowed in (
        ("activation dtype", activation_dtype, ACTIVATION_BYTES),
        ("dtype of frozen weights", frozen_dtype, FROZEN_BYTES),
    ):
        if given not in allowed:
            raise unknown(kind, given, allowed)
    step = training_step(graph, method, blocks, accounting, options=options, trained=trained)
    sizes = step.sizes(micro_batch, activation_dtype, frozen_dtype, kernels)
    moments = step.moments(sizes, update, batch // micro_batch, inplace_update, first_step)
    return Footprint(
        step, batch, micro_batch, update.name, activation_dtype, frozen_dtype, inplace_update, tuple(moments)
    )


def _check_batches(batch: int, micro_batch: int | None, inplace_update: bool) -> int:
    micro_batch = batch if micro_batch is None else micro_batch
    for name, value in (("batch", batch), ("micro_batch", micro_batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of 1 or more, not {value!r}")
    if batch % micro_batch:
        raise InputError(f"micro_batch must divide batch, but {micro_batch} does not divide {batch}")
    if inplace_update and micro_batch != batch:
        raise InputError(
            "inplace_update frees each gradient at once, so gradients of micro-batches cannot be added up; "
            "leave out micro_batch or inplace_update"
        )
    return micro_batch
