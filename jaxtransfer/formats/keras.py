"""Keras's files: HDF5 of Keras 1, 2 and 3 (`.h5`, `.weights.h5`) and the archives `.keras`.

Names are HDF5 paths, as the file has them:

- Keras 1 and 2: the layer, then the weight's own name, `conv1_bn/conv1_bn/gamma:0`, in the order of
  the layers. A file with a whole model has them below `model_weights/`; this group is left out
  of the names (and noted as `container` in the metadata) unless the file also holds the optimizer's
  tensors, below `optimizer_weights/`: `read_weights(path, part="model_weights")` then chooses.
- Keras 3: `layers/conv2d_1/vars/0`. Groups are named by the class of the layer and counted; the
  variables are numbered in the order in which the layer made them (kernel before bias; gamma,
  beta, moving mean, moving variance). What the layers are called in the model stands in the
  metadata.
- Any other HDF5: the paths of all datasets.

The metadata holds `layers`, a JSON object from the group of each layer to its `name` and, where the
file has a configuration, its `class`; `model_config`, `training_config`, `keras_version`, `backend`
and other attributes of the file as they stand; and `image_data_format` (`channels_first` or
`channels_last`) or, of Keras 1, `dim_ordering` (`th` or `tf`) if the configuration says it. Nothing
of a configuration is ever executed.

Source: https://github.com/keras-team/keras (keras/src/legacy/saving/legacy_h5_format.py and
keras/src/saving/saving_lib.py).
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.errors import FormatError
from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    check_size,
    map_file,
    reading,
)
from jaxtransfer.formats.hdf5 import SIGNATURE, File, Value, decoded
from jaxtransfer.formats.hdf5_arrays import Dataset, Unsupported, inflated

NAME = "keras"

_ARCHIVE = b"PK\x03\x04"
_WEIGHTS, _CONFIG, _ABOUT = "model.weights.h5", "config.json", "metadata.json"
_WHOLE_MODEL, _OPTIMIZER, _MODELS_OWN = (
    "model_weights",
    "optimizer_weights",
    "top_level_model_weights",
)
_LAYER_NAMES, _WEIGHT_NAMES = "layer_names", "weight_names"
_VARIABLES = "vars"
_PER_JSON_BYTE = 24
"""What a byte of JSON may take in memory as Python objects, such as that of `[[],[],[]]`."""


def matches(head: bytes, path: Path) -> bool:
    """Whether a file is HDF5 or a `.keras` archive, or a damaged one that begins as such."""
    if head.startswith(SIGNATURE):
        return True
    if not head.startswith(_ARCHIVE):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.namelist()
    except Exception:
        # Reading it tells what is wrong.
        return head[30:].startswith((_WEIGHTS.encode(), _CONFIG.encode(), _ABOUT.encode()))


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All tensors of a Keras or HDF5 file by name, layer by layer.

    Values that lie in one piece, as Keras writes them, are read-only views of a memory map.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or uses a part of HDF5 that Keras does not.
    """
    with _opened(path, check=True) as (file, _):
        return {name: file.values(dataset) for name, dataset in _tensors(file).items()}


def inspect(path: PathLike) -> Inspection:
    """Names, shapes, dtypes and metadata of a Keras or HDF5 file, from its headers.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or uses a part of HDF5 that Keras does not.
    """
    with _opened(path, check=False) as (file, beside):
        tensors = tuple(
            TensorInfo(name, dataset.shape, dataset.kind.dtype.name, dataset.size)
            for name, dataset in _tensors(file).items()
        )
        return Inspection(Path(path), NAME, tensors, {**beside, **_metadata(file, beside)})


# The file and the archive around it


@contextmanager
def _opened(path: PathLike, check: bool) -> Iterator[tuple[File, dict[str, str]]]:
    """The HDF5 file at a path or in the archive there, and what the archive has beside it."""
    with reading(path, NAME):
        try:
            content = map_file(path)
            if content[: len(_ARCHIVE)].tobytes() == _ARCHIVE:
                with _archived(path, content, check) as found:
                    yield found
            else:
                yield File(content), {}
        except Unsupported as problem:
            raise FormatError(
                f"{path}: expected HDF5 as Keras and h5py write it by default, found at byte "
                f"{problem.offset}: {problem.found}, which is not read here; write the file again "
                "with h5py's defaults, or as .safetensors"
            ) from problem


