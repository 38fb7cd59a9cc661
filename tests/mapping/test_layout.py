from __future__ import annotations

import itertools
import math
import re
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal

from jaxtransfer.errors import MappingError
from jaxtransfer.mapping.layout import LAYOUTS, Layout

SIDES = st.integers(0, 4)
DTYPES = ["float32", "float16", "int8", "bool", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]

# What another library computes, on shapes whose axes all have different sizes.
EXAMPLES = {
    "identity": ((2, 3), (2, 3)),
    "dense": ((5, 7), (7, 5)),
    "conv": ((8, 3, 5, 7), (5, 7, 3, 8)),
    "conv1d": ((8, 3, 5), (5, 3, 8)),
    "conv3d": ((8, 3, 5, 7, 2), (5, 7, 2, 3, 8)),
    "depthwise": ((8, 1, 5, 7), (5, 7, 1, 8)),
    "depthwise_keras(2)": ((5, 7, 3, 2), (5, 7, 1, 6)),
    "transposed_conv": ((3, 8, 5, 7), (5, 7, 3, 8)),
    "conv_theano": ((8, 3, 5, 7), (5, 7, 3, 8)),
    "conv_flipped": ((5, 7, 3, 8), (5, 7, 3, 8)),
    "pointwise": ((8, 3, 1, 1), (3, 8)),
    "pointwise_keras": ((1, 1, 3, 8), (3, 8)),
    "dense_to_conv": ((8, 3), (1, 1, 3, 8)),
    "channels_first": ((8, 1, 1), (8,)),
    "channels_last": ((1, 1, 1, 8), (8,)),
    "flatten_chw(2,3,5)": ((7, 30), (30, 7)),
    "flatten_chw_keras(2,3,5)": ((30, 7), (30, 7)),
    "conv_to_dense(3,5)": ((7, 2, 3, 5), (30, 7)),
    "split_heads(3)": ((6, 5), (5, 3, 2)),
    "split_heads_bias(3)": ((6,), (3, 2)),
    "merge_heads(3)": ((5, 6), (3, 2, 5)),
    "split_qkv(4)": ((24, 5), (5, 3, 4, 2)),
    "split_qkv_bias(4)": ((24,), (3, 4, 2)),
    "join_heads(3)": ((5, 3, 2), (5, 6)),
    "join_heads_bias(3)": ((3, 2), (6,)),
    "join_heads_out(3)": ((3, 2, 5), (6, 5)),
    "token": ((7,), (1, 1, 7)),
    "tokens": ((5, 7), (1, 5, 7)),
}


