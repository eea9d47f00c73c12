"""The command line `costmodel`: what training costs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Annotated

import typer

from ..accounting.eager import EAGER, caveat
from ..accounting.kernels import NO_KERNELS
from ..accounting.table import ACCOUNTINGS
from ..answers.compare import difference
from ..answers.footprint import Footprint
from ..answers.footprint import footprint as cost
from ..errors import InputError, MissingPackageError
from ..graph.blocks import block_count, parts
from ..graph.layer_graph import LayerGraph
from ..machine.process import Process, process_of
from ..machine.step_time import Seconds
from ..methods.table import METHODS, way
from ..methods.way import Way, read_options
from ..step.precision import Precision
from ..step.schedule import PLAIN, Schedule
from ..step.step import Step
from ..traces.stored import trace
from ..units import counted, format_bytes, parse_bytes
from . import options as given
from .calibrate import calibrate
from .layout import wrap
from .programs import flat, for_programs
from .running import run, terminal, with_version
from .tables import WIDTH, method_rows, print_frame, print_reproduction, print_rows, print_verification

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What fine-tuning a network costs: memory by cause and by layer, FLOPs, time. "
    f"{given.MODEL_HELP} --debug shows the traceback of an error.",
)
PRICE, CHECK, HERE = "What a step takes", "Check it", "This machine"
plot_app = typer.Typer(no_args_is_help=True, help="Pictures of a training step's memory: .png, .svg or .pdf.")
with_version(app)
app.add_typer(plot_app, name="plot", rich_help_panel=PRICE)


def _scheduled(step: Step, recompute: str | None, ram: str | None, most_flops: float | None) -> Step:
    """Return the step with the schedule that is asked for; recompute: None or 'best'."""
    if recompute is None:
        if ram is not None or most_flops is not None:
            raise InputError("--ram and --most-flops say how good the best schedule must be; add --recompute best")
        return step
    if recompute != "best":
        raise InputError(f"--recompute is {recompute!r}; allowed: best")
    from ..schedules.best import best_schedule

    budget = None if ram is None else parse_bytes(ram)
    return replace(step, schedule=best_schedule(step, ram_bytes=budget, most_flops=most_flops))


@app.command(rich_help_panel=PRICE)
def footprint(
    model: given.Model,
    method: given.Method = "full",
    blocks: given.Blocks = None,
    option: given.MethodOptions = None,
    batch: given.Batch = 8,
    micro_batch: given.MicroBatch = None,
    resolution: given.Resolution = 224,
    input: given.Input = None,
    classes: given.Classes = None,
    optimizer: given.OptimizerName = "sgd",
    accounting: given.AccountingName = "lean",
    activation_dtype: given.ActivationDtype = "float32",
    frozen_dtype: given.FrozenDtype = "float32",
    inplace_update: given.InplaceUpdate = False,
    prefix_batch: given.PrefixBatch = None,
    cache: given.Cache = None,
    recompute: given.Recompute = None,
    ram: given.Ram = None,
    most_flops: given.MostFlops = None,
    first_step: Annotated[
        bool,
        typer.Option(
            "--first-step", help="Price the step that makes the optimizer's state.", rich_help_panel=given.STEP
        ),
    ] = False,
    allocator: given.AllocatorName = "arena",
    per: Annotated[
        given.Grouping | None,
        typer.Option(help="Show rows by layer, block, operation or tensor.", rich_help_panel=given.OUTPUT),
    ] = None,
    fresh: given.Fresh = False,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """Show the memory and FLOPs of one training step of MODEL."""
    graph = trace(model, resolution, classes, input=input, fresh=fresh)
    step = Step(
        graph, way(method, blocks, read_options(option or ())), batch,
        Schedule(micro_batch, inplace_update, prefix_batch, cache=cache),
        Precision(frozen=frozen_dtype, activations=activation_dtype), optimizer, accounting, first_step,
    )  # fmt: skip
    answer = cost(_scheduled(step, recompute, ram, most_flops))
    process, seconds = _on_this_machine(answer, allocator)
    own = {} if process is None else {"process_bytes": process.bytes, "process": process.to_dict()}
    result = {**answer.to_dict(), **own, "step_seconds": vars(seconds)}
    rows = answer.to_frame(per.value).to_dict("records") if per else [flat(result)]
    if per:
        result[f"per_{per.value}"] = rows
    if for_programs(result, rows, as_json, as_csv):
        return
    _print_caveat(accounting)
    out = terminal()
    out.print(answer)
    known = {"process": process.text if process else "", "time of a step": seconds.text}
    for line in (f"{name}: {text}" for name, text in known.items() if text):
        out.print("\n".join(wrap(line, out.width, then="  ")))
    if per:
        print_frame(answer.to_frame(per.value), f"per {per.value}")


def _on_this_machine(answer: Footprint, allocator: str) -> tuple[Process | None, Seconds]:
    """Return what the process of a step holds here, and how long it takes, by what `costmodel calibrate` found out.

    No process for an accounting that leaves parts of a step out.
    """
    from ..machine.calibration import calibration

    known, step = calibration(), answer.step
    whole = ACCOUNTINGS[answer.accounting].whole_step
    process = process_of(step, known.floor_of(step), allocator) if whole else None
    model = known.step_time(allocator)
    if model is None:
        return process, Seconds.unknown("this machine is not calibrated for this allocator (costmodel calibrate)")
    return process, model.predict(step)


@app.command("summary", rich_help_panel=PRICE)
def summary_command(
    model: given.Model,
    method: given.Method = "full",
    blocks: given.Blocks = None,
    option: given.MethodOptions = None,
    batch: given.Batch = 8,
    resolution: given.Resolution = 224,
    input: given.Input = None,
    classes: given.Classes = None,
    optimizer: given.OptimizerName = "sgd",
    accounting: given.AccountingName = "lean",
    depth: Annotated[int, typer.Option(help="How many levels of modules to show.", rich_help_panel=given.OUTPUT)] = 3,
    fresh: given.Fresh = False,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """Show MODEL as a tree: parameters, FLOPs, and what each layer keeps for backward."""
    from .summary import summary

    found = summary(
        trace(model, resolution, classes, input=input, fresh=fresh), method, blocks, batch, optimizer=optimizer,
        accounting=accounting, options=read_options(option or ()), depth=depth,
    )  # fmt: skip
    rows = found.to_frame().to_dict("records")
    if not for_programs(rows, rows, as_json, as_csv):
        terminal(WIDTH).print(found)


@app.command(rich_help_panel=PRICE)
def layers(
    model: given.Model,
    resolution: given.Resolution = 224,
    input: given.Input = None,
    classes: given.Classes = None,
    fresh: given.Fresh = False,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """List the layers of MODEL, with their blocks, shapes and parameters."""
    graph = trace(model, resolution, classes, input=input, fresh=fresh)
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
    if not for_programs(rows, rows, as_json, as_csv):
        print_rows(rows, f"{graph.model}: {counted(len(graph.layers), 'layer')}, {counted(len(cut.blocks), 'block')}")


@app.command(rich_help_panel=CHECK)
def verify(
    model: given.Model,
    method: given.Method = "full",
    blocks: given.Blocks = None,
    option: given.MethodOptions = None,
    batch: given.Batch = 8,
    resolution: given.Resolution = 224,
    input: given.Input = None,
    classes: given.Classes = None,
    optimizer: given.OptimizerName = "sgd",
    frozen_dtype: given.FrozenDtype = "float32",
    accounting: Annotated[
        str | None, typer.Option(help="The accounting to check: eager (default) or lean (with --schedule, always).")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="best: check the schedule of --recompute best.")] = None,
    cache: given.Cache = None,
    ram: given.Ram = None,
    most_flops: given.MostFlops = None,
    device: Annotated[given.Device, typer.Option(help="Where to train.")] = given.Device.cpu,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """Train MODEL for a few steps here and compare predicted with measured; exit code 1 if they disagree."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ..checking.verification import verify as run_verification

    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), transient=True,
        console=terminal(stderr=True),
    )  # fmt: skip
    with bar:
        task = bar.add_task("starting", total=None)
        chosen = way(method, blocks, read_options(option or ()))
        books = accounting or ("eager" if schedule is None and cache is None else "lean")
        step = Step(
            trace(model, resolution, classes, input=input), chosen, batch, Schedule(cache=cache), optimizer=optimizer,
            accounting=books,
        )  # fmt: skip
        carried_out = _scheduled(step, schedule, ram, most_flops).schedule
        result = run_verification(
            model, chosen, None, batch, resolution, classes, books, optimizer, device.value,
            lambda stage: bar.update(task, description=stage), frozen_dtype=frozen_dtype, schedule=carried_out,
            input=input,
        )  # fmt: skip
    rows = [{**vars(check), "agrees": check.agrees} for check in result.checks]
    answer = {"agrees": result.agrees, "checks": rows, "modules": result.differing_modules}
    if not for_programs(answer, rows, as_json, as_csv):
        print_verification(result)
    raise typer.Exit(0 if result.agrees else 1)


