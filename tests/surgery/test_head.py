from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from tests.surgery.networks import note_of, varied

CLASSES = ["ant", "bee", "cat"]


# The same small network in three kinds; a stem with BatchNorm, and a nested head.


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="dense")(x)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(4, name="stem")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        return Head(name="classifier")(nn.relu(x).mean((1, 2)))


class NnxHead(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Linear(2, 4, rngs=rngs)
        self.bn = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.classifier = NnxHead(rngs)

    def __call__(self, x):
        return self.classifier(nnx.relu(self.bn(self.stem(x))).mean((1, 2)))


def dense(params: Any, x: Any) -> Any:
    return x @ params["kernel"] + params["bias"]


def function_net(
    params, stats, inputs, *, train, start=None, stop=None, frozen_modules=frozenset()
):
    x = inputs
    if start is None:
        x = dense(params["stem"], x)
        mean, var = stats["bn"]["mean"], stats["bn"]["var"]
        if train and "bn" not in frozen_modules:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            old = stats["bn"]
            moved = {"mean": 0.9 * old["mean"] + 0.1 * mean, "var": 0.9 * old["var"] + 0.1 * var}
            stats = {**stats, "bn": moved}
        x = (x - mean) / jnp.sqrt(var + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
        x = jax.nn.relu(x).mean((1, 2))
    if stop == "classifier/dense":
        return x, stats
    return dense(params["classifier"]["dense"], x), stats


def plain_net(params, inputs):
    """A network that cannot stop anywhere."""
    return dense(params["classifier"]["dense"], inputs.mean((1, 2)))


@pytest.fixture(scope="module")
def models() -> dict[str, jt.Model]:
    module = LinenNet()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), False)
    params, stats = variables["params"], variables["batch_stats"]
    about = {"head": "classifier/dense", "labels": CLASSES}
    dense_params = {"classifier": {"dense": {"kernel": jnp.eye(2, 3), "bias": jnp.arange(3.0)}}}
    return {
        "linen": jt.Model.from_linen(module, variables, input_shape=(4, 4, 2), **about),
        "nnx": jt.Model.from_nnx(NnxNet(nnx.Rngs(0)), input_shape=(4, 4, 2), **about),
        "function": jt.Model.from_function(function_net, params, stats, **about),
        "plain": jt.Model.from_function(plain_net, dense_params, **about),
    }


KINDS = ["linen", "nnx", "function"]
IMAGES = np.random.default_rng(0).normal(1, 2, (6, 4, 4, 2)).astype(np.float32)
RNGS = {"dropout": jax.random.key(3)}


def run(model: jt.Model, train: bool = False, **options: Any) -> tuple[Any, Any]:
    return model.apply(model.params, model.stats, IMAGES, train=train, rngs=RNGS, **options)


def head_of(model: jt.Model) -> Any:
    return jt.tree.subtree(model.params, model.spec.head)


def outside(model: jt.Model) -> dict[str, Any]:
    named = jt.tree.flatten({"params": model.params, "stats": model.stats})
    return {name: leaf for name, leaf in named.items() if "classifier" not in name}


