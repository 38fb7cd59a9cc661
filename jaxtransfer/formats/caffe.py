"""Caffe's `.caffemodel`: a protocol buffer of layers, each with blobs of numbers.

A blob has no name in Caffe, so a tensor is called `LAYER/INDEX`: `conv1/0` are the weights of the
layer `conv1` and `conv1/1` is its bias. All three generations of the format are read: `layer`
(since 2015), `layers` (2014, types are numbers) and `layers` that wrap a `layer` (2013).

Shapes are those of the file, but for the four axes that every blob had before 2015, which Caffe
itself counts from the last one: the weights of an InnerProduct layer, (1, 1, out, in), come as
(out, in), and the bias of a Convolution, Deconvolution or InnerProduct layer, (1, 1, 1, out), as
(out,). The weights of convolutions keep four axes, and so do blobs of all other layers.

A BatchNorm layer with three blobs holds sums of means and of variances, and the factor that they
were multiplied by. Mean and variance come divided by the factor, as Caffe does it (times 0 if the
factor is 0); the factor `LAYER/2` itself is no tensor here, but stands in the metadata.

Gradients that were saved beside the values (`diff`) are left out.

Sources: src/caffe/proto/caffe.proto, src/caffe/blob.cpp (`FromProto`, `ShapeEquals`),
src/caffe/util/upgrade_proto.cpp and src/caffe/layers/batch_norm_layer.cpp of
https://github.com/BVLC/caffe and https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

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
from jaxtransfer.formats.wire import BYTES, DEEPEST, PART_BYTES, VARINT, Field, Message

NAME = "caffe"

_NET_NAME, _NET_OLD_LAYER, _NET_LAYER = 1, 2, 100
_NET_KINDS: Mapping[int, tuple[int, ...]] = {
    _NET_NAME: (BYTES,),
    3: (BYTES,),  # input
    4: (VARINT, BYTES),  # input_dim
    5: (VARINT,),  # force_backward
    6: (BYTES,),  # state
    7: (VARINT,),  # debug_info
    8: (BYTES,),  # input_shape
    _NET_OLD_LAYER: (BYTES,),
    _NET_LAYER: (BYTES,),
}
"""The fields of `NetParameter` and how each is written."""


class _LayerFields(NamedTuple):
    """The numbers of a layer's fields in one generation of the format."""

    name: int
    type: int
    blobs: int


_V2, _V1, _V0 = _LayerFields(1, 2, 7), _LayerFields(4, 5, 6), _LayerFields(1, 2, 50)
_V1_WRAPPED = 1

_OLD_TYPES: Mapping[int | str, str] = {
    4: "Convolution",
    14: "InnerProduct",
    39: "Deconvolution",
    "CONVOLUTION": "Convolution",
    "INNER_PRODUCT": "InnerProduct",
    "DECONVOLUTION": "Deconvolution",
    "conv": "Convolution",
    "innerproduct": "InnerProduct",
}
"""Today's names of the types with parameters that Caffe had before 2015."""

_LEGACY_SHAPE = (1, 2, 3, 4)
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8
_MOST_AXES = 32  # `kMaxBlobAxes` of include/caffe/blob.hpp.
_FLOAT, _DOUBLE = np.dtype("<f4"), np.dtype("<f8")

_HAVE_PARAMETERS = frozenset(
    {"BatchNorm", "Convolution", "Deconvolution", "Embed", "InnerProduct", "PReLU"}
)
"""The types whose layers have parameters whatever their options are."""


def matches(head: bytes, path: Path) -> bool:
    """Whether a file is a `NetParameter` up to its first layer, which has a name."""
    if not head:
        return False
    try:
        net = Message(map_file(path))
        for entry in net:
            if entry.kind not in _NET_KINDS.get(entry.number, ()):
                return False
            if entry.number in (_NET_LAYER, _NET_OLD_LAYER):
                return _is_layer(net, entry)
            if entry.number == _NET_NAME and not net.looks_like_text(entry):
                return False
    except Exception:
        return False
    return False


def _is_layer(net: Message, entry: Field) -> bool:
    layer, numbers = _unwrapped(net, entry)
    for found in layer:
        if found.number == numbers.name:
            return found.stop > found.start and layer.looks_like_text(found)
    return False


