"""The command line: what it prints, and that a mistake is one clear line and exit code 2, without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from networks import traced

import costmodel.interface.cli
import planner.interface.cli
from costmodel import ACCOUNTINGS, METHODS, OPTIMIZERS, footprint, parts
from costmodel.tracing.tracer import trace

MODEL = "torchvision:mobilenet_v3_small"


def outside(*arguments: str) -> subprocess.CompletedProcess:
    """Run a Python program in a process of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


BESIDE = {"process_bytes", "process", "step_seconds"}  # what depends on the machine


def the_step(text: str) -> dict:
    """Return what an answer in JSON says of the step itself."""
    return {name: value for name, value in json.loads(text).items() if name not in BESIDE}


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--method", "mobiletl", "--blocks", "5"], {"method": "mobiletl", "blocks": 5}),
        (["--method", "bias", "--batch", "4", "--micro-batch", "2"], {"method": "bias", "batch": 4, "micro_batch": 2}),
        (["--optimizer", "adamw", "--accounting", "eager"], {"optimizer": "adamw", "accounting": "eager"}),
        (["--activation-dtype", "bfloat16", "--frozen-dtype", "int8", "--method", "last"],
         {"activation_dtype": "bfloat16", "frozen_dtype": "int8", "method": "last"}),
        (["--inplace-update"], {"inplace_update": True}),
        (["--first-step", "--optimizer", "adam"], {"first_step": True, "optimizer": "adam"}),
    ],
    ids=str,
)  # fmt: skip
def test_json_is_the_footprints_dictionary(command, arguments, options):
    code, out, err = command("footprint", MODEL, "--json", *arguments)
    assert (code, err) == (0, "")
    assert the_step(out) == footprint(traced(MODEL), **options).to_dict()
    assert json.loads(out).keys() - the_step(out).keys() == BESIDE


def test_json_at_another_resolution_and_number_of_classes(command):
    _, out, _ = command("footprint", MODEL, "--json", "--resolution", "96", "--classes", "10")
    assert the_step(out) == footprint(trace(MODEL, 96, 10)).to_dict()
    assert (json.loads(out)["resolution"], json.loads(out)["classes"]) == (96, 10)


@pytest.mark.parametrize("per", ["layer", "block", "operation", "tensor"])
def test_json_with_rows(command, per):
    _, out, _ = command("footprint", MODEL, "--method", "last", "--json", "--per", per)
    answer = footprint(traced(MODEL), "last")
    result = the_step(out)
    assert result.pop(f"per_{per}") == answer.to_frame(per).to_dict("records")
    assert result == answer.to_dict()


@pytest.mark.parametrize("per", ["layer", "block", "operation", "tensor"])
def test_table_with_rows(command, per):
    code, out, err = command("footprint", MODEL, "--method", "mobiletl", "--blocks", "2", "--per", per)
    assert (code, err) == (0, "")
    assert "peak memory" in out and "mobiletl, the last k = 2 blocks" in out and f"per {per}" in out
    rows = footprint(traced(MODEL), "mobiletl", 2).to_frame(per)
    assert str(rows.iloc[0, 0]).split(":")[0] in out and str(rows.iloc[-1, 0]).split(":")[0] in out


def test_layers(command, monkeypatch):
    graph = traced(MODEL)
    code, out, _ = command("layers", MODEL, "--json")
    rows = json.loads(out)
    assert code == 0 and [row["layer"] for row in rows] == [layer.name for layer in graph.layers]
    assert [row["part"] for row in rows] == [parts(graph).where(layer) for layer in graph.layers]
    assert sum(row["parameters"] for row in rows) == graph.parameter_count
    monkeypatch.setenv("COLUMNS", "160")  # a narrow terminal leaves columns out
    code, out, _ = command("layers", MODEL)
    assert code == 0 and "157 layers, 11 blocks" in out and "classifier.3" in out and "N x 3 x 224 x 224" in out


def test_methods(command):
    code, out, _ = command("methods")
    assert code == 0 and all(name in out for name in METHODS)


def test_compare(command):
    code, out, _ = command("compare", MODEL, "--method", "full", "--method", "mobiletl", "--blocks", "3", "--json")
    result = json.loads(out)
    assert code == 0 and [row["method"] for row in result["methods"]] == ["full", "mobiletl, k = 3"]
    for row, options in zip(result["methods"], ({"method": "full"}, {"method": "mobiletl", "blocks": 3}), strict=True):
        for accounting in (name for name, entry in ACCOUNTINGS.items() if not entry.in_flash):
            answer = footprint(traced(MODEL), accounting=accounting, kernels="none", **options)
            if ACCOUNTINGS[accounting].whole_step:
                assert row[f"{accounting}_saved_bytes"] == answer.saved_bytes
                assert row[f"{accounting}_peak_bytes"] == answer.peak_bytes
            else:  # a paper's one number
                assert row[f"{accounting}_bytes"] == answer.peak_bytes


