"""Replace a network's head by one layer or several, keeping the rows of classes that it knows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import ModelError
from jaxtransfer.surgery.layers import (
    LAYER_KINDS,
    Dense,
    Dropout,
    HeadLayer,
    Pool,
    TaskHead,
    head_module,
    init_head,
    is_positive_integer,
)
from jaxtransfer.surgery.network import AnyModel, float_dtype, output_shapes
from jaxtransfer.tree import is_below, leaf_names, named_leaves, subtree, with_subtree
from jaxtransfer.types import PyTree

# ---------------------------------------------------------------------------------------------
# A network whose head was replaced


@dataclass(frozen=True)
class HeadedApply:
    """A network's forward pass with the layers of another head in place of its own.

    Attributes:
        body: the forward pass of the network, which can stop at the head.
        path: where the head's parameters lie.
        layers: the layers of the new head; empty where there are several heads.
        task_heads: the heads of several tasks, whose outputs are a dict from task to logits.
    """

    body: Callable[..., Any]
    path: str
    layers: tuple[HeadLayer, ...]
    task_heads: tuple[TaskHead, ...] = ()

    def __call__(
        self,
        params: PyTree,
        stats: PyTree,
        inputs: jax.Array,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        start: str | None = None,
        stop: str | None = None,
        frozen_modules: frozenset[str] = frozenset(),
    ) -> tuple[Any, PyTree]:
        """The forward pass of `Model.apply`."""
        if start == self.path:
            features = inputs
        else:
            features, stats = self.body(
                params,
                stats,
                inputs,
                train=train,
                rngs=rngs,
                start=start,
                stop=self.path if stop is None else stop,
                frozen_modules=frozen_modules,
            )
        if stop is not None:
            return features, stats
        keys = dict(rngs or {})
        if not self.task_heads:
            place = (self.path, self.layers)
            return _apply_layers(*place, params, stats, features, train, keys, frozen_modules)
        logits = {}
        for position, head in enumerate(self.task_heads):
            place = (f"{self.path}/{head.task}", head.layers)
            # Each task drops features of its own.
            own_keys = {name: jax.random.fold_in(key, position) for name, key in keys.items()}
            logits[head.task], stats = _apply_layers(
                *place, params, stats, features, train, own_keys, frozen_modules
            )
        return logits, stats


def _apply_layers(
    path: str,
    layers: tuple[HeadLayer, ...],
    params: PyTree,
    stats: PyTree,
    features: jax.Array,
    train: bool,
    rngs: dict[str, jax.Array],
    frozen_modules: frozenset[str],
) -> tuple[jax.Array, PyTree]:
    """The logits of the head at `path`, and all statistics."""
    positions = range(len(layers))
    frozen = frozenset(i for i in positions if is_below(f"{path}/{i}", frozen_modules))
    head_stats = _subtree_or_empty(stats, path)
    logits, updates = head_module(layers, frozen).apply(
        {"params": subtree(params, path), "batch_stats": head_stats},
        features,
        train=train,
        rngs=rngs,
        mutable=["batch_stats"],
    )
    if head_stats and train:
        stats = with_subtree(stats, path, updates["batch_stats"])
    return logits, stats


def _subtree_or_empty(tree: PyTree, path: str) -> Any:
    node = tree
    for segment in path.split("/"):
        if segment not in node:
            return {}
        node = node[segment]
    return node


def has_head(model: Any) -> bool:
    """Whether there are parameters at the head's path; a network without gives features."""
    return any(is_below(name, {model.spec.head}) for name in leaf_names(model.params))


# ---------------------------------------------------------------------------------------------
# The surgery


