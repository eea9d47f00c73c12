"""What leaves a command line: one line for every error, its exit code, and names as they are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import typer
from repository import ROOT

import planner.interface.cli
from costmodel import InfeasibleError, InputError, ModelError, build
from costmodel.errors import one_line
from costmodel.interface.cli import main
from costmodel.interface.running import run, told
from planner import Plan

NETWORK = """
from torch import nn

def make():
    parts = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*parts)
"""


def leave(monkeypatch, capsys, error, *arguments):
    """Return exit code and standard error of a command line that raises an error."""
    app = typer.Typer()

    @app.command()
    def fails(word: str) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["command", "word", *arguments])
    with pytest.raises(SystemExit) as left:
        run(app)
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("wrong"), 2, "error: wrong"),
        (ModelError("broken"), 2, "error: broken"),
        (InfeasibleError("nothing fits"), 3, "error: nothing fits"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "error: ZeroDivisionError, an unexpected error: division by zero",
        ),
        (RecursionError("deep"), 2, "error: the input is nested too deeply"),
        (MemoryError("16 GiB"), 2, "error: not enough memory on this machine"),
        (OSError(28, "No space left on device"), 2, "error: cannot use the output: No space left"),
        (ModuleNotFoundError("no optuna", name="optuna"), 2, "error: this command needs optuna: pip install"),
        (InputError("two\nlines and \x1b[31mred\ud800"), 2, "error: two lines and \\x1b[31mred\\ud800"),
    ],
)
def test_every_error_is_one_line_with_its_code(monkeypatch, capsys, error, code, said):
    found, err = leave(monkeypatch, capsys, error)
    err = err.removeprefix("\n")  # behind the terminal's ^C
    assert found == code and err.startswith(said) and err.count("\n") == 1 and err.isascii()


def test_what_was_not_foreseen_says_how_to_report_it(monkeypatch, capsys):
    _, err = leave(monkeypatch, capsys, ValueError("odd"))
    assert "please report it" in err and "--debug" in err and "Traceback" not in err
    code, err = leave(monkeypatch, capsys, ValueError("odd"), "--debug")
    assert code == 1 and "Traceback" in err and err.endswith("ValueError: odd\n")
    assert told(ValueError())[0].startswith("ValueError, an unexpected error: without a message")


def test_a_long_message_is_cut(monkeypatch, capsys):
    _, err = leave(monkeypatch, capsys, InputError("x" * 100_000))
    assert len(err) < 2100


def test_one_line_keeps_what_can_be_shown():
    assert one_line("grün, 64 % — 3 × 3") == "grün, 64 % — 3 × 3"
    assert one_line("a\tb\u202ec") == "a\\tb\\u202ec"  # the last one would turn the rest of the line round


@pytest.mark.parametrize("command", ["costmodel", "planner"])
def test_an_interruption_of_the_imports_is_one_line(tmp_path, command):
    """numpy stands for what is imported first; the real one takes a moment in which Ctrl-C is pressed."""
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import finetune_planner; finetune_planner.{command}()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_full_disk_is_one_line():
    program = "import sys; sys.argv = ['costmodel', 'methods']; from costmodel.interface.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: cannot use the output: No space left on device\n"


@pytest.mark.parametrize("name", ["a[/red].py", "a[bold].py", "a:smile:.py", "a$b_{$.py"])
def test_a_file_by_any_name_is_shown_as_it_is(tmp_path, monkeypatch, command, name):
    """Names that rich or matplotlib would read as markup."""
    monkeypatch.chdir(tmp_path)
    os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)  # what stands before the / is a folder
    with open(os.fsencode(name), "w") as file:
        file.write(NETWORK)
    model, shown = f"{name}:make", name.encode(errors="backslashreplace").decode()
    calls = [(main, ["footprint"]), (main, ["layers"]), (main, ["plot", "timeline", "--out", "a.png"])]
    for entry, words in (*calls, (planner.interface.cli.main, ["candidates"])):
        code, out, err = command(*words, model, "--resolution", "32", main=entry)
        assert code == 0, err
        assert "plot" in words or shown in out
    for words in (["recommend", "--ram", "1GB"], ["pareto", "--out", "b.png", "--html", "b.html"]):
        limits = ["--method", "last,full", "--resolution", "32"]
        code, out, err = command(*words, model, *limits, main=planner.interface.cli.main)
        assert code == 0, err


@pytest.mark.parametrize("name", ["a\udcff.py", "a\x1b[31m.py", "a\nb.py"])
def test_a_file_whose_name_is_no_text_is_refused(tmp_path, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    with open(os.fsencode(name), "w") as file:
        file.write(NETWORK)
    code, out, err = command("footprint", f"{name}:make")
    assert (code, out) == (2, "") and "has characters that cannot be shown" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resolution", "1" + 20 * "0"], "resolution must be at most 4,096"),
        (["--resolution", "1" + 5000 * "0"], "--resolution"),
        (["--classes", "1" + 20 * "0"], "classes must be at most 1,000,000"),
        (["--batch", "1" + 20 * "0"], "batch must be at most 65,536"),
    ],
)
def test_numbers_beyond_all_bounds(command, arguments, said):
    code, out, err = command("footprint", "torchvision:mobilenet_v3_small", *arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1 and len(err) < 6000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "1-999999999"], "has more than 10,000 values"),
        (["--batch", "70000"], "batch must be at most 65,536"),
        (["--batch", "1-4000"], "candidates are more than 50,000; ask for fewer values of an axis"),
        (
            ["--batch", "1-9999", "--optimizer", "sgd,adam,momentum", "--frozen-dtype", "float32,float16,int8"],
            "more than 2,000,000",
        ),
        (["--ram", "9" * 20_000], "cannot read"),
        (["--max-flops", "nan"], "must be a positive number, not nan"),
        (["--min-recovery", "inf"], "must be a positive number, not inf"),
        (["--blocks", "50"], "no network has 50 blocks; the deepest that is asked about has 11"),
    ],
)
def test_limits_beyond_all_bounds(command, arguments, said):
    given = ["recommend", "torchvision:mobilenet_v3_small", "--ram", "64MB", *arguments]
    code, out, err = command(*given, main=planner.interface.cli.main)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1 and len(err) < 500


def test_a_limit_of_nothing_shows_no_nan(command):
    for more in ([], ["--json"]):
        given = ["recommend", "torchvision:mobilenet_v3_small", "--ram", "64MB", "--min-recovery", "0", *more]
        code, out, _ = command(*given, main=planner.interface.cli.main)
        words = out.replace('"', " ").replace(",", " ").lower().split()
        assert code == 0 and words and not {"nan", "inf", "-inf", "infinity", "-infinity"} & set(words)


def test_a_single_value_per_channel_is_never_recommended(command, tmp_path):
    """MobileNetV3-Small at 32 pixels and batch 1: batch norm has one value per channel, and could not train."""
    for batch in ("1", "1-8"):
        path = tmp_path / f"{batch}.json"
        given = ["recommend", "torchvision:mobilenet_v3_small", "--resolution", "32", "--batch", batch]
        code, _, err = command(*given, "--ram", "64MB", "--save", str(path), main=planner.interface.cli.main)
        assert code == 0, err
        plan = Plan.load(path)
        network = plan.apply(build(plan.model)).train()
        network(torch.randn(plan.micro_batch, 3, 32, 32)).sum().backward()