def read(path: PathLike, architecture: PathLike | None = None) -> dict[str, np.ndarray]:
    """All blobs of a `.caffemodel` by `LAYER/INDEX`, in the order of the file.

    Arrays are float32 (float64 where the file has `double_data`) and read-only views of the file;
    only divided BatchNorm statistics and values that do not stand together are copies.

    Args:
        path: the `.caffemodel`.
        architecture: a `.prototxt` of the network; by default the one beside the weights with the
            same stem, if there is one. It tells the types of layers for which the weights do not,
            and every layer of it that must have parameters is looked for in the weights. Layers
            that only the weights have are read all the same.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or layers of the network have no parameters in it.
    """
    return _load(path, architecture).tensors


def inspect(path: PathLike, architecture: PathLike | None = None) -> Inspection:
    """Names, shapes and dtypes of a `.caffemodel`; values are not read.

    The metadata says the name of the network, the type of each layer (`LAYER/type`), whether the
    network of `architecture` lacks it, and the factor of BatchNorm statistics (`LAYER/2`).

    Args:
        path: the `.caffemodel`.
        architecture: a `.prototxt` of the network; see `read`.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, or layers of the network have no parameters in it.
    """
    weights = _load(path, architecture)
    infos = [
        TensorInfo(name, array.shape, array.dtype.name, array.nbytes)
        for name, array in weights.tensors.items()
    ]
    return Inspection(Path(path), NAME, tuple(infos), weights.metadata)


@dataclass
class _Weights:
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def _load(path: PathLike, architecture: PathLike | None) -> _Weights:
    network = _network(path, architecture)
    weights, layers = _Weights(), {}
    with reading(path, NAME):
        net, kept = Message(map_file(path)), 0
        for entry in net:
            if entry.number == _NET_NAME:
                if name := net.text(entry):
                    weights.metadata["network"] = name
            elif entry.number in (_NET_LAYER, _NET_OLD_LAYER):
                layer = _layer(net, entry)
                if not layer.blobs:
                    continue
                if not layer.name or layer.name in layers:
                    problem = "again" if layer.name else "without a name"
                    raise Damage(f"a layer {layer.name!r} with parameters {problem}", entry.begin)
                layers[layer.name] = None
                # A character takes up to four bytes.
                kept += (len(layer.blobs) + 2) * (PART_BYTES + 4 * len(layer.name))
                check_size(kept, net.content.size, "names", entry.begin)
                _add_layer(weights, layer, network)
        if not layers:
            raise Damage("no layer with parameters: this describes a network without its weights")
    if network is not None:
        network.check(path, layers)
    return weights


@dataclass(frozen=True)
class _Layer:
    name: str
    type: str
    blobs: list[Message]


def _unwrapped(net: Message, entry: Field) -> tuple[Message, _LayerFields]:
    """The message that holds a layer's name, type and blobs, and the numbers of these there."""
    layer = net.inner(entry)
    if entry.number == _NET_LAYER:
        return layer, _V2
    for found in layer:
        if found.number == _V1_WRAPPED:
            return layer.inner(found), _V0
    return layer, _V1


def _layer(net: Message, entry: Field) -> _Layer:
    message, numbers = _unwrapped(net, entry)
    name, kind, blobs = "", "", []
    for found in message:
        if found.number == numbers.name:
            name = message.text(found)
        elif found.number == numbers.type:
            old = message.integer(found) if numbers is _V1 else message.text(found)
            kind = _OLD_TYPES.get(old, str(old))
        elif found.number == numbers.blobs:
            blobs.append(message.inner(found))
            check_size(len(blobs) * PART_BYTES, net.content.size, "blobs", found.begin)
    return _Layer(name, kind, blobs)


