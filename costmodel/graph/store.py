"""A layer graph as a file: compact, versioned, plain data.

A file is one line of text, `costmodel trace FORMAT`, and xz-compressed JSON. Storages and tensors are rows that layers
point at by number, so that what was one object is one object again. A file may come from anywhere: what is read is
checked, and nothing in it is run.
"""

from __future__ import annotations

import json
import lzma
import math
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError, ModelError
from ..reading import read_file
from ..units import BYTES_PER_ELEMENT
from .learned import Learned
from .values import TRACE_BATCH, Layer, Storage, Tensor

if TYPE_CHECKING:
    from .layer_graph import LayerGraph

FORMAT = 2
TEMPORARY = ".tmp"
_MAGIC = b"costmodel trace "
# Assumption: ten times the largest network of torchvision and timm; a file that unpacks to more is not a trace, and of
# brackets alone it takes thirty times the memory.
_MOST_BYTES = 2**24
_MOST_ELEMENTS = 2**63
_PRESET = 3  # a seventh of the time of the default, 6, for a seventh more bytes

_KINDS = {"input", "activation", "parameter", "derived", "constant"}
_MADE = {"activation", "derived"}  # by a layer
_GRAPH = [str, int, int, list, list, list, list, int, list, list, list]
_MORE = [list, bool]  # where there is anything: further inputs, and whether the layers end in the loss
_STORAGE = [int, int, str, bool, int, int]
_TENSOR = [int, int, list, str, str, bool, int, str]
_LAYER = [str, str, int, str, list, list, list, bool, str]


Fields = dict[str, Any]  # of a LayerGraph, by name


def write_graph(graph: LayerGraph, path: str | os.PathLike) -> None:
    """Write a graph to a file, whole or not at all, whatever else writes it at the same time.

    Errors: InputError if it cannot be written, or if a layer's argument is not a plain value.
    """
    write(Path(path), pack(encode(graph)))


def read_fields(path: str | os.PathLike) -> Fields:
    """Return the fields of the graph in a file.

    Errors: InputError if the file cannot be read, is not a trace, is damaged, or has another format.
    """
    data = read_file(path, "trace")
    try:
        return decode(unpack(data))
    except InputError as error:
        raise InputError(f"{str(path)!r} {error}; trace the network again and save it") from error.__cause__


def write(path: Path, data: bytes) -> None:
    """Write a file by way of another one beside it, so that no reader ever sees a part."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            temporary.unlink()
        raise InputError(f"cannot write {str(path)!r}: {getattr(error, 'strerror', error)}") from error


def pack(text: str) -> bytes:
    """Return a file's content."""
    return b"%s%d\n%s" % (_MAGIC, FORMAT, lzma.compress(text.encode(), preset=_PRESET))


def unpack(data: bytes) -> str:
    """Return the text of a file's content. Errors: InputError that says what is wrong with the file."""
    first, _, packed = data.partition(b"\n")
    if not first.startswith(_MAGIC):
        raise InputError("is not a trace")
    if first != b"%s%d" % (_MAGIC, FORMAT):
        found = first.removeprefix(_MAGIC)[:20].decode(errors="replace")
        raise InputError(f"is a trace of format {found!r}, but this version reads {FORMAT}")
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_BYTES)
        text = unpacker.decompress(packed, _MOST_BYTES)
        if not unpacker.eof or unpacker.unused_data:
            raise InputError("is damaged: it ends too early or too late")
        return text.decode()
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"is damaged: {error}") from error


# --- graph -> text ----------------------------------------------------------------------------------------------------


class _Rows:
    """Numbers the tensors and storages of a graph in the order in which they are met."""

    def __init__(self) -> None:
        self.tensors: list[list] = []
        self.storages: list[list] = []
        self._numbers: dict[int, int] = {}  # id() of a tensor or storage of the graph, which lives as long

    def number(self, tensor: Tensor) -> int:
        if id(tensor) not in self._numbers:
            if tensor.elements != _elements(tensor.shape, tensor.batched):
                raise InputError(f"tensor {tensor.name!r} cannot be saved: its elements do not follow from its shape")
            row = [
                tensor.id, self.storage(tensor.storage), list(tensor.shape), tensor.dtype, tensor.kind,
                tensor.batched, tensor.version, tensor.name, *([list(tensor.strides)] if tensor.strides else []),
            ]  # fmt: skip
            self._numbers[id(tensor)] = len(self.tensors)
            self.tensors.append(row)
        return self._numbers[id(tensor)]

    def named(self, tensors: dict[str, Tensor]) -> list[list]:
        return [[name, self.number(tensor)] for name, tensor in tensors.items()]

    def storage(self, storage: Storage) -> int:
        if id(storage) not in self._numbers:
            self._numbers[id(storage)] = len(self.storages)
            self.storages.append([
                storage.id, storage.elements, storage.dtype, storage.batched, storage.held_until, storage.writes,
            ])  # fmt: skip
        return self._numbers[id(storage)]


