"""Options that several commands have: the axes of the space to choose from, and how lists and ranges are written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, overload

import typer

from costmodel import ACCOUNTINGS, LEVERS, MOST_FLOPS, ON_DEMAND, OPTIMIZERS, InputError
from costmodel.errors import shortened
from costmodel.interface import options as given

if TYPE_CHECKING:
    from ..devices.device import Device

# The headings under which `--help` shows options, beside those of `costmodel`.
LIMITS, ACCURACY, RUNS = "Limits", "Expected accuracy", "Runs"


def _device_names() -> list[str]:
    from ..devices.device import device_names

    return list(device_names())


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="One or more, such as torchvision:mobilenet_v2.",
        show_default=False,
        autocompletion=given.networks,
    ),
]
_MOST_VALUES = 10_000  # of an axis
_SEVERAL = "One, several (1,2,4), or a range (1-64, 8-64:8)."
Ram = Annotated[
    str | None,
    typer.Option("--ram", help="Memory for the training itself, such as 64MB or 61MiB.", rich_help_panel=LIMITS),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="A device (see planner devices), or a TOML file.",
        rich_help_panel=LIMITS,
        autocompletion=_device_names,
    ),
]
Storage = Annotated[
    str,
    typer.Option(help="Where runs are kept: a SQLite file, or postgresql://user@host/database.", rich_help_panel=RUNS),
]
Strict = Annotated[
    bool, typer.Option(help="Refuse images that cannot be read, and classes with one image.", rich_help_panel=RUNS)
]
Weights = Annotated[
    str | None,
    typer.Option(help="DEFAULT (the library's own), a file, or random.", rich_help_panel=given.NETWORK),
]
Images = Annotated[str, typer.Option(help="A folder of images, one subfolder per class, or train/ and test/ of such.")]
Save = Annotated[str | None, typer.Option(help="Write the plan to this JSON file.", rich_help_panel=given.OUTPUT)]


def named_device(name: str | None) -> Device | None:
    """Return the device of that name or file, if one is named."""
    if name is None:
        return None
    from ..devices.device import device

    return device(name)


def numbers(text: str | None, option: str) -> list[int] | None:
    """Return the whole numbers in '8', '1,2,4', '1-64' or '8-64:8'. Errors: InputError, naming the option."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?\s*", part)
        values: Sequence[int] = ()
        if match:
            first, last, step = int(match[1]), match[2], int(match[3] or 1)
            values = [first] if last is None else range(first, int(last) + 1, step) if step else ()
        if not values:
            raise InputError(f"{option} {shortened(text)} is not a number, list (1,2,4) or range (1-64, 8-64:8)")
        if len(found) + len(values) > _MOST_VALUES:
            raise InputError(f"{option} {shortened(text)} has more than {_MOST_VALUES:,} values; give fewer")
        found += values
    return found


def decimals(text: str, option: str) -> list[float]:
    """Return the positive numbers in '0.003,0.01'. Errors: InputError, naming the option."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {shortened(text)} is not a number or list of numbers (0.003,0.01)") from None
    if wrong := [number for number in found if not 0 < number < math.inf]:
        raise InputError(f"{option} has {wrong[0]}; its numbers must be positive and finite")
    return found


@overload
def names(text: str) -> list[str]: ...
@overload
def names(text: None) -> None: ...
def names(text: str | None) -> list[str] | None:
    """Return the names in 'sgd, adam'; None where no text is given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def _space(
    resolution: Annotated[
        str,
        typer.Option(help="Height and width of the images in pixels; one or several.", rich_help_panel=given.NETWORK),
    ] = "224",
    classes: given.Classes = None,
    method: Annotated[
        str | None,
        typer.Option(help="One or several; default: all without options.", rich_help_panel=given.TRAINS),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="Depths of the methods that have one; default: all.", rich_help_panel=given.TRAINS),
    ] = None,
    norm_statistics: Annotated[
        str | None,
        typer.Option(
            help="Of batch norms: own (as the method has them), running, or own,running. Default: own, and "
            "running too where all passes are of fewer than 8 images.",
            rich_help_panel=given.TRAINS,
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help=f"Images per update. {_SEVERAL}", rich_help_panel=given.STEP)] = "8",
    optimizer: Annotated[
        str, typer.Option(help=f"One or several of {', '.join(OPTIMIZERS)}.", rich_help_panel=given.STEP)
    ] = "sgd",
    frozen_dtype: Annotated[
        str,
        typer.Option(help="How frozen weights are stored: float32, float16, int8.", rich_help_panel=given.STEP),
    ] = "float32",
    accounting: Annotated[
        str, typer.Option(help=f"One of {', '.join(ACCOUNTINGS)}.", rich_help_panel=given.STEP)
    ] = "lean",
    micro_batch: Annotated[
        str | None,
        typer.Option(
            help="Images per pass, the batch's divisors; default: the whole batch.", rich_help_panel=given.MEMORY
        ),
    ] = None,
    schedules: Annotated[
        str | None,
        typer.Option(
            help=f"Levers that save memory and change no result, of {', '.join(LEVERS + ON_DEMAND)}, or none. Default: "
            "all but cache where a budget is to be kept; none in lists.",
            rich_help_panel=given.MEMORY,
        ),
    ] = None,
    most_flops: Annotated[
        float | None,
        typer.Option(
            help=f"Times the plain step's FLOPs that a schedule may take; default {MOST_FLOPS}; 1: no more.",
            rich_help_panel=given.MEMORY,
        ),
    ] = None,
    evidence: Annotated[
        list[str] | None,
        typer.Option(
            help="A CSV file of your own accuracies, or a database of planner measure; may be repeated.",
            rich_help_panel=ACCURACY,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Which data set of --evidence it is about, if there are several.", rich_help_panel=ACCURACY),
    ] = None,
    images_per_class: Annotated[
        int | None,
        typer.Option(
            help="Labelled images to train with; with 20 or fewer other accuracies are expected.",
            rich_help_panel=ACCURACY,
        ),
    ] = None,
) -> dict[str, Any]:
    """Return what `planner.candidates` takes beside the models."""
    from ..evidence.loading import load_all

    return {
        "batch": numbers(batch, "--batch"),
        "micro_batch": numbers(micro_batch, "--micro-batch"),
        "optimizer": names(optimizer),
        "resolution": numbers(resolution, "--resolution"),
        "frozen_dtype": names(frozen_dtype),
        "methods": names(method),
        "blocks": numbers(blocks, "--blocks"),
        "classes": classes,
        "accounting": accounting,
        "evidence": load_all(evidence or ()),
        "dataset": dataset,
        "images_per_class": images_per_class,
        "norm_statistics": names(norm_statistics),
        "schedules": names(schedules),
        "most_flops": most_flops,
    }


def with_space(command: Callable) -> Callable:
    """Give a command the options of `_space`, in the place of its parameter `space`, which gets what they mean."""
    options = signature(_space, eval_str=True).parameters

    @wraps(command)
    def filled(**given) -> None:
        command(**{name: value for name, value in given.items() if name not in options},
                space=_space(**{name: given[name] for name in options}))  # fmt: skip

    own = signature(command, eval_str=True).parameters.values()
    parameters = [one for each in own for one in (options.values() if each.name == "space" else [each])]
    # Typer hands arguments over by name, so that those with defaults may come first.
    own_signature = Signature([each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters])
    filled.__signature__ = own_signature  # pyright: ignore[reportAttributeAccessIssue]  # `inspect` looks there
    filled.__annotations__ = {each.name: each.annotation for each in parameters}
    return filled
