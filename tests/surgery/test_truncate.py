from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build, load_model
from tests.surgery.networks import leaves, note_of, outputs, tokens, untouched, varied

IMAGES = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
STAGES = ["embed", "block0", "block1", "block2", "pool"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_outputs_are_the_features_of_the_stage(stage):
    whole = tokens()
    after = [*whole.spec.stages, None][whole.spec.stages.index(stage) + 1]
    cut = jt.truncate(whole, stage)
    dropped = tuple(
        f"{kind}/{name}/"
        for kind in ("params", "stats")
        for name in whole.spec.stages[whole.spec.stages.index(stage) + 1 :]
    )
    assert untouched(whole, cut, *dropped)
    assert not any(name.startswith(dropped) for name in leaves(cut))
    expected = outputs(whole, IMAGES, stop=after)
    np.testing.assert_array_equal(outputs(cut, IMAGES), expected)
    np.testing.assert_array_equal(outputs(cut, IMAGES, stop="head"), expected)
    assert cut.spec.stages == (*STAGES[: STAGES.index(stage) + 1], "head")
    assert (cut.spec.truncated_after, cut.labels, cut.num_classes) == (stage, None, None)
    assert note_of(cut) == f"truncate: the network ends after {stage}"


def test_statistics_of_the_stages_that_are_left_follow_in_training():
    cut = jt.truncate(tokens(), "block1")
    features, stats = cut.apply(cut.params, cut.stats, IMAGES, train=True)
    assert set(stats) == {"block0", "block1"}
    assert jt.diff(cut.stats, stats).unchanged == ()
    _, frozen = cut.apply(
        cut.params, cut.stats, IMAGES, train=True, frozen_modules=frozenset({"block0"})
    )
    assert {name.split("/")[0] for name in jt.diff(cut.stats, frozen).changed} == {"block1"}


def test_cuts_of_a_truncated_network():
    cut = jt.truncate(tokens(), "block1")
    features = outputs(cut, IMAGES, stop="block1")
    np.testing.assert_array_equal(outputs(cut, features, start="block1"), outputs(cut, IMAGES))
    assert outputs(cut, features, start="head") is features
    for option in ({"stop": "pool"}, {"start": "block2"}):
        with pytest.raises(ModelError, match="before block2, where the network was cut off"):
            outputs(cut, IMAGES, **option)


def test_a_new_head_goes_on_what_is_left():
    cut = jt.truncate(tokens(), "block1")
    headed = jt.replace_head(cut, classes=["ant", "elk"], key=1)
    assert note_of(headed) == (
        "replace_head: head is now Pool > Dense(features=2) (Pool since tokens reach it); all rows "
        "are new"
    )
    dense = headed.params["head"]["1"]
    expected = outputs(cut, IMAGES).mean(1) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(outputs(headed, IMAGES), expected, rtol=1e-5)
    assert headed.num_classes == 2
    again = jt.truncate(headed, "block0")
    assert (again.spec, again.apply) == (
        jt.truncate(tokens(), "block0").spec,
        jt.truncate(tokens(), "block0").apply,
    )


def test_an_output_for_the_background_goes_with_the_head():
    model = tokens()
    model = replace(model, preprocess=replace(model.preprocess, label_offset=1))
    assert jt.truncate(model, "pool").preprocess.label_offset == 0


def test_finetune_puts_a_head_on():
    labels = np.arange(2)
    cut = jt.truncate(tokens(), "block0")
    result = jt.finetune(cut, (IMAGES, labels), "probe", steps=2, batch_size=2)
    assert result.model.num_classes == 2
    found = jt.diff(cut.params, result.model.params)
    assert (found.missing, found.changed) == ((), ())
    assert found.extra == ("head/1/bias", "head/1/kernel")


def test_it_comes_back_from_a_folder(tmp_path):
    whole = varied(build("cifar_resnet8", width=2, input_size=8))
    cut = jt.truncate(whole, "layer2")
    headed = jt.replace_head(cut, 2)
    for i, model in enumerate((cut, headed)):
        model.save(tmp_path / str(i))
        loaded = load_model(tmp_path / str(i))
        assert jt.diff(loaded.params, model.params).is_empty
        assert (loaded.spec, loaded.apply) == (model.spec, model.apply)
        np.testing.assert_array_equal(outputs(loaded, IMAGES), outputs(model, IMAGES))


def test_a_network_of_ones_own_comes_back_with_the_network(tmp_path):
    cut = jt.truncate(tokens(), "block0")
    cut.save(tmp_path)
    for network in (tokens(seed=1), jt.truncate(tokens(seed=1), "block0")):
        loaded = load_model(tmp_path, network)
        assert jt.diff(loaded.params, cut.params).is_empty
        assert (loaded.spec, loaded.apply) == (cut.spec, cut.apply)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Linear(3, 4, rngs=rngs)
        self.body = nnx.Linear(4, 5, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.body(self.stem(x)))


def test_networks_of_other_kinds_are_cut_too():
    model = jt.Model.from_nnx(NnxNet(nnx.Rngs(0)), input_shape=(8, 8, 3))
    cut = jt.truncate(model, "stem")
    assert set(cut.params) == {"stem"}
    np.testing.assert_array_equal(outputs(cut, IMAGES), outputs(model, IMAGES, stop="body"))


def test_what_cannot_be_cut_is_an_error():
    model = tokens()
    with pytest.raises(ModelError, match=r"one of embed, .* found 'blok1'; the nearest are block"):
        jt.truncate(model, "blok1")
    for stage in ("head", "block2"):
        with pytest.raises(ModelError, match=f"found '{stage}'"):
            jt.truncate(jt.truncate(model, "block1"), stage)
    params = {"body": {"kernel": jnp.eye(3)}, "head": {"kernel": jnp.eye(3)}}
    plain = jt.Model.from_function(lambda params, x: x @ params["body"]["kernel"], params)
    with pytest.raises(ModelError, match="can stop after 'body', found a function without"):
        jt.truncate(plain, "body")


def test_stages_in_another_order_than_the_forward_pass_are_told():
    model = tokens()
    order = ("embed", "block0", "block2", "block1", "pool", "head")
    wrong = replace(model, spec=replace(model.spec, stages=order))
    with pytest.raises(ModelError, match=r"found: .*is 'block0' right before 'block2'"):
        jt.truncate(wrong, "block0")


def test_a_network_without_weights_is_cut_too():
    cut = jt.truncate(build("cifar_resnet8", width=2), "layer1")
    assert isinstance(jax.tree.leaves(cut.params)[0], jax.ShapeDtypeStruct)
    assert set(cut.params) == {"stem", "layer1"}
