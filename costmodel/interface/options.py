"""Options that several commands have: each stands once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Annotated

import typer

from ..accounting.table import ACCOUNTINGS
from ..machine.process import POLICIES
from ..methods.table import METHODS
from ..step.optimizers import OPTIMIZERS
from ..step.precision import ACTIVATIONS, FROZEN
from ..step.schedule import CACHE_DTYPES
from ..traces import shipped

MODEL_HELP = "MODEL is torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:function, or a bare NAME."

# What options are for: the headings under which `--help` shows them.
NETWORK, TRAINS, STEP, MEMORY, OUTPUT = "The network", "What trains", "The step", "Less memory", "Output"


def _each(names: Iterable[str]) -> Callable[[], list[str]]:
    """Return what a shell completes a value with."""
    return lambda: list(names)


networks = _each(shipped.NETWORKS)
Model = Annotated[
    str,
    typer.Argument(help="Such as torchvision:mobilenet_v2.", show_default=False, autocompletion=networks),
]
Resolution = Annotated[int, typer.Option(help="Height and width of the images in pixels.", rich_help_panel=NETWORK)]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Shape of one example, if not a square image: 3x320x240, 128:int64, or name=3x16x112x112. Repeat for "
        "several inputs.",
        rich_help_panel=NETWORK,
    ),
]
Classes = Annotated[
    int | None, typer.Option(help="Classes of a new head; default: the network's own.", rich_help_panel=NETWORK)
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Trace the network now, whatever is stored.", rich_help_panel=NETWORK)
]
Method = Annotated[
    str,
    typer.Option(help=f"One of {', '.join(METHODS)}.", rich_help_panel=TRAINS, autocompletion=_each(METHODS)),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="Repeat for several; default: all that apply.",
        rich_help_panel=TRAINS,
        autocompletion=_each(METHODS),
    ),
]
Blocks = Annotated[
    int | None,
    typer.Option(help="How many of the last blocks train, for methods with a depth.", rich_help_panel=TRAINS),
]
Depths = Annotated[
    list[int] | None,
    typer.Option(
        "--blocks",
        help="How many of the last blocks train, for methods with a depth; repeat for several. Default: 5.",
        rich_help_panel=TRAINS,
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option", help="NAME=VALUE of a method's option, such as patch=2; repeat for more.", rich_help_panel=TRAINS
    ),
]
Batch = Annotated[int, typer.Option(help="Images per update.", rich_help_panel=STEP)]
MicroBatch = Annotated[
    int | None, typer.Option(help="Images per forward pass; gradients add up.", rich_help_panel=MEMORY)
]
OptimizerName = Annotated[
    str,
    typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.", rich_help_panel=STEP, autocompletion=_each(OPTIMIZERS)),
]
AccountingName = Annotated[
    str,
    typer.Option(
        help="What counts as kept for backward: lean (what exact gradients need), eager (what stock PyTorch keeps), or "
        f"a paper's rule ({', '.join(name for name in ACCOUNTINGS if name not in ('lean', 'eager'))}).",
        rich_help_panel=STEP,
        autocompletion=_each(ACCOUNTINGS),
    ),
]
ActivationDtype = Annotated[
    str, typer.Option(help=f"Type of activations: {', '.join(ACTIVATIONS)} (autocast).", rich_help_panel=STEP)
]
FrozenDtype = Annotated[
    str, typer.Option(help=f"How frozen weights are stored: {', '.join(FROZEN)}.", rich_help_panel=STEP)
]
InplaceUpdate = Annotated[
    bool,
    typer.Option(
        "--inplace-update", help="Update and free each gradient as soon as it exists.", rich_help_panel=MEMORY
    ),
]
PrefixBatch = Annotated[
    int | None,
    typer.Option(help="Images at a time in the frozen layers below the first trained one.", rich_help_panel=MEMORY),
]
Cache = Annotated[
    str | None,
    typer.Option(
        help="Store what the frozen layers below the first trained one give, once for each image, and train from that: "
        f"{', '.join(CACHE_DTYPES)}.",
        rich_help_panel=MEMORY,
    ),
]
Recompute = Annotated[
    str | None,
    typer.Option(
        help="best: keep less and compute it again in backward, as far as --ram or --most-flops ask for it; the "
        "gradients stay the same. --micro-batch, --prefix-batch, --cache and --inplace-update stay as given; if none "
        "is given, the best are chosen, too.",
        rich_help_panel=MEMORY,
    ),
]
Ram = Annotated[
    str | None,
    typer.Option(help="Memory for the step, such as 48MB, for --recompute best.", rich_help_panel=MEMORY),
]
MostFlops = Annotated[
    float | None,
    typer.Option(
        help="At most so many times the plain step's FLOPs, for --recompute best; 1.33 without --ram.",
        rich_help_panel=MEMORY,
    ),
]
Out = Annotated[str, typer.Option(help="The file to write: .png, .svg or .pdf.", show_default=False)]
AllocatorName = Annotated[
    str,
    typer.Option(
        "--allocator", help=f"How freed memory is dealt with: one of {', '.join(POLICIES)}.", rich_help_panel=MEMORY
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.", rich_help_panel=OUTPUT)]
Csv = Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.", rich_help_panel=OUTPUT)]


class Device(StrEnum):
    """Where a network is trained."""

    cpu = "cpu"
    cuda = "cuda"


class Grouping(StrEnum):
    """What a footprint's rows are of."""

    layer = "layer"
    block = "block"
    operation = "operation"
    tensor = "tensor"
