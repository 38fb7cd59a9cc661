from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtransfer as jt
from jaxtransfer.data import preprocess_images
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.models.spec import Preprocess
from jaxtransfer.surgery.stem import LUMA
from tests.surgery.networks import (
    PREPROCESS,
    leaves,
    note_of,
    outputs,
    tokens,
    untouched,
    varied,
)

KERNEL = "params/embed/patch/kernel"
REFERENCES = np.load(Path(__file__).parent / "fixtures" / "references.npz")


class OnePixel(nn.Module):
    """A linear map of channels, so that what comes out is what the stem gives."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.Dense(4, use_bias=False, name="stem")(x))


def stem(kernel: np.ndarray, how: Preprocess | None = None) -> jt.Model:
    params = {"stem": {"kernel": jnp.asarray(kernel)}, "head": {"kernel": jnp.eye(4, 2)}}
    params["head"]["bias"] = jnp.zeros(2)
    shape = (1, 1, kernel.shape[-2])
    how = how or Preprocess(scale=None)
    model = jt.Model.from_linen(
        OnePixel(), {"params": params}, input_shape=shape, head="head", preprocess=how
    )
    return replace(model, spec=replace(model.spec, stem="stem"))


def response(model: jt.Model, images: np.ndarray) -> np.ndarray:
    """What leaves the stem for pixels as they come."""
    pixels = preprocess_images(jnp.asarray(images, jnp.float32), model.preprocess)
    return np.asarray(outputs(model, pixels, stop="head"))


kernels = st.integers(0, 10**6).map(
    lambda seed: np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
)
pixels = st.integers(0, 10**6).map(
    lambda seed: np.random.default_rng(seed).random((2, 1, 1, 1), np.float32)
)


@settings(max_examples=10)
@given(kernels, pixels)
def test_the_sum_is_exact_for_grey_images(kernel, grey):
    model = stem(kernel, Preprocess(channels=3, mean=(0.4,), std=(0.2,)))
    one = jt.adapt_stem(model, 1)
    assert one.preprocess == Preprocess(channels=1, mean=(0.4,), std=(0.2,))
    np.testing.assert_allclose(response(one, grey), response(model, grey), atol=1e-5)


@settings(max_examples=10)
@given(kernels, pixels, st.sampled_from([1, 2, 3]))
def test_repeated_channels_keep_the_response_to_constants(kernel, grey, times):
    model = stem(kernel)
    many = jt.adapt_stem(model, 3 * times, "repeat")
    expected = response(model, np.repeat(grey, 3, -1))
    np.testing.assert_allclose(response(many, np.repeat(grey, 3 * times, -1)), expected, atol=1e-5)


@settings(max_examples=10)
@given(kernels, pixels, st.sampled_from([1, 2, 4, 5]))
def test_repeated_channels_keep_it_in_the_mean_over_their_orders(kernel, grey, new):
    orders = [stem(np.roll(kernel, shift, 0)) for shift in range(3)]
    found = [response(jt.adapt_stem(m, new, "repeat"), np.repeat(grey, new, -1)) for m in orders]
    expected = response(orders[0], np.repeat(grey, 3, -1))
    np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=1e-5)


@settings(max_examples=10)
@given(kernels, st.integers(0, 10**6), st.sampled_from([3, 5]), st.sampled_from(["rgb", "bgr"]))
def test_least_squares_is_exact_where_the_new_channels_tell_the_old(kernel, seed, new, order):
    rng = np.random.default_rng(seed)
    orthogonal = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    colours = np.concatenate([orthogonal, rng.normal(size=(new - 3, 3))])
    how = replace(PREPROCESS, size=None, channels=None, channel_order=order)
    model = stem(kernel, how)
    mixed = jt.adapt_stem(model, new, "least_squares", colours=colours)
    images = rng.random((2, 1, 1, 3), np.float32)
    expected = response(model, images)
    np.testing.assert_allclose(response(mixed, images @ colours.T), expected, atol=2e-3)
    assert mixed.preprocess.channel_order == "rgb"
    assert len(mixed.preprocess.mean) == new


@settings(max_examples=10)
@given(kernels, st.integers(0, 10**6))
def test_least_squares_is_the_nearest_kernel(kernel, seed):
    rng = np.random.default_rng(seed)
    colours = rng.normal(size=(2, 3))
    mixed = jt.adapt_stem(stem(kernel), 2, "least_squares", colours=colours)
    # Images whose channels are independent and of one variance, to the last digit.
    images = np.linalg.qr(rng.normal(size=(50, 3)))[0]
    expected = np.linalg.lstsq(images @ colours.T, images @ kernel, rcond=None)[0]
    np.testing.assert_allclose(mixed.params["stem"]["kernel"], expected, atol=1e-3)
    seen = rng.normal(size=(4, 2)) @ colours  # colours that are mixtures of the new channels
    found = response(mixed, (seen @ colours.T)[:, None, None])
    np.testing.assert_allclose(found, response(stem(kernel), seen[:, None, None]), atol=1e-3)


def test_one_channel_by_least_squares_is_luma():
    kernel = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    luma = np.array(LUMA)
    by_default = jt.adapt_stem(stem(kernel), 1, "least_squares")
    named = jt.adapt_stem(stem(kernel), 1, "least_squares", colours=luma)
    assert jt.diff(by_default.params, named.params).is_empty
    expected = luma @ kernel / (luma**2).sum()
    np.testing.assert_allclose(by_default.params["stem"]["kernel"], expected, atol=1e-6)
    assert by_default.preprocess == Preprocess(scale=None)  # as they come


def test_the_means_of_mixtures_are_mixed_before_the_network():
    kernel = np.ones((3, 4), np.float32)
    how = Preprocess(channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    one = jt.adapt_stem(stem(kernel, how), 1, "least_squares")
    assert one.preprocess.channels == 1
    assert one.preprocess.mean == pytest.approx((0.299 * 0.5 + 0.587 * 0.4 + 0.114 * 0.3,))
    assert one.preprocess.std == pytest.approx((0.299 * 0.2 + 0.587 * 0.3 + 0.114 * 0.4,))


@pytest.mark.parametrize("new", [1, 2, 4, 6, 13])
def test_kernels_are_those_of_timm(new):
    kernel, expected = (REFERENCES[f"stem/3-{new}/{name}"] for name in ("kernel", "adapted"))
    params = {"stem": {"kernel": jnp.asarray(kernel)}, "head": {"kernel": jnp.ones((4, 2))}}
    model = jt.Model.from_function(lambda params, inputs: inputs, params, head="head")
    adapted = jt.adapt_stem(replace(model, spec=replace(model.spec, stem="stem")), new)
    np.testing.assert_allclose(adapted.params["stem"]["kernel"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("new", "channels", "mean", "std"),
    [
        (1, 1, (0.4,), (0.3,)),
        (2, None, (0.5, 0.4), (0.2, 0.3)),
        (4, None, (0.5, 0.4, 0.3, 0.5), (0.2, 0.3, 0.4, 0.2)),
    ],
)
def test_only_the_kernel_is_new_and_the_rest_follows(new, channels, mean, std):
    old = tokens()
    before = leaves(old)
    model = jt.adapt_stem(old, new)
    assert untouched(old, model, KERNEL)
    assert leaves(old).keys() == before.keys()
    assert all(leaf is before[name] for name, leaf in leaves(old).items())
    assert leaves(model)[KERNEL].shape == (2, 2, new, 4)
    assert model.spec.in_channels == new
    how = model.preprocess
    assert (how.channels, how.size) == (channels, (8, 8))
    assert how.mean == pytest.approx(mean) and how.std == pytest.approx(std)
    assert outputs(model, np.ones((2, 8, 8, new), np.float32)).shape == (2, 3)
    said = (
        "one channel instead of 3, by sum"
        if new == 1
        else f"{new} channels instead of 3, by repeat"
    )
    assert note_of(model) == f"adapt_stem: embed/patch/kernel takes {said}"


def test_there_and_back_by_sums_and_repeats():
    old = tokens()
    back = jt.adapt_stem(jt.adapt_stem(jt.adapt_stem(old, 1), 3), 1)
    one = jt.adapt_stem(old, 1)
    np.testing.assert_allclose(leaves(back)[KERNEL], leaves(one)[KERNEL], rtol=1e-6)


def test_the_order_of_caffe_is_put_right_first():
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    how = Preprocess(scale=None, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), channel_order="bgr")
    model = stem(kernel, how)
    six = jt.adapt_stem(model, 6)
    assert (six.preprocess.channel_order, six.preprocess.mean) == ("rgb", (3, 2, 1) * 2)
    assert six.preprocess.std == (4, 2, 1) * 2
    image = np.random.default_rng(0).random((2, 1, 1, 3), np.float32)
    np.testing.assert_allclose(
        response(six, np.concatenate([image, image], -1)), response(model, image), rtol=1e-5
    )


def test_half_precision_is_kept():
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tokens())
    one = jt.adapt_stem(model, 1)
    assert {leaf.dtype.name for leaf in leaves(one).values()} == {"bfloat16"}
    kernel = np.asarray(leaves(model)[KERNEL], np.float32).sum(2, keepdims=True)
    np.testing.assert_array_equal(leaves(one)[KERNEL], kernel.astype(jnp.bfloat16))


def test_a_network_of_the_catalog_without_weights_is_adapted_too():
    model = jt.adapt_stem(build("cifar_resnet8", width=2), 5)
    direct = build("cifar_resnet8", width=2, in_channels=5)
    assert jax.tree.map(lambda leaf: leaf.shape, model.params) == jax.tree.map(
        lambda leaf: leaf.shape, direct.params
    )
    assert (model.spec, model.apply) == (direct.spec, direct.apply)


def test_as_many_channels_as_before_are_the_model_itself():
    model = tokens()
    assert jt.adapt_stem(model, 3) is model
    turned = jt.adapt_stem(model, 3, "least_squares", colours=np.eye(3)[::-1])
    np.testing.assert_allclose(
        leaves(turned)[KERNEL], leaves(model)[KERNEL][:, :, ::-1], rtol=1e-5, atol=1e-5
    )
    assert turned.preprocess.mean == pytest.approx(PREPROCESS.mean[::-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "at least 1, found 0"),
        ((1.0,), r"at least 1, found 1\.0"),
        ((2, "sum"), "one channel for the method 'sum', found 2; take 'repeat'"),
        ((2, "mean"), "a method among sum, repeat, least_squares, found 'mean'"),
        ((2, "least_squares"), r"colours of shape \(2, 3\), found none"),
    ],
)
def test_what_cannot_be_is_an_error(arguments, message):
    with pytest.raises(ModelError, match=r"adapt_stem\(Tokens\): expected .*" + message):
        jt.adapt_stem(tokens(), *arguments)


@pytest.mark.parametrize(
    ("method", "colours", "message"),
    [
        ("least_squares", np.ones((3, 2)), r"colours of shape \(2, 3\), finite, found \(3, 2\)"),
        ("least_squares", np.full((2, 3), np.nan), "finite"),
        ("least_squares", np.eye(2, 3) * [1, 0, 0], "a row of zeros"),
        ("repeat", np.ones((2, 3)), "for the method 'least_squares' alone, found 'repeat'"),
    ],
)
def test_colours_that_do_not_fit_are_errors(method, colours, message):
    with pytest.raises(ModelError, match=message):
        jt.adapt_stem(tokens(), 2, method, colours=colours)


def test_a_stem_that_is_not_known_is_an_error():
    model = tokens()
    for stem_path, found in (
        ("embed", "nothing"),
        (None, "nothing"),
        ("block0/dense", r"\(4, 4\)"),
    ):
        unknown = replace(model, spec=replace(model.spec, stem=stem_path))
        with pytest.raises(ModelError, match=f"expected a kernel over all 3 channels.*{found}"):
            jt.adapt_stem(unknown, 1)


class ThreeChannels(nn.Module):
    """A network that reads its channels one by one."""

    @nn.compact
    def __call__(self, x):
        red, green, blue = jnp.split(x, [1, 2], axis=-1)
        return nn.Dense(2, name="head")((nn.Dense(4, name="stem")(x) * blue).mean((1, 2)))


def test_a_network_that_needs_its_channels_is_an_error():
    module = ThreeChannels()
    variables = jax.eval_shape(
        lambda key: module.init(key, jnp.zeros((1, 4, 4, 3))), jax.random.key(0)
    )
    model = jt.Model.from_linen(module, varied(variables), input_shape=(4, 4, 3))
    model = replace(model, spec=replace(model.spec, stem="stem"))
    with pytest.raises(ModelError, match=r"runs on images of \(4, 4\) with 1 channels, found"):
        jt.adapt_stem(model, 1)
