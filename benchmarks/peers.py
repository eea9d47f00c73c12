"""Against other tools: the time of a first answer, of each further one, of a sweep; memory; what each leaves out.

    python benchmarks/peers.py --date 2026-11-20 --machine '2-core x86-64 virtual machine'

All in one process on one thread, round by round, each line once a round, so that what else the machine does hits all
alike; medians, and medians of the rounds' own ratios. The tools come with `pip install '.[benchmarks]'`.

    first     all is imported; from a network that is built, and new, to the answer. On the meta device; fvcore cannot
              do that, and ptflops is quicker on the CPU with real weights, so it stands there too.
    further   the same network at another batch: the other tools run it again. MemTracker's run is on fake tensors.
    sweep     6 methods x all depths x 6 batches of MobileNetV2. For the other tools it is extrapolated: the time of one
              answer times how many the tool needs.
    memory    the most that a fresh process holds (`VmHWM`), imports and one answer together. `ru_maxrss` would not do:
              a child inherits its parent's.

The question is what training the last 5 blocks by `mobiletl` takes; hooks, MemTracker and FlopCounterMode see stock
PyTorch training the same parameters. Writes benchmarks/results/peers.md and docs/peers.png.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from costmodel import Footprint, footprint, price, trace
from costmodel.checking.measuring import loss_of, prepare, saved_bytes
from costmodel.interface.drawing import BLUE, GREY, save
from costmodel.kept import answers_of

NAME, METHOD, BLOCKS, BATCH, RESOLUTION = "mobilenet_v2", "mobiletl", 5, 8, 224
METHODS, BATCHES, MANY_BATCHES = ("full", "last", "norm", "bias", "blocks", "mobiletl"), (1, 2, 4, 8, 16, 32), 256
FOLDER = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "ptflops", "calflops", "torchinfo", "fvcore")
OURS, HOOKS, TRACKER, COUNTER = "finetune-planner", "saved-tensor hooks", "MemTracker", "FlopCounterMode"


def build(device: str = "meta") -> nn.Module:
    with torch.device(device):
        return torchvision.models.get_model(NAME)


def images(batch: int = BATCH, device: str = "meta") -> torch.Tensor:
    return torch.empty(batch, 3, RESOLUTION, RESOLUTION, device=device)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@cache
def expected(accounting: str = "lean") -> Footprint:
    """Return this project's answer."""
    return footprint(trace(f"torchvision:{NAME}", RESOLUTION), METHOD, BLOCKS, BATCH, accounting=accounting)


def stock(network: nn.Module) -> nn.Module:
    return prepare(network, expected().graph, expected().assignment)


# --- the tools: each takes a network that is built, and returns what it says, in its own terms ------------------------


def ours(network: nn.Module) -> str:
    answer = footprint(trace(network, RESOLUTION), METHOD, BLOCKS, BATCH)
    return f"{answer.saved_bytes:,} B kept, peak {answer.peak_bytes:,} B, {answer.total_flops / 1e9:.2f} GFLOPs"


def of_macs(macs: float) -> str:
    return f"{macs / 1e6:.1f} M MACs"


def ptflops(network: nn.Module) -> str:
    from ptflops import get_model_complexity_info

    shape = (3, RESOLUTION, RESOLUTION)
    return of_macs(get_model_complexity_info(network, shape, print_per_layer_stat=False, as_strings=False)[0])


def calflops(network: nn.Module) -> str:
    from calflops import calculate_flops

    shape = (1, 3, RESOLUTION, RESOLUTION)
    return of_macs(calculate_flops(network, shape, print_results=False, output_as_string=False)[1])


def torchinfo(network: nn.Module) -> str:
    from torchinfo import summary

    return of_macs(summary(network, (1, 3, RESOLUTION, RESOLUTION), device="meta", verbose=0).total_mult_adds)


