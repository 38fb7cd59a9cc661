from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.data import ArrayData
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.saliency import grad_cam, seen_images
from jaxtransfer.models import build
from jaxtransfer.models.stages import StagedNetwork
from jaxtransfer.models.weights import load_network

IMAGES = np.random.default_rng(0).normal(size=(5, 4, 6, 3)).astype(np.float32)


class Staged(StagedNetwork):
    """A user's own network: a convolution, or an embedding of patches, and a head over the mean."""

    kind: str = "maps"

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", "mix", "pool", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            x = nn.Conv(4, (2, 2), (2, 2), name=stage)(x)
            if self.kind == "maps":
                return x
            x = x.reshape(len(x), -1, 4)
            return jnp.concatenate([x[:, :1] + x[:, 1:2], x], axis=1)  # another token goes before
        if stage == "mix":
            y = nn.Dense(4, name=stage)(x)
            if self.kind == "maps":
                return nn.tanh(y)
            return nn.tanh(y + x.mean(axis=1, keepdims=True))  # every token sees all others
        if stage == "pool":
            return x[:, 0] if self.kind == "tokens" else x.mean(axis=(1, 2))
        return nn.Dense(3, name=stage)(x)


class Whole(nn.Module):
    """A network that does not cut its own forward pass; its head takes maps."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(4, (2, 2), (2, 2), name="stem")(x)
        return nn.Dense(3, name="head")(x).mean(axis=(1, 2))


def model_of(kind: str, **more: Any) -> jt.Model:
    module = Staged(kind=kind)
    variables = module.init(jax.random.key(0), IMAGES[:1], train=False)
    return jt.Model.from_linen(module, variables, stages=module.stages, head="head", **more)


@pytest.fixture(scope="module")
def maps() -> jt.Model:
    return model_of("maps")


@pytest.fixture(scope="module")
def tokens() -> jt.Model:
    return model_of("tokens")


def class_activation_maps(model: jt.Model, classes: np.ndarray, images: Any = IMAGES) -> np.ndarray:
    """Zhou et al. 2016, arXiv 1512.04150, equation 2: maps weighted by the class's row."""
    features = jt.features(model, images, stage="pool", pool=False)
    kernel = np.asarray(model.params["head"]["kernel"])
    heat = np.maximum(np.einsum("bhwc,cb->bhw", features, kernel[:, classes]), 0)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-30)


def test_over_a_global_mean_it_is_the_class_activation_map(maps):
    predicted = jt.predict(maps, IMAGES).argmax(axis=1)
    found = grad_cam(maps, IMAGES, upsample=False)
    assert (found.shape, found.dtype) == ((5, 2, 3), np.float32)
    np.testing.assert_allclose(found, class_activation_maps(maps, predicted), atol=1e-5)


def test_one_class_serves_all_images_or_each_has_its_own(maps):
    whole = grad_cam(maps, IMAGES, classes=1, upsample=False)
    np.testing.assert_allclose(whole, class_activation_maps(maps, np.full(5, 1)), atol=1e-5)
    own = np.array([2, 0, 1, 1, 0])
    found = grad_cam(maps, IMAGES, classes=own, upsample=False, batch_size=2)
    np.testing.assert_allclose(found, class_activation_maps(maps, own), atol=1e-5)


def test_maps_are_brought_to_the_size_of_the_images_and_reach_1(maps):
    small, found = (grad_cam(maps, IMAGES, upsample=u) for u in (False, True))
    assert found.shape == (5, 4, 6)
    expected = np.asarray(jax.image.resize(jnp.asarray(small), (5, 4, 6), "bilinear"))
    highest = np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-30)
    np.testing.assert_allclose(found, expected / highest, atol=1e-5)
    assert found.min() >= 0 and found.max() == pytest.approx(1)


def test_batches_and_data_do_not_change_the_maps(maps):
    whole = grad_cam(maps, IMAGES)
    data = ArrayData(IMAGES, np.zeros(5, np.int32))
    np.testing.assert_allclose(grad_cam(maps, data, batch_size=2), whole, atol=1e-5)
    np.testing.assert_allclose(grad_cam(maps, IMAGES[3:4]), whole[3:4], atol=1e-5)


