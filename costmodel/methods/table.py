"""The methods by name, and what a way of training does with a network.

To add a method write it in a file of its own and a line here, or call `costmodel.register_method`. Every entry runs
through the same battery of tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ..errors import InputError, unknown
from ..graph.layer_graph import LayerGraph
from ..rules.table import operation
from ..table import Table
from ..units import counted
from .assignment import Assignment
from .last_convolutions import GRADIENT_FILTER, LAST_CONVS
from .lora import LORA
from .method import Method, Option, Training, batch_norms
from .sparse import BACK_RAZOR, SPARSE_UPDATE
from .tinytl import TINYTL_B, TINYTL_L, TINYTL_LB
from .top_blocks import BLOCKS, MOBILETL
from .way import CUSTOM, Options, OptionValue, ShortWay, Way
from .whole_network import BIAS, FULL, LAST, NORM

METHODS: Table[Method] = Table("method", (
    (method.name, method)
    for method in (
        FULL, LAST, NORM, BIAS, BLOCKS, MOBILETL, TINYTL_B, TINYTL_L, TINYTL_LB,
        LORA, LAST_CONVS, GRADIENT_FILTER, SPARSE_UPDATE, BACK_RAZOR,
    )
))  # fmt: skip

Trained = Callable[[str], bool] | Iterable[str]

NORM_STATISTICS = "norm_statistics"
OWN, RUNNING = "own", "running"


def _norm_statistics(value: object) -> str:
    if value not in (OWN, RUNNING):
        raise ValueError(f"it must be {OWN} (as the method has them) or {RUNNING}")
    return str(value)


# Options of every method; a way names them only where they are not at their default.
COMMON_OPTIONS: Table[Option] = Table("option", {
    NORM_STATISTICS: Option(
        NORM_STATISTICS, f"{RUNNING}: every batch norm uses its running statistics", OWN, _norm_statistics
    ),
})  # fmt: skip


def anchor(end: str) -> Way:
    """Return the way that is an end of the scale of recovery: 'last' (0) or 'full' (1)."""
    return next(Way(method.name) for method in METHODS.values() if method.anchor == end)


def register_method(method: Method) -> Method:
    """Add a method of your own to `METHODS`, and return it.

    >>> import costmodel
    >>> from costmodel.methods.method import Method, parameters_of
    >>> def classifier_bias(graph, blocks, chosen):
    ...     head = graph.layers[costmodel.parts(graph).head]
    ...     return graph, costmodel.Assignment(frozenset(parameters_of(graph, [head], ("bias",))))
    >>> _ = costmodel.register_method(Method("head-bias", "the head's bias trains", "an example", classifier_bias))
    >>> costmodel.footprint(costmodel.trace("torchvision:mobilenet_v2"), "head-bias").trained_parameters
    1000

    Errors: InputError if the name is taken.
    """
    METHODS.add(method.name, method)
    return method


def way(method: str | None = None, blocks: int | None = None, options: Options | None = None) -> Way:
    """Return a way of training, checked as far as that can be done without the network.

    method: a name in `METHODS` (default: full). blocks: how many of the last blocks train, for a method with a depth.
    options: values or texts by name, such as {"patch": 4}.

    Errors: InputError for a method, depth or option that does not exist or does not fit.
    """
    found = METHODS.find(method or "full")
    if not found.takes_blocks and blocks is not None:
        raise InputError(f"method {found.name!r} takes no number of blocks, but {blocks} was given; leave it out")
    if found.takes_blocks and blocks is not None and (not isinstance(blocks, int) or isinstance(blocks, bool)):
        raise InputError(f"blocks must be a whole number of 1 or more, not {blocks!r}")
    return Way(found.name, blocks, _chosen(found, options or {}))


def _chosen(method: Method, given: Options) -> tuple[tuple[str, OptionValue], ...]:
    if not given and not method.options:
        return ()
    own = {option.name: option for option in method.options}
    known = {**COMMON_OPTIONS, **own}
    for name in given:
        if name not in known:
            raise unknown(f"option of method {method.name!r}", name, known)
    chosen = {name: option.default for name, option in own.items()}
    for name, value in given.items():
        try:
            chosen[name] = known[name].read(value)
        except ValueError as error:
            raise InputError(f"option {name} of method {method.name!r} is {value!r}; {error}") from None
    return tuple(sorted((n, value) for n, value in chosen.items() if n in own or value != known[n].default))


def values_per_norm(graph: LayerGraph, way: Way) -> int | None:
    """Return of how many numbers of one image the batch norms of a way take each mean and deviation, at the least.

    Of those with the batch's statistics; None if there are none. With a batch of one image and 1, a network cannot
    train: of one number there is no deviation.

    Errors: those of `assign`.
    """
    trains, assignment = assign(graph, way)
    seen = [
        layer.input.elements // layer.input.shape[1]
        for layer in trains.layers
        if operation(layer, layer.index in assignment.frozen_statistics) == "batch_norm" and layer.input.batched
    ]
    return min(seen, default=None)


def way_of(
    graph: LayerGraph,
    method: str | None = None,
    blocks: int | None = None,
    options: Options | None = None,
    trained: Trained | None = None,
) -> Way:
    """Return the way that is meant by a method with its depth and options, or by the parameters that train.

    trained: which parameters train: their names, or a function of the name. All batch norms use the batch's statistics
    then, as after a plain `model.train()`.

    Errors: InputError for names, depths or combinations that do not exist.
    """
    if trained is None:
        return way(method, blocks, options)
    if method is not None or blocks is not None or options:
        raise InputError("give either method (with blocks or options) or trained, not both")
    if callable(trained):
        return Way(CUSTOM, trained=frozenset(filter(trained, graph.parameters)))
    names = frozenset([trained] if isinstance(trained, str) else trained)
    for missing in sorted(names - graph.parameters.keys()):
        raise unknown(f"parameter of {graph.model}", missing, graph.parameters)
    return Way(CUSTOM, trained=names)


def as_way(given: ShortWay) -> Way:
    """Return the way that is meant by a method's name, a (method, depth) pair, or a way. Errors: those of `way`."""
    if isinstance(given, Way):
        return given
    return way(given) if isinstance(given, str) else way(*given)


