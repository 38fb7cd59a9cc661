from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtransfer.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    SqueezeExcitation,
    StochasticDepth,
    average_pool,
    conv,
    local_response_norm,
    max_pool,
)

RNG = np.random.default_rng(0)


def images(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.normal(size=(2, height, width, channels)).astype(np.float32)


def windows(length: int, size: int, stride: int, padding: int, ceil: bool) -> list[tuple[int, int]]:
    """First and last position of each window along one axis, as PyTorch documents them."""
    starts = range(-padding, length, stride)
    whole = [start for start in starts if start + size <= length + padding]
    misses_some = whole[-1] + size < length + padding
    partial = [start for start in starts if start > whole[-1]][: ceil and misses_some]
    return [(start, start + size) for start in (*whole, *partial)]


def pooled(x, size, stride, padding, ceil, reduce) -> np.ndarray:
    rows = windows(x.shape[1], size, stride, padding, ceil)
    columns = windows(x.shape[2], size, stride, padding, ceil)
    return np.stack(
        [np.stack([reduce(x, row, column) for column in columns], axis=1) for row in rows], axis=1
    )


def clipped(x, row, column) -> np.ndarray:
    return x[:, max(row[0], 0) : row[1], max(column[0], 0) : column[1]]


POOLS = st.tuples(
    st.integers(5, 9), st.integers(5, 9), st.integers(2, 4), st.integers(1, 3), st.booleans()
).flatmap(lambda p: st.tuples(st.just(p), st.integers(0, p[2] // 2)))


@given(POOLS)
@settings(max_examples=20)
def test_max_pool_takes_the_largest_value_of_each_window(case):
    (height, width, size, stride, ceil), padding = case
    x = images(height, width)
    expected = pooled(
        x, size, stride, padding, ceil, lambda *window: clipped(*window).max(axis=(1, 2))
    )
    np.testing.assert_array_equal(max_pool(x, size, stride, padding, ceil=ceil), expected)


@given(POOLS, st.booleans())
@settings(max_examples=20)
def test_average_pool_counts_the_padding_or_not_and_never_what_lies_beyond(case, count_padding):
    (height, width, size, stride, ceil), padding = case
    x = images(height, width)

    def mean(x, row, column):
        inside = clipped(x, row, column)
        count = inside.shape[1] * inside.shape[2]
        if count_padding:
            count = np.prod(
                [
                    min(end, length + padding) - start
                    for (start, end), length in ((row, x.shape[1]), (column, x.shape[2]))
                ]
            )
        return inside.sum(axis=(1, 2)) / count

    expected = pooled(x, size, stride, padding, ceil, mean)
    found = average_pool(x, size, stride, padding, ceil=ceil, count_padding=count_padding)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_pools_have_gradients_where_the_last_values_are_in_no_window(pool):
    x = images(8, 8)
    gradient = jax.grad(lambda x: pool(x, 3, 2).sum())(x)
    # Each of 3x3 windows hands on as much as it gets.
    np.testing.assert_allclose(gradient.sum(), 2 * 3 * 3 * 3, rtol=1e-5)
    assert not gradient[:, -1].any() and not gradient[:, :, -1].any()


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_pools_have_gradients_and_keep_the_dtype(pool):
    x = images(5, 5)
    gradient = jax.jit(jax.grad(lambda x: pool(x, 3, 2, 1).sum()))(x)
    assert float(jnp.abs(gradient).max()) > 0
    assert pool(jnp.asarray(x, jnp.bfloat16), 3, 2, 1).dtype == jnp.bfloat16


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("length", "size", "stride"), [(6, 3, 2), (7, 2, 2), (8, 3, 3), (5, 3, 2)])
def test_the_gradient_of_a_maximum_goes_to_where_it_was(length, size, stride, ceil):
    x = images(length, length)[:1]
    found = jax.jit(jax.grad(lambda x: max_pool(x, size, stride, ceil=ceil).sum()))(x)
    expected = np.zeros_like(x)
    for row in windows(length, size, stride, 0, ceil):
        for column in windows(length, size, stride, 0, ceil):
            part = clipped(x, row, column)
            at = np.unravel_index(part.reshape(-1, part.shape[-1]).argmax(0), part.shape[1:3])
            for channel, (down, right) in enumerate(zip(*at, strict=True)):
                expected[0, row[0] + down, column[0] + right, channel] += 1
    np.testing.assert_array_equal(found, expected)


def test_average_pool_pads_as_tensorflow_does():
    x = np.ones((1, 4, 4, 1), np.float32)
    found = average_pool(jnp.asarray(x), 3, 1, "SAME", count_padding=False)
    np.testing.assert_allclose(found, x, rtol=1e-6)
    assert float(average_pool(jnp.asarray(x), 3, 1, "SAME")[0, 0, 0, 0]) == pytest.approx(4 / 9)


def test_local_response_norm_divides_by_neighbouring_channels():
    x = images(2, 2, channels=7)
    found = np.asarray(local_response_norm(jnp.asarray(x), size=5, alpha=0.1, beta=0.75, k=2.0))
    for channel in range(7):
        around = x[..., max(channel - 2, 0) : channel + 3]
        expected = x[..., channel] / (2 + 0.1 / 5 * (around**2).sum(-1)) ** 0.75
        np.testing.assert_allclose(found[..., channel], expected, rtol=1e-5)


def test_batch_norm_normalises_by_the_batch_and_keeps_the_unbiased_variance():
    x = RNG.normal(3, 2, size=(4, 3, 3, 5)).astype(np.float32)
    norm = BatchNorm(momentum=0.9, epsilon=1e-3)
    variables = norm.init(jax.random.key(0), x, use_running_average=True)
    variables["params"]["scale"] = jnp.arange(1.0, 6.0)
    variables["params"]["bias"] = jnp.arange(5.0)
    y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = (x - mean) / np.sqrt(var + 1e-3) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    unbiased = x.reshape(-1, 5).var(axis=0, ddof=1)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)
    np.testing.assert_allclose(
        norm.apply(variables, x, use_running_average=True),
        x / np.sqrt(1 + 1e-3) * np.arange(1, 6) + np.arange(5),
        rtol=1e-4,
        atol=1e-4,
    )


def test_batch_norm_in_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(images(3, 3), jnp.bfloat16)
    norm = BatchNorm(use_running_average=False, use_scale=False, use_bias=False)
    y, variables = norm.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16 and set(variables) == {"batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_tensorflows_padding_differs_from_pytorchs_where_strides_meet_even_sizes():
    x = images(6, 6)
    same, even = (conv(4, 3, 2, padding=p, name="conv") for p in ("SAME", None))
    variables = same.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    shifted = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = jax.lax.conv_general_dilated(
        shifted, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(same.apply(variables, x), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(same.apply(variables, x) - even.apply(variables, x)).max() > 0.1


def test_squeeze_and_excitation_weighs_channels_by_their_means():
    x, layer = images(4, 5, 6), SqueezeExcitation(2, "silu", "hard_sigmoid")
    variables = layer.init(jax.random.key(0), x)
    reduce, expand = variables["params"]["reduce"], variables["params"]["expand"]
    hidden = nn.silu(x.mean((1, 2)) @ reduce["kernel"])
    weights = nn.hard_sigmoid(hidden @ expand["kernel"])
    expected = x * np.asarray(weights)[:, None, None]
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_stochastic_depth_leaves_out_whole_examples():
    branch, layer = jnp.ones((200, 2, 3)), StochasticDepth(0.25)
    kept = layer.apply({}, branch, train=True, rngs={"dropout": jax.random.key(0)})
    per_example = np.asarray(kept).reshape(200, -1)
    assert {tuple(set(row)) for row in per_example} == {(0.0,), (np.float32(1 / 0.75),)}
    assert 0.1 < (per_example[:, 0] == 0).mean() < 0.4
    np.testing.assert_array_equal(layer.apply({}, branch, train=False), branch)
    np.testing.assert_array_equal(StochasticDepth(0.0).apply({}, branch, train=True), branch)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu", lambda x: x * (1 + np.vectorize(__import__("math").erf)(x / np.sqrt(2))) / 2),
        ("gelu_tanh", lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
        ("quick_gelu", lambda x: x / (1 + np.exp(-1.702 * x))),
        ("relu6", lambda x: np.clip(x, 0, 6)),
        ("hard_sigmoid", lambda x: np.clip(x + 3, 0, 6) / 6),
        ("hard_swish", lambda x: x * np.clip(x + 3, 0, 6) / 6),
        ("silu", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_activations_are_what_they_are_called(name, expected):
    x = np.linspace(-8, 8, 101)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), expected(x), atol=2e-6)


def test_flaxs_layers_that_are_used_as_they_are_agree_with_ours_where_both_exist():
    x = images(7, 7)
    np.testing.assert_array_equal(
        max_pool(x, 3, 2), nn.max_pool(jnp.asarray(x), (3, 3), (2, 2), "VALID")
    )
