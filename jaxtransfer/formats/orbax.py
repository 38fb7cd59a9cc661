"""Folders that Orbax writes: a tree's structure as JSON, its arrays as zarr chunks in a database.

A folder of one tree has `_METADATA`, a JSON file with the keys, and for each array its zarr header
and chunks: in an OCDBT database (`manifest.ocdbt` and `d/`) or as plain files. Orbax's older API
(v0) writes zarr version 2, the newer one (v1) version 3. A checkpoint folder keeps one or more such
trees in folders like `state`, `pytree` or `default`; the folder of a manager keeps a checkpoint for
each step. Any of them may be named where it leads to one tree.

TensorStore, on which Orbax stands, reads the chunks; Orbax itself would ask for the devices that
wrote the arrays. Chunks that were lost are an error. A changed byte is one too where the format has
a checksum: in the structure and in small arrays always, in the chunks of large ones only if their
header asks for it, as that of files written here does.

Source: https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html,
https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html and
https://google.github.io/tensorstore/driver/zarr3/index.html
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.errors import FormatError, OutputError
from jaxtransfer.formats import msgpack
from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    check_size,
    checked_arrays,
    file_beside,
    reading,
    refuse_any,
)

NAME = "orbax"

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: dtype
    for name, dtype in msgpack.DTYPES.items()
    if name not in ("float6_e2m3fn", "float6_e3m2fn", "float8_e4m3", "uint2", "uint4")
}
"""The dtypes that TensorStore's zarr has, by their names in zarr version 3."""

_ZARR2_DTYPES = {
    dtype.newbyteorder("<").str if dtype.isbuiltin == 1 else name: dtype
    for name, dtype in DTYPES.items()
}

_TREE = "_METADATA"
_CHECKPOINT = "_CHECKPOINT_METADATA"
_MANIFEST = "manifest.ocdbt"
_STRINGS = "_strings.json"
_UNFINISHED = ".orbax-checkpoint-tmp"
_HEADERS = ("zarr.json", ".zarray")

_CODECS = ("bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd")
"""Codecs that are undone piece by piece: a small chunk cannot become a large one in memory."""

_CONTEXT = {
    # Chunks that are decoded at the same time are in memory at the same time.
    "data_copy_concurrency": {"limit": 2},
    "cache_pool": {"total_bytes_limit": 2**23},
}
_CHUNK_BOOKKEEPING = 256
_WRITTEN_CHUNK_ELEMENTS = 2**24
_REASON_CHARACTERS = 300  # TensorStore cites whole headers.


@dataclass(frozen=True)
class _Entry:
    """One leaf of the tree: its name, its key in the store, and what kind of value it is."""

    name: str
    key: str
    kind: str
    is_empty: bool


@dataclass(frozen=True)
class _Header:
    """The zarr header of one array."""

    text: bytes
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    pieces: int
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def decoded_bytes(self) -> int:
        """What the chunks take that are decoded at the same time."""
        chunks = min(_count(self.shape, self.chunk), _CONTEXT["data_copy_concurrency"]["limit"])
        return chunks * math.prod(self.chunk) * self.dtype.itemsize


