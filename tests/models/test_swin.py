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
from jaxtransfer.models.swin import (
    Downsample,
    WindowAttention,
    from_windows,
    relative_positions,
    shifted_regions,
    to_windows,
)
from jaxtransfer.models.weights import match_sources
from jaxtransfer.tree import named_leaves

SMALL: dict[str, Any] = {
    "width": 4,
    "head_width": 2,
    "blocks": (2, 1, 1, 1),
    "window": 3,
    "num_classes": 5,
}
IMAGES = np.random.default_rng(2).normal(0, 1, (2, 35, 40, 3)).astype(np.float32)


@functools.cache
def small(**options: Any) -> jt.Model:
    """A small network with random values in every leaf."""
    model = build("swin_t", **SMALL, **options)
    rng = np.random.default_rng(0)
    leaves = [
        jnp.asarray(rng.normal(0, 0.5, leaf.shape) + (leaf.ndim == 1), leaf.dtype)
        for _, leaf in named_leaves(model.params)
    ]
    params = jax.tree.unflatten(jax.tree.structure(model.params), leaves)
    return jt.Model(model.spec, model.apply, params, {}, model.preprocess)


def test_stage_by_stage_the_pass_is_that_of_the_whole():
    model = small(drop_path=0.0)
    stages = model.spec.stages
    assert stages == ("stem", "stage1", "stage2", "stage3", "stage4", "norm", "pool", "head")

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


@pytest.mark.parametrize(
    ("size", "sides"),
    [((224, 224), (56, 28, 14, 7)), ((70, 52), ((17, 13), (9, 7), (5, 4), (3, 2)))],
)
def test_stages_halve_the_map_rounding_up(size, sides):
    model = build("swin_t", **SMALL)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    for position, stop in enumerate(("stage2", "stage3", "stage4", "norm")):
        forward = functools.partial(model.apply, train=False, stop=stop)
        features, _ = jax.eval_shape(forward, model.params, {}, images)
        side = sides[position]
        expected = (side, side) if isinstance(side, int) else side
        assert features.shape == (1, *expected, 4 * 2**position)


def test_windows_hold_neighbours_and_can_be_put_together_again():
    x = jnp.arange(2 * 6 * 4, dtype=jnp.float32).reshape(2, 6, 4, 1)
    windows = to_windows(x, 2)
    assert windows.shape == (2, 6, 4, 1)
    np.testing.assert_array_equal(windows[0, 3, :, 0], [10, 11, 14, 15])
    np.testing.assert_array_equal(from_windows(windows, 6, 4), x)


@pytest.mark.parametrize("window", [2, 3, 7])
def test_each_pair_of_places_has_the_row_of_its_distance(window):
    found = relative_positions(window)
    assert found.shape == (window**2, window**2)
    side = 2 * window - 1
    for first in range(window**2):
        for second in range(window**2):
            down = first // window - second // window
            right = first % window - second % window
            assert found[first, second] == (down + window - 1) * side + right + window - 1


def test_regions_tell_what_the_shift_brought_together():
    assert shifted_regions(6, 6, 3, (0, 0)) is None
    regions = shifted_regions(6, 6, 3, (1, 1))
    assert regions is not None and regions.shape == (4, 9)
    assert len(np.unique(regions[0])) == 1  # no seam goes through the first window
    # In the last one, its last row and its last column come from the other ends of the map.
    np.testing.assert_array_equal(regions[3], [0, 0, 1, 0, 0, 1, 2, 2, 3])
    # Along a side that is not shifted there is no seam.
    one_way = shifted_regions(3, 6, 3, (0, 1))
    assert one_way is not None
    np.testing.assert_array_equal(one_way[1] % 2, [0, 0, 1] * 3)
    assert len(np.unique(one_way)) == 2


