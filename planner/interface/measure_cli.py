"""The commands about accuracies that are observed: `planner measure`, and `planner evidence check`."""

from __future__ import annotations

from typing import Annotated

import typer

from costmodel.interface import options as given
from costmodel.interface.programs import for_programs

from .campaigns import interruptible, ram_bytes_of, rates_of
from .space import RUNS, DeviceName, Images, Ram, Storage, Strict, Weights

evidence_app = typer.Typer(no_args_is_help=True, help="The accuracies that estimates rest on.")


@evidence_app.command("check")
def evidence_check_command(
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print only the summary, as a table for docs.", rich_help_panel=given.OUTPUT),
    ] = False,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """How far off the expected accuracy is on a data set, for a network, or by a source that the evidence lacks.

    Predicts every observed accuracy without what it was observed on, given last and full. Exit code 1 if fewer than
    85 % or more than 98 % of all lie in their 90 % intervals.
    """
    from ..estimates.validation import HELD, leave_one_out, summaries
    from ..estimates.validation import markdown as markdown_table

    found = leave_one_out()
    rows = [{**vars(one), "coverage": one.coverage} for one in summaries(found)]
    if markdown:
        print(markdown_table(found))
    elif not for_programs([one.to_dict() for one in found], rows, as_json, as_csv):
        from .report import show_left_out

        show_left_out(found)
    least, most = HELD
    if not all(least <= one.coverage <= most for one in summaries(found) if one.name == "all"):
        raise typer.Exit(1)


def measure_command(
    model: given.Model,
    data: Images,
    weights: Weights = None,
    ram: Ram = None,
    device: DeviceName = None,
    resolution: given.Resolution = 224,
    batch: given.Batch = 8,
    optimizer: given.OptimizerName = "sgd",
    epochs: Annotated[int, typer.Option(help="Epochs of a run.", rich_help_panel=RUNS)] = 10,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rate of the first step; it falls to 0 along a half cosine. Of several (0.003,0.01) each way "
            "gets the best on validation images; default: three that suit the optimizer.",
            rich_help_panel=RUNS,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Most runs of one candidate, each with its seed.", rich_help_panel=RUNS)
    ] = 3,
    trials: Annotated[
        int | None,
        typer.Option(help="Most runs of all workers together; default: until decided.", rich_help_panel=RUNS),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Start no further run after so many hours.", rich_help_panel=RUNS)
    ] = None,
    storage: Storage = "sqlite:///runs.db",
    strict: Strict = False,
    allocator: given.AllocatorName = "arena",
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """Fine-tune the candidates that could be the best on your images, until it is known which one is.

    The same command again continues where the last one stopped; several at once, with one --storage, share the runs.
    Then `planner recommend MODEL --ram ... --evidence runs.db` uses what was measured.
    """
    ram_bytes = ram_bytes_of(ram, device)
    from ..campaign.fine_tuning import Recipe
    from ..campaign.measure import measure
    from .measure_view import Bars, tables

    rates = rates_of(lr, optimizer)
    with interruptible(storage), Bars() as watch:
        outcome = measure(
            model, data, {"memory": ram_bytes}, weights=weights,
            recipe=Recipe(epochs, rates[0], batch, resolution, optimizer), rates=rates if len(rates) > 1 else (),
            trials=trials, hours=hours, seeds=seeds, storage=storage, strict=strict, watch=watch, allocator=allocator,
        )  # fmt: skip
    if not for_programs(outcome.to_dict(), [run.to_dict() for run in outcome.runs], as_json, as_csv):
        from .report import console

        out = console()
        for part in tables(outcome):
            out.print(part)


def add_measuring(app: typer.Typer, panel: str) -> None:
    """Give a command line these commands, under a heading of its help."""
    app.command("measure", rich_help_panel=panel)(measure_command)
    app.add_typer(evidence_app, name="evidence", rich_help_panel=panel)
