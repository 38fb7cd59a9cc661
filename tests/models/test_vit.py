from __future__ import annotations

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build, families
from jaxtransfer.models.catalog import spec_of
from jaxtransfer.models.transformer import Attention, drop_path_rates
from jaxtransfer.models.weights import load_network

SIZES: dict[str, Any] = {
    "patch": 4,
    "width": 8,
    "depth": 2,
    "heads": 2,
    "input_size": (8, 12),
}
SMALL: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit_b16", "num_classes": 5},
    "mean": {
        "name": "vit_b16",
        "num_classes": 5,
        "pool": "mean",
        "norm_after_pool": True,
        "class_token": False,
    },
    "distilled": {"name": "deit_b16_distilled", "num_classes": 5},
    "dinov2": {"name": "dinov2_s14", "num_classes": 5, "pool": "token_mean"},
    "registers": {"name": "dinov2_s14_reg"},
    "clip": {"name": "clip_vit_b16", "num_classes": 6},
    "siglip": {"name": "siglip_b16"},
}
IMAGES = np.random.default_rng(1).normal(0, 1, (2, 8, 12, 3)).astype(np.float32)


def small(kind: str, **options: Any) -> jt.Model:
    return randomised(build(**{**SIZES, **SMALL[kind], **options}))


def randomised(model: jt.Model) -> jt.Model:
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), model.params
    )
    return jt.Model(model.spec, model.apply, params, model.stats, model.preprocess)


def stacked(params: Any, depth: int) -> Any:
    blocks = [params[f"block{i}"] for i in range(depth)]
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("block")}
    return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def forward(model: jt.Model, params: Any = None, images: Any = IMAGES, **keywords: Any) -> Any:
    keywords = {"train": False, **keywords}
    return model.apply(model.params if params is None else params, {}, images, **keywords)[0]


# ---------------------------------------------------------------------------------------------
# The forward pass


def test_attention_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 6))
    params = {
        part: {"kernel": rng.normal(size=(6, 6)), "bias": rng.normal(size=6)}
        for part in ("query", "key", "value", "out")
    }

    def dense(part, values):
        return values @ params[part]["kernel"] + params[part]["bias"]

    query, key, value = dense("query", x), dense("key", memory), dense("value", memory)
    attended = np.zeros((2, 3, 6))
    for head in (slice(0, 3), slice(3, 6)):
        scores = query[..., head] @ key[..., head].swapaxes(1, 2) / np.sqrt(3)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        attended[..., head] = weights @ value[..., head]
    single = jax.tree.map(jnp.float32, (params, x, memory))
    found = Attention(heads=2).apply({"params": single[0]}, *single[1:])
    np.testing.assert_allclose(found, dense("out", attended), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SMALL)
def test_cut_at_any_stage_the_pass_is_the_same(kind):
    model = small(kind)
    whole = forward(model)
    for stage in model.spec.stages:
        features = forward(model, stop=stage)
        np.testing.assert_array_equal(forward(model, images=features, start=stage), whole)
    assert set(model.spec.stages) - set(model.params) <= {"pool", "head"}


def test_each_block_is_a_stage_and_normalisation_comes_before_pooling_unless_said():
    assert small("vit").spec.stages == ("embed", "block0", "block1", "norm", "pool", "head")
    assert small("mean").spec.stages == ("embed", "block0", "block1", "pool", "norm", "head")
    assert small("vit", scan=True).spec.stages == ("embed", "blocks", "norm", "pool", "head")


@pytest.mark.parametrize(
    ("kind", "tokens", "features"),
    [
        ("vit", 1 + 6, 8),
        ("mean", 6, 8),
        ("distilled", 2 + 6, 16),
        ("dinov2", 1 + 6, 16),
        ("registers", 1 + 4 + 6, 8),
        ("clip", 1 + 6, 8),
        ("siglip", 6, 8),
    ],
)
def test_tokens_and_features(kind, tokens, features):
    model = small(kind)
    assert forward(model, stop="norm").shape[1] == tokens or kind == "mean"
    assert forward(model, stop="block1").shape == (2, tokens, 8)
    assert forward(model, stop="head").shape == (2, features)


