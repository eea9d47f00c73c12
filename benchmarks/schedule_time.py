"""How long a step takes by the best schedules, against the plain one, in pairs.

    python benchmarks/schedule_time.py --date 2026-11-21 --machine '2-core x86-64 virtual machine'

Steps of the same network with the plain schedule and with the best ones at 1.00, 1.10 and 1.33 times the FLOPs take
turns, on one thread (batch 8, SGD; 224 x 224, and 128 x 128, where Python has a larger share); each time is a median of
9 rounds, each ratio one of times of one round.
Writes results/schedule_time.md. Takes about five minutes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from verifying import RESULTS, versions

from costmodel import Schedule, Step, Way, apply, best_schedule, build, footprint, trace, way
from costmodel.checking.measuring import loss_of
from costmodel.training.optimizers import update_in_place

RESOLUTIONS, BATCH, ROUNDS = (224, 128), 8, 9
WAYS = (
    ("torchvision:mobilenet_v2", way("blocks", 3)), ("torchvision:mobilenet_v2", way("blocks", 13)),
    ("torchvision:mobilenet_v2", way("full")), ("torchvision:mobilenet_v3_small", way("blocks", 8)),
    ("torchvision:mobilenet_v3_small", way("full")), ("torchvision:resnet18", way("full")),
)  # fmt: skip
TIMES = (1.0, 1.1, 1.33)


def stepper(model: torch.nn.Module, one: Way, schedule: Schedule, resolution: int) -> Callable[[], None]:
    """Return what makes one step."""
    network = apply(copy.deepcopy(model), one, resolution=resolution, schedule=schedule).train()
    update = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1e-6)
    if schedule.inplace_update:
        update_in_place(network, update)
    images = torch.randn(BATCH, 3, resolution, resolution)

    def step() -> None:
        loss_of(network(images)).backward()
        update.step()
        update.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def row(model: str, one: Way, resolution: int) -> str:
    graph, network = trace(model, resolution), build(model)
    schedules = [Schedule(), *(best_schedule(graph, one, batch=BATCH, most_flops=most) for most in TIMES)]
    answers = [footprint(Step(graph, one, BATCH, schedule)) for schedule in schedules]
    steps = [stepper(network, one, schedule, resolution) for schedule in schedules]
    for step in steps:
        step()
    found = [[seconds(step) for step in steps] for _ in range(ROUNDS)]
    plain = statistics.median(each[0] for each in found)
    cells = []
    for number, answer in enumerate(answers[1:], 1):
        ratios = sorted(each[number] / each[0] for each in found)
        cells.append(
            f"{answer.peak_bytes / answers[0].peak_bytes:.2f} | {answer.total_flops / answers[0].total_flops:.2f} "
            f"| {statistics.median(ratios):.2f} ({ratios[1]:.2f} to {ratios[-2]:.2f})"
        )
    return f"| {model} | {one.label} | {resolution} | {1e3 * plain:.0f} ms | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    head = " | ".join(f"x{most:g}: peak | FLOPs | time" for most in TIMES)
    text = [
        "# The time of a step by the best schedules",
        "",
        f"{given.date}; {versions()}; {given.machine}. batch {BATCH}, SGD. Written by "
        "`python benchmarks/schedule_time.py`. Peak, FLOPs and time in parts of those of the plain schedule; of the "
        f"times the median of {ROUNDS} rounds, and the second lowest to the second highest.",
        "",
        f"| network | way | pixels | plain step | {head} |",
        "|---" * (4 + 3 * len(TIMES)) + "|",
    ]
    for resolution in RESOLUTIONS:
        for model, one in WAYS:
            text.append(row(model, one, resolution))
            print(text[-1], flush=True)
    (RESULTS / "schedule_time.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
