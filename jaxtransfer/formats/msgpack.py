"""Flax's msgpack files, such as Hugging Face's `flax_model.msgpack`: nested maps of arrays.

Keys are joined by `/`. An array is an extension of type 1 that packs its shape, the name of its
dtype and its bytes; a NumPy scalar is the same with type 3, and a Python complex number has type 2.
An array of more than 2**30 bytes is a map of pieces.

The tokens are read here and not by the msgpack library, which copies every array twice: the arrays
are views of the mapped file.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md and `flax/serialization.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import ml_dtypes
import msgpack
import numpy as np

from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    array_at,
    atomic_write,
    check_size,
    checked_arrays,
    map_file,
    reading,
    refuse_any,
)

NAME = "msgpack"

DTYPES: Mapping[str, np.dtype[Any]] = {
    dtype.name: dtype
    for dtype in map(
        np.dtype,
        [
            np.bool_,
            *(np.int8, np.int16, np.int32, np.int64),
            *(np.uint8, np.uint16, np.uint32, np.uint64),
            *(np.float16, np.float32, np.float64, np.complex64, np.complex128),
            *(ml_dtypes.bfloat16, ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.int4, ml_dtypes.uint4),
            *(ml_dtypes.float8_e3m4, ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3b11fnuz),
            *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2),
            *(ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu, ml_dtypes.float4_e2m1fn),
            *(ml_dtypes.float6_e2m3fn, ml_dtypes.float6_e3m2fn),
        ],
    )
}
"""The dtypes of arrays by their names in a file; each number of 2, 4 or 6 bits takes a byte."""

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3

_CHUNKED = "__msgpack_chunked_array__"
_CHUNK_BYTES = 2**30
_DEEPEST = 100

_OBJECT_BYTES = 256
"""At least what a parsed value takes in memory, beside its text."""

_SIZED = {
    **{0xC4: ("bin", "B"), 0xC5: ("bin", "H"), 0xC6: ("bin", "I")},
    **{0xC7: ("ext", "B"), 0xC8: ("ext", "H"), 0xC9: ("ext", "I")},
    **{0xD9: ("str", "B"), 0xDA: ("str", "H"), 0xDB: ("str", "I")},
    **{0xDC: ("array", "H"), 0xDD: ("array", "I"), 0xDE: ("map", "H"), 0xDF: ("map", "I")},
}
"""First bytes after which a length follows: what is that long, and the length's `struct` code."""

_NUMBERS = dict(zip([*range(0xCA, 0xD0), *range(0xD0, 0xD4)], "fdBHIQbhiq", strict=True))
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclass(frozen=True)
class _Tensor:
    """An array, as views of the file that follow each other."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class _Leaf:
    """A tensor, or the text of a value that is none, and where it stands in the file."""

    value: _Tensor | str
    offset: int


@dataclass
class _Tokens:
    """The tokens of a file (or of its head), one after another."""

    content: np.ndarray
    position: int = 0
    spent: int = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.skip(count)
        return self.content[self.position - count : self.position].tobytes()

    def skip(self, count: int) -> None:
        left = self.content.size - self.position
        if count > left:
            raise Damage(f"{left} bytes where {count} should follow", self.position)
        self.position += count

    def token(self) -> tuple[str, Any]:
        """The next token: a kind and a length (its content is still to come), or a plain value."""
        start = self.position
        first = self.take(1)[0]
        if first in _SIZED:
            kind, code = _SIZED[first]
            return kind, self._number(code)
        if first in _NUMBERS:
            return "value", self._number(_NUMBERS[first])
        if first in _CONSTANTS:
            return "value", _CONSTANTS[first]
        if first < 0x80 or first >= 0xE0:
            return "value", first if first < 0x80 else first - 0x100
        if first < 0xC0:
            kind = "str" if first >= 0xA0 else "array" if first >= 0x90 else "map"
            return kind, first & (0x1F if kind == "str" else 0x0F)
        if first >= 0xD4:
            return "ext", 1 << (first - 0xD4)
        raise Damage(f"the byte {first:#x}, which begins nothing", start)

    def _number(self, code: str) -> Any:
        return struct.unpack(f">{code}", self.take(struct.calcsize(code)))[0]

    def spend(self, count: int) -> None:
        """Count what the parsed values take: short maps and long names may be far longer here."""
        self.spent += count
        check_size(self.spent, self.content.size, "names and values", self.position)


def matches(head: bytes, path: Path) -> bool:
    """Whether a file begins with a map whose first key is readable text, or is one empty map."""
    if head == b"\x80":
        return True
    try:
        tokens = _Tokens(np.frombuffer(head, np.uint8))
        kind, length = tokens.token()
        if kind != "map" or length == 0:
            return False
        kind, length = tokens.token()
        is_key = kind == "str" and tokens.take(length).decode().isprintable()
        tokens.token()
    except (Damage, UnicodeDecodeError):
        return False
    return is_key


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All arrays and NumPy scalars of a msgpack file, named by their keys joined by `/`.

    They are read-only views of the mapped file, but for those that are stored in pieces.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or holds what Flax does not write.
    """
    with reading(path, NAME):
        return {
            name: _joined(leaf.value)
            for name, leaf in _leaves(path).items()
            if isinstance(leaf.value, _Tensor)
        }