# One dense layer


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
def test_a_dense_head_takes_the_place_of_the_old_one(models, kind):
    old = models[kind]
    before = jt.tree.flatten({"params": old.params, "stats": old.stats})
    new = jt.replace_head(old, 5, key=1)
    assert head_of(new)["kernel"].shape == (2 if kind == "plain" else 4, 5)
    assert (new.num_classes, new.labels, old.num_classes) == (5, None, 3)
    assert new.spec.head_layers == (jt.Dense(5),)
    assert outside(new).keys() == outside(old).keys()
    assert all(leaf is outside(old)[name] for name, leaf in outside(new).items())
    after = jt.tree.flatten({"params": old.params, "stats": old.stats})
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in after)

    logits, stats = run(new)
    if kind == "plain":
        features = IMAGES.mean((1, 2))
    else:
        features, _ = run(old, stop="classifier/dense")
    np.testing.assert_allclose(logits, dense(head_of(new), features), rtol=1e-5, atol=1e-6)
    assert jt.diff(new.stats, stats).is_empty
    assert new.receipt.notes == (
        "replace_head: classifier/dense is now Dense(features=5); all rows are new",
    )


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
def test_rows_of_classes_with_the_same_name_are_reused(models, kind):
    old = models[kind]
    new = jt.replace_head(old, classes=["dog", "cat", "ant"], key=1)
    fresh = jt.replace_head(old, classes=["dog", "cat", "ant"], key=1, reuse=False)
    for name in ("kernel", "bias"):
        before, after = head_of(old)[name], head_of(new)[name]
        np.testing.assert_array_equal(after[..., 1], before[..., 2])
        np.testing.assert_array_equal(after[..., 2], before[..., 0])
        np.testing.assert_array_equal(after[..., 0], head_of(fresh)[name][..., 0])
    assert not np.array_equal(head_of(fresh)["kernel"][:, 1], head_of(old)["kernel"][:, 2])
    assert new.labels == ("dog", "cat", "ant")
    assert new.receipt.notes[-1].endswith(
        f"2 of 3 rows reused from {old.spec.name} by name: cat, ant"
    )
    assert fresh.receipt.notes[-1].endswith("all rows are new")
    np.testing.assert_allclose(run(new)[0][:, 1], run(old)[0][:, 2], rtol=1e-5, atol=1e-6)


def test_a_name_of_several_old_classes_is_not_reused(models):
    old = models["linen"].with_labels(["crane", "crane", "cat"])
    new = jt.replace_head(old, classes=["cat", "crane"], key=1)
    assert "1 of 2 rows reused from LinenNet by name: cat" in new.receipt.notes[-1]
    fresh = jt.replace_head(old, 2, key=1)
    np.testing.assert_array_equal(head_of(new)["kernel"][:, 1], head_of(fresh)["kernel"][:, 1])


def test_the_same_key_gives_the_same_head(models):
    old = models["linen"]
    by_seed = head_of(jt.replace_head(old, 5, key=1))
    assert jt.diff(by_seed, head_of(jt.replace_head(old, 5, key=jax.random.key(1)))).is_empty
    seed: Any = np.int64(1)
    assert jt.diff(by_seed, head_of(jt.replace_head(old, 5, key=seed))).is_empty
    other = jt.diff(by_seed, head_of(jt.replace_head(old, 5, key=2)))
    assert other.changed == ("kernel",) and other.unchanged == ("bias",)


# Several layers

LAYERS = [jt.BatchNorm(), jt.Dropout(0.5), jt.Dense(7), jt.Activation("tanh"), jt.LayerNorm()]


