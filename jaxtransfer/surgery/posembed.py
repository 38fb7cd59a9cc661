"""Let a network take images of another size, its position embedding resized where it has one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import ModelError
from jaxtransfer.surgery.layers import is_positive_integer
from jaxtransfer.surgery.network import (
    AnyModel,
    check_that_it_runs,
    compute,
    with_option,
    working_dtype,
)
from jaxtransfer.tree import flatten, with_subtree

Method = Literal["timm", "big_vision"]


def resize_position_embedding(
    embedding: Any,
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    prefix: int = 0,
    method: Method = "timm",
) -> Any:
    """The position embedding of another grid of patches, between those of the old one.

    The methods:

    *   "timm": bicubic with Keys' a = -1/2 around the patches' centres, with antialiasing where the
        grid becomes smaller, as `resample_abs_pos_embed` of
        https://github.com/huggingface/pytorch-image-models, timm/layers/pos_embed.py;
    *   "big_vision": linear between the first and the last patch, which stay (of one row or column,
        the first), as `resample_posemb` of https://github.com/google-research/big_vision,
        big_vision/models/vit.py.

    Args:
        embedding: array of shape (…, prefix + rows * columns, features).
        grid: (rows, columns) of the patches that it is for.
        new_grid: those that it shall be for.
        prefix: tokens before those of the grid, such as a class token; they stay as they are.
        method: "timm" or "big_vision".

    Returns:
        Shape (…, prefix + new rows * new columns, features), of the same dtype, as a NumPy array
        where it was one; the embedding itself where the grid stays.

    Raises:
        ModelError: the grids are no pairs of integers of at least 1, the embedding has another
            number of tokens, or the method is none of these.

    >>> resize_position_embedding(jnp.zeros((1, 1 + 7 * 7, 4)), (7, 7), (12, 10), prefix=1).shape
    (1, 121, 4)
    """
    shape = tuple(embedding.shape)
    problems = [
        f"a grid of two integers of at least 1, found {value}"
        for value in (grid, new_grid)
        if len(value) != 2 or not all(map(is_positive_integer, value))
    ]
    if not problems and (len(shape) < 2 or shape[-2] != prefix + math.prod(grid)):
        problems.append(f"{prefix} + {grid[0]} * {grid[1]} tokens, found the shape {shape}")
    if method not in get_args(Method):
        problems.append(f"a method among {', '.join(get_args(Method))}, found {method!r}")
    if problems:
        raise ModelError(f"position embedding: expected {'; '.join(problems)}")
    if tuple(grid) == tuple(new_grid):
        return embedding

    leading, features = shape[:-2], shape[-1:]
    rows, columns = (
        (_cubic if method == "timm" else _linear)(old, new)
        for old, new in zip(grid, new_grid, strict=True)
    )

    def resized(embedding: Any) -> Any:
        xp: Any = np if isinstance(embedding, np.ndarray) else jnp
        dtype = working_dtype(embedding.dtype)
        values = embedding[..., prefix:, :].reshape(*leading, *grid, *features).astype(dtype)
        factors = (xp.asarray(rows, dtype), xp.asarray(columns, dtype))
        with jax.default_matmul_precision("highest"):
            values = xp.einsum("ai,bj,...ijf->...abf", *factors, values)
        tokens = values.reshape(*leading, math.prod(new_grid), *features)
        return xp.concatenate([embedding[..., :prefix, :], tokens.astype(embedding.dtype)], -2)

    return compute(resized, embedding)


def _cubic(old: int, new: int) -> np.ndarray:
    """The matrix (new, old) of Keys' cubic convolution with a = -1/2, wider where `new` is less.

    Source: Keys 1981, "Cubic convolution interpolation for digital image processing", equation 15.
    """
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    x = np.abs(centres[:, np.newaxis] - np.arange(old)) / max(scale, 1)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


def _linear(old: int, new: int) -> np.ndarray:
    """The matrix (new, old) that interpolates linearly from the first position to the last."""
    positions = np.linspace(0, old - 1, new)[:, np.newaxis]
    return np.maximum(0, 1 - np.abs(positions - np.arange(old)))


def change_input_size(
    model: AnyModel, size: int | tuple[int, int], *, method: Method = "timm"
) -> AnyModel:
    """A model for images of another size; only its position embedding, if it has one, is new.

    Preprocessing gives images of that size from then on, if it gave any. That the network runs at
    the new size is tried on shapes, which costs nothing.

    Args:
        model: a `Model`; it stays as it is.
        size: (height, width), or one number for a square.
        method: of `resize_position_embedding`.

    Returns:
        The model itself where it has that size.

    Raises:
        ModelError: the network has weights for one size only, as a dense layer over all positions
            has, or its patches do not fill the new size.

    Example:
        `change_input_size(model, 384)`
    """
    where = f"change_input_size({model.spec.name})"
    new = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(new) != 2 or not all(map(is_positive_integer, new)):
        raise ModelError(f"{where}: expected (height, width) of at least 1, found {size!r}")
    new = (int(new[0]), int(new[1]))
    old = model.spec.input_size
    if new == old:
        return model
    params, notes = model.params, [f"change_input_size: {_times(old)} to {_times(new)}"]
    if model.spec.position_embedding is not None:
        path = model.spec.position_embedding.path
        grids = _grids(where, model, new)
        prefix = model.spec.position_embedding.prefix
        embedding = flatten(params)[path]
        resized = resize_position_embedding(embedding, *grids, prefix, method)
        params = with_subtree(params, path, resized)
        notes.append(f"{path} from {_times(grids[0])} to {_times(grids[1])} patches by {method}")
    how = model.preprocess
    changed = with_option(model, "input_size", old, new)
    changed = replace(
        changed,
        spec=replace(changed.spec, input_size=new),
        params=params,
        preprocess=how if how.size is None else replace(how, size=new),
        receipt=model.receipt.with_note("; ".join(notes)),
    )
    remedy = "it has weights that belong to one size of images; choose another network"
    check_that_it_runs(where, changed, remedy)
    return changed


def _grids(where: str, model: Any, new: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The old and the new grid of patches.

    Raises:
        ModelError: patches do not fill the images.
    """
    old, patch = model.spec.input_size, model.spec.position_embedding.patch
    if old is None:
        raise ModelError(
            f"{where}: expected a model that knows the size of its images, whose patches its "
            "position embedding counts, found None; give it: "
            "replace(model, spec=replace(model.spec, input_size=…))"
        )
    if any(side % patch for side in new):
        nearest = tuple(max(round(side / patch), 1) * patch for side in new)
        raise ModelError(
            f"{where}: expected sides that patches of {patch} pixels fill, found {_times(new)}; "
            f"the nearest are {_times(nearest)}"
        )
    return (old[0] // patch, old[1] // patch), (new[0] // patch, new[1] // patch)


def _times(size: tuple[int, ...] | None) -> str:
    return "unknown" if size is None else "x".join(map(str, size))
