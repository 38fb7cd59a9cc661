"""Embeddings for another vocabulary: the rows of known tokens are kept by name."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import ModelError
from jaxtransfer.surgery.network import compute, with_option, working_dtype
from jaxtransfer.tree import flatten, nearest, with_subtree

NewRows = Literal["normal", "mean", "zeros"]


def extend_vocabulary(
    tree: Any,
    path: str | None,
    old_tokens: Sequence[str],
    new_tokens: Sequence[str],
    key: jax.Array | int = 0,
    *,
    new_rows: NewRows = "normal",
    axis: int = 0,
    option: str | None = None,
) -> Any:
    """The same tree whose embedding has a row for each token of another vocabulary.

    Rows of tokens that both vocabularies have are kept, to the bit and in the new order; those of
    tokens that only the old one has are left out. Any other leaf is the same array as before.

    An output layer that is tied to the embedding as one leaf needs nothing more. One with a copy of
    its own is changed by a second call, along its axis of classes: the same key draws the same
    rows.

    Args:
        tree: an array, nested dicts of arrays, or a `Model`; it stays as it is.
        path: of the leaf in the tree or in the model's parameters; `None` for an array.
        old_tokens: the tokens in the order of the old rows, each once and one a row.
        new_tokens: the tokens in the order of the new rows, each once.
        key: a random key, or a seed for one.
        new_rows: what rows of new tokens are: "normal", drawn for each feature with the mean and
            the deviation of the old rows; "mean", the mean of the old rows; or "zeros".
        axis: of the leaf, along which rows lie: 0 for an embedding (tokens, features), -1 for the
            kernel (features, tokens) and the bias (tokens,) of an output layer.
        option: for a `Model`, the name of its module's field, and of the catalog's option, that
            holds the number of tokens, which follows.

    Returns:
        An array, a tree or a `Model` like `tree`; the very one where the tokens are the same.

    Raises:
        ModelError: there is no leaf at `path`, the old tokens are not as many as its rows, a token
            occurs twice, or `new_rows` is none of these.

    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html): rows near the mean of the old ones
    keep a language model's distribution over its old tokens, where the usual small random ones
    may take nearly all probability.

    >>> embedding = np.array([[0.0, 1.0], [2.0, 3.0]])
    >>> np.asarray(extend_vocabulary(embedding, None, ["a", "b"], ["b", "c"], new_rows="mean"))
    array([[2., 3.],
           [1., 2.]])
    """
    if isinstance(tree, Mapping) or not hasattr(tree, "spec"):
        where = f"extend_vocabulary({path or 'an array'})"
        leaf = _leaf(where, tree, path)
        rows = _rows(where, leaf, axis, old_tokens, new_tokens, new_rows)
        if rows is None:
            return tree
        new = _with_rows(leaf, axis, rows, key, new_rows)
        return new if path is None else with_subtree(tree, path, new)
    params = extend_vocabulary(
        tree.params, path, old_tokens, new_tokens, key, new_rows=new_rows, axis=axis
    )
    if params is tree.params:
        return tree
    changed = (
        tree if option is None else with_option(tree, option, len(old_tokens), len(new_tokens))
    )
    kept = len(set(old_tokens) & set(new_tokens))
    note = (
        f"extend_vocabulary: {path} from {len(old_tokens)} to {len(new_tokens)} tokens, {kept} "
        f"rows kept by name, {len(new_tokens) - kept} new ({new_rows})"
    )
    return replace(changed, params=params, receipt=tree.receipt.with_note(note))


def _leaf(where: str, tree: Any, path: str | None) -> Any:
    leaf = tree if path is None else flatten(tree).get(path)
    if leaf is None:
        likely = ", ".join(nearest(path or "", flatten(tree)))
        raise ModelError(f"{where}: expected a leaf there, found none; the nearest are {likely}")
    if not hasattr(leaf, "shape") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        found = str(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__
        raise ModelError(f"{where}: expected an array of floats, found {found}")
    return leaf


def _rows(
    where: str,
    leaf: Any,
    axis: int,
    old_tokens: Sequence[str],
    new_tokens: Sequence[str],
    new_rows: str,
) -> list[int] | None:
    """For each new token its old row, or from the number of old rows on that of a new one.

    `None` where the tokens are the same.
    """
    problems = []
    for name, tokens in (("old", old_tokens), ("new", new_tokens)):
        repeated = sorted(token for token, count in Counter(tokens).items() if count > 1)
        if isinstance(tokens, str) or repeated or not tokens:
            found = f"the text {tokens!r}" if isinstance(tokens, str) else repeated[:5] or "none"
            problems.append(f"a list of {name} tokens, each once, found {found}")
    count = leaf.shape[axis] if -leaf.ndim <= axis < leaf.ndim else None
    if count != len(old_tokens):
        problems.append(
            f"an axis {axis} with a row for each of {len(old_tokens)} old tokens, found the shape "
            f"{tuple(leaf.shape)}; name padded rows too"
        )
    if new_rows not in get_args(NewRows):
        problems.append(f"new_rows among {', '.join(get_args(NewRows))}, found {new_rows!r}")
    if problems:
        raise ModelError(f"{where}: expected {'; '.join(problems)}")
    if list(old_tokens) == list(new_tokens):
        return None
    old_row = {token: row for row, token in enumerate(old_tokens)}
    fresh = itertools.count(len(old_tokens))
    return [old_row[token] if token in old_row else next(fresh) for token in new_tokens]


def _with_rows(leaf: Any, axis: int, rows: list[int], key: jax.Array | int, new_rows: str) -> Any:
    random_key = key if isinstance(key, jax.Array) else jax.random.key(int(key))

    def changed(leaf: Any) -> Any:
        # NumPy keeps 64-bit values, which JAX would cut.
        xp: Any = np if isinstance(leaf, np.ndarray) else jnp
        old = xp.moveaxis(leaf, axis, 0)
        count = sum(row >= len(old) for row in rows)
        values = old.astype(working_dtype(old.dtype))
        new = xp.zeros((count, *old.shape[1:]), values.dtype)
        if new_rows != "zeros":
            new = new + values.mean(0)
        if new_rows == "normal":
            drawn = jax.random.normal(random_key, new.shape, jnp.float32)
            new = new + values.std(0) * xp.asarray(drawn).astype(values.dtype)
        both = xp.concatenate([old, new.astype(old.dtype)])
        return xp.moveaxis(both[xp.asarray(rows)], 0, axis)

    return compute(changed, leaf)
