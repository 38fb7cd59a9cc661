from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import preprocess_images
from jaxtransfer.errors import ModelError
from jaxtransfer.evaluate.divergence import Divergence, first_divergence
from jaxtransfer.models import build
from jaxtransfer.models.layers import ACTIVATIONS, max_pool
from jaxtransfer.models.stages import stages_between

STAGES = ("stem", "norm", "flatten", "head")


class Net(nn.Module):
    """What libraries do in one of several ways, one stage each."""

    padding: Any = 1
    ceil: bool = False
    epsilon: float = 1e-5
    gelu: str = "gelu"

    @nn.compact
    def __call__(self, x, *, train, start=None, stop=None):
        for stage in stages_between(STAGES, start, stop):
            x = self._run(stage, x)
        return x

    def _run(self, stage, x):
        if stage == "stem":
            x = nn.Conv(4, (3, 3), (2, 2), padding=self.padding, name="stem")(x)
            return max_pool(x, 3, 2, ceil=self.ceil)
        if stage == "norm":
            x = nn.LayerNorm(epsilon=self.epsilon, name="norm")(x)
            return ACTIVATIONS[self.gelu](nn.Dense(4, name="mix")(x))
        return nn.Dense(3, name="head")(x) if stage == "head" else x.reshape(len(x), -1)


@functools.cache
def variables() -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda key: Net(ceil=True).init(key, jnp.zeros((1, 20, 20, 3)), train=False),
        jax.random.key(0),
    )
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


def model(**options: Any) -> jt.Model:
    params = variables()["params"]
    return jt.Model.from_linen(
        Net(**{"ceil": True, **options}),
        {"params": params},
        stages=("stem", "norm", "mix", "flatten", "head"),
    )


def cut(model: jt.Model) -> jt.Model:
    """The model with the stages of its own forward pass."""
    return replace(model, spec=replace(model.spec, stages=STAGES))


INPUT = np.random.default_rng(1).normal(size=(2, 20, 20, 3)).astype(np.float32) / 30


def reference(model: jt.Model) -> dict[str, np.ndarray]:
    found, x = {"input": INPUT}, INPUT
    for stage, after in zip(STAGES, (*STAGES[1:], None), strict=True):
        try:
            x, _ = model.apply(model.params, {}, x, train=False, start=stage, stop=after)
        except flax.errors.ScopeParamShapeError:
            break  # the other shape ends here
        found[stage] = np.asarray(x)
    return found


def test_equal_networks_do_not_diverge():
    found = first_divergence(cut(model()), reference(model()))
    assert found.stage is None and found.trials == () and "no stage differs" in str(found)
    assert [stage for stage, _ in found.differences] == list(STAGES)


@pytest.mark.parametrize(
    ("stage", "cause", "detail", "one", "other"),
    [
        ("stem", "padding", "SAME", {}, {"padding": "SAME"}),
        ("stem", "padding", "same number", {"padding": "SAME"}, {}),
        ("stem", "ceil pooling", "only full", {}, {"ceil": False}),
        ("stem", "ceil pooling", "not full", {"ceil": False}, {}),
        ("norm", "epsilon", "0.001", {}, {"epsilon": 1e-3}),
        ("norm", "epsilon", "1e-05", {"epsilon": 1e-3}, {}),
        ("norm", "gelu form", "tanh", {}, {"gelu": "gelu_tanh"}),
        ("norm", "gelu form", "exact", {"gelu": "gelu_tanh"}, {}),
        ("norm", "gelu form", "sigmoid", {"gelu": "gelu_tanh"}, {"gelu": "quick_gelu"}),
        ("norm", "gelu form", "exact", {"gelu": "quick_gelu"}, {}),
    ],
)
def test_the_cause_of_a_difference_is_found(stage, cause, detail, one, other):
    found = first_divergence(cut(model(**one)), reference(model(**other)))
    assert found.stage == stage
    assert any(trial.cause == cause and detail in trial.detail for trial in found.causes), found
    assert {trial.cause for trial in found.causes} <= {cause, "padding"}
    assert f"{stage} is the first stage that differs" in str(found)
    assert f"removed by {found.causes[0].cause}" in str(found)


