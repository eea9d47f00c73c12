"""The import direction, torch kept where it belongs, and a traced network priced without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest
from networks import traced

import costmodel
import planner
from costmodel import footprint
from costmodel.traces import versions

PACKAGES = {package.__name__: Path(package.__file__).parent for package in (costmodel, planner)}

# The rooms from the bottom up: a room imports only those that stand before it.
ROOMS = {
    "costmodel": (
        "errors", "secrets", "units", "table", "kept", "reading", "graph", "rules", "methods", "accounting", "step",
        "answers", "machine", "schedules", "layers", "zoo", "tracing", "traces", "training", "checking", "export",
        "interface",
    ),
    "planner": ("evidence", "estimates", "devices", "choosing", "campaign", "training", "interface"),
}  # fmt: skip
# The rooms, and files of other rooms, that load torch. No other file imports them at its top level.
TORCH = {
    "costmodel/layers", "costmodel/zoo", "costmodel/tracing", "costmodel/training", "costmodel/checking/floor.py",
    "costmodel/checking/measuring.py",
    "costmodel/checking/steps.py", "costmodel/checking/timing.py", "costmodel/checking/verification.py",
    "costmodel/export", "planner/campaign", "planner/training",
}  # fmt: skip
# Files of these that are about torch without loading it.
WITHOUT_TORCH_THEMSELVES = {
    "costmodel/export/placing.py", "costmodel/zoo/elastic.py", "planner/campaign/next_trial.py",
    "planner/campaign/storage.py", "planner/campaign/watch.py", "planner/training/trained.py",
    "planner/training/watch.py",
}  # fmt: skip
# What `planner` may use beside the names that `costmodel` shows.
OPEN_MODULES = {
    "costmodel.errors", "costmodel.secrets", "costmodel.units", "costmodel.table", "costmodel.reading",
    "costmodel.interface.running", "costmodel.interface.drawing", "costmodel.interface.layout",
    "costmodel.interface.options", "costmodel.interface.programs",
    "costmodel.graph.elastic",
}  # fmt: skip
HEAVY = {"torch", "torchvision", "timm", "executorch", "fvcore", "optuna", "sqlalchemy", "PIL", "matplotlib"}


def files() -> list[Path]:
    """Return every file of both packages, by its path in the repository."""
    return sorted(path for package in PACKAGES.values() for path in package.rglob("*.py"))


def place(path: Path) -> str:
    """Return a file's path from the packages' folder, such as 'costmodel/rules/table.py'."""
    return path.relative_to(PACKAGES["costmodel"].parent).as_posix()


def module_of(path: str) -> str:
    """Return a file's module: 'costmodel/rules/table.py' -> 'costmodel.rules.table'."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room(module: str) -> tuple[str, str]:
    """Return package and room of a module; of the package itself ''."""
    package, *rest = module.split(".")
    return package, rest[0] if rest and rest[0] != "__main__" else ""


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: str, text: str, whole_file: bool = True) -> Iterator[str]:
    """Yield the absolute module of every import; of those at the top level only, unless `whole_file`.

    What stands under TYPE_CHECKING imports nothing. `from package import module` counts as importing the module.
    """
    here = path.removesuffix(".py").split("/")

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if _is_type_checking(child):
                continue
            yield child
            if whole_file or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(child)

    for node in walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module
                        for alias in node.names)  # fmt: skip


FILES = {place(path): path.read_text(encoding="utf-8") for path in files()}
MODULES = {module_of(path) for path in FILES}
every_file = pytest.mark.parametrize("path", FILES)


def own(path: str, whole_file: bool = True) -> set[str]:
    """Return the modules of the two packages that a file imports."""
    return {module for module in imports(path, FILES[path], whole_file) if module.split(".")[0] in PACKAGES}


def loads_torch(module: str) -> bool:
    path = module.replace(".", "/")
    known = (f"{path}.py" in TORCH, path in TORCH, any(path.startswith(f"{folder}/") for folder in TORCH))
    return any(known) and f"{path}.py" not in WITHOUT_TORCH_THEMSELVES and f"{path}/__init__.py" not in FILES


def test_the_walk_finds_imports_of_every_kind():
    """The reader of this file should trust what the other tests see."""
    text = (
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import torch.nn as nn\n"
        "from ..graph.values import Layer\n"
        "from .facts import dense\n"
        "from ..graph import blocks\n"
        "from costmodel.units import parse_bytes\n"
        "if TYPE_CHECKING:\n    from ..answers.footprint import Footprint\n"
        "def late():\n    from ..tracing.tracer import trace\n"
    )
    early = {
        "__future__", "typing", "torch.nn", "costmodel.graph.values", "costmodel.rules.facts", "costmodel.graph.blocks",
        "costmodel.units",
    }  # fmt: skip
    assert set(imports("costmodel/rules/new.py", text, whole_file=False)) == early
    assert set(imports("costmodel/rules/new.py", text)) == early | {"costmodel.tracing.tracer"}
    assert set(imports("costmodel/__init__.py", "from .answers.footprint import footprint\n")) == {
        "costmodel.answers.footprint"
    }


