"""Named invertible transforms between the array layouts of a source and of a target.

Each layout is one line of a table: how the source's axes are grouped and ordered, and how the
target's are. Both directions are read from that line, so every layout can be inverted by
construction.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxtransfer.errors import MappingError


@dataclass(frozen=True)
class Kind:
    """What a named layout does to the axes of an array.

    Attributes:
        axes: the source's axes, `->`, the target's axes. Brackets put several axes in one; `1` is
            an axis of size one that the other side has not. Empty for an array left as it is.
        arguments: the axes whose sizes are written after the layout's name.
        sizes: the axes whose sizes never change.
        reversed: the axes that run backwards in the target.
        meaning: what a person should know of it.
    """

    axes: str
    meaning: str
    arguments: tuple[str, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    reversed: tuple[str, ...] = ()


LAYOUTS: Mapping[str, Kind] = {
    "identity": Kind("", "the array as it is"),
    "dense": Kind("o i -> i o", "a linear layer: torch (out, in) to Flax (in, out)"),
    "conv": Kind("o i h w -> h w i o", "a convolution: torch OIHW to Flax HWIO"),
    "conv1d": Kind("o i w -> w i o", "a convolution over one axis: OIW to WIO"),
    "conv3d": Kind("o i d h w -> d h w i o", "a convolution over three axes: OIDHW to DHWIO"),
    "depthwise": Kind(
        "o 1 h w -> h w 1 o",
        "a depthwise convolution: torch (out, 1, H, W) to Flax with feature_group_count channels",
    ),
    "depthwise_keras": Kind(
        "h w c m -> h w 1 (c m)",
        "a depthwise convolution: Keras (H, W, channels, multiplier) to Flax",
        arguments=("m",),
    ),
    "transposed_conv": Kind(
        "i o h w -> h w i o",
        "a transposed convolution: torch IOHW to Flax nn.ConvTranspose, with H and W backwards",
        reversed=("h", "w"),
    ),
    "conv_theano": Kind(
        "o i h w -> h w i o",
        "a convolution of Keras on Theano with dim_ordering 'th': OIHW, with H and W backwards",
        reversed=("h", "w"),
    ),
    "conv_flipped": Kind(
        "h w i o -> h w i o",
        "a convolution of Keras on Theano with dim_ordering 'tf': HWIO, with H and W backwards",
        reversed=("h", "w"),
    ),
    "pointwise": Kind("o i 1 1 -> i o", "a 1x1 convolution that is a linear layer in the target"),
    "pointwise_keras": Kind("1 1 i o -> i o", "the same for Keras and TensorFlow, which keep HWIO"),
    "dense_to_conv": Kind(
        "o i -> 1 1 i o", "a linear layer that is a 1x1 convolution in the target"
    ),
    "channels_first": Kind("c 1 1 -> c", "a vector that broadcasts over (C, H, W)"),
    "channels_last": Kind("1 1 1 c -> c", "a vector that broadcasts over (N, H, W, C)"),
    "flatten_chw": Kind(
        "o (c h w) -> (h w c) o",
        "a linear layer after a flatten: of (C, H, W) in the source, of (H, W, C) in the target",
        arguments=("c", "h", "w"),
    ),
    "flatten_chw_keras": Kind(
        "(c h w) o -> (h w c) o",
        "the same for a source that keeps (in, out), as Keras with channels first",
        arguments=("c", "h", "w"),
    ),
    "conv_to_dense": Kind(
        "o c h w -> (h w c) o",
        "a convolution over a whole map: torch OIHW, to a linear layer after a flatten of (H, W, "
        "C) in the target",
        arguments=("h", "w"),
    ),
    "split_heads": Kind(
        "(heads d) i -> i heads d",
        "a query, key or value projection: (out, in) to (in, heads, head size)",
        arguments=("heads",),
    ),
    "split_heads_bias": Kind(
        "(heads d) -> heads d", "the bias of such a projection", arguments=("heads",)
    ),
    "merge_heads": Kind(
        "o (heads d) -> heads d o",
        "the output projection of attention: (out, in) to (heads, head size, out)",
        arguments=("heads",),
    ),
    "split_qkv": Kind(
        "(qkv heads d) i -> i qkv heads d",
        "queries, keys and values in one projection: (3 out, in) to (in, 3, heads, head size)",
        arguments=("heads",),
        sizes=(("qkv", 3),),
    ),
    "split_qkv_bias": Kind(
        "(qkv heads d) -> qkv heads d",
        "the bias of such a projection",
        arguments=("heads",),
        sizes=(("qkv", 3),),
    ),
    "join_heads": Kind(
        "i heads d -> i (heads d)",
        "a query, key or value projection of Flax: (in, heads, head size) to (in, out)",
        arguments=("heads",),
    ),
    "join_heads_bias": Kind(
        "heads d -> (heads d)", "the bias of such a projection", arguments=("heads",)
    ),
    "join_heads_out": Kind(
        "heads d o -> (heads d) o",
        "the output projection of Flax's attention: (heads, head size, out) to (in, out)",
        arguments=("heads",),
    ),
    "token": Kind("d -> 1 1 d", "a learned token: (features) to (1, 1, features)"),
    "tokens": Kind("t d -> 1 t d", "learned tokens: (tokens, features) to (1, tokens, features)"),
}
"""Every layout by name; a new one is a line here."""

_Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Layout:
    """An invertible transform from a source's array layout to a target's.

    Attributes:
        name: a key of `LAYOUTS`.
        arguments: the sizes that the layout needs, such as the number of heads.

    Raises:
        MappingError: there is no such layout, or its arguments are not as they should be.

    >>> Layout("conv").apply(np.zeros((64, 3, 7, 7))).shape
    (7, 7, 3, 64)
    >>> Layout.parse("split_heads(12)").target_shape((768, 512))
    (512, 12, 64)
    """

    name: str
    arguments: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        kind = LAYOUTS.get(self.name)
        if kind is None:
            raise MappingError(
                f"layout {self.name!r}: expected one of {', '.join(LAYOUTS)}, found no such layout"
            )
        if len(self.arguments) != len(kind.arguments) or min(self.arguments, default=1) < 1:
            raise MappingError(
                f"layout {self}: expected {_signature(self.name, kind)} with positive integers, "
                f"found {len(self.arguments)} arguments: {self.arguments}"
            )

    def __str__(self) -> str:
        return self.name + (f"({','.join(map(str, self.arguments))})" if self.arguments else "")

    @staticmethod
    def parse(text: str) -> Layout:
        """The layout that `str(layout)` names, such as `conv` or `flatten_chw(256,6,6)`.

        Raises:
            MappingError: the text names no layout.

        >>> str(Layout.parse("flatten_chw(256, 6, 6)"))
        'flatten_chw(256,6,6)'
        """
        return _parse(text)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The source's array in the target's layout: a view where NumPy can make one.

        Raises:
            MappingError: the array's shape does not fit the layout.
        """
        kind = LAYOUTS[self.name]
        if not kind.axes:
            return array
        source, target = _sides(kind.axes)
        return self._rearranged(array, source, target, "source", kind.reversed)

    def invert(self, array: np.ndarray) -> np.ndarray:
        """The target's array in the source's layout; `invert(apply(array))` is `array` to the bit.

        Raises:
            MappingError: the array's shape does not fit the layout.
        """
        kind = LAYOUTS[self.name]
        if not kind.axes:
            return array
        source, target = _sides(kind.axes)
        return self._rearranged(array, target, source, "target", kind.reversed)

    def target_shape(self, source_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that `apply` gives an array of `source_shape`.

        Raises:
            MappingError: the shape does not fit the layout.
        """
        return self.apply(_without_data(source_shape)).shape

    def source_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that `invert` gives an array of `target_shape`.

        Raises:
            MappingError: the shape does not fit the layout.
        """
        return self.invert(_without_data(target_shape)).shape

    @property
    def _sizes(self) -> dict[str, int]:
        """The sizes of the axes that are known before there is an array."""
        kind = LAYOUTS[self.name]
        return {**dict(kind.sizes), **dict(zip(kind.arguments, self.arguments, strict=True))}

    def _rearranged(
        self,
        array: np.ndarray,
        before: _Groups,
        after: _Groups,
        side: str,
        backwards: tuple[str, ...],
    ) -> np.ndarray:
        sizes = self._axis_sizes(array.shape, before, side)
        old_axes = [axis for group in before for axis in group if axis != "1"]
        new_axes = [axis for group in after for axis in group if axis != "1"]
        parts = array.reshape([sizes[axis] for axis in old_axes])
        parts = parts[tuple(slice(None, None, -1 if axis in backwards else 1) for axis in old_axes)]
        ordered = parts.transpose([old_axes.index(axis) for axis in new_axes])
        return ordered.reshape(
            [math.prod(1 if axis == "1" else sizes[axis] for axis in group) for group in after]
        )

    def _axis_sizes(self, shape: tuple[int, ...], groups: _Groups, side: str) -> dict[str, int]:
        if len(shape) != len(groups):
            raise self._misfit(shape, groups, side)
        sizes = self._sizes
        for size, group in zip(shape, groups, strict=True):
            unknown = [axis for axis in group if axis != "1" and axis not in sizes]
            known = math.prod(sizes[axis] for axis in group if axis in sizes)
            if unknown:
                sizes[unknown[0]], remainder = divmod(size, known)
            else:
                remainder = size - known
            if remainder:
                raise self._misfit(shape, groups, side)
        return sizes

    def _misfit(self, shape: tuple[int, ...], groups: _Groups, side: str) -> MappingError:
        axes = ", ".join("·".join(str(self._sizes.get(axis, axis)) for axis in g) for g in groups)
        return MappingError(f"layout {self}: expected a {side} shape ({axes}), found {shape}")


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> Layout:
    found = re.fullmatch(r"\s*(\w+)\s*(?:\(([\s\d,]*)\))?\s*", text)
    if found is None:
        raise MappingError(f"layout {text!r}: expected a name such as conv or split_heads(12)")
    name, arguments = found.groups()
    try:
        return Layout(name, tuple(map(int, arguments.split(","))) if arguments else ())
    except ValueError as error:
        raise MappingError(f"layout {text!r}: expected integers between the brackets") from error


@functools.lru_cache
def _sides(axes: str) -> tuple[_Groups, _Groups]:
    source, target = (
        tuple(tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\S+", side))
        for side in axes.split("->")
    )
    return source, target


def _signature(name: str, kind: Kind) -> str:
    return name + (f"({', '.join(kind.arguments)})" if kind.arguments else "")


def _without_data(shape: tuple[int, ...]) -> np.ndarray:
    """An array of any shape that takes one byte of memory; views and reshapes of it are free."""
    return np.broadcast_to(np.zeros((), np.bool_), shape)
