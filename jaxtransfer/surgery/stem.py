"""Let a network take another number of input channels, such as one for grey images."""

from __future__ import annotations

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

Method = Literal["sum", "repeat", "least_squares"]

# Weights of red, green and blue in the luma of ITU-R BT.601, section 2.5.1: one row, for grey.
LUMA = ((0.299, 0.587, 0.114),)


def adapt_stem(
    model: AnyModel,
    in_channels: int,
    method: Method | None = None,
    *,
    colours: Any = None,
) -> AnyModel:
    """A model that takes images with another number of channels; only the stem's kernel is new.

    The methods, for a kernel K over c old channels, and n new ones:

    *   "sum", to one channel: the sum of K over its channels. What comes out for a grey image is
        exactly what came out for the image repeated c times.
    *   "repeat": the channels of K again and again until there are n, times c / n. Where c divides
        n, what comes out for images of one constant colour in all channels is what it was; else
        this holds for the mean over the c orders in which K's channels can be dealt out.
    *   "least_squares": the new channels are mixtures of the old ones, as `colours` says: K times
        the pseudo-inverse of that matrix. Of all kernels this one comes nearest, in the mean square
        over images whose old channels are independent and of one variance, to what came out before.
        It is exact for colours that are mixtures of the rows of `colours`, and for all colours
        where the new channels tell the old ones.

    Exactly, and nearest, are said of what enters the network, which is images after preprocessing.
    That follows: its mean and std become the averages over channels for "sum", are dealt out like
    the channels for "repeat", and are those of the mixtures for "least_squares". Channels in the
    order of Caffe, "bgr", are put into that of the images first.

    Args:
        model: a `Model`; it stays as it is.
        in_channels: how many channels the images will have.
        method: by default "sum" for one channel, else "repeat".
        colours: shape (new, old), for "least_squares": how much of each old channel is in each new
            one, before preprocessing and in the order of the images. By default, from 3 channels to
            one, the luma of ITU-R BT.601.

    Returns:
        The model itself where it has that many channels and nothing is mixed.

    Raises:
        ModelError: the method does not give that many channels, `colours` has another shape, or the
            network's stem is not known to be one layer over all channels.

    Source: "sum" and "repeat" are `adapt_input_conv` of
    https://github.com/huggingface/pytorch-image-models, timm/models/_manipulate.py.

    Example:
        `adapt_stem(model, 1)`
    """
    where = f"adapt_stem({model.spec.name})"
    if not is_positive_integer(in_channels):
        raise ModelError(f"{where}: expected in_channels of at least 1, found {in_channels!r}")
    path = f"{model.spec.stem}/kernel"
    kernel = flatten(model.params).get(path)
    found = model.spec.in_channels
    if kernel is None or len(kernel.shape) < 2 or found not in (None, kernel.shape[-2]):
        raise ModelError(
            f"{where}: expected a kernel over all {found or 'input'} channels at {path!r}, found "
            f"{'nothing' if kernel is None else kernel.shape}; name the layer that takes the "
            "images: replace(model, spec=replace(model.spec, stem=…))"
        )
    old = kernel.shape[-2]
    chosen = method or ("sum" if in_channels == 1 else "repeat")
    _check_method(where, chosen, old, in_channels, colours)
    if in_channels == old and chosen != "least_squares":
        return model
    how = _in_order_of_images(model.preprocess)
    matrix, how = _matrix(chosen, old, in_channels, _colours(colours), how)
    is_reversed = model.preprocess.channel_order == "bgr"

    def adapted(kernel: jax.Array) -> jax.Array:
        values = jnp.asarray(kernel).astype(working_dtype(kernel.dtype))
        values = values[..., ::-1, :] if is_reversed else values
        mixed = jnp.einsum(
            "...io,ij->...jo", values, jnp.asarray(matrix, values.dtype), precision="highest"
        )
        return mixed.astype(kernel.dtype)

    if how.channels is not None:
        how = replace(how, channels=in_channels if in_channels in (1, 3) else None)
    changed = with_option(model, "in_channels", old, int(in_channels))
    channels = "one channel" if in_channels == 1 else f"{in_channels} channels"
    note = f"adapt_stem: {path} takes {channels} instead of {old}, by {chosen}"
    changed = replace(
        changed,
        spec=replace(changed.spec, in_channels=int(in_channels)),
        params=with_subtree(model.params, path, compute(adapted, kernel)),
        preprocess=how,
        receipt=model.receipt.with_note(note),
    )
    check_that_it_runs(where, changed, "build the network with that many channels")
    return changed


def _check_method(where: str, method: str, old: int, new: int, colours: Any) -> None:
    problem = None
    if method not in get_args(Method):
        problem = f"a method among {', '.join(get_args(Method))}, found {method!r}"
    elif method == "sum" and new != 1:
        problem = f"one channel for the method 'sum', found {new}; take 'repeat'"
    elif method != "least_squares" and colours is not None:
        problem = f"colours for the method 'least_squares' alone, found {method!r}"
    elif method == "least_squares" and colours is None and (old, new) != (3, 1):
        problem = f"colours of shape ({new}, {old}), found none"
    elif colours is not None:
        matrix = np.asarray(colours)
        if matrix.shape != (new, old) or not np.isfinite(matrix).all():
            problem = f"colours of shape ({new}, {old}), finite, found {matrix.shape}"
        elif not np.abs(matrix).sum(axis=1).all():
            problem = "something of the old channels in each new one, found a row of zeros"
    if problem:
        raise ModelError(f"{where}: expected {problem}")


def _in_order_of_images(how: Any) -> Any:
    """The same preprocessing for a network whose channels are in the order of the images."""
    if how.channel_order == "rgb":
        return how
    return replace(how, mean=how.mean[::-1], std=how.std[::-1], channel_order="rgb")


def _matrix(method: str, old: int, new: int, colours: np.ndarray, how: Any) -> tuple[Any, Any]:
    """What a kernel's old channels are multiplied by, shape (old, new), and the preprocessing."""
    if method == "sum":
        mean, std = (
            tuple(values) if len(values) == 1 else (float(np.mean(values)),)
            for values in (how.mean, how.std)
        )
        return np.ones((old, 1)), replace(how, mean=mean, std=std)
    if method == "repeat":
        dealt = np.arange(new) % old
        mean, std = (
            values if len(values) == 1 else tuple(values[channel] for channel in dealt)
            for values in (how.mean, how.std)
        )
        return np.eye(old)[:, dealt] * (old / new), replace(how, mean=mean, std=std)
    if not any(how.mean) and all(value == 1 for value in how.std):
        return np.linalg.pinv(colours), how
    mean, std = np.broadcast_to(how.mean, old), np.broadcast_to(how.std, old)
    # Colours of natural images go together, so that their deviations add up.
    new_std = np.abs(colours) @ std
    mixed = colours * std / new_std[:, np.newaxis]
    how = replace(how, mean=tuple(map(float, colours @ mean)), std=tuple(map(float, new_std)))
    return np.linalg.pinv(mixed), how


def _colours(colours: Any) -> np.ndarray:
    return np.asarray(LUMA if colours is None else colours, np.float64)
