"""Rules for the layers of frameworks that name what is inside a layer always in the same way."""

from __future__ import annotations

import re

from jaxtransfer.mapping import Rule
from jaxtransfer.types import Pattern


def torch_layer(
    source: str, target: str, layout: str = "conv", *, bias: bool = False
) -> tuple[Rule, ...]:
    """A convolution or a linear layer of PyTorch: `SOURCE.weight` and maybe `SOURCE.bias`.

    >>> [rule.target for rule in torch_layer("fc", "head", "dense", bias=True)]
    ['params/head/kernel', 'params/head/bias']
    """
    kernel = Rule(f"{source}.weight", f"params/{target}/kernel", layout)
    return (kernel, Rule(f"{source}.bias", f"params/{target}/bias")) if bias else (kernel,)


def torch_batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """A BatchNorm of PyTorch with its running statistics."""
    return (
        *torch_layer_norm(source, target),
        Rule(f"{source}.running_mean", f"stats/{target}/mean"),
        Rule(f"{source}.running_var", f"stats/{target}/var"),
    )


def torch_squeeze_excitation(reduce: str, expand: str, target: str) -> tuple[Rule, ...]:
    """A `SqueezeExcitation` in a file of PyTorch, where its layers are 1x1 convolutions."""
    return (
        *torch_layer(reduce, f"{target}/reduce", "pointwise", bias=True),
        *torch_layer(expand, f"{target}/expand", "pointwise", bias=True),
    )


def torch_layer_norm(source: str, target: str) -> tuple[Rule, ...]:
    """A LayerNorm or GroupNorm of PyTorch."""
    return (
        Rule(f"{source}.weight", f"params/{target}/scale"),
        Rule(f"{source}.bias", f"params/{target}/bias"),
    )


def keras_layer(
    source: str,
    target: str,
    layout: str = "identity",
    *,
    bias: bool = False,
    kernel: str = "kernel",
) -> tuple[Rule, ...]:
    """A layer in a Keras HDF5 file: a group of the layer's name, and in it the names of weights.

    Source: https://keras.io/api/applications, whose files have `NAME/NAME/kernel:0`.
    """
    group = f"{source}/{source}"
    rules = (Rule(f"{group}/{kernel}:0", f"params/{target}/kernel", layout),)
    return (*rules, Rule(f"{group}/bias:0", f"params/{target}/bias")) if bias else rules


def keras_batch_norm(source: str, target: str, *, scale: bool = True) -> tuple[Rule, ...]:
    """A BatchNormalization in a Keras HDF5 file; some networks have none with a scale."""
    return _tensorflow_batch_norm(f"{source}/{source}", ":0", target, scale)


def flax_layer(source: str, target: str) -> tuple[Rule, ...]:
    """A convolution or a dense layer of Flax Linen with a bias."""
    return (
        Rule(f"{source}/kernel", f"params/{target}/kernel"),
        Rule(f"{source}/bias", f"params/{target}/bias"),
    )


def flax_layer_norm(source: str, target: str) -> tuple[Rule, ...]:
    """A LayerNorm of Flax Linen."""
    return (
        Rule(f"{source}/scale", f"params/{target}/scale"),
        Rule(f"{source}/bias", f"params/{target}/bias"),
    )


def caffe_layer(source: str, target: str, layout: str = "conv") -> tuple[Rule, ...]:
    """A Convolution or InnerProduct layer of Caffe with its bias: `SOURCE/0` and `SOURCE/1`."""
    return (
        Rule(f"{source}/0", f"params/{target}/kernel", layout),
        Rule(f"{source}/1", f"params/{target}/bias"),
    )


def slim_layer(
    source: str,
    target: str,
    layout: str = "identity",
    *,
    bias: bool = False,
    kernel: str = "weights",
) -> tuple[Rule, ...]:
    """A layer in a checkpoint of TF-Slim: `SOURCE/weights` and maybe `SOURCE/biases`.

    Source: https://github.com/google-research/tf-slim, tf_slim/layers/layers.py
    """
    rules = (Rule(f"{source}/{kernel}", f"params/{target}/kernel", layout),)
    return (*rules, Rule(f"{source}/biases", f"params/{target}/bias")) if bias else rules


def slim_batch_norm(source: str, target: str, *, scale: bool = False) -> tuple[Rule, ...]:
    """The BatchNorm behind a layer of TF-Slim, which has no scale unless a network asks for it."""
    return _tensorflow_batch_norm(f"{source}/BatchNorm", "", target, scale)


def _tensorflow_batch_norm(group: str, ending: str, target: str, scale: bool) -> tuple[Rule, ...]:
    rules = (
        Rule(f"{group}/beta{ending}", f"params/{target}/bias"),
        Rule(f"{group}/moving_mean{ending}", f"stats/{target}/mean"),
        Rule(f"{group}/moving_variance{ending}", f"stats/{target}/var"),
    )
    if not scale:
        return rules
    return (Rule(f"{group}/gamma{ending}", f"params/{target}/scale"), *rules)


SLIM_TRAINING_STATE: Pattern = re.compile(
    r"(.*/)?(global_step|ExponentialMovingAverage|Momentum|RMSProp(_1)?|Adam(_1)?)"
)
"""What training by TF-Slim leaves in a checkpoint beside the weights: for `Source.ignore`.

The slots of an optimizer and the moving averages of weights have the name of their variable before
their own.
"""

KERAS_TRAINING_STATE: Pattern = re.compile(r"optimizer_weights/.*")
"""What training by Keras leaves in a file beside the weights, the slots of the optimizer."""
