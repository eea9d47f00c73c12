"""A plan: the chosen candidate as a small JSON file, which makes a network ready to train that way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_serializer,
    model_validator,
)

from costmodel import (
    ACCOUNTINGS,
    METHODS,
    OPTIMIZERS,
    Footprint,
    InputError,
    LayerGraph,
    Precision,
    Schedule,
    Step,
    Way,
    footprint,
    precision_from,
    schedule_from,
    way_from,
)
from costmodel.errors import require_count
from costmodel.reading import first_problem, read_file

from ..estimates.estimated import Estimate
from .candidate import Candidate

if TYPE_CHECKING:
    import torch

VERSION = 2
Positive = Annotated[int, Field(gt=0, lt=2**63, strict=True)]
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Network(_Part):
    """Which network; parameters: a digest of their names and shapes."""

    model: str
    resolution: Positive
    classes: Positive
    parameters: str
    parameter_count: Positive


class Promises(_Part):
    """What one step of the plan's batch takes, as predicted, and what to expect of the accuracy.

    recovery: 0 is as good as training the last layer alone, 1 as training everything; accuracies where they are known.
    """

    peak_bytes: Count
    saved_bytes: Count
    total_flops: Count
    trained_parameters: Positive
    recovery: Finite | None
    recovery_low: Finite | None
    recovery_high: Finite | None
    accuracy_percent: Percent | None
    accuracy_low_percent: Percent | None
    accuracy_high_percent: Percent | None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.saved_bytes > self.peak_bytes:
            raise ValueError(f"saved_bytes {self.saved_bytes:,} are more than peak_bytes {self.peak_bytes:,}")
        return self


class Evidence(_Part):
    """What the expected accuracy rests on: its kind, what was observed, and by whom."""

    kind: str
    rests_on: str
    source: str = ""


class _Way(_Part):
    method: str
    blocks: Positive | None
    options: dict[str, bool | int | Finite | str] = Field(default_factory=dict)
    trained: list[str] | None = None


class _Schedule(_Part):
    micro_batch: Positive
    inplace_update: Flag
    prefix_batch: Positive | None = None
    segments: Annotated[list[tuple[Count, Count, str]], Field(max_length=10_000)] = Field(default_factory=list)
    cache: str | None = None


class _Precision(_Part):
    activation_dtype: str
    frozen_dtype: str


T = TypeVar("T")


def _read(kind: type[T], form: type[_Part], read: Callable[[dict[str, Any]], T]) -> PlainValidator:
    """Return what reads a part of a plan; form: what stands in the file."""

    def made(given: Any, others: ValidationInfo) -> T:
        if isinstance(given, kind):
            return given
        try:
            batch = {name: others.data[name] for name in ("batch",) if name in others.data}
            return read(form.model_validate(given).model_dump(exclude_none=True) | batch)
        except ValidationError as error:
            problem = first_problem(error)
            raise ValueError(f"{problem.key}: {problem.reason}" if problem.key else problem.reason) from None
        except InputError as error:
            raise ValueError(str(error)) from None

    return PlainValidator(made)


def _way(given: dict[str, Any]) -> Way:
    METHODS.find(given["method"])
    return way_from(given)


if TYPE_CHECKING:
    WayField: TypeAlias = Way
    ScheduleField: TypeAlias = Schedule
    PrecisionField: TypeAlias = Precision
else:  # pydantic need not look into these
    WayField = Annotated[Any, _read(Way, _Way, _way), PlainSerializer(lambda way: way.to_dict())]
    ScheduleField = Annotated[Any, _read(Schedule, _Schedule, schedule_from)]
    PrecisionField = Annotated[
        Any, _read(Precision, _Precision, precision_from), PlainSerializer(lambda precision: precision.to_dict())
    ]


class Plan(_Part):
    """How one network is to be fine-tuned, what that takes, and what to expect of it.

    version: of this format. made_with: the package's version. batch: images per update.
    """

    version: Literal[2] = VERSION
    made_with: str
    network: Network
    batch: Positive
    way: WayField
    schedule: ScheduleField
    precision: PrecisionField
    optimizer: str
    accounting: str
    promises: Promises
    evidence: Evidence

    @field_serializer("schedule")
    def _written(self, schedule: Schedule) -> dict[str, Any]:
        return schedule.to_dict(self.batch)

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, given: Any) -> Any:
        is_old = isinstance(given, dict) and given.get("version") == 1
        return _from_version_1(given) if is_old else given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            for name, value in (
                ("resolution", self.resolution), ("classes", self.classes), ("batch", self.batch)
            ):  # fmt: skip
                require_count(name, value)
            OPTIMIZERS.find(self.optimizer)
            ACCOUNTINGS.find(self.accounting)
            self.schedule.images_per_pass(self.batch)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @classmethod
    def of(cls, candidate: Candidate) -> Self:
        """Return the plan of a candidate."""
        return cls.of_step(candidate.step, candidate, candidate.recovery)

    @classmethod
    def of_step(cls, step: Step, cost: Candidate | Footprint, guess: Estimate) -> Self:
        """Return the plan of a step. cost: what it takes. guess: the accuracy to expect of it."""
        graph = step.graph
        return cls(
            made_with=version("finetune-planner"),
            network=Network(
                model=graph.model, resolution=graph.resolution, classes=graph.classes,
                parameters=parameters_digest((name, tensor.shape) for name, tensor in graph.parameters.items()),
                parameter_count=graph.parameter_count,
            ),
            way=step.way, schedule=step.schedule, precision=step.precision, batch=step.batch, optimizer=step.optimizer,
            accounting=step.accounting,
            promises=Promises(
                peak_bytes=cost.peak_bytes, saved_bytes=cost.saved_bytes, total_flops=cost.total_flops,
                trained_parameters=cost.trained_parameters, recovery=guess.value, recovery_low=guess.low,
                recovery_high=guess.high, accuracy_percent=guess.accuracy_percent,
                accuracy_low_percent=guess.accuracy_low_percent, accuracy_high_percent=guess.accuracy_high_percent,
            ),
            evidence=Evidence(kind=guess.kind, rests_on=guess.rests_on, source=guess.source),
        )  # fmt: skip

    @property
    def model(self) -> str:
        """The network's full name."""
        return self.network.model

    @property
    def resolution(self) -> int:
        """Height and width of the images in pixels."""
        return self.network.resolution

    @property
    def classes(self) -> int:
        """How many classes the network's head tells apart."""
        return self.network.classes

    @property
    def micro_batch(self) -> int:
        """Images per forward and backward pass."""
        return self.schedule.images_per_pass(self.batch)

    @property
    def peak_bytes(self) -> int:
        """The most memory that one step takes, as predicted."""
        return self.promises.peak_bytes

    @property
    def saved_bytes(self) -> int:
        """Bytes that one forward pass keeps for backward, as predicted."""
        return self.promises.saved_bytes

    @property
    def total_flops(self) -> int:
        """FLOPs of one step, as predicted."""
        return self.promises.total_flops

    @property
    def trained_parameters(self) -> int:
        """How many numbers train."""
        return self.promises.trained_parameters

    def step(self, graph: LayerGraph) -> Step:
        """Return the planned step of a traced network. Errors: InputError if the schedule is of another network."""
        made = Step(
            graph, self.way, self.batch, self.schedule, self.precision, self.optimizer, self.accounting
        )  # fmt: skip
        footprint(made)
        return made

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the plan in a file.

        Errors: InputError if it cannot be read, is not a plan, or is one of another version of the format.
        """
        try:
            return cls.model_validate_json(read_file(path, "plan"))
        except ValidationError as error:
            problem = first_problem(error)
            if problem.key == "version":
                raise InputError(
                    f"{path} is a plan of version {problem.given!r}, and this package reads versions 1 and {VERSION}; "
                    "make it again with planner recommend --save"
                ) from error
            where = f"{problem.key}: " if problem.key else ""
            raise InputError(f"{path} is not a plan: {where}{problem.reason}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan to a file.

        Errors: InputError if it cannot be written, and for a method that no torch layers train: it has a price only.
        """
        if not METHODS.find(self.way.method).has_layers:
            raise InputError(
                f"method {self.way.method!r} can only be priced, so its plan could not be applied; leave it out of "
                "--method, or save none"
            )
        try:
            Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot write the plan to {str(path)!r}: {reason}") from error

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        """Make a network ready to train as planned; return the same module (see `costmodel.apply`).

        Errors: InputError, with the reason, if the plan was made for another network, or can be priced only.
        """
        given = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if parameters_digest(given.items()) != self.network.parameters:
            count = sum(parameter.numel() for parameter in model.parameters())
            raise InputError(
                f"the plan is for {self.model} with {self.classes} classes, {self.network.parameter_count:,} "
                f"parameters; the given {type(model).__name__} has {count:,}, or others by name or shape; plan for "
                "this network, or build the one that was planned for"
            )
        from costmodel import apply  # which loads torch

        return apply(
            model, self.way, resolution=self.resolution, frozen_dtype=self.precision.frozen, schedule=self.schedule
        )


