"""What pickles hold, as data: stand-ins for the values of Python and NumPy, and the way to each.

A dict is kept as its keys and values in turn, so that nothing of a file is hashed or compared.

Sources: https://docs.python.org/3/library/pickle.html (how objects describe themselves) and
https://numpy.org/doc/stable/reference/generated/numpy.ndarray.__reduce__.html (arrays in pickles).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np

from jaxtransfer.formats.base import Damage, check_size


class Refused(Damage):
    """What a pickle asks for and is never done; the file may be whole."""


class Allowance:
    """What a file may still ask for, in bytes of memory and in work that goes with them.

    Args:
        file_bytes: the size of the file.
    """

    def __init__(self, file_bytes: int):
        self.file_bytes = file_bytes
        self.taken = 0

    def take(self, bytes: int, offset: int = 0, what: str = "values") -> None:
        """Count what is about to be allocated.

        Raises:
            Damage: all together is too much for the file's size, as `check_size` has it.
        """
        self.taken += bytes
        check_size(self.taken, self.file_bytes, what, offset)


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """The stand-in for a class, a function or a constant.

    Attributes:
        name: its module and name in the pickle.
        call: what is done where the pickle calls it; `None` if it must not be called.
    """

    name: str
    call: Callable[..., Any] | None = None


@dataclass(eq=False, slots=True)
class Dictionary:
    """A dict, or an object with attributes.

    Attributes:
        flat: its keys and values in turn.
        is_object: whether the keys are names of attributes.
    """

    flat: list[Any] = field(default_factory=list)
    is_object: bool = False

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Each key with its value, in the order of the file."""
        entries = iter(self.flat)
        return zip(entries, entries, strict=True)

    def build(self, state: Any) -> None:
        """Set attributes from a plain dict of them; a dict may have those of PyTorch alone."""
        if not isinstance(state, Dictionary) or state.is_object:
            raise ValueError("a state that is no dict of attributes")
        names = [name for name, _ in state.pairs()]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("attributes whose names are no text")
        if self.is_object:
            self.flat.extend(state.flat)
        elif names != ["_metadata"]:  # The versions of modules, which PyTorch puts there.
            raise ValueError(f"a dict with the attributes {names[:5]}")


@dataclass(eq=False, slots=True)
class ArrayType:
    """The dtype of a NumPy array; its byte order arrives as its state."""

    dtype: np.dtype[Any]

    def build(self, state: Any) -> None:
        """Set the byte order from the state that NumPy gives to a dtype."""
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=")):
            raise ValueError("a state that no dtype of numbers has")
        self.dtype = self.dtype.newbyteorder("=" if state[1] in "|=" else cast(Any, state[1]))


@dataclass(eq=False, slots=True)
class Array:
    """A NumPy array; its shape, dtype and values arrive as its state."""

    values: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def has_numbers(self) -> bool:
        """Whether it is an array of numbers, not of text."""
        return self.values.dtype.kind not in "SU"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its values."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Their dtype, in native byte order."""
        return self.values.dtype.newbyteorder("=")

    @property
    def bytes(self) -> int:
        """How many bytes they take."""
        return self.values.nbytes

    def build(self, state: Any) -> None:
        """Set everything from the state that NumPy gives to an array; the values stay in place."""
        _, shape, kind, is_fortran, content = state
        self.values = _view(content, kind, shape, "F" if is_fortran else "C")


# Stand-ins for what Python and NumPy put into pickles.


def _dictionary(pairs: Any = ()) -> Dictionary:
    """An OrderedDict or a Counter, whose pairs may be given when it is made."""
    if isinstance(pairs, Dictionary):
        return Dictionary(list(pairs.flat))
    return Dictionary([part for pair in _sequence(pairs) for part in _pair(pair)])


