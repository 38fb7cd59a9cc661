"""Fast convolutions against those of JAX: values, both derivatives, and what is left as it is."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxtransfer as jt
from jaxtransfer.models.convolution import convolve
from jaxtransfer.models.fast_forms import plain_layers

AXES = ("NHWC", "HWIO", "NHWC")
# Kernel, strides, padding, channels that enter and leave, groups.
CASES = {
    "1x1": ((1, 1), (1, 1), "VALID", 6, 5, 1),
    "1x1 strided, odd": ((1, 1), (2, 2), [(0, 0), (0, 0)], 3, 4, 1),
    "1x1 padded": ((1, 1), (1, 1), [(1, 1), (1, 1)], 3, 4, 1),
    "1x1 grouped": ((1, 1), (1, 1), "SAME", 4, 6, 2),
    "3x3": ((3, 3), (1, 1), "SAME", 3, 4, 1),
    "2x2 patches, one row left": ((2, 2), (2, 2), "VALID", 3, 4, 1),
    "3x4 patches": ((3, 4), (3, 4), [(0, 0), (0, 0)], 3, 4, 1),
    "2x2 patches padded": ((2, 2), (2, 2), "SAME", 3, 4, 1),
    "2x2 patches, grouped": ((2, 2), (2, 2), "VALID", 4, 6, 2),
    "depthwise": ((3, 3), (1, 1), [(1, 1), (1, 1)], 4, 4, 4),
    "depthwise strided": ((3, 3), (2, 2), [(0, 1), (0, 1)], 4, 4, 4),
    "depthwise strided as TensorFlow": ((3, 3), (2, 2), "SAME", 4, 4, 4),
    "depthwise 2x3, strides 1 and 3": ((2, 3), (1, 3), "VALID", 4, 4, 4),
    "depthwise, many channels": ((3, 3), (2, 2), [(1, 1), (1, 1)], 130, 130, 130),
    "depthwise 5x5": ((5, 5), (1, 1), "SAME", 130, 130, 130),
    "depthwise with two features a channel": ((3, 3), (1, 1), "SAME", 3, 6, 3),
    "one channel": ((3, 3), (1, 1), "SAME", 1, 1, 1),
}


def example(case: str, dtype=jnp.float32):
    size, strides, padding, channels, features, groups = CASES[case]
    first, second = jax.random.split(jax.random.key(0))
    images = jax.random.normal(first, (2, 9, 8, channels), dtype)
    kernel = jax.random.normal(second, (*size, channels // groups, features), dtype)
    options = {
        "window_strides": strides,
        "padding": padding,
        "dimension_numbers": AXES,
        "feature_group_count": groups,
    }
    expected = functools.partial(lax.conv_general_dilated, **options)
    found = functools.partial(convolve, strides=options.pop("window_strides"), **options)
    return found, expected, images, kernel


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_jax(case):
    found, expected, images, kernel = example(case)

    def run(function):
        def value(images, kernel):
            outputs = function(images, kernel)
            return jnp.sum(jnp.sin(outputs)), outputs

        return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(images, kernel)

    for one, other in zip(*map(jax.tree.leaves, (run(found), run(expected))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("count", [1, 8, 12, 13])
def test_the_gradient_by_a_depthwise_kernel_is_right_for_any_number_of_images(count):
    found, expected, _, kernel = example("depthwise 5x5")
    images = jax.random.normal(jax.random.key(1), (count, 9, 8, 130))
    one, other = (
        jax.jit(jax.grad(lambda kernel, run=run: jnp.sum(jnp.sin(run(images, kernel)))))(kernel)
        for run in (found, expected)
    )
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["1x1", "3x4 patches", "depthwise", "depthwise, many channels"])
def test_forward_derivatives_are_those_of_jax(case):
    found, expected, images, kernel = example(case)
    for tangents in ((images, kernel), (images, 0 * kernel), (0 * images, kernel)):
        one, other = (
            jax.jit(functools.partial(jax.jvp, function))((images, kernel), tangents)
            for function in (found, expected)
        )
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", ["1x1", "depthwise"])
def test_half_precision_is_summed_in_float32(case):
    found, expected, images, kernel = example(case, jnp.bfloat16)
    one, exact = found(images, kernel), expected(*map(jnp.float32, (images, kernel)))
    assert one.dtype == jnp.bfloat16
    # Half the distance of neighbours in bfloat16, 2^-8, relative.
    np.testing.assert_allclose(np.float32(one), exact, rtol=2**-8, atol=1e-6)


def primitives(function, *args) -> set[str]:
    def names(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                yield from names(inner) if hasattr(inner, "eqns") else ()

    # A function of its own, for JAX remembers traces.
    return set(names(jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr))


def test_only_what_is_slow_gets_another_form():
    for case, stays in {"3x3": True, "1x1 grouped": True, "1x1": False, "depthwise": False}.items():
        found, _, images, kernel = example(case)
        assert ("conv_general_dilated" in primitives(found, images, kernel)) == stays
        with plain_layers():
            assert "conv_general_dilated" in primitives(found, images, kernel)


def test_of_a_frozen_kernel_no_gradient_is_computed():
    found, _, images, kernel = example("depthwise")
    by_images = jax.grad(lambda images: jnp.sum(found(images, kernel)))
    assert "concatenate" not in primitives(by_images, images)
    by_kernel = jax.grad(lambda kernel: jnp.sum(found(images, kernel)))
    assert "concatenate" in primitives(by_kernel, kernel)


def test_gradients_of_each_example_are_those_of_jax():
    found, expected, images, kernel = example("depthwise 5x5")

    def of_each(function):
        gradient = jax.grad(lambda kernel, image: jnp.sum(jnp.sin(function(image[None], kernel))))
        return jax.jit(jax.vmap(gradient, (None, 0)))(kernel, images)

    np.testing.assert_allclose(of_each(found), of_each(expected), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("dilation", "rank"), [(2, 2), (1, 1)])
def test_dilated_ones_and_sequences_stay(dilation, rank):
    layer = nn.Conv(
        3, (1,) * rank, kernel_dilation=(dilation,) * rank, conv_general_dilated=convolve
    )
    inputs = jnp.ones((2, *(5,) * rank, 3))
    variables = layer.init(jax.random.key(0), inputs)
    assert "conv_general_dilated" in primitives(layer.apply, variables, inputs)


def test_networks_use_it_and_stay_what_they_were():
    model = jt.init("mobilenet_v2_035", input_size=(32, 32), num_classes=3)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))

    def run(params):
        return model.apply(params, model.stats, images, train=False, stop="layer4")[0]

    assert "custom_jvp_call" in primitives(run, model.params)
    fast = jax.jit(lambda params: run(params))(model.params)
    with plain_layers():
        plain = jax.jit(lambda params: run(params))(model.params)
    np.testing.assert_allclose(fast, plain, rtol=1e-3, atol=1e-4)
