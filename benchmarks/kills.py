"""Campaigns whose workers are killed at any moment: no finished run is lost, none is done twice.

    python benchmarks/kills.py --kills 200 --date 2026-11-21 --machine '2-core x86-64 virtual machine'

One to three workers share a campaign; each is sent SIGKILL after a random time and started again. Training is played by
a sleep, so that many kills hit the database. After each kill what was finished before must be there unchanged, no run
may have finished twice, and SQLite must find its file in order; in the end the campaign must come to its end. Writes
benchmarks/results/kills.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
from PIL import Image

from planner.campaign.fine_tuning import Memory, Recipe, Run
from planner.campaign.measure import measure
from planner.campaign.storage import key_of

FORK = multiprocessing.get_context("fork")
RESULTS = Path(__file__).parent / "results" / "kills.md"
OWN = """
import torch
from torch import nn

def make(num_classes=2):
    torch.manual_seed(0)
    body = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4, num_classes))
"""
# Signs of life every second, and two seconds without one are death: so that a killed run is soon free again.
QUICK = {"heartbeat_seconds": 1, "grace_seconds": 2}
MEMORY = Memory(1000, 500, 500, 800, 800, agrees=True)


def trainer(network, train, test, way, recipe, *, seed, report, schedule=None) -> Run:
    """Stand in for training: all ways are as good and seeds differ much, so that every way needs all its seeds."""
    right = 8 + 2 * seed
    for epoch in range(1, recipe.epochs + 1):
        time.sleep(0.03)
        report(epoch, 5.0 * right)
    correct = (True,) * right + (False,) * (20 - right)
    return Run(((recipe.epochs, 5.0 * right),), recipe.epochs, 1, False, correct, 0.1, MEMORY)


def work(folder: Path, seeds: int) -> None:
    """One worker."""
    os.chdir(folder)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    measure(
        "own.py:make", "images", {"memory": 10**9}, recipe=Recipe(4, 0.1, 2, 16), seeds=seeds, storage="runs.db",
        trainer=trainer, **QUICK,
    )  # fmt: skip


def finished(folder: Path) -> dict[int, tuple]:
    """Return the finished trials by number: what each ran, and its accuracy."""
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'runs.db'}", skip_table_creation=True)
        (study,) = optuna.get_all_study_names(storage)
        trials = optuna.load_study(study_name=study, storage=storage).trials
    except (ValueError, sqlite3.Error, optuna.exceptions.StorageInternalError):  # none yet
        return {}
    return {
        trial.number: (key_of(trial), trial.value) for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")
    }


def check(folder: Path, before: dict[int, tuple]) -> dict[int, tuple]:
    """Return what is finished now. Errors: AssertionError for what was lost, changed, doubled or damaged."""
    now = finished(folder)
    assert {number: now.get(number) for number in before} == before, "a finished run was lost"
    assert len({key for key, _ in now.values()}) == len(now), "a run was done twice"
    with sqlite3.connect(folder / "runs.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the file is damaged"
    return now


def prepare(folder: Path) -> None:
    """Write a network and some images."""
    (folder / "own.py").write_text(OWN)
    draw = np.random.default_rng(0)
    for name in ("one", "two"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(10):
            picture = Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8))
            picture.save(folder / "images" / name / f"{number}.png")


def main() -> None:
    """Kill, check, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    asked = parser.parse_args()
    chance, kills, campaigns, runs = random.Random(0), 0, 0, 0
    while kills < asked.kills:
        with tempfile.TemporaryDirectory() as name:
            folder, before, workers = Path(name), {}, chance.randint(1, 3)
            prepare(folder)
            until = kills + chance.randint(10, 30)
            while kills < min(until, asked.kills):
                crew = [FORK.Process(target=work, args=(folder, 3)) for _ in range(workers)]
                for each in crew:
                    each.start()
                for each in crew:
                    time.sleep(chance.uniform(0, 2.5 / workers))
                    if each.is_alive():
                        os.kill(each.pid or 0, signal.SIGKILL)
                        kills += 1
                for each in crew:
                    each.join()
                if (folder / "runs.db").exists():
                    before = check(folder, before)
            time.sleep(QUICK["grace_seconds"])
            last = FORK.Process(target=work, args=(folder, 3))
            last.start()
            last.join(300)
            assert last.exitcode == 0, f"the campaign did not come to its end: {last.exitcode}"
            runs += len(check(folder, before))
            campaigns += 1
    text = (
        f"{kills} kills in {campaigns} campaigns of one to three workers: {runs} runs finished, none lost, none done "
        "twice, every campaign came to its end."
    )
    RESULTS.write_text(f"# Killed workers\n\nMade by `benchmarks/kills.py`. {asked.date}, {asked.machine}.\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
