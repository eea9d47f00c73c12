"""The space to choose from: every way of fine-tuning one or more networks, with its cost and expected accuracy.

The axes are network, method, depth, batch, micro-batch, resolution, optimizer and the precision of frozen weights; each
is one value or several. Prices come in bulk from `costmodel.price`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from costmodel import METHODS, InputError, LayerGraph, block_count, price, trace

from ..devices.device import Device
from ..estimates.accuracy import Estimate, Setting, estimate
from ..evidence.rows import Row, published

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")
OneOrMore = T | Iterable[T]


@dataclass(frozen=True)
class Axes:
    """The values of each axis.

    methods: names; None takes all that have no option beside a depth, which are not searched. blocks: depths, those
    that a network has of them; None takes all. batches: images per update. micro_batches: images per pass; None is the
    whole batch; those that do not divide the batch are left out. evidence, dataset: the user's own accuracies, and
    which of their data sets it is about (see `estimate`). device: whose roofline time a step takes.
    """

    methods: tuple[str, ...] | None = None
    blocks: tuple[int, ...] | None = None
    batches: tuple[int, ...] = (8,)
    micro_batches: tuple[int | None, ...] = (None,)
    optimizers: tuple[str, ...] = ("sgd",)
    frozen_dtypes: tuple[str, ...] = ("float32",)
    accounting: str = "lean"
    evidence: tuple[Row, ...] = ()
    dataset: str | None = None
    device: Device | None = None

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The (batch, micro-batch) pairs that go.

        Errors: InputError if there are none, or a number is no whole number of 1 or more.
        """
        for name, values in (("batch", self.batches), ("micro_batch", self.micro_batches), ("blocks", self.blocks)):
            for value in values or ():
                if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                    raise InputError(f"{name} must be a whole number of 1 or more, not {value!r}")
        pairs = [
            (batch, batch if micro is None else micro)
            for batch in self.batches
            for micro in self.micro_batches
            if micro is None or batch % micro == 0
        ]
        if not pairs:
            given = ", ".join(map(str, self.micro_batches))
            raise InputError(f"no micro-batch of {given} divides a batch of {', '.join(map(str, self.batches))}")
        return list(dict.fromkeys(pairs))

    def ways(self, graph: LayerGraph) -> list[tuple[str, int | None]]:
        """Return the (method, depth) pairs that apply to a network.

        Errors: InputError for an unknown method.
        """
        count = block_count(graph)
        names = self.methods
        if names is None:
            names = tuple(name for name, method in METHODS.items() if not method.options)
        for name in set(names) - METHODS.keys():
            raise InputError(f"unknown method {name!r}; the methods are {', '.join(METHODS)}")
        depths = range(1, count + 1) if self.blocks is None else [k for k in self.blocks if k <= count]
        return [
            (name, k)
            for name in dict.fromkeys(names)
            if METHODS[name].applies(graph)
            for k in (depths if METHODS[name].takes_blocks else (None,))
        ]


def axes(
    methods: OneOrMore[str] | None = None,
    blocks: OneOrMore[int] | None = None,
    batch: OneOrMore[int] = 8,
    micro_batch: OneOrMore[int] | None = None,
    optimizer: OneOrMore[str] = "sgd",
    frozen_dtype: OneOrMore[str] = "float32",
    accounting: str = "lean",
    evidence: Sequence[Row] = (),
    dataset: str | None = None,
    device: Device | None = None,
) -> Axes:
    """Return the axes, each given as one value, a list or a range."""
    return Axes(
        None if methods is None else several(methods),
        None if blocks is None else several(blocks),
        several(batch),
        several(micro_batch),
        several(optimizer),
        several(frozen_dtype),
        accounting,
        tuple(evidence),
        dataset,
        device,
    )


def several(given: OneOrMore[T]) -> tuple[T, ...]:
    """Return one value or an iterable of values as a tuple, each once.

    Errors: InputError if there is none.
    """
    values = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(dict.fromkeys(given))
    if not values:
        raise InputError("an axis has no value; give one or more, or leave it out")
    return values


