from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.models.catalog import spec_of
from jaxtransfer.models.weights import match_sources
from jaxtransfer.tree import named_leaves

SMALL: dict[str, Any] = {"width": 8, "blocks": 3, "input_size": (32, 48), "num_classes": 5}
IMAGES = np.random.default_rng(2).normal(0, 1, (2, 32, 48, 3)).astype(np.float32)


def filled(model: jt.Model) -> jt.Model:
    """The network with random values in every leaf, those of stacked blocks in their order."""
    rng = np.random.default_rng(0)
    leaves = [
        jnp.asarray(rng.normal(0, 0.5, leaf.shape) + (leaf.ndim == 1), leaf.dtype)
        for _, leaf in named_leaves(model.params)
    ]
    params = jax.tree.unflatten(jax.tree.structure(model.params), leaves)
    return jt.Model(model.spec, model.apply, params, {}, model.preprocess)


@functools.cache
def small(**options: Any) -> jt.Model:
    return filled(build("mixer_b16", **SMALL, **options))


def stacked(params: Any) -> Any:
    """The parameters of blocks as one tree with a first axis for the block."""
    blocks = [params[f"block{number}"] for number in range(SMALL["blocks"])]
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("block")}
    return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def test_stage_by_stage_the_pass_is_that_of_the_whole_and_of_scanned_blocks():
    model, scanned = small(), build("mixer_b16", scan=True, **SMALL)
    stages = model.spec.stages
    assert stages == ("embed", "block0", "block1", "block2", "norm", "pool", "head")
    assert scanned.spec.stages == ("embed", "blocks", "norm", "pool", "head")
    shapes = jax.tree.map(lambda leaf: leaf.shape, scanned.params)
    assert jax.tree.map(lambda leaf: leaf.shape, stacked(model.params)) == shapes

    @jax.jit
    def forward(params: Any, images: Any) -> list[jax.Array]:
        x = images
        for stage, following in zip(stages, (*stages[1:], None), strict=True):
            x, _ = model.apply(params, {}, x, train=False, start=stage, stop=following)
        whole, _ = model.apply(params, {}, images, train=False)
        # Where nothing is left out, training is as evaluation and needs no random numbers.
        trained, _ = model.apply(params, {}, images, train=True)
        tokens, _ = scanned.apply(stacked(params), {}, images, train=True, stop="norm")
        looped, _ = scanned.apply(stacked(params), {}, tokens, train=False, start="norm")
        return [x, whole, trained, looped]

    chained, whole, trained, looped = forward(model.params, IMAGES)
    assert whole.shape == (2, 5)
    for other in (chained, trained, looped):
        np.testing.assert_allclose(other, whole, rtol=1e-5, atol=1e-5)


def test_a_module_is_rebuilt_with_and_without_the_loop():
    module, looped = small().apply.module, build("mixer_b16", scan=True, **SMALL).apply.module
    assert module.clone(scan=True) == looped and looped.clone(scan=False) == module
    assert module.clone(scan=True).stages == looped.stages
    assert ("scan", True) in build("mixer_b16", scan=True, **SMALL).spec.options


def test_scanned_blocks_start_from_different_weights():
    params = jt.init("mixer_b16", scan=True, **SMALL).params
    first, second, third = params["blocks"]["token_mlp"]["dense1"]["kernel"]
    assert not np.allclose(first, second) and not np.allclose(second, third)


def test_tokens_are_patches_row_by_row():
    model = small()
    kernel = np.asarray(model.params["embed"]["kernel"])
    tokens, _ = model.apply(model.params, {}, IMAGES, train=False, stop="block0")
    assert tokens.shape == (2, 6, 8)
    patch = IMAGES[1, 16:32, 16:32]  # the second of the second row of three
    expected = np.einsum("hwi,hwio->o", patch, kernel) + model.params["embed"]["bias"]
    np.testing.assert_allclose(tokens[1, 4], expected, rtol=1e-4, atol=1e-4)


def test_another_size_of_images_is_an_error():
    model = small()
    with pytest.raises(ModelError, match=r"\(32, 48\), found \(48, 32\).*input_size"):
        model.apply(model.params, {}, np.zeros((1, 48, 32, 3), np.float32), train=False)


