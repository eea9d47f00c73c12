"""The import direction, torch kept where it belongs, and a traced network priced without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from networks import traced

import costmodel
import planner
from costmodel import footprint

COSTMODEL, PLANNER = Path(costmodel.__file__).parent, Path(planner.__file__).parent

# Modules (a package counts as one) from the bottom up: each imports only what stands on an earlier line.
ORDER = (
    {"errors"},
    {"units", "optimizers", "drawing"},
    {"graph"},
    {"store"},
    {"assignment", "calls"},
    {"rules", "blocks", "rewrite", "derivation", "quick"},
    {"gradients", "workspaces"},
    {"layers"},
    {"methods", "accounting"},
    {"timeline", "traffic", "zoo"},
    {"step", "models"},
    {"footprint", "bulk"},
    {"compare", "tracer", "measure", "plots"},
    {"traces"},
    {"trainable", "reproduce"},
    {"verification"},
    {"__init__", "cli_support"},
    {"cli"},
)
TORCH = {
    "calls", "derivation", "quick", "layers", "zoo", "models", "tracer", "measure", "trainable", "verification",
}  # fmt: skip
PLANNER_TORCH = {"measure", "training", "tasks", "images", "weights"}
# What `planner` may use beside the names that `costmodel` shows.
OPEN_MODULES = {"errors", "units", "cli_support", "drawing"}


def unit(path: Path, package: Path) -> str:
    """Return the module or package directly below `package` that a file belongs to."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def files(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*.py"))


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, package: Path, whole_file: bool) -> Iterator[tuple[str, str]]:
    """Return (absolute module, name) of every import; of those at the top level only, unless `whole_file`.

    What stands under TYPE_CHECKING imports nothing. `name` is empty for `import module`.
    """
    here = [package.name, *path.relative_to(package).with_suffix("").parts]

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if _is_type_checking(child):
                continue
            yield child
            if whole_file or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(child)

    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def costmodel_units(path: Path, package: Path, whole_file: bool = True) -> set[str]:
    """Return the modules of costmodel that a file imports."""
    found = set()
    known = set().union(*ORDER)
    for module, name in imports(path, package, whole_file):
        first, *rest = module.split(".")
        if first == "costmodel":
            found.add(rest[0] if rest else name if name in known else "__init__")
    return found


def test_the_walk_finds_imports_of_every_kind(tmp_path):
    """The reader of this file should trust what the other tests see."""
    package = tmp_path / "costmodel"
    (package / "rules").mkdir(parents=True)
    path = package / "rules" / "new.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import torch.nn as nn\n"
        "from ..graph import Layer\n"
        "from .facts import dense\n"
        "from .. import blocks\n"
        "from costmodel.units import parse_bytes\n"
        "if TYPE_CHECKING:\n    from ..footprint import Footprint\n"
        "def late():\n    from ..tracer import trace\n"
    )
    assert costmodel_units(path, package) == {"graph", "rules", "blocks", "units", "tracer"}
    assert costmodel_units(path, package, whole_file=False) == {"graph", "rules", "blocks", "units"}
    assert ("torch.nn", "") in imports(path, package, False)
    (package / "__init__.py").write_text("from .footprint import footprint\n")
    assert costmodel_units(package / "__init__.py", package) == {"footprint"}


def test_every_module_has_its_place():
    listed = [name for line in ORDER for name in line]
    assert len(listed) == len(set(listed))
    assert set(listed) == {unit(path, COSTMODEL) for path in files(COSTMODEL)}
    assert set(listed) > TORCH


@pytest.mark.parametrize("path", files(COSTMODEL), ids=lambda path: str(path.relative_to(COSTMODEL)))
def test_imports_run_downwards(path):
    own = unit(path, COSTMODEL)
    level = next(i for i, line in enumerate(ORDER) if own in line)
    below = set().union(*ORDER[:level])
    if own == "cli":
        below |= {"__init__"}
    if own == "graph":  # its methods `save` and `load` are the store's functions
        below |= {"store"}
    if own == "__init__":  # what it shows when first asked for is named in a table, not imported
        below |= {"models", "traces", "trainable", "verification"}
    assert costmodel_units(path, COSTMODEL) - {own} <= below


@pytest.mark.parametrize("path", files(COSTMODEL), ids=lambda path: str(path.relative_to(COSTMODEL)))
def test_torch_is_imported_where_it_belongs(path):
    own = unit(path, COSTMODEL)
    libraries = {module.split(".")[0] for module, _ in imports(path, COSTMODEL, whole_file=True)}
    if own not in TORCH:
        assert not libraries & {"torch", "torchvision", "timm", "fvcore"}
        # A module that loads torch is imported by another only when a function needs it.
        assert not costmodel_units(path, COSTMODEL, whole_file=False) & TORCH
    if own != "cli":
        assert "planner" not in libraries


def test_every_module_that_may_import_torch_does():
    """No name stands on the list for nothing."""
    users = {
        unit(path, COSTMODEL)
        for path in files(COSTMODEL)
        if any(module.split(".")[0] == "torch" for module, _ in imports(path, COSTMODEL, whole_file=True))
    }
    assert users == TORCH


@pytest.mark.parametrize("path", files(PLANNER), ids=lambda path: str(path.relative_to(PLANNER)))
def test_planner_uses_what_costmodel_shows(path):
    for module, name in imports(path, PLANNER, whole_file=True):
        first, *rest = module.split(".")
        if first == "costmodel":
            assert (rest and rest[0] in OPEN_MODULES) or (not rest and name in costmodel.__all__), (module, name)
        if first in ("torch", "torchvision", "timm"):
            assert unit(path, PLANNER) in PLANNER_TORCH, module
        if first == "matplotlib":
            assert unit(path, PLANNER) in ("plots", "tasks"), "only plots.py draws; tasks.py reads matplotlib's fonts"


@pytest.mark.parametrize("package", [COSTMODEL, PLANNER], ids=["costmodel", "planner"])
def test_only_command_lines_print(package):
    for path in files(package):
        if unit(path, package) in ("cli", "cli_support", "report"):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path


def test_public_names_exist():
    for name in costmodel.__all__:
        assert getattr(costmodel, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        costmodel.nothing  # noqa: B018


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
    program = "import sys, costmodel, planner, planner.pareto; print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False False\n"