def test_at_an_earlier_stage_it_is_the_equations(maps):
    """Equations 1 and 2 by the chain rule: d logit / d pool, times d tanh, times the kernel."""
    features = jt.features(maps, IMAGES, stage="mix", pool=False)
    mixed = jt.features(maps, IMAGES, stage="pool", pool=False)
    head, mix = (np.asarray(maps.params[name]["kernel"]) for name in ("head", "mix"))
    gradient = (1 - mixed**2) * head[:, 2] / 6 @ mix.T
    weights = gradient.mean(axis=(1, 2))
    heat = np.maximum(np.einsum("bhwc,bc->bhw", features, weights), 0)
    found = grad_cam(maps, IMAGES, stage="mix", classes=2, upsample=False)
    np.testing.assert_allclose(found, heat / heat.max(axis=(1, 2), keepdims=True), atol=1e-4)


def test_where_nothing_speaks_for_a_class_the_map_is_0(maps):
    params = {**maps.params, "head": jax.tree.map(jnp.zeros_like, maps.params["head"])}
    flat = jt.Model(maps.spec, maps.apply, params, {}, maps.preprocess)
    np.testing.assert_array_equal(grad_cam(flat, IMAGES), 0)


def test_a_class_token_leads_to_the_stage_in_which_it_sees_the_others(tokens):
    found = grad_cam(tokens, IMAGES, upsample=False)  # the stem's kernel says how large a patch is
    assert found.shape == (5, 2, 3)
    # At the pooling, and after it, the logits depend on the first token alone.
    same = grad_cam(tokens, IMAGES, stage="mix", grid=(2, 3), upsample=False)
    np.testing.assert_array_equal(found, same)
    np.testing.assert_array_equal(grad_cam(tokens, IMAGES, stage="pool", grid=(2, 3)), 0)


def test_tokens_lie_on_the_grid_in_rows_behind_the_others(tokens):
    features = jt.features(tokens, IMAGES, stage="mix", pool=False)
    assert features.shape == (5, 7, 4)
    mixed = jt.features(tokens, IMAGES, stage="pool", pool=False)
    head = np.asarray(tokens.params["head"]["kernel"])
    # The first token, which alone is classified, has a seventh of every token in it.
    gradient = (1 - mixed[:, :1] ** 2) * head[:, 0] / 7
    heat = np.maximum(np.einsum("btc,bsc->bt", features[:, 1:], gradient), 0).reshape(5, 2, 3)
    expected = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-30)
    found = grad_cam(tokens, IMAGES, classes=0, grid=(2, 3), upsample=False)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["token", "mean"])
def test_a_vision_transformer_knows_its_grid(kind):
    sizes = {"patch": 4, "width": 8, "depth": 2, "heads": 2, "input_size": (8, 12)}
    name = "vit_b16" if kind == "token" else "dinov2_s14_reg"
    model = build(name, **sizes, num_classes=3, pool=kind)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), model.params)
    model = jt.Model(model.spec, model.apply, params, {})
    images = rng.normal(size=(2, 8, 12, 3)).astype(np.float32)
    found = grad_cam(model, images, upsample=False)
    assert found.shape == (2, 2, 3)
    expected = "block1" if kind == "token" else "head"
    stage = {"token": "block1", "mean": "pool"}[kind]
    np.testing.assert_array_equal(found, grad_cam(model, images, stage=stage, upsample=False))
    assert np.ptp(found) > 0 and expected in model.spec.stages


def test_another_head_is_explained_too(maps):
    headed = jt.replace_head(maps, 4, hidden=[jt.Dense(5), jt.Activation("relu")], key=1)
    found = grad_cam(headed, IMAGES, classes=3, upsample=False)
    features = jnp.asarray(jt.features(maps, IMAGES, stage="pool", pool=False))

    def logit(features: jax.Array) -> jax.Array:
        return headed.apply(headed.params, {}, features, train=False, start="pool")[0][:, 3].sum()

    weights = np.asarray(jax.grad(logit)(features)).mean(axis=(1, 2))
    heat = np.maximum(np.einsum("bhwc,bc->bhw", features, weights), 0)
    expected = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-30)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_head_that_maps_reach_needs_no_cut_of_the_network_itself():
    variables = Whole().init(jax.random.key(0), IMAGES[:1])
    model = jt.Model.from_linen(Whole(), variables, stages=("stem", "head"))
    headed = jt.replace_head(model, 2, hidden=[jt.Pool()], key=1)
    found = grad_cam(headed, IMAGES, classes=1, upsample=False)
    kernel = np.asarray(headed.params["head"]["1"]["kernel"])[:, 1]
    features = jt.features(model, IMAGES, stage="head", pool=False)
    heat = np.maximum(features @ kernel, 0)
    np.testing.assert_allclose(found, heat / heat.max(axis=(1, 2), keepdims=True), atol=1e-5)
    with pytest.raises(ModelError, match="without them only stop= is possible"):
        grad_cam(model, IMAGES, stage="head")


