"""The commands that carry a plan out: `planner train`, and `planner predict` with what came of it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from costmodel.errors import require_count
from costmodel.interface import options as given
from costmodel.interface.programs import for_programs
from costmodel.interface.running import INTERRUPTED

from .space import Images, Weights


def train_command(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="What `planner recommend --save` wrote.")],
    data: Images,
    out: Annotated[str, typer.Option(help="The folder to write the network to; the same goes on.")],
    weights: Weights = None,
    epochs: Annotated[int, typer.Option(help="Most epochs.")] = 20,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the first step; it falls to 0 along a half cosine. Default: by the optimizer."
        ),
    ] = None,
    augment: Annotated[
        str | None, typer.Option(help="crop, flip, both (crop,flip) or none. Default: both, none under a cache.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the new head, the order of images, augmentation and dropout.")] = 0,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better accuracy; 0: never.")] = 10,
    allocator: given.AllocatorName = "arena",
    as_json: given.Json = False,
) -> None:
    """Train exactly what was planned on your images, and keep the network of the best epoch.

    After any stop, a power cut included, the same command goes on, and ends as if nothing had happened.
    """
    from ..training.course import Course, read_augment
    from ..training.train import Stopped, train
    from .train_view import TrainingBars, summary

    course = Course(epochs, lr, None if augment is None else read_augment(augment), seed, patience)
    try:
        with TrainingBars() as watch:
            trained = train(plan, data, out, weights=weights, course=course, watch=watch, allocator=allocator)
    except KeyboardInterrupt as error:
        where = f"stopped in {error}" if isinstance(error, Stopped) else "stopped"
        print(f"{where}; the same command goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(trained.model_dump_json(indent=2))
        return
    for line in summary(trained, out):
        print(line)


def predict_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="What `planner train --out` wrote.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images of any size.")],
    top: Annotated[int, typer.Option(help="How many classes to name, the likeliest first.")] = 1,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """Name the class of images, with its probability, by a trained network.

    Exit code 2 if an image cannot be read; the others are answered.
    """
    require_count("top", top)
    from ..training.predict import predict

    found = list(predict(folder, images, top))
    good = [one for one in found if one.problem is None]
    rows = [
        {"image": one.image, "class": name, "probability": probability}
        for one in good
        for name, probability in one.classes
    ]
    if not for_programs([one.to_dict() for one in found], rows, as_json, as_csv) and good:
        from .train_view import show_predictions

        show_predictions(good)
    for one in found:
        if one.problem is not None:
            print(f"error: {one.problem}", file=sys.stderr)
    if len(good) < len(found):
        raise typer.Exit(2)


def add_training(app: typer.Typer, panel: str) -> None:
    """Give a command line these commands, under a heading of its help."""
    app.command("train", rich_help_panel=panel)(train_command)
    app.command("predict", rich_help_panel=panel)(predict_command)
