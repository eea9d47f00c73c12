"""Where a trace by name comes from: shipped, cached or made now; what is stored is used only where it is right."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from networks import traced
from torch import nn

import costmodel.interface.cli
from costmodel import InputError, LayerGraph, footprint, trace
from costmodel.graph.store import encode
from costmodel.traces import cache, shipped, versions
from costmodel.tracing.models import resolve
from costmodel.tracing.tracer import trace as trace_now

SMALLEST = "zoo:mcunet_5fps"
PACKAGE = Path(costmodel.__file__).parent


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Give every test a cache of its own, with nothing in it."""
    monkeypatch.setenv("COSTMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def refuse_to_trace(monkeypatch):
    """Fail if anything is traced."""

    def refuse(*_, **__):
        raise AssertionError("traced again")

    monkeypatch.setattr("costmodel.tracing.tracer.trace", refuse)


def marked(graph: LayerGraph) -> LayerGraph:
    """Return a graph that no trace gives, to tell where an answer comes from."""
    return dataclasses.replace(graph, notes=("from the cache",))


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm:tinynet_e", "tinynet_e", "torchvision:mnasnet1_0", "zoo:mcunet_5fps"])
@pytest.mark.parametrize("classes", [None, 10])
def test_a_second_question_is_not_traced(name, classes, request):
    first = trace(name, 65, classes)
    request.getfixturevalue("refuse_to_trace")
    assert encode(trace(name, 65, classes)) == encode(first)
    for other in ((name, 66, classes), (name, 65, 11), ("timm:mobilenetv3_small_050", 65, classes)):
        with pytest.raises(AssertionError, match="traced again"):
            trace(*other)


@pytest.mark.parametrize("library", versions.LIBRARIES)
def test_another_version_of_a_library_is_traced_anew(library, monkeypatch):
    cache.keep(marked(traced(SMALLEST, 65)), SMALLEST, 65, None)
    assert trace(SMALLEST, 65).notes
    monkeypatch.setattr(versions, "version", lambda name: "9.9.9" if name == library else "2.15.0")
    assert not trace(SMALLEST, 65).notes


def test_another_tracer_is_traced_anew(monkeypatch):
    cache.keep(marked(traced(SMALLEST, 65)), SMALLEST, 65, None)
    assert trace(SMALLEST, 65).notes
    monkeypatch.setattr(versions, "tracer_version", lambda: "another")
    assert not trace(SMALLEST, 65).notes


def test_fresh_traces_now_and_replaces_what_is_stored():
    cache.keep(marked(traced(SMALLEST, 65)), SMALLEST, 65, None)
    assert not trace(SMALLEST, 65, fresh=True).notes
    assert not trace(SMALLEST, 65).notes


def test_damaged_and_mistaken_entries_are_made_again(folder):
    trace(SMALLEST, 65)
    (path,) = folder.glob("*/*")
    good = path.read_bytes()
    other = traced(SMALLEST, 66)
    for harm in (lambda: path.write_bytes(good[:100]), lambda: path.write_bytes(b""), lambda: other.save(path)):
        harm()
        assert trace(SMALLEST, 65).resolution == 65
        assert path.read_bytes() == good


def test_a_cache_that_cannot_be_written_breaks_no_answer(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("COSTMODEL_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        assert trace(SMALLEST, 65).resolution == 65
    assert not list(cache.entries()) and cache.clear() == 0
    run(monkeypatch, "cache")
    assert "cannot be written" in capsys.readouterr().out
    assert (tmp_path / "file").read_text() == "no folder"


def test_what_may_change_unseen_is_not_kept(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))\n")
    assert trace(f"{path}:net", 4).classes == 2
    path.write_text(path.read_text().replace("48, 2", "48, 30"))
    assert trace(f"{path}:net", 4).classes == 30

    def own_network(pretrained: bool = False, **options):
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))

    timm.models.register_model(own_network)
    assert trace("timm:own_network", 4).classes == 5
    assert trace(nn.Sequential(nn.Flatten(), nn.Linear(48, 7)), 4).classes == 7
    assert not list(cache.entries())


