"""Random command lines and damaged files: what a user may type or be sent, and what comes of it.

    python benchmarks/fuzz.py --lines 20000 --files 20000 --date 2026-11-21 --machine '2-core x86-64 virtual machine'

Every case is drawn from its number and kind alone. A finding is an error that nobody foresaw (a traceback without
`--debug`), more than one line for an error, an exit code that is not documented, more than SECONDS of processor time
(or a minute by the clock), a process of more than MEGABYTES, `nan` or an infinity in an answer, a password, or a
damaged file that is accepted with what cannot be: an accuracy of 101 %, weights that are not numbers, a plan that saves
more than its peak. A run that was stopped goes on with --resume. Takes about an hour on one core.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import numpy as np
import torch
import typer
from PIL import Image

import costmodel.interface.cli
import planner.interface.cli
from costmodel import LayerGraph, footprint, trace
from costmodel.graph.store import encode, pack
from planner.campaign.images import list_folder, read_folder
from planner.campaign.storage import Store
from planner.campaign.weights import load_weights
from planner.choosing.plan import Plan
from planner.choosing.recommend import recommend
from planner.devices.device import device
from planner.evidence import load

SECONDS, MEGABYTES = 10, 1000
_WAITS = 6  # times as long by the clock, since other work may be going on
RESULTS = Path(__file__).parent / "results" / "fuzz.md"
KEPT = Path(__file__).parent / ".cache" / "fuzz.json"
SMALL = "zoo:mcunet_5fps"
_CHUNK = 100


class HangError(BaseException):
    """A case that takes too long; no `except Exception` of the package holds it up."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case. finding: what should not have been, empty if nothing."""

    kind: str
    number: int
    verdict: str
    seconds: float
    finding: str = ""


# --- command lines ----------------------------------------------------------------------------------------------------

PROGRAMS = {"costmodel": costmodel.interface.cli, "planner": planner.interface.cli}
# `ship` writes into the package; `check`, `reproduce` and `calibrate` take nothing from outside, and minutes.
_LEFT_OUT = {"ship", "check", "reproduce", "calibrate"}
MODELS = [SMALL, "torchvision:mobilenet_v3_small", "timm:tinynet_e", "resnet18", "own.py:make", "own.py:fails"]
NUMBERS = ["1", "2", "8", "64", "96", "1-4", "1,2,4", "0", "-1", "1.5", "1e3", "nan", "inf", "-inf", "1e400", "9" * 25]
NUMBERS += [
    "9" * 5000, "1-999999999", "1-", ",", "", " ", "٣", "0x10", "1_000", "5-1", "1-9:0", "70000", "4096", "4097",
]  # fmt: skip
SIZES = ["64MB", "1GB", "9MB", "0MB", "-3MB", "1e400MB", "nanMB", "64 bananas", "9" * 20_000, "1e18GB", "1.5 MiB", ""]
NAMES = [
    "full", "last", "blocks", "mobiletl", "tinytl-l", "sparse-update", "nrom", "sgd", "adam", "lean", "eager", "cpu",
]  # fmt: skip
NAMES += [
    "float16", "int8", "bfloat16", "memory,flops", "recovery", "own,running", "layer", "patch=2", "patch=x", "=",
    "a=b",
]  # fmt: skip
FILES = [
    "none.csv", "own.csv", "bad.csv", "fifo.csv", "loop.csv", ".", "/dev/zero", "/dev/full", "a\0b", "runs.db",
    "x.toml",
]  # fmt: skip
FILES += ["plan.json", "out.png", "out.html", "out.csv", "none/out.png", "raspberry-pi-4-1gb", "template", "bad.toml"]
FILES += [
    "postgresql://me:s3cret@127.0.0.1:9/x", "postgresql://me:s3cret@h:x/y", "mysql://a/b", "sqlite://", "://",
    "images",
]  # fmt: skip
ODD = [
    "", "-", "--", "[/red]", "a$b_{$", "\x1b[31m", "\udcff", "a\nb", "x" * 10_000, "../..", "%s%n", "{0}", "'", '"',
    "☃",
]  # fmt: skip
POOLS = [MODELS, NUMBERS, SIZES, NAMES, FILES, ODD]
OWN = """
from torch import nn

def make(num_classes=10):
    body = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4, num_classes))

def fails():
    raise ValueError("as it may")
"""


def commands() -> Iterator[tuple[str, list[str], list[click.Parameter]]]:
    """Yield (program, words, parameters) of every command."""

    def walk(program: str, words: list[str], command) -> Iterator:
        if hasattr(command, "commands"):
            for name, each in sorted(command.commands.items()):
                if name not in _LEFT_OUT:
                    yield from walk(program, [*words, name], each)
        else:
            yield program, words, command.params

    for program, module in PROGRAMS.items():
        yield from walk(program, [], typer.main.get_command(module.app))


