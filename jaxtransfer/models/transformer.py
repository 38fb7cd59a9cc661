"""What transformers share: attention, the MLP, the pre-norm block, and a row of such blocks.

Attention is that of Vaswani et al. 2017 (arXiv 1706.03762, section 3.2.2). In the pre-norm block,
the one of Vision Transformers (Dosovitskiy et al. 2021, arXiv 2010.11929, equations 2 and 3), the
normalisation stands at the entrance of each residual branch.

Projections are ordinary dense layers with kernels of two axes, `query`, `key`, `value` and `out`,
so that what works on matrices, as low-rank adapters do, finds matrices. Joining the three kernels
of the projections at run time gained nothing on a CPU: a little in the forward pass, which the
gradient gave back.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.mapping import Rule
from jaxtransfer.models.attention import attend
from jaxtransfer.models.layers import ACTIVATIONS, StochasticDepth, linear_rates
from jaxtransfer.models.naming import torch_layer
from jaxtransfer.models.products import Activation, dense

PROJECTIONS = ("query", "key", "value")


def _dense(features: int, name: str, activation: Activation | None = None) -> nn.Dense:
    """A dense layer that starts as in https://github.com/google-research/vision_transformer."""
    start = nn.initializers.xavier_uniform()
    return dense(features, activation=activation, kernel_init=start, name=name)


class Attention(nn.Module):
    """Scaled dot-product attention with several heads.

    Attributes:
        heads: that share the width; it is a multiple of them.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array | None = None) -> jax.Array:
        """From (batch, tokens, width) to the same, as each token attends to all of `memory`.

        Args:
            x: what asks.
            memory: what answers, (batch, other tokens, width); `x` itself by default.
        """
        memory = x if memory is None else memory
        width = x.shape[-1]

        def project(values: jax.Array, name: str) -> jax.Array:
            projected = _dense(width, name)(values)
            return projected.reshape(*values.shape[:-1], self.heads, width // self.heads)

        attended = attend(project(x, "query"), project(memory, "key"), project(memory, "value"))
        return _dense(width, "out")(attended.reshape(x.shape))


class Mlp(nn.Module):
    """Two dense layers with an activation between them, each followed by dropout.

    Attributes:
        hidden: features between the layers.
        activation: a name in `ACTIVATIONS`.
        dropout: the rate in training.
    """

    hidden: int
    activation: str = "gelu"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (…, width) to the same."""
        hidden, activation = _dense(self.hidden, "dense1")(x), ACTIVATIONS[self.activation]
        if self.dropout and train:
            dropout = nn.Dropout(self.dropout, deterministic=False, name="dropout1")
            y = _dense(x.shape[-1], "dense2")(dropout(activation(hidden)))
        else:
            y = _dense(x.shape[-1], "dense2", activation)(hidden)
        return nn.Dropout(self.dropout, name="dropout2")(y, deterministic=not train)


