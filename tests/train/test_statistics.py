from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import DataError, ModelError, PatternError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import last, probe
from jaxtransfer.train.statistics import recalibrate_stats
from jaxtransfer.tree import diff, flatten

RNG = np.random.default_rng(3)
# Twenty-three examples: batches of six leave a ragged one of five.
INPUTS = RNG.normal([2.0, -3.0, 0.0, 10.0], [3.0, 1.0, 0.1, 5.0], (23, 4)).astype(np.float32)
DATA = ArrayData(INPUTS, np.zeros(23, np.int32))


class Normed(nn.Module):
    """A BatchNorm and a dense head, with dropout before and between them."""

    momentum: float = 0.9
    rate: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, name="bn")(x)
        return nn.Dense(2, name="head")(nn.Dropout(self.rate, deterministic=not train)(x))


def normed(**fields: Any) -> Model:
    module = Normed(**fields)
    variables = module.init(jax.random.key(0), jnp.asarray(INPUTS), train=False)
    stats = {"bn": {"mean": jnp.array([1.0, -1.0, 7.0, 2.0]), "var": jnp.array([4.0, 1, 9, 2])}}
    return Model.from_linen(module, {"params": variables["params"], "batch_stats": stats})


def assert_stats(stats: Any, values: np.ndarray, ddof: int = 0) -> None:
    """The statistics are the mean and variance of values (…, channels), in float64."""
    values = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    np.testing.assert_allclose(stats["mean"], values.mean(axis=0), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(stats["var"], values.var(axis=0, ddof=ddof), rtol=2e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 0.999, 1 - 1 / 7])
def test_flax_batch_norm_gets_the_exact_statistics(momentum: float) -> None:
    model = normed(momentum=momentum)
    found = recalibrate_stats(model, DATA, batch_size=6)
    assert_stats(found.stats["bn"], INPUTS)
    assert diff(model.params, found.params).is_empty
    assert found.stats["bn"]["var"].dtype == jnp.float32


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_the_size_of_the_batches_does_not_matter_for_the_first_norm(batch_size: int) -> None:
    assert_stats(recalibrate_stats(normed(), DATA, batch_size=batch_size).stats["bn"], INPUTS)


def test_old_statistics_do_not_matter() -> None:
    once = recalibrate_stats(normed(), DATA, batch_size=6)
    again = recalibrate_stats(once, DATA, batch_size=6)
    assert diff(once.stats, again.stats).is_empty


