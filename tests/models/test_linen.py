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
from jaxtransfer.models.linen import LinenApply

RNGS = {"dropout": jax.random.key(7)}


class AtConstruction(nn.Module):
    """BatchNorm and Dropout get their mode when they are made."""

    features: int = 4
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.features, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        return nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))


class AtCall(nn.Module):
    """BatchNorm gets its mode by keyword, Dropout by position."""

    features: int = 4
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.Conv(self.features, (3, 3), name="conv")(x)
        x = nn.BatchNorm(name="bn")(x, use_running_average=not train)
        return nn.Dropout(self.rate)(nn.relu(x), not train)


class InSetup(nn.Module):
    """Submodules are made in `setup`, and the mode is called `deterministic`."""

    features: int = 4
    rate: float = 0.5

    def setup(self):
        self.conv = nn.Conv(self.features, (3, 3))
        self.bn = nn.BatchNorm()
        self.dropout = nn.Dropout(self.rate)

    def __call__(self, x, deterministic=True):
        x = self.bn(self.conv(x), use_running_average=deterministic)
        return self.dropout(nn.relu(x), deterministic=deterministic)


class Nested(nn.Module):
    """Another block inside, whose path is longer."""

    features: int = 4
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool = False):
        return AtCall(self.features, self.rate, name="inner")(x, train=train)


class WithField(nn.Module):
    """The mode is a field, as older networks have it."""

    features: int = 4
    rate: float = 0.5
    training: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.features, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not self.training, name="bn")(x)
        return nn.Dropout(self.rate, deterministic=not self.training)(nn.relu(x))


BLOCKS = [AtConstruction, AtCall, InSetup, Nested, WithField]


def call_block(block: nn.Module, x: Any, train: bool) -> Any:
    if isinstance(block, InSetup):
        return block(x, not train)
    if isinstance(block, WithField):
        return block(x)
    if isinstance(block, AtCall):
        return block(x, train=train)
    return block(x, train)


class Net(nn.Module):
    block: type[nn.Module] = AtConstruction
    classes: int = 3

    @nn.compact
    def __call__(self, x, train: bool):
        mode = {"training": train} if self.block is WithField else {}
        x = call_block(self.block(4, 0.0, name="stem", **mode), x, train)
        x = call_block(self.block(6, 0.5, name="body", **mode), x, train)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(1, 2, (4, 8, 8, 1)).astype(np.float32)


@functools.cache
def model_of(block: type[nn.Module]) -> jt.Model:
    module = Net(block)
    variables = module.init({"params": jax.random.key(0), **RNGS}, jnp.zeros((1, 8, 8, 1)), True)
    return jt.Model.from_linen(module, variables, input_shape=(8, 8, 1))


def run(model: jt.Model, images: Any, *, key: int = 7, **options: Any) -> tuple[Any, Any]:
    # Not compiled as a whole, so that all calls share what their steps compile to.
    rngs = {"dropout": jax.random.key(key)}
    return model.apply(model.params, model.stats, images, rngs=rngs, **options)


