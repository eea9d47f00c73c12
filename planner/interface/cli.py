"""The command line `planner`: what to do with the memory there is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costmodel import MOST_FLOPS, Floor, InputError, calibration, native_floor
from costmodel.interface import options as given
from costmodel.interface.drawing import plot_path
from costmodel.interface.programs import for_programs
from costmodel.interface.running import run, with_version
from costmodel.units import counted, parse_bytes

from ..choosing.objectives import OBJECTIVES
from ..devices.budget import Epochs, Held, ProcessBudget
from .adapt_cli import add_adaptation
from .exporting import add_exporting, without_python
from .measure_cli import add_measuring
from .space import LIMITS, DeviceName, Models, Ram, Save, named_device, names, with_space
from .train_cli import add_training

if TYPE_CHECKING:
    from ..devices.device import Device

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Choose how to fine-tune a network in the memory you have, and train it so. "
    "MODEL is torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:function, or a bare NAME. "
    "--debug shows the traceback of an error.",
)
with_version(app)


class Runtime(StrEnum):
    """What carries a step out."""

    pytorch = "pytorch"
    executorch = "executorch"


class Against(StrEnum):
    """What memory is drawn against."""

    recovery = "recovery"
    flops = "flops"


def _budget(
    target: Device | None, given_bytes: Mapping[str, str | None], allocator: str, floor: Floor
) -> ProcessBudget | None:
    """Return the memory of the whole process, if one is given: the smallest of a device's and of options.

    given_bytes: by option. floor: where no device has its own.
    """
    own = target.budget(allocator) if target else None
    asked = (
        ProcessBudget(parse_bytes(text), own.floor if own else floor, allocator, option)
        for option, text in given_bytes.items() if text is not None
    )  # fmt: skip
    every = [*([own] if own else []), *asked]
    return min(every, key=lambda each: each.process_bytes, default=None)


CHOOSE, CARRY_OUT, WITHOUT_PYTHON = "Choose", "Train", "Train without Python"


@app.command("recommend", rich_help_panel=CHOOSE)
@with_space
def recommend_command(
    models: Models,
    ram: Ram = None,
    device: DeviceName = None,
    process_ram: Annotated[
        str | None,
        typer.Option(
            help="Memory for the whole training process, interpreter and libraries included.", rich_help_panel=LIMITS
        ),
    ] = None,
    flash: Annotated[
        str | None, typer.Option(help="Most memory for weights and buffers, such as 4MB.", rich_help_panel=LIMITS)
    ] = None,
    max_flops: Annotated[
        float | None, typer.Option(help="Most FLOPs of a step per image, such as 500e6.", rich_help_panel=LIMITS)
    ] = None,
    max_epoch_seconds: Annotated[
        float | None,
        typer.Option(help="Longest epoch, by the roofline; needs --device, --images.", rich_help_panel=LIMITS),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Images of an epoch, for its time.", rich_help_panel=LIMITS)
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="Epochs, for the time of all; needs --images.", rich_help_panel=LIMITS)
    ] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Room for a cache (--schedules cache,...), such as 1GB; needs --images.", rich_help_panel=LIMITS
        ),
    ] = None,
    min_recovery: Annotated[
        float | None, typer.Option(help="Expected recovery of at least this, 0 to 1.", rich_help_panel=LIMITS)
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Expected accuracy of at least this, in percent.", rich_help_panel=LIMITS)
    ] = None,
    *,
    space: dict,
    allocator: given.AllocatorName = "arena",
    runtime: Annotated[
        Runtime,
        typer.Option(help="What trains, and whose memory the budget limits.", rich_help_panel=given.STEP),
    ] = Runtime.pytorch,
    objective: Annotated[
        str,
        typer.Option(
            help=f"What alternatives trade, of {', '.join(OBJECTIVES)}.",
            rich_help_panel=given.OUTPUT,
        ),
    ] = "memory,flops,recovery",
    save: Save = None,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """Recommend the method and depth with the best expected accuracy within --ram or --device, and say why.

    Exit code 3 if nothing fits; the message names the smallest footprint.
    """
    from ..choosing.recommend import recommend

    target = named_device(device)
    of_process = {"--process-ram": process_ram}
    if runtime is Runtime.executorch or (target and target.runtime != "python"):
        target = without_python(space, target, allocator)
        if target is None or target.process is not None:  # of the training alone nobody has a use
            of_process, ram = {**of_process, "--ram": ram}, None
    ram_bytes = None if ram is None else parse_bytes(ram)
    floor = native_floor(space["accounting"]) or calibration().floor(models[0])
    budget = _budget(target, of_process, allocator, floor)
    available = budget.step_bytes if budget else target.training_ram_bytes if target else None
    if available is not None:
        if ram_bytes is not None and ram_bytes > available:
            explained = budget.explain() if budget else target.explain() if target else ""
            raise InputError(f"--ram {ram} is more than the {'device' if target else 'process'} leaves: {explained}")
        ram_bytes = ram_bytes or available
    trained = _epochs(images, epochs, storage, max_epoch_seconds, target)
    limits = {
        "flash": parse_bytes(flash) if flash else target and target.flash and target.flash.bytes,
        "flops": max_flops, "recovery": min_recovery, "accuracy": min_accuracy,
        "storage": images and storage and parse_bytes(storage) / images,
        "time": images and max_epoch_seconds and max_epoch_seconds / images,
    }  # fmt: skip
    limits = {name: limit for name, limit in limits.items() if limit is not None}
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
    asked = _memory_option(ram, device if process_ram is None else None, ram_bytes)
    if as_json or as_csv:
        from ..choosing.reasons import surety
        from .report import recommendation_rows

        sure, surer = surety(answer, asked)
        whole = answer.to_dict() | held.to_dict() | {"how_sure": sure, "to_be_surer": surer}
        for_programs(whole, recommendation_rows(answer), as_json, as_csv)
        return
    from .report import show_recommendation

    show_recommendation(answer, held, asked)
    if save is not None:
        print(f"wrote {save}; use it with planner.Plan.load({save!r}).apply(model)")


def _epochs(
    images: int | None, epochs: int, storage: str | None, max_epoch_seconds: float | None, target: Device | None
) -> Epochs | None:
    """Return the epochs that are asked about, if any. Errors: InputError for a limit on them without what it needs."""
    trained = None if images is None else Epochs(images, epochs)
    if trained is None and (storage or max_epoch_seconds is not None or epochs != 1):
        raise InputError("--storage, --epochs and --max-epoch-seconds need --images, the number of images of an epoch")
    if max_epoch_seconds is not None and target is None:
        raise InputError("--max-epoch-seconds needs --device, whose time it is")
    return trained


def _memory_option(ram: str | None, device: str | None, ram_bytes: int | None) -> str:
    """Return the option that gives `planner measure` the same budget; empty without one."""
    if ram is None and device is not None:
        return f"--device {device}"
    if ram is not None and parse_bytes(ram) == ram_bytes:
        return f"--ram {ram}"
    return "" if ram_bytes is None else f"--ram {ram_bytes}"


@app.command("candidates", rich_help_panel=CHOOSE)
@with_space
def candidates_command(
    models: Models,
    *,
    space: dict,
    device: DeviceName = None,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """List every method at every depth of each MODEL: memory, FLOPs and expected accuracy."""
    from ..choosing.candidates import candidates
    from ..choosing.frames import to_frame

    priced = candidates(models, device=named_device(device), **space)
    if as_csv:
        to_frame(priced).to_csv(sys.stdout, index=False)
    elif not for_programs([candidate.to_dict() for candidate in priced], [], as_json, False):
        several = len({candidate.model for candidate in priced}) > 1
        title = "every method and depth" if several else priced[0].model
        from .report import candidate_table, console

        console().print(candidate_table([("", candidate) for candidate in priced], several, title))


@app.command("sweep", rich_help_panel=CHOOSE)
@with_space
def sweep_command(
    models: Models,
    out: Annotated[str, typer.Option(help="The file to write: .csv or .parquet.", show_default=False)],
    *,
    space: dict,
    device: DeviceName = None,
) -> None:
    """Price every combination of settings of each MODEL, into a file."""
    from ..choosing.axes import axes
    from ..choosing.candidates import trace_all
    from ..choosing.frames import sweep, write_frame

    graphs = trace_all(models, space.pop("resolution"), space.pop("classes"))
    frame = sweep(graphs, axes(device=named_device(device), **space))
    write_frame(frame, out)
    print(f"wrote {counted(len(frame), 'candidate')} to {out}")


@app.command("devices", rich_help_panel=CHOOSE)
def devices_command(
    name: Annotated[str | None, typer.Argument(help="One of them, or a TOML file, with every number's source.")] = None,
    as_json: given.Json = False,
    as_csv: given.Csv = False,
) -> None:
    """List the devices that --device knows: what each leaves for training."""
    from ..devices.device import device
    from .report import device_rows, quantity_rows, show_device, show_devices

    rows = device_rows() if name is None else quantity_rows(device(name))
    whole = rows if name is None else device(name).model_dump(mode="json")
    if not for_programs(whole, rows, as_json, as_csv):
        show_devices() if name is None else show_device(device(name))


@app.command("pareto", rich_help_panel=CHOOSE)
@with_space
def pareto_command(
    models: Models,
    out: Annotated[
        str | None, typer.Option(help="The picture to write: .png, .svg or .pdf.", rich_help_panel=given.OUTPUT)
    ] = None,
    html: Annotated[
        str | None, typer.Option(help="The interactive page to write: .html.", rich_help_panel=given.OUTPUT)
    ] = None,
    ram: Annotated[
        str | None, typer.Option(help="A budget to draw, such as 64MB.", rich_help_panel=given.OUTPUT)
    ] = None,
    against: Annotated[
        Against, typer.Option(help="What to draw memory against, in --out.", rich_help_panel=given.OUTPUT)
    ] = Against.recovery,
    *,
    space: dict,
) -> None:
    """Draw memory against expected accuracy or FLOPs: every method and depth of each MODEL."""
    if not out and not html:
        raise InputError("nothing to write; give --out pareto.png (or .svg, .pdf), --html pareto.html, or both")
    if out:
        plot_path(out)
    if html:
        plot_path(html, (".html",))
    ram_bytes = None if ram is None else parse_bytes(ram)
    from ..choosing.candidates import candidates

    priced, caps = candidates(models, **space), _caps(space)
    plain = candidates(models, **{**space, "schedules": ("none",), "most_flops": None}) if caps else []
    if out:
        from .plots import draw_pareto

        draw_pareto(priced, out, ram_bytes, against.value, plain)
        print(f"wrote {out}")
    if html:
        from .page import write_page

        capped = {cap: candidates(models, **{**space, "most_flops": cap}) for cap in caps}
        write_page(plain or priced, html, ram_bytes, capped)
        print(f"wrote {html}")


def _caps(space: dict[str, Any]) -> list[float]:
    """Return the limits on a schedule's FLOPs that the page's slider has; none if steps are carried out plainly."""
    given, most = space["schedules"], space["most_flops"] or MOST_FLOPS
    if given == ["none"] or (given is None and space["most_flops"] is None):
        return []
    return [*(cap for cap in (1.0, 1.05, 1.1, 1.2, 1.33) if cap < most), most]


add_measuring(app, CARRY_OUT)
add_adaptation(app, CARRY_OUT)
add_training(app, CARRY_OUT)
add_exporting(app, WITHOUT_PYTHON)


def main() -> None:
    """Run the command line."""
    run(app)