def replace_head(
    model: AnyModel,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    tasks: Mapping[str, int | Sequence[str]] | None = None,
    hidden: Sequence[HeadLayer] = (),
    pool: bool | None = None,
    reuse: bool = True,
    key: jax.Array | int = 0,
) -> AnyModel:
    """A model with a new head; every leaf outside the head is the same array as before.

    The new head ends in a dense layer with one output a class. A network without a head gets one.
    Where maps (batch, height, width, features) or tokens (batch, tokens, features) reach the head,
    a `Pool` goes first, unless the old head gave logits for each position: so does the new one.

    Where the old head is a dense layer or a 1x1 convolution and so is the new one, pooling and
    dropout aside, the kernel columns and biases of classes whose names match exactly are copied;
    the receipt says which. A name that several old classes share tells none of them apart, and
    nothing is copied for it.

    With `tasks` the model has a head for each task, and its outputs are a dict from task to logits.
    The heads lie at the old head's path, each below its task's name. A task takes over the rows of
    the old head, or of the old head of the same task.

    What a network does after its head, such as a softmax, is not done after the new one.

    Args:
        model: a `Model`; it stays as it is.
        num_classes: how many classes the new head tells apart, if they have no names.
        classes: the names of the classes, in the order of the outputs.
        tasks: for each task its number of classes, or their names.
        hidden: layers between the features and the last dense layer; each task has its own.
        pool: whether a `Pool` goes first where `hidden` has none; by default as said above.
        reuse: whether rows of classes with matching names are copied.
        key: a random key, or a seed for one, for what is not copied.

    Raises:
        ModelError: not one of `num_classes`, `classes` and `tasks` is given, a class is named
            twice, there is no class, `hidden` holds something else than head layers, or the network
            cannot stop at its head.

    Example:
        `replace_head(model, classes=["ant", "bee"], hidden=[Dropout(0.2)], key=1)`,
        `replace_head(model, tasks={"species": ["ant", "bee"], "colour": 3})`
    """
    where = f"replace_head({model.spec.name})"
    wanted = _wanted(where, num_classes, classes, tasks)
    layers = _checked_layers(where, hidden)
    path = model.spec.head
    body = model.apply.body if isinstance(model.apply, HeadedApply) else model.apply
    can_stop = getattr(body, "can_stop", True)
    _check_place(where, model, can_stop, is_dense=not (layers or pool or tasks))
    shape = _shape_at_head(where, model, body, can_stop)
    pooled = ""
    if pool is None and Pool() not in layers and _gives_one_answer(model, shape):
        pool = True
        pooled = f" (Pool since {'maps' if len(shape) == 4 else 'tokens'} reach it)"
    if pool and Pool() not in layers:
        layers = (Pool(), *layers)
    heads = _new_heads(model, wanted, layers, shape[-1], key)
    if reuse:
        heads = {
            task: _with_known_rows(model, task, head, shape[-1]) for task, head in heads.items()
        }
    if tasks is None:
        (head,) = heads.values()
        labels, head_layers, task_heads = head.names, head.layers, ()
        params, stats = head.params, head.stats
        if not can_stop:  # the network's own forward pass goes on to read its head from these names
            params = {name: params[name] for name in subtree(model.params, path)}
    else:
        labels, head_layers = None, ()
        task_heads = tuple(TaskHead(str(task), h.layers, h.names) for task, h in heads.items())
        params = {task: head.params for task, head in heads.items()}
        stats = {task: head.stats for task, head in heads.items() if head.stats}
    return replace(
        model,
        spec=replace(model.spec, head_layers=head_layers, task_heads=task_heads),
        apply=HeadedApply(body, path, head_layers, task_heads) if can_stop else body,
        params=with_subtree(model.params, path, params),
        stats=with_subtree(model.stats, path, stats or None),
        # An output for the background, which labels leave out, belonged to the old head.
        preprocess=replace(model.preprocess, label_offset=0),
        labels=labels,
        receipt=model.receipt.with_note(_note(model, heads, pooled)),
    )


# What is asked for


def _wanted(
    where: str,
    num_classes: int | None,
    classes: Sequence[str] | None,
    tasks: Mapping[str, int | Sequence[str]] | None,
) -> dict[str | None, tuple[int, tuple[str, ...] | None]]:
    """For each task, `None` for the only one, the number of classes and their names."""
    given = sum(value is not None for value in (num_classes, classes, tasks))
    if given != 1:
        raise ModelError(
            f"{where}: expected one of num_classes, classes and tasks, found {given} of them"
        )
    if tasks is None:
        return {None: _counted(where, num_classes if classes is None else classes)}
    wrong = [task for task in tasks if not isinstance(task, str) or not task or "/" in task]
    if wrong or not tasks:
        raise ModelError(
            f"{where}: expected tasks with names without '/', found {wrong or 'no task'}"
        )
    return {task: _counted(f"{where}, task {task!r}", value) for task, value in tasks.items()}


