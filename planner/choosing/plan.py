"""A plan: the chosen candidate as a small JSON file, which makes a network ready to train that way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from costmodel import (
    ACCOUNTINGS,
    METHODS,
    OPTIMIZERS,
    InputError,
    Precision,
    Schedule,
    Way,
    precision_from,
    schedule_from,
    way_from,
)
from costmodel.errors import require_count
from costmodel.reading import first_problem, read_file

from .candidate import Candidate

if TYPE_CHECKING:
    import torch

VERSION = 1
Positive = Annotated[int, Field(gt=0, lt=2**63, strict=True)]
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Expected(BaseModel):
    """What to expect of the accuracy: recovery (0: last layer only, 1: everything trained), and percent if known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recovery: Finite | None
    recovery_low: Finite | None
    recovery_high: Finite | None
    kind: str
    rests_on: str
    accuracy_percent: Percent | None
    accuracy_low_percent: Percent | None
    accuracy_high_percent: Percent | None


class Plan(BaseModel):
    """How one network is to be fine-tuned, and what that takes.

    `version`: of this format. `made_with`: the package's version. `parameters`: a digest of the names and shapes of the
    network's parameters. Bytes and FLOPs are those predicted of one step of `batch` images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = VERSION
    made_with: str
    model: str
    parameters: str
    parameter_count: Positive
    resolution: Positive
    classes: Positive
    method: str
    blocks: Positive | None
    batch: Positive
    micro_batch: Positive
    optimizer: str
    frozen_dtype: str
    activation_dtype: str = "float32"
    inplace_update: bool = False
    options: dict[str, bool | int | Finite | str] = Field(default_factory=dict)
    accounting: str
    peak_bytes: Count
    saved_bytes: Count
    total_flops: Count
    trained_parameters: Positive
    expected: Expected

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            for name in ("resolution", "classes", "batch"):
                require_count(name, getattr(self, name))
            OPTIMIZERS.find(self.optimizer)
            ACCOUNTINGS.find(self.accounting)
            self.schedule.images_per_pass(self.batch)
            _ = self.precision
        except InputError as error:
            raise ValueError(str(error)) from None
        if self.saved_bytes > self.peak_bytes:
            raise ValueError(f"saved_bytes {self.saved_bytes:,} are more than peak_bytes {self.peak_bytes:,}")
        return self

    @classmethod
    def of(cls, candidate: Candidate) -> Self:
        """Return the plan of a candidate."""
        guess, graph, own = candidate.recovery, candidate.step.graph, candidate.to_dict()
        return cls(
            **{name: own[name] for name in cls.model_fields if name in own},
            made_with=version("finetune-planner"),
            parameters=parameters_digest((name, tensor.shape) for name, tensor in graph.parameters.items()),
            parameter_count=graph.parameter_count,
            expected=Expected(
                recovery=guess.value,
                recovery_low=guess.low,
                recovery_high=guess.high,
                **{name: getattr(guess, name) for name in Expected.model_fields if hasattr(guess, name)},
            ),
        )

    @property
    def way(self) -> Way:
        """What trains, and how. Errors: InputError for a method or option that this package does not have."""
        if self.method not in METHODS:
            raise InputError(f"the plan's method {self.method!r} is unknown here; it was made with {self.made_with}")
        return way_from(self.model_dump())

    @property
    def schedule(self) -> Schedule:
        """How the step is carried out."""
        return schedule_from(self.model_dump())

    @property
    def precision(self) -> Precision:
        """In how many bits."""
        return precision_from(self.model_dump())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the plan in a file.

        Errors: InputError if it cannot be read, is no plan, or is one of another version of the format.
        """
        try:
            return cls.model_validate_json(read_file(path, "plan"))
        except ValidationError as error:
            problem = first_problem(error)
            if problem.key == "version":
                raise InputError(
                    f"{path} is a plan of version {problem.given!r}, and this package reads version {VERSION}; "
                    "make it anew with planner recommend --save"
                ) from error
            where = f"{problem.key}: " if problem.key else ""
            raise InputError(f"{path} is not a plan: {where}{problem.reason}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan to a file.

        Errors: InputError if it cannot be written, and for a method that no torch layers train: it has a price only.
        """
        if self.method in METHODS and not METHODS[self.method].has_layers:
            raise InputError(
                f"method {self.method!r} is priced only, so that its plan could not be applied; leave it out of "
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
        if parameters_digest(given.items()) != self.parameters:
            count = sum(parameter.numel() for parameter in model.parameters())
            raise InputError(
                f"the plan is for {self.model} with {self.classes} classes, {self.parameter_count:,} parameters; the "
                f"given {type(model).__name__} has {count:,}, or others by name or shape; plan for this network, or "
                "build the one that was planned for"
            )
        from costmodel import apply  # which loads torch

        return apply(model, self.way, resolution=self.resolution, frozen_dtype=self.precision.frozen)


def parameters_digest(parameters: Iterable[tuple[str, Any]]) -> str:
    """Return what tells networks apart by the names and shapes of their parameters, in their order by name."""
    text = "\n".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(parameters))
    return hashlib.sha256(text.encode()).hexdigest()
