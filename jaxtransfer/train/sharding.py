"""Where the arrays of a run lie: a mesh of devices, and a layout for each leaf by its name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.state import TrainState
from jaxtransfer.tree import matches, named_leaves, nearest, place
from jaxtransfer.tree.names import SEPARATOR
from jaxtransfer.tree.summary import format_bytes, format_table
from jaxtransfer.types import Pattern, PyTree

AXES = ("data", "fsdp", "tensor")
"""The axes of the mesh; devices that are neighbours in the list are neighbours on the last one."""

Axes: TypeAlias = str | tuple[str, ...] | None
Layout: TypeAlias = PartitionSpec | Sequence[Axes]
"""For each axis of an array the axis of the mesh that it is cut along, or several, or `None`."""

TENSOR_AXES: tuple[tuple[str, int], ...] = (
    ("**/attention/out/kernel", -2),
    ("**/*mlp/dense2/kernel", -2),
    ("**/kernel", -1),
)
"""Which axis of a kernel is cut along `tensor`: features out, and features in where a layer takes
what such a one gave. Then attention and MLP each need one sum over devices, no more.

Source: Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, section 3. Axes count from the end, so
kernels of scanned blocks, which have one more in front, are cut alike.
"""

_REPLICATED = frozenset({"step", "stats", "rng"})
"""The fields of a state whose leaves are whole on every device."""

_OWN = frozenset({"trainable", "frozen"})
"""The fields of a state that hold its parameters; all other leaves follow these by name."""


@dataclass(frozen=True)
class Sharding:
    """A mesh of devices with the axes `data`, `fsdp` and `tensor`, and a layout for each leaf.

    Batches are cut along `data` and `fsdp`. A parameter has the layout of the first rule that
    matches its name. Without one it is whole on every device if it is small; otherwise `fsdp` cuts
    the largest axis that it divides, and `tensor` the axis of `TENSOR_AXES`. The optimizer's state
    and the moving average lie as their parameters do; statistics, counters and keys are whole
    everywhere. Layouts change where numbers are kept, never which numbers are computed.

    Two shardings of the same devices, sizes and rules are equal, and one compiled step serves both.

    Attributes:
        data: devices along which the batch alone is cut; `None` for all that the others leave.
        fsdp: devices along which the batch is cut, and large parameters with it.
        tensor: devices along which kernels are cut, and what they compute with them.
        rules: pairs of a pattern over names of parameters and a layout, such as
            `("head/kernel", (None, "tensor"))`; the first match wins. `()` keeps a leaf whole.
        devices: the devices in the order of the mesh, the last axis fastest; all by default.
        min_size: parameters of fewer numbers are whole on every device unless a rule says
            otherwise; to gather small ones takes longer than their memory is worth.

    Raises:
        TrainingError: the sizes do not fit the devices, or a rule is no pair of a pattern and axes
            of the mesh; the message lists all problems.

    >>> Sharding(fsdp=2, devices=jax.devices()[:4]).data
    2
    """

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1
    rules: Sequence[tuple[Pattern, Layout]] = field(default=(), kw_only=True)
    devices: Sequence[Any] | None = field(default=None, kw_only=True)
    min_size: int = field(default=2**14, kw_only=True)

    def __post_init__(self) -> None:
        devices = tuple(jax.devices() if self.devices is None else self.devices)
        rules, problems = _read_rules(self.rules)
        problems += _size_problems(self, len(devices))
        if problems:
            raise _error(problems)
        data = len(devices) // (self.fsdp * self.tensor) if self.data is None else self.data
        sizes = (("data", int(data)), ("fsdp", int(self.fsdp)), ("tensor", int(self.tensor)))
        for name, value in (*sizes, ("devices", devices), ("rules", rules)):
            object.__setattr__(self, name, value)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of devices along each axis of the mesh."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def mesh(self) -> Mesh:
        """The mesh; the compiler decides how what is computed lies on it (`AxisType.Auto`)."""
        devices = np.array(self.devices).reshape(tuple(self.sizes.values()))
        return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    @property
    def batch(self) -> NamedSharding:
        """How a batch lies: its first axis is cut along `data` and `fsdp`."""
        return NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))

    def of(self, tree: PyTree) -> PyTree:
        """The layout of each leaf, as a tree of `NamedSharding`.

        Args:
            tree: a `TrainState`, or parameters; leaves need a shape alone, as those of
                `jax.eval_shape` have.

        Raises:
            TrainingError: a rule matches no parameter, or asks for what a parameter's shape does
                not allow; the message lists all problems.
        """
        return self._shardings(tree, strict=True)

    def place(self, tree: PyTree) -> PyTree:
        """The tree on the devices, each leaf in its layout.

        With several processes all of them call this with the same values. Like `jax.device_put`, it
        copies no more than it must, so what comes back may share memory with `tree`.

        Args:
            tree: a `TrainState`, or parameters, of arrays of the host or of devices.

        Raises:
            TrainingError: as `of` says.
            TreeError: a leaf is no array, or one of 64 bits that JAX would cut.
        """
        shardings = self.of(tree)
        if jax.process_count() == 1:
            return place(tree, shardings)
        return jax.tree.map(_place_globally, tree, shardings)

    def constrain(self, tree: PyTree) -> PyTree:
        """The tree, inside `jax.jit`, with each leaf bound to its layout.

        A step that gives its new state through this has the layouts of the old one, so that it is
        compiled once. A part of a state will do, such as its gradients; rules that match nothing in
        it, or do not fit, are passed over.
        """
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree, strict=False))

    def gather(self, params: PyTree) -> PyTree:
        """The parameters, inside `jax.jit`, as a network computes with them: cut by `tensor` alone.

        What `data` and `fsdp` cut is kept in parts and gathered for use; its gradients are summed
        and cut again (Rajbhandari et al. 2020, "ZeRO", arXiv 1910.02054, section 5.3, stage 3).
        Left to itself the compiler may compute with the parts, and then gradients of 3x3
        convolutions on 2x2 maps, with the kernel cut along both of its last axes, came out wrong
        (JAX 0.10.2 and 0.12.0, CPU, partitioner Shardy). So a forward pass begins with this.
        """

        def in_use(sharding: NamedSharding) -> NamedSharding:
            kept = [tuple({"tensor"} & set(_axes(entry))) for entry in sharding.spec]
            return NamedSharding(sharding.mesh, _normal(kept, self.sizes))

        shardings = jax.tree.map(in_use, self._shardings(params, strict=False))
        return jax.lax.with_sharding_constraint(params, shardings)

    def local_rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process reads; with one process, all.

        Args:
            batch_size: rows of the batch of all processes together.

        Raises:
            TrainingError: the devices do not divide the batch, or this process's rows do not lie in
                one piece because `devices` mixes the devices of several processes.
        """
        blocks, count = self._local_blocks()
        if batch_size < 1 or batch_size % count:
            raise _error(
                [
                    f" - batch: {batch_size} rows for {count} groups of devices (data x fsdp); "
                    f"take a multiple of {count}"
                ]
            )
        rows = batch_size // count
        return slice(blocks.start * rows, blocks.stop * rows)

    def put_batch(self, local_batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The batch of all processes as arrays over all devices.

        Args:
            local_batch: the rows `local_rows(batch_size)` of each array; all have as many.

        Raises:
            TrainingError: the arrays have different numbers of rows, or the devices do not divide
                them.
        """
        blocks, count = self._local_blocks()
        share = blocks.stop - blocks.start
        found = jax.tree.map(np.shape, dict(local_batch))
        rows = {np.shape(values)[:1] for values in jax.tree.leaves(dict(local_batch))}
        if len(rows) != 1 or () in rows or rows.pop()[0] % share:
            raise _error(
                [
                    f" - batch: arrays of shapes {found} for {share} groups of devices here (data "
                    f"x fsdp); give each the same number of rows, a multiple of {share}"
                ]
            )
        sharding = self.batch
        if jax.process_count() == 1:
            return jax.device_put(dict(local_batch), sharding)

        def globally(values: Any) -> jax.Array:
            values = np.asarray(values)
            shape = (len(values) // share * count, *values.shape[1:])
            return jax.make_array_from_process_local_data(sharding, values, shape)

        return jax.tree.map(globally, dict(local_batch))

    def describe(self, tree: PyTree) -> str:
        """The layouts of a tree as a table: shape, axes of the mesh, bytes on each device.

        Args:
            tree: as for `of`.

        Raises:
            TrainingError: as `of` says.
        """
        rows, whole, here = [], 0, 0
        leaves = zip(named_leaves(tree), jax.tree.leaves(self.of(tree)), strict=True)
        for (name, leaf), sharding in leaves:
            size = getattr(leaf.dtype, "itemsize", 0)
            local = math.prod(sharding.shard_shape(leaf.shape)) * size
            whole, here = whole + math.prod(leaf.shape) * size, here + local
            shape = "×".join(map(str, leaf.shape))
            rows.append([name, shape, _spec_text(sharding.spec), local])
        mesh = " × ".join(f"{name} {size}" for name, size in self.sizes.items())
        header = ["leaf", "shape", "layout", "bytes a device"]
        return (
            f"{math.prod(self.sizes.values())} devices: {mesh}\n{format_table(header, rows)}\n"
            f"{format_bytes(here)} on each device, {format_bytes(whole)} in all"
        )

    def to_dict(self) -> dict[str, Any]:
        """What is known of the layouts, as JSON can hold it: for receipts and checkpoints."""
        devices = self.devices or ()
        return {
            **self.sizes,
            "rules": [
                [pattern.pattern if isinstance(pattern, re.Pattern) else pattern, list(spec)]
                for pattern, spec in self.rules
            ],
            "min_size": self.min_size,
            "devices": sorted({device.device_kind for device in devices}),
            "processes": len({device.process_index for device in devices}),
        }

    def _shardings(self, tree: PyTree, *, strict: bool) -> PyTree:
        mesh = self.mesh
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        parameters = _parameter_shapes(tree) if isinstance(tree, TrainState) else None
        problems: list[str] = []
        used: set[Pattern] = set()
        shardings = []
        for path, leaf in leaves:
            names, is_own = _names(path, np.shape(leaf), parameters)
            spec = self._spec(names, np.shape(leaf), used, problems if is_own else [])
            shardings.append(NamedSharding(mesh, spec))
        if strict:
            unused = [pattern for pattern, _ in self.rules if pattern not in used]
            known = list(parameters) if parameters is not None else list(_all_names(leaves))
            problems += [_unused_problem(p, known) for p in unused if not _matches_any(p, known)]
            if problems:
                raise _error(problems)
        return structure.unflatten(shardings)

    def _spec(
        self, names: Sequence[str], shape: tuple[int, ...], used: set[Pattern], problems: list[str]
    ) -> PartitionSpec:
        """The layout of a leaf that goes by these names; what hinders a rule joins `problems`."""
        if not names or not shape:
            return PartitionSpec()
        for pattern, layout in self.rules:
            if _matches_any(pattern, names):
                used.add(pattern)
                found = _misfits(layout, shape, self.sizes)
                problems += [f" - {names[0]}: {text}" for text in found]
                return PartitionSpec() if found else _normal(layout, self.sizes)
        return self._default_spec(names[0], shape)

    def _default_spec(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        if math.prod(shape) < self.min_size:
            return PartitionSpec()
        layout: list[Axes] = [None] * len(shape)
        axis = next((axis for pattern, axis in TENSOR_AXES if matches(pattern, name)), None)
        if axis is not None and len(shape) >= -axis and shape[axis] % self.tensor == 0:
            layout[axis] = "tensor" if self.tensor > 1 else None
        free = [i for i, size in enumerate(shape) if size % self.fsdp == 0 and layout[i] is None]
        if free:
            layout[max(free, key=lambda i: shape[i])] = "fsdp"
        return _normal(layout, self.sizes)

    def _local_blocks(self) -> tuple[slice, int]:
        """This process's blocks of a batch, and how many blocks there are."""
        count = self.sizes["data"] * self.fsdp
        index = self.batch.addressable_devices_indices_map((count,))
        mine = sorted({rows[0].indices(count)[0] for rows in index.values() if rows is not None})
        if not mine or mine != list(range(mine[0], mine[-1] + 1)):
            raise _error(
                [
                    f" - devices: process {jax.process_index()} has the blocks {mine} of "
                    f"{count} of a batch; give the devices process by process"
                ]
            )
        return slice(mine[0], mine[-1] + 1), count


def _read_rules(
    rules: Iterable[Any],
) -> tuple[tuple[tuple[Pattern, PartitionSpec], ...], list[str]]:
    """The rules with their layouts as `PartitionSpec`, and what is wrong with them."""
    read, problems = [], []
    for rule in rules:
        is_pair = isinstance(rule, (tuple, list)) and len(rule) == 2
        if not (
            is_pair
            and isinstance(rule[0], (str, re.Pattern))
            and isinstance(rule[1], (tuple, list, PartitionSpec))
        ):
            problems.append(
                f" - rule {rule!r}: no pair of a pattern and a layout; write "
                "('head/kernel', (None, 'tensor'))"
            )
            continue
        pattern, layout = rule
        axes = [axis for entry in layout for axis in _axes(entry)]
        if not set(axes) <= set(AXES) or len(set(axes)) < len(axes):
            problems.append(
                f" - rule {pattern!r}: the axes {axes}; name each of {', '.join(AXES)} once at most"
            )
        else:
            entries = (tuple(entry) if isinstance(entry, list) else entry for entry in layout)
            read.append((pattern, PartitionSpec(*entries)))
    return tuple(read), problems


def _size_problems(sharding: Sharding, count: int) -> list[str]:
    given = {"data": sharding.data, "fsdp": sharding.fsdp, "tensor": sharding.tensor}
    wrong = [f"{name} {size!r}" for name, size in given.items() if not _is_size(name, size)]
    if wrong:
        return [f" - {', '.join(wrong)}; give whole numbers from 1, or None for data"]
    known = math.prod(size for size in given.values() if size is not None)
    fits = count % known == 0 if sharding.data is None else known == count
    if fits and count:
        return []
    sizes = " x ".join(f"{name} {size}" for name, size in given.items() if size is not None)
    return [
        f" - {sizes} = {known} for {count} devices; choose sizes whose product "
        f"{'divides' if sharding.data is None else 'is'} the number of devices, or give `devices`"
    ]


def _is_size(name: str, size: Any) -> bool:
    if size is None or isinstance(size, bool):
        return size is None and name == "data"
    return isinstance(size, (int, np.integer)) and int(size) >= 1


def _parameter_shapes(state: TrainState) -> dict[str, tuple[int, ...]]:
    halves = (*named_leaves(state.trainable), *named_leaves(state.frozen))
    return {name: np.shape(leaf) for name, leaf in halves}


def _names(
    path: Any, shape: tuple[int, ...], parameters: Mapping[str, tuple[int, ...]] | None
) -> tuple[list[str], bool]:
    """The names that a leaf goes by, and whether it is a parameter itself.

    A leaf of an optimizer's state ends in the name of the parameter that it belongs to, after the
    fields of the state. In a `TrainState` the parameters are known, and so is their shape: what has
    another one, such as the factors of a second moment, has its own name alone.
    """
    if parameters is None:
        return _endings(path), True
    part = path[0].name
    if part in _REPLICATED:
        return [], False
    whole, *others = _endings(path[1:])
    if part in _OWN:
        return [whole], True
    known = [name for name in (whole, *others) if parameters.get(name) == shape]
    return known[:1] or [whole], False


def _endings(path: Any) -> list[str]:
    """A leaf's name, and what of it follows each field on the way."""
    starts = [i + 1 for i, key in enumerate(path[:-1]) if _is_field(key)]
    return [
        jax.tree_util.keystr(path[start:], simple=True, separator=SEPARATOR)
        for start in (0, *starts)
    ]


def _is_field(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey)


def _all_names(leaves: Iterable[tuple[Any, Any]]) -> list[str]:
    return [name for path, _ in leaves for name in _endings(path)]


def _matches_any(pattern: Pattern, names: Iterable[str]) -> bool:
    return any(matches(pattern, name) for name in names)


def _unused_problem(pattern: Pattern, names: Sequence[str]) -> str:
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    likely = ", ".join(nearest(text, names)) or "none, there are no leaves"
    return f" - rule {text!r}: matches no parameter; the nearest names are {likely}"


def _axes(entry: Any) -> tuple[Any, ...]:
    """The axes of the mesh that one axis of an array is cut along."""
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, (tuple, list)) else (entry,)