def _counted(where: str, classes: Any) -> tuple[int, tuple[str, ...] | None]:
    """The number of classes and their names, from either."""
    if not isinstance(classes, Iterable):
        if not is_positive_integer(classes):
            raise ModelError(f"{where}: expected num_classes of at least 1, found {classes!r}")
        return int(classes), None
    names = () if isinstance(classes, str) else tuple(classes)
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if not names or repeated:
        found = repeated or (f"the text {classes!r}" if isinstance(classes, str) else "no class")
        raise ModelError(f"{where}: expected a list of names, each once, found {found}")
    return len(names), names


def _checked_layers(where: str, hidden: Sequence[HeadLayer]) -> tuple[HeadLayer, ...]:
    others = [layer for layer in hidden if not isinstance(layer, HeadLayer)]
    if others:
        raise ModelError(
            f"{where}: expected hidden layers among {', '.join(LAYER_KINDS)} of jaxtransfer, "
            f"found {others}; write Dense(64) for a layer of 64 features"
        )
    return tuple(hidden)


# What is there


def _check_place(where: str, model: Any, can_stop: bool, is_dense: bool) -> None:
    """Raise where the new head cannot take the old one's place.

    Raises:
        ModelError: parameters are no dicts, or the network reads its head itself and would not find
            it.
    """
    if not isinstance(model.params, Mapping):
        raise ModelError(
            f"{where}: expected parameters in nested dicts, found {type(model.params).__name__}; "
            "build the network with the right number of outputs, and give it labels= where the "
            "classes have names"
        )
    old = _subtree_or_empty(model.params, model.spec.head)
    fits = set(old) <= {"kernel", "bias"} and getattr(old.get("kernel"), "ndim", None) == 2
    if not can_stop and not (is_dense and fits):
        found = ", ".join(name for name, _ in named_leaves(old)) or "nothing"
        raise ModelError(
            f"{where}: expected a single dense layer in place of another one, with a kernel of "
            "shape (features, classes) and a bias or none, since the function cannot stop at "
            f"{model.spec.head!r}; found {found} there, and "
            f"{'one new layer' if is_dense else 'several new layers'}; let the function take "
            "start= and stop="
        )


def _shape_at_head(
    where: str, model: Any, body: Callable[..., Any], can_stop: bool
) -> tuple[int, ...]:
    """The shape of what enters the head, from the forward pass, else from the first kernel there.

    From a kernel only the number of axes and the last one are known.
    """
    spec = model.spec
    features = output_shapes(model, body, stop=spec.head) if can_stop else None
    if features is not None:
        return features.shape
    leaves = named_leaves(_subtree_or_empty(model.params, spec.head))
    kernels = [leaf for name, leaf in leaves if name.split("/")[-1] == "kernel" and leaf.ndim > 1]
    # The layers of a head that surgery made are in order; of others nobody knows which is first.
    if len(kernels) == 1 or (kernels and (spec.head_layers or spec.task_heads)):
        return (1,) * (kernels[0].ndim - 1) + (kernels[0].shape[-2],)
    raise ModelError(
        f"{where}: expected one kernel at {spec.head!r}, found {len(kernels)}; give the model its "
        "input_shape, so that the number of features can be computed"
    )


def _gives_one_answer(model: Any, shape: tuple[int, ...]) -> bool:
    """Whether positions that reach the head must be pooled, for one answer an image."""
    if len(shape) <= 2:
        return False
    outputs = output_shapes(model, model.apply) if has_head(model) else None
    return not any(leaf.ndim > 2 for leaf in jax.tree.leaves(outputs))


# What is new


@dataclass(frozen=True)
class _NewHead:
    """A head that is being made, and the classes whose rows it took over."""

    layers: tuple[HeadLayer, ...]
    names: tuple[str, ...] | None
    params: dict[str, Any]
    stats: dict[str, Any]
    reused: tuple[str, ...] = ()