@pytest.mark.parametrize(
    ("change", "stage", "cause", "detail"),
    [
        (lambda p: p["stem"]["kernel"].swapaxes(0, 1), "stem", "transposed kernel", "swapped"),
        (lambda p: p["stem"]["kernel"][::-1, ::-1], "stem", "transposed kernel", "flipped"),
        (lambda p: p["stem"]["kernel"][:, :, ::-1], "stem", "channel order", "reversed"),
        (lambda p: p["mix"]["kernel"].T, "norm", "transposed kernel", "transposed"),
    ],
)
def test_a_kernel_in_another_layout_is_found(change, stage, cause, detail):
    good = model()
    params = dict(good.params)
    leaf = "mix" if stage == "norm" else "stem"
    params[leaf] = {**params[leaf], "kernel": change(params)}
    found = first_divergence(cut(replace(good, params=params)), reference(good))
    assert found.stage == stage
    assert [trial.cause for trial in found.causes][:1] == [cause]
    assert all(detail in trial.detail for trial in found.causes)


def test_features_flattened_with_their_channels_first_are_found():
    good = cut(model())
    expected = reference(good)
    maps = expected["norm"]
    del expected["flatten"]
    flat = maps.transpose(0, 3, 1, 2).reshape(len(maps), -1)
    head = good.params["head"]
    expected["head"] = flat @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    found = first_divergence(good, expected)
    assert found.stage == "head" and found.causes[0].cause == "channel order"
    assert "flattened" in found.causes[0].detail


def test_where_no_usual_cause_explains_it_the_nearest_trials_are_told():
    expected = reference(model())
    expected["norm"] = expected["norm"] + 1
    found = first_divergence(cut(model()), expected)
    assert found.stage == "norm" and found.causes == ()
    assert "none of the usual causes" in str(found)
    differences = [trial.difference for trial in found.trials]
    assert differences == sorted(differences)


@pytest.mark.parametrize(
    ("here", "there", "cause"),
    [
        ({}, {"antialias": False}, "resize antialias"),
        ({"antialias": False}, {}, "resize antialias"),
        ({}, {"channel_order": "bgr"}, "channel order"),
        ({}, {"interpolation": "bicubic"}, "interpolation"),
        ({}, {"scale": None}, "scale"),
        ({}, {"mean": (0.5,), "std": (0.5,)}, "normalisation"),
        ({}, {"crop_fraction": 0.875}, "crop"),
    ],
)
def test_the_preprocessing_is_compared_where_images_are_given(here, there, cause):
    images = np.random.default_rng(2).integers(0, 256, (2, 60, 50, 3), np.uint8)
    how = jt.Preprocess(size=(18, 18), channels=3)
    net = replace(cut(model()), preprocess=replace(how, **here))
    entering = np.asarray(preprocess_images(jnp.asarray(images), replace(how, **there)))
    found = first_divergence(net, {"image": images, "input": entering})
    assert found.stage == "preprocess"
    assert cause in {trial.cause for trial in found.causes}


def test_images_alone_go_through_the_preprocessing():
    images = np.random.default_rng(2).integers(0, 256, (2, 18, 18, 3), np.uint8)
    net = replace(cut(model()), preprocess=jt.Preprocess())
    stem, _ = net.apply(net.params, {}, images / np.float32(255), train=False, stop="norm")
    assert first_divergence(net, {"image": images, "stem": stem}).stage is None


def test_maps_may_have_their_channels_first():
    expected = {
        name: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        for name, value in reference(cut(model())).items()
    }
    found = first_divergence(cut(model()), expected, channels_first=True)
    assert found == Divergence(None, found.differences)


@pytest.mark.parametrize("given", [{}, {"stem": INPUT}, {"input": INPUT, "layer7": INPUT}])
def test_what_is_no_reference_is_an_error(given):
    with pytest.raises(ModelError, match="expected `input` or `image`, and stages among stem"):
        first_divergence(cut(model()), given)


def test_a_network_of_the_catalog_is_compared_in_training_too():
    empty = build("cifar_resnet8", width=2, input_size=8)
    rng = np.random.default_rng(0)
    net = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape), leaf.dtype), empty)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    stem, _ = net.apply(net.params, net.stats, images, train=True, stop="layer1")
    assert first_divergence(net, {"input": images, "stem": stem}, train=True).stage is None
    found = first_divergence(net, {"input": images, "stem": stem})
    assert found.stage == "stem" and found.causes == ()