def test_registers_and_class_token_take_no_part_in_the_mean():
    model = small("registers", pool="mean")
    tokens = np.random.default_rng(0).normal(size=(2, 11, 8)).astype(np.float32)
    found = forward(model, images=tokens, start="pool")
    np.testing.assert_allclose(found, tokens[:, 5:].mean(1), rtol=1e-5)


def test_registers_have_no_position():
    model = small("registers")
    tokens = forward(model, stop="block0")
    registers = model.params["embed"]["register_tokens"]
    np.testing.assert_array_equal(tokens[:, 1:5], jnp.broadcast_to(registers, (2, 4, 8)))
    embed = model.params["embed"]
    first = embed["class_token"][0, 0] + embed["position_embedding"][0, 0]
    np.testing.assert_allclose(tokens[0, 0], first, rtol=1e-6)


def test_the_distilled_network_averages_both_heads():
    model = small("distilled")
    tokens = forward(model, stop="pool")
    head = model.params["head"]
    first = tokens[:, 0] @ head["kernel"] + head["bias"]
    second = tokens[:, 1] @ head["distillation"]["kernel"] + head["distillation"]["bias"]
    np.testing.assert_allclose(forward(model), (first + second) / 2, rtol=1e-5, atol=1e-5)
    assert model.num_classes == 5
    replaced = jt.replace_head(model, 3)
    assert replaced.params["head"]["kernel"].shape == (16, 3)
    assert forward(replaced).shape == (2, 3)


def test_a_rim_that_no_patch_covers_does_not_count():
    model = small("siglip", input_size=(11, 13))
    images = np.random.default_rng(0).normal(size=(1, 11, 13, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        forward(model, images=images), forward(model, images=images[:, :8, :12])
    )


@pytest.mark.parametrize("kind", ["registers", "siglip", "clip"])
def test_bfloat16_stays_bfloat16(kind):
    model = small(kind)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    with jax.numpy_dtype_promotion("standard"):  # inside, LayerNorm of Flax goes to float32
        found = jax.eval_shape(
            functools.partial(forward, model), params, jnp.asarray(IMAGES, jnp.bfloat16)
        )
    assert found.dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [(8, 8), (12, 12), (3, 12)])
def test_images_of_another_size_are_an_error_that_says_what_to_do(size):
    message = rf"expected images of 7 tokens.*found \d+: {size[0]}x{size[1]} pixels in patches of 4"
    with pytest.raises(ModelError, match=message + r"; change_input_size\(model"):
        forward(small("vit"), images=jnp.zeros((1, *size, 3)))


# ---------------------------------------------------------------------------------------------
# Randomness in training


@pytest.mark.parametrize("scan", [False, True])
def test_without_rates_training_needs_no_random_key_and_is_as_evaluation(scan):
    model = small("dinov2", scan=scan)
    np.testing.assert_array_equal(forward(model, train=True), forward(model))


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
@pytest.mark.parametrize("scan", [False, True])
def test_rates_are_at_work_in_training_alone(option, scan):
    model, usual = small("vit", scan=scan, **{option: 0.5}), small("vit", scan=scan)
    np.testing.assert_array_equal(forward(model), forward(usual))
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(functools.partial(forward, model, train=True))
    images = np.repeat(IMAGES, 8, axis=0)
    run = jax.jit(lambda key: forward(model, images=images, train=True, rngs={"dropout": key}))
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - forward(model, images=images)).max() > 1e-3


@pytest.mark.parametrize("scan", [False, True])
def test_frozen_blocks_run_as_in_evaluation(scan):
    model = small("vit", scan=scan, drop_path=0.5)
    frozen = frozenset({"blocks"} if scan else {"block0", "block1"})
    key = {"dropout": jax.random.key(0)}
    found = forward(model, train=True, rngs=key, frozen_modules=frozen)
    np.testing.assert_array_equal(found, forward(model))


