"""Darknet's `.weights`, which mean something only together with the network's `.cfg`.

A file is a short header and one run of float32 values without names or shapes: the arrays of one
layer after the other, as the `.cfg` lists them. Arrays are named by the number of their layer
(from 0, `[net]` not counted) and by Darknet's own name of the field, such as `0/rolling_mean`.
Weights of `[connected]` layers come as (outputs, inputs), those of convolutions as
(outputs, inputs / groups, height, width).

Source: `load_weights_upto`, `parse_network_cfg_custom` and `read_cfg` in `src/parser.c` and the
`make_*_layer` functions of https://github.com/pjreddie/darknet and
https://github.com/AlexeyAB/darknet, which has more kinds of layers.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from jaxtransfer.errors import FormatError
from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    array_at,
    file_beside,
    map_file,
    reading,
)

NAME = "darknet"

_FLOAT = np.dtype(np.float32)
_ALIASES: Mapping[str, str] = {
    "network": "net",
    "conv": "convolutional",
    "conn": "connected",
    "max": "maxpool",
    "avg": "avgpool",
    "local_avg": "local_avgpool",
    "lrn": "normalization",
    "soft": "softmax",
    "silence": "empty",
    "reorg3d": "reorg",
}
_LARGEST_CFG = 2**18
_LARGEST_NUMBER = 2**31 - 1
_BACKBONE = re.compile(r"(?P<stem>.+)\.conv\.(?P<count>\d{1,6})")


@dataclass(frozen=True)
class Section:
    """One section of a `.cfg`.

    Attributes:
        kind: what stands in the brackets, short forms written out: `convolutional` for `conv`.
        options: from each key to its value, both without blanks; the first of equal keys counts.
        offset: the byte of the file where the section begins.
    """

    kind: str
    options: Mapping[str, str]
    offset: int

    def number(self, key: str, default: int) -> int:
        """A whole number, as C's `atoi` reads it: what follows the digits is ignored.

        Raises:
            Damage: the value does not begin with a number.
        """
        return _number(self.options[key], key, self) if key in self.options else default

    def numbers(self, key: str) -> list[int]:
        """A list of whole numbers with commas between them.

        Raises:
            Damage: there is no such key, or not only numbers in its value.
        """
        if key not in self.options:
            raise Damage(f"a section [{self.kind}] without {key!r}", self.offset)
        # Darknet reads on after a comment sign only what it needs, which is nothing.
        values = self.options[key].partition("#")[0].rstrip(",").split(",")
        return [_number(value, key, self) for value in values]


def _number(text: str, key: str, section: Section) -> int:
    found = re.match(r"[+-]?\d{1,10}(?!\d)", text)
    if found is None or abs(int(found[0])) > _LARGEST_NUMBER:
        raise Damage(
            f"{key}={text[:20]} in a section [{section.kind}], where a whole number is expected",
            section.offset,
        )
    return int(found[0])


def read_cfg(path: PathLike) -> tuple[Section, ...]:
    """The sections of a Darknet `.cfg`, `[net]` first.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is no `.cfg`.
    """
    with reading(path, f"{NAME} .cfg"), open(path, "rb") as file:
        content = file.read(_LARGEST_CFG + 1)
        if len(content) > _LARGEST_CFG:
            raise Damage(f"more than {_LARGEST_CFG} bytes")
        sections = tuple(_sections(content))
        if not sections or sections[0].kind != "net":
            raise Damage("no section [net] at the beginning")
    return sections


def _sections(content: bytes) -> Iterator[Section]:
    options: dict[str, str] = {}
    has_begun = False
    offset = 0
    for raw in content.split(b"\n"):
        # Darknet drops all blanks, those within a line too.
        line = "".join(raw.decode("utf-8", "replace").split())
        if line.startswith("["):
            kind = line.strip("[]")
            options = {}
            has_begun = True
            # The options that follow are put in while the caller holds the section.
            yield Section(_ALIASES.get(kind, kind), options, offset)
        elif line and line[0] not in "#;":
            key, equals, value = line.partition("=")
            if not (has_begun and equals):
                raise Damage(f"the line {line[:40]!r}, where [section] or key=value fits", offset)
            options.setdefault(key, value)
        offset += len(raw) + 1


_Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width of what a layer gives."""


@dataclass(frozen=True)
class _Array:
    """One array of a layer, in the order of the file; a transposed one has its outputs last."""

    field: str
    shape: tuple[int, ...]
    is_transposed: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Variant:
    """In what files of different versions of Darknet differ."""

    transposes_dense: bool
    has_batchnorm_biases: bool = True


