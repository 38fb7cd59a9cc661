"""Where in an image a network sees the class that it answers: Grad-CAM."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.compiling import jit
from jaxtransfer.data import Data, as_examples, preprocess_images
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.answers import check_numbers
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.models.calling import can_start
from jaxtransfer.tree import named_leaves
from jaxtransfer.types import PyTree

Grid = tuple[int, int]


def grad_cam(
    model: Model,
    images: Any,
    *,
    stage: str | None = None,
    classes: int | Sequence[int] | np.ndarray | None = None,
    grid: Grid | None = None,
    upsample: bool = True,
    batch_size: int = 32,
) -> np.ndarray:
    """Maps of what speaks for a class, by the gradient of its logit in the features of a stage.

    Each channel's weight is the mean gradient of the class's logit over the positions; the map is
    the weighted sum of the channels where it is positive, divided by its highest value.

    Args:
        model: a `Model` whose forward pass can be cut at the stage.
        images: as for `predict`: shape (batch, height, width, channel), or a `Data`, whose labels
            are not looked at.
        stage: one of `model.spec.stages`, whose entering features are looked at, as in `features`;
            by default the last one that maps of more than one position enter, or tokens that the
            logits depend on.
        classes: whose logits, one for all images or one for each; by default each image's
            prediction.
        grid: for tokens, the (rows, columns) of the image's patches, which are the last tokens;
            others, such as a class token, come before them. By default as the size of the patches
            says, where the model knows it.
        upsample: whether maps are brought to the size of the images that enter the network,
            bilinearly, as in the paper; otherwise they have the size of the features.
        batch_size: images that are computed at a time; the last ones are padded.

    Returns:
        float32 of shape (batch, height, width), from 0 to 1, and 0 everywhere where nothing speaks
        for the class. Resizing and cropping are part of the network: see `seen_images`.

    Raises:
        DataError: there are no images, they cannot be read or preprocessed, or a class is none.
        ModelError: there is no such stage, no maps or tokens enter it, the tokens' grid is not
            known or has another number of tokens, the forward pass cannot be cut there, or the
            network has heads for several tasks.

    Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", arXiv 1610.02391, equations 1 and 2.
    """
    where = f"grad_cam({model.spec.name})"
    data = as_examples(images).ready(model.preprocess)
    if not len(data):
        raise DataError(f"{where}: expected at least one image, found none")
    if batch_size < 1:
        raise DataError(f"{where}: expected a batch_size of at least 1, found {batch_size}")
    if stage is not None and stage not in model.spec.stages:
        raise ModelError(
            f"{where}: expected a stage among {', '.join(model.spec.stages)}, found {stage!r}"
        )
    view = _view(where, model, _one(data), stage, grid)
    wanted = _wanted_classes(where, classes, len(data), view.num_classes)
    program = _program(model.apply, model.preprocess, view.stage, view.grid, upsample)
    size = min(batch_size, len(data))
    maps = []
    for start in range(0, len(data), size):
        # The last batch repeats its last image, so that one program serves all of them.
        rows = np.minimum(np.arange(start, start + size), len(data) - 1)
        maps.append(program(model.params, model.stats, data.read(rows)["image"], wanted[rows]))
    return np.concatenate(jax.device_get(maps))[: len(data)]


def can_explain(model: Model, images: Any) -> bool:
    """Whether `grad_cam` works as it stands: the network can be cut where maps or tokens are.

    Args:
        model: a `Model`.
        images: at least one, as for `grad_cam`.
    """
    if not can_start(model.apply):
        return False
    try:
        _view("can_explain", model, _one(as_examples(images).ready(model.preprocess)), None, None)
    except ModelError:
        return False
    return True


def seen_images(model: Model, images: Any) -> np.ndarray:
    """Images as a network sees them, resized and cropped, but in colours that can be shown.

    What `grad_cam` gives lies upon them.

    Args:
        model: whose preprocessing is carried out, normalisation aside.
        images: as for `predict`.

    Returns:
        float32 of shape (batch, height, width, channel), in red, green and blue where there are
        three channels, from 0 to 1 but for what a sharp interpolation adds; images that enter the
        network as they come stay as they are.

    Raises:
        DataError: the images cannot be read or preprocessed.
    """
    data = as_examples(images).ready(model.preprocess)
    shown = replace(model.preprocess, mean=(0.0,), std=(1.0,), channel_order="rgb")
    if shown.scale in (None, 1):  # a network that takes bytes as they are
        shown = replace(shown, scale=255.0)
    batch = data.read(np.arange(len(data)))["image"]
    return np.asarray(preprocess_images(jnp.asarray(batch), shown))


class _View(NamedTuple):
    """Where the features are taken: `grid` is `None` where they are maps already."""

    stage: str
    grid: Grid | None
    num_classes: int


def _one(data: Data) -> np.ndarray:
    return np.asarray(data.read(np.arange(1))["image"])


def _view(
    where: str, model: Model, image: np.ndarray, stage: str | None, grid: Grid | None
) -> _View:
    """The stage that was asked for, or the last one of use, and how its features lie."""
    prepared = functools.partial(preprocess_images, how=model.preprocess)
    inputs = jax.eval_shape(prepared, jax.ShapeDtypeStruct(image.shape, image.dtype))
    outputs = _shape(model, inputs)
    if not hasattr(outputs, "shape") or outputs.ndim != 2:
        found = f"shape {outputs.shape}" if hasattr(outputs, "shape") else f"a {type(outputs)}"
        raise ModelError(
            f"{where}: expected logits of shape (batch, classes), found {found}; give a network "
            "with one head, such as that of one task"
        )
    problems = []
    for name in reversed(model.spec.stages) if stage is None else [stage]:
        try:
            features = _shape(model, inputs, stop=name)
            found = _grid_of(model, inputs, features, grid)
        except ModelError as error:
            problems.append(f" - {name}: {error}")
            continue
        if stage is None and features.shape == inputs.shape:
            problems.append(f" - {name}: the images themselves")
            continue
        if stage is None and not _is_of_use(model, name, features, found):
            problems.append(f" - {name}: tokens that the logits do not depend on")
            continue
        return _View(name, found, outputs.shape[-1])
    raise ModelError(
        f"{where}: expected a stage that maps or tokens enter, found\n" + "\n".join(problems)
    )


def _shape(model: Model, inputs: Any, stop: str | None = None) -> Any:
    cut = {} if stop is None else {"stop": stop}
    forward = functools.partial(model.apply, train=False, **cut)
    return jax.eval_shape(forward, model.params, model.stats, inputs)[0]


def _grid_of(model: Model, inputs: Any, features: Any, grid: Grid | None) -> Grid | None:
    """Rows and columns of tokens; `None` for maps.

    Raises:
        ModelError: the features are neither, or nobody said how the tokens lie.
    """
    shape = tuple(features.shape)
    if len(shape) == 4 and math.prod(shape[1:3]) > 1:
        return None
    if len(shape) != 3:
        raise ModelError(f"features of shape {shape}, without positions")
    grid = _patches(model, inputs, shape[1]) if grid is None else (grid[0], grid[1])
    if grid is None:
        raise ModelError(f"{shape[1]} tokens of unknown places; say grid=(rows, columns)")
    if not 1 <= math.prod(grid) <= shape[1]:
        raise ModelError(f"{shape[1]} tokens, less than the grid {grid} has; give another grid")
    return grid


def _patches(model: Model, inputs: Any, count: int) -> Grid | None:
    """The grid of the patches that images are cut into, where the model says how large they are."""
    spec, (height, width) = model.spec, inputs.shape[1:3]
    if spec.position_embedding is not None:
        side = spec.position_embedding.patch
        return height // side, width // side
    kernels = [x for name, x in named_leaves(model.params) if name == f"{spec.stem}/kernel"]
    if not kernels or kernels[0].ndim != 4:
        return None
    grid = (height // kernels[0].shape[0], width // kernels[0].shape[1])
    # A kernel larger than its stride makes more tokens than fit side by side.
    return grid if count - math.prod(grid) in (0, 1) else None


def _is_of_use(model: Model, stage: str, features: Any, grid: Grid | None) -> bool:
    """Whether logits depend on the tokens of the grid: a class token alone may lead to them."""
    if grid is None:
        return True
    count = math.prod(grid)
    tokens = jax.random.normal(jax.random.key(0), features.shape, features.dtype)
    others = jax.random.normal(jax.random.key(1), features.shape, features.dtype)
    changed = jnp.concatenate([tokens[:, :-count], others[:, -count:]], axis=1)
    forward = jit(functools.partial(model.apply, train=False, start=stage))
    both = forward(model.params, model.stats, jnp.concatenate([tokens, changed]))[0]
    return bool(jnp.any(both[0] != both[1]))


def _wanted_classes(where: str, classes: Any, count: int, num_classes: int) -> np.ndarray:
    """A class for each image; -1 for the prediction."""
    if classes is None:
        return np.full(count, -1, np.int32)
    numbers = np.asarray(classes)
    numbers = np.repeat(numbers, count) if numbers.ndim == 0 else numbers
    numbers = check_numbers(where, numbers, num_classes, "classes")
    if len(numbers) != count:
        raise DataError(
            f"{where}: expected a class for each of {count} images, found {len(numbers)}"
        )
    return numbers.astype(np.int32)


@functools.lru_cache(maxsize=32)
def _program(
    apply: Callable[..., tuple[Any, PyTree]],
    preprocess: Preprocess,
    stage: str,
    grid: Grid | None,
    upsample: bool,
) -> Callable[..., jax.Array]:
    """A jitted function from parameters, statistics, images and classes to maps."""

    @jit
    def maps(params: PyTree, stats: PyTree, images: Any, classes: jax.Array) -> jax.Array:
        inputs = preprocess_images(jnp.asarray(images), preprocess)
        features = apply(params, stats, inputs, train=False, stop=stage)[0]

        def logits_of(features: jax.Array) -> jax.Array:
            return apply(params, stats, features, train=False, start=stage)[0]

        logits, pull_back = jax.vjp(logits_of, features)
        wanted = jnp.where(classes < 0, jnp.argmax(logits, axis=-1), classes)
        (gradients,) = pull_back(jax.nn.one_hot(wanted, logits.shape[-1], dtype=logits.dtype))
        heat = _heat(_as_maps(features, grid), _as_maps(gradients, grid))
        if upsample:
            heat = jax.image.resize(heat, (len(heat), *inputs.shape[1:3]), "bilinear")
        highest = heat.max(axis=(1, 2), keepdims=True)
        return jnp.where(highest > 0, heat / jnp.where(highest > 0, highest, 1), 0)

    return maps


def _heat(features: jax.Array, gradients: jax.Array) -> jax.Array:
    """Equations 1 and 2: channels weighted by their mean gradient, where their sum is positive."""
    weights = gradients.mean(axis=(1, 2))
    return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", features, weights))


def _as_maps(features: jax.Array, grid: Grid | None) -> jax.Array:
    """Features as float32 maps (batch, height, width, channels), the tokens of the grid as such."""
    if grid is not None:
        tokens = features[:, -math.prod(grid) :]
        features = tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])
    return features.astype(jnp.float32)
