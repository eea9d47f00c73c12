"""The command line `planner`: what to do with the memory there is."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from costmodel import ACCOUNTINGS, OPTIMIZERS, InputError
from costmodel.cli_support import run
from costmodel.drawing import plot_path
from costmodel.units import format_bytes, format_count, parse_bytes

if TYPE_CHECKING:
    from .candidates import Candidate
    from .recommend import Recommendation
    from .validation import LeftOut

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which way of fine-tuning to choose for the memory there is. "
    "MODEL is torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:function, or a bare NAME. "
    "--debug shows the traceback of an error.",
)

Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="One or more, such as torchvision:mobilenet_v2.", show_default=False),
]
Batch = Annotated[int, typer.Option(help="Images per update.")]
Optimizer = Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")]
Resolution = Annotated[int, typer.Option(help="Height and width of the images in pixels.")]
Classes = Annotated[int | None, typer.Option(help="Classes of a new head; default: the network's own.")]
Accounting = Annotated[str, typer.Option(help=f"One of {', '.join(ACCOUNTINGS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


class Against(StrEnum):
    """What memory is drawn against."""

    recovery = "recovery"
    flops = "flops"


@app.command("recommend")
def recommend_command(
    models: Models,
    ram: Annotated[str, typer.Option(help="Memory for training, such as 64MB or 61MiB.", show_default=False)],
    batch: Batch = 8,
    optimizer: Optimizer = "sgd",
    resolution: Resolution = 224,
    classes: Classes = None,
    accounting: Accounting = "lean",
    as_json: Json = False,
) -> None:
    """The method and depth with the best expected accuracy of those that fit in --ram, and why.

    Exit code 3 if nothing fits; the message names the smallest footprint.
    """
    ram_bytes = parse_bytes(ram)
    from .recommend import recommend

    answer = recommend(models, ram_bytes, batch, optimizer, resolution, classes, accounting)
    if as_json:
        print(json.dumps(answer.to_dict(), indent=2))
    else:
        _print_recommendation(answer)


@app.command("candidates")
def candidates_command(
    models: Models,
    batch: Batch = 8,
    optimizer: Optimizer = "sgd",
    resolution: Resolution = 224,
    classes: Classes = None,
    accounting: Accounting = "lean",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every column as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Every method at every depth of each MODEL: memory, FLOPs and expected accuracy."""
    from .candidates import candidates, to_frame

    priced = candidates(models, batch, optimizer, resolution, classes, accounting)
    if as_json:
        print(json.dumps([candidate.to_dict() for candidate in priced], indent=2))
    elif as_csv:
        to_frame(priced).to_csv(sys.stdout, index=False)
    else:
        several = len({candidate.model for candidate in priced}) > 1
        title = "every method and depth" if several else priced[0].model
        _console().print(_table([("", candidate) for candidate in priced], several, title))


@app.command("pareto")
def pareto_command(
    models: Models,
    out: Annotated[str | None, typer.Option(help="The picture to write: .png, .svg or .pdf.")] = None,
    html: Annotated[str | None, typer.Option(help="The interactive page to write: .html.")] = None,
    ram: Annotated[str | None, typer.Option(help="A budget to draw, such as 64MB.")] = None,
    against: Annotated[Against, typer.Option(help="What to draw memory against, in --out.")] = Against.recovery,
    batch: Batch = 8,
    optimizer: Optimizer = "sgd",
    resolution: Resolution = 224,
    classes: Classes = None,
    accounting: Accounting = "lean",
) -> None:
    """Draw memory against expected accuracy or FLOPs, every method at every depth of each MODEL."""
    if not out and not html:
        raise InputError("nothing to write; give --out pareto.png (or .svg, .pdf), --html pareto.html, or both")
    if out:
        plot_path(out)
    if html:
        plot_path(html, (".html",))
    ram_bytes = None if ram is None else parse_bytes(ram)
    from .candidates import candidates

    priced = candidates(models, batch, optimizer, resolution, classes, accounting)
    if out:
        from .plots import draw_pareto

        draw_pareto(priced, out, ram_bytes, against.value)
        print(f"wrote {out}")
    if html:
        from .page import write_page

        write_page(priced, html, ram_bytes)
        print(f"wrote {html}")


def _console():
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a pipe or file has no width of its own
        console.width = 120
    return console


def _recovery(candidate: Candidate) -> str:
    from .recommend import recovery_text

    guess = candidate.recovery
    text = recovery_text(guess.value)
    return text if guess.kind in ("definition", "unknown") else f"{text} ({guess.low:.2f} to {guess.high:.2f})"


