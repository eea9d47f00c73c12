"""The space to choose from: ways, batches, schedules, optimizers, precisions; one value of each or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from costmodel import (
    LEVERS,
    METHODS,
    MOST_FLOPS,
    Footprint,
    InputError,
    Kernels,
    LayerGraph,
    Precision,
    Schedule,
    StepTime,
    Way,
    values_per_norm,
    way,
)
from costmodel.errors import require_count

from ..devices.device import Device
from ..estimates.setting import LEAST_IMAGES
from ..evidence.rows import Row
from .scheduling import Scheduling

T = TypeVar("T")
OneOrMore = T | Iterable[T]


@dataclass(frozen=True)
class Axes:
    """The values of each axis.

    methods: names, or ways as they are; None takes all methods that have no option beside a depth, which are not
    searched. blocks: depths, of which each network takes those that it has; None takes all. batches: images per update.
    micro_batches: images per pass; None is the whole batch; those that do not divide the batch are left out. evidence,
    dataset: the user's own accuracies, and which of their data sets it is about (see `planner.estimates`). device:
    whose roofline time a step takes. images_per_class: labelled images to train with; few are a regime of their own.
    norm_statistics: of batch norms, for ways that do not say: 'own' (as the method has them), 'running', or both; None
    is own, and running too where all passes are of fewer images than evidence has for batch statistics. observed: the
    accuracies of others; those that come with the package if None. scheduling: how steps may be carried out in another
    way than plainly; None leaves it to the question: a recommendation uses all exact levers, a list none.
    kernels: whose working memory counts; the accounting's own if None. step_time: what predicts the time of a step, in
    place of the device's roofline.
    """

    methods: tuple[str | Way, ...] | None = None
    blocks: tuple[int, ...] | None = None
    batches: tuple[int, ...] = (8,)
    micro_batches: tuple[int | None, ...] = (None,)
    optimizers: tuple[str, ...] = ("sgd",)
    precisions: tuple[Precision, ...] = (Precision(),)
    accounting: str = "lean"
    evidence: tuple[Row, ...] = ()
    dataset: str | None = None
    device: Device | None = None
    images_per_class: int | None = None
    norm_statistics: tuple[str, ...] | None = None
    observed: tuple[Row, ...] | None = None
    scheduling: Scheduling | None = None
    kernels: Kernels | None = None
    step_time: StepTime | None = None

    @property
    def carried(self) -> list[tuple[int, Schedule]]:
        """The valid pairs of a batch and the schedule that carries it out.

        Errors: InputError if there are none, or a number is not a whole number of 1 or more.
        """
        given = {"batch": self.batches, "micro_batch": self.micro_batches, "blocks": self.blocks}
        for name, values in (given | {"images_per_class": (self.images_per_class,)}).items():
            for value in values or ():
                if value is not None:
                    require_count(name, value)
        pairs = [
            (batch, Schedule(None if micro == batch else micro))
            for batch in self.batches
            for micro in self.micro_batches
            if micro is None or batch % micro == 0
        ]
        if not pairs:
            given = ", ".join(map(str, self.micro_batches))
            raise InputError(f"no micro-batch of {given} divides a batch of {', '.join(map(str, self.batches))}")
        return list(dict.fromkeys(pairs))

    def seconds_of(self, cost: Footprint) -> float | None:
        """Return the time of a step, as it was measured or by the device's roofline; None where neither is known."""
        if self.step_time is not None:
            return self.step_time.predict(cost.step).value
        if self.device is None:
            return None
        return float(self.device.step_seconds(float(cost.total_flops), float(cost.moved_bytes)))

    def ways(self, graph: LayerGraph) -> list[Way]:
        """Return the ways that apply to a network. Errors: InputError for an unknown method."""
        given = self.methods
        if given is None:
            given = tuple(name for name, method in METHODS.items() if not method.options)
        statistics = self.norm_statistics
        if statistics is None:
            few = all(schedule.images_per_pass(batch) < LEAST_IMAGES for batch, schedule in self.carried)
            statistics = ("own", "running") if few else ("own",)
        found: list[Way] = []
        for each in dict.fromkeys(given):
            method = METHODS.find(each.method if isinstance(each, Way) else each)
            if method.why_not(graph):
                continue
            if isinstance(each, Way):
                found.append(each)
                continue
            depths = [k for k in self.blocks or method.depths(graph) if k in method.depths(graph)]
            for k in depths if method.takes_blocks else [None]:
                plain = way(each, k)
                found += [
                    way(each, k, {"norm_statistics": which})
                    for which in statistics
                    if which != "running" or values_per_norm(graph, plain) is not None
                ]
        return found


def axes(
    methods: OneOrMore[str | Way] | None = None,
    blocks: OneOrMore[int] | None = None,
    batch: OneOrMore[int] = 8,
    micro_batch: OneOrMore[int] | None = None,
    optimizer: OneOrMore[str] = "sgd",
    frozen_dtype: OneOrMore[str] = "float32",
    accounting: str = "lean",
    evidence: Sequence[Row] = (),
    dataset: str | None = None,
    device: Device | None = None,
    images_per_class: int | None = None,
    norm_statistics: OneOrMore[str] | None = None,
    observed: Sequence[Row] | None = None,
    schedules: OneOrMore[str] | None = None,
    most_flops: float | None = None,
    kernels: Kernels | None = None,
    step_time: StepTime | None = None,
) -> Axes:
    """Return the axes, each given as one value, a list or a range.

    schedules: levers that steps may be carried out with, or "none"; most_flops: times the plain step's FLOPs, at most.

    Errors: InputError for an axis without a value, and for a precision or lever that does not exist.
    """
    scheduling = None
    if schedules is not None or most_flops is not None:
        named = LEVERS if schedules is None else several(schedules)
        levers = () if named == ("none",) else named
        scheduling = Scheduling(levers, MOST_FLOPS if most_flops is None else most_flops)
    return Axes(
        None if methods is None else several(methods),
        None if blocks is None else several(blocks),
        several(batch),
        (None,) if micro_batch is None else several(micro_batch),
        several(optimizer),
        tuple(Precision(frozen=dtype) for dtype in several(frozen_dtype)),
        accounting,
        tuple(evidence),
        dataset,
        device,
        images_per_class,
        None if norm_statistics is None else several(norm_statistics),
        None if observed is None else tuple(observed),
        scheduling,
        kernels,
        step_time,
    )


def several(given: OneOrMore[T]) -> tuple[T, ...]:
    """Return one value or an iterable of values as a tuple, each once. Errors: InputError if there is none."""
    one = isinstance(given, str) or not isinstance(given, Iterable)  # a text is one value
    values = (cast(T, given),) if one else tuple(dict.fromkeys(cast("Iterable[T]", given)))
    if not values:
        raise InputError("an axis has no value; give one or more, or leave it out")
    return values
