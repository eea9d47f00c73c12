"""What it costs to fine-tune a network by a method: the one entry point that puts the parts together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..accounting.books import Books
from ..accounting.gradients import Wanted
from ..accounting.kernels import Kernels
from ..accounting.requirements import Requirements
from ..errors import InputError, unknown
from ..graph.blocks import parts
from ..graph.layer_graph import LayerGraph
from ..methods.assignment import Assignment
from ..methods.table import Trained
from ..methods.way import Options, Way
from ..rules.facts import Facts
from ..rules.table import RULES
from ..step.cache import CacheCost
from ..step.optimizers import OPTIMIZERS
from ..step.precision import float32_under_autocast
from ..step.regions import again, recomputed_flops, saved_bytes, skipped, skipped_flops
from ..step.schedule import Schedule
from ..step.simulation import CATEGORIES, INPUT, SAVED, TRANSIENT, Moment
from ..step.sizes import trained_bytes
from ..step.step import Step, step_of
from ..step.timeline import moments
from ..step.traffic import pass_bytes, update_bytes
from ..units import format_bytes, format_count

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

    Bytes are exact integers; FLOPs are those of the whole update (see `CONVENTION`).
    """

    step: Step
    moments: tuple[Moment[int], ...]

    # --- what was asked -------------------------------------------------------------------------------------------

    @property
    def requirements(self) -> Requirements:
        """What the way requires of the network."""
        return self.step.requirements

    @property
    def graph(self) -> LayerGraph:
        """The network that trains, with what the method put into it."""
        return self.requirements.graph

    @property
    def way(self) -> Way:
        """What trains, and how."""
        return self.step.way

    @property
    def method(self) -> str:
        """The method's name; 'custom' where the trained parameters were given."""
        return self.way.method

    @property
    def blocks(self) -> int | None:
        """The number of trained blocks, if the method takes one."""
        return self.way.blocks

    @property
    def batch(self) -> int:
        """Images per update."""
        return self.step.batch

    @property
    def micro_batch(self) -> int:
        """Images per forward and backward pass."""
        return self.step.micro_batch

    @property
    def optimizer(self) -> str:
        """The optimizer's name."""
        return self.step.optimizer

    @property
    def accounting(self) -> str:
        """The name of the books."""
        return self.step.accounting

    @property
    def assignment(self) -> Assignment:
        """What trains, and what is kept for it."""
        return self.requirements.assignment

    @property
    def facts(self) -> tuple[Facts, ...]:
        """What the rules say of each layer."""
        return self.requirements.facts

    @property
    def wanted(self) -> Wanted:
        """By layer index, the arguments whose gradient is computed."""
        return self.requirements.wanted

    @property
    def books(self) -> Books:
        """What is kept for backward."""
        return self.requirements.books

    # --- memory ---------------------------------------------------------------------------------------------------

    @property
    def saved_bytes(self) -> int:
        """Bytes kept by one forward pass for backward: unique storages, the network's input included if kept."""
        precision = self.step.precision
        return saved_bytes(self.requirements, self.step.schedule, self.micro_batch, precision.activation_bytes)

    @cached_property
    def peak(self) -> Moment[int]:
        """The moment of the step at which most memory is taken (the first of equals)."""
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def start(self) -> Moment[int]:
        """The moment before the step's first layer: what is there in any case."""
        return next(moment for moment in self.moments if moment.phase == "start")

    @property
    def peak_bytes(self) -> int:
        """The most memory that the step takes at any moment."""
        return self.peak.total_bytes

    @property
    def arena_bytes(self) -> int:
        """The most of what comes and goes in a step: of an exported one, its arena."""
        return max(sum(moment.by_category[place] for place in (INPUT, SAVED, TRANSIENT)) for moment in self.moments)

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
        return self.requirements.trained_parameters

    # --- compute --------------------------------------------------------------------------------------------------

    def _times(self, index: int) -> int:
        """How often a layer's counts happen per update: per image, or per micro-batch if they do not grow with it."""
        return self.batch if self.graph.layers[index].output.batched else self.step.passes

    @cached_property
    def flops(self) -> dict[str, Any]:
        """FLOPs of one update by phase; see `CONVENTION`."""
        counts = self.requirements.flops(self.batch, self.step.passes)
        backward = counts["backward_input"] + counts["backward_weight"]
        of_step = self.requirements, self.step.schedule, self.batch, self.step.passes
        again, elementwise = recomputed_flops(*of_step)
        cached, elementwise_cached = skipped_flops(*of_step)
        recompute, forward = counts["recompute"] + again, counts["forward"] - cached
        return {
            "forward": forward,
            "backward": backward,
            "backward_input": counts["backward_input"],
            "backward_weight": counts["backward_weight"],
            "recompute": recompute,
            "total": forward + backward + recompute,
            "elementwise": {
                "forward": counts["elementwise_forward"] - elementwise_cached,
                "backward": counts["elementwise_backward"] + elementwise,
                "update": OPTIMIZERS.find(self.optimizer).flops_per_parameter * self.trained_parameters,
            },
            "convention": CONVENTION,
        }

    @cached_property
    def moved_bytes(self) -> int:
        """Bytes that one update reads from and writes to memory; see `costmodel.traffic` for what is assumed."""
        precision = self.step.precision
        update = update_bytes(trained_bytes(self.requirements, precision), OPTIMIZERS.find(self.optimizer))
        required, schedule = self.requirements, self.step.schedule
        layers = again(required, schedule)
        of_pass = pass_bytes(required, precision, self.micro_batch, layers, skipped(required, schedule))
        return self.step.passes * of_pass + update

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

    @cached_property
    def learned(self) -> dict[str, bool]:
        """The operations that have no rule and were seen by running them; whether their FLOPs are counted."""
        seen = [layer for layer in self.graph.layers if layer.learned is not None and layer.op not in RULES]
        return {layer.op: layer.learned.counts_flops for layer in seen if layer.learned is not None}

    # --- views ----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain values."""
        cache = CacheCost.of(self.step)
        return {
            **self.step.to_dict(),
            "saved_bytes": self.saved_bytes,
            "memory_bytes": self.memory_bytes,
            "peak": {"layer": self.peak.layer, "phase": self.peak.phase},
            "flops": self.flops,
            "trained_parameters": self.trained_parameters,
            "schedule": {
                **self.step.schedule.to_dict(self.batch),
                **({} if cache is None else {"cache": cache.to_dict()}),
            },
            **({"learned": sorted(self.learned)} if self.learned else {}),
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
        sums = frame.groupby(key, sort=False)[numbers].sum()
        assert isinstance(sums, pandas.DataFrame)  # as of any list of columns
        return sums.reset_index()

    def _layer_rows(self) -> list[dict[str, Any]]:
        cut = parts(self.graph)
        each = self.step.precision.activation_bytes
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
                "backward_flops": times * sum(facts.backward_flops_of(roles).values()),
            })  # fmt: skip
        return rows

    def _tensor_rows(self) -> list[dict[str, Any]]:
        cut, layers = parts(self.graph), self.graph.layers
        each = self.step.precision.activation_bytes
        return [
            {
                "tensor": f"{layers[min(saved.uses)].name}: {saved.what}",
                "part": cut.where(layers[min(saved.uses)]),
                "shape": saved.shape,
                "bits": 8 * each if saved.follows_precision or saved.cast else saved.bits,
                "bytes": saved.bytes(self.micro_batch, each),
                "needed_for": ", ".join(
                    f"{layers[index].name}: {' '.join(roles)}" for index, roles in sorted(saved.uses.items())
                ),
                "layers": len(saved.uses),
            }
            for saved in self.books.saved.values()
            if saved.bytes(self.micro_batch, each)
        ]

    def summary(self) -> list[tuple[str, str]]:
        """Return the answer as (label, text) pairs for people."""
        flops = self.flops
        rows = [
            ("method", self.way.description),
            ("step", self.step.label),
            ("peak memory", f"{format_bytes(self.peak_bytes)} ({self.peak.phase}, {self.peak.layer or '-'})"),
        ]
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
        if self.learned:
            names = (name if counted else f"{name}, its FLOPs not counted" for name, counted in self.learned.items())
            rows.append(("learned", "; ".join(names)))
        if self.step.precision.activations != "float32" and (first := float32_under_autocast(self.graph)) is not None:
            rows.append(("left out", f"{first.location} computes in float32 under autocast: with a parameter"))
        rows += [("note", note) for note in self.graph.notes]
        if (cache := CacheCost.of(self.step)) is not None:
            rows += [
                ("cache", f"{format_bytes(cache.bytes_per_image)} of storage per image ({cache.rounding}), filled once "
                          f"with {format_count(cache.fill_flops_per_image)} FLOPs per image"),
            ]  # fmt: skip
        return rows

    def __rich__(self):
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.graph.model), show_header=False, title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column(justify="left")
        for label, text in self.summary():
            table.add_row(label, Text(text), style="bold" if label == "peak memory" else "")
        return table

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in self.summary())
        return f"<table><caption>{escape(self.graph.model)}</caption>{rows}</table>"

    def __repr__(self) -> str:
        return (
            f"Footprint({self.graph.model}, {self.way.label}, batch={self.batch}, accounting={self.accounting}: "
            f"peak {format_bytes(self.peak_bytes)}, saved {format_bytes(self.saved_bytes)})"
        )