# --- what is shipped --------------------------------------------------------------------------------------------------

needs_shipped = pytest.mark.skipif(
    shipped.find("mcunet_5fps", 96) is None or shipped.find("mobilenet_v2", 96) is None,
    reason=f"shipped traces are of {shipped.about(SMALLEST)}; `costmodel ship` makes them of what is here",
)


@needs_shipped
@pytest.mark.parametrize(("name", "resolution"), [*zip(shipped.NETWORKS, itertools.cycle(shipped.RESOLUTIONS))])
def test_shipped_is_what_a_trace_gives(name, resolution):
    for classes in (None, 37):
        assert encode(shipped.find(name, resolution, classes)) == encode(trace_now(name, resolution, classes))


@needs_shipped
def test_every_shipped_network_and_resolution_is_there(refuse_to_trace):
    for name in shipped.NETWORKS:
        for resolution in shipped.RESOLUTIONS:
            graph = trace(name, resolution)
            assert (graph.model, graph.resolution, graph.classes) == (name, resolution, 1000)
            assert footprint(graph, "mobiletl", 2, batch=1).saved_bytes > 0
    assert sum(path.stat().st_size for path in shipped.DATA.iterdir()) < 700_000
    assert len(list(shipped.DATA.iterdir())) == len(shipped.NETWORKS)


@needs_shipped
def test_a_bare_name_of_a_shipped_network_is_no_other_s():
    found = {}
    for name in shipped.NETWORKS:
        bare = name.partition(":")[2]
        try:
            found[name] = resolve(bare) == name
        except InputError as error:  # torchvision and timm have one each
            assert "several libraries" in str(error)
            found[name] = False
        graph = shipped.find(bare, 96)
        assert (graph.model == name) if found[name] else graph is None
    assert not found["torchvision:resnet18"] and found["torchvision:mobilenet_v2"] and sum(found.values()) > 30


V2 = "torchvision:mobilenet_v2"


@needs_shipped
@pytest.mark.parametrize(
    ("changed", "full", "bare"),
    [
        ({}, True, True),
        ({"torch": None, "torchvision": None, "timm": None}, True, True),  # nothing that could differ
        ({"torch": None}, True, True),
        ({"torch": "1.0.0"}, False, False),
        ({"torchvision": "0.1.0+cpu"}, False, False),
        ({"timm": "0.1.0"}, True, False),  # it might have a mobilenet_v2 of its own
    ],
    ids=str,
)
def test_shipped_is_used_where_no_library_differs(changed, full, bare, monkeypatch):
    made_with = shipped.about(V2)
    patch = {library: f"{versions.release(made_with[library])}.77+other" for library in versions.LIBRARIES} | changed
    monkeypatch.setattr(shipped, "installed", patch.get)
    assert (shipped.find(V2, 96) is not None, shipped.find("mobilenet_v2", 96) is not None) == (full, bare)


@pytest.mark.parametrize(
    "asked", [(V2, 97), ("zoo:../../x", 96), ("", 96), ("timm:mobilenet_v2", 96), ("torchvision:", 96)]
)
def test_nothing_else_is_shipped(asked):
    assert shipped.find(*asked) is None


def test_classes_are_derived_only_where_the_last_layer_alone_has_them():
    def head(*layers):
        return trace_now(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), *layers), 4)

    plain = head(nn.Linear(16, 5))
    assert encode(shipped.with_classes(plain, 5)) == encode(plain)
    assert encode(shipped.with_classes(plain, 9)) == encode(head(nn.Linear(16, 9)))
    assert plain.classes == 5 and plain.parameters["2.weight"].shape == (5, 16)
    for network in (head(nn.Linear(16, 5), nn.ReLU()), head(nn.Linear(16, 5), nn.Unflatten(1, (5, 1))), head()):
        assert shipped.with_classes(network, 9) is None