def _add_layer(weights: _Weights, layer: _Layer, network: _Network | None) -> None:
    kind = layer.type
    if network is not None:
        kind = kind or network.types.get(layer.name, "")
    arrays = [_array(blob, layer, kind, index) for index, blob in enumerate(layer.blobs)]
    weights.metadata[f"{layer.name}/type"] = kind or "unknown"
    if network is not None and layer.name not in network.types:
        weights.metadata[f"{layer.name}/type"] += f", not in {network.path.name}"
    if kind == "BatchNorm" and len(arrays) == 3:
        *statistics, factor = arrays
        if factor.size != 1:
            raise Damage(
                f"{layer.name}/2, a BatchNorm factor, with the shape {factor.shape}",
                layer.blobs[2].start,
            )
        weights.metadata[f"{layer.name}/2"] = f"scale factor {factor.item():.7g}, applied"
        arrays = [_divided(statistic, factor.reshape(())) for statistic in statistics]
    weights.tensors |= {f"{layer.name}/{index}": array for index, array in enumerate(arrays)}


def _divided(statistic: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """A sum over batches as Caffe makes a mean of it: times the rounded inverse of the factor."""
    with np.errstate(all="ignore"):  # A damaged factor gives what it gives in Caffe.
        inverse = factor.dtype.type(0) if factor == 0 else 1 / factor
        return statistic * inverse


def _array(blob: Message, layer: _Layer, kind: str, index: int) -> np.ndarray:
    name = f"{layer.name}/{index}"
    values, doubles = blob.numbers(_DATA, _FLOAT), blob.numbers(_DOUBLE_DATA, _DOUBLE)
    if values.size and doubles.size:
        raise Damage(f"{name} with both float and double values", blob.start)
    values = doubles if doubles.size else values
    shape = _shape(blob, kind, index)
    if min(shape, default=0) < 0 or math.prod(shape) != values.size:
        raise Damage(f"{name} with {values.size} values for the shape {shape}", blob.start)
    return values.astype(values.dtype.newbyteorder("="), copy=False).reshape(shape)


def _shape(blob: Message, kind: str, index: int) -> tuple[int, ...]:
    legacy: dict[int, int] = {}
    shape: list[int] = []
    for entry in blob:
        if entry.number in _LEGACY_SHAPE:
            legacy[entry.number] = blob.integer(entry)
        elif entry.number == _SHAPE:
            shape = blob.inner(entry).integers(1, _MOST_AXES)
    if not legacy:
        return tuple(shape)
    four = tuple(legacy.get(number, 0) for number in _LEGACY_SHAPE)
    if kind == "InnerProduct" and index == 0 and four[:2] == (1, 1):
        return four[2:]
    has_bias = kind in ("Convolution", "Deconvolution", "InnerProduct")
    if has_bias and index == 1 and four[:3] == (1, 1, 1):
        return four[3:]
    return four


Prototxt: TypeAlias = dict[str, list[Any]]
"""A message in text: from a field's name to its values, each a text or a message again."""


_Value = TypeVar("_Value", str, dict)


@dataclass(frozen=True)
class _Network:
    """What a `.prototxt` says of its layers: their types, and which must have parameters."""

    path: Path
    types: dict[str, str]
    required: tuple[str, ...]

    def check(self, path: PathLike, found: Collection[str]) -> None:
        lacking = [name for name in self.required if name not in found]
        if lacking:
            lines = [f" ! {name}: {self.types[name]}" for name in lacking]
            raise FormatError(
                "\n".join(
                    [
                        f"{path}: expected parameters for each such layer of {self.path}, found "
                        "none for:",
                        *lines,
                        "name the network of these weights with `architecture`",
                    ]
                )
            )


def _network(path: PathLike, architecture: PathLike | None) -> _Network | None:
    if architecture is None:
        architecture = Path(f"{os.path.splitext(path)[0]}.prototxt")
        if not architecture.is_file():
            return None
    description = read_prototxt(architecture)
    types, required = {}, []
    with reading(architecture, "prototxt"):
        for entry in [*description.get("layer", []), *description.get("layers", [])]:
            layer = entry
            for wrapped in _of_kind(dict, entry, "layer"):
                layer = wrapped
            name, kind = ("".join(_of_kind(str, layer, key)[-1:]) for key in ("name", "type"))
            types[name] = _OLD_TYPES.get(kind, kind)
            # What only some phases have need not be in the weights.
            if types[name] in _HAVE_PARAMETERS and not {"include", "exclude"} & layer.keys():
                required.append(name)
        if not types:
            raise Damage("no layer")
    return _Network(Path(architecture), types, tuple(required))


def _of_kind(kind: type[_Value], message: Any, name: str) -> list[_Value]:
    """The values of a field in text, which must be messages (`dict`) or texts (`str`)."""
    if not isinstance(message, dict):
        raise Damage(f"{message!r}, where a layer in braces was expected")
    values = message.get(name, [])
    if not all(isinstance(value, kind) for value in values):
        raise Damage(f"a layer whose {name} is {values!r}")
    return values


def read_prototxt(path: PathLike) -> Prototxt:
    """A protocol buffer in the text format, such as Caffe's description of a network.

    Numbers, truth values and enumerations stay the text that the file has.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is not of this format.
    """
    with reading(path, "prototxt"):
        # Each byte becomes a character, whatever the encoding of comments.
        tokens = _tokens(Path(path).read_text("latin-1"))
        return _message(tokens, "", 0)


_TOKEN = re.compile(
    r"""(?:\s|\#.*)*+(?:(?P<quoted>"(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+')
    |(?P<word>[-+.\w]+)|(?P<mark>[{}<>\[\]:;,])|(?P<end>\Z))""",
    re.VERBOSE | re.ASCII,
)
_CLOSING = {"{": "}", "<": ">"}


class _Token(NamedTuple):
    kind: str
    text: str
    at: int

    def is_mark(self, marks: str) -> bool:
        return self.kind == "mark" and self.text in marks


def _tokens(text: str) -> list[_Token]:
    """The tokens of a text, the last one first, so that the next one can be popped."""
    tokens: list[_Token] = []
    at = 0
    while not tokens or tokens[-1].kind != "end":
        match = _TOKEN.match(text, at)
        if match is None:
            start = len(text) - len(text[at:].lstrip())
            raise Damage(f"{text[start : start + 20]!r}, which is no token", start)
        kind, at = match.lastgroup or "", match.end()
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        check_size(len(tokens) * PART_BYTES, len(text), "tokens", at)
    return tokens[::-1]


def _message(tokens: list[_Token], closing: str, depth: int) -> Prototxt:
    """The fields up to the closing mark, or to the end.

    >>> _message(_tokens('layer { name: "a" dim: [1, 2] } # comment'), "", 0)
    {'layer': [{'name': ['a'], 'dim': ['1', '2']}]}
    """
    if depth > DEEPEST:
        raise Damage(f"messages that lie in each other more than {DEEPEST} deep", tokens[-1].at)
    fields: Prototxt = {}
    while not ((token := tokens.pop()).text == closing and token.kind in ("mark", "end")):
        if token.is_mark(",;"):
            continue
        if token.kind != "word":
            raise Damage(f"{token.text!r}, where a field's name was expected", token.at)
        values = fields.setdefault(token.text, [])
        if tokens[-1].is_mark(":"):
            tokens.pop()
        elif not tokens[-1].is_mark("{<"):
            raise Damage(f"{token.text!r} without a value", token.at)
        if not tokens[-1].is_mark("["):
            values.append(_value(tokens, depth))
            continue
        tokens.pop()
        while not tokens[-1].is_mark("]"):
            values.append(_value(tokens, depth))
            if tokens[-1].is_mark(","):
                tokens.pop()
        tokens.pop()
    return fields


def _value(tokens: list[_Token], depth: int) -> str | Prototxt:
    token = tokens.pop()
    if token.is_mark("{<"):
        return _message(tokens, _CLOSING[token.text], depth + 1)
    if token.kind == "word":
        return token.text
    if token.kind != "quoted":
        raise Damage(f"{token.text!r}, where a value was expected", token.at)
    parts = [token.text]
    while tokens[-1].kind == "quoted":  # Pieces of one text.
        parts.append(tokens.pop().text)
    content = "".join(part[1:-1] for part in parts).encode("latin-1")
    # Escapes stand for bytes, which are UTF-8 only when all are there.
    return content.decode("unicode_escape").encode("latin-1").decode()


READER = Reader(NAME, matches, read, inspect, suffix=".caffemodel", takes_architecture=True)