def _sequence(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{kind_of(value)}, where a list was expected")
    return value


def _pair(value: Any) -> list[Any] | tuple[Any, ...]:
    if len(pair := _sequence(value)) != 2:
        raise ValueError(f"{len(pair)} values, where a key and a value were expected")
    return pair


def _defaultdict(default: Any = None, pairs: Any = ()) -> Dictionary:
    return _dictionary(pairs)


def _object() -> Dictionary:
    return Dictionary(is_object=True)


def _set(items: Any = ()) -> list[Any] | tuple[Any, ...]:
    return _sequence(items)


def _complex(real: Any, imaginary: Any) -> complex:
    if not (isinstance(real, int | float) and isinstance(imaginary, int | float)):
        raise ValueError("parts of a complex number that are no numbers")
    return complex(real, imaginary)


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes, as protocol 2 writes them in Python 3: as text of the same codes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"{kind_of(text)} to be encoded as {kind_of(encoding)}")
    return text.encode("latin-1")


def _bytearray(content: Any = b"", encoding: Any = "latin-1") -> bytes:
    return content if isinstance(content, bytes) else _encoded(content, encoding)


_ARRAY_KINDS = re.compile(r"[biufcSU]\d+")


def _array_type(kind: Any, *_: Any) -> ArrayType:
    if not isinstance(kind, str) or not _ARRAY_KINDS.fullmatch(kind):
        raise Refused(f"a NumPy dtype {shortened(str(kind_of(kind)))} (not of numbers or text)")
    return ArrayType(np.dtype(kind))


def _reconstructed(*_: Any) -> Array:
    return Array()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> Array:
    return Array(_view(content, kind, shape, "F" if order == "F" else "C"))


def _scalar(kind: Any, content: Any) -> Any:
    return _view(content, kind, (), "C").item()


def _view(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """The bytes of an array in a pickle as an array, which cannot be written to."""
    content = content.encode() if isinstance(content, str) else content
    if not (isinstance(content, bytes) and isinstance(kind, ArrayType)):
        raise Refused(f"a NumPy array of {kind_of(content)} (not of numbers or text)")
    sides = dimensions(shape)
    if math.prod(sides) * kind.dtype.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes for an array of shape {sides} of {kind.dtype}")
    return np.ndarray(sides, kind.dtype, buffer=content, order=order)


def dimensions(value: Any) -> tuple[int, ...]:
    """A value as the sizes of an array's dimensions.

    Raises:
        ValueError: it is no short tuple or list of integers that are not negative.
    """
    sides = tuple(_sequence(value)[: _MOST_DIMENSIONS + 1])
    are_sizes = all(type(side) is int and 0 <= side <= _LARGEST_SIZE for side in sides)
    if len(sides) > _MOST_DIMENSIONS or not are_sizes:
        raise ValueError(f"dimensions {plain_text(sides)}")
    return sides


_MOST_DIMENSIONS = 32
_LARGEST_SIZE = 2**63 - 1
_NUMPY_CORES = ("numpy.core", "numpy._core")  # Before and since NumPy 2.

PLAIN_GLOBALS: Mapping[tuple[str, str], Callable[..., Any] | None] = {
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "Counter"): _dictionary,
    ("collections", "defaultdict"): _defaultdict,
    ("argparse", "Namespace"): _object,
    ("builtins", "set"): _set,
    ("builtins", "frozenset"): _set,
    ("builtins", "complex"): _complex,
    ("builtins", "bytes"): _bytearray,
    ("builtins", "bytearray"): _bytearray,
    # What a defaultdict makes where a key is absent.
    **{("builtins", name): None for name in ("dict", "list", "int", "float", "str")},
    ("_codecs", "encode"): _encoded,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _array_type,
    **{(f"{core}.multiarray", "_reconstruct"): _reconstructed for core in _NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _NUMPY_CORES},
}
"""What Python's and NumPy's own values need: the stand-in to call, or `None` for a mere name."""


FindGlobal: TypeAlias = Callable[[str, str], Global | None]
"""From a module and a name to the stand-in, or `None` for what is refused."""


