"""The same training by two accountings: how much, in which layers, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..accounting.eager import WHY
from ..rules.table import operation
from .footprint import Footprint

if TYPE_CHECKING:
    import pandas


def difference(more: Footprint, less: Footprint) -> pandas.DataFrame:
    """Return what only one of two footprints of the same training keeps: rows by operation, largest first.

    Columns: operation, layers (how many differ), first_layer, the bytes that only either book keeps, why.
    """
    import pandas

    each = more.step.precision.activation_bytes
    columns = (f"only_{more.accounting}_bytes", f"only_{less.accounting}_bytes")
    rows: dict[str, dict] = {}
    for column, one, other in ((columns[0], more, less), (columns[1], less, more)):
        for key, saved in one.books.saved.items():
            count = saved.bytes(one.micro_batch, each)
            if not count or (key in other.books.saved and other.books.saved[key].bits == saved.bits):
                continue
            layer = one.graph.layers[min(saved.uses)]
            name = operation(layer, layer.index in one.assignment.frozen_statistics)
            row = rows.setdefault(
                name, {"operation": name, "layers": set(), "first_layer": layer.name, **dict.fromkeys(columns, 0)}
            )
            row["layers"].add(layer.index)
            row[column] += count
    for row in rows.values():
        row.update(layers=len(row["layers"]), why=WHY.get(row["operation"], ""))
    return pandas.DataFrame(
        sorted(rows.values(), key=lambda row: -row[columns[0]]),
        columns=["operation", "layers", "first_layer", *columns, "why"],
    )