def encode(graph: LayerGraph) -> str:
    """Return a graph as JSON on one line. Errors: InputError for a layer's argument that is not a plain value."""
    rows = _Rows()
    given = rows.number(graph.input)
    parameters, buffers = rows.named(graph.parameters), rows.named(graph.buffers)
    layers = []
    for layer in graph.layers:
        try:
            attributes = [[name, _plain(value)] for name, value in layer.attributes.items()]
        except TypeError as error:
            raise InputError(f"{layer.location} has an argument that cannot be saved: {error}") from error
        layers.append([
            layer.name, layer.module, layer.ordinal, layer.op,
            rows.named(layer.inputs), [rows.number(tensor) for tensor in layer.outputs], attributes, layer.inplace,
            layer.in_place_of, *_more(layer, rows),
        ])  # fmt: skip
    outputs = [rows.number(tensor) for tensor in graph.outputs]
    more = [[rows.number(tensor) for tensor in graph.more_inputs], graph.ends_in_loss]
    return json.dumps(
        [
            graph.model, graph.resolution, graph.classes, list(graph.notes), rows.storages, rows.tensors, layers, given,
            outputs, parameters, buffers, *(more if any(more) else ()),
        ],
        separators=(",", ":"),
    )  # fmt: skip


def _more(layer: Layer, rows: _Rows) -> list[Any]:
    """Return the ends of a layer's row that most layers have no use for."""
    learned = None if layer.learned is None else layer.learned.to_rows()
    more: list[Any] = [learned, [rows.storage(storage) for storage in layer.beside], layer.checkpoint]
    while more and more[-1] in (None, []):
        more.pop()
    return more


def _elements(shape: Iterable[int], batched: bool) -> int | None:
    """Return a tensor's elements (per image if batched); None if its shape has no such number."""
    count, rest = divmod(math.prod(shape), TRACE_BATCH if batched else 1)
    return None if rest else count


def _plain(value: Any) -> Any:
    """Return an argument as JSON: a tuple as a list, other containers as a list under their name."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is tuple:
        return [_plain(item) for item in value]
    if type(value) is list:
        return {"list": [_plain(item) for item in value]}
    if type(value) is slice:
        return {"slice": [_plain(item) for item in (value.start, value.stop, value.step)]}
    if type(value) is dict:
        return {"dict": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if value is Ellipsis:
        return {"ellipsis": []}
    raise TypeError(f"a {type(value).__name__} is not a plain value")


# --- text -> graph ----------------------------------------------------------------------------------------------------


def decode(text: str) -> Fields:
    """Return the fields of the graph in `encode`'s text. Errors: InputError that says that it is damaged, and how."""
    try:
        return _fields(json.loads(text))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(f"is damaged: {' '.join(str(error).split())[:200]}") from error


def _fields(document: Any) -> Fields:
    document, more = document[: len(_GRAPH)], document[len(_GRAPH) :] or [[], False]
    _is_row(document, _GRAPH)
    _is_row(more, _MORE)
    model, resolution, classes, notes, stored, rows, calls, given, finished, parameters, buffers = document
    _require(resolution > 0 and classes > 0, "its resolution and classes are counts")
    _require(all(type(note) is str for note in notes), "its notes are texts")
    storages = [_read_storage(row, len(calls)) for row in stored]
    tensors = [_read_tensor(row, storages) for row in rows]
    for kind, values in (("storage", storages), ("tensor", tensors)):
        _require(len({value.id for value in values}) == len(values), f"every {kind} has an id of its own")
    parameters, buffers = (_named(pairs, tensors) for pairs in (parameters, buffers))
    _require(all(t.kind == "parameter" and t.name == name for name, t in parameters.items()), "parameters are such")
    _require(all(tensor.kind == "constant" for tensor in buffers.values()), "buffers are constants")
    image, *further = (_at(tensors, number) for number in (given, *more[0]))
    known = {image.id, *(tensor.id for tensor in further), *(tensor.id for tensor in parameters.values())}
    layers = tuple(_read_layer(index, row, tensors, storages, known) for index, row in enumerate(calls))
    outputs = tuple(_at(tensors, number) for number in finished)
    _require(all(tensor.kind == "input" for tensor in (image, *further)), "a network is given inputs")
    _require(any(tensor.id in known for tensor in outputs), "it leads from input to output")
    return {
        "model": model, "resolution": resolution, "classes": classes, "layers": layers, "input": image,
        "outputs": outputs, "parameters": parameters, "buffers": buffers, "notes": tuple(notes),
        "more_inputs": tuple(further), "ends_in_loss": more[1],
    }  # fmt: skip


