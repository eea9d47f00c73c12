"""The command line `costmodel`: what training costs."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from ..accounting.table import ACCOUNTINGS
from ..answers.footprint import Footprint
from ..errors import InputError
from ..graph.layer_graph import LayerGraph
from ..methods.method import Method as TrainingMethod
from ..methods.table import METHODS
from ..methods.table import method as find_method
from ..step.optimizers import OPTIMIZERS
from .running import run

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What it costs to fine-tune a network: bytes by cause and by layer, FLOPs. "
    "MODEL is torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:function, or a bare NAME. "
    "--debug shows the traceback of an error.",
)

plot_app = typer.Typer(no_args_is_help=True, help="Pictures of a training step's memory: .png, .svg or .pdf.")
app.add_typer(plot_app, name="plot")

Model = Annotated[str, typer.Argument(help="Such as torchvision:mobilenet_v2.", show_default=False)]
Resolution = Annotated[int, typer.Option(help="Height and width of the images in pixels.")]
Classes = Annotated[int | None, typer.Option(help="Classes of a new head; default: the network's own.")]

Fresh = Annotated[bool, typer.Option(help="Trace the network now, whatever is stored.")]
Method = Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")]
Blocks = Annotated[int | None, typer.Option(help="Trained blocks, for methods that take a depth.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="name=value of a method's option, such as patch=2; repeat for more."),
]
Depths = Annotated[
    list[int] | None,
    typer.Option("--blocks", help="Trained blocks, for methods that take a depth; repeat for several. Default: 5."),
]
Accounting = Annotated[str, typer.Option(help=f"One of {', '.join(ACCOUNTINGS)}.")]
Out = Annotated[str, typer.Option(help="The file to write: .png, .svg or .pdf.", show_default=False)]
Batch = Annotated[int, typer.Option(help="Images per update.")]
OptimizerName = Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


class Device(StrEnum):
    """Where a network is trained."""

    cpu = "cpu"
    cuda = "cuda"


class _Grouping(StrEnum):
    layer = "layer"
    block = "block"
    operation = "operation"
    tensor = "tensor"


def _print_frame(frame, title: str) -> None:
    """Print a pandas frame as a table."""
    _print_rows(list(frame.columns), frame.to_dict("records"), title)


def _print_rows(names: list[str], rows: list[dict], title: str) -> None:
    """Print rows as a table; columns of bytes and FLOPs are made readable."""
    from rich.console import Console
    from rich.table import Table

    from ..units import format_bytes, format_count

    table = Table(title=title, title_justify="left")
    for name in names:
        number = all(isinstance(row[name], (int, float)) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        cells = []
        for name in names:
            value = row[name]
            if name == "bytes" or name.endswith("_bytes"):
                cells.append(format_bytes(value) if value else "-")
            elif name.endswith(("_flops", "parameters")):
                cells.append(format_count(value) if value else "-")
            else:
                cells.append(str(value))
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:  # a pipe or file has no width of its own
        console.width = 180
    console.print(table)


@app.command()
def footprint(
    model: Model,
    method: Method = "full",
    blocks: Blocks = None,
    option: Options = None,
    batch: Batch = 8,
    micro_batch: Annotated[int | None, typer.Option(help="Images per forward pass; gradients add up.")] = None,
    resolution: Resolution = 224,
    classes: Classes = None,
    optimizer: OptimizerName = "sgd",
    accounting: Accounting = "lean",
    activation_dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16 (autocast).")] = "float32",
    frozen_dtype: Annotated[str, typer.Option(help="Frozen weights: float32, float16 or int8.")] = "float32",
    inplace_update: Annotated[bool, typer.Option(help="Update and free each gradient at once.")] = False,
    first_step: Annotated[bool, typer.Option(help="Price the step that makes the optimizer's state.")] = False,
    per: Annotated[_Grouping | None, typer.Option(help="Show rows by layer, block, operation or tensor.")] = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Memory and FLOPs of one training step of MODEL."""
    from .. import footprint as price
    from .. import trace
    from ..checking.reproduction import read_options

    graph = trace(model, resolution, classes, fresh=fresh)
    answer = price(
        graph, method, blocks, batch, optimizer, accounting, options=read_options(option or ()),
        micro_batch=micro_batch, activation_dtype=activation_dtype, frozen_dtype=frozen_dtype,
        inplace_update=inplace_update, first_step=first_step,
    )  # fmt: skip
    if as_json:
        result = answer.to_dict()
        if per:
            result[f"per_{per.value}"] = answer.to_frame(per.value).to_dict("records")
        print(json.dumps(result, indent=2))
        return
    _print_caveat(accounting)
    for note in graph.notes:
        typer.echo(f"note: {note}", err=True)
    from rich import print as rich_print

    rich_print(answer)
    if per:
        _print_frame(answer.to_frame(per.value), f"per {per.value}")