def fitting(parameter) -> list[str]:
    """Return the pool in which a parameter's values are."""
    name = parameter.name or ""
    if name in ("model", "models"):
        return MODELS
    if name in ("ram", "flash"):
        return SIZES
    if re.search("out|save|html|plot|evidence|storage|data$|weights|device", name):
        return FILES
    return (
        NUMBERS
        if re.search("batch|blocks|resolution|classes|max|min|images|seeds|trials|hours|epochs|lr", name)
        else NAMES
    )


def line(number: int, known: list[tuple[str, list[str], list[click.Parameter]]]) -> list[str]:
    """Return the words of a command line."""
    chance = random.Random(f"line {number}")
    program, words, parameters = chance.choice(known)
    words = [program, *words]
    for parameter in parameters:
        is_option = parameter.param_type_name == "option"
        if is_option and chance.random() > (0.6 if parameter.required else 0.25):
            continue
        pool = fitting(parameter) if chance.random() < 0.85 else chance.choice(POOLS)
        value = pool[0] if chance.random() < 0.3 else chance.choice(pool)
        if not is_option:
            words.append(value)
        elif getattr(parameter, "is_flag", False):
            words.append(parameter.opts[-1])
        else:
            words += [f"{parameter.opts[-1]}={value}"] if chance.random() < 0.5 else [parameter.opts[-1], value]
    if chance.random() < 0.05:
        words.insert(chance.randint(1, len(words)), chance.choice(ODD))
    if words[1] in ("measure", "verify"):
        words += ["--batch", "-1"]  # to be refused at the end: nothing is trained
    return words


_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:nan|inf|infinity)(?![\w.])", re.IGNORECASE)


def judge_line(words: list[str]) -> tuple[str, str]:
    """Run a command line; return its verdict and finding."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    sys.argv = words
    code: object = "none"
    try:
        with redirect_stdout(out), redirect_stderr(err):
            PROGRAMS[words[0]].main()
    except SystemExit as left:
        code = left.code or 0
    except Exception as error:
        return "leaked", f"{type(error).__name__}: {error}"
    said, wrong = (b"" if stream.closed else stream.buffer.getvalue() for stream in (out, err))
    return f"exit {code}", _finding(code, said.decode(), wrong.decode(), words)


def _finding(code: object, said: str, wrong: str, words: list[str]) -> str:
    errors = [each for each in wrong.splitlines() if each.startswith("error: ")]
    if code not in (0, 1, 2, 3, 130) or "not foreseen" in wrong or "Traceback" in said + wrong:
        return wrong.strip() or f"exit code {code}"
    if code in (2, 3) and len(errors) != 1:
        return f"{len(errors)} lines of error: {wrong[:300]}"
    if code == 0 and (found := _NUMBER.search(said)) and found[0] not in " ".join(words):
        return f"{found[0]!r} in the answer"
    return "a password" if "s3cret" in said + wrong else ""


# --- files ------------------------------------------------------------------------------------------------------------


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Return whole files of every kind."""
    graph, found = trace(SMALL, 96), {}
    graph.save(folder / "whole.trace")
    recommend(SMALL, 10**9, resolution=96).plan.save(folder / "whole.json")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 3))
    torch.save(network.state_dict(), folder / "whole.pth")
    from safetensors.torch import save_file

    save_file(network.state_dict(), folder / "whole.safetensors")
    settings = {"model": SMALL, "dataset": "d", "data": "i", "weights": "w", "graph": "g", "versions": "v"}
    settings |= {"resolution": 96, "batch": 8, "epochs": 2, "learning_rate": 0.1, "optimizer": "sgd"}
    store = Store(str(folder / "whole.db"), settings, {"last", "full"}, 5)
    for seed in range(3):
        claim = store.claim((costmodel.Way("last"), seed), 0.1, {}, None, "c")
        claim.report(1, 60.0)
        claim.complete(70.0, False, {"test_images": 10, "epochs_run": 2, "seconds": 1.0})
    store.storage.engine.dispose()
    found = {kind: [(folder / f"whole.{kind}").read_bytes()] for kind in ("trace", "json", "pth", "safetensors", "db")}
    found["graph"] = [encode(graph).encode()]
    table = "model,method,trained_blocks,dataset,top1_percent,seed,test_images,resolution\n"
    table += "".join(f"{SMALL},{method},{depth},d,{50 + seed},{seed},100,96\n"
                     for method, depth in (("last", ""), ("blocks", 2), ("full", "")) for seed in range(3))  # fmt: skip
    found["csv"] = [table.encode()]
    template = Path(planner.__file__).parent / "devices" / "raspberry-pi-4-1gb.toml"
    found["toml"] = [template.read_bytes()]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    found["image"] = []
    for kind, options in {"png": {}, "jpeg": {}, "gif": {}, "bmp": {}, "webp": {}, "tiff": {}, "ppm": {}}.items():
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        found["image"].append(stream.getvalue())
    return found