@st.composite
def layouts_with_shapes(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...]]:
    """A layout of the table, and a source shape that fits it, drawn from the table's own line."""
    name = draw(st.sampled_from(sorted(LAYOUTS)))
    kind = LAYOUTS[name]
    layout = Layout(name, tuple(draw(st.integers(1, 3)) for _ in kind.arguments))
    if not kind.axes:
        return layout, tuple(draw(st.lists(SIDES, max_size=4)))
    sizes = {"1": 1, **dict(kind.sizes), **dict(zip(kind.arguments, layout.arguments, strict=True))}
    groups = re.findall(r"\([^)]*\)|\S+", kind.axes.split("->")[0])
    axes = [group.strip("()").split() for group in groups]
    for axis in itertools.chain(*axes):
        sizes.setdefault(axis, draw(SIDES))
    return layout, tuple(math.prod(sizes[axis] for axis in group) for group in axes)


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray:
    """Random bits, so that NaNs with payloads and signed zeros occur; in either memory order."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
    values = values % 2 if dtype == np.bool_ else values
    return values.view(dtype).reshape(shape).copy(order="F" if draw(st.booleans()) else "C")


@given(st.data())
def test_inverting_gives_back_every_bit(data):
    layout, shape = data.draw(layouts_with_shapes())
    array = data.draw(arrays(shape))
    before = array.tobytes()
    target = layout.apply(array)
    back = layout.invert(target)
    assert (back.shape, back.dtype, back.tobytes()) == (array.shape, array.dtype, before)
    assert layout.apply(back).tobytes() == target.tobytes()
    assert array.tobytes() == before
    assert sorted(target.tobytes()) == sorted(before)


@given(layouts_with_shapes())
def test_shapes_without_data_are_those_of_arrays(case):
    layout, shape = case
    target = layout.target_shape(shape)
    assert target == layout.apply(np.zeros(shape)).shape
    assert layout.source_shape(target) == shape


@given(layouts_with_shapes())
def test_the_text_of_a_layout_names_it(case):
    layout, _ = case
    assert Layout.parse(str(layout)) == layout
    assert hash(Layout.parse(str(layout))) == hash(layout)


def test_the_table_has_an_example_of_every_layout():
    assert {Layout.parse(text).name for text in EXAMPLES} == set(LAYOUTS)


@pytest.mark.parametrize("text", EXAMPLES)
def test_shapes(text):
    source, target = EXAMPLES[text]
    assert Layout.parse(text).target_shape(source) == target
    assert Layout.parse(text).source_shape(target) == source


def test_shapes_of_any_size_take_no_memory():
    assert Layout.parse("flatten_chw(2048,512,512)").target_shape((4096, 2**29)) == (2**29, 4096)


@pytest.mark.parametrize("text", ["dense", "conv", "conv1d", "depthwise", "split_heads(3)"])
def test_transposes_are_views(text):
    source, _ = EXAMPLES[text]
    array = np.zeros(source, np.float32)
    assert np.shares_memory(Layout.parse(text).apply(array), array)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("conv", (3, 3)),
        ("dense", (3, 3, 3)),
        ("depthwise", (8, 2, 3, 3)),
        ("pointwise", (8, 2, 3, 3)),
        ("flatten_chw(2,3,5)", (7, 31)),
        ("split_heads(5)", (12, 4)),
        ("split_qkv(4)", (16, 4)),
        ("split_qkv_bias(4)", (25,)),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error_that_says_what_does(text, source):
    for function in (
        Layout.parse(text).target_shape,
        lambda shape: Layout.parse(text).apply(np.zeros(shape)),
    ):
        with pytest.raises(MappingError) as caught:
            function(source)
        assert f"layout {text}: expected a source shape (" in str(caught.value)
        assert f"found {source}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("split_heads(3)", (5, 4, 2)),
        ("merge_heads(3)", (4, 2, 5)),
        ("split_qkv(4)", (5, 2, 4, 2)),
        ("dense_to_conv", (1, 3, 4, 5)),
        ("depthwise_keras(2)", (3, 3, 1, 5)),
    ],
)
def test_a_target_that_does_not_fit_is_an_error_too(text, target):
    with pytest.raises(MappingError, match="expected a target shape"):
        Layout.parse(text).invert(np.zeros(target))


@pytest.mark.parametrize(
    "text",
    ["", "cnov", "conv(3)", "split_heads", "split_heads(0)", "split_heads(a)", "split_heads(-1)"]
    + ["flatten_chw(1,2)", "flatten_chw(1,,2)", "split_heads(1 2)", "conv)"],
)
def test_what_is_no_layout_is_an_error(text):
    with pytest.raises(MappingError, match="layout .*expected"):
        Layout.parse(text)


def test_spaces_do_not_matter():
    assert Layout.parse(" flatten_chw( 1, 2 ,3 ) ") == Layout("flatten_chw", (1, 2, 3))


# What the layouts mean: the same numbers come out of both libraries' formulas.


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def apply(module: nn.Module, params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    return np.asarray(module.apply({"params": params}, jnp.asarray(x)))


def torch_conv(x: np.ndarray, weight: np.ndarray, groups: int = 1) -> np.ndarray:
    """A convolution without padding, by its definition: x NCHW, weight (O, C / groups, h, w)."""
    (n, _, height, width), (out, inner, h, w) = x.shape, weight.shape
    y = np.zeros((n, out, height - h + 1, width - w + 1))
    for o in range(out):
        first = (o // (out // groups)) * inner
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                patch = x[:, first : first + inner, i : i + h, j : j + w]
                y[:, o, i, j] = (patch * weight[o]).sum((1, 2, 3))
    return y


def test_conv_is_what_a_convolution_in_flax_needs():
    x, weight = normal(2, 3, 6, 7), normal(4, 3, 2, 3)
    conv = nn.Conv(4, (2, 3), padding="VALID", use_bias=False)
    kernel = Layout("conv").apply(weight)
    y = apply(conv, {"kernel": kernel}, x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(np.moveaxis(y, -1, 1), torch_conv(x, weight), atol=1e-5)


def test_kernels_of_theano_are_convolved_backwards():
    x, weight = normal(1, 3, 6, 7), normal(4, 3, 2, 3)
    expected = np.stack(
        [
            sum(signal.convolve2d(x[0, c], weight[o, c], mode="valid") for c in range(3))
            for o in range(4)
        ]
    )
    conv = nn.Conv(4, (2, 3), padding="VALID", use_bias=False)
    for layout, kernel in (("conv_theano", weight), ("conv_flipped", weight.transpose(2, 3, 1, 0))):
        y = apply(conv, {"kernel": Layout(layout).apply(kernel)}, x.transpose(0, 2, 3, 1))
        np.testing.assert_allclose(np.moveaxis(y, -1, 1)[0], expected, atol=1e-5)


def test_depthwise_is_what_feature_group_count_needs():
    x, weight = normal(2, 3, 6, 7), normal(6, 1, 2, 3)
    conv = nn.Conv(6, (2, 3), padding="VALID", use_bias=False, feature_group_count=3)
    kernel = Layout("depthwise").apply(weight)
    y = apply(conv, {"kernel": kernel}, x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(np.moveaxis(y, -1, 1), torch_conv(x, weight, 3), atol=1e-5)


def test_depthwise_keras_orders_channels_as_keras_does():
    x, weight = normal(2, 6, 7, 3), normal(2, 3, 3, 2)
    conv = nn.Conv(6, (2, 3), padding="VALID", use_bias=False, feature_group_count=3)
    y = apply(conv, {"kernel": Layout("depthwise_keras", (2,)).apply(weight)}, x)
    for channel in range(3):
        for k in range(2):
            one = torch_conv(x[..., channel][:, None], weight[..., channel, k][None, None])
            np.testing.assert_allclose(y[..., channel * 2 + k], one[:, 0], atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_conv_is_what_a_transposed_convolution_in_flax_needs(stride):
    x, weight = normal(2, 3, 4, 5), normal(3, 4, 2, 3)  # weight (in, out, H, W), as torch has it
    height, width = (4 - 1) * stride + 2, (5 - 1) * stride + 3
    expected = np.zeros((2, 4, height, width))
    for i in range(4):
        for j in range(5):
            patch = np.einsum("nc,cohw->nohw", x[:, :, i, j], weight)
            expected[:, :, i * stride : i * stride + 2, j * stride : j * stride + 3] += patch
    layer = nn.ConvTranspose(4, (2, 3), (stride, stride), padding="VALID", use_bias=False)
    kernel = Layout("transposed_conv").apply(weight)
    y = apply(layer, {"kernel": kernel}, x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(np.moveaxis(y, -1, 1), expected, atol=1e-5)


def test_flatten_chw_is_what_a_layer_after_a_flatten_needs():
    x, weight = normal(2, 3, 4, 5), normal(7, 60)
    expected = x.reshape(2, 60) @ weight.T
    kernel = Layout("flatten_chw", (3, 4, 5)).apply(weight)
    found = x.transpose(0, 2, 3, 1).reshape(2, 60) @ kernel
    np.testing.assert_allclose(found, expected, atol=1e-5)
    same = Layout("flatten_chw_keras", (3, 4, 5)).apply(weight.T)
    np.testing.assert_array_equal(same, kernel)


def torch_attention(x: np.ndarray, weights: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """Self-attention by its definition: x (N, T, D), projections (D, D) that act from the left."""
    n, t, d = x.shape

    def project(name: str) -> np.ndarray:
        y = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return y.reshape(n, t, heads, d // heads).transpose(0, 2, 1, 3)

    scores = project("query") @ project("key").transpose(0, 1, 3, 2) / np.sqrt(d // heads)
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weight / weight.sum(-1, keepdims=True)) @ project("value")
    mixed = mixed.transpose(0, 2, 1, 3).reshape(n, t, d)
    return mixed @ weights["out.weight"].T + weights["out.bias"]


def test_heads_are_what_attention_in_flax_needs():
    names = ("query", "key", "value", "out")
    weights = {f"{name}.weight": normal(6, 6) + i for i, name in enumerate(names)}
    weights |= {f"{name}.bias": normal(6) * i for i, name in enumerate(names)}
    x = normal(2, 5, 6)
    params = {
        name: {
            "kernel": Layout("split_heads", (3,)).apply(weights[f"{name}.weight"]),
            "bias": Layout("split_heads_bias", (3,)).apply(weights[f"{name}.bias"]),
        }
        for name in names[:3]
    }
    params["out"] = {
        "kernel": Layout("merge_heads", (3,)).apply(weights["out.weight"]),
        "bias": weights["out.bias"],
    }
    attention = nn.MultiHeadDotProductAttention(num_heads=3)
    y = apply(attention, params, x)
    np.testing.assert_allclose(y, torch_attention(x, weights, 3), atol=1e-4)


def test_split_qkv_holds_the_three_projections_side_by_side():
    query, key, value = normal(6, 5), normal(6, 5) + 1, normal(6, 5) + 2
    fused = Layout("split_qkv", (3,)).apply(np.concatenate([query, key, value]))
    for i, one in enumerate((query, key, value)):
        np.testing.assert_array_equal(fused[:, i], Layout("split_heads", (3,)).apply(one))