def way_from(saved: dict[str, Any]) -> Way:
    """Return the way that `Way.to_dict` wrote. Errors: those of `way`."""
    if saved.get("trained") is not None:
        return Way(CUSTOM, trained=frozenset(saved["trained"]))
    return way(saved["method"], saved.get("blocks"), saved.get("options"))


def assign(graph: LayerGraph, way: Way) -> Training:
    """Return the graph that a way trains, and what is done with it.

    Errors: InputError where the network lacks what the method needs, or has fewer blocks.
    """
    if way.trained is not None:
        return graph, Assignment(way.trained)
    method = METHODS.find(way.method)
    if lacking := method.why_not(graph):
        others = (each for each in METHODS.values() if not (each.min_blocks or each.options or each.converts))
        raise InputError(
            f"method {method.name!r} cannot train {graph.model}: {lacking}; "
            f"methods that need nothing of a network: {', '.join(each.name for each in others)}"
        )
    if method.takes_blocks:
        count = len(method.depths(graph))
        if way.blocks is None:
            raise InputError(f"method {method.name!r} needs a number of trained blocks from 1 to {count} (--blocks)")
        if not 1 <= way.blocks <= count:
            raise InputError(
                f"{graph.model} has {counted(count, 'block')}, so blocks must be from 1 to {count}, not {way.blocks}"
            )
    chosen = {option.name: option.default for option in (*COMMON_OPTIONS.values(), *method.options)} | dict(way.options)
    trains, assignment = method.assign(graph, way.blocks, chosen)
    if chosen[NORM_STATISTICS] == RUNNING:
        assignment = replace(assignment, frozen_statistics=frozenset(batch_norms(trains)))
    return trains, assignment