def _table(rows: list[tuple[str, Candidate]], several: bool, title: str):
    """Return a table of candidates, each behind a label; the label and model columns only where they tell apart."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from .recommend import short_names

    short = short_names(candidate.model for _, candidate in rows)
    labelled = any(label for label, _ in rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    if labelled:
        table.add_column("", no_wrap=True)
    if several:
        table.add_column("model", overflow="fold", min_width=18)
    table.add_column("method", no_wrap=True)
    for name in ("peak", "FLOPs", *(() if several else ("trained",))):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("recovery", no_wrap=True)
    table.add_column("basis", no_wrap=True)
    for label, candidate in rows:
        table.add_row(
            *([label] if labelled else []),
            *([short[candidate.model]] if several else []),
            candidate.label,
            format_bytes(candidate.peak_bytes),
            format_count(candidate.total_flops),
            *(() if several else (format_count(candidate.trained_parameters),)),
            _recovery(candidate),
            candidate.recovery.kind,
        )
    return table


def _bullets(lines: list[str]):
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for line in lines:
        grid.add_row("-", _plain(line))
    return grid


def _plain(text: str):
    """Return text that rich shows as it is."""
    from rich.text import Text

    return Text(text)


def _panel(answer: Recommendation):
    """Return the pick with its costs and what its accuracy rests on."""
    from rich.panel import Panel
    from rich.table import Table

    chosen, guess = answer.chosen, answer.chosen.recovery
    parts = [
        f"{name.replace('_', ' ')} {format_bytes(size)}"
        for name, size in chosen.memory_bytes.items()
        if size and name != "peak"
    ]
    rows = [
        ("model", chosen.model),
        ("method", chosen.method if chosen.blocks is None else f"{chosen.method}, the last k = {chosen.blocks} blocks"),
        ("step", f"batch {chosen.batch}, {chosen.resolution}x{chosen.resolution}, {chosen.classes} classes, "
                 f"{chosen.optimizer}, accounting {chosen.accounting}"),
        ("peak memory", f"{format_bytes(chosen.peak_bytes)} of {format_bytes(answer.ram_bytes)}, in "
                        f"{chosen.peak_phase}" + (f" at {chosen.peak_layer}" if chosen.peak_layer else "")),
        ("", ", ".join(parts)),
        ("FLOPs per step", f"{format_count(chosen.total_flops)} (forward {format_count(chosen.forward_flops)}, "
                           f"backward {format_count(chosen.backward_flops)})"),
        ("trained", f"{format_count(chosen.trained_parameters)} parameters"),
        ("expected recovery", f"{_recovery(chosen)} of the way from training the last layer (0) to everything (1)"),
        ("  kind", guess.kind),
        ("  rests on", guess.rests_on),
        ("  source", guess.source),
        ("  interval", guess.interval),
    ]  # fmt: skip
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        if text:
            grid.add_row(label, _plain(text), style="bold" if label in ("model", "method") else "")
    return Panel(grid, title="recommended", title_align="left")


def _alternatives(answer: Recommendation) -> list[tuple[str, Candidate]]:
    """Return the candidates worth knowing besides the pick, each once, with what sets it apart."""
    unfit = [answer.next_better, answer.best_unfit]
    labelled = [(f"lacks {format_bytes(c.peak_bytes - answer.ram_bytes)}", c) for c in unfit if c]
    labelled += [("cheaper", candidate) for candidate in answer.cheaper]
    labelled += [("other network", c) for c in answer.best_per_model if c.model != answer.chosen.model]
    return list({id(candidate): (label, candidate) for label, candidate in labelled}.values())


def _print_recommendation(answer: Recommendation) -> None:
    console = _console()
    console.print(_panel(answer))
    rows = _alternatives(answer)
    if rows:
        several = len({candidate.model for candidate in answer.candidates}) > 1
        console.print(_table(rows, several, "alternatives"))
    console.print(
        "[bold]why[/bold]", _bullets([*answer.reasons, *(f"note: {note}" for note in answer.notes)]), sep="\n"
    )


def main() -> None:
    """Run the command line."""
    run(app)


evidence_app = typer.Typer(no_args_is_help=True, help="The accuracies that estimates rest on.")
app.add_typer(evidence_app, name="evidence")


@evidence_app.command("check")
def evidence_check_command(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print only the summary, as a table for docs.")] = False,
    as_json: Json = False,
) -> None:
    """How far off the published evidence is on a data set that it has not seen.

    Predicts every published recovery and accuracy without the data set it was measured on. Exit code 1 if fewer than
    90 % of the accuracies lie in their 90 % intervals.
    """
    from .validation import WANTED_COVERAGE, leave_one_out, summaries
    from .validation import markdown as markdown_table

    found = leave_one_out()
    if as_json:
        print(json.dumps([one.to_dict() for one in found], indent=2))
    elif markdown:
        print(markdown_table(found))
    else:
        _print_left_out(found)
    if summaries(found)[-1].coverage < WANTED_COVERAGE:
        raise typer.Exit(1)


def _print_left_out(found: list[LeftOut]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from .validation import summaries

    title = "each data set left out: predicted, true, and the error"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("method", "network", "data set"):
        table.add_column(name, no_wrap=True)
    for name in ("recovery", "true", "error", "top-1 %", "true", "error", "90 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in found:
        guess = one.predicted
        table.add_row(
            one.method,
            f"{one.model}, unseen" if one.unseen else one.model,
            one.dataset,
            f"{guess.value:.2f}",
            f"{one.recovery:.2f}",
            f"{one.recovery_error:+.2f}",
            f"{guess.accuracy_percent:.1f}",
            f"{one.top1_percent:.1f}",
            f"{one.points_error:+.1f}",
            f"{guess.accuracy_low_percent:.1f} to {guess.accuracy_high_percent:.1f}",
            "" if one.covered else "missed",
        )
    console = _console()
    console.print(table)
    console.print(
        _bullets(
            [
                f"{one.name}: {one.count} predictions, mean absolute error {one.recovery_error:.2f} of recovery, "
                f"{one.points_error:.1f} points; {one.covered} ({100 * one.coverage:.0f} %) lie in the 90 % interval, "
                f"{one.recovery_covered} of the recoveries in theirs"
                for one in summaries(found)
            ]
            + ["the curve over depth rests on one number alone: nothing can be left out, so its error is not known"]
        )
    )