def test_attention_is_the_definition_of_the_paper():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (1, 2, 4, 6)).astype(np.float32)
    layer = WindowAttention(heads=2, window=2)
    regions = np.array([[0, 0, 0, 0], [0, 1, 0, 1]])
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, regions))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 1, leaf.shape).astype(np.float32), shapes)
    found = jax.jit(lambda params, x: layer.apply({"params": params}, x, regions))(params, x)

    def dense(name: str, values: np.ndarray) -> np.ndarray:
        return values @ params[name]["kernel"] + params[name]["bias"]

    expected = np.zeros_like(x)
    for window in range(2):
        heads = []
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            query, key, value = (
                dense(name, x[0, window])[:, part] for name in ("query", "key", "value")
            )
            table = params["relative_position_bias"][:, head]
            scores = query @ key.T / np.sqrt(3) + table[relative_positions(2)]
            scores -= 100.0 * (regions[window][:, None] != regions[window][None, :])
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            heads.append(shares / shares.sum(axis=-1, keepdims=True) @ value)
        expected[0, window] = dense("out", np.concatenate(heads, axis=-1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_patches_merge_down_the_columns_first():
    x = np.arange(3 * 3 * 1, dtype=np.float32).reshape(1, 3, 3, 1)
    # The LayerNorm and a reduction to two of the four channels show their order.
    norm = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    kernel = np.eye(4, dtype=np.float32)[:, [1, 2]]
    params = {"norm": norm, "reduction": {"kernel": kernel}}
    found = np.asarray(Downsample().apply({"params": params}, x))
    assert found.shape == (1, 2, 2, 2)
    # Rows 0 1 2, 3 4 5, 6 7 8 and zeros beyond: the first patch is 0, 3, 1, 4.
    for (row, column), merged in {(0, 0): [0, 3, 1, 4], (0, 1): [2, 5, 0, 0]}.items():
        values = np.array(merged, np.float32)
        normal = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        np.testing.assert_allclose(found[0, row, column], normal[[1, 2]], rtol=1e-5)


def test_training_leaves_out_each_branch_apart():
    model = small(drop_path=0.5)
    params = model.params
    x = np.random.default_rng(0).normal(0, 1, (64, 2, 2, 16)).astype(np.float32)

    @jax.jit
    def forward(params: Any, x: Any) -> list[jax.Array]:
        stage = functools.partial(model.apply, start="stage4", stop="norm")
        rngs, frozen = {"dropout": jax.random.key(0)}, frozenset({"stage4"})
        return [
            stage(params, {}, x, train=True, rngs=rngs)[0],
            stage(params, {}, x, train=False)[0],
            stage(params, {}, x, train=True, frozen_modules=frozen)[0],
        ]

    # A block whose perceptron gives nothing and whose attention gives ones, and the reverse.
    def constant(attention: float, perceptron: float) -> Any:
        block = jax.tree.map(jnp.zeros_like, params["stage4"]["0"])
        ends = {"attention": ("out", attention), "mlp": ("dense2", perceptron)}
        for branch, (layer, value) in ends.items():
            bias = jnp.full_like(block[branch][layer]["bias"], value)
            block = {
                **block,
                branch: {**block[branch], layer: {**block[branch][layer], "bias": bias}},
            }
        return {**params, "stage4": {**params["stage4"], "0": block}}

    nothing = np.asarray(forward(constant(0.0, 0.0), x)[1])
    for attention, perceptron in ((1.0, 0.0), (0.0, 1.0)):
        trained, evaluated, frozen = forward(constant(attention, perceptron), x)
        added = np.asarray(trained) - nothing
        # The only block of the last stage is the last of all: its rate is that of the network.
        left_out = np.isclose(added, 0, atol=1e-4).all(axis=(1, 2, 3))
        assert 16 <= left_out.sum() <= 48
        np.testing.assert_allclose(added[~left_out], 2.0, rtol=1e-4)
        np.testing.assert_allclose(np.asarray(evaluated) - nothing, 1.0, rtol=1e-4)
        np.testing.assert_allclose(frozen, evaluated, rtol=1e-5)
    both = np.asarray(forward(constant(1.0, 1.0), x)[0]) - nothing
    assert {0, 2, 4} == set(np.round(both[:, 0, 0, 0]).astype(int))


def test_a_rate_without_random_numbers_is_an_error():
    model = small(drop_path=0.5)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        jax.eval_shape(functools.partial(model.apply, train=True), model.params, {}, IMAGES)


@pytest.mark.parametrize("train", [False, True])
def test_in_bfloat16_all_stages_stay_in_bfloat16(train):
    model = build("swin_t", drop_path=0.1, **SMALL)
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), model.params)
    stages = model.spec.stages
    rngs = {"dropout": jax.random.key(0)}
    x = jax.ShapeDtypeStruct(IMAGES.shape, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm computes in float32
        for stage, following in zip(stages, (*stages[1:], None), strict=True):
            cut = {"start": stage, "stop": following, "rngs": rngs}
            x, _ = jax.eval_shape(functools.partial(model.apply, train=train, **cut), half, {}, x)
            assert x.dtype == jnp.bfloat16, stage


@pytest.mark.parametrize("source", ["torchvision", "timm", "microsoft", "transformers"])
def test_rules_convert_and_invert(source):
    model = small()
    rules = model.spec.rules_for(source)
    tree = {"params": model.params, "stats": {}}
    flat = jt.invert(tree, rules)
    back, _ = jt.convert(flat, rules, tree)
    assert jt.diff(model.params, back["params"]).is_empty
    # The names tell the source: those of timm and of the authors differ in few.
    best = match_sources(flat, model.spec.sources)[0]
    assert best.source is not None and best.source.name == source and best.count == len(flat)


def test_sources_have_the_merging_of_patches_at_different_ends_of_a_stage():
    model = small()
    names = {
        source.name: set(jt.invert({"params": model.params, "stats": {}}, source.rules))
        for source in model.spec.sources
    }
    assert {"features.2.reduction.weight", "features.1.1.attn.qkv.bias"} <= names["torchvision"]
    assert {"layers.1.downsample.norm.weight", "head.fc.bias"} <= names["timm"]
    assert {"layers.0.downsample.norm.weight", "head.bias"} <= names["microsoft"]
    layer = "swin.encoder.layers.0"
    assert {
        f"{layer}.downsample.reduction.weight",
        f"{layer}.blocks.0.attention.self.query.bias",
    } <= names["transformers"]
    assert not any("layers.3.downsample" in name for name in names["microsoft"])


def test_images_are_prepared_as_each_source_does():
    # torchvision resizes to 232, 246 and 238; torchvision.models.swin_transformer
    for name, resize in (("swin_t", 232), ("swin_s", 246), ("swin_b", 238)):
        how = spec_of(name).source("torchvision").preprocess
        assert round(224 / how.crop_fraction) == resize and how.interpolation == "bicubic"
    crops = {s.name: s.preprocess.crop_fraction for s in spec_of("swin_t").sources[1:]}
    assert crops == {"timm": 0.9, "microsoft": 0.875, "transformers": 1.0}


def test_the_name_for_windows_of_twelve_builds_them():
    spec = spec_of("swin_base_patch4_window12_384")
    assert dict(spec.options)["window"] == 12 and spec.input_size == (384, 384)
    small_one = build("swin_base_patch4_window12_384", width=4, head_width=2, blocks=(1, 1, 1, 1))
    table = small_one.params["stage1"]["0"]["attention"]["relative_position_bias"]
    assert table.shape == (23 * 23, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, r"integers of at least 1.*\{'window': 0\}"),
        ({"blocks": (1, 1, 0, 1)}, "'blocks of stage 3': 0"),
        ({"blocks": (1, 1)}, r"blocks of four stages, found \(1, 1\)"),
        ({"width": 40}, "heads of 32 divide, found 40"),
        ({"input_size": 3}, r"at least 4, found \(3, 3\)"),
        ({"drop_path": -0.1}, r"rates of at least 0 and below 1, found \{'drop_path': -0.1\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("swin_t", **options)
