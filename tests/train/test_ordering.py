"""Gradients in order are those of `jax.grad`, and a compiled step keeps less for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.train import ordering
from jaxtransfer.train.ordering import after, ordered_gradient

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="gradients are ordered on CPUs")


@pytest.fixture(autouse=True)
def small_arrays_count(monkeypatch):
    monkeypatch.setattr(ordering, "LARGE", 4)


def network(parameters):
    """Recomputed and plain layers, a parameter that is used twice and one that is not used."""
    x = jnp.linspace(-1, 1, 12, dtype=parameters["bias"].dtype).reshape(3, 4)
    layer = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))
    x = layer(parameters["first"], x) + parameters["bias"]
    x = jnp.sin(layer(parameters["second"], x) @ parameters["first"])
    return (x**2).sum(), {"outputs": x}


@pytest.fixture(scope="module")
def parameters():
    keys = jax.random.split(jax.random.key(0), 3)
    square = lambda key: jax.random.normal(key, (4, 4))  # noqa: E731
    return {
        "first": square(keys[0]),
        "second": square(keys[1]),
        "bias": jax.random.normal(keys[2], (4,)),
        "unused": jnp.ones(3),
        "none": None,
        "empty": jnp.zeros((0, 2)),
    }


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradients_and_what_comes_with_them_are_the_same(parameters, transform):
    found = transform(ordered_gradient(network))(parameters)
    assert_same(found, transform(jax.grad(network, has_aux=True))(parameters))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_stay(parameters, dtype):
    halves = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters)
    gradients, _ = ordered_gradient(network)(halves)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {dtype}


def test_many_at_once_and_second_derivatives_are_the_same(parameters):
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), parameters)
    plain = jax.grad(network, has_aux=True)
    assert_same(jax.vmap(ordered_gradient(network))(many), jax.vmap(plain)(many))

    def norm(gradient):
        return lambda tree: sum((g**2).sum() for g in jax.tree.leaves(gradient(tree)[0]))

    assert_same(
        jax.grad(norm(ordered_gradient(network)))(parameters), jax.grad(norm(plain))(parameters)
    )


@on_cpu
@pytest.mark.parametrize(
    ("left_out", "nothing"),
    [("recomputes", lambda equation: False), ("_lead_to_several", lambda jaxpr: set())],
    ids=["cotangents wait", "what is recomputed waits"],
)
def test_each_of_both_waits(parameters, left_out, nothing, monkeypatch):
    # `after` alone clamps, so that a clamp is left where one of them is left out.
    assert "clamp" not in str(jax.make_jaxpr(jax.grad(network, has_aux=True))(parameters))
    assert str(jax.make_jaxpr(ordered_gradient(network))(parameters)).count("clamp") >= 4
    monkeypatch.setattr(ordering, left_out, nothing)
    assert "clamp" in str(jax.make_jaxpr(ordered_gradient(network))(parameters))


def test_forms_of_jax_are_left_as_they_are(parameters):
    with plain_layers():
        found = str(jax.make_jaxpr(ordered_gradient(network))(parameters))
    assert "clamp" not in found


@pytest.mark.parametrize("value", [0.0, 1e30, jnp.inf, -jnp.inf])
def test_what_waits_stays_the_same(value):
    waiting = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0, 1.0])
    np.testing.assert_array_equal(after(waiting, [jnp.full((2, 2), value)]), waiting)


def test_what_waits_for_nan_is_nan():
    assert jnp.isnan(after(jnp.ones(3), [jnp.zeros(2), jnp.full(1, jnp.nan)])).all()


def test_name_scopes_stay(parameters):
    def scoped(parameters):
        with jax.named_scope("a_layer"):
            return network(parameters)

    text = jax.jit(ordered_gradient(scoped)).lower(parameters).as_text(debug_info=True)
    assert "transpose(jvp(a_layer))" in text


@on_cpu
def test_a_step_needs_less_memory(monkeypatch):
    model = jt.init("cifar_resnet8", width=16, input_size=(16, 16), num_classes=3)
    plan = jt.full(model)
    tx = plan.optimizer(0.01)
    state = jt.init_state(model, plan, tx)
    batch = {"image": jnp.ones((64, 16, 16, 3)), "label": jnp.zeros(64, jnp.int32)}

    def mebibytes(least):
        monkeypatch.setattr(ordering, "LARGE", least)
        step = jt.make_train_step(model.apply, jt.cross_entropy(), tx, plan)
        compiled = step.lower(state, batch).compile(compiler_options=jt.compiler_options())
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    assert mebibytes(2**10) < 0.97 * mebibytes(2**40)