@dataclass(frozen=True)
class _Layer:
    kind: str
    arrays: tuple[_Array, ...]
    shape: _Shape

    @property
    def size(self) -> int:
        return sum(array.size for array in self.arrays)


_Built: TypeAlias = tuple[list[_Array], _Shape]
_Builder: TypeAlias = Callable[[Section, _Shape, Sequence[_Layer], _Variant], _Built]


def _statistics(section: Section, size: int) -> list[_Array]:
    if not section.number("batch_normalize", 0) and not section.number("cbn", 0):
        return []
    if section.number("dontloadscales", 0):
        return []
    return [_Array(field, (size,)) for field in ("scales", "rolling_mean", "rolling_variance")]


def _slid(section: Section, shape: _Shape, padding: int) -> tuple[int, int]:
    """Height and width after a window of the section's size and stride."""
    default = section.number("stride", 1)
    strides = section.number("stride_y", default), section.number("stride_x", default)
    size = section.number("size", default if "pool" in section.kind else 1)
    _, height, width = shape
    if min(strides) < 1:
        raise Damage(f"a section [{section.kind}] with strides of {strides}", section.offset)
    return (
        (height + padding - size) // strides[0] + 1,
        (width + padding - size) // strides[1] + 1,
    )


def _convolutional(
    section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant
) -> _Built:
    filters, size = section.number("filters", 1), section.number("size", 1)
    groups = section.number("groups", 1)
    padding = size // 2 if section.number("pad", 0) else section.number("padding", 0)
    if groups < 1 or shape[0] % groups:
        raise Damage(f"{shape[0]} channels in {groups} groups", section.offset)
    built = (filters, *_slid(section, shape, 2 * padding))
    if "share_index" in section.options:
        return [], built  # It uses the weights of another layer.
    is_flipped = bool(section.number("flipped", 0))
    weights = _Array("weights", (filters, shape[0] // groups, size, size), is_flipped)
    return [_Array("biases", (filters,)), *_statistics(section, filters), weights], built


def _connected(
    section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant
) -> _Built:
    outputs = section.number("output", 1)
    weights = _Array("weights", (outputs, math.prod(shape)), variant.transposes_dense)
    arrays = [_Array("biases", (outputs,)), weights, *_statistics(section, outputs)]
    return arrays, (outputs, 1, 1)


def _batchnorm(
    section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant
) -> _Built:
    fields = ("biases", "scales", "rolling_mean", "rolling_variance")
    used = fields if variant.has_batchnorm_biases else fields[1:]
    return [_Array(field, shape[:1]) for field in used], shape


def _local(section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant) -> _Built:
    filters, size = section.number("filters", 1), section.number("size", 1)
    padding = size - 1 if section.number("pad", 0) else 0
    height, width = _slid(section, shape, padding)
    weights = _Array("weights", (height, width, filters, shape[0], size, size))
    return [_Array("biases", (filters, height, width)), weights], (filters, height, width)


def _shortcut(
    section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant
) -> _Built:
    sources = len(_sources(section, "from", before)) + 1
    kind = section.options.get("weights_type", "none")
    shapes = {
        "none": None,
        "per_feature": (sources,),
        "per_layer": (sources,),
        "per_channel": (sources, shape[0]),
    }
    if kind not in shapes:
        raise Damage(f"weights_type={kind[:20]} in a section [shortcut]", section.offset)
    weights = shapes[kind]
    return [] if weights is None else [_Array("weights", weights)], shape


def _implicit(
    section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant
) -> _Built:
    filters, atoms = section.number("filters", 128), section.number("atoms", 1)
    return [_Array("weights", (filters, atoms))], (filters, atoms, 1)


def _route(section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant) -> _Built:
    sources = _sources(section, "layers", before)
    sizes = {source.shape[1:] for source in sources}
    groups = section.number("groups", 1)
    channels = sum(source.shape[0] for source in sources)
    if len(sizes) > 1 or groups < 1 or channels % groups:
        raise Damage(
            f"a section [route] of {channels} channels in {groups} groups, heights and widths of "
            f"{sorted(sizes)[:4]}",
            section.offset,
        )
    return [], (channels // groups, *sources[0].shape[1:])


def _sources(section: Section, key: str, before: Sequence[_Layer]) -> list[_Layer]:
    """The layers that another one names, counted from the first or back from itself."""
    indices = [number if number >= 0 else len(before) + number for number in section.numbers(key)]
    if not all(0 <= index < len(before) for index in indices):
        raise Damage(
            f"{key}={section.options[key][:40]} in layer {len(before)}, which only has layers "
            "before it",
            section.offset,
        )
    return [before[index] for index in indices]


def _as_source(
    section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant
) -> _Built:
    return [], _sources(section, "from", before)[0].shape


def _pool(section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant) -> _Built:
    if section.number("maxpool_depth", 0):
        return [], (section.number("out_channels", 1), *shape[1:])
    size = section.number("size", section.number("stride", 1))
    return [], (shape[0], *_slid(section, shape, section.number("padding", size - 1)))


def _average(
    section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant
) -> _Built:
    return [], (shape[0], 1, 1)


def _upsample(
    section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant
) -> _Built:
    stride = section.number("stride", 2)
    return [], _resized(shape, abs(stride), stride > 0, shape[0], section)


def _reorg(section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant) -> _Built:
    stride = section.number("stride", 1)
    if section.number("reverse", 0):
        channels = shape[0] // max(stride**2, 1)
        return [], _resized(shape, stride, True, channels, section)
    return [], _resized(shape, stride, False, shape[0] * stride**2, section)


def _resized(
    shape: _Shape, stride: int, is_larger: bool, channels: int, section: Section
) -> _Shape:
    _, height, width = shape
    if stride < 1:
        raise Damage(f"a section [{section.kind}] with a stride of {stride}", section.offset)
    if is_larger:
        return channels, height * stride, width * stride
    return channels, height // stride, width // stride


def _crop(section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant) -> _Built:
    return [], (shape[0], section.number("crop_height", 1), section.number("crop_width", 1))


def _same(section: Section, shape: _Shape, before: Sequence[_Layer], variant: _Variant) -> _Built:
    return [], shape


_BUILDERS: Mapping[str, _Builder] = {
    "convolutional": _convolutional,
    "connected": _connected,
    "batchnorm": _batchnorm,
    "local": _local,
    "shortcut": _shortcut,
    "implicit": _implicit,
    "route": _route,
    "scale_channels": _as_source,
    "sam": _as_source,
    "maxpool": _pool,
    "local_avgpool": _pool,
    "avgpool": _average,
    "upsample": _upsample,
    "reorg": _reorg,
    "crop": _crop,
} | dict.fromkeys(
    (
        "activation",
        "contrastive",
        "cost",
        "detection",
        "dropout",
        "empty",
        "Gaussian_yolo",
        "l2norm",
        "logistic",
        "normalization",
        "region",
        "softmax",
        "yolo",
    ),
    _same,
)


_UNREAD_OPTIONS = ("antialiasing", "extra")


def _unreadable(sections: Sequence[Section]) -> list[str]:
    """Layers whose arrays or sizes are not known here, with what makes them so."""
    found = []
    for index, section in enumerate(sections[1:]):
        options = [option for option in _UNREAD_OPTIONS if section.number(option, 0)]
        if section.kind not in _BUILDERS or options:
            kind = " ".join([f"[{section.kind[:40]}]", *options])
            found.append(f" ! layer {index} {kind}, at byte {section.offset}")
    return found


def _input_shape(net: Section) -> _Shape:
    shape = net.number("channels", 0), net.number("height", 0), net.number("width", 0)
    return shape if all(shape) else (net.number("inputs", 0), 1, 1)


def _layers(sections: Sequence[Section], variant: _Variant) -> list[_Layer]:
    """What each layer stores and gives, found as Darknet finds it: from the input on."""
    net, *others = sections
    shape = _input_shape(net)
    _check_shape(shape, "the input", net)
    layers: list[_Layer] = []
    for index, section in enumerate(others):
        what = f"layer {index} [{section.kind}]"
        arrays, shape = _BUILDERS[section.kind](section, shape, layers, variant)
        _check_shape(shape, what, section)
        for array in arrays:
            _check_shape(array.shape, f"{array.field} of {what}", section)
        if section.number("dontload", 0):
            arrays = []
        layers.append(_Layer(section.kind, tuple(arrays), shape))
    return layers


def _check_shape(shape: tuple[int, ...], what: str, section: Section) -> None:
    if not all(1 <= size <= _LARGEST_NUMBER for size in shape):
        raise Damage(f"{what} with the shape {shape}", section.offset)


@dataclass(frozen=True)
class _Header:
    """What stands before the values.

    The first versions of Darknet wrote the learning rate, the momentum and the decay where later
    ones have three numbers of a version; as integers they are huge, by which all tell them apart.
    """

    metadata: Mapping[str, str]
    size: int
    transposes_dense: bool


_OLD_HEADER_BYTES = 16
_NEW_HEADER_BYTES = 20


def _header(start: bytes) -> _Header:
    if len(start) < _NEW_HEADER_BYTES:  # The shorter one and a single value.
        raise Damage(f"{len(start)} bytes, too few for a header and values", len(start))
    major, minor, revision = (int(number) for number in np.frombuffer(start, "<i4", 3))
    is_new = major * 10 + minor >= 2 and major < 1000 and minor < 1000
    size = _NEW_HEADER_BYTES if is_new else _OLD_HEADER_BYTES
    transposes_dense = major > 1000 or minor > 1000
    if transposes_dense:
        rates = np.frombuffer(start, "<f4", 3)
        names = ("learning_rate", "momentum", "decay")
        metadata = {name: str(rate) for name, rate in zip(names, rates, strict=True)}
    else:
        metadata = {"version": f"{major}.{minor}.{revision}"}
    metadata["seen"] = str(int.from_bytes(start[12:size], "little"))
    return _Header(metadata, size, transposes_dense)


_MOST_SEEN = {_OLD_HEADER_BYTES: 2**29, _NEW_HEADER_BYTES: 2**48}
"""Images seen in training; the bits of ordinary float32 values are larger than the former."""


def matches(head: bytes, path: Path) -> bool:
    """Whether a file without any magic number looks like Darknet's header and float32 values.

    The version must be one that Darknet had, or learning rate, momentum and decay in its place;
    the number of images seen must be one that can be reached; the file's size must be whole
    values; and the first values must be ordinary numbers.
    """
    try:
        size = path.stat().st_size
        header = _header(head)
    except (OSError, Damage):
        return False
    return (
        _is_known_version(head, header.transposes_dense)
        and int(header.metadata["seen"]) < _MOST_SEEN[header.size]
        and size > header.size
        and (size - header.size) % _FLOAT.itemsize == 0
        and _are_ordinary(head[header.size :])
    )


def _is_known_version(head: bytes, is_old: bool) -> bool:
    if is_old:
        rates = np.frombuffer(head, "<f4", 3)
        # Three groups of four digits and signs can be such numbers too.
        is_text = head[:_OLD_HEADER_BYTES].isascii() and 0 not in head[:_OLD_HEADER_BYTES]
        return bool(np.all((rates > 1e-6) & (rates <= 1))) and not is_text
    major, minor, revision = np.frombuffer(head, "<i4", 3)
    return 0 <= major < 10 and 0 <= minor < 10 and major + minor > 0 and 0 <= revision < 100


def _are_ordinary(content: bytes) -> bool:
    whole = len(content) // _FLOAT.itemsize * _FLOAT.itemsize
    values = np.abs(np.frombuffer(content[:whole], "<f4"))
    # Noise, text, integers and other floats have many values outside of these bounds as float32.
    are_ordinary = (values > 1e-30) & (values < 1e10)
    return bool(np.mean(are_ordinary | (values == 0)) > 0.9 and np.mean(are_ordinary) > 0.25)


def read(path: PathLike, architecture: PathLike | None = None) -> dict[str, np.ndarray]:
    """All arrays of a Darknet file, as read-only views of a memory map, in the file's order.

    A file whose name ends in `.conv.N` holds the first N layers of the network, as Darknet's
    `partial` command writes them; any other file must end with the last layer.

    Args:
        path: the `.weights`.
        architecture: the `.cfg`; by default the one beside the weights with the same stem (for
            `darknet53.conv.74`: `darknet53.cfg`).

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: there is no `.cfg`, it has a layer that is not known here, or the weights end
            elsewhere than the layers do.
    """
    with reading(path, NAME):
        content = map_file(path)
        return {
            name: _view(content, name, array, offset)
            for name, array, offset in _placed(path, architecture, content).arrays
        }


def inspect(path: PathLike, architecture: PathLike | None = None) -> Inspection:
    """Names, shapes, version and kinds of layers, from the header and the `.cfg`.

    Args:
        path: the `.weights`.
        architecture: the `.cfg`; by default the one beside the weights with the same stem.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: there is no `.cfg`, it has a layer that is not known here, or the weights end
            elsewhere than the layers do.
    """
    with reading(path, NAME):
        placed = _placed(path, architecture, map_file(path))
    tensors = tuple(
        TensorInfo(name, array.shape, _FLOAT.name, array.size * _FLOAT.itemsize)
        for name, array, _ in placed.arrays
    )
    metadata = dict(placed.header.metadata)
    metadata["architecture"] = placed.cfg.name
    metadata["layers"] = " ".join(layer.kind for layer in placed.layers)
    transposed = [name for name, array, _ in placed.arrays if array.is_transposed]
    if transposed:
        metadata["transposed"] = " ".join(transposed)
    return Inspection(Path(path), NAME, tensors, metadata)


@dataclass(frozen=True)
class _Placed:
    """A file with its description: the layers it holds, and where each array of them begins."""

    header: _Header
    cfg: Path
    layers: Sequence[_Layer]
    arrays: Sequence[tuple[str, _Array, int]]


def _placed(path: PathLike, architecture: PathLike | None, content: np.ndarray) -> _Placed:
    header = _header(content[:_NEW_HEADER_BYTES].tobytes())
    cfg, count = _cfg_of(path, architecture)
    sections = read_cfg(cfg)
    with reading(cfg, f"{NAME} .cfg"):
        if count is not None and not 0 < count < len(sections):
            raise Damage(f"{len(sections) - 1} layers, where the name of {path} says {count}")
        sections = sections if count is None else sections[: count + 1]
        if unreadable := _unreadable(sections):
            known = f"layers that can be read are {', '.join(_BUILDERS)}"
            raise FormatError("\n".join([f"{cfg}: expected other layers than", *unreadable, known]))
        layers = _fitting_layers(sections, header, content.size)
    arrays = []
    offset = header.size
    for index, layer in enumerate(layers):
        for array in layer.arrays:
            arrays.append((f"{index}/{array.field}", array, offset))
            offset += array.size * _FLOAT.itemsize
    if offset != content.size:
        raise FormatError(_misfit(path, cfg, layers, header, content.size))
    return _Placed(header, cfg, layers, arrays)


def _cfg_of(path: PathLike, architecture: PathLike | None) -> tuple[Path, int | None]:
    """The `.cfg` of a file, and how many layers the file's name says that it holds."""
    path = Path(path)
    backbone = _BACKBONE.fullmatch(path.name)
    count = int(backbone["count"]) if backbone else None
    if architecture is not None:
        return Path(architecture), count
    cfg = file_beside(path, f"{backbone['stem'] if backbone else path.stem}.cfg")
    if not cfg.is_file():
        raise FormatError(
            f"{path}: expected the network's description beside it, for {NAME} weights have no "
            f"names and no shapes, found no {cfg.name}; put it there, or give its path as "
            "`architecture`"
        )
    return cfg, count


def _fitting_layers(sections: Sequence[Section], header: _Header, file_bytes: int) -> list[_Layer]:
    """The layers of the network, in that variant of the format which has the file's size."""
    layers = _layers(sections, _Variant(header.transposes_dense))
    if any(layer.kind == "batchnorm" for layer in layers):
        # pjreddie's Darknet writes no biases for these, AlexeyAB's does.
        others = _layers(sections, _Variant(header.transposes_dense, False))
        if header.size + sum(layer.size for layer in others) * _FLOAT.itemsize == file_bytes:
            return others
    return layers


def _misfit(
    path: PathLike, cfg: Path, layers: Sequence[_Layer], header: _Header, file_bytes: int
) -> str:
    """What to say about a file that does not end with the last layer."""
    sizes = (layer.size * _FLOAT.itemsize for layer in layers)
    ends = list(itertools.accumulate(sizes, initial=header.size))
    expected = (
        f"{path}: expected the {ends[-1]} bytes of the {len(layers)} layers in {cfg}, found "
        f"{file_bytes} bytes"
    )
    remedy = "the file is damaged or incomplete, or the .cfg is that of another network"
    if file_bytes > ends[-1]:
        surplus = file_bytes - ends[-1]
        return f"{expected}, {surplus} of them after the last layer, at byte {ends[-1]}; {remedy}"
    count = bisect.bisect_left(ends, file_bytes)
    if count and ends[count] == file_bytes:
        return (
            f"{expected} and at byte {file_bytes} the end of layer {count - 1}, as in a backbone "
            f"of the first {count} layers; if it is one, name it {Path(path).stem}.conv.{count}"
        )
    index = max(count - 1, 0)
    where = f"layer {index} [{layers[index].kind}], at byte {file_bytes}"
    return f"{expected}, which end in {where}; {remedy}"


def _view(content: np.ndarray, name: str, array: _Array, offset: int) -> np.ndarray:
    if not array.is_transposed:
        return array_at(content, offset, _FLOAT, array.shape, name)
    stored = (math.prod(array.shape[1:]), array.shape[0])
    return array_at(content, offset, _FLOAT, stored, name).T.reshape(array.shape)


READER = Reader(NAME, matches, read, inspect, takes_architecture=True)