class _Folder:
    """The folder of one tree, with everything in it checked but the values."""

    def __init__(self, path: Path):
        self.path = path
        self.bytes = _bytes_below(path)
        self.metadata = _json(path / _TREE, self.bytes)
        self.entries = _entries(self.metadata)
        self.strings: dict[str, Any] = {}
        if (path / _STRINGS).exists():
            self.strings = _json(path / _STRINGS, self.bytes)
        self._open_store()
        self._read_headers()

    def _open_store(self) -> None:
        import tensorstore

        base: dict[str, Any] = {"driver": "file", "path": f"{self.path.resolve()}/"}
        if (self.path / _MANIFEST).exists():
            base = {"driver": "ocdbt", "base": base}
        elif self.metadata.get("use_ocdbt"):
            raise Damage(f"no {_MANIFEST}, so the save was not finished")
        self.spec = base
        self.context = tensorstore.Context(_CONTEXT)
        self.store = tensorstore.KvStore.open(base, context=self.context).result()

    def _read_headers(self) -> None:
        self.headers: dict[str, _Header] = {}
        present = {key.decode() for key in self.store.list().result()}
        values = at_once = 0
        for entry in self.entries:
            found = [f"{entry.key}/{last}" for last in _HEADERS if f"{entry.key}/{last}" in present]
            if entry.is_empty or entry.kind == "string":
                continue
            if not found:
                raise Damage(f"no array for {entry.name!r} of the kind {entry.kind!r}")
            with _about(entry.name):
                text = self.store.read(found[0]).result().value
                header = _header(text)
            self.headers[entry.key] = header
            values += header.bytes + _CHUNK_BOOKKEEPING * header.pieces
            at_once = max(at_once, header.decoded_bytes)
            check_size(values + at_once, self.bytes, "arrays and chunks")
        arrays = {key.rpartition("/")[0] for key in present if key.endswith(_HEADERS)}
        if unnamed := sorted(arrays - self.headers.keys()):
            raise Damage(f"arrays that {_TREE} does not name: {', '.join(unnamed[:5])}")
        self._count_chunks(present)

    def _count_chunks(self, present: set[str]) -> None:
        """Refuse arrays with more or fewer chunks than their shape asks for.

        A header may be stored without a checksum; this tells a changed number in a shape.
        """
        counts = Counter(_owner(key, self.headers) for key in present if not key.endswith(_HEADERS))
        for key, header in self.headers.items():
            found, expected = counts[key], _count(header.shape, header.chunk)
            if found > expected or (found < expected and self._is_complete):
                raise Damage(f"in {key!r}: {found} chunks, where its shape has {expected}")

    @property
    def _is_complete(self) -> bool:
        """Whether chunks of zeros are stored too; older versions of Orbax left them out."""
        return self.metadata.get("store_array_data_equal_to_fill_value", False) is True

    def values(self, entry: _Entry) -> np.ndarray:
        import tensorstore

        header = self.headers[entry.key]
        spec = {
            "driver": "zarr3",
            "kvstore": {**self.spec, "path": f"{self._base_path()}{entry.key}/"},
            "metadata": _zarr3(json.loads(header.text)),
            "fill_missing_data_reads": not self._is_complete,
        }
        with _about(entry.name):
            array = tensorstore.open(
                spec, open=True, read=True, assume_metadata=True, context=self.context
            ).result()
            return array.read(order="C").result()

    def _base_path(self) -> str:
        return self.spec["path"] if self.spec["driver"] == "file" else ""

    def text(self, entry: _Entry) -> str:
        """A leaf that is no array, as text."""
        if entry.is_empty:
            return entry.kind
        if entry.kind != "string":
            values = self.values(entry)
            with _about(entry.name):
                return str(values.item())
        found = self.strings.get(entry.key)
        if not isinstance(found, str):
            raise Damage(f"no text for {entry.name!r} in {_STRINGS}")
        return found


def matches(head: bytes, path: Path) -> bool:
    """Whether a folder holds one tree of Orbax or leads to some, as a checkpoint does."""
    try:
        return path.is_dir() and bool(_trees(path))
    except OSError:
        return False


def _trees(path: Path) -> list[Path]:
    """The folders of trees at a path, or next below it."""
    for pattern in (_TREE, f"*/{_TREE}", f"*/*/{_TREE}"):
        found = [file.parent for file in path.glob(pattern) if _UNFINISHED not in str(file.parent)]
        if found:
            return sorted(found)
    return []


