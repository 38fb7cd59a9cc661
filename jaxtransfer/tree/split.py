"""Cut a tree in two by leaf names, and put it together again."""

from __future__ import annotations

from typing import Any

import jax

from jaxtransfer.errors import TreeError
from jaxtransfer.tree.names import leaf_names, map_with_names
from jaxtransfer.tree.select import chooser
from jaxtransfer.types import PyTree, Selection


def _is_hole(node: Any) -> bool:
    return node is None


def split(tree: PyTree, selection: Selection) -> tuple[PyTree, PyTree]:
    """Two trees of the same structure: the chosen leaves, and the others, with `None` in the holes.

    Gradients, optimizer states and averages that are built from one half know nothing of the other.

    Args:
        tree: any registered pytree.
        selection: a pattern, several patterns, a predicate on the name, or a plan (the leaves that
            train are chosen).

    Raises:
        PatternError: a pattern matches no leaf.
        PlanError: a plan leaves a leaf unassigned, or has a group without leaves.

    >>> trainable, frozen = split({"stem": {"kernel": 1}, "head": {"kernel": 2}}, "head/**")
    >>> trainable
    {'head': {'kernel': 2}, 'stem': {'kernel': None}}
    >>> frozen
    {'head': {'kernel': None}, 'stem': {'kernel': 1}}
    """
    is_chosen = chooser(selection, leaf_names(tree))
    chosen = map_with_names(lambda name, leaf: leaf if is_chosen(name) else None, tree)
    others = map_with_names(lambda name, leaf: None if is_chosen(name) else leaf, tree)
    return chosen, others


def merge(first: PyTree, second: PyTree) -> PyTree:
    """One tree from two halves: `merge(*split(tree, selection))` is `tree`, with the same arrays.

    Raises:
        TreeError: the halves have different structures, or both fill the same leaf.

    >>> merge({"a": 1, "b": None}, {"a": None, "b": 2})
    {'a': 1, 'b': 2}
    """
    left, left_structure = jax.tree.flatten(first, is_leaf=_is_hole)
    right, right_structure = jax.tree.flatten(second, is_leaf=_is_hole)
    if left_structure != right_structure:
        here, there = _only(first, second), _only(second, first)
        found = "the same names in other containers, or beside other static fields"
        if here or there:
            found = f"only in the first: {here}; only in the second: {there}"
        raise TreeError(
            "merge: expected two halves of one structure, found different ones; "
            f"{found}; merge what `split` returned"
        )
    filled_twice = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(first, is_leaf=_is_hole), right, strict=True
        )
        if a is not None and b is not None
    ]
    if filled_twice:
        raise TreeError(f"merge: expected each leaf in one half, found in both: {filled_twice}")
    return jax.tree.unflatten(
        left_structure, [b if a is None else a for a, b in zip(left, right, strict=True)]
    )


def _only(tree: PyTree, other: PyTree) -> list[str]:
    def paths(part: PyTree) -> list[str]:
        leaves = jax.tree_util.tree_leaves_with_path(part, is_leaf=_is_hole)
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]

    return sorted(set(paths(tree)) - set(paths(other)))