@app.command(rich_help_panel=PRICE)
def compare(
    model: given.Model,
    method: given.Methods = None,
    blocks: Annotated[
        int,
        typer.Option(help="How many of the last blocks train, for methods with a depth.", rich_help_panel=given.TRAINS),
    ] = 5,
    batch: given.Batch = 8,
    resolution: given.Resolution = 224,
    input: given.Input = None,
    classes: given.Classes = None,
    optimizer: given.OptimizerName = "sgd",
    fresh: given.Fresh = False,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """Compare what stock PyTorch keeps with what exact gradients need, and say why they differ."""
    graph = trace(model, resolution, classes, input=input, fresh=fresh)
    rows, papers, causes = [], [], {}
    compared = [entry for entry in ACCOUNTINGS.values() if not entry.in_flash]  # whose steps are those of another one
    for each in _ways(graph, method, [min(blocks, block_count(graph))]):
        answers = {
            entry.name: cost(Step(graph, each, batch, optimizer=optimizer, accounting=entry.name, kernels=NO_KERNELS))
            for entry in compared
        }
        whole = {name: answer for name, answer in answers.items() if ACCOUNTINGS[name].whole_step}
        rows.append({
            "method": each.label,
            **{f"{books}_saved_bytes": answer.saved_bytes for books, answer in whole.items()},
            **{f"{books}_peak_bytes": answer.peak_bytes for books, answer in whole.items()},
        })  # fmt: skip
        # What papers print is one number, which leaves most of a step out.
        papers.append({f"{name}_bytes": answer.peak_bytes for name, answer in answers.items() if name not in whole})
        causes[each.label] = difference(answers["eager"], answers["lean"])
    joined = [{**row, **paper} for row, paper in zip(rows, papers, strict=True)]
    detail = {name: frame.to_dict("records") for name, frame in causes.items()}
    answer = {"model": graph.model, "batch": batch, "methods": joined, "differences": detail}
    if for_programs(answer, joined, as_json, as_csv):
        return
    _print_caveat(EAGER.name)
    title = f"{graph.model}, batch {batch}, {graph.input_label}, {optimizer} (kernels' working memory left out)"
    print_rows(rows, title)
    named = [{"method": row["method"], **paper} for row, paper in zip(rows, papers, strict=True)]
    print_rows(named, "the same by the rules of papers")
    for entry in compared:
        if entry.leaves_out:
            terminal().print(f"{entry.name}: {entry.source}; leaves out {entry.leaves_out}")
    for name, frame in causes.items():
        if len(frame):
            print_frame(frame, f"{name}: where eager keeps more than lean")


def _ways(graph: LayerGraph, methods: list[str] | None, depths: list[int]) -> list[Way]:
    """Return the ways of some methods (default: all that apply to the network), at each depth where they take one."""
    found = [METHODS.find(name) for name in methods or METHODS]
    return [
        way(method.name, depth, method.fitting_options(graph))
        for method in dict.fromkeys(found)
        if methods or not method.why_not(graph)
        for depth in (dict.fromkeys(depths) if method.takes_blocks else (None,))
    ]


def _print_caveat(accounting: str) -> None:
    if accounting == EAGER.name and (text := caveat()):
        typer.echo(f"note: {text}", err=True)
    entry = ACCOUNTINGS.get(accounting)
    if entry and entry.leaves_out:
        typer.echo(f"note: this accounting is that of {entry.source}; it leaves out {entry.leaves_out}", err=True)


@plot_app.command("timeline")
def plot_timeline(
    model: given.Model,
    out: given.Out,
    method: Annotated[list[str] | None, typer.Option(help="Repeat for a panel each; default: full.")] = None,
    blocks: given.Depths = None,
    batch: given.Batch = 8,
    resolution: given.Resolution = 224,
    classes: given.Classes = None,
    optimizer: given.OptimizerName = "sgd",
    accounting: given.AccountingName = "lean",
    micro_batch: given.MicroBatch = None,
    inplace_update: given.InplaceUpdate = False,
    prefix_batch: given.PrefixBatch = None,
    cache: given.Cache = None,
    recompute: given.Recompute = None,
    ram: given.Ram = None,
    most_flops: given.MostFlops = None,
) -> None:
    """Draw what is in memory at each moment of a training step of MODEL, with its phases and its peak."""
    from .plots import draw_timeline, plot_path

    path = plot_path(out)
    graph = trace(model, resolution, classes)
    schedule = Schedule(micro_batch, inplace_update, prefix_batch, cache=cache)
    steps = _steps(graph, method or ["full"], blocks, batch, optimizer, accounting, schedule)
    draw_timeline([cost(_scheduled(step, recompute, ram, most_flops)) for step in steps], path)
    print(f"wrote {out}")


@plot_app.command("frontier")
def plot_frontier(
    model: given.Model,
    out: given.Out,
    method: given.Method = "full",
    blocks: given.Blocks = None,
    option: given.MethodOptions = None,
    batch: given.Batch = 8,
    resolution: given.Resolution = 224,
    classes: given.Classes = None,
    optimizer: given.OptimizerName = "sgd",
) -> None:
    """Draw memory against FLOPs of a training step of MODEL, for every schedule that no other beats in both."""
    from ..schedules.best import schedule_frontier
    from .plots import draw_frontier, plot_path

    path = plot_path(out)
    step = Step(
        trace(model, resolution, classes), way(method, blocks, read_options(option or ())), batch, optimizer=optimizer
    )
    draw_frontier(schedule_frontier(step), cost(step), path)
    print(f"wrote {out}")


@plot_app.command("breakdown")
def plot_breakdown(
    model: given.Model,
    out: given.Out,
    method: given.Methods = None,
    blocks: given.Depths = None,
    batch: given.Batch = 8,
    resolution: given.Resolution = 224,
    classes: given.Classes = None,
    optimizer: given.OptimizerName = "sgd",
    accounting: given.AccountingName = "lean",
) -> None:
    """Draw what is in memory at the peak of a training step of MODEL, a bar per method."""
    from .plots import draw_breakdown, plot_path

    path = plot_path(out)
    for name in method or ():
        METHODS.find(name)  # before the network is traced, which may take long
    graph = trace(model, resolution, classes)
    draw_breakdown([cost(step) for step in _steps(graph, method, blocks, batch, optimizer, accounting)], path)
    _print_caveat(accounting)
    print(f"wrote {out}")


def _steps(
    graph: LayerGraph, methods: list[str] | None, depths: list[int] | None, batch: int, optimizer: str, accounting: str,
    schedule: Schedule = PLAIN,
) -> list[Step]:  # fmt: skip
    """Return the step of each method (default: all that apply), at each depth if it takes one (default: 5)."""
    ways = _ways(graph, methods, depths or [min(5, block_count(graph))])
    return [Step(graph, each, batch, schedule, optimizer=optimizer, accounting=accounting) for each in ways]


@app.command(rich_help_panel=PRICE)
def methods(as_json: given.Json = False, as_csv: given.Csv = False) -> None:
    """List the training methods."""
    rows = method_rows()
    if not for_programs(rows, rows, as_json, as_csv):
        print_rows(rows, "")


@app.command(rich_help_panel=CHECK)
def reproduce(
    plot: Annotated[str | None, typer.Option(help="Write published against computed into this image file.")] = None,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """Compare published numbers with what the papers' own rules give; exit code 1 if one is not as expected."""
    from ..checking.reproduction import CONCLUSION, not_recomputed, to_records, variants
    from ..checking.reproduction import reproduce as compute

    results, tried, unknown = compute(), list(variants()), []
    with suppress(MissingPackageError):  # it takes a trace, which takes torch
        unknown = list(not_recomputed())
    broken = [result for result in results if not result.as_expected]
    if plot:
        from .plots import published_against_computed

        published_against_computed(results, plot)
    rows = to_records(results)
    answer = {"as_expected": not broken, "numbers": rows, "variants": [vars(v) for v in tried],
              "not_recomputed": [vars(each) for each in unknown]}  # fmt: skip
    if not for_programs(answer, rows, as_json, as_csv):
        print_reproduction(results, tried)
        terminal().print(CONCLUSION)
        for each in unknown:
            terminal().print(
                f"{each.claim}: {each.published:g} MB cannot be recomputed: {each.reason}: {each.low:.1f} to "
                f"{each.high:.1f} MB"
            )
        same = sum(result.reproduced for result in results)
        print(f"{same} of {len(results)} reproduced; {len(broken)} not as expected")
    raise typer.Exit(1 if broken else 0)


app.command(rich_help_panel=HERE)(calibrate)


@app.command("cache", rich_help_panel=HERE)
def cache_command(
    clear: Annotated[bool, typer.Option("--clear", help="Delete every trace in it.")] = False,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """List the traces kept on this machine, so that a network is traced once.

    The environment variable COSTMODEL_CACHE names another folder.
    """
    from ..traces import cache, shipped

    deleted = cache.clear() if clear else 0
    entries = [vars(entry) for entry in cache.entries()]
    answer = {"folder": str(cache.folder()), "deleted": deleted, "entries": entries}
    if for_programs(answer, entries, as_json, as_csv):
        return
    print(f"folder: {cache.folder()}" + ("" if cache.writable() else " (cannot be written: nothing is kept)"))
    sizes = f"{shipped.RESOLUTIONS[0]} to {shipped.RESOLUTIONS[-1]} in steps of 32"
    terminal().print(f"shipped with the package: {', '.join(shipped.NETWORKS)}, at resolutions {sizes}")
    if clear:
        print(f"deleted: {deleted}")
    if entries:
        outdated = sum(not entry["current"] for entry in entries)
        size = format_bytes(sum(entry["file_bytes"] for entry in entries))
        rows = [{**entry, "classes": entry["classes"] or "own", "current": "yes" if entry["current"] else "no"}
                for entry in entries]  # fmt: skip
        print_rows(rows, f"{counted(len(entries), 'trace')}, {size}, {outdated} of other versions")
    else:
        print("no traces")


@app.command(hidden=True)
def ship() -> None:
    """Trace the networks that come with the package, and write them into it."""
    from ..traces.shipped import ship

    total = 0
    for name, size in ship():
        print(f"{name}: {format_bytes(size)}", flush=True)
        total += size
    print(f"together: {format_bytes(total)}")


def main() -> None:
    """Run the command line."""
    run(app)