def footprint(
    what: LayerGraph | Step,
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
) -> Footprint:
    """Return what one training step costs: of a traced network, or a `Step`, which has all else in it.

    method, blocks: a name in `METHODS` (default: full), and the number of trained blocks if it takes one.
    options: what else the method lets one choose (`METHODS[name].options`), such as {"patch": 4}.
    trained: instead of a method, which parameters train: their names, or a function of the name. All batch norms use
        the batch's statistics then, as after a plain `model.train()`.
    batch: images per update. micro_batch: images per forward pass (default: all); their gradients are added up.
    optimizer: a name in `OPTIMIZERS`. accounting: a name in `ACCOUNTINGS`.
    activation_dtype: float32, or float16 or bfloat16 under autocast (weights and gradients stay float32).
    frozen_dtype: how frozen parameters are stored: float32, float16 or int8. inplace_update: every parameter is updated
    and its gradient freed as soon as it is there. first_step: the step in which the optimizer's state is made.
    kernels: whose working memory counts, a name in `costmodel.accounting.kernels` (default: the accounting's own).
    schedule: how the step is carried out (`best_schedule` finds one), in place of micro_batch and inplace_update.

    Errors: InputError for a name, depth or number that does not exist or does not fit; UnknownOperationError for a
    layer without a rule.
    """
    step = step_of(
        what.graph if isinstance(what, Step) else what, method, blocks, batch, optimizer, accounting, options=options,
        trained=trained, micro_batch=micro_batch, activation_dtype=activation_dtype, frozen_dtype=frozen_dtype,
        inplace_update=inplace_update, first_step=first_step, kernels=kernels, schedule=schedule,
    )  # fmt: skip
    if isinstance(what, Step):
        if step != Step(what.graph):
            raise InputError("a Step says everything itself; give it alone, or a graph with the other arguments")
        step = what
    return Footprint(step, tuple(moments(step)))