def _new_heads(
    model: Any,
    wanted: Mapping[str | None, tuple[int, tuple[str, ...] | None]],
    layers: tuple[HeadLayer, ...],
    features: int,
    key: jax.Array | int,
) -> dict[str | None, _NewHead]:
    """A head with fresh weights for each task, in the dtype of the old head or of the network."""
    random_key = key if isinstance(key, jax.Array) else jax.random.key(int(key))
    old_head = _subtree_or_empty(model.params, model.spec.head)
    dtype = float_dtype(old_head or model.params)
    heads = {}
    for position, (task, (count, names)) in enumerate(wanted.items()):
        own_key = random_key if task is None else jax.random.fold_in(random_key, position)
        own_layers = (*layers, Dense(count))
        weights = init_head(own_key, own_layers, features, dtype)
        heads[task] = _NewHead(own_layers, names, *weights)
    return heads


# Rows of known classes


def _with_known_rows(model: Any, task: str | None, head: _NewHead, features: int) -> _NewHead:
    """The head with the rows of classes whose names the old head knows."""
    place = _place_of_logits(head.layers)
    if head.names is None or place is None:
        return head
    old, columns = _known_rows(model, task, features)
    pairs = [(new, columns[name]) for new, name in enumerate(head.names) if name in columns]
    if not pairs:
        return head
    new_columns, old_columns = map(jnp.asarray, zip(*pairs, strict=True))
    dense = dict(subtree(head.params, place) if place else head.params)
    for name in dense.keys() & old.keys():
        dense[name] = dense[name].at[..., new_columns].set(old[name][..., old_columns])
    params = with_subtree(head.params, place, dense) if place else dense
    return replace(head, params=params, reused=tuple(head.names[new] for new, _ in pairs))


def _known_rows(
    model: Any, task: str | None, features: int
) -> tuple[dict[str, jax.Array], dict[str, int]]:
    """Kernel and bias of the old head's logits, and the column of each class that has a name.

    Nothing where the old head is something else than one linear map of the features.
    """
    path, layers, names = model.spec.head, model.spec.head_layers, model.labels
    if model.spec.task_heads:
        old_heads = {head.task: head for head in model.spec.task_heads}
        if task not in old_heads:
            return {}, {}
        path, layers, names = f"{path}/{task}", old_heads[task].layers, old_heads[task].classes
    place = _place_of_logits(layers)
    leaves = _subtree_or_empty(model.params, f"{path}/{place}" if place else path)
    if place is None or names is None or not set(leaves) <= {"kernel", "bias"}:
        return {}, {}
    kernel = leaves.get("kernel")
    if not isinstance(kernel, jax.Array | np.ndarray) or math.prod(kernel.shape[:-2]) != 1:
        return {}, {}
    columns = kernel.shape[-1]
    offset = model.preprocess.label_offset if columns != len(names) else 0
    if kernel.shape[-2:] != (features, len(names) + offset):
        return {}, {}
    counts = Counter(names)
    old = {**leaves, "kernel": jnp.asarray(kernel).reshape(kernel.shape[-2:])}
    return old, {name: i + offset for i, name in enumerate(names) if counts[name] == 1}


def _place_of_logits(layers: tuple[HeadLayer, ...]) -> str | None:
    """Where below a head its dense layer lies, `None` where other layers change the features."""
    if len(layers) <= 1:
        return ""
    if all(isinstance(layer, Pool | Dropout) for layer in layers[:-1]):
        return str(len(layers) - 1)
    return None


# What the receipt says


def _note(model: Any, heads: Mapping[str | None, _NewHead], pooled: str) -> str:
    chains, rows = [], []
    for task, head in heads.items():
        before = "" if task is None else f"{task}: "
        layers = " > ".join(str(layer).removesuffix("()") for layer in head.layers)
        chains.append(before + layers)
        rows.append(before + _rows_note(model, head))
    return f"replace_head: {model.spec.head} is now {', '.join(chains)}{pooled}; {'; '.join(rows)}"


def _rows_note(model: Any, head: _NewHead) -> str:
    if not head.reused or head.names is None:
        return "all rows are new"
    count = f"{len(head.reused)} of {len(head.names)} rows"
    return f"{count} reused from {model.spec.name} by name: {', '.join(head.reused)}"
