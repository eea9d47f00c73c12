"""The commands that take a plan to a device without Python, and its weights back."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costmodel import InputError
from costmodel.interface import options as given
from costmodel.units import format_bytes

from .space import Weights

if TYPE_CHECKING:
    from ..devices.device import Device

Out = Annotated[str, typer.Option(help="The folder to write, new or empty.", show_default=False)]


def add_exporting(app: typer.Typer, panel: str) -> None:
    """Give a command line these commands, under a heading of its help."""
    app.command("export", rich_help_panel=panel)(export_command)
    app.command("prepare-data", rich_help_panel=panel)(prepare_data_command)
    app.command("import-weights", rich_help_panel=panel)(import_weights_command)


def without_python(space: dict[str, Any], target: Device | None, allocator: str) -> Device | None:
    """Set the accounting to that of ExecuTorch; return the device with its runtime in place of Python.

    Errors: InputError for another accounting, and for what an exported step does not have.
    """
    bare_metal = target is not None and target.process is None
    accounting = "executorch-flash" if bare_metal else "executorch"
    for option, given_value, allowed in (
        ("--accounting", [space["accounting"]], ("lean", accounting)),
        ("--allocator", [allocator], ("arena",)),
        ("--frozen-dtype", space["frozen_dtype"], ("float32",)),
    ):
        if other := set(given_value) - {*allowed}:
            raise InputError(
                f"an exported step has its own memory, in float32: leave out {option} {', '.join(sorted(other))}"
            )
    if "cache" in (space["schedules"] or ()):
        raise InputError("a step from cached prefixes cannot be exported; leave cache out of --schedules")
    space["accounting"] = accounting
    if target is None:
        return None
    if bare_metal:
        print(
            f"note: {target.name} has no operating system. What follows fits in principle, in float32, with weights "
            "that do not train in flash; the exported runner needs Linux, and training in 8 bits, which such "
            "processors ask for, is missing",
            file=sys.stderr,
        )
    return target.without_python()


def export_command(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="What planner recommend --save wrote.")],
    out: Out,
    to: Annotated[str, typer.Option(help="The runtime.")] = "executorch",
    weights: Weights = None,
    delegate: Annotated[str, typer.Option(help="none, or xnnpack: faster kernels for what does not train.")] = "none",
    as_json: given.Json = False,
) -> None:
    """Write a program that trains the network as planned, without Python, with a runner to build on the device.

    The program is compared with PyTorch over ten steps before anything is written.
    """
    if to != "executorch":
        raise InputError(f"unknown runtime {to!r}; it can be: executorch")
    from ..campaign.exporting import export_plan
    from ..choosing.plan import Plan

    chosen = Plan.load(plan)
    made = export_plan(chosen, weights, out, delegate)
    made.write(out)
    manifest = made.manifest()
    if as_json:
        print(json.dumps(manifest, indent=2))
        return
    program, check, predicted = manifest["program"], manifest["check"], manifest["predicted"]
    print(f"wrote {out}: {chosen.model}, {chosen.way.description}, batch {chosen.batch}")
    print(
        f"program {format_bytes(program['bytes'])}; memory planned for a step: "
        f"{format_bytes(program['arena_bytes']['step'])} of intermediate values "
        f"(predicted: {format_bytes(predicted['arena_bytes'])}) and {format_bytes(program['state_bytes'])} of what "
        "trains"
    )
    process, how = program["process_bytes"], f"as measured here with {delegate}"
    if process is None:
        process, how = predicted["process_bytes"], "as predicted"
    print(f"the process takes {format_bytes(process)}, {how}")
    if delegate != "none" and program["process_bytes"] is None:
        print(f"{delegate} packs the frozen weights and has working memory of its own, beside what is predicted")
    if not chosen.accounting.startswith("executorch"):
        print(
            f"the plan's own {format_bytes(chosen.peak_bytes)} are by the accounting {chosen.accounting!r}, of a step "
            "in PyTorch; planner recommend --runtime executorch plans for this runtime"
        )
    print(
        f"compared with PyTorch in {check['steps']} single steps: losses differ by up to "
        f"{check['loss_difference']:.1e}, weights by {check['weight_difference']:.1e}"
    )
    print(f"{out}/README.md says how to build the runner and to train")


def prepare_data_command(
    folder: Annotated[str, typer.Argument(help="A folder of images, one subfolder per class, or train/ and test/.")],
    resolution: Annotated[int, typer.Option(help="Height and width of the images in pixels.", show_default=False)],
    out: Out,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse images that cannot be read.")] = False,
) -> None:
    """Write images as the files that an exported program's runner trains and tests with."""
    from ..campaign.exporting import prepare_data

    found = prepare_data(folder, resolution, out, strict)
    for note in found.notes:
        print(f"note: {note}")
    print(
        f"wrote {out}/train.bin ({found.images['train']:,} images) and {out}/test.bin "
        f"({found.images['test']:,} images) of {len(found.classes)} classes"
    )


def import_weights_command(
    folder: Annotated[str, typer.Argument(help="What planner export wrote.")],
    state: Annotated[str, typer.Argument(help="What the runner saved.")],
    out: Annotated[str, typer.Option(help="The file to write: a state dict for torch.load.", show_default=False)],
) -> None:
    """Write what a runner trained as a PyTorch state dict of the whole network."""
    from ..campaign.exporting import save_weights

    tensors, steps = save_weights(folder, state, out)
    print(f"wrote {out}: {tensors} tensors after {steps:,} steps")