@pytest.mark.parametrize("scan", [False, True])
def test_each_block_drops_its_branches_at_a_rate_of_its_own(scan):
    """The branches of a block add a number of its own, so what is left tells which were there."""
    depth, batch = 3, 2000
    model = small("vit", depth=depth, drop_path=0.6, scan=scan)
    params = jax.tree.map(jnp.zeros_like, model.params)
    for i in range(depth):
        for branch, part in enumerate((("attention", "out"), ("mlp", "dense2"))):
            where = (params["blocks"] if scan else params[f"block{i}"])[part[0]][part[1]]
            number = float(4 ** (2 * i + branch))
            where["bias"] = where["bias"].at[(i,) if scan else ...].set(number)
    found = forward(
        model,
        params,
        jnp.zeros((batch, 8, 12, 3)),
        train=True,
        rngs={"dropout": jax.random.key(0)},
        stop="norm",
    )[:, 0, 0]
    rates = np.repeat([0.0, 0.3, 0.6], 2)
    numbers = 4.0 ** np.arange(6) / (1 - rates)
    rest, present = np.asarray(found), np.zeros((batch, 6), bool)
    for position in reversed(range(6)):
        present[:, position] = rest > numbers[position] * 0.9
        rest = rest - present[:, position] * numbers[position]
    np.testing.assert_allclose(rest, 0, atol=1e-2)
    np.testing.assert_allclose(present.mean(0), 1 - rates, atol=0.05)
    # Each drops for itself.
    correlations = np.corrcoef(present[:, 2:].T)
    assert np.abs(correlations - np.eye(4)).max() < 0.1


def test_rates_grow_in_a_straight_line():
    np.testing.assert_allclose(drop_path_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]
    assert drop_path_rates(0.0, 2) == [None, None]


# ---------------------------------------------------------------------------------------------
# Scanned blocks


def test_scanned_blocks_compute_the_same():
    model, scanned = small("dinov2", depth=3), small("dinov2", depth=3, scan=True)
    params = stacked(model.params, 3)
    assert jt.diff(params, scanned.params).fits

    def loss(apply, params):
        return jnp.sum(jnp.sin(apply(params, {}, IMAGES, train=True)[0]))

    value, gradient = jax.jit(jax.value_and_grad(functools.partial(loss, model.apply)))(
        model.params
    )
    other, scanned_gradient = jax.jit(jax.value_and_grad(functools.partial(loss, scanned.apply)))(
        params
    )
    np.testing.assert_allclose(other, value, rtol=1e-5)
    np.testing.assert_allclose(forward(scanned, params), forward(model), rtol=1e-4, atol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
        scanned_gradient,
        stacked(gradient, 3),
    )


def test_a_clone_of_the_module_scans():
    model, scanned = small("vit"), small("vit", scan=True)
    module: Any = model.apply
    assert module.module.clone(scan=True) == scanned.apply.module  # pyright: ignore
    assert dict(scanned.spec.options)["scan"] is True


def test_scanned_blocks_start_apart_and_layer_scale_as_in_the_paper():
    blocks = jt.init("dinov2_s14", **SIZES, scan=True).params["blocks"]
    first, second = blocks["mlp"]["dense1"]["kernel"]
    assert np.abs(first - second).min() > 0
    np.testing.assert_array_equal(
        blocks["layer_scale2"]["scale"], np.full((2, 8), 1e-5, np.float32)
    )


def test_scanning_keeps_the_program_small():
    def size(scan: bool, depth: int) -> int:
        model = build(**{**SIZES, **SMALL["vit"], "scan": scan, "depth": depth})
        images = jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32)

        def loss(params, images):
            return jnp.sum(model.apply(params, {}, images, train=True)[0])

        return len(jax.jit(jax.grad(loss)).lower(model.params, images).as_text())

    assert size(False, 6) > 1.7 * size(False, 3)
    assert size(True, 6) < 1.02 * size(True, 3)
    assert size(True, 6) < 0.6 * size(False, 6)


# ---------------------------------------------------------------------------------------------
# Files


def names_of(kind: str, source: str) -> set[str]:
    model = small(kind)
    return set(jt.invert({"params": model.params, "stats": {}}, model.spec.rules_for(source)))


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (kind, source.name)
        for kind, given in SMALL.items()
        for source in spec_of(given["name"]).sources
    ],
)
def test_rules_convert_and_invert(kind, source):
    options = dict(spec_of(SMALL[kind]["name"]).source(source).options)
    model = small(kind, **{**options, "pool": SMALL[kind].get("pool", options.get("pool"))})
    if kind == "clip" and source != "timm":
        assert "bias" not in model.params["head"]
    tree = {"params": model.params, "stats": model.stats}
    rules = model.spec.rules_for(source)
    flat = jt.invert(tree, rules)
    back, receipt = jt.convert(flat, rules, tree)
    assert jt.diff(tree, back).is_empty
    assert {entry.source for entry in receipt.entries} == set(flat)