class WholeByField(nn.Module):
    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=self.deterministic)(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def test_a_mode_field_of_the_whole_network_is_set(images):
    module = WholeByField()
    model = jt.Model.from_linen(module, module.init({"params": jax.random.key(0), **RNGS}, images))
    head = model.params["head"]
    expected = images.mean((1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(run(model, images, train=False)[0], expected, rtol=1e-5, atol=1e-6)
    dropped, _ = run(model, images, train=True)
    assert not np.allclose(dropped, expected)
    assert module.deterministic is False


def run_block(block: nn.Module, model: jt.Model, name: str, x: Any, train: bool) -> Any:
    """One block by itself, by Linen alone."""
    if isinstance(block, WithField):
        block = block.clone(training=train)
    variables = {"params": model.params[name], "batch_stats": model.stats[name]}
    return block.apply(variables, x, train, rngs=RNGS, mutable=["batch_stats"], method=call_block)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_frozen_module_runs_as_in_evaluation_while_the_rest_trains(block, images):
    model = model_of(block)
    found, stats = run(model, images, train=True, frozen_modules=frozenset({"body"}))

    stem, stem_updates = run_block(block(4, 0.0), model, "stem", images, True)
    body, _ = run_block(block(6, 0.5), model, "body", stem, False)
    head = model.params["head"]
    expected = body.mean((1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert jt.diff(model.stats["body"], stats["body"]).is_empty
    assert not jt.diff(model.stats["stem"], stats["stem"]).is_empty
    for name, leaf in jt.tree.flatten(stem_updates["batch_stats"]).items():
        np.testing.assert_allclose(jt.tree.flatten(stats["stem"])[name], leaf, rtol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_evaluation_uses_stored_statistics_and_no_dropout(block, images):
    model = model_of(block)
    found, stats = run(model, images, train=False)
    stem, _ = run_block(block(4, 0.0), model, "stem", images, False)
    body, _ = run_block(block(6, 0.5), model, "body", stem, False)
    head = model.params["head"]
    expected = body.mean((1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert jt.diff(model.stats, stats).is_empty


@pytest.mark.parametrize("block", BLOCKS)
def test_training_drops_out_and_moves_all_statistics(block, images):
    model = model_of(block)
    first, stats = run(model, images, train=True, key=7)
    second, _ = run(model, images, train=True, key=8)
    assert not np.array_equal(first, second)
    assert jt.diff(model.stats, stats).unchanged == ()


def test_a_frozen_norm_alone_leaves_dropout_on(images):
    model = model_of(AtCall)
    frozen = frozenset({"stem/bn", "body/bn"})
    first, stats = run(model, images, key=7, train=True, frozen_modules=frozen)
    second, _ = run(model, images, key=8, train=True, frozen_modules=frozen)
    assert jt.diff(model.stats, stats).is_empty
    assert not np.array_equal(first, second)


class Rematted(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        block = nn.remat(AtConstruction, static_argnums=(2,))
        x = block(4, 0.0, name="stem")(x, train)
        x = block(4, 0.5, name="body")(x, train)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class ScanStep(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return AtConstruction(4, 0.5, name="block")(x, train), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        steps = nn.scan(
            ScanStep,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=2,
        )
        x, _ = steps(name="body")(x, train)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@pytest.mark.parametrize("kind", [Rematted, Scanned])
def test_modules_inside_transforms_can_be_frozen(kind, images):
    module = kind()
    variables = module.init({"params": jax.random.key(0), **RNGS}, images, False)
    model = jt.Model.from_linen(module, variables)
    every = frozenset({"stem", "body"})
    found, stats = run(model, images, train=True, frozen_modules=every)
    expected, _ = run(model, images, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert jt.diff(model.stats, stats).is_empty
    _, moved = run(model, images, train=True, frozen_modules=frozenset({"head"}))
    assert jt.diff(model.stats, moved).unchanged == ()


def test_stop_gives_what_enters_a_module_and_runs_nothing_after_it(images):
    model = model_of(AtConstruction)
    features, stats = run(model, images, train=True, stop="body")
    expected, updates = run_block(AtConstruction(4, 0.0), model, "stem", images, True)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    assert jt.diff(model.stats["body"], stats["body"]).is_empty
    np.testing.assert_allclose(
        stats["stem"]["bn"]["mean"], updates["batch_stats"]["bn"]["mean"], rtol=1e-5
    )


def test_stop_may_name_a_module_inside_another(images):
    model = model_of(Nested)
    features, _ = run(model, images, train=False, stop="body/inner/bn")
    assert features.shape == (4, 8, 8, 6)
    before_head, _ = run(model, images, train=False, stop="head")
    assert before_head.shape == (4, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": "bodi"}, "expected the forward pass to enter the module"),
        ({"start": "body"}, "expected a module whose call takes start and stop"),
    ],
)
def test_a_cut_that_cannot_be_made_is_an_error(options, message, images):
    with pytest.raises(ModelError, match=message):
        run(model_of(AtConstruction), images, train=False, **options)


def test_stopping_inside_a_transform_is_an_error(images):
    module = Rematted()
    model = jt.Model.from_linen(module, module.init({"params": jax.random.key(0)}, images, False))
    with pytest.raises(ModelError, match=r"outside of nn\.remat"):
        run(model, images, train=False, stop="body")
    features, _ = run(model, images, train=False, stop="head")
    assert features.shape == (4, 4)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def test_random_streams_of_other_names_get_a_key_too(images):
    module = Noisy()
    model = jt.Model.from_linen(module, module.init(jax.random.key(0), images, False))
    first, _ = run(model, images, train=True, key=1)
    second, _ = run(model, images, train=True, key=2)
    assert not np.array_equal(first, second)


class WithList(nn.Module):
    widths: list[int]

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.Dense(width)(x)
        return x


def test_modules_of_equal_fields_make_equal_forward_passes():
    assert LinenApply(Net(AtCall)) == LinenApply(Net(AtCall))
    assert hash(LinenApply(Net(AtCall))) == hash(LinenApply(Net(AtCall)))
    assert LinenApply(Net(AtCall)) != LinenApply(Net(InSetup))
    assert hash(LinenApply(WithList([4, 3]))) == hash(LinenApply(WithList([4, 3])))
    assert LinenApply(WithList([4, 3])) != LinenApply(WithList([5, 3]))


@pytest.mark.parametrize("name", ["probe", "full", "own"])
def test_a_network_of_ones_own_learns(name, separable, own_plan):
    start = model_of(AtConstruction)
    plan = own_plan if name == "own" else name
    rate = 0.2 if name == "probe" else 0.03
    before = jax.tree.map(np.array, {"params": start.params, "stats": start.stats})
    result = jt.finetune(start, separable, plan, steps=150, batch_size=16, learning_rate=rate)
    images, labels = separable
    accuracy = (jt.predict(result.model, images).argmax(-1) == labels).mean()
    assert accuracy >= 0.95

    assert jt.diff(before, {"params": start.params, "stats": start.stats}).is_empty
    changes = jt.diff(before, {"params": result.model.params, "stats": result.model.stats})
    frozen = {"probe": ("stem", "body"), "full": (), "own": ("stem",)}[name]
    assert changes.fits
    assert {n for n in changes.unchanged if n.startswith("params/")} == {
        f"params/{leaf}" for leaf in jt.leaf_names(start.params) if leaf.split("/")[0] in frozen
    }
    moves = name == "full"
    assert {n for n in changes.unchanged if n.startswith("stats/")} == {
        f"stats/{leaf}" for leaf in jt.leaf_names(start.stats) if not moves
    }
