"""An interpreter of Python pickles that builds containers, numbers and text, and runs nothing.

A pickle is a program, whose opcodes import names and call what they found. Here a name is looked up
in a table, which leads to a stand-in of ours or is refused, and only stand-ins are called.

Source: https://github.com/python/cpython/blob/main/Lib/pickletools.py (what each opcode does).
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from jaxtransfer.formats.base import Damage
from jaxtransfer.formats.pickled import (
    Allowance,
    Array,
    ArrayType,
    Dictionary,
    FindGlobal,
    Global,
    Refused,
    kind_of,
    shortened,
)

PersistentLoad: TypeAlias = Callable[[Any], Any]
"""From a persistent id, a plain value, to what it stands for."""


def _no_persistent_id(identity: Any) -> Any:
    raise ValueError("a persistent id, where none has a meaning")


class Unpickler:
    """The stack machine that builds what one pickle describes.

    Args:
        content: the bytes that hold the pickle.
        position: where it begins; afterwards, where it ended.
        allowance: what the file may still ask for.
        find_global: the table of stand-ins.
        persistent_load: gives what the pickle itself does not hold.
    """

    def __init__(
        self,
        content: memoryview,
        position: int,
        allowance: Allowance,
        find_global: FindGlobal,
        persistent_load: PersistentLoad = _no_persistent_id,
    ):
        self.content = content
        self.position = position
        self.allowance = allowance
        self.find_global = find_global
        self.persistent_load = persistent_load
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Run to the end of the pickle.

        Raises:
            Refused: the pickle has an opcode or names a global that is not in the tables.
            Damage: it cannot be a pickle.
        """
        while True:
            start = self.position
            code = self.content[start] if start < len(self.content) else None
            self.position += 1
            if code == _STOP:
                return self._last(start)
            operation, cost = _OPERATIONS.get(code, (None, 0))
            if operation is None:
                raise _unknown_opcode(code, start)
            try:
                self.allowance.take(cost, start)
                operation(self)
            except Damage as error:
                error.offset = start
                raise
            except Exception as error:
                name = _NAMES[cast(int, code)]
                reason = str(error) or type(error).__name__
                raise Damage(f"{reason} (at the pickle opcode {name})", start) from error

    def _last(self, start: int) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise Damage(f"a pickle that ends with {len(self.stack)} values", start)
        return self.stack.pop()

    def take(self, bytes: int) -> None:
        """Count what the present opcode is about to allocate."""
        self.allowance.take(bytes, self.position)

    def read(self, count: int) -> memoryview:
        """The next bytes of the pickle."""
        piece = self.content[self.position : self.position + count]
        if len(piece) < count:
            raise ValueError(f"the end of the file, {count - len(piece)} bytes too early")
        self.position += count
        return piece

    def number(self, size: int, *, signed: bool = False) -> int:
        """The next bytes as a little-endian integer."""
        return int.from_bytes(self.read(size), "little", signed=signed)

    def line(self) -> str:
        """The text up to the next line feed."""
        window = self.content[self.position : self.position + _LONGEST_LINE].tobytes()
        line, feed, _ = window.partition(b"\n")
        if not feed:
            raise ValueError(f"no line of text of at most {_LONGEST_LINE} bytes")
        self.position += len(line) + 1
        return line.decode()

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark from the stack."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values


def _unknown_opcode(code: int | None, start: int) -> Damage:
    if code is None:
        return Damage("the end of the file within a pickle", start)
    if code in _NAMES:
        return Refused(f"the pickle opcode {_NAMES[code]}", start)
    return Damage(f"the byte {code:#04x}, which is no pickle opcode", start)


# What the opcodes do. Each takes the machine, after its own byte.

_LONGEST_LINE = 1024
_WIDE_TEXT = re.compile(rb"[\xc4-\xff]")  # First bytes of characters that take 2 or 4 in memory.
_RENAMED = {"__builtin__": "builtins"}  # As Python 2 called it.


def _constant(make: Callable[[], Any]) -> Callable[[Unpickler], None]:
    return lambda machine: machine.stack.append(make())


def _integer(size: int, *, signed: bool = False) -> Callable[[Unpickler], None]:
    return lambda machine: machine.stack.append(machine.number(size, signed=signed))


def _long_integer(size: int) -> Callable[[Unpickler], None]:
    def operation(machine: Unpickler) -> None:
        digits = machine.read(machine.number(size))
        machine.take(2 * len(digits))
        machine.stack.append(int.from_bytes(digits, "little", signed=True))

    return operation