def test_names_in_files():
    timm = names_of("vit", "timm")
    assert {"blocks.1.attn.qkv.weight", "norm.weight", "pos_embed", "head.bias"} <= timm
    assert {"fc_norm.weight", "fc_norm.bias"} <= names_of("mean", "timm")
    assert not {"norm.weight", "cls_token"} & names_of("mean", "timm")
    assert {"dist_token", "head_dist.weight"} <= names_of("distilled", "timm")
    assert {"reg_token", "blocks.0.ls2.gamma"} <= names_of("registers", "timm")
    assert "register_tokens" in names_of("registers", "dinov2")
    assert "vit.encoder.layer.0.attention.attention.key.bias" in names_of("vit", "transformers")
    assert "visual.proj" in names_of("clip", "openai")
    assert "attn_pool.kv.weight" in names_of("siglip", "timm")


def write(model: jt.Model, source: str, path, rename=lambda name: name, **more: Any):
    rules = model.spec.rules_for(source)
    flat = jt.invert({"params": model.params, "stats": {}}, rules)
    jt.write_weights({rename(name): value for name, value in flat.items()} | more, path)
    return path


LOADED = {key: value for key, value in SIZES.items() if key != "input_size"}


def test_a_file_tells_classes_channels_and_size(tmp_path):
    model = small("vit", num_classes=7, in_channels=1, input_size=(16, 16))
    path = write(model, "timm", tmp_path / "a.npz")
    loaded = load_network("vit_b16", path, **LOADED)
    assert loaded.spec.input_size == (16, 16) and loaded.num_classes == 7
    assert loaded.spec.in_channels == 1
    assert jt.diff(model.params, loaded.params).is_empty


def test_a_size_with_a_rim_stays_as_it_is(tmp_path):
    model = small("siglip", input_size=(19, 19))
    path = write(model, "transformers", tmp_path / "a.npz")
    loaded = load_network("siglip_b16", path, input_size=(19, 19), **LOADED)
    assert loaded.spec.input_size == (19, 19)
    assert spec_of("siglip_so400m14").input_size == (384, 384)


@pytest.mark.parametrize(
    ("kind", "name", "prefix"),
    [
        ("vit", "vit_b16", "vit."),
        ("registers", "dinov2_s14_reg", "dinov2_with_registers."),
        ("clip", "clip_vit_b16", "vision_model."),
        ("siglip", "siglip_b16", "vision_model."),
    ],
)
def test_a_file_without_a_head_may_have_names_without_a_prefix(kind, name, prefix, tmp_path):
    model = small(kind, num_classes=0, input_size=(8, 8))
    path = write(model, "transformers", tmp_path / "a.npz", lambda n: n.removeprefix(prefix))
    loaded = load_network(name, path, source="transformers", **LOADED)
    assert loaded.num_classes is None
    assert jt.diff(model.params, loaded.params).is_empty


@pytest.mark.parametrize(
    ("registers", "source"), [("reg_token", "timm"), ("register_tokens", "dinov2")]
)
def test_registers_tell_whose_file_it_is(registers, source, tmp_path):
    model = small("registers", input_size=(8, 8), embed_class=source == "dinov2")
    path = write(model, source, tmp_path / "a.npz")
    loaded = load_network("dinov2_s14_reg", path, **LOADED)
    assert loaded.receipt.rules_name == source
    assert loaded.spec.input_size == (8, 8)
    embedding = loaded.spec.position_embedding
    assert embedding is not None and embedding.prefix == (1 if source == "dinov2" else 0)


