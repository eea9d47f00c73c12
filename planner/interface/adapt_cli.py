"""The command that chooses the sub-network, too: `planner adapt`."""

from __future__ import annotations

from typing import Annotated

import typer

from costmodel import InputError
from costmodel.interface import options as given
from costmodel.interface.programs import flat, for_programs

from .campaigns import interruptible, ram_bytes_of, rates_of
from .space import RUNS, DeviceName, Ram, Save, Storage, Strict


def adapt_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="SUPERNET", help="Such as zoo:ofa_proxyless or zoo:ofa_mobilenet_v3@w=1.2.", show_default=False
        ),
    ],
    data: Annotated[str | None, typer.Option(help="A folder of images, as in planner measure.")] = None,
    accuracies: Annotated[
        str | None,
        typer.Option(help="Without --data: a CSV file of known accuracies, with columns subnetwork, top1_percent."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="A file of the super-network's weights, or random.", rich_help_panel=given.NETWORK),
    ] = None,
    resolution: given.Resolution = 224,
    classes: Annotated[
        int | None,
        typer.Option(help="Without --data: classes of a new head.", rich_help_panel=given.NETWORK),
    ] = None,
    ram: Ram = None,
    device: DeviceName = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How the sub-network trains; default: tinytl-lb on group norm, else mobiletl.",
            rich_help_panel=given.TRAINS,
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(
            help="How many of its last blocks train, for a method with a depth.", rich_help_panel=given.TRAINS
        ),
    ] = None,
    batch: given.Batch = 8,
    optimizer: given.OptimizerName = "sgd",
    subnetworks: Annotated[int, typer.Option(help="How many sub-networks are measured.", rich_help_panel=RUNS)] = 200,
    folds: Annotated[
        int, typer.Option(help="Parts of the training images; each is held out once.", rich_help_panel=RUNS)
    ] = 2,
    epochs: Annotated[
        int, typer.Option(help="Epochs of a run, and of the super-network's.", rich_help_panel=RUNS)
    ] = 10,
    super_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the super-network, if others.", rich_help_panel=RUNS)
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(help="Learning rate, or several to choose among, as in planner measure.", rich_help_panel=RUNS),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Runs of the chosen sub-network, each with its seed.", rich_help_panel=RUNS)
    ] = 1,
    hours: Annotated[
        float | None,
        typer.Option(help="Measure no further sub-network after so many hours.", rich_help_panel=RUNS),
    ] = None,
    storage: Storage = "sqlite:///runs.db",
    strict: Strict = False,
    save: Save = None,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """Choose the sub-network of an elastic super-network, too: the best for your images that fits in --ram.

    Trains the super-network, measures sub-networks on held-out images, predicts all others, finds the best one that
    fits, and fine-tunes it. The same command again continues where the last one stopped. Without --data, but with
    --accuracies: the frontier over sub-networks. Exit code 3 if no sub-network fits.
    """
    from costmodel import way

    from .adapt_view import show_adapted, show_subnetworks

    trained = None if method is None else way(method, blocks)
    if (data is None) == (accuracies is None):
        raise InputError("give either --data DIR, to adapt to images, or --accuracies FILE, to plan without")
    if accuracies is not None:
        from ..choosing.subnetworks import plan_without_data

        ram_bytes = None if ram is None and device is None else ram_bytes_of(ram, device)
        found = plan_without_data(model, accuracies, ram_bytes, trained, resolution, classes, batch, optimizer)
        whole = found.to_dict()
        if not for_programs(whole, whole["frontier"], as_json, as_csv):
            show_subnetworks(found)
        return
    assert data is not None  # as one of the two is
    ram_bytes = ram_bytes_of(ram, device)
    from ..campaign.adapt import adapt
    from ..campaign.fine_tuning import Recipe
    from .measure_view import Bars

    rates = rates_of(lr, optimizer)
    with interruptible(storage), Bars() as watch:
        adapted = adapt(
            model, data, ram_bytes, weights=weights, recipe=Recipe(epochs, rates[0], batch, resolution, optimizer),
            trained=trained, rates=rates if len(rates) > 1 else (), subnetworks=subnetworks, folds=folds,
            super_epochs=super_epochs, seeds=seeds, hours=hours, storage=storage, strict=strict, watch=watch,
        )  # fmt: skip
    if save is not None:
        adapted.plan.save(save)
    whole = adapted.to_dict()
    if for_programs(whole, [flat(whole)], as_json, as_csv):
        return
    show_adapted(adapted, ram_bytes)
    if save is not None:
        print(f"wrote {save}; use it with planner.Plan.load({save!r}).apply(model)")


def add_adaptation(app: typer.Typer, panel: str) -> None:
    """Give a command line this command, under a heading of its help."""
    app.command("adapt", rich_help_panel=panel)(adapt_command)
