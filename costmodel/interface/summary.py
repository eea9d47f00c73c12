"""A network as a tree of its modules: parameters, FLOPs, and what each keeps for backward in a way of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..answers.footprint import Footprint, footprint
from ..errors import require_count
from ..graph.layer_graph import LayerGraph
from ..methods.way import Options
from ..traces.stored import trace
from ..units import counted, format_bytes, format_count
from .layout import Column, Listing

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult
    from torch import nn

_SUMS = ("parameters", "trained_parameters", "saved_bytes", "forward_flops", "backward_flops")


class _Node:
    """A module or a call: its sums, and what is in it by name."""

    def __init__(self, name: str):
        self.name = name
        self.operation = self.output = ""
        self.sums = dict.fromkeys(_SUMS, 0)
        self.children: dict[str, _Node] = {}

    def add(self, path: list[str], row: dict[str, Any]) -> None:
        """Add a layer's numbers here and along a path below; the last call of a module gives its output."""
        for name in _SUMS:
            self.sums[name] += row[name]
        self.output = row["output"]
        if path:
            self.children.setdefault(path[0], _Node(path[0])).add(path[1:], row)
        else:
            self.operation = row["operation"]


@dataclass(frozen=True)
class Summary:
    """What `costmodel.summary` returns; printing it shows the tree down to `depth` modules."""

    footprint: Footprint
    depth: int = 3

    def to_frame(self) -> pandas.DataFrame:
        """Return a row per module or call, parents before their children.

        Columns: layer (its path), depth, operation (of a single call), output (its shape), parameters,
        trained_parameters, saved_bytes, forward_flops, backward_flops. A parent's numbers are sums.
        """
        import pandas

        rows = [{name: value for name, value in row.items() if name != "lead"} for row in self._rows()]
        return pandas.DataFrame(rows)

    def _rows(self) -> Iterator[dict[str, Any]]:
        root = _Node(self.footprint.graph.model)
        rows = self.footprint.to_frame("layer").to_dict("records")
        for layer, row in zip(self.footprint.graph.layers, rows, strict=True):
            path = layer.module.split(".") if layer.module else []
            alone = layer.name == layer.module  # else the module makes several calls
            root.add(path if alone else [*path, layer.name.removeprefix(f"{layer.module}.")], row)
        yield from self._below(root, "", "", 0)

    def _below(self, node: _Node, path: str, lead: str, depth: int) -> Iterator[dict[str, Any]]:
        """Yield a node's row and those below it. lead: the branches of the tree to the left of its children."""
        own = {"operation": "" if node.children else node.operation, "output": node.output, **node.sums}
        yield {"layer": path or node.name, "depth": depth, "lead": lead, **own}
        children = list(node.children.values()) if depth < self.depth else []
        stem = lead.replace("├─ ", "│  ").replace("└─ ", "   ")
        for child in children:
            branch = "└─ " if child is children[-1] else "├─ "
            yield from self._below(child, f"{path}.{child.name}".lstrip("."), stem + branch, depth + 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the tree."""
        columns = [
            Column("layer"), Column("operation", optional=3), Column("output", optional=1),
            Column("parameters", number=True, optional=4), Column("trained", number=True, optional=2),
            Column("kept", number=True),
            Column("forward", number=True), Column("backward", number=True),
        ]  # fmt: skip
        rows = []
        for row in self._rows():
            name = row["layer"].rpartition(".")[2] if row["depth"] else row["layer"].rpartition(":")[2]
            counts = (row[name] for name in ("parameters", "trained_parameters"))
            flops = (row[name] for name in ("forward_flops", "backward_flops"))
            rows.append((
                row["lead"] + name, row["operation"] if row["operation"] != name else "", row["output"],
                *(format_count(count) if count else "-" for count in counts),
                format_bytes(row["saved_bytes"]) if row["saved_bytes"] else "-",
                *(format_count(count) if count else "-" for count in flops),
            ))  # fmt: skip
        step = self.footprint.step
        yield Listing(columns, rows, f"{step.graph.model}, {step.way.description}, {step.label}", bold=frozenset({0}))
        yield (
            f"kept: bytes saved for backward; forward, backward: FLOPs of a step of {counted(step.batch, 'image')}; "
            f"peak of the step: {format_bytes(self.footprint.peak_bytes)}"
        )

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        out = StringIO()
        Console(file=out, width=120, markup=False, emoji=False, highlight=False).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    __repr__ = __str__


def summary(
    model: str | nn.Module | LayerGraph,
    method: str | None = None,
    blocks: int | None = None,
    batch: int = 8,
    resolution: int = 224,
    classes: int | None = None,
    *,
    optimizer: str = "sgd",
    accounting: str = "lean",
    options: Options | None = None,
    depth: int = 3,
) -> Summary:
    """Return a network as a tree: parameters, FLOPs, and what each layer keeps for backward in a way of training.

    model: a name, a module, or its trace. resolution, classes: of the trace, if it is not one already. depth: how many
    levels of modules are shown. The rest is as in `footprint`; a method that is not given is `full`.

        print(costmodel.summary("torchvision:mobilenet_v2", "bias"))

    Errors: those of `trace` and `footprint`.
    """
    require_count("depth", depth)
    graph = model if isinstance(model, LayerGraph) else trace(model, resolution, classes)
    return Summary(footprint(graph, method, blocks, batch, optimizer, accounting, options=options), depth)
