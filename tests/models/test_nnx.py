from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models.nnx import text_keys


class Block(nnx.Module):
    """The mode comes as attributes of the layers."""

    def __init__(self, inputs: int, features: int, rate: float, rngs: nnx.Rngs):
        self.conv = nnx.Conv(inputs, features, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(features, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.bn(self.conv(x))))


class BlockByCall(Block):
    """The mode is given at each call."""

    def __call__(self, x, train: bool):
        x = nnx.relu(self.bn(self.conv(x), use_running_average=not train))
        return self.dropout(x, deterministic=not train)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = Block(1, 4, 0.0, rngs)
        self.body = nnx.List([Block(4, 4, 0.5, rngs), Block(4, 6, 0.0, rngs)])
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.body:
            x = block(x)
        return self.head(x.mean((1, 2)))


class NetByCall(Net):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = BlockByCall(1, 4, 0.0, rngs)
        self.body = nnx.List([BlockByCall(4, 4, 0.5, rngs), BlockByCall(4, 6, 0.0, rngs)])
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x, train: bool):
        x = self.stem(x, train)
        for block in self.body:
            x = block(x, train)
        return self.head(x.mean((1, 2)))


@pytest.fixture(scope="module", params=[Net, NetByCall])
def module(request) -> Any:
    return request.param(nnx.Rngs(0))


@pytest.fixture(scope="module")
def model(module) -> jt.Model:
    return jt.Model.from_nnx(module, input_shape=(8, 8, 1))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(1, 2, (4, 8, 8, 1)).astype(np.float32)


def run(model: jt.Model, images: Any, *, key: int = 7, **options: Any) -> tuple[Any, Any]:
    # Not compiled as a whole, so that all calls share what their steps compile to.
    rngs = {"dropout": jax.random.key(key)}
    return model.apply(model.params, model.stats, images, rngs=rngs, **options)


def normed(x: Any, params: Any, mean: Any, var: Any) -> Any:
    return (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def block_by_hand(params: Any, stats: Any, x: Any, train: bool) -> Any:
    """Convolution, norm and ReLU, by JAX alone."""
    x = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = x + params["conv"]["bias"]
    mean, var = stats["bn"]["mean"], stats["bn"]["var"]
    if train:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return jax.nn.relu(normed(x, params["bn"], mean, var))


def by_hand(model: jt.Model, x: Any, trains: tuple[bool, bool, bool]) -> Any:
    params, stats = model.params, model.stats
    x = block_by_hand(params["stem"], stats["stem"], x, trains[0])
    for i in (0, 1):
        x = block_by_hand(params["body"][str(i)], stats["body"][str(i)], x, trains[i + 1])
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def test_names_are_those_of_the_attributes_in_their_order(model):
    assert model.spec.stages == ("stem", "body", "head")
    assert model.spec.head == "head"
    assert "body/0/bn/scale" in jt.leaf_names(model.params)
    assert model.num_classes == 3
    assert text_keys({0: {"a": 1}}) == {"0": {"a": 1}}


class Alphabet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.second_letter = nnx.Linear(2, 2, rngs=rngs)
        self.first = nnx.Linear(2, 2, rngs=rngs)
        self.a_last = nnx.Linear(2, 2, rngs=rngs)


def test_stages_are_not_sorted_by_name():
    model = jt.Model.from_nnx(Alphabet(nnx.Rngs(0)))
    assert model.spec.stages == ("second_letter", "first", "a_last")


def test_the_module_itself_is_never_changed(module, images, model):
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    counts = [int(s.count[...]) for _, s in nnx.iter_graph(module) if isinstance(s, nnx.RngStream)]
    graph = nnx.graphdef(module)
    run(model, images, train=True, frozen_modules=frozenset({"body"}))
    run(model, images, train=True, stop="body/1")
    after = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState)))
    assert jt.diff(text_keys(before), text_keys(after)).is_empty
    streams = [s for _, s in nnx.iter_graph(module) if isinstance(s, nnx.RngStream)]
    assert [int(stream.count[...]) for stream in streams] == counts
    assert nnx.graphdef(module) == graph


def test_evaluation_uses_stored_statistics_and_no_dropout(model, images):
    found, stats = run(model, images, train=False)
    np.testing.assert_allclose(found, by_hand(model, images, (False,) * 3), rtol=1e-4, atol=1e-5)
    assert jt.diff(model.stats, stats).is_empty


@pytest.mark.parametrize(
    ("frozen", "trains"),
    [({"body"}, (True, False, False)), ({"body/0", "stem"}, (False, False, True))],
)
def test_a_frozen_module_runs_as_in_evaluation_while_the_rest_trains(model, images, frozen, trains):
    found, stats = run(model, images, train=True, frozen_modules=frozenset(frozen))
    np.testing.assert_allclose(found, by_hand(model, images, trains), rtol=1e-4, atol=1e-5)
    changes = jt.diff(model.stats, stats)
    still = {name for name in jt.leaf_names(model.stats) if jt.tree.is_below(name, frozen)}
    assert set(changes.unchanged) == still


