"""ONNX: a protocol buffer of a graph, whose weights are initialisers or values of Constant nodes.

A tensor has the name that the graph knows it by: an initialiser its own, the value of a Constant
node that of the node's output. Graphs within nodes (the branches of an If, the body of a Loop) have
names of their own, so theirs come as `NODE/ATTRIBUTE/NAME`, such as `If_0/then_branch/weight`,
where an unnamed node goes by its first output. A function of the model is a prefix too, and so is
`training_info/INDEX/algorithm`. Constants that are written as an attribute that is no tensor
(`value_ints` and the like) and other attributes are options of the network, not weights.

Values that a model keeps in files beside it are found there. Tensors of text are metadata. Sparse
and segmented tensors and six-bit numbers are refused by name.

Sources: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto,
https://github.com/onnx/onnx/blob/main/docs/IR.md and
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxtransfer.errors import FormatError
from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    array_at,
    check_size,
    file_beside,
    map_file,
    reading,
)
from jaxtransfer.formats.wire import BYTES, LONGEST_VARINT, VARINT, Field, Message

NAME = "onnx"

_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S = 4, 5, 7, 10, 11
"""The fields of `TensorProto` that hold values one by one."""

DTYPES: Mapping[int, tuple[np.dtype[Any], int]] = {
    1: (np.dtype(np.float32), _FLOATS),
    2: (np.dtype(np.uint8), _INT32S),
    3: (np.dtype(np.int8), _INT32S),
    4: (np.dtype(np.uint16), _INT32S),
    5: (np.dtype(np.int16), _INT32S),
    6: (np.dtype(np.int32), _INT32S),
    7: (np.dtype(np.int64), _INT64S),
    9: (np.dtype(np.bool_), _INT32S),
    10: (np.dtype(np.float16), _INT32S),
    11: (np.dtype(np.float64), _DOUBLES),
    12: (np.dtype(np.uint32), _UINT64S),
    13: (np.dtype(np.uint64), _UINT64S),
    14: (np.dtype(np.complex64), _FLOATS),
    15: (np.dtype(np.complex128), _DOUBLES),
    16: (np.dtype(ml_dtypes.bfloat16), _INT32S),
    17: (np.dtype(ml_dtypes.float8_e4m3fn), _INT32S),
    18: (np.dtype(ml_dtypes.float8_e4m3fnuz), _INT32S),
    19: (np.dtype(ml_dtypes.float8_e5m2), _INT32S),
    20: (np.dtype(ml_dtypes.float8_e5m2fnuz), _INT32S),
    21: (np.dtype(ml_dtypes.uint4), _INT32S),
    22: (np.dtype(ml_dtypes.int4), _INT32S),
    23: (np.dtype(ml_dtypes.float4_e2m1fn), _INT32S),
    24: (np.dtype(ml_dtypes.float8_e8m0fnu), _INT32S),
    25: (np.dtype(ml_dtypes.uint2), _INT32S),
    26: (np.dtype(ml_dtypes.int2), _INT32S),
}
"""The dtype of each data type, and the field for its values when they are not raw bytes."""

_PER_BYTE: Mapping[int, int] = {21: 2, 22: 2, 23: 2, 25: 4, 26: 4}
"""How many values share a byte, the first one in the lowest bits."""

_TEXT_TYPE, _TEXTS = 8, 6
_FIXED = {_FLOATS: np.dtype(np.float32), _DOUBLES: np.dtype(np.float64)}
_MOST_AXES = 64  # NumPy's.
_TENSOR_BYTES = 1024  # What Python keeps for one tensor beside its values, roughly.
_CHUNK_BYTES = 2**16

_IR_VERSION, _GRAPH, _OPSET, _PROPERTY, _TRAINING, _FUNCTION = 1, 7, 8, 14, 20, 25
_MODEL_NUMBERS: Mapping[int, str] = {_IR_VERSION: "ir_version", 5: "model_version"}
_MODEL_TEXTS: Mapping[int, str] = {
    2: "producer_name",
    3: "producer_version",
    4: "domain",
    6: "doc_string",
}
_PRODUCER = (2, 3)
_MODEL_MESSAGES = (_GRAPH, _OPSET, _PROPERTY, _TRAINING, _FUNCTION)
_TRAINING_GRAPHS: Mapping[int, str] = {1: "initialization", 2: "algorithm"}
_NODE, _GRAPH_NAME, _INITIALIZER, _SPARSE_INITIALIZER = 1, 2, 5, 15
_FUNCTION_NAME, _FUNCTION_NODE = 1, 7
_OUTPUT, _NODE_NAME, _OPERATOR, _ATTRIBUTE = 2, 3, 4, 5
_ATTRIBUTE_NAME, _TENSOR, _SUBGRAPH, _SUBGRAPHS, _SPARSE_TENSOR = 1, 5, 6, 11, 22
_DIMENSIONS, _DATA_TYPE, _SEGMENT, _TENSOR_NAME = 1, 2, 3, 8
_RAW, _EXTERNAL, _LOCATION = 9, 13, 14
_VALUES = (_FLOATS, _INT32S, _TEXTS, _INT64S, _DOUBLES, _UINT64S, _RAW)
_SPARSE_VALUES = 1
_KEY, _VALUE = 1, 2
_IS_EXTERNAL = 1


def matches(head: bytes, path: Path) -> bool:
    """Whether a file is a `ModelProto`: a version, then fields of a model up to its graph."""
    if head[:1] != bytes([_IR_VERSION << 3 | VARINT]):
        return False
    try:
        # Without an end, so that a file whose graph is cut off is told to be damaged.
        model = Message(map_file(path), 0, 2**63)
        for entry in model:
            is_number = entry.number in _MODEL_NUMBERS
            if not (is_number or entry.number in _MODEL_TEXTS or entry.number in _MODEL_MESSAGES):
                return False
            if entry.kind != (VARINT if is_number else BYTES):
                return False
            if entry.number in _PRODUCER and not model.looks_like_text(entry):
                return False
            if entry.number == _GRAPH:
                return True
    except Exception:
        return False
    return False


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All tensors of a model by name, in the order of the file.

    Values that the file, or one beside it, keeps as plain bytes are read-only views of the file.
    Those of fewer than eight bits (`int4` and the like) take a byte each.

    Raises:
        ReferenceNotFoundError: there is no such file, or a file with values is not beside it.
        FormatError: the file is damaged, or a tensor has no array form.
    """
    with reading(path, NAME):
        model = _Model(path)
        return {name: model.array(tensor) for name, tensor in model.tensors.items()}