def stem_outputs(model: Model, images: np.ndarray) -> np.ndarray:
    """What enters the first BatchNorm of the zoo's small residual network."""
    return np.asarray(
        jax.lax.conv_general_dilated(
            jnp.asarray(images),
            model.params["stem"]["conv"]["kernel"],
            (1, 1),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )


def test_the_zoos_batch_norm_gets_the_unbiased_variance(
    network: Model, examples: ArrayData
) -> None:
    found = recalibrate_stats(network, examples, paths="stem/**", batch_size=3)
    assert_stats(found.stats["stem"]["bn"], stem_outputs(network, examples.images), ddof=1)
    assert set(diff(network.stats, found.stats).changed) == {"stem/bn/mean", "stem/bn/var"}
    assert diff(network.params, found.params).is_empty


def test_modules_below_run_as_in_evaluation(network: Model, examples: ArrayData) -> None:
    found = recalibrate_stats(network, examples, paths="layer3/0/bn1/*", batch_size=8)
    _, seen = network.apply.module.apply(
        {"params": network.params, "batch_stats": network.stats},
        jnp.asarray(examples.images),
        train=False,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    entering = seen["intermediates"]["layer3"]["0"]["conv1"]["__call__"][0]
    assert_stats(found.stats["layer3"]["0"]["bn1"], entering, ddof=1)


def test_a_plan_chooses_what_follows_the_data(network: Model, examples: ArrayData) -> None:
    found = recalibrate_stats(network, examples, plan=last(network, 2), batch_size=20)
    changed = diff(network.stats, found.stats).changed
    assert set(changed) == {name for name in flatten(network.stats) if name.startswith("layer3/")}
    by_path = recalibrate_stats(network, examples, paths="layer3/**", batch_size=20)
    assert diff(found.stats, by_path.stats).is_empty


def test_some_batches_are_enough_where_asked_for() -> None:
    found = recalibrate_stats(normed(), DATA, batch_size=6, batches=2, seed=4)
    others = recalibrate_stats(normed(), DATA, batch_size=6, batches=2, seed=5)
    assert not diff(found.stats, others.stats).is_empty
    # Two batches of six: their mean is that of twelve of the examples.
    assert not np.allclose(found.stats["bn"]["mean"], INPUTS.mean(axis=0), rtol=1e-3)
    assert_stats(recalibrate_stats(normed(), DATA, batch_size=23, batches=2).stats["bn"], INPUTS)


def test_nnx_modules_serve_as_well() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.bn = nnx.BatchNorm(4, momentum=0.97, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.dropout(self.bn(x)))

    found = recalibrate_stats(Model.from_nnx(Net(nnx.Rngs(0))), DATA, batch_size=6)
    assert_stats(found.stats["bn"], INPUTS)


def test_an_unbiased_norm_of_ones_own_serves_as_well() -> None:
    def forward(params: Any, stats: Any, x: Any, *, train: bool, frozen_modules: Any) -> Any:
        assert train and "bn" not in frozen_modules and "head" in frozen_modules
        new = {
            "mean": 0.75 * stats["bn"]["mean"] + 0.25 * x.mean(axis=0),
            "var": 0.75 * stats["bn"]["var"] + 0.25 * x.var(axis=0, ddof=1),
        }
        return x @ params["head"]["kernel"], {"bn": new}

    params = {"bn": {"scale": jnp.ones(4)}, "head": {"kernel": jnp.ones((4, 2))}}
    stats = {"bn": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}
    model = Model.from_function(forward, params, stats, head="head")
    assert_stats(recalibrate_stats(model, DATA, batch_size=6).stats["bn"], INPUTS, ddof=1)


def test_what_is_no_running_average_is_refused(network: Model, examples: ArrayData) -> None:
    def counts(params: Any, stats: Any, x: Any, *, frozen_modules: Any) -> Any:
        return x @ params["head"]["kernel"], jax.tree.map(lambda leaf: leaf + 1, stats)

    params = {"bn": {"scale": jnp.ones(4)}, "head": {"kernel": jnp.ones((4, 2))}}
    pair = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
    model = Model.from_function(counts, params, {"bn": pair}, head="head")
    with pytest.raises(ModelError, match=r"share of the old from 0, below 1, found\n - bn: \[1.0"):
        recalibrate_stats(model, DATA)
    model = Model.from_function(counts, params, {"bn": {"count": jnp.zeros(4)}}, head="head")
    with pytest.raises(ModelError, match="a running mean and var, chosen together, found bn/count"):
        recalibrate_stats(model, DATA)
    with pytest.raises(ModelError, match="chosen together, found stem/bn/mean, stem/bn/var"):
        recalibrate_stats(network, examples, paths="stem/bn/mean")


def test_what_cannot_be_done_is_refused(network: Model, examples: ArrayData) -> None:
    with pytest.raises(TrainingError, match="at least 1, plan or paths or neither, found 0"):
        recalibrate_stats(network, examples, batch_size=0)
    with pytest.raises(TrainingError, match="found 64, None, probe and 'stem/"):
        recalibrate_stats(network, examples, plan=probe(network), paths="stem/**")
    with pytest.raises(DataError, match="at least one example"):
        recalibrate_stats(network, examples.take(np.arange(0)))
    with pytest.raises(ModelError, match="chosen together, found none"):
        recalibrate_stats(network, examples, plan=probe(network))
    with pytest.raises(PatternError, match="layer9"):
        recalibrate_stats(network, examples, paths="layer9/**")