def test_every_room_has_its_place_and_one_sentence():
    rooms = {room(module) for module in MODULES} - {(package, "") for package in PACKAGES}
    assert rooms == {(package, name) for package, names in ROOMS.items() for name in names}
    for path, text in FILES.items():
        if path.endswith("/__init__.py") and path.count("/") == 2:
            assert ast.get_docstring(ast.parse(text)).count(". ") == 0, path


@every_file
def test_imports_run_downwards(path):
    package, name = room(module_of(path))
    order = ROOMS[package]
    if path.endswith("__main__.py"):
        name = order[-1]
    for module in own(path):
        their_package, theirs = room(module)
        if package == "planner" and their_package == "costmodel":
            continue
        assert package == their_package, module  # costmodel knows nothing of planner
        if not name:  # the package itself shows what its rooms hold
            continue
        if not theirs:  # public names, for the command line and what is below it alone
            assert name == order[-1], module
            continue
        assert order.index(theirs) <= order.index(name), module


def test_there_is_no_circle():
    graph = networkx.DiGraph((module_of(path), module) for path in FILES for module in own(path))
    packages = {module_of(path) for path in FILES if path.endswith("__init__.py")}
    graph.remove_nodes_from(packages & set(PACKAGES))  # they show names of their rooms, which command lines use
    assert graph.number_of_edges() > 200
    assert not [sorted(circle) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]
    assert not [module for module in graph if graph.has_edge(module, module)]


def test_all_that_shapes_a_trace_is_in_its_digest():
    """A trace in the cache is served while the digest is the same: what the tracer and the zoo import counts too."""
    graph = networkx.DiGraph((module_of(path), module) for path in FILES for module in own(path))
    starts = [module for module in graph if room(module)[1] in ("tracing", "zoo")]
    used = {module for start in starts for module in networkx.descendants(graph, start) | {start}}
    counted = {module_of(place(path)) for path in versions.tracing_files()}
    assert {"costmodel.tracing.quick", "costmodel.layers.masks", "costmodel.methods.tinytl"} <= used
    assert used - {"costmodel"} <= counted


@every_file
def test_torch_is_loaded_where_it_belongs(path):
    if loads_torch(module_of(path)):
        return
    assert not {module.split(".")[0] for module in imports(path, FILES[path])} & {"torch", "torchvision", "timm"}
    assert not [module for module in own(path, whole_file=False) if loads_torch(module)]


def test_every_room_that_may_load_torch_does():
    """No name stands on the list for nothing."""
    users = {path for path in FILES if "torch" in {module.split(".")[0] for module in imports(path, FILES[path])}}
    for one in TORCH:
        assert any(path.startswith(one) for path in users), one


@every_file
def test_planner_uses_what_costmodel_shows(path):
    if not path.startswith("planner/"):
        return
    for node in ast.walk(ast.parse(FILES[path])):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "costmodel":
            names = {alias.name for alias in node.names}
            whole = {f"{node.module}.{name}" for name in names} <= OPEN_MODULES  # of a module that is used as one
            shown = node.module == "costmodel" and names <= {*costmodel.__all__}
            assert whole or shown or node.module in OPEN_MODULES


@every_file
def test_only_interfaces_print_and_draw(path):
    if "/interface/" in path:
        return
    calls = [node for node in ast.walk(ast.parse(FILES[path])) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not {module.split(".")[0] for module in imports(path, FILES[path])} & {"matplotlib", "typer"}


def test_public_names_exist():
    for package in (costmodel, planner):
        assert package.__all__ == sorted(
            package.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
        )
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            package.nothing  # noqa: B018


# --- without torch ----------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import json, sys
for name in ("torch", "torchvision", "timm"):
    sys.modules[name] = None  # importing it fails
import costmodel
from costmodel import METHODS, block_count, footprint
graph = costmodel.LayerGraph.load(sys.argv[1])
answers = {}
for name, method in METHODS.items():
    for accounting in costmodel.ACCOUNTINGS:
        try:
            answer = footprint(graph, name, 3 if method.takes_blocks else None, accounting=accounting)
        except costmodel.InputError:
            continue
        answers[f"{name} {accounting}"] = answer.to_dict()
        answer.to_frame("tensor"), repr(answer), answer._repr_html_()
print(json.dumps(answers))
"""


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:mobilenetv4_conv_small"])
def test_traced_network_is_priced_without_torch(name, tmp_path):
    import json

    graph = traced(name)
    path = tmp_path / "graph.trace"
    graph.save(path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) >= 12
    for setting, answer in answers.items():
        method, accounting = setting.split()
        blocks = answer["blocks"]
        assert footprint(graph, method, blocks, accounting=accounting).to_dict() == answer


def test_importing_does_not_load_torch():
    program = (
        "import sys, costmodel, planner, planner.choosing.pareto; "
        "print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False False\n"