@app.command()
def layers(
    model: Model,
    resolution: Resolution = 224,
    classes: Classes = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """The layers of MODEL, the block each belongs to, shapes and parameters (it trains nothing)."""
    from .. import parts, trace

    graph = trace(model, resolution, classes, fresh=fresh)
    cut = parts(graph)
    rows = [
        {
            "layer": layer.name,
            "operation": layer.op,
            "part": cut.where(layer),
            "input": layer.input.shape_text,
            "output": layer.output.shape_text,
            "in_place": "yes" if layer.inplace else "view" if layer.is_view else "",
            "parameters": sum(tensor.elements for tensor in layer.parameters.values()),
        }
        for layer in graph.layers
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    _print_rows(list(rows[0]), rows, f"{graph.model}: {len(graph.layers)} layers, {len(cut.blocks)} blocks")


@app.command()
def verify(
    model: Model,
    method: Method = "full",
    blocks: Blocks = None,
    batch: Batch = 8,
    resolution: Resolution = 224,
    classes: Classes = None,
    optimizer: OptimizerName = "sgd",
    accounting: Annotated[str, typer.Option(help="The books to check: eager or lean.")] = "eager",
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.cpu,
    as_json: Json = False,
) -> None:
    """Train MODEL for a few steps here and show predicted next to measured; exit code 1 if they disagree."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ..checking.verification import verify as run_verification

    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True,
        console=Console(stderr=True),
    )  # fmt: skip
    with bar:
        task = bar.add_task("starting", total=None)
        result = run_verification(
            model, method, blocks, batch, resolution, classes, accounting, optimizer, device.value,
            lambda stage: bar.update(task, description=stage),
        )  # fmt: skip
    if as_json:
        rows = [{**vars(check), "agrees": check.agrees} for check in result.checks]
        print(json.dumps({"agrees": result.agrees, "checks": rows, "modules": result.differing_modules}, indent=2))
    else:
        _print_verification(result)
    raise typer.Exit(0 if result.agrees else 1)


def _print_verification(result) -> None:
    from rich.console import Console
    from rich.table import Table

    answer = result.footprint
    depth = "" if answer.blocks is None else f" {answer.blocks}"
    title = f"{answer.graph.model}, {answer.method}{depth}, batch {answer.batch}, accounting {answer.accounting}"
    table = Table("quantity", title=title, title_justify="left")
    for column in ("predicted", "measured", "difference", "allowed", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for check in result.checks:
        allowed = f"{check.tolerance:.1%}" + (f" + {check.slack:,}" if check.slack else "")
        table.add_row(
            f"{check.quantity}, {check.unit}", f"{check.predicted:,}", f"{check.measured:,}",
            f"{check.relative_difference:+.3%}", allowed, "agrees" if check.agrees else "DIFFERS",
        )  # fmt: skip
    console = Console()
    console.print(table)
    if not result.checks[0].agrees:
        modules = Table("module", title="saved bytes that differ", title_justify="left")
        for column in ("predicted", "measured"):
            modules.add_column(column, justify="right")
        for name, predicted, measured in result.differing_modules:
            modules.add_row(name, f"{predicted:,}", f"{measured:,}")
        console.print(modules)


@app.command()
def compare(
    model: Model,
    method: Annotated[list[str] | None, typer.Option(help="Repeat for several; default: all.")] = None,
    blocks: Annotated[int, typer.Option(help="Trained blocks, for methods that take a depth.")] = 5,
    batch: Batch = 8,
    resolution: Resolution = 224,
    classes: Classes = None,
    optimizer: OptimizerName = "sgd",
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """The same training in different books (what stock PyTorch keeps, what is needed): how much, where, and why."""
    from .. import block_count, trace
    from .. import footprint as price
    from ..answers.compare import difference

    graph = trace(model, resolution, classes, fresh=fresh)
    depth = min(blocks, block_count(graph))
    names = method or [name for name, entry in METHODS.items() if _applies(entry, graph, depth)]
    rows, causes = [], {}
    whole = [name for name, entry in ACCOUNTINGS.items() if entry.whole_step]
    for name in names:
        k = depth if find_method(name).takes_blocks else None
        answers = {books: price(graph, name, k, batch, optimizer, books, kernels="none") for books in ACCOUNTINGS}
        rows.append({
            "method": name if k is None else f"{name} {k}",
            **{f"{books}_saved_bytes": answers[books].saved_bytes for books in whole},
            **{f"{books}_peak_bytes": answers[books].peak_bytes for books in whole},
            # What papers print is one number, which leaves most of a step out.
            **{f"{books}_bytes": answers[books].peak_bytes for books in answers if books not in whole},
        })  # fmt: skip
        causes[rows[-1]["method"]] = difference(answers["eager"], answers["lean"])
    if as_json:
        detail = {name: frame.to_dict("records") for name, frame in causes.items()}
        print(json.dumps({"model": graph.model, "batch": batch, "methods": rows, "differences": detail}, indent=2))
        return
    _print_caveat("eager")
    title = f"{graph.model}, batch {batch}, {resolution}x{resolution}, {optimizer} (kernels' working memory left out)"
    _print_rows(list(rows[0]), rows, title)
    for name, entry in ACCOUNTINGS.items():
        if entry.leaves_out:
            print(f"{name}: {entry.source}; leaves out {entry.leaves_out}")
    for name, frame in causes.items():
        if len(frame):
            _print_frame(frame, f"{name}: where the books differ")


def _applies(method: TrainingMethod, graph: LayerGraph, depth: int) -> bool:
    """Return whether a network has what a method needs, such as blocks."""
    try:
        method(graph, depth if method.takes_blocks else None)
    except InputError:
        return False
    return True


def _print_caveat(accounting: str) -> None:
    from ..accounting.eager import EAGER, caveat

    if accounting == EAGER.name and (text := caveat()):
        typer.echo(f"note: {text}", err=True)
    entry = ACCOUNTINGS.get(accounting)
    if entry and entry.leaves_out:
        typer.echo(f"note: these are the books of {entry.source}; they leave out {entry.leaves_out}", err=True)


@plot_app.command("timeline")
def plot_timeline(
    model: Model,
    out: Out,
    method: Annotated[list[str] | None, typer.Option(help="Repeat for a panel each; default: full.")] = None,
    blocks: Depths = None,
    batch: Batch = 8,
    resolution: Resolution = 224,
    classes: Classes = None,
    optimizer: OptimizerName = "sgd",
    accounting: Accounting = "lean",
) -> None:
    """What is in memory at each moment of one training step of MODEL, by category; the peak and its layer."""
    from .plots import draw_timeline, plot_path

    path = plot_path(out)
    draw_timeline(_price(model, method or ["full"], blocks, batch, resolution, classes, optimizer, accounting), path)
    print(f"wrote {out}")


@plot_app.command("breakdown")
def plot_breakdown(
    model: Model,
    out: Out,
    method: Annotated[list[str] | None, typer.Option(help="Repeat for several; default: all.")] = None,
    blocks: Depths = None,
    batch: Batch = 8,
    resolution: Resolution = 224,
    classes: Classes = None,
    optimizer: OptimizerName = "sgd",
    accounting: Accounting = "lean",
) -> None:
    """What is in memory at the peak of a training step of MODEL, by category, a bar per method."""
    from .plots import draw_breakdown, plot_path

    path = plot_path(out)
    draw_breakdown(_price(model, method, blocks, batch, resolution, classes, optimizer, accounting), path)
    _print_caveat(accounting)
    print(f"wrote {out}")


def _price(
    model: str,
    methods: list[str] | None,
    depths: list[int] | None,
    batch: int,
    resolution: int,
    classes: int | None,
    optimizer: str,
    accounting: str,
) -> list[Footprint]:
    """Return the footprint of each method (default: all that apply), at each depth if it takes one (default: 5)."""
    from .. import block_count, trace
    from .. import footprint as price

    takes_blocks = {name: find_method(name).takes_blocks for name in methods or METHODS}
    graph = trace(model, resolution, classes)
    depths = depths or [min(5, block_count(graph))]
    names = methods or [name for name in takes_blocks if _applies(METHODS[name], graph, depths[0])]
    return [
        price(graph, name, k, batch, optimizer, accounting)
        for name in dict.fromkeys(names)
        for k in (dict.fromkeys(depths) if takes_blocks[name] else (None,))
    ]


@app.command()
def methods() -> None:
    """The training methods."""
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "depth k", "what trains, and how", "runs here", "source")
    for method in METHODS.values():
        runs = "yes" if method.has_layers else "priced only"
        table.add_row(method.name, "yes" if method.takes_blocks else "", method.summary, runs, method.source)
    Console().print(table)


@app.command()
def reproduce(
    plot: Annotated[str | None, typer.Option(help="Write published against computed into this image file.")] = None,
    as_json: Json = False,
) -> None:
    """Published numbers next to what the papers' own rules give; exit code 1 if one is not as expected."""
    from ..checking.reproduction import CONCLUSION, to_records, variants
    from ..checking.reproduction import plot as draw
    from ..checking.reproduction import reproduce as compute

    results, tried = compute(), list(variants())
    broken = [result for result in results if not result.as_expected]
    if plot:
        draw(results, plot)
    if as_json:
        answer = {"as_expected": not broken, "numbers": to_records(results), "variants": [vars(v) for v in tried]}
        print(json.dumps(answer, indent=2))
    else:
        _print_reproduction(results, tried)
        print(CONCLUSION)
        same = sum(result.reproduced for result in results)
        print(f"{same} of {len(results)} reproduced; {len(broken)} not as expected")
    raise typer.Exit(1 if broken else 0)


def _print_reproduction(results, tried) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("source", "network", "method", "quantity", title="published next to computed", title_justify="left")
    for column in ("published", "computed", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        row = result.published
        depth = "" if row.blocks is None else f" {row.blocks}"
        options = "".join(f", {name} {value}" for name, value in row.options.items())
        text = "reproduced" if result.reproduced else "differs"
        digits = max(0, min(6, len(f"{row.tolerance:.9f}".rstrip("0").partition(".")[2])))
        computed = f"{result.computed:,.{digits + 2 if row.rounding == 'down' else digits}f} {row.unit}"
        table.add_row(
            f"{row.source}, {row.table}", row.network, f"{row.method}{depth}{options}", row.quantity,
            f"{row.value:,.{digits}f} {row.unit}", computed, text if result.as_expected else f"{text}: NOT AS EXPECTED",
        )  # fmt: skip
    other = Table("claim", "counting", title="countings that were tried", title_justify="left")
    for column in ("published", "gives"):
        other.add_column(column, justify="right", no_wrap=True)
    for variant in tried:
        other.add_row(variant.claim, variant.counting, f"{variant.published:.1f} %", f"{variant.gives:.1f} %")
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    for result in results:
        if result.published.reason:
            console.print(f"{result.published.network}, {result.published.value:g}: {result.published.reason}")
    console.print(other)


@app.command("cache")
def cache_command(
    clear: Annotated[bool, typer.Option("--clear", help="Delete every trace in it.")] = False,
    as_json: Json = False,
) -> None:
    """The traces kept on this machine, so that a network is traced once; COSTMODEL_CACHE names another folder."""
    from ..traces import cache, shipped

    deleted = cache.clear() if clear else 0
    entries = [vars(entry) for entry in cache.entries()]
    if as_json:
        print(json.dumps({"folder": str(cache.folder()), "deleted": deleted, "entries": entries}, indent=2))
        return
    print(f"folder: {cache.folder()}" + ("" if cache.writable() else " (cannot be written: nothing is kept)"))
    sizes = f"{shipped.RESOLUTIONS[0]} to {shipped.RESOLUTIONS[-1]} in steps of 32"
    print(f"shipped with the package: {', '.join(shipped.NETWORKS)}, at resolutions {sizes}")
    if clear:
        print(f"deleted: {deleted}")
    if entries:
        from ..units import format_bytes

        outdated = sum(not entry["current"] for entry in entries)
        size = format_bytes(sum(entry["file_bytes"] for entry in entries))
        rows = [{**entry, "classes": entry["classes"] or "own", "current": "yes" if entry["current"] else "no"}
                for entry in entries]  # fmt: skip
        _print_rows(list(rows[0]), rows, f"{len(entries)} traces, {size}, {outdated} of other versions")
    else:
        print("no traces")


@app.command(hidden=True)
def ship() -> None:
    """Trace the networks that come with the package, and write them into it."""
    from ..traces.shipped import ship
    from ..units import format_bytes

    for name, size in ship():
        print(f"{name}: {format_bytes(size)}")


def main() -> None:
    """Run the command line."""
    run(app)