@contextmanager
def _archived(
    path: PathLike, content: np.ndarray, check: bool
) -> Iterator[tuple[File, dict[str, str]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            repeated = len(archive.infolist()) - len(members)
            if _WEIGHTS not in members or repeated:
                raise Damage(f"an archive of {sorted(members)[:9]}, {repeated} members repeated")
            found = {
                name: _member(archive, members[name], content, check or name != _WEIGHTS)
                for name in (_CONFIG, _ABOUT, _WEIGHTS)
                if name in members
            }
    except OSError as error:  # Offsets that lead out of the file.
        raise Damage(f"an archive that cannot be read: {error}") from error
    values, start = found.pop(_WEIGHTS)
    texts = {name: decoded(text.tobytes(), at) for name, (text, at) in found.items()}
    allocated = 0 if np.shares_memory(values, content) else values.size
    try:
        yield File(values, content.size, allocated), _beside(texts, members, content.size)
    except Damage as damage:
        # Within a packed member, only the place of the member can be told.
        place = start + (0 if allocated else damage.offset)
        raise type(damage)(f"in {_WEIGHTS}: {damage.found}", place) from damage


def _member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: np.ndarray, check: bool
) -> tuple[np.ndarray, int]:
    """The bytes of a member, a view of the file if they are stored plainly, and their place."""
    archive.open(info).close()  # It compares the two headers that a member has.
    lengths = content[info.header_offset + 26 : info.header_offset + 30].view("<u2")
    start = info.header_offset + 30 + int(lengths.astype(np.int64).sum())
    packed = content[start : start + info.compress_size]
    check_size(info.file_size, content.size, f"the member {info.filename!r}", start)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        values = inflated(packed, info.file_size, start, -zlib.MAX_WBITS)
    elif info.compress_type == zipfile.ZIP_STORED:
        values = packed
    else:
        raise Damage(f"the member {info.filename!r} in compression {info.compress_type}", start)
    if values.size != info.file_size or (check and zlib.crc32(values.data) != info.CRC):
        raise Damage(f"the member {info.filename!r} with another checksum or length", start)
    return values, start


def _beside(texts: Mapping[str, str], members: Iterable[str], file_bytes: int) -> dict[str, str]:
    """What an archive keeps beside the weights, as metadata."""
    found = {}
    if _CONFIG in texts:
        found["model_config"] = texts[_CONFIG]
    if _ABOUT in texts:
        about = _json(texts[_ABOUT], _ABOUT, file_bytes)
        found |= {key: _text(value) for key, value in _fields(about).items()}
    others = [name for name in members if name not in (*texts, _WEIGHTS)]
    if others:
        found["other members"] = json.dumps(others)
    return found


# Names and their order


def _tensors(file: File) -> dict[str, Dataset]:
    """The tensors in the order that Keras's lists give, then all others in that of the file."""
    names = dict.fromkeys([*_listed(file), *file.datasets])
    container = _container(file)
    return {
        name.removeprefix(container): file.datasets[name]
        for name in names
        if not file.datasets[name].kind.is_text
    }


def _container(file: File) -> str:
    """The beginning of names that is left out, because it is that of all tensors."""
    prefix = _WHOLE_MODEL + "/"
    names = [name for name, dataset in file.datasets.items() if not dataset.kind.is_text]
    return prefix if names and all(name.startswith(prefix) for name in names) else ""


def _listed(file: File) -> list[str]:
    """The tensors that Keras 1 and 2 list: in each group by `weight_names`."""
    groups = [*_layer_groups(file), _MODELS_OWN, f"{_WHOLE_MODEL}/{_MODELS_OWN}", _OPTIMIZER]
    names = []
    for group in groups:
        if group in file.groups:
            weights = _list_in(file.attributes(group), _WEIGHT_NAMES)
            names += _present([f"{group}/{weight}" for weight in weights], file.datasets)
    return names


def _layer_groups(file: File) -> list[str]:
    """The groups of layers that Keras 1 and 2 list in `layer_names`."""
    names = []
    for group in ("", _WHOLE_MODEL):
        if group in file.groups:
            layers = _list_in(file.attributes(group), _LAYER_NAMES)
            names += [f"{group}/{layer}" if group else layer for layer in layers]
    return _present(names, file.groups)


def _present(names: list[str], found: Mapping[str, Any]) -> list[str]:
    absent = [name for name in names if name not in found]
    if absent:
        raise Damage(f"{len(absent)} listed names that are not in the file: {absent[:5]}")
    return names


def _list_in(attributes: Mapping[str, Value], name: str) -> list[str]:
    """A list of texts, which Keras cuts into `name0`, `name1`, … where it is long."""
    if name in attributes:
        parts = [attributes[name]]
    else:
        cut = [key for key in attributes if re.fullmatch(name + "[0-9]+", key)]
        missing = {f"{name}{number}" for number in range(len(cut))} - set(cut)
        if missing:
            raise Damage(f"a list cut into {sorted(cut)}, without {sorted(missing)}")
        parts = [attributes[f"{name}{number}"] for number in range(len(cut))]
    if any(isinstance(part, str) or (isinstance(part, np.ndarray) and part.size) for part in parts):
        raise Damage(f"{name} that is no list of names: {parts}"[:200])
    # An empty list has no type of its own: Keras writes it as no numbers.
    texts = [text for part in parts if isinstance(part, list) for text in part]
    if len(set(texts)) != len(texts):
        raise Damage(f"{name} with {len(texts) - len(set(texts))} repeated names")
    return texts


# Metadata


def _metadata(file: File, beside: Mapping[str, str]) -> dict[str, str]:
    found = {
        name: _text(value)
        for group in (_WHOLE_MODEL, "")
        if group in file.groups
        for name, value in file.attributes(group).items()
        if not re.fullmatch(f"({_LAYER_NAMES}|{_WEIGHT_NAMES})[0-9]*", name)
    }
    found |= {
        name: _text(file.text(dataset))
        for name, dataset in file.datasets.items()
        if dataset.kind.is_text
    }
    text = beside.get("model_config") or found.get("model_config", "")
    config = _json(text, "model_config", file.file_bytes) if text else None
    container = _container(file)
    if container:
        found["container"] = container.removesuffix("/")
    layers = {
        group.removeprefix(container): layer for group, layer in _layers(file, config).items()
    }
    if layers:
        found["layers"] = json.dumps(layers)
    for key, name in (("data_format", "image_data_format"), ("dim_ordering", "dim_ordering")):
        formats = sorted(set(_values_of(key, config)))
        if formats:
            found[name] = ", ".join(formats)
    return found


def _layers(file: File, config: Any) -> dict[str, dict[str, str]]:
    """Name and class of each layer, by the group whose tensors are its own."""
    listed = _layer_groups(file)
    if listed:
        inside = _sublayers(config)
        names = [group.removeprefix(_WHOLE_MODEL + "/") for group in listed]
        return {
            group: _description(name, inside.get(name))
            for group, name in zip(listed, names, strict=True)
        }
    owners = {
        group.removesuffix("/" + _VARIABLES): _text(file.attributes(group)["name"])
        for group in file.groups
        if group.endswith("/" + _VARIABLES) and "name" in file.attributes(group)
    }
    configs: dict[str, Any] = {"": config}
    for owner in sorted(owners, key=lambda owner: owner.count("/")):
        above = owner
        while above and (above == owner or above not in owners):
            above = above.rpartition("/")[0]
        configs[owner] = _sublayers(configs[above]).get(owners[owner])
    return {owner: _description(name, configs[owner]) for owner, name in owners.items()}


def _description(name: str, config: Any) -> dict[str, str]:
    kind = _fields(config).get("class_name")
    return {"name": name, **({"class": kind} if isinstance(kind, str) else {})}


def _sublayers(config: Any) -> dict[str, Any]:
    """The layers in a model's configuration by name; of a Sequential of Keras 1 they are a list."""
    inner = _fields(config).get("config")
    layers = inner if isinstance(inner, list) else _fields(inner).get("layers")
    found = {}
    for layer in layers if isinstance(layers, list) else []:
        name = _fields(layer).get("name") or _fields(_fields(layer).get("config")).get("name")
        if isinstance(name, str):
            found[name] = layer
    return found


def _values_of(key: str, config: Any) -> Iterator[str]:
    """The texts that stand under a key anywhere in a configuration."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            value = part.get(key)
            if isinstance(value, str):
                yield value
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _fields(value: Any) -> dict[str, Any]:
    """A JSON object as it is; nothing for what is none, which models of one's own may have."""
    return value if isinstance(value, dict) else {}


def _json(text: str, what: str, file_bytes: int) -> Any:
    check_size(_PER_JSON_BYTE * len(text), file_bytes, what)
    try:
        return json.loads(text)
    except ValueError as error:
        raise Damage(f"{what}, which is no JSON: {error}") from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value)


READER = Reader(NAME, matches, read, inspect)