def test_help_names_the_choices(command):
    code, out, _ = command("footprint", "--help")
    assert code == 0
    for name in (*METHODS, *OPTIMIZERS, *ACCOUNTINGS):
        assert name in out
    code, out, _ = command()
    assert code == 0 and all(name in out for name in ("footprint", "layers", "methods", "--debug"))


@pytest.mark.parametrize("main", [costmodel.interface.cli.main, planner.interface.cli.main])
def test_version(command, main):
    """Both command lines, and both packages, name the version of what is installed."""
    assert command("--version", main=main) == (0, f"finetune-planner {version('finetune-planner')}\n", "")
    assert costmodel.__version__ == planner.__version__ == version("finetune-planner")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("planner rec", {"recommend"}),
        ("planner recommend --dev", {"--device"}),
        ("planner recommend --device jetson", {"jetson-nano", "jetson-orin-nano"}),
        ("costmodel footprint mcunet --method mob", {"mobiletl"}),
    ],
)
def test_a_shell_completes_commands_options_and_values(words, found):
    program, *rest = words.split()
    line = f"import sys; sys.argv = ['{program}']; from {program}.interface.cli import main; main()"
    asked = {f"_{program.upper()}_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(rest))}
    done = subprocess.run(
        [sys.executable, "-c", line],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **asked},
    )
    assert set(done.stdout.split()) == found, done.stderr


# --- mistakes ---------------------------------------------------------------------------------------------------------

OWN_NETWORK = """
import torch
from torch import nn

def fails():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 2))

def raises():
    raise ValueError("first line\\nsecond line")

def mixes():
    class Mixes(nn.Module):
        def forward(self, x):
            rows = x.flatten(1)
            return torch.cdist(rows, rows) @ rows
    return nn.Sequential(nn.Conv2d(3, 2, 3), Mixes())
"""

MISTAKES = {
    "unknown model": ([f"{MODEL}l"], ["unknown torchvision model", "mobilenet_v3_small"]),
    "bare unknown model": (["mobilnet_v2"], ["unknown model 'mobilnet_v2'", "did you mean", "mobilenet_v2"]),
    "ambiguous model": (["resnet18"], ["torchvision:resnet18", "timm:resnet18"]),
    "unknown source": (["hub:resnet18"], ["unknown source of models 'hub'", "torchvision"]),
    "no such file": (["nowhere.py:net"], ["no file 'nowhere.py'"]),
    "unknown method": ([MODEL, "--method", "mobile-tl"], ["unknown method 'mobile-tl'", "'mobiletl'"]),
    "k too large": ([MODEL, "--method", "blocks", "--blocks", "12"], ["11 blocks", "12"]),
    "k missing": ([MODEL, "--method", "mobiletl"], ["1 to 11", "--blocks"]),
    "k not wanted": ([MODEL, "--method", "bias", "--blocks", "2"], ["'bias'", "no number of blocks"]),
    "no blocks": (
        ["torchvision:alexnet", "--method", "blocks", "--blocks", "1"],
        ["alexnet", "full, last, norm, bias"],
    ),
    "resolution too small": (["torchvision:alexnet", "--resolution", "8"], ["8x8", "resolution may be too small"]),
    "resolution 0": ([MODEL, "--resolution", "0"], ["resolution", "1 or more", "0"]),
    "classes 0": ([MODEL, "--classes", "0"], ["classes", "1 or more", "0"]),
    "batch 0": ([MODEL, "--batch", "0"], ["batch", "1 or more", "0"]),
    "batch no number": ([MODEL, "--batch", "many"], ["--batch", "integer"]),
    "micro-batch": ([MODEL, "--micro-batch", "3"], ["micro_batch must divide batch"]),
    "unknown optimizer": ([MODEL, "--optimizer", "adamm"], ["unknown optimizer 'adamm'", "adam"]),
    "unknown accounting": ([MODEL, "--accounting", "fat"], ["unknown accounting 'fat'", "lean"]),
    "unknown dtype": ([MODEL, "--activation-dtype", "fp4"], ["unknown activation dtype 'fp4'", "float16"]),
    "unknown grouping": ([MODEL, "--per", "module"], ["'module'", "layer"]),
    "unknown option": ([MODEL, "--blokcs", "3"], ["--blokcs", "--help"]),
    "no model": ([], ["Missing argument", "--help"]),
    "no rule": (["OWN:mixes"], ["cdist", "the square of the batch"]),
    "forward fails": (["OWN:fails"], ["failed in 1", "linear"]),
    "builder fails": (["OWN:raises"], ["ValueError", "first line second line"]),
    "unknown function": (["OWN:fail"], ["unknown function", "'fail'", "fails"]),
}