def inspect(path: PathLike) -> Inspection:
    """Names, shapes and dtypes of a msgpack file; other values, as text, are its metadata.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or holds what Flax does not write.
    """
    with reading(path, NAME):
        leaves = {name: leaf.value for name, leaf in _leaves(path).items()}
    return Inspection(
        Path(path),
        NAME,
        tuple(
            TensorInfo(name, value.shape, value.dtype.name, sum(p.nbytes for p in value.pieces))
            for name, value in leaves.items()
            if isinstance(value, _Tensor)
        ),
        {name: value for name, value in leaves.items() if isinstance(value, str)},
    )


def _joined(tensor: _Tensor) -> np.ndarray:
    if len(tensor.pieces) == 1:
        return tensor.pieces[0].reshape(tensor.shape)
    return np.concatenate(tensor.pieces).reshape(tensor.shape)


def _leaves(path: PathLike) -> dict[str, _Leaf]:
    tokens = _Tokens(map_file(path))
    tree = _node(tokens, "", 0)
    if isinstance(tree, _Leaf):
        raise Damage("a single value, where a map of named tensors was expected")
    if tokens.position != tokens.content.size:
        raise Damage("more bytes after the end of the outermost map", tokens.position)
    leaves: dict[str, _Leaf] = {}
    for name, leaf in _flat(tree, ""):
        if name in leaves:
            raise Damage(f"a second value of the name {name!r}", leaf.offset)
        leaves[name] = leaf
    return leaves


def _flat(tree: dict[str, Any] | _Leaf, name: str) -> Iterator[tuple[str, _Leaf]]:
    if isinstance(tree, _Leaf):
        yield name, tree
        return
    for key, below in tree.items():
        yield from _flat(below, f"{name}/{key}" if name else key)


def _node(tokens: _Tokens, name: str, depth: int) -> dict[str, Any] | _Leaf:
    """The next value: a leaf, or a dict for a map or a list (an empty one is a leaf further in)."""
    start = tokens.position
    tokens.spend(_OBJECT_BYTES + 4 * len(name))
    kind, value = tokens.token()
    if kind in ("map", "array") and (value or not depth):
        if depth == _DEEPEST:
            raise Damage(f"maps within maps, more than {_DEEPEST} deep", start)
        tree = _branch(tokens, name, depth, kind, value)
        return _Leaf(_from_chunks(tree, name, start), start) if _CHUNKED in tree else tree
    if kind == "ext":
        return _Leaf(_extension(tokens, name, value), start)
    if kind == "str":
        return _Leaf(_text(tokens, value), start)
    if kind == "bin":
        tokens.skip(value)
        return _Leaf(f"{value} bytes", start)
    return _Leaf({"map": "{}", "array": "[]"}.get(kind, str(value)), start)