def _integer_line(machine: Unpickler) -> None:
    line = machine.line()
    machine.stack.append({"00": False, "01": True}[line] if line in ("00", "01") else int(line))


def _float(machine: Unpickler) -> None:
    machine.stack.append(struct.unpack(">d", machine.read(8))[0])


def _unicode(size: int) -> Callable[[Unpickler], None]:
    def operation(machine: Unpickler) -> None:
        piece = machine.read(machine.number(size))
        machine.take(len(piece) * (4 if _WIDE_TEXT.search(piece) else 1))
        machine.stack.append(str(piece, "utf-8"))

    return operation


def _bytes(size: int) -> Callable[[Unpickler], None]:
    def operation(machine: Unpickler) -> None:
        piece = machine.read(machine.number(size))
        machine.take(len(piece))
        machine.stack.append(bytes(piece))

    return operation


def _python_2_text(size: int) -> Callable[[Unpickler], None]:
    """Text or bytes, which Python 2 did not tell apart."""

    def operation(machine: Unpickler) -> None:
        piece = machine.read(machine.number(size))
        machine.take(5 * len(piece))
        try:
            machine.stack.append(str(piece, "utf-8"))
        except UnicodeDecodeError:
            machine.stack.append(bytes(piece))

    return operation


def _tuple_of(count: int) -> Callable[[Unpickler], None]:
    def operation(machine: Unpickler) -> None:
        if len(machine.stack) < count:
            raise ValueError("fewer values on the stack than are taken from it")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return operation


def _tuple(machine: Unpickler) -> None:
    machine.stack.append(tuple(machine.since_mark()))


def _list(machine: Unpickler) -> None:
    machine.stack.append(machine.since_mark())


def _dict(machine: Unpickler) -> None:
    machine.stack.append(_dictionary_of(machine.since_mark()))


def _dictionary_of(flat: list[Any]) -> Dictionary:
    if len(flat) % 2:
        raise ValueError("a key without a value")
    return Dictionary(flat)


def _extend(machine: Unpickler, values: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not list:
        raise ValueError(f"items for what is no list or set but {kind_of(target)}")
    target.extend(values)


def _append(machine: Unpickler) -> None:
    _extend(machine, [machine.stack.pop()])


def _appends(machine: Unpickler) -> None:
    _extend(machine, machine.since_mark())


def _set_entries(machine: Unpickler, flat: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, Dictionary) or target.is_object:
        raise ValueError(f"entries for what is no dict but {kind_of(target)}")
    target.flat.extend(_dictionary_of(flat).flat)


def _setitem(machine: Unpickler) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_entries(machine, [key, value])


def _setitems(machine: Unpickler) -> None:
    _set_entries(machine, machine.since_mark())


def _mark(machine: Unpickler) -> None:
    machine.marks.append(len(machine.stack))


def _pop(machine: Unpickler) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.stack.pop()


def _put(size: int) -> Callable[[Unpickler], None]:
    def operation(machine: Unpickler) -> None:
        machine.memo[machine.number(size)] = machine.stack[-1]

    return operation


def _memoize(machine: Unpickler) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(size: int) -> Callable[[Unpickler], None]:
    def operation(machine: Unpickler) -> None:
        index = machine.number(size)
        if index not in machine.memo:
            raise ValueError(f"the memo {index}, where nothing was put")
        machine.stack.append(machine.memo[index])

    return operation


def _protocol(machine: Unpickler) -> None:
    if (version := machine.number(1)) > 5:
        raise ValueError(f"version {version} of pickle's protocol, where 5 is the last")


def _frame(machine: Unpickler) -> None:
    machine.number(8)  # It says how much to read at once; the opcodes say it again.


def _global(machine: Unpickler) -> None:
    _push_global(machine, machine.line(), machine.line())


def _stack_global(machine: Unpickler) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Refused("a global whose module and name are no text")
    _push_global(machine, module, name)


def _push_global(machine: Unpickler, module: str, name: str) -> None:
    found = machine.find_global(_RENAMED.get(module, module), name)
    if found is None:
        raise Refused(f"the global {shortened(f'{module}.{name}')}")
    machine.stack.append(found)


def _call(machine: Unpickler) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if not isinstance(function, Global) or function.call is None:
        raise Refused(f"a call of {kind_of(function)}")
    if not isinstance(arguments, tuple):
        raise ValueError(f"a call of {function.name} without a tuple of arguments")
    machine.take(sum(map(_size_of, arguments)))
    try:
        machine.stack.append(function.call(*arguments))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} (in a call of {function.name})") from error