def long_head(model: jt.Model, x: Any, train: bool) -> Any:
    """The head of `LAYERS` without dropout, by JAX alone."""
    params = head_of(model)
    stats = jt.tree.subtree(model.stats, model.spec.head)["0"]
    mean, var = (x.mean(0), x.var(0)) if train else (stats["mean"], stats["var"])
    x = (x - mean) / jnp.sqrt(var + 1e-5) * params["0"]["scale"] + params["0"]["bias"]
    x = jnp.tanh(dense(params["2"], x))
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return dense(params["5"], x * params["4"]["scale"] + params["4"]["bias"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_several_layers(models, kind):
    old = models[kind]
    new = jt.replace_head(old, classes=["x", "y"], hidden=LAYERS)
    assert all(leaf is outside(old)[name] for name, leaf in outside(new).items())
    assert set(head_of(new)) == {"0", "2", "4", "5"}
    assert new.spec.head_layers == (*LAYERS, jt.Dense(2))
    features, _ = run(old, stop="classifier/dense")
    logits, stats = run(new)
    np.testing.assert_allclose(logits, long_head(new, features, False), rtol=1e-4, atol=1e-5)
    assert jt.diff(new.stats, stats).is_empty

    trained, stats = run(new, train=True)
    assert not np.allclose(
        trained, long_head(new, run(old, train=True, stop="classifier/dense")[0], True)
    )
    assert jt.diff(new.stats, stats).fits
    assert jt.diff(new.stats, stats).unchanged == ()


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_obeys_frozen_modules(models, kind):
    new = jt.replace_head(models[kind], 2, hidden=LAYERS)
    features, _ = run(models[kind], train=True, stop="classifier/dense")
    logits, stats = run(new, train=True, frozen_modules=frozenset({"classifier"}))
    np.testing.assert_allclose(logits, long_head(new, features, False), rtol=1e-4, atol=1e-5)
    changed = {name.split("/")[0] for name in jt.diff(new.stats, stats).changed}
    assert changed == {"bn"}

    one = frozenset({"classifier/dense/0"})
    logits, stats = run(new, train=True, frozen_modules=one)
    assert {name.split("/")[0] for name in jt.diff(new.stats, stats).changed} == {"bn"}
    without_dropout = long_head(new, features, False)
    assert not np.allclose(logits, without_dropout)
    both = one | {"classifier/dense/1"}
    logits, _ = run(new, train=True, frozen_modules=both)
    np.testing.assert_allclose(logits, without_dropout, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_start_and_stop_at_the_new_head(models, kind):
    new = jt.replace_head(models[kind], 2, hidden=LAYERS)
    features, _ = run(new, stop="classifier/dense")
    np.testing.assert_array_equal(features, run(models[kind], stop="classifier/dense")[0])
    logits, _ = new.apply(new.params, new.stats, features, train=False, start="classifier/dense")
    np.testing.assert_allclose(logits, run(new)[0], rtol=1e-5, atol=1e-6)
    same, _ = new.apply(
        new.params,
        new.stats,
        features,
        train=False,
        start="classifier/dense",
        stop="classifier/dense",
    )
    assert same is features


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_other_stops_are_the_networks_own(models, kind):
    new = jt.replace_head(models[kind], 2, hidden=LAYERS)
    np.testing.assert_array_equal(run(new, stop="bn")[0], run(models[kind], stop="bn")[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_can_be_replaced_again_and_again(models, kind):
    old = models[kind]
    long = jt.replace_head(old, 2, hidden=LAYERS)
    longer = jt.replace_head(long, classes=["p", "q"], hidden=[jt.LayerNorm(), *LAYERS])
    assert longer.stats["classifier"]["dense"].keys() == {"1"}
    back = jt.replace_head(longer, classes=CLASSES, key=4)
    direct = jt.replace_head(old, classes=CLASSES, key=4, reuse=False)
    assert jt.diff(back.params, direct.params).is_empty
    assert "classifier" not in jt.tree.flatten(back.stats).__str__()
    assert (back.apply, back.spec) == (direct.apply, direct.spec)
    assert len(back.receipt.notes) == 3
    again = jt.replace_head(back, classes=["cat"])
    np.testing.assert_array_equal(head_of(again)["kernel"][:, 0], head_of(back)["kernel"][:, 2])


@pytest.mark.parametrize(
    ("kind", "plan"), [("linen", "probe"), ("nnx", "full"), ("function", "full")]
)
def test_a_new_head_trains(models, kind, plan):
    labels = np.arange(6) % 2
    images = IMAGES + 3 * labels[:, None, None, None].astype(np.float32)
    model = jt.replace_head(models[kind], 2, hidden=[jt.BatchNorm(), jt.Dropout(0.1), jt.Dense(8)])
    result = jt.finetune(model, (images, labels), plan, steps=60, batch_size=6, learning_rate=0.03)
    assert (jt.predict(result.model, images).argmax(-1) == labels).all()
    changes = jt.diff(
        {"p": model.params, "s": model.stats},
        {"p": result.model.params, "s": result.model.stats},
    )
    kept = {name for name in changes.unchanged if "classifier" not in name}
    everything = {name.replace("params", "p").replace("stats", "s") for name in outside(model)}
    assert kept == (everything if plan == "probe" else set())


# Heads without a bias, and of other dtypes


class NoBias(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, use_bias=False, name="head")(x.mean((1, 2)))


def test_a_head_without_bias_gives_its_kernel_columns(models):
    module = NoBias()
    variables = module.init(jax.random.key(0), IMAGES)
    old = jt.Model.from_linen(module, variables, labels=CLASSES)
    new = jt.replace_head(old, classes=["bee", "elk"], key=1)
    np.testing.assert_array_equal(head_of(new)["kernel"][:, 0], head_of(old)["kernel"][:, 1])
    assert float(jnp.abs(head_of(new)["bias"]).max()) == 0
    np.testing.assert_allclose(run(new)[0][:, 0], run(old)[0][:, 1], rtol=1e-6)


def test_a_function_that_knows_no_bias_gets_none():
    def forward(params, inputs):
        assert set(params["head"]) == {"kernel"}
        return inputs.mean((1, 2)) @ params["head"]["kernel"]

    old = jt.Model.from_function(forward, {"head": {"kernel": jnp.ones((2, 3))}})
    new = jt.replace_head(old, 4)
    assert set(new.params["head"]) == {"kernel"}
    assert run(new)[0].shape == (6, 4)


def test_a_head_has_the_dtype_of_the_one_before(models):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), models["plain"])
    new = jt.replace_head(half, classes=["bee", "elk"], key=1)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new.params)} == {"bfloat16"}
    np.testing.assert_array_equal(head_of(new)["kernel"][:, 0], head_of(half)["kernel"][:, 1])


class ConvHead(nn.Module):
    """A convolution as the head, whose maps are pooled or not."""

    size: int = 1
    pools: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (self.size, self.size), name="head")(nn.Dense(4, name="stem")(x))
        return x.mean((1, 2)) if self.pools else x