def globals_of(table: Mapping[tuple[str, str], Callable[..., Any] | None]) -> FindGlobal:
    """Look-up in a table of stand-ins, by exact module and name.

    >>> globals_of(PLAIN_GLOBALS)("collections", "OrderedDict").name
    'collections.OrderedDict'
    >>> globals_of(PLAIN_GLOBALS)("os", "system") is None
    True
    """
    found = {pair: Global(".".join(pair), call) for pair, call in table.items()}
    return lambda module, name: found.get((module, name))


# Values as text, for messages and metadata.

_LONGEST_TEXT = 200
_MOST_ITEMS = 20
_LARGEST_INTEGER = 2**256


def is_plain(value: Any) -> bool:
    """Whether a value is a number, text, bytes, `None` or the name of a global."""
    return type(value) in (int, float, complex, bool, str, bytes, type(None), Global)


def plain_text(value: Any) -> str:
    """A short text for a plain value, a list or tuple of such, an array of text or a dtype."""
    if isinstance(value, Array):
        return plain_text(value.values.flat[: _MOST_ITEMS + 1].tolist())
    if isinstance(value, ArrayType):
        return value.dtype.name
    if isinstance(value, list | tuple):
        items = [plain_text(item) for item in value[:_MOST_ITEMS] if is_plain(item)]
        more = f", … ({len(value)} items)" if len(value) > _MOST_ITEMS else ""
        return shortened(f"[{', '.join(items)}{more}]")
    if isinstance(value, Global):
        return value.name
    if type(value) is int and abs(value) > _LARGEST_INTEGER:
        return f"an integer of {value.bit_length()} bits"  # Decimal digits would take long.
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return shortened(value) if isinstance(value, str) else str(value)


def shortened(text: str) -> str:
    """The beginning of a text, with the length of all of it if there is more."""
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Global):
        return value.name
    return plain_text(value) if is_plain(value) else f"a value of the kind {type(value).__name__}"


# The ways to all values.

_DEEPEST = 64
_ENTRY = 100  # Bytes that the way to a value takes, beside its own text.


def leaves(value: Any, allowance: Allowance) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value that is no container, with the keys, attributes and positions that lead to it.

    A list of plain values is one value. The attributes of an object that is an attribute itself are
    one key with it, joined by a dot, as PyTorch names the parameters of modules.

    Raises:
        Damage: containers are nested very deep, contain themselves, or repeat far more values than
            the file has bytes.
    """
    yield from _walk(value, allowance, (), is_attribute=False, depth=0)


def _walk(
    value: Any, allowance: Allowance, way: tuple[str, ...], *, is_attribute: bool, depth: int
) -> Iterator[tuple[tuple[str, ...], Any]]:
    if depth > _DEEPEST:
        raise Damage(f"containers nested more than {_DEEPEST} deep, or within themselves")
    allowance.take(_ENTRY + 8 * len(value) if isinstance(value, list | tuple) else _ENTRY)
    if not _is_container(value):
        yield way, value
        return
    is_object = isinstance(value, Dictionary) and value.is_object
    pairs = value.pairs() if isinstance(value, Dictionary) else enumerate(value)
    for key, item in pairs:
        text = _key_text(key)
        below = (*way[:-1], f"{way[-1]}.{text}") if is_object and is_attribute else (*way, text)
        allowance.take(len(below[-1]))
        yield from _walk(item, allowance, below, is_attribute=is_object, depth=depth + 1)


def _is_container(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return not all(map(is_plain, value))
    return isinstance(value, Dictionary)


def _key_text(key: Any) -> str:
    if isinstance(key, str):
        return key
    is_short = isinstance(key, tuple) and len(key) <= _MOST_ITEMS and all(map(is_plain, key))
    if not (is_plain(key) or is_short):
        raise Damage(f"a dict with {kind_of(key)} as a key")
    return plain_text(key)