def _branch(tokens: _Tokens, name: str, depth: int, kind: str, count: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for index in range(count):
        key = _key(tokens) if kind == "map" else str(index)
        if key in tree:
            raise Damage(f"the key {key!r} twice in {name!r}", tokens.position)
        tree[key] = _node(tokens, f"{name}/{key}" if name else key, depth + 1)
    return tree


def _key(tokens: _Tokens) -> str:
    start = tokens.position
    kind, value = tokens.token()
    if kind == "str":
        return _text(tokens, value)
    if kind == "value" and type(value) is int:
        return str(value)
    raise Damage("a key that is neither text nor a whole number", start)


def _text(tokens: _Tokens, length: int) -> str:
    start = tokens.position
    tokens.spend(_OBJECT_BYTES + 4 * length)
    try:
        return tokens.take(length).decode()
    except UnicodeDecodeError as error:
        raise Damage(f"text that is not UTF-8 ({error.reason})", start + error.start) from error


def _extension(tokens: _Tokens, name: str, length: int) -> _Tensor | str:
    start = tokens.position
    kind = struct.unpack("b", tokens.take(1))[0]
    end = tokens.position + length
    if kind in (_ARRAY, _SCALAR):
        value = _array(tokens, name)
    elif kind == _COMPLEX:
        _expect(tokens, "array", 2)
        value = str(complex(*(_expect(tokens, "value") for _ in range(2))))
    else:
        raise Damage(f"{name!r} of the extension type {kind}, which Flax does not write", start)
    if tokens.position != end:
        raise Damage(f"{name!r} with {length} bytes, which end elsewhere than its values", start)
    return value


def _array(tokens: _Tokens, name: str) -> _Tensor:
    _expect(tokens, "array", 3)
    start = tokens.position
    dimensions = _expect(tokens, "array")
    if dimensions > 64:  # NumPy has no more.
        raise Damage(f"{name!r} with {dimensions} dimensions", start)
    shape = tuple(_expect(tokens, "value") for _ in range(dimensions))
    if not all(type(side) is int and side >= 0 for side in shape):
        raise Damage(f"{name!r} with the shape {shape}", start)
    start = tokens.position
    dtype_name = _text(tokens, _expect(tokens, "str", other="bin"))
    if dtype_name not in DTYPES:
        raise Damage(f"{name!r} of the dtype {dtype_name[:80]!r}, which no array here has", start)
    dtype = DTYPES[dtype_name]
    length = _expect(tokens, "bin", other="str")
    start = tokens.position
    if length != math.prod(shape) * dtype.itemsize:
        raise Damage(f"{name!r} with {length} bytes for the shape {shape} of {dtype}", start)
    tokens.skip(length)
    return _Tensor(shape, dtype, (array_at(tokens.content, start, dtype, shape, name),))


def _expect(tokens: _Tokens, kind: str, value: Any = None, *, other: str = "") -> Any:
    """The value or length of the next token, which must be of this kind."""
    start = tokens.position
    found, found_value = tokens.token()
    if found not in (kind, other) or value not in (None, found_value):
        raise Damage(f"the token {found} {found_value} where an array has {kind}", start)
    return found_value


def _from_chunks(tree: dict[str, Any], name: str, offset: int) -> _Tensor:
    """One tensor from the map of its shape and its pieces, which both have the keys 0, 1, …."""
    try:
        sides, chunks = (
            [tree[part][str(index)].value for index in range(len(tree[part]))]
            for part in ("shape", "chunks")
        )
        shape = tuple(map(int, sides))
        dtype = chunks[0].dtype
        pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
        is_whole = (
            len(tree) == 3
            and min(shape, default=0) >= 0
            and all(piece.ndim == 1 and piece.dtype == dtype for piece in pieces)
            and sum(piece.size for piece in pieces) == math.prod(shape)
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise Damage(f"{name!r} in pieces that do not make one array", offset)
    return _Tensor(shape, dtype, pieces)


def write(
    flat: Mapping[str, Any], path: PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays as Flax does, as a whole or not at all.

    A name is cut at each `/` into the keys of nested maps; `flax.serialization.msgpack_restore`
    reads them back. The mapping and its arrays stay as they are.

    Args:
        flat: an array for each name.
        path: where to; its folder must exist.
        metadata: must be empty, for the format has no place for it.

    Raises:
        OutputError: a name, a dtype or metadata has no place in the format, or the file cannot be
            written there.
    """
    arrays = checked_arrays(flat, path)
    tree: dict[str, Any] = {}
    problems = []
    for name, array in arrays.items():
        if array.dtype not in DTYPES.values():
            problems.append(f" ! {name}: {array.dtype}")
        elif _CHUNKED in name.split("/"):
            problems.append(f" ! {name}: the key {_CHUNKED} is taken by the format")
        elif not _insert(tree, name.split("/"), array):
            problems.append(f" ! {name}: another name ends where this one goes on, or goes on")
    if metadata:
        problems.append(f" ! metadata: {', '.join(map(str, metadata))}")
    holds = "Flax's msgpack can hold (a tree of numbers, no metadata)"
    refuse_any(path, holds, problems, "write .safetensors instead")

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            _write_tree(file, tree)

    atomic_write(path, save)


def _insert(tree: dict[str, Any], keys: list[str], array: np.ndarray) -> bool:
    """Put an array into nested dicts, unless its place is taken."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            return False
    return tree.setdefault(keys[-1], array) is array


def _write_tree(file: IO[bytes], tree: Mapping[str, Any]) -> None:
    """Write one array after another, so that copies of only one are in memory."""
    packer = msgpack.Packer()
    file.write(packer.pack_map_header(len(tree)))
    for key, value in tree.items():
        file.write(packer.pack(key))
        if isinstance(value, dict):
            _write_tree(file, value)
        elif value.nbytes > _CHUNK_BYTES:
            _write_chunks(file, value)
        else:
            _write_array(file, value)


def _write_chunks(file: IO[bytes], array: np.ndarray) -> None:
    values = array.reshape(-1)
    step = max(1, _CHUNK_BYTES // array.itemsize)
    starts = range(0, values.size, step)
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(3)
    packer.pack(_CHUNKED)
    packer.pack(True)
    packer.pack("shape")
    packer.pack({str(index): side for index, side in enumerate(array.shape)})
    packer.pack("chunks")
    packer.pack_map_header(len(starts))
    file.write(packer.bytes())
    for index, start in enumerate(starts):
        file.write(msgpack.Packer().pack(str(index)))
        _write_array(file, values[start : start + step])


def _write_array(file: IO[bytes], array: np.ndarray) -> None:
    values = array.reshape(-1).view(np.uint8).data
    packer = msgpack.Packer()
    packed = packer.pack((array.shape, array.dtype.name, values))
    file.write(cast(bytes, packer.pack_ext_type(_ARRAY, packed)))


READER = Reader(NAME, matches, read, inspect, write, suffix=".msgpack")