def test_training_drops_out_and_moves_all_statistics(model, images):
    first, stats = run(model, images, train=True, key=7)
    second, _ = run(model, images, train=True, key=8)
    again, _ = run(model, images, train=True, key=7)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, again)
    assert jt.diff(model.stats, stats).unchanged == ()


def test_a_frozen_norm_alone_leaves_dropout_on(model, images):
    frozen = frozenset({"stem/bn", "body/0/bn", "body/1/bn"})
    first, stats = run(model, images, key=7, train=True, frozen_modules=frozen)
    second, _ = run(model, images, key=8, train=True, frozen_modules=frozen)
    assert jt.diff(model.stats, stats).is_empty
    assert not np.array_equal(first, second)


class Doubling(nnx.Module):
    """Reads its mode from an attribute of its own."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))
        self.deterministic = False

    def __call__(self, x):
        return x * self.scale * (1.0 if self.deterministic else 2.0)


class Quadrupling(nnx.Module):
    def __init__(self):
        self.stem, self.head = Doubling(), Doubling()

    def __call__(self, x):
        return self.head(self.stem(x))


@pytest.mark.parametrize(
    ("train", "frozen", "factor"),
    [(True, (), 4.0), (True, ("stem",), 2.0), (True, ("stem", "head"), 1.0), (False, (), 1.0)],
)
def test_modes_that_are_attributes_are_set(train, frozen, factor):
    model = jt.Model.from_nnx(Quadrupling())
    found, _ = run(model, jnp.ones(1), train=train, frozen_modules=frozenset(frozen))
    assert float(found[0]) == factor


class TwoStreams(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.rngs = rngs
        self.head = nnx.Linear(1, 3, rngs=rngs)

    def __call__(self, x):
        a, b = self.rngs.noise(), self.rngs.other()
        shape = (len(x), 1)
        difference = jax.random.normal(a, shape) - jax.random.normal(b, shape)
        return self.head(x.mean((1, 2)) + difference)


def test_every_random_stream_gets_a_key_of_its_own(images):
    model = jt.Model.from_nnx(TwoStreams(nnx.Rngs(params=0, noise=1, other=2)))
    first, _ = run(model, images, train=True, key=1)
    second, _ = run(model, images, train=True, key=2)
    assert not np.array_equal(first, second)
    head = model.params["head"]
    same_keys = images.mean((1, 2)) @ head["kernel"] + head["bias"]
    assert not np.allclose(first, same_keys)


def test_stop_gives_what_enters_a_module_and_runs_nothing_after_it(model, images):
    features, stats = run(model, images, train=True, stop="body/0")
    params, before = model.params["stem"], model.stats["stem"]
    np.testing.assert_allclose(
        features, block_by_hand(params, before, images, True), rtol=1e-4, atol=1e-5
    )
    assert jt.diff(model.stats["body"], stats["body"]).is_empty
    assert not jt.diff(model.stats["stem"], stats["stem"]).is_empty
    assert run(model, images, train=False, stop="body/1/bn")[0].shape == (4, 8, 8, 6)
    assert run(model, images, train=False, stop="head")[0].shape == (4, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": "bodi"}, "expected a submodule 'bodi'"),
        ({"stop": "body/7"}, "expected a submodule 'body/7'"),
        ({"start": "body"}, "expected a module whose call takes start and stop"),
    ],
)
def test_a_cut_that_cannot_be_made_is_an_error(model, images, options, message):
    with pytest.raises(ModelError, match=message):
        run(model, images, train=False, **options)


def test_a_module_that_is_never_entered_cannot_be_stopped_at():
    class Unused(TwoStreams):
        def __call__(self, x):
            return x

    model = jt.Model.from_nnx(Unused(nnx.Rngs(params=0, noise=1, other=2)))
    with pytest.raises(ModelError, match="never does"):
        model.apply(model.params, model.stats, jnp.zeros((1, 1)), train=False, stop="head")


def test_parameters_of_another_shape_are_an_error(model, images):
    head = {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(4)}
    with pytest.raises(ModelError, match=r"~ head/kernel: expected \(6, 3\), found \(6, 4\)"):
        model.apply({**model.params, "head": head}, model.stats, images, train=False)
    with pytest.raises(ModelError, match=r"~ head/bias: expected \(3,\), found nothing"):
        less = {**model.params, "head": {"kernel": model.params["head"]["kernel"]}}
        model.apply(less, model.stats, images, train=False)


def test_only_nnx_modules_are_taken():
    with pytest.raises(ModelError, match=r"expected an instance of flax\.nnx\.Module, found dict"):
        jt.Model.from_nnx({})


@pytest.mark.parametrize("name", ["probe", "full", "own"])
def test_a_network_of_ones_own_learns(name, separable, own_plan):
    start = jt.Model.from_nnx(Net(nnx.Rngs(0)))
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
    assert {n for n in changes.unchanged if n.startswith("stats/")} == {
        f"stats/{leaf}" for leaf in jt.leaf_names(start.stats) if name != "full"
    }
