"""Rewrites of a recorded graph that change nothing of what it computes: fewer copies, updates as early as can be.

The graph is functional: no node writes what another one reads, so a copy is as good as what it was made of.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_COPIES = (
    _aten.clone.default, _aten.alias.default, _aten.detach.default, _aten.lift_fresh_copy.default,
)  # fmt: skip
_TRANSPOSED = (_aten.t.default, _aten.permute.default, _aten.transpose.int)


def simplify(graph: fx.Graph) -> None:
    """Take out copies and sums with zeros; write products with a transposed weight as linear maps, cuts as such.

    A call in place gives its input, as it was before, a gradient of zeros; a linear map copies no weight; the gradient
    of padding is padding by negative numbers, for which the runtime has no kernel.
    """
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _COPIES and _alike(node, node.args[0]):
            _become(node, node.args[0])
        elif node.target is _aten.copy.default and _alike(node, node.args[1]):
            _become(node, node.args[1])
        elif node.target is _aten.add.Tensor and (other := _added_to_zeros(node)) and _alike(node, other):
            _become(node, other)
        elif node.target in _TRANSPOSED and (original := _transposed_back(node)) and _alike(node, original):
            _become(node, original)
        elif node.target in (_aten.mm.default, _aten.addmm.default):
            _make_linear(graph, node)
        elif node.target is _aten.constant_pad_nd.default and max(node.args[1]) <= 0:
            _make_cut(graph, node)
    graph.eliminate_dead_code()


def _alike(node: fx.Node, other: object) -> bool:
    """Whether both are tensors of one shape, kind and memory order; a result stays a copy of what is given."""
    if not isinstance(other, fx.Node):
        return False
    if other.op == "placeholder" and any(user.op == "output" for user in node.users):
        return False
    one, two = node.meta.get("val"), other.meta.get("val")
    return (
        isinstance(one, Tensor) and isinstance(two, Tensor)
        and (one.shape, one.dtype, one.stride()) == (two.shape, two.dtype, two.stride())
    )  # fmt: skip


def _added_to_zeros(node: fx.Node) -> fx.Node | None:
    """Return what a sum adds to zeros, if it does."""
    one, two = node.args
    if node.kwargs.get("alpha", 1) != 1 or not isinstance(one, fx.Node) or not isinstance(two, fx.Node):
        return None
    return two if _is_zeros(one) else one if _is_zeros(two) else None


def _is_zeros(node: fx.Node) -> bool:
    return node.target in (_aten.full.default, _aten.full_like.default) and node.args[1] in (0, 0.0)


def _transposed_back(node: fx.Node) -> fx.Node | None:
    """Return what was transposed twice, in the second call back to what it was; else None.

    A runtime without views copies the matrix each time: going back through a linear map its weight, and its gradient.
    """
    given = node.args[0]
    if not isinstance(given, fx.Node) or given.target not in _TRANSPOSED or not isinstance(given.args[0], fx.Node):
        return None
    first, second = _order(given), _order(node)
    return given.args[0] if [first[place] for place in second] == sorted(first) else None


def _order(node: fx.Node) -> list[int]:
    """Return the dimensions of what a call transposes, in the order of its result."""
    arguments: Any = node.args
    dims = arguments[0].meta["val"].dim()
    order = list(range(dims))
    if node.target is _aten.permute.default:
        return [place % dims for place in arguments[1]]
    one, other = (0, dims - 1) if node.target is _aten.t.default else (arguments[1], arguments[2])
    order[one], order[other] = order[other], order[one]
    return order


def _become(node: fx.Node, other: fx.Node) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _make_linear(graph: fx.Graph, node: fx.Node) -> None:
    arguments: Any = node.args  # torch's type leaves open which are nodes
    *bias, given, transposed = arguments[:3]
    if not isinstance(transposed, fx.Node) or transposed.target not in _TRANSPOSED:
        return
    weight: Any = transposed.args[0]
    if weight.meta["val"].dim() != 2 or (bias and bias[0].meta["val"].dim() != 1):
        return
    if any(value != 1 for value in node.kwargs.values()):
        return
    with graph.inserting_before(node):
        linear = graph.call_function(_aten.linear.default, (given, weight, *bias))
    linear.meta = dict(node.meta)
    _become(node, linear)


def _make_cut(graph: fx.Graph, node: fx.Node) -> None:
    """Write padding by negative numbers, from the last dimension on, as a copy with strides."""
    arguments: Any = node.args
    given, pads = arguments[:2]
    value = given.meta["val"]
    strides = torch.empty(value.shape, device="meta").stride()  # of a tensor in the usual order
    before = [-pad for pad in pads[0::2]] + [0] * (value.dim() - len(pads) // 2)
    offset = sum(cut * stride for cut, stride in zip(before, reversed(strides), strict=True))
    with graph.inserting_before(node):
        cut = graph.call_function(
            _aten.as_strided_copy.default, (given, list(node.meta["val"].shape), list(strides), offset)
        )
    cut.meta = dict(node.meta)
    _become(node, cut)


def hoist_updates(graph: fx.Graph, labels: fx.Node, images: fx.Node, updates: dict[fx.Node, str]) -> None:
    """Make each parameter's update as soon as its gradient is there.

    updates: the nodes of new values, each with the parameter that it belongs to. What comes after the loss and reaches
    one parameter only is moved up, if it is no larger than that, or all that reads it is: not the gradients of images
    on their way to the lowest layer that trains. So are single numbers that depend on no image, such as a learning
    rate's factor. What is made of the state alone, such as a decayed weight, comes where it is first read.
    """
    reaching, reaching_one = _what_reaches_one(graph, updates)
    of_labels, of_images = _descendants(graph, labels), _descendants(graph, images)
    nodes = list(graph.nodes)
    inputs_end = sum(node.op == "placeholder" for node in nodes) - 1
    place: dict[fx.Node, int] = {}
    moved: list[fx.Node] = []
    for number, node in enumerate(nodes):
        of_state = node not in of_labels and node not in of_images
        place[node] = number
        if node.op != "call_function":
            continue
        if node in reaching_one and (of_state or node in of_labels):
            moved.append(node)
            place[node] = max([inputs_end, *(place[given] for given in node.all_input_nodes)])
        elif of_state and _is_number(node) and node in reaching:
            place[node] = max([inputs_end, *(place[given] for given in node.all_input_nodes)])
    for node in reversed(moved):
        if node not in of_labels:
            place[node] = min(place[user] for user in node.users)
    ordered = sorted(range(len(nodes)), key=lambda number: (place[nodes[number]], number))
    for before, after in itertools.pairwise(ordered):
        nodes[before].append(nodes[after])


def _what_reaches_one(graph: fx.Graph, updates: dict[fx.Node, str]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return what reaches any update, and what reaches those of one parameter and is no larger than that.

    Larger ones count where all that reads them is no larger.
    """
    parameters = {name: 1 << place for place, name in enumerate(dict.fromkeys(updates.values()))}
    sizes = {parameters[name]: _elements(node) for node, name in updates.items()}
    reached: dict[fx.Node, int] = {}  # as bits
    small: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        found = parameters[updates[node]] if node in updates else 0
        for user in node.users:
            found |= -1 if user.op == "output" and node not in updates else reached.get(user, 0)
        reached[node] = found
        if _elements(node) <= sizes.get(found, 0):
            small.add(node)
    one = {node for node, bits in reached.items() if bits in sizes and (node in small or small.issuperset(node.users))}
    return {node for node, bits in reached.items() if bits}, one


