"""A sub-network chosen for the data, against fixed networks and random sub-networks of equal memory.

    export OMP_NUM_THREADS=1
    python benchmarks/elastic_letters.py           # pre-trains the super-network
    python benchmarks/adaptation.py measure        # trains it on digits, measures sub-networks, chooses; may run twice
    python benchmarks/adaptation.py runs           # fine-tunes the chosen and the random ones; `--part 0/2` and `1/2`
    python benchmarks/adaptation.py table --date 2026-11-21 --machine '2-core x86-64 virtual machine'

The task of `tasks.py`: from rendered letters to handwritten digits, 20 labelled images per class. Under each of three
budgets, for each of three seeds (of the super-network's training, of the sub-networks that are measured, of the runs):
the sub-network that `planner adapt` chooses, fine-tuned by TinyTL-L+B from the pre-trained weights. Against it

- random sub-networks that take between 85 % of the budget and the budget, ten for each, fine-tuned alike;
- the fixed MobileNetV2 at width 0.35: its recorded runs (`results/decision_quality_grid.csv`), the way that turned out
  best of those that fit, with the schedule of those that cost no FLOPs that takes least; it was pre-trained on more
  letters (15,000, six epochs), and its learning rate was chosen for each way.

Every peak is that of the whole step with Adam. A rerun goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from elastic_letters import ALL, FOLDER, LARGEST, RENDERED, WEIGHTS
from tasks import NETWORKS, digits
from verifying import RESULTS, Rows, versions

from costmodel import BlockPrices, Step, best_schedule, footprint, trace
from costmodel.schedules.block_prices import LEVERS
from planner.campaign.adapt import Adaptation
from planner.campaign.fine_tuning import Recipe, fine_tune
from planner.campaign.images import DataSet, Images
from planner.campaign.weights import Weights, load_weights, make_network
from planner.choosing.subnetworks import Search
from planner.estimates.subnetworks import fit
from planner.evidence import load

NAME = f"{Path(__file__).parent.name}/elastic_letters.py:supernetwork"
IMAGES_PER_CLASS, RESOLUTION = 20, 32
BUDGETS = (4_000_000, 5_000_000, 7_000_000)
SEEDS, RANDOM_EACH = (0, 1, 2), 10
TUNING = Recipe(epochs=5, learning_rate=0.003, batch=8, resolution=RESOLUTION, optimizer="adam")
SUPER_EPOCHS, SUBNETWORKS = 8, 80
NORMALISATION = ((0.5,) * 3, (0.5,) * 3)
FOUND, RUNS = RESULTS / "adaptation.csv", RESULTS / "adaptation_runs.csv"
FOUND_COLUMNS = (
    "seed", "budget", "kind", "subnetwork", "expected_percent", "peak_bytes", "schedule", "observations",
    "rank_correlation", "error_points", "constant_error_points",
)  # fmt: skip
RUN_COLUMNS = ("kind", "budget", "seed", "subnetwork", "accuracy_percent", "seconds", "epochs")


def images() -> DataSet:
    """Return the labelled digits and those to test with, as `tasks.glyphs_to_digits` takes them."""
    pixels, labels = digits()
    pixels = ((pixels * 0.5 + 0.5) * 255).round().to(torch.uint8)
    half, taken = len(labels) // 2, Counter()
    train, test = Images(NORMALISATION), Images(NORMALISATION)
    for number, label in enumerate(labels.tolist()):
        if number >= half:
            test.add(pixels[number], label)
        elif taken[label] < IMAGES_PER_CLASS:
            taken[label] += 1
            train.add(pixels[number], label)
    return DataSet(train, test, (), (), f"digits, {IMAGES_PER_CLASS} per class")


def weights() -> Weights:
    return replace(load_weights(NAME, str(WEIGHTS)), normalisation=NORMALISATION)


def adaptation(seed: int) -> Adaptation:
    return Adaptation(
        NAME, images(), "digits", weights(), TUNING, f"sqlite:///{FOLDER}/adaptation.db", FOLDER,
        subnetworks=SUBNETWORKS, super_epochs=SUPER_EPOCHS, seed=seed,
    )  # fmt: skip


def measure() -> None:
    """Measure sub-networks for every seed, and write what is chosen for every budget."""
    rows = Rows(FOUND, FOUND_COLUMNS, ("seed", "budget", "kind", "subnetwork"), resume=False)
    prices: BlockPrices | None = None
    for seed in SEEDS:
        work = adaptation(seed)
        observed, _ = work.observed()
        prices = prices or BlockPrices(work.design, work.step(work.graph_of(work.design.smallest)), work.graph_of)
        search = Search(prices, fit(work.design, observed))
        quality = asdict(search.accuracy.quality)
        del quality["root_mean_square_points"]
        for budget in BUDGETS:
            found = search.best(budget)
            rows.add({
                "seed": seed, "budget": budget, "kind": "chosen", "subnetwork": found.chosen.text,
                "expected_percent": f"{found.expected_percent:.2f}", "peak_bytes": found.peak_bytes,
                "schedule": found.schedule.label(TUNING.batch), **quality,
            })  # fmt: skip
            print(rows.rows[-1], flush=True)
    assert prices is not None  # there are seeds
    randomness = random.Random(0)
    for budget in BUDGETS:
        drawn = [prices.design.draw(randomness) for _ in range(20_000)]
        peaks = prices.price(drawn).peaks.min(axis=0)
        fitting = [(one, int(peak)) for one, peak in zip(drawn, peaks, strict=True) if 0.85 * budget < peak <= budget]
        for one, peak in fitting[:RANDOM_EACH]:
            rows.add({"seed": 0, "budget": budget, "kind": "random", "subnetwork": one.text, "peak_bytes": peak})


def runs(part: int, of: int) -> None:
    """Fine-tune what was chosen, and the random ones."""
    path = RUNS.with_suffix(f".{part}.csv") if of > 1 else RUNS
    rows, data, start = Rows(path, RUN_COLUMNS, RUN_COLUMNS[:4], resume=True), images(), weights()
    way = adaptation(0).way
    with FOUND.open(newline="") as file:
        asked = list(csv.DictReader(file))
    for row in asked[part::of]:
        key = {name: row[name] for name in RUN_COLUMNS[:4]}
        if key in rows:
            continue
        graph = trace(f"{NAME}@{row['subnetwork']}", RESOLUTION, 10)
        network, _ = make_network(graph, start, int(row["seed"]))
        run = fine_tune(
            network, data.train, data.test, way, TUNING, seed=int(row["seed"]), evaluate_every=TUNING.epochs,
            check_memory=False,
        )  # fmt: skip
        rows.add({
            **key, "accuracy_percent": f"{run.accuracy_percent:.3f}", "seconds": f"{run.seconds:.1f}",
            "epochs": run.epochs,
        })  # fmt: skip
        print(rows.rows[-1], flush=True)


def fixed() -> list[tuple[str, int, list[float]]]:
    """Return the recorded ways of the fixed network: label, least peak of a whole step, accuracies."""
    graph = trace(NETWORKS["mobilenet_v2"](10), RESOLUTION)
    recorded = defaultdict(list)
    for row in load(RESULTS / "decision_quality_grid.csv"):
        if row.model == "tasks:mobilenet_v2_0.35" and row.dataset == f"digits, {IMAGES_PER_CLASS} per class":
            recorded[row.way].append(row.top1_percent)
    found = []
    for way, accuracies in recorded.items():
        step = Step(graph, way, TUNING.batch, optimizer="adam")
        least = footprint(replace(step, schedule=best_schedule(step, allow=LEVERS)))
        found.append((way.label, least.peak_bytes, accuracies))
    return found


def _mean(values: list[float]) -> str:
    more = f" ({stdev(values):.1f})" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{more}"


def table(date: str, machine: str) -> None:
    parts = [RUNS] if RUNS.exists() else []
    parts += sorted(RESULTS.glob(f"{RUNS.stem}.*.csv"))
    done = [row for path in parts for row in csv.DictReader(path.open(newline=""))]
    asked = list(csv.DictReader(FOUND.open(newline="")))
    keys = {tuple(row[name] for name in RUN_COLUMNS[:4]) for row in asked}  # runs of an earlier choice do not count
    done = list({key: row for row in done if (key := tuple(row[name] for name in RUN_COLUMNS[:4])) in keys}.values())
    with RUNS.open("w", newline="") as file:
        writer = csv.DictWriter(file, RUN_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(done, key=lambda row: [row[name] for name in RUN_COLUMNS[:4]]))
    for path in parts:
        if path != RUNS:
            path.unlink()
    chosen = [row for row in asked if row["kind"] == "chosen"]
    quality = {row["seed"]: row for row in chosen}
    text = [
        "# A sub-network chosen for the data", "",
        f"{date}, {machine}; {versions()}; `benchmarks/adaptation.py`.", "",
        f"Super-network pre-trained on {RENDERED:,} letters, {LARGEST.epochs} epochs the largest network and "
        f"{ALL.epochs} all; on digits, {IMAGES_PER_CLASS} per class: {SUPER_EPOCHS} epochs for each of two folds, "
        f"{SUBNETWORKS} sub-networks measured, the chosen one fine-tuned for {TUNING.epochs} "
        f"epochs by TinyTL-L+B with Adam, learning rate {TUNING.learning_rate:g}.", "",
        "Top-1 in percent on 899 digits of other writers, in brackets the standard deviation. Beaten: the share of the "
        "random sub-networks of that memory that is below the mean of the chosen ones. Fixed: the way of MobileNetV2 "
        "at width 0.35 that turned out best of those that fit, 20 epochs, its own pre-training and learning rate.", "",
        "| budget | chosen, 3 seeds | its peak | random, 10 | best random | beaten | fixed, 3 seeds | the fixed way |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for budget in BUDGETS:
        ours = [
            float(row["accuracy_percent"]) for row in done if (row["kind"], row["budget"]) == ("chosen", str(budget))
        ]
        others = [
            float(row["accuracy_percent"]) for row in done if (row["kind"], row["budget"]) == ("random", str(budget))
        ]
        peaks = [int(row["peak_bytes"]) for row in chosen if row["budget"] == str(budget)]
        label, peak, theirs = max((one for one in fixed() if one[1] <= budget), key=lambda one: fmean(one[2]))
        below = sum(other < fmean(ours) for other in others)
        text.append(
            f"| {budget / 1e6:g} MB | {_mean(ours)} | {fmean(peaks) / 1e6:.2f} MB | {_mean(others)} | "
            f"{max(others):.1f} | {below} of {len(others)} | {_mean(theirs)} | {label}, {peak / 1e6:.2f} MB |"
        )
    text += ["", "The predictor, on sub-networks that it was not fitted to (ten parts):", "",
             "| seed | sub-networks | rank correlation | mean error, points | always the mean, points |",
             "|---|---|---|---|---|"]  # fmt: skip
    for seed, row in quality.items():
        text.append(
            f"| {seed} | {row['observations']} | {float(row['rank_correlation']):.2f} | "
            f"{float(row['error_points']):.2f} | {float(row['constant_error_points']):.2f} |"
        )
    (RESULTS / "adaptation.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "runs", "table"))
    parser.add_argument("--part", default="0/1", help="of the runs: 0/2 and 1/2 at the same time")
    parser.add_argument("--date", default="")
    parser.add_argument("--machine", default="")
    given = parser.parse_args()
    if given.what == "measure":
        measure()
    elif given.what == "runs":
        runs(*map(int, given.part.split("/")))
    else:
        table(given.date, given.machine)


if __name__ == "__main__":
    main()