@pytest.fixture
def own_network(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(OWN_NETWORK)
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_clear_line(command, own_network, mistake):
    arguments, expected = MISTAKES[mistake]
    given = [argument.replace("OWN", str(own_network)) for argument in arguments]
    code, out, err = command("footprint", *given)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert "Traceback" not in err and len(err) < 900
    for part in expected:
        assert part in err


def test_unknown_command(command):
    code, _, err = command("footprnt", MODEL)
    assert code == 2 and err.startswith("error: ") and "footprnt" in err and err.count("\n") == 1


@pytest.mark.parametrize("ram", ["64 bananas", "-3MB", "lots", ""])
def test_budget_that_is_no_size(command, ram):
    import planner.interface.cli

    code, out, err = command("recommend", MODEL, f"--ram={ram}", main=planner.interface.cli.main)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "64MB" in err and repr(ram) in err


def test_debug_stands_anywhere(command):
    for arguments in (["--debug", "footprint", "nonsense"], ["footprint", "nonsense", "--debug"]):
        code, out, err = command(*arguments)
        assert (code, out) == (2, "") and err.startswith("Traceback") and "nonsense" in err


# --- as a program -----------------------------------------------------------------------------------------------------

RUN = "import sys; sys.argv = ['costmodel', *sys.argv[1:]]; from costmodel.interface.cli import main; main()"


def test_debug_shows_the_traceback():
    shown = outside("-c", RUN, "footprint", "nowhere.py:net", "--debug")
    assert shown.returncode != 0 and "Traceback" in shown.stderr and "there is no file 'nowhere.py'" in shown.stderr
    hidden = outside("-c", RUN, "footprint", "nowhere.py:net")
    assert hidden.returncode == 2 and "Traceback" not in hidden.stderr
    assert hidden.stderr.splitlines()[-1] == shown.stderr.splitlines()[-1].replace(
        "costmodel.errors.InputError", "error"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["footprint", "--help"], ["methods"]], ids=str)
def test_help_does_not_load_torch(arguments):
    program = f"""
import sys
sys.argv = ["costmodel", *{arguments!r}]
from costmodel.interface.cli import main
try:
    main()
finally:
    loaded = {{"torch", "torchvision", "timm", "pandas", "networkx"}} & set(sys.modules)
    print("loaded:", " ".join(sorted(loaded & {{"torch", "torchvision", "timm"}})), file=sys.stderr)
"""
    done = outside("-c", program)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 5
    assert done.stderr == "loaded: \n"


def test_reader_that_has_seen_enough():
    """`costmodel layers ... | head -1` leaves quietly."""
    program = [sys.executable, "-c", RUN, "layers", "zoo:proxylessnas_mobile"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(60) == 0


def test_the_best_schedule_on_the_command_line(command):
    code, text, _ = command(
        "footprint", "torchvision:mobilenet_v2", "--method", "blocks", "--blocks", "13", "--recompute", "best", "--ram",
        "64MB", "--json",
    )  # fmt: skip
    found = json.loads(text)
    assert code == 0 and found["memory_bytes"]["peak"] <= 64_000_000 and found["schedule"]["segments"]
    code, text, _ = command(
        "footprint", "torchvision:mobilenet_v2", "--method", "blocks", "--blocks", "3", "--prefix-batch", "1", "--json"
    )
    assert code == 0 and json.loads(text)["schedule"]["prefix_batch"] == 1
    for wrong, said in (
        (["--recompute", "worst"], "allowed: best"),
        (["--ram", "64MB"], "add --recompute best"),
        (["--recompute", "best", "--ram", "1MB"], "the least is"),
        (["--prefix-batch", "3"], "does not divide"),
    ):
        code, _, error = command("footprint", "torchvision:mobilenet_v2", "--method", "blocks", "--blocks", "3", *wrong)
        assert code in (2, 3) and said in error and error.count("\n") == 1


def test_the_frontier_is_drawn(command, tmp_path):
    out = tmp_path / "frontier.png"
    small = "torchvision:mobilenet_v3_small"
    code, text, _ = command("plot", "frontier", small, "--resolution", "96", "--out", str(out))
    assert code == 0 and "wrote" in text and out.stat().st_size > 10_000


def test_a_timeline_shows_what_runs_again(command, tmp_path):
    out = tmp_path / "timeline.png"
    small = ("torchvision:mobilenet_v3_small", "--resolution", "96", "--out", str(out))
    code, text, _ = command("plot", "timeline", *small, "--method", "blocks", "--blocks", "8", "--recompute", "best")
    assert code == 0 and "wrote" in text and out.stat().st_size > 10_000
    code, _, error = command("plot", "timeline", *small, "--ram", "64MB")
    assert code == 2 and "add --recompute best" in error


def test_a_breakdown_of_a_network_with_one_convolution(command, tmp_path):
    network, out = tmp_path / "one.py", tmp_path / "breakdown.png"
    network.write_text(
        "from torch import nn\n"
        "def one(): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 10))\n"
        "def none(): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"
    )
    for name in ("one", "none"):
        code, text, error = command("plot", "breakdown", f"{network}:{name}", "--resolution", "32", "--out", str(out))
        assert (code, error) == (0, "") and "wrote" in text
    code, _, error = command("footprint", f"{network}:none", "--method", "last-convs", "--resolution", "32")
    assert code == 2 and "cannot train" in error and error.count("\n") == 1