def test_what_sources_compute_in_their_own_way():
    """Differences that small networks hardly show; each stands in the source's own code."""

    def design(name, source):
        _, module = families()[name].build(name, **spec_of(name).source(source).options)
        return module.design  # pyright: ignore

    for name, source, expected in [
        ("vit_b16", "timm", 1e-6),
        ("vit_b16", "torchvision", 1e-6),
        ("vit_b16", "transformers", 1e-12),
        ("vit_b16", "augreg", 1e-6),
        ("deit_s16", "transformers", 1e-12),
        ("dinov2_b14", "transformers", 1e-6),
        ("clip_vit_b32", "openai", 1e-5),
        ("siglip_b16", "transformers", 1e-6),
    ]:
        assert design(name, source).epsilon == expected, (name, source)

    for name, source, expected in [
        ("vit_b16", "timm", "gelu"),
        ("clip_vit_b16", "openai", "quick_gelu"),
        ("clip_vit_b16", "transformers", "quick_gelu"),
        ("clip_vit_b16", "open_clip", "gelu"),
        ("siglip_b16", "transformers", "gelu_tanh"),
        ("siglip_b16", "big_vision", "gelu_tanh"),
        ("siglip_b16", "timm", "gelu"),
    ]:
        assert design(name, source).activation == expected, (name, source)


@pytest.mark.parametrize(
    ("name", "source", "mean", "interpolation", "crop_fraction"),
    [
        ("vit_b16", "timm", 0.5, "bicubic", 0.9),
        ("vit_b16", "torchvision", 0.485, "bilinear", 0.875),
        ("vit_b16", "transformers", 0.5, "bilinear", 1.0),
        ("deit_b16", "timm", 0.485, "bicubic", 0.9),
        ("deit_b16", "transformers", 0.485, "bicubic", 0.875),
        ("dinov2_b14", "timm", 0.485, "bicubic", 1.0),
        ("dinov2_b14", "transformers", 0.485, "bicubic", 0.875),
        ("clip_vit_b16", "transformers", 0.48145466, "bicubic", 1.0),
        ("siglip_b16", "transformers", 0.5, "bicubic", 1.0),
    ],
)
def test_images_are_prepared_as_each_source_expects(
    name, source, mean, interpolation, crop_fraction
):
    preprocess = spec_of(name).source(source).preprocess
    assert preprocess.mean[0] == mean
    assert preprocess.interpolation == interpolation
    assert preprocess.crop_fraction == crop_fraction


# ---------------------------------------------------------------------------------------------
# Sizes and options


def test_sizes_are_those_of_the_papers():
    spec = spec_of("vit_b16", input_size=384)
    assert spec.input_size == (384, 384)
    model = build("vit_b16", input_size=384, depth=1)
    assert model.params["embed"]["position_embedding"].shape == (1, 577, 768)
    assert model.params["embed"]["patch"]["kernel"].shape == (16, 16, 3, 768)
    dinov2 = build("dinov2_s14", depth=1).params["embed"]
    assert dinov2["position_embedding"].shape == (1, 1 + 37**2, 384)
    clip = build("clip_vit_b32", depth=1).params
    assert clip["head"]["kernel"].shape == (768, 512) and "bias" not in clip["embed"]["patch"]


def test_the_mlp_keeps_its_proportion_to_the_width():
    assert build("vit_b16", width=24, depth=1).params["block0"]["mlp"]["dense1"][
        "kernel"
    ].shape == (24, 96)
    assert build("vit_b16", width=24, depth=1, hidden=7).params["block0"]["mlp"]["dense1"][
        "kernel"
    ].shape == (24, 7)


def test_layer_scale_may_be_left_out():
    assert "layer_scale1" not in build("dinov2_s14", **SIZES, layer_scale=0).params["block0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "width 8, expected a multiple of heads, 3"),
        ({"pool": "max"}, "pool 'max', expected one of token, mean, token_mean, map"),
        ({"class_token": False}, "pool 'token' without a class token"),
        ({"activation": "swish"}, "activation 'swish', expected one of relu"),
        ({"drop_path": 1.0}, "drop_path 1.0, expected a rate from 0, below 1"),
        ({"dropout": -0.1}, "dropout -0.1"),
        ({"input_size": (2, 8)}, r"input_size \(2, 8\), expected at least a patch, 4"),
        ({"depth": 0}, r"\{'depth': 0\}"),
        ({"registers": -1}, "registers -1"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("vit_b16", **{**SIZES, **options})
