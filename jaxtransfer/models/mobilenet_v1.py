"""MobileNet (Howard et al. 2017, "MobileNets", arXiv 1704.04861).

Table 1 of the paper: a strided 3x3 convolution, then thirteen blocks of a depthwise 3x3 and a 1x1
convolution, each normalised and followed by ReLU6. Variants differ in the width multiplier of
section 3.3, which scales the channels of all layers. The last strided row of the table is known to
be misprinted: in all implementations the thirteenth block has stride 1.

The blocks of one resolution make a stage. `layer1` to `layer5` are followed by a global mean, the
parameter-free stage `pool`, and a dense `head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import flax.linen as nn

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.mobile import (
    BlockSizes,
    Conventions,
    Layers,
    MobileNet,
    block_counts,
    check_options,
    keras_conv_norm,
    numbered_blocks,
    timm_rules,
    torch_conv_norm,
)
from jaxtransfer.models.naming import (
    KERAS_TRAINING_STATE,
    SLIM_TRAINING_STATE,
    keras_layer,
    slim_batch_norm,
    slim_layer,
    torch_layer,
)
from jaxtransfer.models.preprocessing import INCEPTION, INCEPTION_BICUBIC
from jaxtransfer.models.published import timm_weights
from jaxtransfer.models.spec import ModelSpec, Preprocess, Source, Weights
from jaxtransfer.models.stages import check_sizes

PAPER = "https://arxiv.org/abs/1704.04861"


# ---------------------------------------------------------------------------------------------
# Rules: where files keep what


def _keras_rules(layers: Layers) -> tuple[Rule, ...]:
    rules = [*keras_conv_norm("conv1", "conv1_bn", "stem")]
    for number, here, _ in numbered_blocks(layers):
        for part, short in (("depthwise", "dw"), ("project", "pw")):
            name = f"conv_{short}_{number + 1}"
            rules += keras_conv_norm(name, f"{name}_bn", f"{here}/{part}")
    return (*rules, *keras_layer("conv_preds", "head", "pointwise_keras", bias=True))


def _mlperf_tiny_rules(layers: Layers) -> tuple[Rule, ...]:
    """Layers without names of their own, which Keras numbers: the first of a kind has no number."""

    def counted(kind: str, number: int) -> str:
        return f"{kind}_{number}" if number else kind

    rules = [*keras_conv_norm("conv2d", "batch_normalization", "stem", bias=True)]
    for number, here, _ in numbered_blocks(layers):
        depthwise = counted("depthwise_conv2d", number)
        norm = counted("batch_normalization", 2 * number + 1)
        rules += keras_conv_norm(depthwise, norm, f"{here}/depthwise", bias=True)
        norm = counted("batch_normalization", 2 * number + 2)
        rules += keras_conv_norm(f"conv2d_{number + 1}", norm, f"{here}/project", bias=True)
    return (*rules, *keras_layer("dense", "head", bias=True))


def _transformers_rules(layers: Layers) -> tuple[Rule, ...]:
    def conv_norm(name: str, target: str) -> tuple[Rule, ...]:
        full = f"mobilenet_v1.{name}"
        return torch_conv_norm(f"{full}.convolution", f"{full}.normalization", target)

    rules = [*conv_norm("conv_stem", "stem")]
    for number, here, _ in numbered_blocks(layers):
        rules += conv_norm(f"layer.{2 * number}", f"{here}/depthwise")
        rules += conv_norm(f"layer.{2 * number + 1}", f"{here}/project")
    return (*rules, *torch_layer("classifier", "head", "dense", bias=True))


def _slim_rules(layers: Layers) -> tuple[Rule, ...]:
    def conv_norm(name: str, target: str) -> tuple[Rule, ...]:
        full = f"MobilenetV1/{name}"
        if name.endswith("depthwise"):
            layer = slim_layer(
                full, f"{target}/conv", "depthwise_keras(1)", kernel="depthwise_weights"
            )
        else:
            layer = slim_layer(full, f"{target}/conv")
        return (*layer, *slim_batch_norm(full, f"{target}/bn", scale=True))

    rules = [*conv_norm("Conv2d_0", "stem")]
    for number, here, _ in numbered_blocks(layers):
        rules += conv_norm(f"Conv2d_{number + 1}_depthwise", f"{here}/depthwise")
        rules += conv_norm(f"Conv2d_{number + 1}_pointwise", f"{here}/project")
    logits = "MobilenetV1/Logits/Conv2d_1c_1x1"
    return (*rules, *slim_layer(logits, "head", "pointwise_keras", bias=True))


def _sources(layers: Layers) -> tuple[Source, ...]:
    tensorflow = {"padding": "same", "epsilon": 1e-3}
    background = replace(INCEPTION, label_offset=1)
    return (
        Source(
            "keras",
            _keras_rules(layers),
            INCEPTION,
            {"padding": "end", "epsilon": 1e-3, "momentum": 0.99},
        ),
        Source("timm", timm_rules(layers), INCEPTION_BICUBIC),
        # Its own momentum of 0.9997 is the share that TensorFlow leaves and PyTorch replaces: a
        # slip of the port, which trains nothing.
        Source(
            "transformers",
            _transformers_rules(layers),
            background,
            {**tensorflow, "momentum": 0.9997},
        ),
        # https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet_v1.py
        Source(
            "tf_slim",
            _slim_rules(layers),
            background,
            {**tensorflow, "momentum": 0.9997},
            (SLIM_TRAINING_STATE,),
        ),
        # The person detector of https://github.com/mlcommons/tiny, of width 0.25.
        Source(
            "mlperf_tiny",
            _mlperf_tiny_rules(layers),
            Preprocess(size=(96, 96), channels=3),
            {
                **tensorflow,
                "momentum": 0.99,
                "use_bias": True,
                "activation": "relu",
                "input_size": (96, 96),
            },
            (KERAS_TRAINING_STATE,),
        ),
    )


# ---------------------------------------------------------------------------------------------
# Variants

# Table 1 of the paper: channels, number of blocks and first stride of each stage.
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))

# The width multipliers of table 6 of the paper, and a wider one of timm.
WIDTHS = {
    "mobilenet_v1_025": 0.25,
    "mobilenet_v1_050": 0.5,
    "mobilenet_v1_075": 0.75,
    "mobilenet_v1": 1.0,
    "mobilenet_v1_125": 1.25,
}


def mobilenet_v1(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: float | None = None,
    blocks: Sequence[int] | None = None,
    activation: str = "relu6",
    dropout: float = 0.001,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    use_bias: bool = False,
) -> tuple[ModelSpec, nn.Module]:
    """MobileNet of any width.

    Args:
        name: a key of `WIDTHS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images.
        width: what the channels of all layers are multiplied by; `None` for the variant's.
        blocks: how many blocks each of the five stages has; `None` for the paper's.
        activation: "relu6" or "relu".
        dropout: the rate at which features before the head are left out in training; the default
            is that of the paper's authors.
        padding: "symmetric", "same" or "end"; see `Conventions`, as for the next three.
        epsilon: of the normalisation.
        momentum: of the normalisation.
        use_bias: whether convolutions have a bias.

    Raises:
        ModelError: an option is not one that it can be.
    """
    check_sizes(name, num_classes=num_classes, in_channels=in_channels)
    conventions = Conventions(padding, epsilon, momentum, use_bias)
    width = WIDTHS[name] if width is None else width
    check_options(name, conventions, ("symmetric", "same", "end"), width=width, dropout=dropout)
    if activation not in ("relu6", "relu"):
        raise ModelError(f"{name}: expected activation 'relu6' or 'relu', found {activation!r}")
    counts = block_counts(name, blocks, tuple(count for _, count, _ in STAGES))
    layers = tuple(
        tuple(
            BlockSizes(
                _scaled(channels, width), stride if position == 0 else 1, activation=activation
            )
            for position in range(count)
        )
        for (channels, _, stride), count in zip(STAGES, counts, strict=True)
    )
    module = MobileNet(
        stem_width=_scaled(32, width),
        layers=layers,
        num_classes=num_classes,
        bottleneck=False,
        activation=activation,
        dropout=dropout,
        conventions=conventions,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=input_size,
        in_channels=in_channels,
        sources=_sources(layers),
        paper=PAPER,
    )
    return spec, module


def _scaled(channels: int, width: float) -> int:
    return max(int(channels * width), 1)


def _keras_file(width: str) -> str:
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet"
    return f"{folder}/mobilenet_{width}_224_tf.h5"


_MLPERF_TINY = (
    "https://raw.githubusercontent.com/mlcommons/tiny/1afd2c9820f795965a6134facd0b4dfae41ef23f/"
    "benchmark/training/visual_wake_words/trained_models/vww_96.h5"
    "#sha256=af9111d50e6e85b2f2123345e0316ef1c384865ebf6b06340ddac7e66017450f"
)

MOBILENETS_V1 = Family(
    name="mobilenet_v1",
    build=mobilenet_v1,
    # Table 6 of the paper gives 0.5, 1.3, 2.6 and 4.2 million; timm 4.23 and, for the wider one,
    # 6.27. These are the exact numbers.
    parameters={
        "mobilenet_v1_025": 470_072,
        "mobilenet_v1_050": 1_331_592,
        "mobilenet_v1_075": 2_585_560,
        "mobilenet_v1": 4_231_976,
        "mobilenet_v1_125": 6_270_840,
    },
    aliases={
        "mobilenetv1_100": ("mobilenet_v1", {}),
        "mobilenetv1_125": ("mobilenet_v1_125", {}),
        "mobilenet_v1_1.0_224": ("mobilenet_v1", {}),
        "mobilenet_v1_0.75_192": ("mobilenet_v1_075", {"input_size": (192, 192)}),
    },
    # Accuracy: of Keras https://keras.io/api/applications and, for narrow networks, the paper's
    # table 6; of timm the README of https://github.com/huggingface/pytorch-image-models.
    weights={
        "mobilenet_v1_025": (
            Weights(_keras_file("2_5"), "keras", "Apache-2.0", 50.6),
            Weights(_MLPERF_TINY, "mlperf_tiny", "Apache-2.0", data="Visual Wake Words"),
        ),
        "mobilenet_v1_050": (Weights(_keras_file("5_0"), "keras", "Apache-2.0", 63.7),),
        "mobilenet_v1_075": (
            Weights(_keras_file("7_5"), "keras", "Apache-2.0", 68.4),
            Weights(
                "hf://google/mobilenet_v1_0.75_192",
                "transformers",
                preprocess=replace(
                    INCEPTION, size=(192, 192), crop_fraction=192 / 224, label_offset=1
                ),
            ),
        ),
        "mobilenet_v1": (
            Weights(_keras_file("1_0"), "keras", "Apache-2.0", 70.4),
            timm_weights("mobilenetv1_100.ra4_e3600_r224_in1k", 75.382),
            Weights("hf://google/mobilenet_v1_1.0_224", "transformers"),
        ),
        "mobilenet_v1_125": (
            timm_weights(
                "mobilenetv1_125.ra4_e3600_r224_in1k",
                76.924,
                replace(INCEPTION_BICUBIC, crop_fraction=0.9),
            ),
        ),
    },
)

FAMILIES = (MOBILENETS_V1,)