def _tree(path: PathLike) -> Path:
    found = _trees(Path(path))
    if not found:
        raise Damage(f"no finished tree with the file {_TREE}")
    if len(found) > 1:
        raise FormatError(
            f"{path}: expected a folder of one Orbax tree, found {len(found)}; name one of them: "
            f"{', '.join(str(folder) for folder in found[:20])}"
        )
    return found[0]


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All arrays of an Orbax folder as host arrays, named by their keys joined by `/`.

    Whatever devices wrote them, none are needed to read them. Python's numbers and NumPy's scalars,
    which Orbax does not tell apart, are metadata. A random key is its raw words.

    Raises:
        ReferenceNotFoundError: there is no such folder.
        FormatError: the folder is damaged or leads to several trees, or an array cannot be read.
    """
    with reading(path, NAME):
        folder = _Folder(_tree(path))
        return {entry.name: folder.values(entry) for entry in folder.entries if _is_array(entry)}


def inspect(path: PathLike) -> Inspection:
    """Names, shapes and dtypes of an Orbax folder, from its headers.

    What is no array, and the custom metadata of the checkpoint, is its metadata as text.

    Raises:
        ReferenceNotFoundError: there is no such folder.
        FormatError: the folder is damaged or leads to several trees, or an array cannot be read.
    """
    with reading(path, NAME):
        tree = _tree(path)
        folder = _Folder(tree)
        headers = [
            (entry.name, folder.headers[entry.key]) for entry in folder.entries if _is_array(entry)
        ]
        metadata = {
            entry.name: folder.text(entry) for entry in folder.entries if not _is_array(entry)
        }
        for key, value in _custom_metadata(folder, is_named=tree == Path(path)).items():
            text = value if isinstance(value, str) else json.dumps(value)
            metadata[f"custom_metadata/{key}" if key in metadata else key] = text
    return Inspection(
        Path(path),
        NAME,
        tuple(
            TensorInfo(name, header.shape, header.dtype.name, header.bytes)
            for name, header in headers
        ),
        metadata,
    )


def _is_array(entry: _Entry) -> bool:
    return not entry.is_empty and entry.kind not in ("scalar", "string")


def _custom_metadata(folder: _Folder, is_named: bool) -> dict[str, Any]:
    found = dict(folder.metadata.get("custom_metadata") or {})
    for place in [folder.path] if is_named else [folder.path, folder.path.parent]:
        if (place / _CHECKPOINT).exists():
            found |= _json(place / _CHECKPOINT, folder.bytes).get("custom_metadata") or {}
    return found


def _bytes_below(folder: Path) -> int:
    """The size of all files of a folder; none may lie elsewhere or be a pipe that never ends."""
    size = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            found = Path(place, name)
            relative = str(found.relative_to(folder))
            file_beside(folder / _TREE, relative)
            status = found.stat()
            is_linked_folder = name in folders and found.is_symlink()
            if is_linked_folder or not (name in folders or stat.S_ISREG(status.st_mode)):
                raise Damage(f"{relative!r}, which is no regular file or folder")
            size += status.st_size if name in files else 0
    return size


def _json(path: Path, folder_bytes: int) -> dict[str, Any]:
    """The object in a JSON file of which every key stands there once."""
    with reading(path, "JSON"):
        text = path.read_bytes()
        # Empty lists and dicts are far longer in memory than in the file.
        objects = sum(text.count(mark) for mark in (b"{", b"[", b",", b":"))
        check_size(32 * objects + 4 * len(text), folder_bytes, f"the content of {path.name}")
        try:
            found = json.loads(text.decode(), object_pairs_hook=_without_repeats)
        except json.JSONDecodeError as error:
            raise Damage(error.msg, error.pos) from error
        if not isinstance(found, dict):
            raise Damage("no JSON object")
        return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if repeated := _repeated([key for key, _ in pairs]):
        raise Damage(f"the key {repeated[0]!r} twice")
    return dict(pairs)


def _repeated(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _entries(metadata: Mapping[str, Any]) -> list[_Entry]:
    entries = []
    for label, entry in _dict_at(metadata, "tree_metadata").items():
        try:
            keys = [part["key"] for part in entry["key_metadata"]]
            kind = entry["value_metadata"]["value_type"]
            is_empty = entry["value_metadata"]["skip_deserialize"]
            entries.append(_Entry("/".join(keys), ".".join(keys), kind, is_empty))
        except (KeyError, TypeError) as error:
            raise Damage(f"in {_TREE} the entry {label!r} without its keys and kind") from error
        if type(kind) is not str or type(is_empty) is not bool:
            raise Damage(f"in {_TREE} the entry {label!r} of the kind {kind!r}, {is_empty!r}")
    for names in ([entry.name for entry in entries], [entry.key for entry in entries]):
        if repeated := _repeated(names):
            raise Damage(f"in {_TREE} several entries of the name {repeated[0]!r}")
    return entries


def _dict_at(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = mapping.get(key)
    if not isinstance(found, dict):
        raise Damage(f"no {key} where Orbax writes it")
    return found


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """Put the tensor's name before the message of whatever goes wrong."""
    try:
        yield
    except MemoryError:
        raise
    except KeyError as error:
        raise Damage(f"in {name!r}: no {error} in its header") from error
    except Exception as error:
        reason = str(error)[:_REASON_CHARACTERS] or type(error).__name__
        raise Damage(f"in {name!r}: {reason}") from error


