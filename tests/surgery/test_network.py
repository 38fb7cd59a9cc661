from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.surgery.network import (
    check_that_it_runs,
    compute,
    float_dtype,
    linen_module,
    output_shapes,
    with_option,
)
from tests.surgery.networks import tokens


@dataclass(frozen=True)
class Sizes:
    size: int = 3
    depth: int = 3


class Sized(nn.Module):
    size: int = 3
    sizes: Sizes = Sizes()
    head: Any = None

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(x)


def sized(**fields: Any) -> jt.Model:
    params = {"head": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    model = jt.Model.from_linen(Sized(**fields), {"params": params}, input_shape=(1, 1, 3))
    return replace(model, spec=replace(model.spec, options=(("size", 3), ("depth", 3))))


def test_options_and_fields_of_that_name_follow():
    new = with_option(sized(), "size", 3, 5)
    assert new.spec.options == (("size", 5), ("depth", 3))
    assert linen_module(new.apply) == Sized(5, Sizes(5, 3))
    unknown = with_option(sized(), "width", 3, 5)
    assert (unknown.spec, unknown.apply) == (sized().spec, sized().apply)


def test_a_field_of_another_value_means_something_else():
    new = with_option(sized(size=7, sizes=Sizes(8)), "size", 3, 5)
    assert linen_module(new.apply) == Sized(7, Sizes(8))


def test_what_is_around_a_module_is_kept():
    headed = jt.replace_head(jt.truncate(tokens(), "block2"), 2)
    new = with_option(headed, "depth", 3, 4)
    assert linen_module(new.apply) == replace_module(linen_module(headed.apply), depth=4)
    assert replace(new.apply, body=headed.apply.body) == headed.apply


def replace_module(module: Any, **fields: Any) -> Any:
    return module.clone(**fields)


def test_networks_of_other_kinds_have_no_module():
    function = jt.Model.from_function(lambda params, x: x, {"w": jnp.ones(2)})
    assert linen_module(function.apply) is None
    assert with_option(function, "size", 3, 5).apply == function.apply


def test_shapes_of_outputs_and_of_what_enters_a_stage():
    model = build("cifar_resnet8", width=2, input_size=16)
    assert output_shapes(model, model.apply).shape == (1, 10)
    assert output_shapes(model, model.apply, stop="pool").shape == (1, 4, 4, 8)
    assert output_shapes(jt.Model.from_function(lambda p, x: x, {"w": jnp.ones(1)}), None) is None


def test_a_network_that_does_not_run_says_how_its_error_begins():
    def forward(params, inputs):
        raise RuntimeError("\nthe first line\nthe second")

    model = jt.Model.from_function(forward, {"w": jnp.ones(1)}, input_shape=(4, 5, 3))
    message = r"here: .* images of \(4, 5\) with 3 channels, found: the first line; do that"
    with pytest.raises(ModelError, match=message + "$"):
        check_that_it_runs("here", model, "do that")


def test_dtypes_of_networks():
    assert float_dtype({"a": jnp.ones(1, jnp.int32), "b": jnp.ones(1, jnp.bfloat16)}) == "bfloat16"
    assert float_dtype({"a": jnp.ones(1, jnp.int32)}) == "float32"


def test_shapes_give_shapes():
    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert compute(lambda x: x.T, shape) == jax.ShapeDtypeStruct((3, 2), jnp.float32)
    assert compute(lambda x: x.T, jnp.ones((2, 3))).shape == (3, 2)