def _read_storage(row: Any, layers: int) -> Storage:
    _is_row(row, _STORAGE)
    id_, elements, dtype, _, held_until, writes = row
    _require(
        id_ >= 0 and 0 <= elements < _MOST_ELEMENTS and dtype in BYTES_PER_ELEMENT
        and -1 <= held_until <= layers and 0 <= writes <= layers,
        "a storage's numbers are possible",
    )  # fmt: skip
    return Storage(*row)


def _read_tensor(row: Any, storages: list[Storage]) -> Tensor:
    _require(type(row) is list and len(row) <= len(_TENSOR) + 1, "its rows have the right fields")
    more: list[Any] = row[len(_TENSOR) :]
    row, strides = row[: len(_TENSOR)], more[0] if more else []
    _is_row(row, _TENSOR)
    id_, number, shape, dtype, kind, batched, version, name = row
    storage = _at(storages, number)
    _require(all(type(size) is int and 0 <= size < _MOST_ELEMENTS for size in shape) and len(shape) < 100, "a shape")
    _require(
        type(strides) is list and len(strides) in (0, len(shape))
        and all(type(step) is int and 0 <= step < _MOST_ELEMENTS for step in strides),
        "a tensor's strides are those of its shape",
    )  # fmt: skip
    elements = _elements(shape, batched)
    _require(
        id_ >= 0 and elements is not None and elements < _MOST_ELEMENTS and dtype in BYTES_PER_ELEMENT
        and kind in _KINDS and 0 <= version <= storage.writes,
        "a tensor's numbers are possible",
    )  # fmt: skip
    assert elements is not None  # as was required
    return Tensor(id_, tuple(shape), elements, dtype, kind, batched, storage, version, name, tuple(strides))


def _read_layer(index: int, row: Any, tensors: list[Tensor], storages: list[Storage], known: set[int]) -> Layer:
    """Return a layer; `known` are the ids of the tensors that are there before it, and after it those that it made."""
    _require(type(row) is list and len(row) <= len(_LAYER) + 3, "its rows have the right fields")
    row, more = row[: len(_LAYER)], row[len(_LAYER) :]
    seen, beside, checkpoint = cast(list[Any], [*more, None, None, None])[:3]
    _is_row(row, _LAYER)
    name, module, ordinal, op, inputs, outputs, attributes, inplace, in_place_of = row
    read = _named(inputs, tensors)
    made = tuple(_at(tensors, number) for number in outputs)
    _require(
        read and all(tensor.kind == "constant" or tensor.id in known for tensor in read.values()),
        "a layer reads what is there",
    )
    _require(
        made and all(tensor.kind in _MADE and tensor.id not in known for tensor in made), "a layer makes what is new"
    )
    known.update(tensor.id for tensor in made)
    values = {_text(key): _value(value) for key, value in attributes}
    learned = None if seen is None else Learned.from_rows(seen, read, len(made))
    read, values = _Arguments(read), _Arguments(values)
    read.layer = values.layer = f"{name} ({op})"
    taken = tuple(_at(storages, number) for number in beside or ())
    _require(checkpoint is None or (type(checkpoint) is int and checkpoint >= 0), "parts that run again are numbered")
    return Layer(index, name, module, ordinal, op, read, made, values, inplace, in_place_of, learned, taken, checkpoint)


class _Arguments(dict):
    """The arguments of a layer that was read. Errors: ModelError, naming the layer, if one that is asked for lacks."""

    layer = ""

    def __missing__(self, name: str) -> Any:
        raise ModelError(f"{self.layer} lacks the argument {name!r}: its trace is damaged; trace the network again")


def _named(pairs: list, tensors: list[Tensor]) -> dict[str, Tensor]:
    found = {_text(name): _at(tensors, number) for name, number in pairs}
    _require(len(found) == len(pairs), "every name stands once")
    return found


def _value(value: Any) -> Any:
    if type(value) is list:
        return tuple(_value(item) for item in value)
    if type(value) is dict:
        ((kind, items),) = value.items()
        items = [_value(item) for item in items]
        return {"list": list, "slice": lambda x: slice(*x), "dict": dict, "ellipsis": lambda x: Ellipsis}[kind](items)
    return value


def _is_row(row: Any, types: list[type]) -> None:
    _require(type(row) is list and [type(value) for value in row] == types, "its rows have the right fields")


def _text(value: Any) -> str:
    _require(type(value) is str, "names are texts")
    return value


def _at(values: list, number: Any) -> Any:
    _require(type(number) is int and number >= 0, "numbers of rows are counts")
    return values[number]


def _require(holds: Any, what: str) -> None:
    if not holds:
        raise ValueError(f"it does not hold that {what}")
