"""Layers that several families share, as the published weights were trained with them.

Flax's own layers are used where they compute the same: `nn.Conv` with explicit padding, `nn.Dense`,
`nn.LayerNorm`, `nn.Dropout`. What stands here differs from them, or they have not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.errors import ModelError
from jaxtransfer.models.convolution import convolve
from jaxtransfer.models.elementwise import gelu_by_erf, smooth
from jaxtransfer.models.fast_forms import has_fast_forms
from jaxtransfer.models.normalisation import batch_moments, normalise, normalise_batch
from jaxtransfer.models.pooling import window_max
from jaxtransfer.surgery.layers import ACTIVATIONS as HEAD_ACTIVATIONS


class BatchNorm(nn.Module):
    """Normalisation over the batch (Ioffe & Szegedy 2015, arXiv 1502.03167).

    As in PyTorch, Caffe and TensorFlow, and other than in Flax, the running variance is the
    unbiased one (algorithm 2 of the paper): on the small maps and batches of fine-tuning the
    difference is not small. Statistics are computed in float32 at least, and kept in float32.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html, whose momentum
    of 0.1 is the share of the new batch, here 0.9 that of the average.

    Attributes:
        use_running_average: whether to normalise by running statistics, which then stay.
        momentum: share of the old running statistics that each batch leaves.
        epsilon: added to the variance.
        use_scale: whether there is a scale, called gamma elsewhere.
        use_bias: whether there is a bias, called beta elsewhere.
        axis_name: of the devices that a batch is spread over, where each computes for itself;
            `jaxtransfer.models.synchronised.batch_axis` sets it.
    """

    use_running_average: bool | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """From (batch, …, features) to the same shape and dtype."""
        frozen = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        features = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        values = x.astype(dtype)
        old_mean, old_var = (kept.value.astype(dtype) for kept in (running_mean, running_var))
        scale, bias = jnp.ones((), dtype), jnp.zeros((), dtype)
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        scale, bias = (jnp.broadcast_to(leaf, features).astype(dtype) for leaf in (scale, bias))
        if frozen:
            mean, var = old_mean, old_var
        else:
            mean, var = batch_moments(values, self.axis_name)
            if not self.is_initializing():
                devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
                count = x.size // features * devices
                unbiased = var * (count / max(count - 1, 1))
                for kept, old, new in (
                    (running_mean, old_mean, mean),
                    (running_var, old_var, unbiased),
                ):
                    average = self.momentum * old + (1 - self.momentum) * new
                    kept.value = average.astype(kept.value.dtype)
            if self.axis_name is None and has_fast_forms():
                return normalise_batch(values, scale, bias, self.epsilon).astype(x.dtype)
        return normalise(values, mean, var, scale, bias, self.epsilon).astype(x.dtype)


def conv(
    features: int,
    size: int | tuple[int, int],
    stride: int = 1,
    *,
    padding: int | tuple[int, int] | str | None = None,
    dilation: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    name: str,
) -> nn.Conv:
    """A convolution over images with the padding of PyTorch, or of TensorFlow.

    Args:
        features: channels that leave it.
        size: of the kernel, one number for a square.
        stride: in both directions.
        padding: zeros on each side: one number, or one for height and one for width; `None` for
            those that keep the size at stride 1; "SAME" or "VALID" as TensorFlow has them, which
            pads strided convolutions on other sides.
        dilation: distance of the kernel's taps.
        groups: of channels; the number of input channels for a depthwise convolution.
        use_bias: whether there is a bias.
        name: of the submodule.
    """
    sizes = (size, size) if isinstance(size, int) else size
    if padding is None:
        padding = (dilation * (sizes[0] - 1) // 2, dilation * (sizes[1] - 1) // 2)
    if isinstance(padding, int):
        padding = (padding, padding)
    return nn.Conv(
        features,
        sizes,
        (stride, stride),
        padding=padding if isinstance(padding, str) else [(pad, pad) for pad in padding],
        kernel_dilation=(dilation, dilation),
        feature_group_count=groups,
        use_bias=use_bias,
        conv_general_dilated=convolve,
        name=name,
    )


def round_channels(channels: float) -> int:
    """The nearest multiple of 8, at least 8, that is not more than a tenth below.

    Source: `make_divisible` of
    https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet/mobilenet.py

    >>> [round_channels(channels) for channels in (3.2, 16, 17.6, 18, 33.6)]
    [8, 16, 16, 24, 32]
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def max_pool(
    x: jax.Array, size: int, stride: int, padding: int | str = 0, *, ceil: bool = False
) -> jax.Array:
    """The largest values of windows, as PyTorch and Caffe have it.

    Args:
        x: shape (batch, height, width, channels).
        size: side of the windows.
        stride: their distance.
        padding: rows and columns on each side that count as minus infinity, or "SAME" as
            TensorFlow has it.
        ceil: whether a last window that is not full counts, as in Caffe; one that would start in
            the padding never does.
    """
    if isinstance(padding, str):
        pads = [same_padding(length, size, stride) for length in x.shape[1:3]]
    else:
        pads = [pool_padding(length, size, stride, padding, ceil) for length in x.shape[1:3]]
    return window_max(x, size, stride, pads)