def inspect(path: PathLike) -> Inspection:
    """Names, shapes, dtypes and metadata of a model; files beside it are not opened.

    The metadata are the fields of the model that are text or numbers, its `opset_import`, the name
    of its `graph`, its properties as `metadata_props/KEY`, and tensors of text.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or a tensor has no array form.
    """
    with reading(path, NAME):
        model = _Model(path)
    infos = [
        TensorInfo(name, tensor.shape, tensor.dtype.name, tensor.size * tensor.dtype.itemsize)
        for name, tensor in model.tensors.items()
    ]
    return Inspection(Path(path), NAME, tuple(infos), model.metadata)


def files(path: PathLike) -> list[Path]:
    """The files that a model consists of: itself, and those beside it that hold values.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or names a file that is not beside it.
    """
    with reading(path, NAME):
        external = [tensor.external for tensor in _Model(path).tensors.values() if tensor.external]
        beside = [file_beside(path, entries.get("location", "")) for entries in external]
    return list(dict.fromkeys([Path(path), *beside]))


@dataclass(frozen=True)
class _Tensor:
    """A tensor whose values are not read yet.

    Attributes:
        name: its name, with those of the graphs that it is in.
        message: the `TensorProto`.
        kind: the number of its data type.
        shape: its shape.
        values: the last field with its values, if it has one.
        external: where its values are in a file beside the model, if they are.
    """

    name: str
    message: Message
    kind: int
    shape: tuple[int, ...]
    values: Field | None
    external: Mapping[str, str] | None

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES[self.kind][0]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """How many bytes the values take in a file, where several may share one."""
        return -(-self.size * self.dtype.itemsize // _PER_BYTE.get(self.kind, 1))

    def must_take(self, found: int, offset: int) -> None:
        """Refuse another number of bytes than the shape asks for."""
        if found != self.stored_bytes:
            raise Damage(
                f"{self.name} with {found} bytes of values, where the shape {self.shape} of "
                f"{self.dtype} takes {self.stored_bytes}",
                offset,
            )


class _Model:
    """The tensors and texts of a file, found in one walk through its graphs.

    Raises:
        FormatError: there are tensors without an array form.
        Damage: the file is not as it should be.
    """

    def __init__(self, path: PathLike):
        self.path = path
        self.tensors: dict[str, _Tensor] = {}
        self.metadata: dict[str, str] = {}
        self._content = map_file(path)
        self._file_bytes = self._content.size
        self._beside: dict[Path, np.ndarray] = {}
        self._refused: list[str] = []
        self._kept = 0
        self._walk(Message(self._content))
        if self._refused:
            raise FormatError(
                "\n".join(
                    [
                        f"{path}: expected dense tensors of numbers that NumPy or ml_dtypes has, "
                        "found:",
                        *self._refused,
                        "export the model without these",
                    ]
                )
            )

    def _keep(self, size: int, offset: int) -> None:
        """Count bytes that are kept in memory, of which a small file may ask for many."""
        self._kept += size
        check_size(self._kept, self._file_bytes, "names and values", offset)

    def _walk(self, model: Message) -> None:
        operators, trainings, has_graph = [], 0, False
        for entry in model:
            if entry.number in _MODEL_NUMBERS:
                self.metadata[_MODEL_NUMBERS[entry.number]] = str(model.integer(entry))
            elif entry.number in _MODEL_TEXTS:
                if text := model.text(entry):
                    self.metadata[_MODEL_TEXTS[entry.number]] = text
            elif entry.number == _GRAPH:
                has_graph = True
                self._graph(model.inner(entry), "")
            elif entry.number == _OPSET:
                operators.append(_operators(model.inner(entry)))
                self._keep(_text_bytes(operators[-1]), entry.begin)
            elif entry.number == _PROPERTY:
                key, value = _key_and_value(model.inner(entry))
                self._keep(_text_bytes(key + value), entry.begin)
                self.metadata[f"metadata_props/{key}"] = value
            elif entry.number == _TRAINING:
                self._training(model.inner(entry), f"training_info/{trainings}/")
                trainings += 1
            elif entry.number == _FUNCTION:
                self._function(model.inner(entry))
        if not has_graph:
            raise Damage("no graph")
        self.metadata["opset_import"] = ", ".join(operators)

    def _training(self, training: Message, prefix: str) -> None:
        for entry in training:
            if entry.number in _TRAINING_GRAPHS:
                name = _TRAINING_GRAPHS[entry.number]
                self._graph(training.inner(entry), f"{prefix}{name}/")

    def _function(self, function: Message) -> None:
        prefix = f"{_text(function, _FUNCTION_NAME)}/"
        self._keep(_text_bytes(prefix), function.start)
        for entry in function:
            if entry.number == _FUNCTION_NODE:
                self._node(function.inner(entry), prefix)

    def _graph(self, graph: Message, prefix: str) -> None:
        self._keep(_text_bytes(prefix), graph.start)
        for entry in graph:
            if entry.number == _NODE:
                self._node(graph.inner(entry), prefix)
            elif entry.number == _GRAPH_NAME and not prefix:
                self.metadata["graph"] = graph.text(entry)
            elif entry.number == _INITIALIZER:
                tensor = graph.inner(entry)
                self._add(tensor, prefix, _text(tensor, _TENSOR_NAME))
            elif entry.number == _SPARSE_INITIALIZER:
                name = _sparse_name(graph.inner(entry))
                self._refuse(f"{prefix}{name}", "a sparse tensor", entry.begin)

    def _node(self, node: Message, prefix: str) -> None:
        name = output = operator = ""
        has_attributes = False
        for entry in node:
            if entry.number == _OUTPUT:
                output = output or node.text(entry)
            elif entry.number == _NODE_NAME:
                name = node.text(entry)
            elif entry.number == _OPERATOR:
                operator = node.text(entry)
            elif entry.number == _ATTRIBUTE:
                has_attributes = True
        if not has_attributes:
            return
        for entry in node:
            if entry.number != _ATTRIBUTE:
                continue
            if operator == "Constant":
                self._constant(node.inner(entry), prefix, output)
            else:
                self._subgraphs(node.inner(entry), prefix, name or output)

    def _constant(self, attribute: Message, prefix: str, output: str) -> None:
        for entry in attribute:
            if entry.number == _TENSOR:
                self._add(attribute.inner(entry), prefix, output)
            elif entry.number == _SPARSE_TENSOR:
                self._refuse(f"{prefix}{output}", "a sparse tensor", entry.begin)

    def _subgraphs(self, attribute: Message, prefix: str, node: str) -> None:
        count = 0
        for entry in attribute:
            if entry.number in (_SUBGRAPH, _SUBGRAPHS):
                place = f"{prefix}{node}/{_text(attribute, _ATTRIBUTE_NAME)}/"
                if entry.number == _SUBGRAPHS:
                    place, count = f"{place}{count}/", count + 1
                self._graph(attribute.inner(entry), place)

    def _refuse(self, name: str, what: str, offset: int) -> None:
        self._keep(_text_bytes(name), offset)
        self._refused.append(f" ! {name}: {what}, at byte {offset}")

    def _add(self, message: Message, prefix: str, own_name: str) -> None:
        """Note a tensor; what is wrong with it shows here, but for what only its values show."""
        name = prefix + own_name
        self._keep(_text_bytes(name), message.start)
        if not own_name:
            raise Damage(f"a tensor without a name in {prefix or 'the graph'}", message.start)
        if name in self.tensors:
            raise Damage(f"a second tensor of the name {name!r}", message.start)
        kind, is_segment, is_external, external = 0, False, False, {}
        values: Field | None = None
        places = set()
        for entry in message:
            if entry.number == _DATA_TYPE:
                kind = message.integer(entry)
            elif entry.number == _SEGMENT:
                is_segment = True
            elif entry.number == _LOCATION:
                is_external = message.integer(entry) == _IS_EXTERNAL
            elif entry.number == _EXTERNAL:
                key, value = _key_and_value(message.inner(entry))
                self._keep(_text_bytes(key + value), entry.begin)
                external[key] = value
            elif entry.number in _VALUES and entry.stop > entry.start:
                values = entry
                places.add(entry.number)
        shape = tuple(message.integers(_DIMENSIONS, _MOST_AXES))
        if min(shape, default=0) < 0:
            raise Damage(f"{name} with the shape {shape}", message.start)
        if kind == _TEXT_TYPE:
            self.metadata[name] = f"text of shape {shape}"
            return
        if kind not in DTYPES or is_segment:
            what = "a segment of a tensor" if is_segment else f"data type {_kind_name(kind)}"
            self._refuse(name, what, message.start)
            return
        tensor = _Tensor(name, message, kind, shape, values, external if is_external else None)
        if len(places) + is_external > 1 or places - {_RAW, DTYPES[kind][1]}:
            raise Damage(
                f"{name} of {tensor.dtype} with values in fields {sorted(places)}"
                f"{' and in a file beside the model' if is_external else ''}",
                message.start,
            )
        if values is not None and values.number == _RAW:
            tensor.must_take(values.stop - values.start, values.start)
        self.tensors[name] = tensor

    def array(self, tensor: _Tensor) -> np.ndarray:
        """The values of a tensor."""
        stored = self._stored(tensor).view(np.uint8)
        tensor.must_take(stored.size, tensor.message.start)
        if tensor.kind in _PER_BYTE:
            self._keep(tensor.size, tensor.message.start)
            stored = _spread(stored, _PER_BYTE[tensor.kind])[: tensor.size]
        return stored.view(tensor.dtype).reshape(tensor.shape)

    def _stored(self, tensor: _Tensor) -> np.ndarray:
        """The values in one dimension, with those that share a byte in one."""
        values = tensor.values
        if tensor.external is not None:
            return self._external(tensor, tensor.external)
        if values is None:
            return np.empty(0, np.uint8)
        if values.number == _RAW:
            return self._content[values.start : values.stop]
        if values.number in _FIXED:
            return tensor.message.numbers(values.number, _FIXED[values.number])
        self._keep(tensor.stored_bytes, tensor.message.start)
        found = _integers(tensor, values.number)
        return found != 0 if tensor.dtype == np.bool_ else found

    def _external(self, tensor: _Tensor, entries: Mapping[str, str]) -> np.ndarray:
        path = file_beside(self.path, entries.get("location", ""))
        with reading(path, "data"):
            if path not in self._beside:
                if path.exists() and not path.is_file():
                    raise Damage("a folder, a device or a pipe")
                self._beside[path] = map_file(path)
                self._file_bytes += self._beside[path].size
            content = self._beside[path]
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", content.size - offset))
            tensor.must_take(length, offset)
            return array_at(content, offset, np.dtype(np.uint8), (length,), tensor.name)


def _integers(tensor: _Tensor, number: int) -> np.ndarray:
    """Values that stand as whole numbers, with no sign; narrow dtypes keep their bits in these."""
    unsigned = np.dtype(f"u{tensor.dtype.itemsize}")
    found = np.empty(tensor.stored_bytes // unsigned.itemsize, unsigned)
    filled = 0
    for values in _varints(tensor.message, number):
        end = filled + values.size
        if end > found.size:
            raise Damage(f"{tensor.name} with more values than {found.size}", tensor.message.start)
        found[filled:end] = values.astype(unsigned)
        filled = end
    return found[:filled]


def _varints(message: Message, number: int) -> Iterator[np.ndarray]:
    """The whole numbers of a repeated field, packed or not, some at a time."""
    for entry in message:
        if entry.number != number:
            continue
        if entry.kind == VARINT:
            yield np.array([entry.value], np.uint64)
            continue
        packed = message.inner(entry)
        at = packed.start
        while at < packed.stop:
            chunk = message.content[at : min(at + _CHUNK_BYTES, packed.stop)]
            ends = np.flatnonzero(chunk < 0x80) + 1
            starts = np.concatenate([[0], ends[:-1]])
            lengths = ends - starts
            if not ends.size or lengths.max() > LONGEST_VARINT:
                raise Damage("a number that does not end", at)
            values = np.zeros(ends.size, np.uint64)
            for index in range(lengths.max()):
                is_there = lengths > index
                bits = chunk[starts[is_there] + index].astype(np.uint64) & np.uint64(0x7F)
                values[is_there] |= bits << np.uint64(7 * index)
            yield values
            at += int(ends[-1])


def _spread(stored: np.ndarray, count: int) -> np.ndarray:
    """The values that share bytes, each in a byte of its own.

    >>> _spread(np.array([0x21, 0x43], np.uint8), 2).tolist()
    [1, 2, 3, 4]
    """
    bits = 8 // count
    values = stored[:, np.newaxis] >> np.arange(0, 8, bits, dtype=np.uint8)
    values &= np.uint8(2**bits - 1)
    return values.reshape(-1)


def _text(message: Message, number: int) -> str:
    """The (last) value of a field that is text."""
    text = ""
    for entry in message:
        if entry.number == number:
            text = message.text(entry)
    return text


def _key_and_value(message: Message) -> tuple[str, str]:
    return _text(message, _KEY), _text(message, _VALUE)


def _text_bytes(text: str) -> int:
    """The most that a text and what belongs to it take in memory."""
    return _TENSOR_BYTES + 4 * len(text)


def _operators(message: Message) -> str:
    """The name and version of a set of operators."""
    version = 0
    for entry in message:
        if entry.number == 2:
            version = message.integer(entry)
    return f"{_text(message, 1) or 'ai.onnx'} {version}"


def _sparse_name(sparse: Message) -> str:
    """A sparse tensor is called as its values are."""
    for entry in sparse:
        if entry.number == _SPARSE_VALUES:
            return _text(sparse.inner(entry), _TENSOR_NAME)
    return ""


def _kind_name(kind: int) -> str:
    return {27: "FLOAT6E2M3", 28: "FLOAT6E3M2"}.get(kind, str(kind))


READER = Reader(NAME, matches, read, inspect, suffix=".onnx", files=files)