def _from_version_1(given: dict[str, Any]) -> dict[str, Any]:
    """Return a plan of version 1, which had everything side by side, as one of this version."""
    names = {
        "network": ("model", "resolution", "classes", "parameters", "parameter_count"),
        "way": ("method", "blocks", "options"),
        "schedule": ("micro_batch", "inplace_update"),
        "precision": ("activation_dtype", "frozen_dtype"),
        "promises": ("peak_bytes", "saved_bytes", "total_flops", "trained_parameters"),
        "evidence": (),
    }
    rest, expected = dict(given), given.get("expected")
    defaults = {"inplace_update": False, "activation_dtype": "float32", "options": {}}
    found = {part: {name: rest.pop(name, defaults.get(name)) for name in own} for part, own in names.items()}
    if isinstance(expected, dict):
        del rest["expected"]
        told = {name: expected.get(name) for name in ("kind", "rests_on")}
        found["promises"] |= {name: value for name, value in expected.items() if name not in told}
        found["evidence"] = told
    return {**rest, **found, "version": VERSION}


def parameters_digest(parameters: Iterable[tuple[str, Any]]) -> str:
    """Return what tells networks apart by the names and shapes of their parameters, in their order by name."""
    text = "\n".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(parameters))
    return hashlib.sha256(text.encode()).hexdigest()
