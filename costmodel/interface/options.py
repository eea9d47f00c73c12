"""Options that several commands have: each stands once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ..accounting.table import ACCOUNTINGS
from ..methods.table import METHODS
from ..step.optimizers import OPTIMIZERS
from ..step.precision import ACTIVATIONS, FROZEN
from ..step.schedule import CACHE_DTYPES

MODEL_HELP = "MODEL is torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:function, or a bare NAME."

Model = Annotated[str, typer.Argument(help="Such as torchvision:mobilenet_v2.", show_default=False)]
Resolution = Annotated[int, typer.Option(help="Height and width of the images in pixels.")]
Classes = Annotated[int | None, typer.Option(help="Classes of a new head; default: the network's own.")]
Fresh = Annotated[bool, typer.Option(help="Trace the network now, whatever is stored.")]
Method = Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")]
Methods = Annotated[list[str] | None, typer.Option("--method", help="Repeat for several; default: all that apply.")]
Blocks = Annotated[int | None, typer.Option(help="Trained blocks, for methods that take a depth.")]
Depths = Annotated[
    list[int] | None,
    typer.Option("--blocks", help="Trained blocks, for methods that take a depth; repeat for several. Default: 5."),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="name=value of a method's option, such as patch=2; repeat for more."),
]
Batch = Annotated[int, typer.Option(help="Images per update.")]
MicroBatch = Annotated[int | None, typer.Option(help="Images per forward pass; gradients add up.")]
OptimizerName = Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")]
AccountingName = Annotated[str, typer.Option(help=f"One of {', '.join(ACCOUNTINGS)}.")]
ActivationDtype = Annotated[str, typer.Option(help=f"{', '.join(ACTIVATIONS)} (autocast).")]
FrozenDtype = Annotated[str, typer.Option(help=f"How frozen weights are stored: {', '.join(FROZEN)}.")]
InplaceUpdate = Annotated[bool, typer.Option(help="Update and free each gradient at once.")]
PrefixBatch = Annotated[
    int | None, typer.Option(help="Images at a time in the frozen layers below the first trained one; exact.")
]
Cache = Annotated[
    str | None,
    typer.Option(
        help="Store what the frozen layers below the first trained one give, once for each image, and train from that: "
        f"{', '.join(CACHE_DTYPES)}."
    ),
]
Recompute = Annotated[
    str | None,
    typer.Option(
        help="best: what backward can make again is not kept, as far as --ram or --most-flops ask for it; exact. With "
        "--micro-batch, --prefix-batch, --cache or --inplace-update on top of these, else they are chosen, too."
    ),
]
Ram = Annotated[str | None, typer.Option(help="Memory for the step, such as 48MB, for --recompute best.")]
MostFlops = Annotated[
    float | None, typer.Option(help="Most times the plain step's FLOPs, for --recompute best; 1.33 without --ram.")
]
Out = Annotated[str, typer.Option(help="The file to write: .png, .svg or .pdf.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


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
