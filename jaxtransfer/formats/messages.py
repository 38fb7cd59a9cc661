"""Protocol-buffer messages from a table of field numbers, parsed by the protobuf library.

Caffe and TensorFlow describe their files by `.proto` sources, which only their frameworks ship as
Python classes. A reader needs a few fields of a few messages, so it states these in a table.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtransfer.formats.base import require

Fields = Mapping[str, tuple[int, str]]
"""From a field's name to its number and type: `int64`, `bytes`, …, or the name of a message of the
same table; `repeated ` before the type for a list.

A packed list of numbers that is declared as `repeated bytes` arrives as raw little-endian chunks,
which NumPy reads without making a Python object of every number.
"""


def message_classes(package: str, table: Mapping[str, Fields]) -> dict[str, Any]:
    """A message class for each row of a table.

    Args:
        package: a name that no other table has, such as `jaxtransfer.caffe`.
        table: the fields of each message.

    Raises:
        MissingLibraryError: protobuf is not installed.

    >>> table = {"Point": {"x": (1, "int32"), "y": (2, "int32")}}
    >>> message_classes("example", table)["Point"].FromString(bytes([8, 3, 16, 4])).y
    4
    """
    descriptors = require("google.protobuf.descriptor_pb2", package)
    pools = require("google.protobuf.descriptor_pool", package)
    factory = require("google.protobuf.message_factory", package)
    kinds = descriptors.FieldDescriptorProto
    # Syntax 2 keeps what enumerations and text contain as it stands in the file.
    file = descriptors.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto2"
    )
    for message, fields in table.items():
        entry = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            is_list, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
            field = entry.field.add(
                name=name,
                number=number,
                label=kinds.LABEL_REPEATED if is_list else kinds.LABEL_OPTIONAL,
            )
            if kind in table:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = pools.DescriptorPool()
    pool.Add(file)
    return {
        name: factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in table
    }
