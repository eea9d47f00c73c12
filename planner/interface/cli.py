"""The command line `planner`: what to do with the memory there is."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from costmodel import OPTIMIZERS, InputError, calibration
from costmodel.interface.drawing import plot_path
from costmodel.interface.running import INTERRUPTED, run, with_version
from costmodel.secrets import shown
from costmodel.units import parse_bytes

from ..choosing.objectives import OBJECTIVES
from ..devices.budget import Epochs, Held, ProcessBudget
from .adapt_cli import add_adaptation
from .exporting import add_exporting, without_python
from .space import Allocator, DeviceName, Json, Models, Storage, Strict, decimals, names, with_space
from .train_cli import add_training

if TYPE_CHECKING:
    from ..devices.device import Device

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which way of fine-tuning to choose for the memory there is. "
    "MODEL is torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:function, or a bare NAME. "
    "--debug shows the traceback of an error.",
)
with_version(app)
add_exporting(app)


class Runtime(StrEnum):
    """What carries a step out."""

    pytorch = "pytorch"
    executorch = "executorch"


class Against(StrEnum):
    """What memory is drawn against."""

    recovery = "recovery"
    flops = "flops"


def _device(name: str | None) -> Device | None:
    """Return the device of that name or file, if one is named."""
    if name is None:
        return None
    from ..devices.device import device

    return device(name)


def _budget(target: Device | None, process_ram: str | None, allocator: str, model: str) -> ProcessBudget | None:
    """Return the memory of the whole process that is asked for, if one is: by --process-ram, or a device's.

    Both together: the smaller. The floor is the device's; without one this machine's for networks such as the first.
    """
    own = target.budget(allocator) if target else None
    if process_ram is None:
        return own
    floor = own.floor if own else calibration().floor(model)
    given = ProcessBudget(parse_bytes(process_ram), floor, allocator)
    return given if own is None or given.process_bytes < own.process_bytes else own


@app.command("recommend")
@with_space
def recommend_command(
    models: Models,
    ram: Annotated[str | None, typer.Option(help="Memory for the training itself, such as 64MB or 61MiB.")] = None,
    device: DeviceName = None,
    process_ram: Annotated[
        str | None, typer.Option(help="Memory for the whole training process, interpreter and libraries included.")
    ] = None,
    allocator: Allocator = "arena",
    *,
    space: dict,
    flash: Annotated[str | None, typer.Option(help="Most bytes of weights and buffers, such as 4MB.")] = None,
    max_flops: Annotated[float | None, typer.Option(help="Most FLOPs of a step per image, such as 500e6.")] = None,
    max_epoch_seconds: Annotated[
        float | None, typer.Option(help="Most roofline time; needs --device, --images.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Images of an epoch, for its time.")] = None,
    epochs: Annotated[int, typer.Option(help="Epochs, for the time of all; needs --images.")] = 1,
    storage: Annotated[
        str | None, typer.Option(help="Room for a cache (--schedules cache,...), such as 1GB; needs --images.")
    ] = None,
    min_recovery: Annotated[float | None, typer.Option(help="Least expected recovery, 0 to 1.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Least expected accuracy in percent.")] = None,
    objective: Annotated[
        str,
        typer.Option(help=f"What the frontier is made of, of {', '.join(OBJECTIVES)}."),
    ] = "memory,flops,recovery",
    runtime: Annotated[Runtime, typer.Option(help="What trains: the budget is held against its memory.")] = (
        Runtime.pytorch
    ),
    save: Annotated[str | None, typer.Option(help="Write the plan to this JSON file.")] = None,
    as_json: Json = False,
) -> None:
    """The method and depth with the best expected accuracy of those that fit in --ram or --device, and why.

    Exit code 3 if nothing fits; the message names the smallest footprint.
    """
    from ..choosing.recommend import recommend

    target = _device(device)
    ram_bytes = None if ram is None else parse_bytes(ram)
    if runtime is Runtime.executorch:
        target, ram_bytes = without_python(space, target, ram_bytes)
    budget = _budget(target, process_ram, allocator, models[0])
    available = budget.step_bytes if budget else target.training_ram_bytes if target else None
    if available is not None:
        if ram_bytes is not None and ram_bytes > available:
            explained = budget.explain() if budget else target.explain() if target else ""
            raise InputError(f"--ram {ram} is more than the {'device' if target else 'process'} leaves: {explained}")
        ram_bytes = ram_bytes or available
    trained = None if images is None else Epochs(images, epochs)
    if trained is None and (storage or max_epoch_seconds is not None or epochs != 1):
        raise InputError("--storage, --epochs and --max-epoch-seconds need --images, the number of images of an epoch")
    if max_epoch_seconds is not None and target is None:
        raise InputError("--max-epoch-seconds needs --device, whose time it is")
    given = {
        "flash": flash and parse_bytes(flash), "flops": max_flops, "recovery": min_recovery, "accuracy": min_accuracy,
        "storage": images and storage and parse_bytes(storage) / images,
        "time": images and max_epoch_seconds and max_epoch_seconds / images,
    }  # fmt: skip
    limits = {name: limit for name, limit in given.items() if limit is not None}
    if ram_bytes is None and not limits:
        raise InputError("no limit was given; give --ram 64MB, --device raspberry-pi-zero-2w, or another limit")
    measured = target.step_time(allocator) if target else calibration().step_time(allocator)
    kernels = budget.kernels(space["accounting"]) if budget else None
    answer = recommend(
        models, ram_bytes, limits=limits, objectives=names(objective), device=target, kernels=kernels,
        step_time=measured, **space,
    )  # fmt: skip
    held = Held.of(answer.chosen.step, budget, target, measured, allocator, trained)
    if save is not None:
        assert answer.plan is not None  # `recommend` makes one
        answer.plan.save(save)
    if as_json:
        print(json.dumps(answer.to_dict() | held.to_dict(), indent=2))
        return
    from .report import show_recommendation

    show_recommendation(answer, held)
    if save is not None:
        print(f"wrote {save}; use it with planner.Plan.load({save!r}).apply(model)")


@app.command("candidates")
@with_space
def candidates_command(
    models: Models,
    *,
    space: dict,
    device: DeviceName = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every column as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Every method at every depth of each MODEL: memory, FLOPs and expected accuracy."""
    from ..choosing.candidates import candidates
    from ..choosing.frames import to_frame

    priced = candidates(models, device=_device(device), **space)
    if as_json:
        print(json.dumps([candidate.to_dict() for candidate in priced], indent=2))
    elif as_csv:
        to_frame(priced).to_csv(sys.stdout, index=False)
    else:
        several = len({candidate.model for candidate in priced}) > 1
        title = "every method and depth" if several else priced[0].model
        from .report import candidate_table, console

        console().print(candidate_table([("", candidate) for candidate in priced], several, title))