def _header(text: bytes) -> _Header:
    zarr = _zarr3(json.loads(text.decode(), object_pairs_hook=_without_repeats))
    shape, chunk = _sides(zarr["shape"], 0), _sides(_chunk_shape(zarr["chunk_grid"]), 1)
    if len(shape) != len(chunk) or any(a % b for a, b in zip(shape, chunk, strict=True)):
        # Orbax never cuts an array into chunks that jut out over its end.
        raise Damage(f"the shape {shape} in chunks of {chunk}")
    dtype = DTYPES.get(str(zarr["data_type"]))
    if dtype is None:
        raise Damage(f"the dtype {zarr['data_type']!r}, which no array here has")
    return _Header(text, shape, chunk, _count(shape, _innermost(chunk, zarr)), dtype)


def _owner(key: str, headers: Mapping[str, _Header]) -> str:
    """The array to which a chunk belongs."""
    while key and key not in headers:
        key = key.rpartition("/")[0]
    return key


def _count(shape: tuple[int, ...], chunk: tuple[int, ...]) -> int:
    """How many chunks there are in an array of this shape."""
    return math.prod(-(-side // step) for side, step in zip(shape, chunk, strict=True))


def _chunk_shape(grid: Any) -> Any:
    if grid["name"] != "regular":
        raise Damage(f"the chunk grid {grid['name']!r}")
    return grid["configuration"]["chunk_shape"]


def _sides(sides: Any, least: int) -> tuple[int, ...]:
    if not isinstance(sides, list) or any(type(side) is not int or side < least for side in sides):
        raise Damage(f"the shape {sides}")
    return tuple(sides)


def _innermost(chunk: tuple[int, ...], zarr: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of the smallest pieces; a codec that is not undone piece by piece is refused."""
    for codec in zarr["codecs"]:
        if codec["name"] not in _CODECS:
            raise Damage(f"the codec {codec['name']!r}, where one of {', '.join(_CODECS)} may be")
        if codec["name"] == "sharding_indexed":
            inner = codec["configuration"]
            steps = _sides(inner["chunk_shape"], 1)
            if len(steps) != len(chunk):
                raise Damage(f"pieces of {len(steps)} dimensions in chunks of {len(chunk)}")
            chunk = _innermost(steps, {"codecs": [*inner["codecs"], *inner["index_codecs"]]})
    return chunk


def _zarr3(header: Any) -> dict[str, Any]:
    """A zarr header as version 3 has it, without what Orbax never writes.

    Chunks of version 2 are decoded by the rules of version 3, in which nothing is lost and which
    TensorStore undoes piece by piece.
    """
    if header["zarr_format"] == 3:
        kept = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs", "fill_value")
        return {"zarr_format": 3, "node_type": "array", **{key: header[key] for key in kept}}
    if header["zarr_format"] != 2 or header["order"] != "C" or header.get("filters"):
        raise Damage("zarr with filters, in Fortran order or of another version than 2 and 3")
    dtype = _ZARR2_DTYPES.get(str(header["dtype"]))
    if dtype is None:
        raise Damage(f"the dtype {header['dtype']!r}, which no array here has")
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": header["shape"],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": header["chunks"]}},
        "chunk_key_encoding": {
            "name": "v2",
            "configuration": {"separator": header.get("dimension_separator", ".")},
        },
        "codecs": [_codec("bytes", endian="little"), *_compression(header["compressor"])],
        "fill_value": [0.0, 0.0] if dtype.kind == "c" else False if dtype.kind == "b" else 0,
    }


def _compression(compressor: Any) -> list[dict[str, Any]]:
    if compressor is None:
        return []
    if compressor["id"] not in ("gzip", "zstd"):
        raise Damage(f"the compressor {compressor['id']!r}, where gzip or zstd may be")
    return [_codec(compressor["id"], level=1)]  # The level matters for writing alone.


def _codec(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def write(
    flat: Mapping[str, Any], path: PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays as a folder that Orbax reads, as a whole or not at all.

    A name is cut at each `/` into the keys of nested dicts. Orbax's older and newer API both read
    the folder; its chunks have checksums, which Orbax does not write by itself. The mapping and its
    arrays stay as they are.

    Args:
        flat: an array for each name.
        path: where to; there must be nothing yet, in a folder that exists.
        metadata: text to keep beside the tensors, as the checkpoint's custom metadata.

    Raises:
        OutputError: a name, a dtype or a piece of metadata has no place in the format, something is
            at `path`, or the folder cannot be written there.
    """
    path = Path(path)
    metadata = metadata or {}
    arrays = checked_arrays(flat, path)
    problems = _problems(arrays, metadata)
    refuse_any(
        path, "an Orbax folder can hold", problems, f"dtypes it can hold: {', '.join(DTYPES)}"
    )
    if path.exists() or path.is_symlink():
        raise OutputError(
            f"{path}: expected nothing here, for a folder is not replaced, found "
            f"{'a folder' if path.is_dir() else 'a file'}; remove it or choose another name"
        )
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.mkdir()
        try:
            _write_arrays(arrays, temporary)
            _write_json(_tree_metadata(arrays), temporary / _TREE)
            _write_json(_checkpoint_metadata(metadata), temporary / _CHECKPOINT)
            _sync(temporary)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, ValueError) as error:  # TensorStore tells of a full disk by a ValueError.
        raise OutputError(
            f"{path}: expected to write a folder here, found: "
            f"{getattr(error, 'strerror', None) or str(error)[:_REASON_CHARACTERS]}; make room in "
            f"{path.parent}, make it writable, or write elsewhere"
        ) from error


def _problems(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> list[str]:
    problems = [
        f" ! {name}: {array.dtype}"
        for name, array in arrays.items()
        if array.dtype not in DTYPES.values()
    ]
    keys: dict[str, str] = {}
    for name in arrays:
        first = keys.setdefault(_key(name), name)
        if first != name:
            problems.append(f" ! {name}: Orbax stores it under the same key as {first}")
        parts = name.split("/")
        parents = ("/".join(parts[:count]) for count in range(1, len(parts)))
        problems += [f" ! {name}: it goes on where {up} ends" for up in parents if up in arrays]
    problems += [
        f" ! metadata {key!r}: expected text, found {value!r}"
        for key, value in metadata.items()
        if not (isinstance(key, str) and isinstance(value, str))
    ]
    return problems


def _key(name: str) -> str:
    """What Orbax calls a leaf in the store."""
    return name.replace("/", ".")


def _write_arrays(arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write all arrays in one transaction, without a copy of them, and with their checksums."""
    import tensorstore

    store: dict[str, Any] = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{folder.resolve()}/"},
        # Headers are kept among the keys then, which have checksums.
        "config": {"max_inline_value_bytes": 1024},
    }
    context = tensorstore.Context()
    transaction = tensorstore.Transaction()
    for name, array in arrays.items():
        spec = {
            "driver": "zarr3",
            "kvstore": {**store, "path": f"{_key(name)}/"},
            "metadata": {
                "shape": array.shape,
                "data_type": array.dtype.name,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": _written_chunk(array.shape)},
                },
                "codecs": [_codec("bytes", endian="little"), {"name": "crc32c"}],
            },
            "store_data_equal_to_fill_value": True,
        }
        target = tensorstore.open(
            spec, create=True, context=context, transaction=transaction
        ).result()
        target.write(array, can_reference_source_data_indefinitely=True).result()
    transaction.commit_sync()


def _written_chunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Large arrays are cut along their first dimension, into equal chunks if that is possible."""
    whole = tuple(max(side, 1) for side in shape)
    least = -(-math.prod(whole) // _WRITTEN_CHUNK_ELEMENTS)
    counts = (count for count in range(least, 4 * least) if whole and whole[0] % count == 0)
    chunks = next(counts, 1)
    return tuple(side // chunks for side in whole[:1]) + whole[1:]


def _tree_metadata(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree = {}
    for name in arrays:
        keys = name.split("/")
        tree[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],  # 2: a dict's key.
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    return {
        "tree_metadata": tree,
        "use_ocdbt": bool(arrays),
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


def _checkpoint_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    handler = "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
    return {
        "item_handlers": handler,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": None,
        "commit_timestamp_nsecs": None,
        "custom_metadata": dict(metadata),
    }


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _sync(folder: Path) -> None:
    """Have all of a folder on the disk before it gets its name."""
    for place, _, files in os.walk(folder):
        for name in (*files, "."):
            descriptor = os.open(Path(place, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


READER = Reader(NAME, matches, read, inspect, write, suffix=".orbax")
