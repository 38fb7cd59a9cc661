"""What a load did: which source tensor filled which leaf, and how."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from jaxtransfer.errors import FormatError
from jaxtransfer.mapping.rule import Rule
from jaxtransfer.tree.summary import format_table

_VERSION_KEY = "jaxtransfer_receipt"
_VERSION = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class ReceiptEntry:
    """One pair of a leaf and the tensor that filled it, whole or in part.

    Attributes:
        target: the leaf's name.
        source: the tensor's name in the file.
        layout: the transform between them.
        source_shape: the tensor's shape in the file.
        target_shape: the leaf's shape.
        source_dtype: the tensor's dtype in the file, which is kept.
        target_dtype: the dtype that the leaf would have had without the file.
        use: "whole" if tensor and leaf belong to each other alone; "split" if the leaf has a part
            of the tensor, "joined" if the tensor is a part of the leaf, "tied" if it was already
            used, or the leaf already filled, and both are equal to the bit.
        axis: the axis of the source's layout along which parts follow each other.
        start: where this part begins along the axis.
    """

    target: str
    source: str
    layout: str
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    source_dtype: str
    target_dtype: str
    use: str = "whole"
    axis: int = 0
    start: int = 0


@dataclass(frozen=True)
class Receipt:
    """The proof that a tree was loaded whole; it is hashable, so that it can be static in a pytree.

    Attributes:
        entries: one entry a leaf, in the order of the tree's leaves.
        ignored: the source tensors that were left out on purpose.
        file: the name of the file or the reference it came from; may be empty.
        sha256: the hash of the file's content; may be empty.
        format: the file's format; may be empty.
        rules: the rules that paired tensors and leaves.
        rules_name: what the rules are called, such as `torchvision`; may be empty.
        notes: what was done to the tree after loading, such as surgery.
    """

    entries: tuple[ReceiptEntry, ...] = ()
    ignored: tuple[str, ...] = ()
    file: str = ""
    sha256: str = ""
    format: str = ""
    rules: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = ()
    rules_name: str = ""

    @property
    def parameters(self) -> int:
        """How many numbers the filled leaves hold."""
        return sum(math.prod(shape) for shape in self._leaves.values())

    @property
    def _leaves(self) -> dict[str, tuple[int, ...]]:
        return {entry.target: entry.target_shape for entry in self.entries}

    def with_note(self, text: str) -> Receipt:
        """The same receipt with one more note.

        >>> Receipt().with_note("head replaced: 1000 -> 10 classes").notes
        ('head replaced: 1000 -> 10 classes',)
        """
        return replace(self, notes=(*self.notes, text))

    def to_json(self) -> str:
        """The receipt as JSON text; `from_json` reads it back."""
        return json.dumps({_VERSION_KEY: _VERSION, **asdict(self)}, indent=1, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Receipt:
        """The receipt that `to_json` wrote.

        Raises:
            FormatError: the text is no receipt.
            MappingError: a rule in it is no rule.
        """
        try:
            content = json.loads(text)
            if content.pop(_VERSION_KEY) != _VERSION:
                raise ValueError(f"another version than {_VERSION}")
            return Receipt(
                entries=tuple(_entry(**entry) for entry in content.pop("entries")),
                rules=tuple(_rule(**rule) for rule in content.pop("rules")),
                ignored=_all_are(str, content.pop("ignored")),
                notes=_all_are(str, content.pop("notes")),
                **_texts(content),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FormatError(
                f"receipt: expected the JSON that `to_json` writes, found {text[:40]!r}: {error!r}"
            ) from error

    def __str__(self) -> str:
        rows = [
            [
                entry.target,
                entry.source,
                entry.layout if entry.use == "whole" else f"{entry.layout}, {_use(entry)}",
                _shapes(entry),
                entry.source_dtype
                if entry.source_dtype == entry.target_dtype
                else f"{entry.source_dtype} (else {entry.target_dtype})",
                math.prod(entry.target_shape),
            ]
            for entry in self.entries
        ]
        header = ["leaf", "source", "layout", "shape", "dtype", "parameters"]
        lines = [format_table(header, rows), self.summary()] if rows else [self.summary()]
        lines += [f"ignored: {name}" for name in self.ignored]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def summary(self) -> str:
        """The receipt in one line.

        >>> Receipt(ignored=("step",), file="net.npz", format="npz").summary()
        '0 leaves filled (0 parameters), 1 source tensor ignored; from net.npz (npz)'
        """
        origin = [
            self.format,
            f"rules {self.rules_name}" if self.rules_name else "",
            f"sha256 {self.sha256}" if self.sha256 else "",
        ]
        about = ", ".join(text for text in origin if text)
        source = f"; from {self.file or 'memory'}" + (f" ({about})" if about else "")
        filled = _counted(len(self._leaves), "leaf", "leaves")
        ignored = _counted(len(self.ignored), "source tensor", "source tensors")
        uses = Counter(entry.use for entry in self.entries if entry.use != "whole")
        special = "".join(f", {count} {use}" for use, count in sorted(uses.items()))
        filled += f" filled ({self.parameters:,} parameters{special})"
        return f"{filled}, {ignored} ignored{source}"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _shapes(entry: ReceiptEntry) -> str:
    shapes = (entry.source_shape, entry.target_shape)
    source, target = ("×".join(map(str, shape)) or "()" for shape in shapes)
    return target if source == target else f"{source} -> {target}"


def _use(entry: ReceiptEntry) -> str:
    where = f" from {entry.start} on axis {entry.axis}"
    return entry.use + ("" if entry.use == "tied" else where)


def _entry(
    source_shape: list[int],
    target_shape: list[int],
    axis: int = 0,
    start: int = 0,
    **texts: str,
) -> ReceiptEntry:
    axis, start = _all_are(int, [axis, start])
    return ReceiptEntry(
        source_shape=_all_are(int, source_shape),
        target_shape=_all_are(int, target_shape),
        axis=axis,
        start=start,
        **_texts(texts),
    )


def _rule(
    source: str | list[str],
    target: str | list[str],
    axis: int = 0,
    tied: bool = False,
    **texts: str,
) -> Rule:
    _all_are(bool, [tied])
    return Rule(_names(source), _names(target), axis=axis, tied=tied, **_texts(texts))


def _names(value: str | list[str]) -> str | tuple[str, ...]:
    return _all_are(str, [value])[0] if isinstance(value, str) else _all_are(str, value)


def _texts(values: dict[str, str]) -> dict[str, str]:
    _all_are(str, list(values.values()))
    return values


def _all_are(kind: type[_T], values: list[_T]) -> tuple[_T, ...]:
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{values!r} where a list of {kind.__name__} was expected")
    return tuple(values)