@pytest.mark.parametrize("name", ["tracing/quick.py", "zoo/mcunet.py", "layers/masks.py", "units.py"])
def test_a_changed_tracer_makes_another_digest(name, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "costmodel", ignore=shutil.ignore_patterns("__pycache__", "data"))

    def digest() -> str:
        program = "from costmodel.traces.versions import tracer_version; print(tracer_version())"
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    before = digest()
    assert before == versions.tracer_version()
    with (tmp_path / "costmodel" / name).open("a") as file:
        file.write("# changed\n")
    assert digest() != before


# --- without torch ----------------------------------------------------------------------------------------------------

WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # importing it fails
sys.argv[:] = sys.argv[2:]
if sys.argv[0] == "planner":
    from planner.interface.cli import main
else:
    from costmodel.interface.cli import main
main()
"""
TORCH = "torch,torchvision,timm,fvcore,matplotlib"
DRAWING = f"{TORCH},pandas,networkx"
SMALL = "torchvision:mobilenet_v3_small"


@needs_shipped
@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (DRAWING, f"costmodel footprint {V2} --method mobiletl --blocks 5"),
        (DRAWING, "costmodel footprint mobilenet_v2 --resolution 320 --classes 10 --accounting eager --json"),
        (DRAWING, f"costmodel layers {V2}"),
        (DRAWING, "costmodel methods"),
        (DRAWING, "costmodel cache"),
        (DRAWING, "costmodel --help"),
        (DRAWING, "planner --help"),
        (TORCH, f"costmodel compare {SMALL}"),
        (TORCH, "costmodel footprint proxylessnas_mobile --method tinytl-lb --per block"),
        (TORCH, f"planner recommend {SMALL} {V2} --ram 64MB"),
        (TORCH, f"planner candidates {SMALL} --resolution 96 --csv"),
        (TORCH, f"planner pareto {SMALL} --resolution 96 --html page.html"),
    ],
)
def test_questions_about_known_networks_need_no_torch(missing, line, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, *line.split()],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert done.stdout


@needs_shipped
@pytest.mark.parametrize(
    ("missing", "line", "package", "extra"),
    [
        (TORCH, f"costmodel footprint {SMALL} --resolution 100", "torch", "torch"),
        (TORCH, f"costmodel footprint {SMALL} --fresh", "torch", "torch"),
        (TORCH, "costmodel footprint networks.py:small", "torch", "torch"),
        ("timm", "costmodel footprint timm:resnet26 --fresh", "timm", "timm"),
        (TORCH, f"costmodel verify {SMALL} --method bias", "torch", "torch"),
        (TORCH, f"costmodel plot timeline {SMALL} --method full --out timeline.png", "matplotlib", "plots"),
        (TORCH, f"planner pareto {SMALL} --ram 64MB --out pareto.png", "matplotlib", "plots"),
        ("pyarrow", f"planner sweep {SMALL} --out candidates.parquet", "pyarrow", "parquet"),
        ("optuna", f"planner measure {SMALL} --data photos --ram 64MB", "optuna", "measure"),
    ],
)
def test_an_answer_that_needs_a_package_says_so_in_one_line(missing, line, package, extra, tmp_path):
    (tmp_path / "networks.py").write_text("def small():\n    pass\n")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, *line.split()],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"needs {package}: pip install 'finetune-planner[{extra}]'" in done.stderr


def test_a_cached_network_needs_no_torch():
    trace("timm:tinynet_e", 65)
    line = "costmodel footprint timm:tinynet_e --resolution 65 --json"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, TORCH, *line.split()], capture_output=True, text=True, timeout=60, check=True
    )
    expected = footprint(trace_now("timm:tinynet_e", 65)).to_dict()
    answer = json.loads(done.stdout)  # with what this machine adds: the process, the time of a step
    assert {name: answer[name] for name in expected} == expected


# --- the command ------------------------------------------------------------------------------------------------------


def run(monkeypatch, *arguments: str) -> None:
    """Run `costmodel` with these arguments in this process."""
    monkeypatch.setattr(sys, "argv", ["costmodel", *arguments])
    with pytest.raises(SystemExit) as left:
        costmodel.interface.cli.main()
    assert not left.value.code


def test_cache_command(folder, monkeypatch, capsys):
    run(monkeypatch, "cache", "--json")
    assert json.loads(capsys.readouterr().out) == {"folder": str(folder), "deleted": 0, "entries": []}
    trace(SMALLEST, 65)
    trace("mcunet_5fps", 65, 10)
    (folder / "torch 1.0").mkdir()
    (folder / "torch 1.0" / "zoo=x@32.trace").write_bytes(b"123")
    own = [folder / "notes.txt", folder / "torch 1.0" / "notes.txt", folder / "torch 1.0" / "my.trace"]
    for path in own:
        path.write_text("not a trace of the cache")
    (folder / "torch 1.0" / "zoo=x@32.trace.0123456789abcdef.tmp").write_bytes(b"left by a writer that died")
    run(monkeypatch, "cache", "--json")
    rows = json.loads(capsys.readouterr().out)["entries"]
    sizes = {path.name: path.stat().st_size for path in folder.glob("*/*=*")}
    today = versions.environment()
    assert sorted(rows, key=str) == sorted([
        {"model": "zoo:x", "resolution": 32, "classes": None, "file_bytes": 3, "versions": "torch 1.0",
         "current": False},
        {"model": SMALLEST, "resolution": 65, "classes": None, "file_bytes": sizes["zoo=mcunet_5fps@65.trace"],
         "versions": today, "current": True},
        {"model": "mcunet_5fps", "resolution": 65, "classes": 10, "versions": today, "current": True,
         "file_bytes": next(folder.glob("*/mcunet_5fps@65x10.trace")).stat().st_size},
    ], key=str)  # fmt: skip
    run(monkeypatch, "cache")
    out = capsys.readouterr().out
    assert str(folder) in out and "3 traces" in out and "1 of other versions" in out and "mcunet_5fps" in out
    run(monkeypatch, "cache", "--clear")
    assert "deleted: 3" in capsys.readouterr().out
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(own)


def test_clearing_leaves_what_the_package_did_not_write(tmp_path, monkeypatch):
    """Empty folders of the user's, files of other names, and files that look like traces in folders of other names."""
    monkeypatch.setenv("COSTMODEL_CACHE", str(tmp_path))
    cache.keep(traced(SMALLEST, 65), SMALLEST, 65, None)
    own = [tmp_path / "photos" / "empty", tmp_path / "empty", tmp_path / versions.environment() / "net@224.trace"]
    for folder in own:
        folder.mkdir(parents=True)
    files = [tmp_path / "photos" / "timm=net@224.trace", tmp_path / "net@224.trace"]
    for path in files:
        path.touch()
    assert cache.clear() == 1
    assert all(path.exists() for path in (*own, *files)) and not list(tmp_path.glob("*/*mcunet*"))


def test_a_fifo_in_the_cache_is_as_good_as_none(tmp_path, monkeypatch):
    monkeypatch.setenv("COSTMODEL_CACHE", str(tmp_path))
    cache.keep(traced(SMALLEST, 65), SMALLEST, 65, None)
    (path,) = tmp_path.glob("*/*.trace")
    path.unlink()
    os.mkfifo(path)
    assert cache.find(SMALLEST, 65, None) is None and trace(SMALLEST, 65).resolution == 65


@pytest.mark.parametrize("command", ["footprint", "layers", "compare"])
def test_fresh_on_the_command_line(command, monkeypatch, refuse_to_trace, capsys):
    cache.keep(traced(SMALLEST, 65), SMALLEST, 65, None)
    options = [SMALLEST, "--resolution", "65", *(["--method", "full"] if command == "compare" else [])]
    run(monkeypatch, command, *options)
    monkeypatch.setattr(sys, "argv", ["costmodel", command, *options, "--fresh"])
    with pytest.raises(SystemExit) as left:
        costmodel.interface.cli.main()
    assert left.value.code == 1 and "traced again" in capsys.readouterr().err
