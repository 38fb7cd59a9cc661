"""Rules for the layers of frameworks that name what is inside a layer always in the same way."""

from __future__ import annotations

from jaxtransfer.mapping import Rule


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
    group = f"{source}/{source}"
    rules = (
        Rule(f"{group}/beta:0", f"params/{target}/bias"),
        Rule(f"{group}/moving_mean:0", f"stats/{target}/mean"),
        Rule(f"{group}/moving_variance:0", f"stats/{target}/var"),
    )
    return (Rule(f"{group}/gamma:0", f"params/{target}/scale"), *rules) if scale else rules


def caffe_layer(source: str, target: str, layout: str = "conv") -> tuple[Rule, ...]:
    """A Convolution or InnerProduct layer of Caffe: `SOURCE/0`, and its bias `SOURCE/1`."""
    return (
        Rule(f"{source}/0", f"params/{target}/kernel", layout),
        Rule(f"{source}/1", f"params/{target}/bias"),
    )