def _build(machine: Unpickler) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if not isinstance(target, Dictionary | Array | ArrayType):
        raise Refused(f"a state for {kind_of(target)}")
    machine.take(_size_of(state))
    target.build(state)


def _size_of(value: Any) -> int:
    """What a copy of a value may take, its items not counted."""
    if isinstance(value, Dictionary):
        return 16 * len(value.flat)
    if isinstance(value, list | tuple):
        return 100 * len(value)
    return len(value) if isinstance(value, str | bytes) else 0


def _persistent(machine: Unpickler) -> None:
    machine.stack.append(machine.persistent_load(machine.stack.pop()))


_OBJECT = 200  # Bytes that one of our own objects takes at most, with its place in containers.

_BY_NAME: Mapping[str, tuple[Callable[[Unpickler], Any], int]] = {
    "PROTO": (_protocol, 0),
    "FRAME": (_frame, 0),
    "NONE": (_constant(lambda: None), 0),
    "NEWTRUE": (_constant(lambda: True), 0),
    "NEWFALSE": (_constant(lambda: False), 0),
    "INT": (_integer_line, 600),
    "BININT": (_integer(4, signed=True), 32),
    "BININT1": (_integer(1), 0),
    "BININT2": (_integer(2), 32),
    "LONG1": (_long_integer(1), 32),
    "LONG4": (_long_integer(4), 32),
    "BINFLOAT": (_float, 24),
    "SHORT_BINUNICODE": (_unicode(1), 80),
    "BINUNICODE": (_unicode(4), 80),
    "BINUNICODE8": (_unicode(8), 80),
    "SHORT_BINBYTES": (_bytes(1), 40),
    "BINBYTES": (_bytes(4), 40),
    "BINBYTES8": (_bytes(8), 40),
    "BYTEARRAY8": (_bytes(8), 40),
    "SHORT_BINSTRING": (_python_2_text(1), 80),
    "BINSTRING": (_python_2_text(4), 80),
    "EMPTY_TUPLE": (_constant(tuple), 0),
    "TUPLE1": (_tuple_of(1), 64),
    "TUPLE2": (_tuple_of(2), 64),
    "TUPLE3": (_tuple_of(3), 64),
    "TUPLE": (_tuple, 64),
    "EMPTY_LIST": (_constant(list), 80),
    "LIST": (_list, 80),
    "APPEND": (_append, 0),
    "APPENDS": (_appends, 0),
    # A set is kept as a list: whether its items are distinct changes no tensor.
    "EMPTY_SET": (_constant(list), 80),
    "ADDITEMS": (_appends, 0),
    "FROZENSET": (_list, 80),
    "EMPTY_DICT": (_constant(Dictionary), _OBJECT),
    "DICT": (_dict, _OBJECT),
    "SETITEM": (_setitem, 64),
    "SETITEMS": (_setitems, 64),
    "MARK": (_mark, 32),
    "POP": (_pop, 0),
    "POP_MARK": (Unpickler.since_mark, 0),
    "BINPUT": (_put(1), 0),
    "LONG_BINPUT": (_put(4), 150),
    "MEMOIZE": (_memoize, 150),
    "BINGET": (_get(1), 0),
    "LONG_BINGET": (_get(4), 0),
    "GLOBAL": (_global, _OBJECT),
    "STACK_GLOBAL": (_stack_global, _OBJECT),
    "REDUCE": (_call, _OBJECT),
    "NEWOBJ": (_call, _OBJECT),
    "BUILD": (_build, _OBJECT),
    "BINPERSID": (_persistent, _OBJECT),
}
"""What each opcode does, and the bytes of memory that it may take beside its place on the stack."""

_PLACE = 20  # On the stack, and in the container that the value goes to.
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_STOP = next(code for code, name in _NAMES.items() if name == "STOP")
_OPERATIONS: Mapping[int | None, tuple[Callable[[Unpickler], Any] | None, int]] = {
    code: (_BY_NAME[name][0], _BY_NAME[name][1] + _PLACE)
    for code, name in _NAMES.items()
    if name in _BY_NAME
}
