"""What differs between two trees, leaf by leaf, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtransfer.tree.names import flatten
from jaxtransfer.tree.summary import as_host_array
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class TreeDiff:
    """The names of the leaves in which two trees differ.

    Attributes:
        missing: only in the first tree.
        extra: only in the second tree.
        reshaped: in both, with another shape: name, shape before, shape after.
        retyped: in both with one shape, with another dtype: name, dtype before, dtype after.
        changed: in both with one shape and dtype, with other values (compared bit by bit).
        unchanged: in both and equal to the last bit.
    """

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    retyped: tuple[tuple[str, str, str], ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether both trees have the same leaves with the same shapes and dtypes."""
        return not (self.missing or self.extra or self.reshaped or self.retyped)

    @property
    def is_empty(self) -> bool:
        """Whether the trees are equal to the last bit."""
        return self.fits and not self.changed

    def __str__(self) -> str:
        lines = [f" - {name}" for name in self.missing]
        lines += [f" + {name}" for name in self.extra]
        lines += [f" ~ {name}: {before} -> {after}" for name, before, after in self.reshaped]
        lines += [f" ~ {name}: {before} -> {after}" for name, before, after in self.retyped]
        lines += [f" * {name}: other values" for name in self.changed]
        return "\n".join(lines) or "no difference"


def diff(before: PyTree, after: PyTree) -> TreeDiff:
    """What differs between two trees of arrays, numbers or `jax.ShapeDtypeStruct`.

    Values are compared bit by bit, so two NaNs of one kind are equal and 0.0 differs from -0.0.
    Leaves without values (`jax.ShapeDtypeStruct`) are compared by shape and dtype alone.

    >>> import numpy as np
    >>> print(diff({"a": np.zeros(2), "b": np.ones(3)}, {"a": np.zeros(2), "c": np.ones(3)}))
     - b
     + c
    """
    old, new = flatten(before), flatten(after)
    both = [name for name in old if name in new]
    kinds = {name: _compare(old[name], new[name]) for name in both}

    def of_kind(kind: str) -> tuple[str, ...]:
        return tuple(name for name in both if kinds[name] == kind)

    return TreeDiff(
        missing=tuple(name for name in old if name not in new),
        extra=tuple(name for name in new if name not in old),
        reshaped=tuple((n, _shape(old[n]), _shape(new[n])) for n in of_kind("reshaped")),
        retyped=tuple((n, _dtype(old[n]), _dtype(new[n])) for n in of_kind("retyped")),
        changed=of_kind("changed"),
        unchanged=of_kind("unchanged"),
    )


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__


def _compare(old: Any, new: Any) -> str:
    if _shape(old) != _shape(new):
        return "reshaped"
    if _dtype(old) != _dtype(new):
        return "retyped"
    if all(hasattr(leaf, "__array__") or isinstance(leaf, (float, complex)) for leaf in (old, new)):
        same = as_host_array(old).tobytes() == as_host_array(new).tobytes()
    else:
        has_no_values = hasattr(old, "dtype")
        same = has_no_values or old is new or bool(old == new)
    return "unchanged" if same else "changed"
