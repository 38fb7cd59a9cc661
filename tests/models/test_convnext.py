from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.models.catalog import spec_of
from jaxtransfer.models.convnext import GlobalResponseNorm
from jaxtransfer.models.weights import match_sources
from jaxtransfer.tree import named_leaves

SMALL: dict[str, Any] = {"width": 4, "blocks": (1, 2, 1, 1), "num_classes": 5}
IMAGES = np.random.default_rng(2).normal(0, 1, (2, 35, 40, 3)).astype(np.float32)
KINDS = ["convnext_tiny", "convnextv2_atto", "convnextv2_tiny"]


@functools.cache
def small(name: str, **options: Any) -> jt.Model:
    """A small network with random values in every leaf."""
    model = build(name, **SMALL, **options)
    rng = np.random.default_rng(0)
    leaves = [
        jnp.asarray(rng.normal(0, 0.5, leaf.shape) + (leaf.ndim == 1), leaf.dtype)
        for _, leaf in named_leaves(model.params)
    ]
    params = jax.tree.unflatten(jax.tree.structure(model.params), leaves)
    return jt.Model(model.spec, model.apply, params, {}, model.preprocess)


@pytest.mark.parametrize("name", KINDS[:2])
def test_stage_by_stage_the_pass_is_that_of_the_whole(name):
    model = small(name, drop_path=0.0)
    stages = model.spec.stages
    assert stages == ("stem", "stage1", "stage2", "stage3", "stage4", "pool", "norm", "head")

    @jax.jit
    def forward(params: Any, images: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = images
        for stage, following in zip(stages, (*stages[1:], None), strict=True):
            x, _ = model.apply(params, {}, x, train=False, start=stage, stop=following)
        whole, _ = model.apply(params, {}, images, train=False)
        # Where nothing is left out, training is as evaluation and needs no random numbers.
        trained, _ = model.apply(params, {}, images, train=True)
        return x, whole, trained

    chained, whole, trained = forward(model.params, IMAGES)
    assert whole.shape == (2, 5)
    np.testing.assert_allclose(chained, whole, rtol=1e-5)
    np.testing.assert_allclose(trained, whole, rtol=1e-5)


@pytest.mark.parametrize(("size", "sides"), [(224, (56, 28, 14, 7)), (67, (16, 8, 4, 2))])
def test_stages_halve_the_image_leaving_odd_rows_out(size, sides):
    model = build("convnext_tiny", **SMALL)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    for position, stop in enumerate(("stage2", "stage3", "stage4", "pool")):
        forward = functools.partial(model.apply, train=False, stop=stop)
        features, _ = jax.eval_shape(forward, model.params, {}, images)
        assert features.shape == (1, sides[position], sides[position], 4 * 2**position)


def test_training_leaves_whole_branches_out_and_scales_the_others_up():
    model = small("convnext_tiny", drop_path=0.5)
    x = np.random.default_rng(0).normal(0, 1, (32, 4, 4, 16)).astype(np.float32)
    off = {**model.params["stage4"]["0"], "layer_scale": {"scale": jnp.zeros(32)}}
    no_branch = {**model.params, "stage4": {**model.params["stage4"], "0": off}}

    @jax.jit
    def forward(params: Any, no_branch: Any, x: Any) -> list[jax.Array]:
        stage = functools.partial(model.apply, start="stage4", stop="pool")
        rngs, frozen = {"dropout": jax.random.key(0)}, frozenset({"stage4"})
        return [
            stage(no_branch, {}, x, train=False)[0],
            stage(params, {}, x, train=False)[0],
            stage(params, {}, x, train=True, rngs=rngs)[0],
            stage(params, {}, x, train=True, frozen_modules=frozen)[0],
        ]

    without, evaluated, trained, frozen = map(np.asarray, forward(model.params, no_branch, x))
    # The only block of the last stage is the last of all: its rate is that of the network.
    left_out = np.isclose(trained, without, rtol=1e-4, atol=1e-4).all(axis=(1, 2, 3))
    assert 6 <= left_out.sum() <= 26
    twice = 2 * (evaluated - without)[~left_out]
    np.testing.assert_allclose((trained - without)[~left_out], twice, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(frozen, evaluated, rtol=1e-5)


def test_a_rate_without_random_numbers_is_an_error():
    model = small("convnext_tiny", drop_path=0.5)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        model.apply(model.params, {}, IMAGES, train=True)


def drop_rates(model: jt.Model) -> list[float]:
    """The rates of the blocks in their order, as the forward pass comes to them."""
    found = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if type(context.module).__name__ == "StochasticDepth":
            found.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(functools.partial(model.apply, train=False), model.params, {}, IMAGES)
    return found


def test_rates_grow_from_block_to_block():
    rates = drop_rates(build("convnext_tiny", drop_path=0.4, **SMALL))
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4])
    # The papers' rates are the defaults.
    assert build("convnext_base", **SMALL).apply.module.drop_path == 0.5
    assert build("convnextv2_tiny", **SMALL).apply.module.drop_path == 0.2


