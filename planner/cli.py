"""The command line `planner`: what to do with the memory there is."""

from __future__ import annotations

import json
import math
import re
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
    from .devices import Device
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
_SEVERAL = "One, several (1,2,4), or a range (1-64, 8-64:8)."
Batch = Annotated[str, typer.Option(help=f"Images per update. {_SEVERAL}")]
MicroBatch = Annotated[
    str | None, typer.Option(help="Images per pass, the batch's divisors; default: the whole batch.")
]
Optimizer = Annotated[str, typer.Option(help=f"One or several of {', '.join(OPTIMIZERS)}.")]
Resolution = Annotated[str, typer.Option(help="Height and width of the images in pixels; one or several.")]
FrozenDtype = Annotated[str, typer.Option(help="How frozen weights are stored: float32, float16, int8.")]
Methods = Annotated[str | None, typer.Option("--method", help="One or several; default: all without options.")]
Blocks = Annotated[str | None, typer.Option(help="Depths of the methods that have one; default: all.")]
Classes = Annotated[int | None, typer.Option(help="Classes of a new head; default: the network's own.")]
Accounting = Annotated[str, typer.Option(help=f"One of {', '.join(ACCOUNTINGS)}.")]
Evidence = Annotated[list[str] | None, typer.Option(help="A CSV file of your own accuracies; may be repeated.")]
Dataset = Annotated[str | None, typer.Option(help="Which data set of --evidence it is about, if there are several.")]
DeviceName = Annotated[str | None, typer.Option("--device", help="A device (see planner devices), or a TOML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def _numbers(text: str | None, option: str) -> list[int] | None:
    """Return the whole numbers in '8', '1,2,4', '1-64' or '8-64:8'. Errors: InputError, naming the option."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?\s*", part)
        first, last, step = (int(number) if number else None for number in match.groups()) if match else (None,) * 3
        values = [first] if last is None else range(first, last + 1, step or 1) if step != 0 else ()
        if not match or not values:
            raise InputError(f"{option} {text!r} is no number, list (1,2,4) or range (1-64, 8-64:8)")
        found += values
    return found


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _space(batch, micro_batch, optimizer, frozen_dtype, methods, blocks, accounting, evidence, dataset) -> dict:
    """Return the axes that options name, as `candidates.axes` takes them."""
    from .evidence import load

    return {
        "batch": _numbers(batch, "--batch"),
        "micro_batch": _numbers(micro_batch, "--micro-batch"),
        "optimizer": _names(optimizer),
        "frozen_dtype": _names(frozen_dtype),
        "methods": _names(methods),
        "blocks": _numbers(blocks, "--blocks"),
        "accounting": accounting,
        "evidence": [row for path in evidence or () for row in load(path)],
        "dataset": dataset,
    }


class Against(StrEnum):
    """What memory is drawn against."""

    recovery = "recovery"
    flops = "flops"


def _device(name: str | None) -> Device | None:
    """Return the device of that name or file, if one is named."""
    if name is None:
        return None
    from .devices import device

    return device(name)


@app.command("recommend")
def recommend_command(
    models: Models,
    ram: Annotated[str | None, typer.Option(help="Memory for the training itself, such as 64MB or 61MiB.")] = None,
    device: DeviceName = None,
    batch: Batch = "8",
    micro_batch: MicroBatch = None,
    optimizer: Optimizer = "sgd",
    resolution: Resolution = "224",
    frozen_dtype: FrozenDtype = "float32",
    method: Methods = None,
    blocks: Blocks = None,
    classes: Classes = None,
    accounting: Accounting = "lean",
    evidence: Evidence = None,
    dataset: Dataset = None,
    flash: Annotated[str | None, typer.Option(help="Most bytes of weights and buffers, such as 4MB.")] = None,
    max_flops: Annotated[float | None, typer.Option(help="Most FLOPs of a step per image, such as 500e6.")] = None,
    max_epoch_seconds: Annotated[
        float | None, typer.Option(help="Most roofline time; needs --device, --images.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Images of an epoch.")] = None,
    min_recovery: Annotated[float | None, typer.Option(help="Least expected recovery, 0 to 1.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Least expected accuracy in percent.")] = None,
    objective: Annotated[
        str, typer.Option(help="What the frontier is made of, of memory, flops, time, flash, recovery, accuracy.")
    ] = "memory,flops,recovery",
    save: Annotated[str | None, typer.Option(help="Write the plan to this JSON file.")] = None,
    as_json: Json = False,
) -> None:
    """The method and depth with the best expected accuracy of those that fit in --ram or --device, and why.

    Exit code 3 if nothing fits; the message names the smallest footprint.
    """
    from .recommend import recommend

    target = _device(device)
    ram_bytes = None if ram is None else parse_bytes(ram)
    if target is not None:
        if ram_bytes is not None and ram_bytes > target.training_ram_bytes:
            raise InputError(f"--ram {ram} is more than the device leaves: {target.explain()}")
        ram_bytes = ram_bytes or target.training_ram_bytes
    limits = {
        "flash": None if flash is None else parse_bytes(flash), "flops": max_flops, "recovery": min_recovery,
        "accuracy": min_accuracy,
    }  # fmt: skip
    if max_epoch_seconds is not None:
        if target is None or images is None or images < 1:
            raise InputError("--max-epoch-seconds needs --device, and --images of 1 or more")
        limits["time"] = max_epoch_seconds / images
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    if ram_bytes is None and not limits:
        raise InputError("no limit was given; give --ram 64MB, --device raspberry-pi-zero-2w, or another limit")
    space = _space(batch, micro_batch, optimizer, frozen_dtype, method, blocks, accounting, evidence, dataset)
    answer = recommend(
        models, ram_bytes, resolution=_numbers(resolution, "--resolution"), classes=classes, limits=limits,
        objectives=_names(objective), device=target, **space,
    )  # fmt: skip
    if save is not None:
        answer.plan.save(save)
    if as_json:
        print(json.dumps(answer.to_dict(), indent=2))
        return
    _print_recommendation(answer, target)
    if save is not None:
        print(f"wrote {save}; use it with planner.plan.Plan.load({save!r}).apply(model)")


@app.command("candidates")
def candidates_command(
    models: Models,
    batch: Batch = "8",
    micro_batch: MicroBatch = None,
    optimizer: Optimizer = "sgd",
    resolution: Resolution = "224",
    frozen_dtype: FrozenDtype = "float32",
    method: Methods = None,
    blocks: Blocks = None,
    classes: Classes = None,
    accounting: Accounting = "lean",
    evidence: Evidence = None,
    dataset: Dataset = None,
    device: DeviceName = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every column as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Every method at every depth of each MODEL: memory, FLOPs and expected accuracy."""
    from .candidates import candidates, to_frame

    space = _space(batch, micro_batch, optimizer, frozen_dtype, method, blocks, accounting, evidence, dataset)
    target = _device(device)
    priced = candidates(
        models, resolution=_numbers(resolution, "--resolution"), classes=classes, device=target, **space
    )
    if as_json:
        print(json.dumps([candidate.to_dict() for candidate in priced], indent=2))
    elif as_csv:
        to_frame(priced).to_csv(sys.stdout, index=False)
    else:
        several = len({candidate.model for candidate in priced}) > 1
        title = "every method and depth" if several else priced[0].model
        _console().print(_table([("", candidate) for candidate in priced], several, title))


@app.command("sweep")
def sweep_command(
    models: Models,
    out: Annotated[str, typer.Option(help="The file to write: .csv or .parquet.", show_default=False)],
    batch: Batch = "8",
    micro_batch: MicroBatch = None,
    optimizer: Optimizer = "sgd",
    resolution: Resolution = "224",
    frozen_dtype: FrozenDtype = "float32",
    method: Methods = None,
    blocks: Blocks = None,
    classes: Classes = None,
    accounting: Accounting = "lean",
    evidence: Evidence = None,
    dataset: Dataset = None,
    device: DeviceName = None,
) -> None:
    """Every combination of the axes of each MODEL, priced in bulk, to a file."""
    from .candidates import axes, sweep, trace_all, write_frame

    space = axes(
        **_space(batch, micro_batch, optimizer, frozen_dtype, method, blocks, accounting, evidence, dataset),
        device=_device(device),
    )
    frame = sweep(trace_all(models, _numbers(resolution, "--resolution"), classes), space)
    write_frame(frame, out)
    print(f"wrote {len(frame):,} candidates to {out}")


@app.command("devices")
def devices_command(
    name: Annotated[str | None, typer.Argument(help="One of them, or a TOML file, with every number's source.")] = None,
) -> None:
    """The devices that --device knows: what each leaves for training."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from .devices import device as find_device
    from .devices import device_names

    table = Table(box=SIMPLE_HEAD)
    if name is not None:
        found = find_device(name)
        print(found.explain())
        for column in ("quantity", "value", "source"):
            table.add_column(column, overflow="fold")
        for row in found.quantities():
            table.add_row(*map(_plain, row))
    else:
        for column in ("device", "RAM", "for training", "peak", "bandwidth"):
            table.add_column(column, no_wrap=True, justify="left" if column == "device" else "right")
        for each in device_names():
            found = find_device(each)
            table.add_row(
                each,
                format_bytes(found.ram.bytes),
                format_bytes(found.training_ram_bytes),
                f"{format_count(found.peak.flops_per_second)}FLOP/s",
                f"{format_bytes(found.bandwidth.bytes_per_second)}/s",
            )
    _console().print(table)


@app.command("pareto")
def pareto_command(
    models: Models,
    out: Annotated[str | None, typer.Option(help="The picture to write: .png, .svg or .pdf.")] = None,
    html: Annotated[str | None, typer.Option(help="The interactive page to write: .html.")] = None,
    ram: Annotated[str | None, typer.Option(help="A budget to draw, such as 64MB.")] = None,
    against: Annotated[Against, typer.Option(help="What to draw memory against, in --out.")] = Against.recovery,
    batch: Batch = "8",
    micro_batch: MicroBatch = None,
    optimizer: Optimizer = "sgd",
    resolution: Resolution = "224",
    frozen_dtype: FrozenDtype = "float32",
    method: Methods = None,
    blocks: Blocks = None,
    classes: Classes = None,
    accounting: Accounting = "lean",
    evidence: Evidence = None,
    dataset: Dataset = None,
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

    space = _space(batch, micro_batch, optimizer, frozen_dtype, method, blocks, accounting, evidence, dataset)
    priced = candidates(models, resolution=_numbers(resolution, "--resolution"), classes=classes, **space)
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
    from .recommend import Scale

    guess = candidate.recovery
    text = Scale("recovery").text(-math.inf if guess.value is None else guess.value)
    return text if guess.kind in ("definition", "unknown") else f"{text} ({guess.low:.2f} to {guess.high:.2f})"


def _table(rows: list[tuple[str, Candidate]], several: bool, title: str):
    """Return a table of candidates, each behind a label; the label and model columns only where they tell apart."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from .reasons import short_names

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


def _panel(answer: Recommendation, device: Device | None):
    """Return the pick with its costs and what its accuracy rests on."""
    from rich.panel import Panel
    from rich.table import Table

    from .objectives import seconds_text
    from .recommend import where

    chosen, guess = answer.chosen, answer.chosen.recovery
    parts = [
        f"{name.replace('_', ' ')} {format_bytes(size)}"
        for name, size in chosen.memory_bytes.items()
        if size and name != "peak"
    ]
    micro = f" in micro-batches of {chosen.micro_batch}" if chosen.micro_batch != chosen.batch else ""
    frozen = f", frozen weights in {chosen.frozen_dtype}" if chosen.frozen_dtype != "float32" else ""
    budget = f" of {format_bytes(answer.ram_bytes)}" if answer.ram_bytes else ""
    time = "" if chosen.step_seconds is None else f"{seconds_text(chosen.step_seconds)} or more (roofline)"
    percent = guess.accuracy_percent
    rows = [
        ("model", chosen.model),
        ("method", chosen.method if chosen.blocks is None else f"{chosen.method}, the last k = {chosen.blocks} blocks"),
        ("step", f"batch {chosen.batch}{micro}, {chosen.resolution}x{chosen.resolution}, {chosen.classes} classes, "
                 f"{chosen.optimizer}, accounting {chosen.accounting}{frozen}"),
        ("device", device.explain() if device else ""),
        ("peak memory", f"{format_bytes(chosen.peak_bytes)}{budget}, {where(chosen)}"),
        ("", ", ".join(parts)),
        ("FLOPs per step", f"{format_count(chosen.total_flops)} (forward {format_count(chosen.forward_flops)}, "
                           f"backward {format_count(chosen.backward_flops)})"),
        ("time per step", time),
        ("trained", f"{format_count(chosen.trained_parameters)} parameters"),
        ("expected accuracy", "" if percent is None else f"{percent:.1f} % ({guess.accuracy_low_percent:.1f} to "
                              f"{guess.accuracy_high_percent:.1f}), {guess.accuracy_kind}: {guess.accuracy_rests_on}"),
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

    def lack(candidate: Candidate) -> str:
        missing = candidate.peak_bytes - (answer.ram_bytes or math.inf)
        return f"lacks {format_bytes(missing)}" if missing > 0 else "beyond a limit"

    labelled = [(lack(c), c) for c in (answer.next_better, answer.best_unfit) if c]
    labelled += [("cheaper", candidate) for candidate in answer.cheaper]
    labelled += [(label, c) for label, c in (("faster", answer.faster), ("safer", answer.safer)) if c]
    labelled += [("other network", c) for c in answer.best_per_model if c.model != answer.chosen.model]
    return list({id(candidate): (label, candidate) for label, candidate in labelled}.values())


def _print_recommendation(answer: Recommendation, device: Device | None) -> None:
    console = _console()
    console.print(_panel(answer, device))
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