def fvcore(network: nn.Module) -> str:
    from fvcore.nn import FlopCountAnalysis

    count = FlopCountAnalysis(network.eval(), images(1, "cpu"))
    return of_macs(count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def flop_counter(network: nn.Module) -> str:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss_of(stock(network)(images())).backward()
    return f"{counter.get_total_flops() / 1e9:.2f} GFLOPs"


def hooks(network: nn.Module) -> str:
    return f"{saved_bytes(stock(network), images()):,} B kept"


def mem_tracker(network: nn.Module) -> str:
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.utils.hooks import RemovableHandle

    class Guarded(MemTracker):
        """Registers no hook on a frozen parameter, where that would fail: it is said to have one."""

        def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    handles = RemovableHandle(OrderedDict()), RemovableHandle(OrderedDict())
                    self._param_to_grad_hook_handles[parameter] = handles
            return super()._track_module_params_and_buffers(module, install_grad_hooks)

    given, tracker = images(device="cpu"), Guarded()
    optimizer = torch.optim.SGD([p for p in stock(network).parameters() if p.requires_grad], 1e-3)
    tracker.track_external(network, optimizer, given)
    with tracker:
        loss_of(network(given)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return f"peak {tracker.get_tracker_snapshot('peak')[torch.device('cpu')]['Total']:,} B"


@dataclass(frozen=True)
class Tool:
    """A line of the table. device: meta, cpu or fake. in_a_sweep: how many answers it needs for one; 0: it cannot."""

    call: Callable[[nn.Module], str]
    device: str
    in_a_sweep: int
    leaves_out: str


WAYS = 4 + 2 * 17  # of MobileNetV2: four methods without a depth, two with 17
ANSWERS = WAYS * len(BATCHES)
TOOLS = {
    OURS: Tool(ours, "meta", 0, "what kernels need beside, in these books (`lean`); attention is refused"),
    "ptflops": Tool(ptflops, "meta", 0, "methods, memory, backward; its MACs hold batch norm and ReLU6 too"),
    "ptflops, CPU": Tool(ptflops, "cpu", 0, "the same"),
    "calflops": Tool(calflops, "meta", 0, "methods, memory; backward is twice forward, whatever is frozen"),
    "torchinfo": Tool(torchinfo, "meta", 0, "methods, backward; its memory is twice the results of all layers"),
    "fvcore, CPU": Tool(fvcore, "cpu", 0, "methods, memory, backward; its MACs hold batch norm too; not on meta"),
    COUNTER: Tool(flop_counter, "meta", WAYS, "memory; multiplies a depthwise weight's gradient by its channels"),
    HOOKS: Tool(hooks, "meta", ANSWERS, "the peak, FLOPs; sees stock PyTorch only"),
    TRACKER: Tool(mem_tracker, "fake", ANSWERS, "FLOPs; sees stock PyTorch only; frozen parameters had to be guarded"),
}


def first_answer(label: str) -> tuple[float, str]:
    """Return how long an answer on a new network takes, and the answer."""
    tool = TOOLS[label]
    expected()
    with FakeTensorMode() if tool.device == "fake" else nullcontext():
        network = build("cpu" if tool.device == "fake" else tool.device)
        start = time.perf_counter()
        answer = tool.call(network)
        return time.perf_counter() - start, answer


# --- what only this project has: further answers that run nothing, and sweeps -----------------------------------------

SIX, ONE_BATCH, MANY = "price, 6 batches, each", "price, 1 batch", f"price, {MANY_BATCHES} batches, each"
SAME_WAY, NEW_WAY = "footprint, another batch", "footprint, another method or depth"
SWEEP, SWEEP_AGAIN = "sweep", "sweep again"
BIG_SWEEP, BIG_SWEEP_AGAIN = f"sweep, {MANY_BATCHES} batches", f"sweep again, {MANY_BATCHES} batches"


def own_seconds() -> dict[str, float]:
    """Return the seconds of each further answer and of each sweep, on a graph of its own."""
    from planner.choosing.axes import axes
    from planner.choosing.frames import sweep

    graph, ways = trace(build(), RESOLUTION), [(METHOD, BLOCKS)]
    footprint(graph, "full")
    before = dict(answers_of(graph))  # nothing about the method that is asked now
    found = {NEW_WAY: seconds(lambda: footprint(graph, METHOD, BLOCKS, BATCH).peak_bytes)}
    for depth in range(1, BLOCKS):
        answers_of(graph).clear()
        answers_of(graph).update(before)
        found[NEW_WAY] += seconds(lambda depth=depth: footprint(graph, METHOD, depth, BATCH).peak_bytes)
    found[NEW_WAY] /= BLOCKS
    price(graph, ways, [BATCH])
    footprint(graph, METHOD, BLOCKS)
    for name, count in ((ONE_BATCH, 1), (SIX, len(BATCHES)), (MANY, MANY_BATCHES)):
        times = [
            seconds(lambda start=start, count=count: price(graph, ways, range(start, start + count)))
            for start in range(1, 42)
        ]
        found[name] = statistics.median(times) / count
    times = [seconds(lambda batch=batch: footprint(graph, METHOD, BLOCKS, batch).peak_bytes) for batch in range(1, 42)]
    found[SAME_WAY] = statistics.median(times)
    for first, again, batches in ((SWEEP, SWEEP_AGAIN, BATCHES), (BIG_SWEEP, BIG_SWEEP_AGAIN, MANY_BATCHES)):
        space = axes(methods=METHODS, batch=range(1, batches + 1) if isinstance(batches, int) else batches)
        answers_of(graph).clear()
        found[first] = seconds(lambda space=space: sweep([graph], space))
        found[again] = statistics.median(seconds(lambda space=space: sweep([graph], space)) for _ in range(5))
    return found


# --- memory -----------------------------------------------------------------------------------------------------------

IMPORTS, KNOWN = "import torch, torchvision and build", f"{OURS}, known network"
_PROCESSES = {
    IMPORTS: "import peers; peers.build()",
    KNOWN: f"from costmodel import footprint, trace; footprint(trace('torchvision:{NAME}'), '{METHOD}', {BLOCKS})",
    **{label: f"import peers; peers.first_answer({label!r})" for label in TOOLS},
}


def process_bytes(program: str) -> int:
    """Return the most resident memory of a process that runs a program."""
    program += "; print(open('/proc/self/status').read())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=FOLDER, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(FOLDER.parent), str(FOLDER)))},
    )  # fmt: skip
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1])