def test_global_response_norm_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, 5, 4, 6)).astype(np.float32)
    x[..., 0] = 0  # a channel that is off everywhere
    scale, bias = rng.normal(0, 1, (2, 6)).astype(np.float32)
    # Algorithm 1 of arXiv 2301.00808.
    norms = np.sqrt((x**2).sum(axis=(1, 2), keepdims=True))
    shares = norms / (norms.mean(axis=-1, keepdims=True) + 1e-6)
    expected = scale * (x * shares) + bias + x

    @jax.jit
    def layer(x: Any, scale: Any, bias: Any) -> Any:
        params = {"scale": scale, "bias": bias}
        found, pull = jax.vjp(lambda x: GlobalResponseNorm().apply({"params": params}, x), x)
        return found, pull(found)[0]

    found, slope = layer(x, scale, bias)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.isfinite(slope).all()
    nothing = np.zeros(6, np.float32)
    np.testing.assert_array_equal(layer(x, nothing, nothing)[0], x)


@pytest.mark.parametrize("name", KINDS[:2])
@pytest.mark.parametrize("train", [False, True])
def test_in_bfloat16_all_stages_stay_in_bfloat16(name, train):
    model = build(name, drop_path=0.1, **SMALL)
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), model.params)
    stages = model.spec.stages
    rngs = {"dropout": jax.random.key(0)}
    x = jax.ShapeDtypeStruct(IMAGES.shape, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm computes in float32
        for stage, following in zip(stages, (*stages[1:], None), strict=True):
            cut = {"start": stage, "stop": following, "rngs": rngs}
            x, _ = jax.eval_shape(functools.partial(model.apply, train=train, **cut), half, {}, x)
            assert x.dtype == jnp.bfloat16, stage


SOURCES = [(name, source.name) for name in KINDS for source in spec_of(name, **SMALL).sources]


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_rules_convert_and_invert(name, source):
    model = small(name)
    rules = model.spec.rules_for(source)
    flat = jt.invert({"params": model.params, "stats": {}}, rules)
    back, receipt = jt.convert(flat, rules, {"params": model.params, "stats": {}})
    assert jt.diff(model.params, back["params"]).is_empty
    assert len(receipt.entries) == len(flat) == len(jt.leaf_names(model.params))
    # The names tell the source.
    best = match_sources(flat, model.spec.sources)[0]
    assert best.source is not None and best.source.name == source and best.count == len(flat)


def test_files_have_the_shapes_of_their_sources():
    def shape(name: str, source: str, tensor: str) -> tuple[int, ...]:
        model = small(name)
        flat = jt.invert({"params": model.params, "stats": {}}, model.spec.rules_for(source))
        return flat[tensor].shape

    assert shape("convnext_tiny", "torchvision", "features.3.1.layer_scale") == (8, 1, 1)
    assert shape("convnext_tiny", "timm", "stages.1.blocks.1.gamma") == (8,)
    assert shape("convnext_tiny", "facebook", "stages.1.1.dwconv.weight") == (8, 1, 7, 7)
    assert shape("convnextv2_atto", "timm", "stages.0.blocks.0.mlp.fc1.weight") == (16, 4, 1, 1)
    assert shape("convnextv2_tiny", "timm", "stages.0.blocks.0.mlp.fc1.weight") == (16, 4)
    assert shape("convnextv2_atto", "facebook", "stages.0.0.grn.gamma") == (1, 1, 1, 16)
    body = "convnextv2.encoder.stages.3"
    assert shape("convnextv2_atto", "transformers", f"{body}.layers.0.grn.bias") == (1, 1, 1, 128)
    assert shape("convnextv2_atto", "transformers", f"{body}.downsampling_layer.1.bias") == (32,)


def test_images_are_prepared_as_each_source_does():
    tiny = spec_of("convnext_tiny")
    assert [source.name for source in tiny.sources] == [
        "torchvision",
        "timm",
        "facebook",
        "transformers",
    ]
    torchvision, timm = tiny.source("torchvision").preprocess, tiny.source("timm").preprocess
    assert (torchvision.interpolation, timm.interpolation) == ("bilinear", "bicubic")
    # torchvision resizes to 236, 230, 232 and 232; torchvision.models.convnext
    for size, resize in (("tiny", 236), ("small", 230), ("base", 232), ("large", 232)):
        how = spec_of(f"convnext_{size}").source("torchvision").preprocess
        assert round(224 / how.crop_fraction) == resize
    assert timm.crop_fraction == 0.875 and timm.mean == (0.485, 0.456, 0.406)
    assert {source.name for source in spec_of("convnextv2_tiny").sources} == {
        "timm",
        "facebook",
        "transformers",
    }


def test_the_epsilon_after_the_pooling_is_that_of_the_source():
    options = spec_of("convnext_tiny").source("transformers").options
    theirs, usual = build("convnext_tiny", **SMALL, **options), build("convnext_tiny", **SMALL)
    assert theirs.apply.module.norm_epsilon == 1e-12
    assert usual.apply.module.norm_epsilon == 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"integers of at least 1.*\{'width': 0\}"),
        ({"blocks": (1, 1, 0, 1)}, "'blocks of stage 3': 0"),
        ({"blocks": (1, 1, 1)}, r"blocks of four stages, found \(1, 1, 1\)"),
        ({"input_size": 31}, r"at least 32.*found \(31, 31\)"),
        ({"drop_path": 1.0}, r"rates of at least 0 and below 1, found \{'drop_path': 1.0\}"),
        ({"num_classes": -1}, "'num_classes': -1"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("convnext_tiny", **options)