@dataclass(frozen=True)
class Candidate:
    """One way to fine-tune one network, priced: `peak_bytes` of memory in one step and FLOPs of one step.

    `blocks` is None for a method without a depth. `memory_bytes` are the peak's parts by name, `peak` their sum.
    """

    model: str
    method: str
    blocks: int | None
    batch: int
    micro_batch: int
    resolution: int
    classes: int
    optimizer: str
    frozen_dtype: str
    accounting: str
    peak_bytes: int
    saved_bytes: int
    memory_bytes: dict[str, int]
    peak_layer: str
    peak_phase: str
    forward_flops: int
    backward_flops: int
    total_flops: int
    trained_parameters: int
    recovery: Estimate
    moved_bytes: int = 0
    step_seconds: float | None = None

    @property
    def flash_bytes(self) -> int:
        """Bytes of weights and buffers as they are stored."""
        return self.memory_bytes["weights"] + self.memory_bytes["buffers"]

    @property
    def label(self) -> str:
        """The method and its depth, such as 'mobiletl, k = 5'."""
        return self.method if self.blocks is None else f"{self.method}, k = {self.blocks}"

    def to_dict(self) -> dict:
        """Return the fields by name, the estimate as a mapping."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**own, "memory_bytes": dict(self.memory_bytes), "recovery": self.recovery.to_dict()}


_PARTS = ("weights", "buffers", "input", "saved_activations", "gradients", "optimizer", "transient")


@dataclass(frozen=True)
class _Table:
    """The candidates of one network: prices in columns, and what their indices count."""

    graph: LayerGraph
    space: Axes
    ways: list[tuple[str, int | None]]
    pairs: list[tuple[int, int]]
    columns: dict[str, np.ndarray]
    places: tuple[tuple[str, str], ...]
    estimates: dict[tuple[int, int], Estimate]

    def rows(self) -> Iterator[Candidate]:
        """Yield the candidates one by one."""
        names = list(self.columns)
        graph, space = self.graph, self.space
        for values in zip(*(column.tolist() for column in self.columns.values()), strict=True):
            row = dict(zip(names, values, strict=True))
            method, blocks = self.ways[row["way"]]
            batch, micro_batch = self.pairs[row["batches"]]
            phase, layer = self.places[row["place"]]
            memory = {part: row[f"{part}_bytes"] for part in _PARTS} | {"peak": row["peak_bytes"]}
            yield Candidate(
                graph.model, method, blocks, batch, micro_batch, graph.resolution, graph.classes,
                space.optimizers[row["optimizer"]], space.frozen_dtypes[row["frozen_dtype"]], space.accounting,
                row["peak_bytes"], row["saved_bytes"], memory, layer, phase,
                row["forward_flops"], row["backward_flops"], row["total_flops"], row["trained_parameters"],
                self.estimates[row["way"], batch], row["moved_bytes"], row.get("step_seconds"),
            )  # fmt: skip

    def frame(self) -> pandas.DataFrame:
        """Return the candidates as rows, the texts as categories."""
        import pandas

        columns, graph = self.columns, self.graph

        def texts(values: Sequence[str | None], index: np.ndarray) -> pandas.Categorical:
            kinds = [value for value in dict.fromkeys(values) if value is not None]
            codes = np.array([-1 if value is None else kinds.index(value) for value in values])
            return pandas.Categorical.from_codes(codes[index], categories=kinds)

        def same(value: str) -> pandas.Categorical:
            return texts([value], np.zeros(len(columns["way"]), int))

        way, pair = columns["way"], columns["batches"]
        batches, micro = np.array(self.pairs).T
        depths = pandas.array([k for _, k in self.ways], dtype="Int64")
        guesses = [[self.estimates[number, batch] for batch, _ in self.pairs] for number in range(len(self.ways))]
        flat = [guess for row in guesses for guess in row]
        guess = way * len(self.pairs) + pair
        frame = {
            "model": same(graph.model),
            "method": texts([method for method, _ in self.ways], way),
            "blocks": depths.take(way),
            "batch": batches[pair],
            "micro_batch": micro[pair],
            "resolution": graph.resolution,
            "classes": graph.classes,
            "optimizer": texts(self.space.optimizers, columns["optimizer"]),
            "frozen_dtype": texts(self.space.frozen_dtypes, columns["frozen_dtype"]),
            "accounting": same(self.space.accounting),
            **{name: columns[name] for name in ("peak_bytes", "saved_bytes")},
            **{f"{part}_bytes": columns[f"{part}_bytes"] for part in _PARTS},
            "peak_layer": texts([layer for _, layer in self.places], columns["place"]),
            "peak_phase": texts([phase for phase, _ in self.places], columns["place"]),
            **{
                name: columns[name]
                for name in (
                    "forward_flops",
                    "backward_flops",
                    "total_flops",
                    "trained_parameters",
                    "moved_bytes",
                    *(["step_seconds"] if "step_seconds" in columns else []),
                )
            },
        }
        for field in Estimate.reported():
            name = _column(field)
            values = [getattr(each, field) for each in flat]
            numeric = all(value is None or isinstance(value, float) for value in values)
            frame[name] = np.array(values, float)[guess] if numeric else texts(values, guess)
        return pandas.DataFrame(frame)


def _tables(graphs: Iterable[LayerGraph], space: Axes) -> Iterator[_Table]:
    graphs, empty = list(graphs), True
    for graph in graphs:
        ways, pairs = space.ways(graph), space.pairs
        if not ways:
            continue
        empty = False
        columns, places = price(graph, ways, pairs, space.optimizers, space.frozen_dtypes, space.accounting)
        if space.device is not None:
            columns["step_seconds"] = space.device.step_seconds(columns["total_flops"], columns["moved_bytes"])
        converted = set(columns["way"][columns["converted"] == 1].tolist())
        yield _Table(graph, space, ways, pairs, columns, places, _estimates(graph, space, ways, converted))
    if empty:
        for graph, name in itertools.product(graphs, space.methods or ()):
            if not METHODS[name].applies(graph):
                METHODS[name](graph, 1 if METHODS[name].takes_blocks else None)  # an error that says what it lacks
        raise InputError(f"no network has blocks for {', '.join(space.methods or METHODS)} at the depths asked for")


def _estimates(
    graph: LayerGraph, space: Axes, ways: Sequence[tuple[str, int | None]], converted: set[int]
) -> dict[tuple[int, int], Estimate]:
    """Return what to expect of each way (by its number) at each batch."""
    count = block_count(graph)
    has_norm = any(layer.op.endswith("_norm") for layer in graph.layers)
    told_apart = {row.batch for row in (*published(), *space.evidence)}
    found = {}
    for number, (method, k) in enumerate(ways):
        known: dict[int | None, Estimate] = {}
        for batch in space.batches:
            stated = batch if batch in told_apart else None
            if stated not in known:
                setting = Setting(graph.model, graph.resolution, stated, count, has_norm, number in converted)
                known[stated] = estimate(method, k, setting, own=space.evidence, dataset=space.dataset)
            found[number, batch] = known[stated]
    return found


def candidates(
    models: str | Sequence[str],
    batch: OneOrMore[int] = 8,
    optimizer: OneOrMore[str] = "sgd",
    resolution: OneOrMore[int] = 224,
    classes: int | None = None,
    accounting: str = "lean",
    **more,
) -> list[Candidate]:
    """Return every method at every depth of every model, priced.

    models: one or a list of what `costmodel.trace` takes. classes: the number the head is made for; the model's own if
    None. more: the other axes, as in `axes`. Every axis is one value, a list or a range.

    Errors: those of `costmodel.trace` and `costmodel.footprint`.
    """
    space = axes(batch=batch, optimizer=optimizer, accounting=accounting, **more)
    return price_all(trace_all(models, resolution, classes), space)


def price_all(graphs: Iterable[LayerGraph], space: Axes) -> list[Candidate]:
    """Return every candidate of traced networks. Errors: those of `costmodel.footprint`."""
    return [candidate for table in _tables(graphs, space) for candidate in table.rows()]


def sweep(graphs: Iterable[LayerGraph], space: Axes) -> pandas.DataFrame:
    """Return every candidate of traced networks as a row: the columns of `to_frame`, priced in bulk.

    Errors: those of `costmodel.footprint`.
    """
    import pandas
    from pandas.api.types import union_categoricals

    frames = [table.frame() for table in _tables(graphs, space)]
    if len(frames) == 1:
        return frames[0]
    columns = {}
    for name, dtype in frames[0].dtypes.items():
        parts = [frame[name] for frame in frames]
        is_text = isinstance(dtype, pandas.CategoricalDtype)
        columns[name] = union_categoricals(parts) if is_text else pandas.concat(parts, ignore_index=True)
    return pandas.DataFrame(columns)


def trace_all(
    models: str | Sequence[str], resolution: OneOrMore[int] = 224, classes: int | None = None
) -> list[LayerGraph]:
    """Return the layer graph of each model at each resolution; one that is named twice, in two ways even, appears once.

    Errors: InputError if there is no model; those of `costmodel.trace`.
    """
    given = list(models) if isinstance(models, list | tuple) else [models]
    if not given:
        raise InputError("no model was given; name one or more, such as torchvision:mobilenet_v2")
    graphs = [
        trace(model, resolution=pixels, classes=classes)
        for model in dict.fromkeys(given)
        for pixels in several(resolution)
    ]
    return list({(graph.model, graph.resolution): graph for graph in graphs}.values())


def _column(field: str) -> str:
    """Return what a field of an estimate is called in a frame."""
    return "recovery" if field == "value" else field if field.startswith("accuracy_") else f"recovery_{field}"


def write_frame(frame: pandas.DataFrame, path: str | Path) -> None:
    """Write a frame to a .csv or .parquet file.

    Errors: InputError for another kind of file, one that cannot be written, or if a package is missing.
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
        raise InputError(
            "a .parquet file needs pyarrow: pip install 'finetune-planner[parquet]', or write a .csv"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def to_frame(priced: Sequence[Candidate]) -> pandas.DataFrame:
    """Return one row per candidate: its fields, `memory_bytes` as `<part>_bytes`, the estimate as `recovery...`."""
    import pandas

    rows = []
    for candidate in priced:
        row = candidate.to_dict()
        parts, guess = row.pop("memory_bytes"), row.pop("recovery")
        row.update({f"{part}_bytes": size for part, size in parts.items()})
        row.update({_column(key): part for key, part in guess.items()})
        rows.append(row)
    frame = pandas.DataFrame(rows)
    numbers = ["recovery", "recovery_low", "recovery_high"]
    numbers += ["accuracy_percent", "accuracy_low_percent", "accuracy_high_percent"]
    return frame.astype({"blocks": "Int64", **dict.fromkeys(numbers, float)})