def conv_head(**fields: Any) -> jt.Model:
    module = ConvHead(**fields)
    variables = module.init(jax.random.key(0), IMAGES)
    return jt.Model.from_linen(module, variables, labels=CLASSES, input_shape=(4, 4, 2))


def test_rows_of_a_1x1_convolution_are_reused_behind_a_pool():
    old = conv_head()
    new = jt.replace_head(old, classes=["bee", "elk", "ant"], key=1)
    assert new.spec.head_layers == (jt.Pool(), jt.Dense(3))
    assert note_of(new) == (
        "replace_head: head is now Pool > Dense(features=3) (Pool since maps reach it); "
        "2 of 3 rows reused from ConvHead by name: bee, ant"
    )
    head = head_of(new)["1"]
    kernel = head_of(old)["kernel"][0, 0]
    np.testing.assert_array_equal(head["kernel"][:, [0, 2]], kernel[:, [1, 0]])
    np.testing.assert_array_equal(head["bias"][jnp.array([0, 2])], head_of(old)["bias"][:2][::-1])
    features, _ = run(old, stop="head")
    expected = dense(head_of(old) | {"kernel": kernel}, features.mean((1, 2)))
    np.testing.assert_allclose(run(new)[0][:, [0, 2]], expected[:, [1, 0]], rtol=1e-4, atol=1e-6)
    # And once more, from behind the pool.
    again = jt.replace_head(new, classes=["elk", "bee"], hidden=[jt.Dropout(0.1)], key=2)
    assert again.spec.head_layers == (jt.Pool(), jt.Dropout(0.1), jt.Dense(2))
    np.testing.assert_array_equal(head_of(again)["2"]["kernel"], head["kernel"][:, [1, 0]])


def test_rows_of_larger_convolutions_and_of_other_features_are_not_reused(models):
    new = jt.replace_head(conv_head(size=3), classes=CLASSES)
    assert new.receipt.notes[-1].endswith("all rows are new")
    assert head_of(new)["1"]["kernel"].shape == (4, 3)
    hidden = jt.replace_head(models["linen"], classes=CLASSES, hidden=[jt.LayerNorm()])
    assert hidden.receipt.notes[-1].endswith("all rows are new")
    normed = jt.replace_head(hidden, classes=CLASSES)
    assert normed.receipt.notes[-1].endswith("all rows are new")