# --- the report -------------------------------------------------------------------------------------------------------


def duration(value: float) -> str:
    """Return seconds for people, in three digits."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= unit:
            return f"{value / unit:,.3g} {name}" if value / unit < 1000 else f"{value / unit:,.0f} {name}"
    return f"{value / 1e-6:.2f} µs"


def report(rounds: Sequence[dict[str, float]], answers: dict[str, str], memory: dict[str, int], heading: str) -> str:
    """Return the tables."""
    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}

    def ratio(one: str, other: str) -> float:
        return statistics.median(each[one] / each[other] for each in rounds)

    def sweep(label: str) -> str:
        if label == OURS:
            return f"{duration(median[SWEEP])}, again {duration(median[SWEEP_AGAIN])}"
        count = TOOLS[label].in_a_sweep
        return f"{duration(count * median[label])} ({count} x)" if count else "cannot"

    lines = [
        "# Against other tools",
        "",
        heading,
        "",
        "| tool | first answer | times ours | each further answer | sweep of 228 | process | leaves out |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, tool in TOOLS.items():
        further = median[SIX] if label == OURS else median[label]
        lines.append(
            f"| {label} | {duration(median[label])} | {ratio(label, OURS):.2f} x | {duration(further)} "
            f"| {sweep(label)} | {memory[label] / 1e6:.0f} MB | {tool.leaves_out} |"
        )
    own = {
        ONE_BATCH: "`price` of one method and depth at one other batch",
        SIX: "`price` at six batches, each of them",
        MANY: f"`price` at {MANY_BATCHES} batches, each of them",
        SAME_WAY: "`footprint` at another batch, every moment of the step followed",
        NEW_WAY: "`footprint` of another method or depth",
    }
    lines += [
        "",
        "First and further answers: see the head of the script. The other tools run the network again for a further "
        "answer, which takes them as long as the first; the forward MACs that five of them count are a multiple of the "
        f"batch, and know no method. A sweep of theirs is extrapolated: the time of one answer ({METHOD}, {BLOCKS} "
        "blocks) times the number of answers needed. This project's is `planner.sweep`, to the finished "
        "frame with expected accuracy: first with nothing worked out but the trace, then again. A process with nothing "
        f"but the imports and the network built takes {memory[IMPORTS] / 1e6:.0f} MB; this project's answer on a "
        f"network whose trace is stored needs no torch, and {memory[KNOWN] / 1e6:.0f} MB.",
        "",
        "| a further answer of this project | time | hooks take | MemTracker takes |",
        "|---|---|---|---|",
        *(
            f"| {text} | {duration(median[name])} | {ratio(HOOKS, name):,.0f} x | {ratio(TRACKER, name):,.0f} x |"
            for name, text in own.items()
        ),
        "",
        "| sweep, 6 methods x all depths | candidates | first | again | candidates per second, first | again |",
        "|---|---|---|---|---|---|",
    ]
    for count, first, again in ((len(BATCHES), SWEEP, SWEEP_AGAIN), (MANY_BATCHES, BIG_SWEEP, BIG_SWEEP_AGAIN)):
        number = WAYS * count
        lines.append(
            f"| {count} batches | {number:,} | {duration(median[first])} | {duration(median[again])} "
            f"| {number / median[first]:,.0f} | {number / median[again]:,.0f} |"
        )
    lines += ["", "What each said (MACs of one image, the rest of a batch of 8):", "", "| tool | answer |", "|---|---|"]
    lines += [f"| {label} | {answer} |" for label, answer in answers.items()]
    kept, macs = expected("eager").saved_bytes, expected().forward_flops / 2 / BATCH
    lines += [
        "",
        f"Convolutions and matrix products of the forward pass are {of_macs(macs)}. Stock PyTorch keeps {kept:,} B for "
        "this step, says this project (`eager`), and so do the hooks on a CPU; on the meta device they also count "
        "statistics of frozen batch norms, which no kernel keeps. MemTracker leaves out what kernels need beside.",
    ]
    return "\n".join(lines) + "\n"


def plot(rounds: Sequence[dict[str, float]], path: Path) -> None:
    """Draw the three times of every tool."""
    from matplotlib.figure import Figure

    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    others = [label for label in TOOLS if label != OURS]
    knowing = [label for label in others if TOOLS[label].in_a_sweep]
    panels = (
        ("first answer on a new network", [(OURS, median[OURS]), *((label, median[label]) for label in others)]),
        (
            "each further answer, at another batch",
            [
                (f"{OURS}: price of 6", median[SIX]), (f"{OURS}: footprint", median[SAME_WAY]),
                *((label, median[label]) for label in knowing),
            ],
        ),
        (
            f"sweep of {ANSWERS} (other tools: extrapolated)",
            [
                (f"{OURS}: again", median[SWEEP_AGAIN]), (f"{OURS}: first", median[SWEEP]),
                *((label, TOOLS[label].in_a_sweep * median[label]) for label in knowing),
            ],
        ),
    )  # fmt: skip
    figure = Figure(figsize=(7.5, 7.2), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=[len(bars) + 1 for _, bars in panels])
    for axis, (title, bars) in zip(axes, panels, strict=True):
        labels, values = zip(*bars, strict=True)
        own = [label.startswith(OURS) for label in labels]
        drawn = axis.barh(labels, values, color=[BLUE if mine else GREY for mine in own], height=0.7)
        axis.bar_label(drawn, [duration(value) for value in values], padding=4, fontsize=9)
        axis.set_xscale("log")
        axis.set_xlim(5e-6, 5e3)
        axis.invert_yaxis()
        axis.set_title(title, loc="left", fontsize=11)
        axis.tick_params(labelsize=9)
        axis.grid(axis="x", linewidth=0.4)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("seconds", fontsize=9)
    save(figure, path)


def main() -> None:
    """Measure, print, and write table, numbers and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--date", required=True, help="the day of the run")
    parser.add_argument("--machine", required=True, help="such as '2-core x86-64 virtual machine'")
    parser.add_argument("--note", default="", help="what a reader should know of this run")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = {label: first_answer(label)[1] for label in TOOLS}  # warm: the imports are done
    own_seconds()
    rounds = [{label: first_answer(label)[0] for label in TOOLS} | own_seconds() for _ in range(given.rounds)]
    memory = {label: process_bytes(program) for label, program in _PROCESSES.items()}
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    heading = (
        f"{given.date}; {versions}; {given.machine}, one thread. {NAME} at {RESOLUTION} x {RESOLUTION}; medians of "
        f"{given.rounds} rounds. {given.note} Written by `python benchmarks/peers.py`."
    )
    text = report(rounds, answers, memory, heading)
    print(text)
    (FOLDER / "results" / "peers.md").write_text(text)
    plot(rounds, FOLDER.parent / "docs" / "peers.png")


if __name__ == "__main__":
    main()