@pytest.mark.parametrize("scan", [False, True])
def test_rates_grow_from_nothing_to_the_last_block(scan):
    model = build("mixer_b16", drop_path=0.8, scan=scan, **{**SMALL, "width": 2})
    # Perceptrons that give only their last bias: what a branch adds is known.
    ones = "channel_mlp/dense2/bias"
    leaves = [
        jnp.full(leaf.shape, float(name.endswith(ones)))
        for name, leaf in named_leaves(model.params)
    ]
    params = jax.tree.unflatten(jax.tree.structure(model.params), leaves)
    first = "blocks" if scan else "block0"
    tokens = np.zeros((400, 6, 2), np.float32)

    @jax.jit
    def forward(params: Any, x: Any) -> tuple[jax.Array, jax.Array]:
        run = functools.partial(model.apply, start=first, stop="norm")
        frozen = frozenset(name for name in params if name.startswith("block"))
        return (
            run(params, {}, x, train=True, rngs={"dropout": jax.random.key(0)})[0],
            run(params, {}, x, train=True, frozen_modules=frozen)[0],
        )

    trained, frozen = forward(params, tokens)
    np.testing.assert_allclose(frozen, 3.0)
    sums = np.asarray(trained)[:, 0, 0]
    np.testing.assert_array_equal(trained, np.broadcast_to(sums[:, None, None], trained.shape))
    # Rates 0, 0.4 and 0.8: the first adds 1 always, the others 1 / 0.6 and 1 / 0.2 or nothing.
    values = {round(1 + a / 0.6 + b / 0.2, 3): (a, b) for a in (0, 1) for b in (0, 1)}
    found = np.array([values[round(float(value), 3)] for value in sums])
    np.testing.assert_allclose(found.mean(axis=0), (0.6, 0.2), atol=0.1)


def test_a_rate_without_random_numbers_is_an_error():
    model = small(drop_path=0.5)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        jax.eval_shape(functools.partial(model.apply, train=True), model.params, {}, IMAGES)


@pytest.mark.parametrize("scan", [False, True])
def test_in_bfloat16_all_stages_stay_in_bfloat16(scan):
    model = build("mixer_b16", drop_path=0.1, scan=scan, **SMALL)
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), model.params)
    stages = model.spec.stages
    rngs = {"dropout": jax.random.key(0)}
    x = jax.ShapeDtypeStruct(IMAGES.shape, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm computes in float32
        for stage, following in zip(stages, (*stages[1:], None), strict=True):
            cut = {"start": stage, "stop": following, "rngs": rngs}
            x, _ = jax.eval_shape(functools.partial(model.apply, train=True, **cut), half, {}, x)
            assert x.dtype == jnp.bfloat16, stage


@pytest.mark.parametrize("source", ["timm", "vit_jax"])
def test_rules_convert_and_invert(source):
    model = small()
    rules, tree = model.spec.rules_for(source), {"params": model.params, "stats": {}}
    flat = jt.invert(tree, rules)
    back, _ = jt.convert(flat, rules, tree)
    assert jt.diff(model.params, back["params"]).is_empty
    best = match_sources(flat, model.spec.sources)[0]
    assert best.source is not None and best.source.name == source and best.count == len(flat)


def test_the_authors_files_are_told_by_their_names_and_shapes():
    model = small()
    rules = model.spec.rules_for("vit_jax")
    flat = jt.invert({"params": model.params, "stats": {}}, rules)
    shapes = {name: array.shape for name, array in flat.items()}
    assert shapes["stem/kernel"] == (16, 16, 3, 8)
    assert shapes["MixerBlock_2/token_mixing/Dense_0/kernel"] == (6, 4)
    assert shapes["MixerBlock_2/channel_mixing/Dense_1/kernel"] == (32, 8)
    assert shapes["MixerBlock_0/LayerNorm_1/scale"] == shapes["pre_head_layer_norm/bias"] == (8,)


def test_each_source_brings_its_gelu_and_its_preprocessing():
    timm, authors = spec_of("mixer_b16").sources
    assert (dict(timm.options), dict(authors.options)) == ({}, {"activation": "gelu_tanh"})
    assert (timm.preprocess.mean, timm.preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (timm.preprocess.interpolation, timm.preprocess.crop_fraction) == ("bicubic", 0.875)
    miil = [w for w in spec_of("mixer_b16").weights if "miil" in w.reference]
    assert len(miil) == 2 and all(w.preprocess and w.preprocess.std == (1.0,) for w in miil)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, r"integers of at least 1.*\{'blocks': 0\}"),
        ({"width": 7}, "an even width, found 7"),
        ({"input_size": (224, 230)}, r"multiples of 16, found \(224, 230\)"),
        ({"input_size": (0, 16)}, r"\{'height': 0\}"),
        ({"activation": "relu"}, r"'gelu', 'gelu_tanh'.*found 'relu'"),
        ({"drop_path": 1.5}, r"rates of at least 0 and below 1, found \{'drop_path': 1.5\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("mixer_b16", **options)
