"""The space to choose from: every method and depth of one or more networks, with its cost and expected accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from costmodel import METHODS, InputError, LayerGraph, block_count, footprint, trace

from .accuracy import Estimate, Setting, estimate

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Candidate:
    """One way to fine-tune one network, priced: `peak_bytes` of memory in one step and FLOPs of one step.

    `blocks` is None for a method without a depth. `memory_bytes` are the peak's parts by name, `peak` their sum.
    """

    model: str
    method: str
    blocks: int | None
    batch: int
    resolution: int
    classes: int
    optimizer: str
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

    @property
    def label(self) -> str:
        """The method and its depth, such as 'mobiletl, k = 5'."""
        return self.method if self.blocks is None else f"{self.method}, k = {self.blocks}"

    def to_dict(self) -> dict:
        """Return the fields by name, the estimate as a mapping."""
        return asdict(self)


def candidates(
    models: str | Sequence[str],
    batch: int = 8,
    optimizer: str = "sgd",
    resolution: int = 224,
    classes: int | None = None,
    accounting: str = "lean",
) -> list[Candidate]:
    """Return every method at every depth of every model, priced.

    models: one or a list of what `costmodel.trace` takes. classes: the number the head is made for; the model's own if
    None. A method is left out for a network that has fewer blocks than it needs, and altogether if it
    has options beside a depth: those are not searched.

    Errors: those of `costmodel.trace` and `costmodel.footprint`.
    """
    return price(trace_all(models, resolution, classes), batch, optimizer, accounting)


def trace_all(models: str | Sequence[str], resolution: int = 224, classes: int | None = None) -> list[LayerGraph]:
    """Return the layer graph of each model; one that is named twice, be it in two ways, appears once.

    Errors: InputError if there is no model; those of `costmodel.trace`.
    """
    given = list(models) if isinstance(models, list | tuple) else [models]
    if not given:
        raise InputError("no model was given; name one or more, such as torchvision:mobilenet_v2")
    graphs = [trace(model, resolution=resolution, classes=classes) for model in dict.fromkeys(given)]
    return list({graph.model: graph for graph in graphs}.values())


def price(
    graphs: Sequence[LayerGraph], batch: int = 8, optimizer: str = "sgd", accounting: str = "lean"
) -> list[Candidate]:
    """Return every method at every depth of traced networks, priced. Errors: those of `costmodel.footprint`."""
    return [candidate for graph in graphs for candidate in _of_graph(graph, batch, optimizer, accounting)]


def _of_graph(graph: LayerGraph, batch: int, optimizer: str, accounting: str) -> Iterator[Candidate]:
    count = block_count(graph)
    has_norm = any(layer.op.endswith("_norm") for layer in graph.layers)
    for name, method in METHODS.items():
        if count < method.min_blocks or method.options:
            continue
        for k in range(1, count + 1) if method.takes_blocks else (None,):
            cost = footprint(graph, name, k, batch, optimizer, accounting)
            converted = any(layer.in_place_of for layer in cost.graph.layers)
            setting = Setting(graph.model, graph.resolution, batch, count, has_norm, converted)
            yield Candidate(
                graph.model,
                name,
                k,
                batch,
                graph.resolution,
                graph.classes,
                optimizer,
                accounting,
                cost.peak_bytes,
                cost.saved_bytes,
                dict(cost.memory_bytes),
                cost.peak.layer,
                cost.peak.phase,
                cost.forward_flops,
                cost.backward_flops,
                cost.total_flops,
                cost.trained_parameters,
                estimate(name, k, setting),
            )


def to_frame(priced: Sequence[Candidate]) -> pandas.DataFrame:
    """Return one row per candidate: its fields, `memory_bytes` as `<part>_bytes`, the estimate as `recovery...`."""
    import pandas

    rows = []
    for candidate in priced:
        row = candidate.to_dict()
        parts, guess = row.pop("memory_bytes"), row.pop("recovery")
        row.update({f"{part}_bytes": size for part, size in parts.items()})
        row["recovery"] = guess.pop("value")
        row.update({key if key.startswith("accuracy_") else f"recovery_{key}": part for key, part in guess.items()})
        rows.append(row)
    frame = pandas.DataFrame(rows)
    numbers = ["recovery", "recovery_low", "recovery_high"]
    numbers += ["accuracy_percent", "accuracy_low_percent", "accuracy_high_percent"]
    return frame.astype({"blocks": "Int64", **dict.fromkeys(numbers, float)})