_TOKENS = [
    b"nan",
    b"NaN",
    b"-1",
    b"1e400",
    b"Infinity",
    b"9" * 400,
    b"101",
    b"0",
    b"\0",
    b"\xff\xfe",
    b"[" * 2000,
    b'"',
    b"\n",
]
_TOKENS += [b",", b"null", b"{}", b"true", b"1e308", b"-0.0", b"\x1b[31m", "\u202e".encode(), b"=" * 50, b"'''", b"."]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a file's content with one to four kinds of damage."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, other = chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)
        how = chance.randrange(7)
        if how == 0 and data:
            data[min(place, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif how == 1:
            del data[place:]
        elif how == 2:
            del data[min(place, other) : max(place, other)]
        elif how == 3:
            data[place:place] = data[min(place, other) : max(place, other)][:4096]
        elif how == 4:
            data[place : place + chance.randint(0, 4)] = chance.choice(_TOKENS)
        elif numbers := [match for match in re.finditer(rb"\d+(?:\.\d+)?", data)]:
            match = chance.choice(numbers)
            data[match.start() : match.end()] = chance.choice(_TOKENS)
        if not data:
            break
    return bytes(data)


def _weights(path: Path) -> None:
    state = load_weights("own.py:make", str(path)).state or {}
    for name, value in state.items():
        assert value.isfinite().all() and not (name.endswith("running_var") and (value < 0).any()), name


def _rows(path: Path) -> None:
    for row in load(path):
        assert row.top1_percent is not None and 0 <= row.top1_percent <= 100 and row.dataset.isprintable()


def _plan(path: Path) -> None:
    plan = Plan.load(path)
    numbers = [
        value for value in (*vars(plan.promises).values(), *dict(plan.way.options).values()) if isinstance(value, float)
    ]
    assert plan.saved_bytes <= plan.peak_bytes and plan.batch % plan.micro_batch == 0
    assert all(math.isfinite(value) for value in numbers) and json.dumps(plan.model_dump(), allow_nan=False)


def _device(path: Path) -> None:
    found = device(path)
    assert found.training_ram_bytes > 0 and 0 < found.step_seconds(1e9, 1e6) < math.inf


def _trace(path: Path) -> None:
    answer = footprint(LayerGraph.load(path), "last")
    assert answer.saved_bytes >= 0 and answer.peak_bytes > 0


def _graph(path: Path) -> None:
    """A trace whose text was damaged before it was packed, so that its checksum is right."""
    path.write_bytes(pack(path.read_bytes().decode(errors="replace")))
    _trace(path)


def _image(path: Path) -> None:
    for name in ("one", "two"):  # with a whole one beside it, so that there is always something to train and test with
        (path.parent / name).mkdir(exist_ok=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 0, len(name))).save(path.parent / name / f"{number}.bmp")
    shutil.move(path, path.parent / "one" / "fuzzed.png")
    found = read_folder(list_folder(path.parent), 16)
    assert len(found.skipped) + len(found.train) + len(found.test) == 7
    assert all(note.isprintable() for note in found.notes)


READERS: dict[str, Callable[[Path], None]] = {
    "csv": _rows, "toml": _device, "json": _plan, "trace": _trace, "graph": _graph, "pth": _weights,
    "safetensors": _weights, "image": _image, "db": _rows,
}  # fmt: skip


def judge_file(kind: str, content: bytes) -> tuple[str, str]:
    """Have a file read; return its verdict and finding."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"fuzzed.{kind}")
        path.write_bytes(content)
        try:
            READERS[kind](path)
        except costmodel.CostModelError as error:
            text = str(error)
            return "refused", "" if "\n" not in text and len(text) < 5000 else f"not one line: {text[:300]!r}"
        except AssertionError as error:
            return "accepted", f"nonsense was accepted: {error}"
        except Exception as error:
            return "leaked", f"{type(error).__name__}: {str(error)[:300]}"
    return "read", ""


# --- all of it --------------------------------------------------------------------------------------------------------


def _hang(*_) -> None:
    raise HangError


def _timed(kind: str, number: int, judge: Callable[[], tuple[str, str]]) -> Outcome:
    for which in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(which, _hang)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(_WAITS * SECONDS)
    start = time.process_time()
    try:
        verdict, finding = judge()
    except HangError:
        verdict, finding = "hangs", f"takes more than {SECONDS} s"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return Outcome(kind, number, verdict, time.process_time() - start, finding)


def _prepare(folder: Path) -> None:
    os.chdir(folder)
    os.environ["COSTMODEL_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    for kind, (content, *_) in seeds(folder).items():
        (
            folder / {"csv": "own.csv", "toml": "x.toml", "json": "plan.json", "db": "runs.db"}.get(kind, kind)
        ).write_bytes(content)
    (folder / "own.py").write_text(OWN)
    (folder / "bad.csv").write_bytes(b"model,method\nx")
    (folder / "bad.toml").write_bytes(b"name = [[[")
    (folder / "images").mkdir()
    os.mkfifo(folder / "fifo.csv")
    os.symlink("loop.csv", folder / "loop.csv")


def chunk(kind: str, first: int, count: int) -> tuple[list[Outcome], float]:
    """Return what came of some cases, all in this process, and the most memory that it took, in MB."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        back = os.getcwd()
        _prepare(Path(folder))
        known = list(commands())
        whole = seeds(Path(tempfile.mkdtemp(dir=folder))) if kind != "line" else {}
        try:
            for number in range(first, first + count):
                if kind == "line":
                    words = line(number, known)
                    one = _timed(kind, number, lambda words=words: judge_line(words))
                else:
                    chance = random.Random(f"{kind} {number}")
                    content = damaged(chance.choice(whole[kind]), chance)
                    one = _timed(kind, number, lambda content=content: judge_file(kind, content))
                found.append(one)
        finally:
            os.chdir(back)
    return found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _chunk(task: tuple[str, int, int]) -> tuple[list[Outcome], float]:
    return chunk(*task)


def tasks(lines: int, files: int) -> list[tuple[str, int, int]]:
    """Return (kind, first number, how many) of each chunk: the files in equal parts of all kinds."""
    wanted = {"line": lines, **{kind: -(-files // len(READERS)) for kind in READERS}}
    return [
        (kind, first, min(_CHUNK, count - first)) for kind, count in wanted.items() for first in range(0, count, _CHUNK)
    ]


@dataclass
class Tally:
    """What came of the chunks so far, kept in a file; they are done in one order, so that a number tells which."""

    chunks: int = 0
    findings: int = 0
    megabytes: float = 0.0
    verdicts: dict[str, dict[str, int]] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)

    @classmethod
    def resumed(cls) -> Tally:
        """Return the one that was kept, or a new one."""
        return cls(**json.loads(KEPT.read_text())) if KEPT.exists() else cls()

    def add(self, found: list[Outcome], megabytes: float) -> None:
        """Add a chunk, and say what should not have been."""
        self.chunks += 1
        self.megabytes = max(self.megabytes, megabytes)
        for one in found:
            counts = self.verdicts.setdefault(one.kind, {})
            counts[one.verdict] = counts.get(one.verdict, 0) + 1
            self.slowest[one.kind] = max(self.slowest.get(one.kind, 0.0), one.seconds)
            if one.finding:
                self.findings += 1
                print(f"{one.kind} {one.number}: {one.verdict}: {one.finding}", flush=True)
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(asdict(self)))

    @property
    def cases(self) -> int:
        """How many cases there were."""
        return sum(sum(counts.values()) for counts in self.verdicts.values())

    def table(self, where: str) -> str:
        """Return the results as markdown."""
        rows = [
            f"| {kind} | {sum(self.verdicts[kind].values()):,} | "
            + ", ".join(f"{name}: {count:,}" for name, count in sorted(self.verdicts[kind].items()))
            + f" | {self.slowest[kind]:.1f} |"
            for kind in ("line", *READERS)
            if kind in self.verdicts
        ]
        return "\n".join([
            "# Random command lines and damaged files", "", f"Made by `benchmarks/fuzz.py`. {where}.", "",
            f"Findings (tracebacks, hangs beyond {SECONDS} s, nonsense accepted): {self.findings}. The largest process "
            f"(with torch, {_CHUNK} cases or more behind it): {self.megabytes:.0f} MB.", "",
            "| kind | cases | what came of them | slowest, s of processor time |", "|---|---|---|---|", *rows, "",
        ])  # fmt: skip


def main() -> None:
    """Run all cases, print what was found, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    asked = parser.parse_args()
    todo = tasks(asked.lines, asked.files)
    random.Random(0).shuffle(todo)  # so that a run that is cut off has cases of every kind
    tally = Tally.resumed() if asked.resume else Tally()
    where = f"{asked.date}, {asked.machine}"
    with multiprocessing.get_context("spawn").Pool(asked.processes, maxtasksperchild=4) as pool:
        for found, megabytes in pool.imap(_chunk, todo[tally.chunks :]):
            tally.add(found, megabytes)
            RESULTS.write_text(tally.table(where))
    print(f"{tally.cases} cases, {tally.findings} findings, {tally.megabytes:.0f} MB")
    sys.exit(1 if tally.findings or tally.megabytes > MEGABYTES else 0)


if __name__ == "__main__":
    main()