class LayerScale(nn.Module):
    """A learned factor for each feature of a residual branch.

    Source: Touvron et al. 2021, "Going deeper with Image Transformers", arXiv 2103.17239, eq. 4.
    """

    initial: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From (…, width) to the same."""
        initial = nn.initializers.constant(self.initial)
        return x * self.param("scale", initial, (x.shape[-1],))


class Block(nn.Module):
    """A pre-norm block: attention, then the MLP, each in a residual branch.

    Attributes:
        heads: of the attention.
        hidden: features inside the MLP.
        activation: of the MLP, a name in `ACTIVATIONS`.
        epsilon: of the normalisations.
        layer_scale: what the branches' factors begin with; 0 for none.
        dropout: the rate after the dense layers, those of query, key and value left out.
    """

    heads: int
    hidden: int
    activation: str = "gelu"
    epsilon: float = 1e-6
    layer_scale: float = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, drop_path: float | jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """From (batch, tokens, width) to the same.

        Args:
            x: the tokens.
            drop_path: the share of examples that a branch is left out of in training, if any.
            train: whether dropout and `drop_path` are at work.
        """
        y = nn.LayerNorm(self.epsilon, name="norm1")(x)
        y = Attention(self.heads, name="attention")(y)
        y = nn.Dropout(self.dropout, name="dropout")(y, deterministic=not train)
        x = x + self._branch(y, 1, drop_path, train)
        y = nn.LayerNorm(self.epsilon, name="norm2")(x)
        y = Mlp(self.hidden, self.activation, self.dropout, name="mlp")(y, train=train)
        return x + self._branch(y, 2, drop_path, train)

    def _branch(
        self, y: jax.Array, number: int, drop_path: float | jax.Array | None, train: bool
    ) -> jax.Array:
        if self.layer_scale:
            y = LayerScale(self.layer_scale, name=f"layer_scale{number}")(y)
        if drop_path is None:
            return y
        return StochasticDepth(drop_path, name=f"drop_path{number}")(y, train=train)


def drop_path_rates(largest: float, depth: int) -> list[float] | list[None]:
    """The rate of each block as `linear_rates` has it; `None` where nothing drops.

    >>> drop_path_rates(0.2, 3)
    [0.0, 0.1, 0.2]
    """
    if not largest:
        return [None] * depth
    return linear_rates(largest, depth)


def scan_blocks(
    block: nn.Module, x: jax.Array, rates: list[float] | list[None], *, train: bool
) -> jax.Array:
    """Blocks one after the other, compiled once: each leaf of `block` has a leading axis for them.

    Args:
        block: a module that is called as `Block` is, named as the leaves shall be.
        x: the tokens.
        rates: of `drop_path`, one for each block.
        train: as for a block.
    """

    def step(block: Any, x: jax.Array, rate: jax.Array | None) -> tuple[jax.Array, None]:
        return block(x, rate, train=train), None

    scanned = nn.scan(
        step,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=len(rates),
    )
    return scanned(block, x, None if rates[0] is None else jnp.array(rates))[0]


# ---------------------------------------------------------------------------------------------
# Rules: how PyTorch and Flax keep attention


def torch_attention(source: dict[str, str], target: str) -> tuple[Rule, ...]:
    """Attention whose projections are linear layers of PyTorch, each on its own.

    Args:
        source: the layer's name in the file for each of "query", "key", "value" and "out".
        target: path of the attention in the parameters.
    """
    return tuple(
        rule
        for part, name in source.items()
        for rule in torch_layer(name, f"{target}/{part}", "dense", bias=True)
    )


def torch_joined(
    weight: str, bias: str, target: str, parts: tuple[str, ...] = PROJECTIONS
) -> tuple[Rule, ...]:
    """Projections that are one linear layer in PyTorch, their outputs one after the other.

    >>> [str(rule) for rule in torch_joined("kv.weight", "kv.bias", "pool", ("key", "value"))][0]
    'kv.weight -> params/pool/key/kernel + params/pool/value/kernel [dense, axis 0]'
    """
    kernels = tuple(f"params/{target}/{part}/kernel" for part in parts)
    biases = tuple(f"params/{target}/{part}/bias" for part in parts)
    return Rule(weight, kernels, "dense"), Rule(bias, biases)


def flax_attention(source: str, target: str, heads: int) -> tuple[Rule, ...]:
    """`MultiHeadDotProductAttention` of Flax Linen, which keeps heads on an axis of their own."""

    def projection(part: str, leaf: str, layout: str) -> Rule:
        return Rule(f"{source}/{part}/{leaf}", f"params/{target}/{part}/{leaf}", layout)

    return (
        *(projection(part, "kernel", f"join_heads({heads})") for part in PROJECTIONS),
        *(projection(part, "bias", f"join_heads_bias({heads})") for part in PROJECTIONS),
        projection("out", "kernel", f"join_heads_out({heads})"),
        projection("out", "bias", "identity"),
    )