def _elements(node: fx.Node) -> int:
    """Return how many numbers a node makes that are read."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return sum(map(_elements, node.users))  # calls that take one of several results
    return value.numel() if isinstance(value, Tensor) else 0


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.numel() == 1


def _descendants(graph: fx.Graph, root: fx.Node) -> set[fx.Node]:
    found = {root}
    for node in graph.nodes:
        if any(given in found for given in node.all_input_nodes):
            found.add(node)
    return found


def write_back_early(graph: fx.Graph, views: Iterable[object]) -> None:
    """Move each write of a buffer up behind the new value and the last reader of the old one.

    views: operations whose result is their input's memory; who reads them reads the buffer.
    """
    place = {node: number for number, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not is_write(node):
            continue
        buffer, value = node.args[:2]
        readers = [reader for reader in _readers(buffer, tuple(views)) if reader is not node]
        last = max([value, *readers], key=place.__getitem__)
        if last.op == "placeholder" or place[last] > place[node]:
            continue
        last.append(node)
        place[node] = place[last]


def is_write(node: fx.Node) -> bool:
    """Whether a node writes its second argument into its first."""
    return node.op == "call_function" and getattr(node.target, "__name__", "").split(".")[0] == "copy_"


def _readers(node: fx.Node, views: tuple[object, ...]) -> Iterable[fx.Node]:
    for user in node.users:
        if user.op == "output":
            continue
        yield user
        if user.target in views:
            yield from _readers(user, views)
