"""Trainings by a plan that are killed at any moment: what comes out is equal to the bit to a training left alone.

    python benchmarks/kills_train.py --kills 50 --date 2026-11-21 --machine '2-core x86-64 virtual machine'

`planner.train` runs in a process that is sent SIGKILL after a random time, and is started again, by turns under five
schedules. After each kill every file that is there must be whole; in the end weights and history must be those of a
training that nobody stopped. Writes benchmarks/results/kills_train.md as it goes; a later call adds to it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import re
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from costmodel import Schedule
from planner import Plan, recommend, train
from planner.training.course import Course
from planner.training.folder import CHECKPOINT, PLAN, Folder
from planner.training.train import CHECKPOINT_SECONDS
from planner.training.trained import WEIGHTS

FORK = multiprocessing.get_context("fork")
RESULTS = Path(__file__).parent / "results" / "kills_train.md"
CLASSES, EACH, SIDE = 3, 24, 32
OWN = """
import torch
from torch import nn

def block(inputs, outputs, stride):
    hidden = 2 * inputs
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
        nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
        nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.Dropout(0.1))

def make(num_classes=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        block(8, 12, 2), block(12, 16, 2), block(16, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""
SCHEDULES = {
    "plain": Schedule(),
    "updated in place": Schedule(inplace_update=True),
    "prefix in pieces": Schedule(prefix_batch=2),
    "prefix from a cache": Schedule(cache="float32"),
    "cache in int8, updated in place": Schedule(cache="int8", inplace_update=True),
}


def prepare(folder: Path) -> Plan:
    """Write a network and images; return a plan for them."""
    (folder / "own.py").write_text(OWN)
    digits = load_digits()
    for label in range(CLASSES):
        (folder / "images" / str(label)).mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:EACH]):
            picture = Image.fromarray((image * 15.9).astype(np.uint8))
            picture.save(folder / "images" / str(label) / f"{number}.png")
    answer = recommend(
        f"{folder / 'own.py'}:make", 10**8, resolution=SIDE, classes=CLASSES, optimizer="adam", methods=["blocks"],
        blocks=[1], schedules="none",
    )  # fmt: skip
    assert answer.plan is not None
    return answer.plan


def work(plan: Plan, folder: Path, out: Path, seconds: float) -> None:
    """Train, with a checkpoint after each step that ends later than so many seconds after the last one."""
    torch.set_num_threads(1)
    augment = () if plan.schedule.cache else ("crop", "flip")
    course = Course(epochs=4, learning_rate=0.01, augment=augment, seed=5)
    train(plan, folder / "images", out, course=course, checkpoint_seconds=seconds)


def check(out: Path) -> str:
    """Return where a killed training was. Errors: those of a file that is not whole."""
    folder = Folder(out)
    if (out / PLAN).exists():
        Plan.load(out / PLAN)
    if (out / WEIGHTS).exists():
        load_file(out / WEIGHTS)
    trained = folder.trained()
    if trained is not None and trained.ended:
        return "after its end"
    saved = folder.checkpoint()
    if saved is None:
        assert not (out / CHECKPOINT).exists()
        return "before the first checkpoint"
    return "in an epoch" if saved["place"]["step"] else "at an epoch's end"


def one(plan: Plan, folder: Path, name: str, chance: random.Random) -> list[str]:
    """Kill a training until it comes to its end; return where each kill hit it."""
    plan = plan.model_copy(update={"schedule": SCHEDULES[name]})
    out, places = folder / f"out {name} {chance.random()}", []
    left_alone = folder / f"alone {name}"
    if not (left_alone / WEIGHTS).exists():
        begun = time.monotonic()
        alone = FORK.Process(target=work, args=(plan, folder, left_alone, CHECKPOINT_SECONDS))
        alone.start()
        alone.join()
        assert alone.exitcode == 0
        (left_alone / "seconds").write_text(str(time.monotonic() - begun))
    usual = float((left_alone / "seconds").read_text())
    while True:
        worker = FORK.Process(target=work, args=(plan, folder, out, chance.choice((0.0, 0.2))))
        worker.start()
        worker.join(chance.uniform(0, 0.8 * usual))
        if worker.is_alive():
            os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        if worker.exitcode == 0:
            break
        assert worker.exitcode == -signal.SIGKILL, f"the training failed: {worker.exitcode}"
        places.append(check(out))
    ours, theirs = load_file(out / WEIGHTS), load_file(left_alone / WEIGHTS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), "other weights"
    mine, others = Folder(out).trained(), Folder(left_alone).trained()
    assert mine is not None and others is not None and mine.history == others.history, "another history"
    return places


def main() -> None:
    """Kill, check, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    asked = parser.parse_args()
    rows = {name: Counter[str]() for name in SCHEDULES}
    if RESULTS.exists():
        for name, trainings, *counts in re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$",
                                                   RESULTS.read_text(), re.M):  # fmt: skip
            rows[name] = Counter({"trainings": int(trainings), **dict(zip(PLACES, map(int, counts), strict=True))})
    chance = random.Random(sum(row.total() for row in rows.values()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = prepare(folder)
        while sum(row[place] for row in rows.values() for place in PLACES) < asked.kills:
            schedule = min(rows, key=lambda each: rows[each]["trainings"])
            rows[schedule].update(["trainings", *one(plan, folder, schedule, chance)])
            write(rows, asked.date, asked.machine)
    print(RESULTS.read_text())


PLACES = ("before the first checkpoint", "in an epoch", "at an epoch's end", "after its end")


def write(rows: dict[str, Counter], date: str, machine: str) -> None:
    """Write the table."""
    kills = sum(row[place] for row in rows.values() for place in PLACES)
    trainings = sum(row["trainings"] for row in rows.values())
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    lines = [
        "# Killed trainings", "", f"Made by `benchmarks/kills_train.py`. {date}, {machine}, {versions}.", "",
        f"{kills} kills (SIGKILL) of {trainings} trainings by a plan: every file whole after each kill, and in the end "
        "weights and history equal to the bit to those of a training that was left alone.", "",
        f"| schedule | trainings | {' | '.join(f'killed {place}' for place in PLACES)} |",
        f"|---|{'---:|' * 5}",
    ]  # fmt: skip
    lines += [
        f"| {name} | {row['trainings']} | {' | '.join(str(row[place]) for place in PLACES)} |"
        for name, row in rows.items()
    ]
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