def _misfits(layout: Layout, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[str]:
    """Why a rule's layout does not fit a shape, if it does not."""
    if len(tuple(layout)) > len(shape):
        return [f"a layout of {len(tuple(layout))} axes for the shape {shape}; shorten the rule's"]
    parts = [math.prod(sizes[axis] for axis in _axes(entry)) for entry in layout]
    return [
        f"axis {i} of the shape {shape} in {count} parts along {' and '.join(_axes(entry))}; "
        "choose another axis or size"
        for i, (entry, count) in enumerate(zip(layout, parts, strict=True))
        if shape[i] % count
    ]


def _normal(layout: Layout, sizes: Mapping[str, int]) -> PartitionSpec:
    """A layout as JAX reports it of computed arrays, so that equal layouts compare equal.

    Without axes of one device, and without `None` at the end.
    """
    entries: list[Axes] = []
    for entry in layout:
        axes = tuple(axis for axis in _axes(entry) if sizes[axis] > 1)
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _place_globally(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array over the devices of all processes, of which each one has the whole values."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda values: values, out_shardings=sharding)(leaf)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place_globally(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return place(np.asarray(leaf), sharding)


def _spec_text(spec: PartitionSpec) -> str:
    if not tuple(spec):
        return "whole"
    return ", ".join("+".join(_axes(entry)) or "-" for entry in spec)


def _error(problems: Sequence[str]) -> TrainingError:
    return TrainingError(
        "sharding: expected sizes, rules and arrays that fit the devices and one another, found\n"
        + "\n".join(problems)
    )