def test_logits_of_positions_stay_logits_of_positions():
    old = conv_head(pools=False)
    new = jt.replace_head(old, classes=["bee", "elk"])
    assert run(new)[0].shape == (6, 4, 4, 2)
    np.testing.assert_allclose(run(new)[0][..., 0], run(old)[0][..., 1], rtol=1e-4, atol=1e-6)
    assert new.spec.head_layers == (jt.Dense(2),)
    assert run(jt.replace_head(new, 5))[0].shape == (6, 4, 4, 5)
    assert run(jt.replace_head(new, 5, pool=True))[0].shape == (6, 5)
    assert run(jt.replace_head(conv_head(), 5, pool=False))[0].shape == (6, 4, 4, 5)


def test_hidden_says_where_the_pool_is():
    new = jt.replace_head(conv_head(), 2, hidden=[jt.Dense(7), jt.Pool()])
    assert new.spec.head_layers == (jt.Dense(7), jt.Pool(), jt.Dense(2))
    assert run(new)[0].shape == (6, 2)
    assert note_of(new).startswith(
        "replace_head: head is now Dense(features=7) > Pool > Dense(features=2); all"
    )


def test_a_kernel_of_four_axes_tells_of_maps_where_nothing_else_does():
    module = ConvHead()
    old = jt.Model.from_linen(module, module.init(jax.random.key(0), IMAGES), labels=CLASSES)
    assert old.spec.input_size is None
    assert run(jt.replace_head(old, 5))[0].shape == (6, 5)


# Networks without a head


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_without_a_head_gets_one(dtype):
    old = varied(build("cifar_resnet8", width=2, input_size=16, num_classes=0))
    old = jax.tree.map(lambda leaf: leaf.astype(dtype), old)
    before = jt.tree.flatten({"params": old.params, "stats": old.stats})
    new = jt.replace_head(old, classes=["x", "y"], key=1)
    assert head_of(new)["kernel"].shape == (8, 2)
    after = jt.tree.flatten({"params": new.params, "stats": new.stats})
    assert all(after[name] is leaf for name, leaf in before.items())
    assert after.keys() - before.keys() == {"params/head/kernel", "params/head/bias"}
    assert (old.num_classes, new.num_classes, new.labels) == (None, 2, ("x", "y"))

    @jax.jit
    def forward(params, stats, images):
        features, _ = new.apply(params, stats, images, train=False, stop="head")
        return features, new.apply(params, stats, images, train=False)[0]

    features, logits = forward(new.params, new.stats, jnp.ones((2, 16, 16, 3), dtype))
    assert logits.dtype == head_of(new)["kernel"].dtype == dtype
    expected = dense(jax.tree.map(np.float32, head_of(new)), np.asarray(features, np.float32))
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(logits, np.float32) / scale, expected / scale, atol=0.02)


def test_an_output_for_the_background_belongs_to_the_old_head(models):
    old = models["linen"]
    # Three outputs: the first one is for the background, which the labels leave out.
    old = replace(old, labels=("bee", "cat"), preprocess=replace(old.preprocess, label_offset=1))
    new = jt.replace_head(old, classes=["cat", "elk", "bee"], key=1)
    assert new.preprocess.label_offset == 0
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(head_of(new)[name][..., 0], head_of(old)[name][..., 2])
        np.testing.assert_array_equal(head_of(new)[name][..., 2], head_of(old)[name][..., 1])


# Several tasks

