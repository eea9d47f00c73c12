"""Candidates as rows of a table: of a few, or of hundreds of thousands that are never made one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from costmodel import InputError, LayerGraph
from costmodel.errors import needs

from ..estimates.estimated import Estimate
from .axes import Axes
from .candidate import Candidate
from .candidates import Priced, priced_tables

if TYPE_CHECKING:
    import pandas


def sweep(graphs: Iterable[LayerGraph], space: Axes) -> pandas.DataFrame:
    """Return every candidate of traced networks as a row: the columns of `to_frame`, priced in bulk.

    Errors: those of `costmodel.footprint`.
    """
    import pandas
    from pandas.api.types import union_categoricals

    frames = [_frame(table) for table in priced_tables(graphs, space)]
    if len(frames) == 1:
        return frames[0]
    columns = {}
    for name, dtype in frames[0].dtypes.items():
        parts = [cast("pandas.Series", frame[name]) for frame in frames]
        is_text = isinstance(dtype, pandas.CategoricalDtype)
        columns[name] = union_categoricals(parts) if is_text else pandas.concat(parts, ignore_index=True)
    return pandas.DataFrame(columns)


def _frame(table: Priced) -> pandas.DataFrame:
    """Return the candidates of a network as rows, the texts as categories."""
    import pandas

    columns, graph, space = table.prices.columns, table.graph, table.space

    def texts(values: Sequence[str | None], index: np.ndarray) -> pandas.Categorical:
        kinds = [value for value in dict.fromkeys(values) if value is not None]
        codes = np.array([-1 if value is None else kinds.index(value) for value in values])
        return pandas.Categorical.from_codes(codes[index], categories=kinds)

    def same(value: str) -> pandas.Categorical:
        return texts([value], np.zeros(len(columns["way"]), int))

    way, place = columns["way"], columns["batches"]
    batches = np.array([batch for batch, _ in table.carried])
    micro = np.array([schedule.images_per_pass(batch) for batch, schedule in table.carried])
    depths = pandas.array([each.blocks for each in table.ways], dtype="Int64")
    of_each = [table.estimates[w, b] for w in range(len(table.ways)) for b in range(len(table.carried))]
    expected = {id(each): each for each in of_each}  # most batches share one
    number = {key: number for number, key in enumerate(expected)}
    which = np.array([number[id(each)] for each in of_each])[way * len(table.carried) + place]
    why = [table.cannot_train.get((w, b), "") for w in range(len(table.ways)) for b in range(len(table.carried))]
    reasons = list(dict.fromkeys(why))
    frame: dict[str, Any] = {
        "model": same(graph.model),
        "method": texts([each.method for each in table.ways], way),
        "blocks": depths.take(way),
        "options": texts([_options(each.to_dict()) for each in table.ways], way),
        "batch": batches[place],
        "micro_batch": micro[place],
        "resolution": graph.resolution,
        "classes": graph.classes,
        "optimizer": texts(space.optimizers, columns["optimizer"]),
        "frozen_dtype": texts([precision.frozen for precision in space.precisions], columns["precision"]),
        "accounting": same(space.accounting),
        **{name: columns[name] for name in ("peak_bytes", "saved_bytes")},
        **{f"{part}_bytes": columns[f"{part}_bytes"] for part in table.prices.categories},
        "peak_layer": texts([layer for _, layer in table.prices.places], columns["place"]),
        "peak_phase": texts([phase for phase, _ in table.prices.places], columns["place"]),
        **{name: columns[name] for name in ("forward_flops", "backward_flops", "total_flops", "trained_parameters",
                                            "moved_bytes")},
        "cannot_train": texts(reasons, np.array(list(map(reasons.index, why)))[way * len(table.carried) + place]),
        **({} if table.step_seconds is None else {"step_seconds": table.step_seconds}),
    }  # fmt: skip
    for field in Estimate.reported():
        values = [getattr(each, field) for each in expected.values()]
        numeric = all(value is None or isinstance(value, float) for value in values)
        frame[_column(field)] = np.array(values, float)[which] if numeric else texts(values, which)
    return pandas.DataFrame(frame)


def _options(way: dict[str, Any]) -> str:
    """Return a way's options as text, such as 'convolutions=2 patch=4'."""
    return " ".join(f"{name}={value}" for name, value in way.get("options", {}).items())


def _column(field: str) -> str:
    """Return what a field of an estimate is called in a frame."""
    return "recovery" if field == "value" else field if field.startswith("accuracy_") else f"recovery_{field}"


def to_frame(priced: Sequence[Candidate]) -> pandas.DataFrame:
    """Return one row per candidate: its fields, `memory_bytes` as `<part>_bytes`, the estimate as `recovery...`."""
    import pandas

    rows = []
    for candidate in priced:
        row = candidate.to_dict()
        parts, guess = row.pop("memory_bytes"), row.pop("recovery")
        row["options"] = _options(row)
        row.update({f"{part}_bytes": size for part, size in parts.items()})
        row.update({_column(key): part for key, part in guess.items()})
        rows.append(row)
    frame = pandas.DataFrame(rows)
    numbers = ["recovery", "recovery_low", "recovery_high"]
    numbers += ["accuracy_percent", "accuracy_low_percent", "accuracy_high_percent"]
    numbers += ["recovery_typical_percent", "recovery_expected_percent"]
    return frame.astype({"blocks": "Int64", **dict.fromkeys(numbers, float)})


def write_frame(frame: pandas.DataFrame, path: str | Path) -> None:
    """Write a frame to a .csv or .parquet file.

    Errors: InputError for another kind of file, one that cannot be written; MissingPackageError without pyarrow.
    """
    suffix = Path(path).suffix
    if suffix not in (".csv", ".parquet"):
        raise InputError(f"cannot write candidates to {str(path)!r}; its name must end in .csv or .parquet")
    try:
        if suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path, index=False)
    except ImportError as error:
        raise needs("pyarrow", "a .parquet file") from error
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
