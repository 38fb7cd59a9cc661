from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.errors import PlanError
from jaxtransfer.models import Model
from jaxtransfer.models.catalog import build
from jaxtransfer.partition import Plan, bias_only, norm_only
from jaxtransfer.tree import leaf_names


def trains(plan: Plan, model: Model) -> set[str]:
    """What trains beside the head, which always does."""
    names = leaf_names(model.params)
    chosen = {name for name, one in zip(names, plan.chooses(names), strict=True) if one}
    head = {name for name in names if name.startswith("head/")}
    assert head and head <= chosen
    return chosen - head


class Network(nn.Module):
    """A network with every layer of normalisation that Flax Linen has."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (1, 1), name="conv")(x)
        x = nn.BatchNorm(not train, use_scale=False, name="batch")(x)
        x = nn.GroupNorm(2, name="group")(x)
        x = nn.LayerNorm(name="layer")(x)
        x = nn.RMSNorm(name="rms")(x)
        x = nn.InstanceNorm(name="instance")(x)
        x = x * self.param("gain", nn.initializers.ones, (4,))
        x = nn.PReLU(name="prelu")(x)
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x.reshape(x.shape[0], -1, 4))
        return nn.Dense(3, name="head")(x.mean(1))


@pytest.fixture(scope="module")
def linen() -> Model:
    module, images = Network(), jnp.zeros((1, 4, 4, 1))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    return Model.from_linen(module, variables, head="head")


def test_norms_of_ones_own_network_are_found(linen: Model) -> None:
    plan = norm_only(linen)
    plan.check(linen.params, linen.stats)
    expected = {"batch/bias", "rms/scale"}
    expected |= {f"{norm}/{leaf}" for norm in ("group", "layer", "instance") for leaf in SCALED}
    assert trains(plan, linen) == expected
    groups = plan.assign_stats(linen.params, linen.stats).values()
    assert len(groups) == 2 and not any(group.freezes_stats for group in groups)


SCALED = ("bias", "scale")


def test_biases_of_ones_own_network_are_found(linen: Model) -> None:
    plan = bias_only(linen)
    plan.check(linen.params, linen.stats)
    layers = ("conv", "batch", "group", "layer", "instance")
    attention = (f"attention/{part}/bias" for part in ("key", "out", "query", "value"))
    assert trains(plan, linen) == {*(f"{layer}/bias" for layer in layers), *attention}
    groups = plan.assign_stats(linen.params, linen.stats).values()
    assert groups and all(group.freezes_stats for group in groups)


@pytest.mark.parametrize(
    ("network", "options", "count"),
    [
        ("cifar_resnet8", {"width": 4, "input_size": (8, 8)}, 14),  # 7 layers with two leaves
        ("vit_ti16", {"depth": 2}, 10),  # two in each block, one after them
        ("vit_ti16", {"depth": 3, "scan": True}, 6),
        ("dinov2_s14", {"depth": 2, "num_classes": 3}, 10),  # the factors of its branches left out
        ("inception_v3", {}, 94 * 2),
    ],
)
def test_norms_of_the_zoo_are_found(network: str, options: dict[str, Any], count: int) -> None:
    model = build(network, **options)
    plan = norm_only(model)
    plan.check(model.params, model.stats)
    names = trains(plan, model)
    assert len(names) == count
    assert all("norm" in name or "bn" in name for name in names)


@pytest.mark.parametrize(
    ("network", "options", "count"),
    [
        ("cifar_resnet8", {"width": 4, "input_size": (8, 8)}, 7),
        ("vit_ti16", {"depth": 2}, 2 * 8 + 2),
        ("alexnet", {}, 7),
    ],
)
def test_biases_of_the_zoo_are_found(network: str, options: dict[str, Any], count: int) -> None:
    model = build(network, **options)
    plan = bias_only(model)
    plan.check(model.params, model.stats)
    names = trains(plan, model)
    assert len(names) == count
    assert {name.rpartition("/")[2] for name in names} == {"bias"}


def test_leaves_of_other_libraries_are_known_by_shape_and_name() -> None:
    params = {
        "layers": [{"weight": np.zeros((2, 2)), "bias": np.zeros(2)}, {"weight": np.zeros(2)}],
        "ls1": {"gamma": np.zeros(2)},
        "head": {"weight": np.zeros((2, 2))},
    }
    model = Model.from_function(lambda params, x: x, params, head="head")
    assert trains(norm_only(model), model) == {"layers/1/weight"}
    assert trains(bias_only(model), model) == {"layers/0/bias"}


def test_without_such_leaves_there_is_no_such_plan() -> None:
    params = {"body": {"kernel": np.zeros((2, 2))}, "head": {"bias": np.zeros(2)}}
    model = Model.from_function(lambda params, x: x, params, head="head")
    with pytest.raises(PlanError, match="norm_only: expected normalisation layers outside the he"):
        norm_only(model)
    with pytest.raises(PlanError, match="bias_only: expected biases outside the head"):
        bias_only(model)