TASKS: dict[str, Any] = {"species": ["elk", "bee"], "colour": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_for_each_task(models, kind):
    old = models[kind]
    new = jt.replace_head(old, tasks=TASKS, key=1)
    assert set(head_of(new)) == {"species", "colour"}
    assert all(leaf is outside(old)[name] for name, leaf in outside(new).items())
    assert outside(new).keys() == outside(old).keys()
    logits, stats = run(new)
    features, _ = run(old, stop="classifier/dense")
    for task, count in (("species", 2), ("colour", 3)):
        assert logits[task].shape == (6, count)
        expected = dense(head_of(new)[task], features)
        np.testing.assert_allclose(logits[task], expected, rtol=1e-5, atol=1e-6)
    assert jt.diff(new.stats, stats).is_empty
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(
            head_of(new)["species"][name][..., 1], head_of(old)[name][..., 1]
        )
    assert new.spec.task_heads == (
        jt.TaskHead("species", (jt.Dense(2),), ("elk", "bee")),
        jt.TaskHead("colour", (jt.Dense(3),)),
    )
    assert (new.labels, new.num_classes, new.spec.head_layers) == (None, None, ())
    assert note_of(new) == (
        "replace_head: classifier/dense is now species: Dense(features=2), colour: "
        f"Dense(features=3); species: 1 of 2 rows reused from {old.spec.name} by name: bee; "
        "colour: all rows are new"
    )


def test_tasks_have_layers_and_random_numbers_of_their_own(models):
    hidden = [jt.Dropout(0.5), jt.BatchNorm()]
    new = jt.replace_head(models["linen"], tasks={"a": 3, "b": 3}, hidden=hidden)
    assert set(head_of(new)["a"]) == {"1", "2"}
    assert not np.array_equal(head_of(new)["a"]["2"]["kernel"], head_of(new)["b"]["2"]["kernel"])
    same = jt.tree.with_subtree(new.params, "classifier/dense/b", head_of(new)["a"])
    logits, stats = new.apply(same, new.stats, IMAGES, train=True, rngs=RNGS)
    assert not np.allclose(logits["a"], logits["b"])  # each drops features of its own
    assert jt.diff(new.stats, stats).unchanged == ()
    one = frozenset({"classifier/dense/b", "bn"})
    _, stats = run(new, train=True, frozen_modules=one)
    changed = jt.diff(new.stats, stats).changed
    assert {name.rsplit("/", 1)[0] for name in changed} == {"classifier/dense/a/1"}


def test_tasks_come_and_go_with_the_rows_that_they_know(models):
    old = jt.replace_head(models["linen"], tasks=TASKS, key=1)
    more = jt.replace_head(old, tasks={"place": ["elk"], "species": ["bee", "ox", "elk"]}, key=2)
    kept = head_of(more)["species"]["kernel"][:, [0, 2]]
    np.testing.assert_array_equal(kept, head_of(old)["species"]["kernel"][:, [1, 0]])
    assert note_of(more).endswith(
        "place: all rows are new; species: 2 of 3 rows reused from LinenNet by name: bee, elk"
    )
    one = jt.replace_head(more, classes=["bee", "ant"], key=3)
    assert note_of(one).endswith("all rows are new")
    direct = jt.replace_head(models["linen"], classes=["bee", "ant"], key=3, reuse=False)
    assert jt.diff(one.params, direct.params).is_empty
    assert (one.spec, one.apply) == (direct.spec, direct.apply)


def test_tasks_are_predicted_and_saved(tmp_path):
    old = varied(build("cifar_resnet8", width=2, input_size=8))
    model = jt.replace_head(old, tasks=TASKS, hidden=[jt.LayerNorm()])
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    logits = jt.predict(model, images, batch_size=3)
    assert {task: value.shape for task, value in logits.items()} == {
        "species": (4, 2),
        "colour": (4, 3),
    }
    assert jt.predict(model, images[:0])["colour"].shape == (0, 3)

    model.save(tmp_path)
    loaded = jt.load(tmp_path)
    assert jt.diff(loaded.params, model.params).is_empty
    assert (loaded.spec, loaded.apply, loaded.labels) == (model.spec, model.apply, None)
    np.testing.assert_array_equal(jt.predict(loaded, images)["species"], logits["species"])

    with pytest.raises(ModelError, match="one head to give labels, found heads for the tasks"):
        model.with_labels(["a", "b"])


def test_the_maps_of_tasks_are_pooled():
    new = jt.replace_head(conv_head(), tasks={"a": ["bee"], "b": 2})
    assert {task: value.shape for task, value in run(new)[0].items()} == {"a": (6, 1), "b": (6, 2)}
    assert "a: Pool > Dense(features=1), b: Pool > Dense(features=2) (Pool since maps" in note_of(
        new
    )
    again = jt.replace_head(new, tasks={"a": ["elk", "bee"]})
    assert again.spec.task_heads[0].layers == (jt.Pool(), jt.Dense(2))
    np.testing.assert_array_equal(
        head_of(again)["a"]["1"]["kernel"][:, 1], head_of(new)["a"]["1"]["kernel"][:, 0]
    )


# Heads of several layers of their own


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="a")(nn.Dense(9, name="z")(x))


class WithTwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return TwoLayers(name="head")(x.mean((1, 2)))


def test_a_head_of_several_layers_of_its_own_needs_the_shape_of_the_input():
    module = WithTwoLayers()
    variables = module.init(jax.random.key(0), IMAGES)
    unknown = jt.Model.from_linen(module, variables)
    with pytest.raises(ModelError, match=r"expected one kernel at 'head', found 2.*input_shape"):
        jt.replace_head(unknown, 4)
    known = jt.Model.from_linen(module, variables, input_shape=(4, 4, 2))
    assert head_of(jt.replace_head(known, 4))["kernel"].shape == (2, 4)


# What is refused


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("linen", {}, "one of num_classes, classes and tasks, found 0 of them"),
        ("linen", {"num_classes": 2, "classes": ["a"]}, "found 2 of them"),
        ("linen", {"num_classes": 2, "tasks": {"a": 2}}, "found 2 of them"),
        ("linen", {"tasks": {}}, "found no task"),
        ("linen", {"tasks": {"a/b": 2, "": 1, "c": 3}}, r"without '/', found \['a/b', ''\]"),
        ("linen", {"tasks": {"a": 0}}, "task 'a': expected num_classes of at least 1, found 0"),
        ("linen", {"tasks": {"a": ["x", "x"]}}, r"task 'a': .* each once, found \['x'\]"),
        ("linen", {"num_classes": 0}, "at least 1, found 0"),
        ("linen", {"num_classes": True}, "at least 1, found True"),
        ("linen", {"num_classes": 2.0}, r"at least 1, found 2\.0"),
        ("linen", {"classes": []}, "found no class"),
        ("linen", {"classes": "abc"}, "found the text 'abc'"),
        ("linen", {"classes": ["a", "b", "a"]}, r"each once, found \['a'\]"),
        ("linen", {"num_classes": 2, "hidden": [64]}, r"found \[64\]; write Dense\(64\)"),
        ("linen", {"num_classes": 2, "hidden": [nn.relu]}, "expected hidden layers among Dense"),
        ("plain", {"num_classes": 2, "hidden": [jt.LayerNorm()]}, "cannot stop at"),
        ("plain", {"num_classes": 2, "pool": True}, "cannot stop at"),
        ("plain", {"tasks": {"a": 2}}, "cannot stop at"),
    ],
)
def test_arguments_that_make_no_head_are_errors(models, kind, options, message):
    with pytest.raises(ModelError, match=r"replace_head\(.*" + message):
        jt.replace_head(models[kind], **options)


def test_a_function_with_another_head_cannot_be_changed():
    def forward(params, inputs):
        return inputs @ params["head"]["w"]

    model = jt.Model.from_function(forward, {"head": {"w": jnp.ones((2, 3))}})
    with pytest.raises(ModelError, match="found w there, and one new layer"):
        jt.replace_head(model, 4)


def test_parameters_that_are_no_dicts_are_an_error():
    model = jt.Model.from_function(lambda params, inputs: inputs, [jnp.ones((2, 3))])
    with pytest.raises(ModelError, match="expected parameters in nested dicts, found list"):
        jt.replace_head(model, 4)