def average_pool(
    x: jax.Array,
    size: int,
    stride: int,
    padding: int | str = 0,
    *,
    ceil: bool = False,
    count_padding: bool = True,
) -> jax.Array:
    """The means of windows.

    Args:
        x: shape (batch, height, width, channels).
        size: side of the windows.
        stride: their distance.
        padding: rows and columns of zeros on each side, or "SAME" as TensorFlow has it.
        ceil: whether a last window that is not full counts; see `max_pool`.
        count_padding: whether the zeros of the padding count, as in PyTorch and Caffe; they do not
            in TensorFlow. What a last window has beyond the padding never counts.
    """
    if isinstance(padding, str):
        pads = [same_padding(length, size, stride) for length in x.shape[1:3]]
        padded = pads
    else:
        pads = [pool_padding(length, size, stride, padding, ceil) for length in x.shape[1:3]]
        padded = [(padding, padding)] * 2

    def sums(values: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
        return lax.reduce_window(
            values,
            np.zeros((), values.dtype),
            lax.add,
            (1, size, size, 1),
            (1, stride, stride, 1),
            [(0, 0), *pads, (0, 0)],
        )

    counted = padded if count_padding else [(0, 0)] * 2
    sizes = [n + sum(more) for n, more in zip(x.shape[1:3], counted, strict=True)]
    left = [(p[0] - c[0], p[1] - c[1]) for p, c in zip(pads, counted, strict=True)]
    return sums(x, pads) / sums(jnp.ones((1, *sizes, 1), x.dtype), left)


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Padding before and after one axis as TensorFlow's SAME has it: what is odd goes behind.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2

    >>> same_padding(6, size=3, stride=2)
    (0, 1)
    """
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def pool_padding(length: int, size: int, stride: int, padding: int, ceil: bool) -> tuple[int, int]:
    """Padding before and after one axis, so that the windows that count are those there are.

    Behind, it is less than `padding` where the last values are in no window, and more where `ceil`
    makes a window count that is not full. It is never below zero, for then JAX has no gradient.

    >>> pool_padding(6, size=3, stride=2, padding=0, ceil=False)
    (0, 0)
    >>> pool_padding(6, size=3, stride=2, padding=0, ceil=True)
    (0, 1)
    """
    span = length + 2 * padding - size
    windows = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (windows - 1) * stride >= length + padding:
        windows -= 1
    return padding, max((windows - 1) * stride + size - length - padding, 0)


def local_response_norm(
    x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> jax.Array:
    """Each value over (k + alpha / size * sum of x² over `size` neighbouring channels) ** beta.

    Source: Krizhevsky et al. 2012, section 3.3, with alpha divided by the number of channels as
    Caffe and PyTorch do:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.LocalResponseNorm.html
    """
    before = size // 2
    sums = lax.reduce_window(
        lax.square(x),
        np.zeros((), x.dtype),
        lax.add,
        (1, 1, 1, size),
        (1, 1, 1, 1),
        [(0, 0), (0, 0), (0, 0), (before, size - 1 - before)],
    )
    return x / (k + alpha / size * sums) ** beta


def adaptive_average_pool(x: jax.Array, height: int, width: int) -> jax.Array:
    """The means of `height` times `width` bins that cover a map, however large it is.

    Along an axis of n values that become m, bin i begins at floor(i n / m) and ends before
    ceil((i + 1) n / m): bins overlap where m does not divide n, and repeat values where n is less.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html

    Args:
        x: shape (batch, height before, width before, channels).
        height: of the result.
        width: of the result.

    Raises:
        ModelError: the map is empty: the image was too small for the network.
    """
    if min(x.shape[1:3]) < 1:
        raise ModelError(
            f"adaptive_average_pool: expected a map of at least 1x1, found {x.shape}, of (batch, "
            "height, width, channels); give the network larger images"
        )
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = _bins(x.shape[1], height), _bins(x.shape[2], width)
    sums = (jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype))
    return jnp.einsum("bhwc,ih,jw->bijc", x, *sums, precision=lax.Precision.HIGHEST)


def _bins(length: int, count: int) -> np.ndarray:
    """The weights (count, length) with which an axis is averaged."""
    weights = np.zeros((count, length))
    for index in range(count):
        begin, end = index * length // count, -(-(index + 1) * length // count)
        weights[index, begin:end] = 1 / (end - begin)
    return weights


def global_mean(x: jax.Array) -> jax.Array:
    """Maps (batch, height, width, channels) to their means (batch, channels)."""
    return jnp.mean(x, axis=(1, 2))


def classify(features: jax.Array, num_classes: int, name: str = "head") -> jax.Array:
    """The logits of a dense layer, or the features themselves where there are no classes."""
    return nn.Dense(num_classes, name=name)(features) if num_classes else features


class SqueezeExcitation(nn.Module):
    """Channels weighted by what the means of all of them say.

    Source: Hu et al. 2018, arXiv 1709.01507, section 3.

    Attributes:
        squeezed: channels between the two dense layers.
        activation: a key of `ACTIVATIONS`, that between them.
        gate: a key of `ACTIVATIONS`, which brings weights into [0, 1].
    """

    squeezed: int
    activation: str = "relu"
    gate: str = "sigmoid"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From (batch, height, width, channels) to the same shape."""
        weights = nn.Dense(self.squeezed, name="reduce")(global_mean(x))
        weights = nn.Dense(x.shape[-1], name="expand")(ACTIVATIONS[self.activation](weights))
        return x * ACTIVATIONS[self.gate](weights)[:, None, None, :]


class HiddenDense(nn.Module):
    """A dense layer before the head, with ReLU and dropout: fc6 and fc7 of AlexNet and VGG.

    Attributes:
        features: that leave it.
        dropout: share of values that are set to zero in training.
        drops_input: whether these are values that enter, as in torchvision's AlexNet, instead of
            those that leave.
    """

    features: int
    dropout: float = 0.5
    drops_input: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, …, inputs) to (batch, …, features)."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        dense = nn.Dense(self.features)
        nn.share_scope(self, dense)
        return nn.relu(dense(drop(x))) if self.drops_input else drop(nn.relu(dense(x)))