@app.command("sweep")
@with_space
def sweep_command(
    models: Models,
    out: Annotated[str, typer.Option(help="The file to write: .csv or .parquet.", show_default=False)],
    *,
    space: dict,
    device: DeviceName = None,
) -> None:
    """Every combination of the axes of each MODEL, priced in bulk, to a file."""
    from ..choosing.axes import axes
    from ..choosing.candidates import trace_all
    from ..choosing.frames import sweep, write_frame

    graphs = trace_all(models, space.pop("resolution"), space.pop("classes"))
    frame = sweep(graphs, axes(device=_device(device), **space))
    write_frame(frame, out)
    print(f"wrote {len(frame):,} candidates to {out}")


@app.command("devices")
def devices_command(
    name: Annotated[str | None, typer.Argument(help="One of them, or a TOML file, with every number's source.")] = None,
) -> None:
    """The devices that --device knows: what each leaves for training."""
    from ..devices.device import device
    from .report import show_device, show_devices

    show_devices() if name is None else show_device(device(name))


@app.command("pareto")
@with_space
def pareto_command(
    models: Models,
    out: Annotated[str | None, typer.Option(help="The picture to write: .png, .svg or .pdf.")] = None,
    html: Annotated[str | None, typer.Option(help="The interactive page to write: .html.")] = None,
    ram: Annotated[str | None, typer.Option(help="A budget to draw, such as 64MB.")] = None,
    against: Annotated[Against, typer.Option(help="What to draw memory against, in --out.")] = Against.recovery,
    *,
    space: dict,
) -> None:
    """Draw memory against expected accuracy or FLOPs, every method at every depth of each MODEL."""
    if not out and not html:
        raise InputError("nothing to write; give --out pareto.png (or .svg, .pdf), --html pareto.html, or both")
    if out:
        plot_path(out)
    if html:
        plot_path(html, (".html",))
    ram_bytes = None if ram is None else parse_bytes(ram)
    from ..choosing.candidates import candidates

    priced = candidates(models, **space)
    if out:
        from .plots import draw_pareto

        draw_pareto(priced, out, ram_bytes, against.value)
        print(f"wrote {out}")
    if html:
        from .page import write_page

        write_page(priced, html, ram_bytes)
        print(f"wrote {html}")


