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
from jax import lax

from jaxtransfer.surgery.head import ACTIVATIONS as HEAD_ACTIVATIONS


class BatchNorm(nn.Module):
    """Normalisation over the batch (Ioffe & Szegedy 2015, arXiv 1502.03167).

    As in PyTorch, Caffe and TensorFlow, and other than in Flax, the running variance is the
    unbiased one (algorithm 2 of the paper): on the small maps and batches of fine-tuning the
    difference is not small. Statistics are computed and kept in float32.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html, whose momentum
    of 0.1 is the share of the new batch, here 0.9 that of the average.

    Attributes:
        use_running_average: whether to normalise by running statistics, which then stay.
        momentum: share of the old running statistics that each batch leaves.
        epsilon: added to the variance.
        use_scale: whether there is a scale, called gamma elsewhere.
        use_bias: whether there is a bias, called beta elsewhere.
    """

    use_running_average: bool | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """From (batch, …, features) to the same shape and dtype."""
        frozen = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        features = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        if frozen:
            mean, var = running_mean.value, running_var.value
        else:
            axes = tuple(range(x.ndim - 1))
            values = x.astype(jnp.float32)
            mean = jnp.mean(values, axes)
            var = jnp.maximum(jnp.mean(lax.square(values), axes) - lax.square(mean), 0.0)
            if not self.is_initializing():
                count = x.size // features
                unbiased = var * (count / max(count - 1, 1))
                new = 1 - self.momentum
                running_mean.value = self.momentum * running_mean.value + new * mean
                running_var.value = self.momentum * running_var.value + new * unbiased
        factor = lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor *= self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        y = (x - mean) * factor
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        return y.astype(x.dtype)


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
        name=name,
    )


def max_pool(
    x: jax.Array, size: int, stride: int, padding: int = 0, *, ceil: bool = False
) -> jax.Array:
    """The largest values of windows, as PyTorch and Caffe have it.

    Args:
        x: shape (batch, height, width, channels).
        size: side of the windows.
        stride: their distance.
        padding: rows and columns on each side that count as minus infinity.
        ceil: whether a last window that is not full counts, as in Caffe; one that would start in
            the padding never does.
    """
    pads = [_pads(length, size, stride, padding, ceil) for length in x.shape[1:3]]
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(
        x,
        jnp.asarray(lowest, x.dtype),
        lax.max,
        (1, size, size, 1),
        (1, stride, stride, 1),
        [(0, 0), *pads, (0, 0)],
    )


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
        windows = ((size, size), (stride, stride))
        return nn.avg_pool(x, *windows, padding=padding, count_include_pad=count_padding)
    pads = [_pads(length, size, stride, padding, ceil) for length in x.shape[1:3]]

    def sums(values: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
        return lax.reduce_window(
            values,
            jnp.zeros((), values.dtype),
            lax.add,
            (1, size, size, 1),
            (1, stride, stride, 1),
            [(0, 0), *pads, (0, 0)],
        )

    counted = padding if count_padding else 0
    ones = jnp.ones((1, x.shape[1] + 2 * counted, x.shape[2] + 2 * counted, 1), x.dtype)
    counts = sums(ones, [(low - counted, high - counted) for low, high in pads])
    return sums(x, pads) / counts


def _pads(length: int, size: int, stride: int, padding: int, ceil: bool) -> tuple[int, int]:
    """Padding before and after one axis, so that the windows that count are those there are."""
    span = length + 2 * padding - size
    windows = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (windows - 1) * stride >= length + padding:
        windows -= 1
    return padding, (windows - 1) * stride + size - length - padding


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
        jnp.zeros((), x.dtype),
        lax.add,
        (1, 1, 1, size),
        (1, 1, 1, 1),
        [(0, 0), (0, 0), (0, 0), (before, size - 1 - before)],
    )
    return x / (k + alpha / size * sums) ** beta


def global_mean(x: jax.Array) -> jax.Array:
    """Maps (batch, height, width, channels) to their means (batch, channels)."""
    return jnp.mean(x, axis=(1, 2))


def classify(features: jax.Array, num_classes: int, name: str = "head") -> jax.Array:
    """The logits of a dense layer, or the features themselves where there are no classes."""
    return nn.Dense(num_classes, name=name)(features) if num_classes else features


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


def quick_gelu(x: jax.Array) -> jax.Array:
    """The product of x and sigmoid(1.702 x): `QuickGELU` of https://github.com/openai/CLIP."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], Any]] = MappingProxyType(
    {
        **HEAD_ACTIVATIONS,
        "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
        "quick_gelu": quick_gelu,
        "relu6": nn.relu6,
        "hard_sigmoid": nn.hard_sigmoid,
        "hard_swish": nn.hard_swish,
        "sigmoid": nn.sigmoid,
    }
)
"""Elementwise functions by name; "gelu" is the exact one."""