class StochasticDepth(nn.Module):
    """In training, a residual branch is left out of a share `rate` of the examples.

    Source: Huang et al. 2016, arXiv 1603.09382. The others are scaled up by 1 / (1 - rate), so that
    nothing has to change in evaluation.

    Attributes:
        rate: below 1; an array where layers with rates of their own are scanned over.
    """

    rate: float | jax.Array

    @nn.compact
    def __call__(self, branch: jax.Array, *, train: bool) -> jax.Array:
        """The branch (batch, …), with zeros for the examples that it is left out of."""
        if not train or (isinstance(self.rate, (int, float)) and self.rate == 0):
            return branch
        share = 1.0 - self.rate
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        stays = jax.random.bernoulli(self.make_rng("dropout"), share, shape)
        return jnp.where(stays, branch / jnp.asarray(share, branch.dtype), 0)


def linear_rates(largest: float, depth: int) -> list[float]:
    """The rate of each block for `StochasticDepth`, from 0 in a straight line to `largest`.

    Source: Huang et al. 2016, arXiv 1603.09382, section 4.

    >>> linear_rates(0.2, 3)
    [0.0, 0.1, 0.2]
    """
    return [largest * position / max(depth - 1, 1) for position in range(depth)]


def stage_rates(largest: float, blocks: Sequence[int], position: int) -> tuple[float, ...]:
    """The rates of one stage's blocks, where the line goes through the blocks of all stages.

    >>> stage_rates(0.75, blocks=(1, 2, 1), position=1)
    (0.25, 0.5)
    """
    first = sum(blocks[:position])
    return tuple(linear_rates(largest, sum(blocks))[first : first + blocks[position]])


def quick_gelu(x: jax.Array) -> jax.Array:
    """The product of x and sigmoid(1.702 x): `QuickGELU` of https://github.com/openai/CLIP."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], Any]] = MappingProxyType(
    {
        **HEAD_ACTIVATIONS,
        "gelu": smooth(HEAD_ACTIVATIONS["gelu"], fast=gelu_by_erf),
        "gelu_tanh": smooth(lambda x: nn.gelu(x, approximate=True)),
        "quick_gelu": smooth(quick_gelu),
        "silu": smooth(nn.silu),
        "relu6": nn.relu6,
        "hard_sigmoid": nn.hard_sigmoid,
        "hard_swish": smooth(nn.hard_swish),
        "sigmoid": nn.sigmoid,
    }
)
"""Elementwise functions by name; "gelu" is the exact one."""