evidence_app = typer.Typer(no_args_is_help=True, help="The accuracies that estimates rest on.")
app.add_typer(evidence_app, name="evidence")


@evidence_app.command("check")
def evidence_check_command(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print only the summary, as a table for docs.")] = False,
    as_json: Json = False,
) -> None:
    """How far off the expected accuracy is on a data set, for a network, or by a source that the evidence lacks.

    Predicts every observed accuracy without what it was observed on, given last and full. Exit code 1 if fewer than
    85 % or more than 98 % of all lie in their 90 % intervals.
    """
    from ..estimates.validation import HELD, leave_one_out, summaries
    from ..estimates.validation import markdown as markdown_table

    found = leave_one_out()
    if as_json:
        print(json.dumps([one.to_dict() for one in found], indent=2))
    elif markdown:
        print(markdown_table(found))
    else:
        from .report import show_left_out

        show_left_out(found)
    least, most = HELD
    if not all(least <= one.coverage <= most for one in summaries(found) if one.name == "all"):
        raise typer.Exit(1)


@app.command("measure")
def measure_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Such as torchvision:mobilenet_v2.", show_default=False)
    ],
    data: Annotated[
        str, typer.Option(help="A folder of images, one subfolder per class, or train/ and test/ of such.")
    ],
    weights: Annotated[str | None, typer.Option(help="DEFAULT (the library's own), a file, or random.")] = None,
    ram: Annotated[str | None, typer.Option(help="Memory for the training itself, such as 64MB or 61MiB.")] = None,
    device: DeviceName = None,
    trials: Annotated[
        int | None, typer.Option(help="Most runs of all workers together; default: until decided.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Start no further run after so many hours.")] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of a run.")] = 10,
    seeds: Annotated[int, typer.Option(help="Most runs of one candidate, each with its seed.")] = 3,
    resolution: Annotated[int, typer.Option(help="Height and width of the images in pixels.")] = 224,
    batch: Annotated[int, typer.Option(help="Images per update.")] = 8,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")] = "sgd",
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rate of the first step; it falls to 0 along a half cosine. Of several (0.003,0.01) each way "
            "gets the best on validation images; default: three that suit the optimizer."
        ),
    ] = None,
    storage: Storage = "sqlite:///runs.db",
    strict: Strict = False,
    allocator: Allocator = "arena",
    as_json: Json = False,
) -> None:
    """Fine-tune the candidates that could be the best on your images, until it is known which one is.

    A rerun goes on where the last one stopped; several at once, with one --storage, share the runs. Then `planner
    recommend MODEL --ram ... --evidence runs.db` uses what was measured.
    """
    target = _device(device)
    ram_bytes = None if ram is None else parse_bytes(ram)
    if target is not None:
        ram_bytes = min(ram_bytes or target.training_ram_bytes, target.training_ram_bytes)
    if ram_bytes is None:
        raise InputError("no limit was given; give --ram 64MB, or --device raspberry-pi-zero-2w")
    from ..campaign.fine_tuning import Recipe
    from ..campaign.measure import measure
    from ..campaign.rates import default_rates
    from .measure_view import Bars, tables

    rates = default_rates(optimizer) if lr is None else decimals(lr, "--lr")
    watch = Bars()
    try:
        with watch:
            outcome = measure(
                model, data, {"memory": ram_bytes}, weights=weights,
                recipe=Recipe(epochs, rates[0], batch, resolution, optimizer), rates=rates if len(rates) > 1 else (),
                trials=trials, hours=hours, seeds=seeds,
                storage=storage, strict=strict, watch=watch, allocator=allocator,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(
            f"finished runs are kept in {shown(storage)}, and the same command goes on with the next one",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps(outcome.to_dict(), indent=2))
    else:
        from .report import console

        out = console()
        for part in tables(outcome):
            out.print(part)


add_adaptation(app)
add_training(app)


def main() -> None:
    """Run the command line."""
    run(app)
