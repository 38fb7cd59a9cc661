"""Names for the leaves of any pytree: `/`-joined paths such as `layer4/0/conv2/kernel`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from jaxtransfer.errors import TreeError
from jaxtransfer.types import PyTree

SEPARATOR = "/"


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves of a tree, each with its name, in the order of `jax.tree.leaves`.

    Args:
        tree: any registered pytree: nested dicts, an NNX State, an Equinox module, an optimizer
            state.

    Raises:
        TreeError: two leaves have the same name, because a key itself contains `/`.

    >>> named_leaves({"head": {"kernel": 1, "bias": 2}})
    [('head/bias', 2), ('head/kernel', 1)]
    """
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator=SEPARATOR), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    repeated = [name for name, count in Counter(name for name, _ in leaves).items() if count > 1]
    if repeated:
        raise TreeError(
            f"leaf names: expected each name once, found more than one leaf named {repeated}; "
            f"rename the keys that contain {SEPARATOR!r}"
        )
    return leaves


def leaf_names(tree: PyTree) -> tuple[str, ...]:
    """The names of a tree's leaves, in the order of `jax.tree.leaves`.

    >>> leaf_names({"stem": {"kernel": 0.0}, "blocks": [{"bias": 1.0}]})
    ('blocks/0/bias', 'stem/kernel')
    """
    return tuple(name for name, _ in named_leaves(tree))


def map_with_names(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` whose function gets the leaf's name first.

    >>> map_with_names(lambda name, leaf: name.upper(), {"a": {"b": 1}})
    {'a': {'b': 'A/B'}}
    """

    def call(path: Any, *leaves: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator=SEPARATOR), *leaves)

    return jax.tree_util.tree_map_with_path(call, tree, *rest)


def flatten(tree: PyTree) -> dict[str, Any]:
    """A flat dict from leaf name to leaf.

    >>> flatten({"head": {"bias": 2}})
    {'head/bias': 2}
    """
    return dict(named_leaves(tree))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from a flat dict of `/`-joined names: the inverse of `flatten` on nested dicts.

    Raises:
        TreeError: a name is both a leaf and the prefix of another name.

    >>> unflatten({"head/bias": 2, "head/kernel": 1})
    {'head': {'bias': 2, 'kernel': 1}}
    """
    root: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split(SEPARATOR)
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise TreeError(f"{name}: expected {parent!r} to hold leaves, found a leaf there")
        if last in node:
            raise TreeError(f"{name}: expected one leaf of this name, found more below it")
        node[last] = leaf
    return root


def subtree(tree: PyTree, path: str) -> PyTree:
    """The part of nested dicts that lies under a `/`-joined path.

    A key that is no string is found by its spelling in names, so that an NNX State serves as well.

    Raises:
        TreeError: there is nothing at `path`.

    >>> subtree({"head": {"dense": {"bias": 2}}}, "head/dense")
    {'bias': 2}
    """
    node = tree
    for segment in path.split(SEPARATOR):
        keys = {str(key): key for key in node} if isinstance(node, Mapping) else {}
        if segment not in keys:
            found = ", ".join(keys) if isinstance(node, Mapping) else type(node).__name__
            raise TreeError(
                f"{path}: expected the key {segment!r}, found {found or 'an empty tree'}"
            )
        node = node[keys[segment]]
    return node


def with_subtree(tree: Mapping[str, Any], path: str, value: PyTree | None) -> dict[str, Any]:
    """A copy of nested dicts with another value at a `/`-joined path; `None` removes what is there.

    Every array that is not under `path` is the same object as before.

    Raises:
        TreeError: `path` goes through a leaf.

    >>> with_subtree({"stem": 1, "head": {"bias": 2}}, "head", {"bias": 3})
    {'stem': 1, 'head': {'bias': 3}}
    """
    first, _, rest = path.partition(SEPARATOR)
    if not isinstance(tree, Mapping):
        raise TreeError(f"{path}: expected nested dicts on the way, found {type(tree).__name__}")
    copy: dict[Any, Any] = dict(tree)
    key = next((key for key in copy if str(key) == first), first)
    if value is None and key not in copy:
        return copy
    if rest:
        copy[key] = with_subtree(copy.get(key, {}), rest, value)
    elif value is None:
        del copy[key]
    else:
        copy[key] = value
    return copy


def path_prefixes(path: str) -> list[str]:
    """A path's leading parts, shortest first, the whole path last.

    >>> path_prefixes("layer1/0/bn1")
    ['layer1', 'layer1/0', 'layer1/0/bn1']
    """
    segments = path.split(SEPARATOR)
    return [SEPARATOR.join(segments[:end]) for end in range(1, len(segments) + 1)]


def is_below(path: str, prefixes: Collection[str]) -> bool:
    """Whether a path is one of `prefixes`, or continues one of them.

    >>> is_below("layer1/0/bn1", {"layer1", "head"})
    True
    """
    return any(prefix in prefixes for prefix in path_prefixes(path))