def test_seen_images_are_cropped_but_not_normalised():
    how = jt.Preprocess((4, 4), 3, scale=None, mean=(100.0, 110.0, 120.0), channel_order="bgr")
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    shown = seen_images(model_of("maps", preprocess=how), images)
    np.testing.assert_allclose(shown, images[:, :, 1:5] / np.float32(255), atol=1e-6)
    as_they_come = seen_images(model_of("maps"), IMAGES)
    np.testing.assert_array_equal(as_they_come, IMAGES)


# ---------------------------------------------------------------------------------------------
# What cannot be shown


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"stage": "layer9"}, ModelError, "a stage among stem, mix, pool, head, found 'layer9'"),
        ({"stage": "head"}, ModelError, r"head: features of shape \(1, 4\), without positions"),
        ({"classes": 3}, DataError, "classes from 0 and below 3"),
        ({"classes": [0, 1]}, DataError, "a class for each of 5 images, found 2"),
        ({"batch_size": 0}, DataError, "batch_size of at least 1"),
    ],
)
def test_what_is_asked_wrongly_is_told(maps, more, error, message):
    with pytest.raises(error, match=message):
        grad_cam(maps, IMAGES, **more)


def test_no_image_is_told(maps):
    with pytest.raises(DataError, match="at least one image"):
        grad_cam(maps, IMAGES[:0])


def test_tokens_of_unknown_places_are_told(tokens):
    unknown = replace(tokens, spec=replace(tokens.spec, stem=None))
    with pytest.raises(ModelError, match=r"7 tokens of unknown places; say grid=\(rows, columns\)"):
        grad_cam(unknown, IMAGES)
    with pytest.raises(ModelError, match=r"mix: 7 tokens of unknown places"):
        grad_cam(tokens, IMAGES[:, :, :5], stage="mix")  # patches that are cut off
    with pytest.raises(ModelError, match=r"7 tokens, less than the grid \(3, 3\) has"):
        grad_cam(tokens, IMAGES, grid=(3, 3))


def test_several_heads_are_told(maps):
    with pytest.raises(ModelError, match="a network with one head"):
        grad_cam(jt.replace_head(maps, tasks={"a": 2, "b": 3}), IMAGES)


# ---------------------------------------------------------------------------------------------
# Real weights


@pytest.mark.pretrained
def test_what_is_hot_is_what_the_answer_hangs_on(real_data: Path) -> None:
    """SqueezeNet on photographs: hiding the hottest tenth costs more than hiding the coldest."""
    weights = real_data / "weights/squeezenet_v1.0_deepcompression/decoded_float32.npz"
    model = load_network("squeezenet1_0", weights)
    with zipfile.ZipFile(real_data / "datasets/imagenet_samples/all1000_short256.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".jpg", ".JPEG")))
        images = np.stack([photograph(archive.read(name)) for name in names[1::95]])
    maps, shown = grad_cam(model, images), seen_images(model, images)
    np.testing.assert_allclose(shown, images[:, 14:241, 14:241] / np.float32(255), atol=1e-3)
    rows, predicted = np.arange(len(images)), jt.predict(model, images).argmax(axis=1)
    shares = {}
    for name, heat in (("hot", maps), ("cold", -maps)):
        order = heat.reshape(len(maps), -1).argsort(axis=1, kind="stable")
        hidden = np.zeros(order.shape, bool)
        np.put_along_axis(hidden, order[:, -order.shape[1] // 10 :], True, axis=1)
        covered = images.copy()
        covered[:, 14:241, 14:241][hidden.reshape(maps.shape)] = (123, 117, 104)
        logits = jt.predict(model, covered)
        shares[name] = np.asarray(jax.nn.softmax(logits))[rows, predicted].mean()
    assert shares["hot"] < shares["cold"] / 2


def photograph(file: bytes) -> np.ndarray:
    """The centre of an image, 256 pixels wide and high."""
    with Image.open(io.BytesIO(file)) as image:
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        return np.asarray(image.convert("RGB").crop((left, top, left + 256, top + 256)))
