from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model, init
from jaxtransfer.models.catalog import build
from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.partition import full
from jaxtransfer.train import Settings, cross_entropy, init_state, make_train_step, train
from jaxtransfer.train.precision import BFLOAT16, FLOAT16, LossScaling, Precision


@pytest.fixture(scope="module")
def batch(rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Eight examples for the dense network, each of full weight."""
    return {name: jnp.asarray(rows[name][:8]) for name in ("image", "label")}


def start(model: Model, precision: Precision, rate: float = 0.01) -> Any:
    plan = full(model)
    tx = plan.optimizer(rate)
    state = init_state(model, plan, tx, with_ema=True, precision=precision)
    step = make_train_step(
        model.apply, cross_entropy(), tx, plan, precision=precision, ema_decay=0.9
    )
    return state, step


def heavy_operations(jaxpr: Any) -> list[tuple[str, set[str]]]:
    """The convolutions and matrix products of a traced function, with the dtypes they take."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            dtypes = {str(variable.aval.dtype) for variable in equation.invars}
            found.append((equation.primitive.name, dtypes))
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += heavy_operations(inner)
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet8", {}),
        ("vit_ti16", {"depth": 2}),
        ("convnextv2_atto", {}),
        ("swin_t", {}),
        ("mobilenet_v2_035", {}),
    ],
)
def test_every_convolution_and_product_computes_in_the_compute_dtype(
    name: str, options: dict[str, Any]
) -> None:
    model = build(name, **options)
    plan = full(model)
    tx = plan.optimizer(0.1)

    def abstract_step(model: Model, batch: Any) -> Any:
        state = init_state(model, plan, tx, precision=BFLOAT16)
        step = make_train_step(model.apply, cross_entropy(), tx, plan, precision=BFLOAT16)
        return step(state, batch)

    batch = {
        "image": jax.ShapeDtypeStruct((2, *(model.spec.input_size or ()), 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    with plain_layers():  # as an accelerator has them
        found = heavy_operations(jax.make_jaxpr(abstract_step)(model, batch).jaxpr)
    assert len(found) > 20
    # JAX keeps the scores of attention in float32, and thus their cotangents.
    assert all("bfloat16" in dtypes for _, dtypes in found)


@pytest.mark.parametrize("precision", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_what_is_kept_and_reported_stays_float32(
    precision: Precision, staged: Model, batch: dict[str, jax.Array]
) -> None:
    state, step = start(staged, precision)
    for _ in range(8):
        state, metrics = step(state, batch)
    kept = [state.trainable, state.stats, state.opt_state, state.ema, metrics]
    floats = [x for x in jax.tree.leaves(kept) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])


def five_steps(model: Model, examples: ArrayData, precision: Precision) -> list[Any]:
    """The loss and the gradient norm of each step."""
    batch = {"image": jnp.asarray(examples.images[:8]), "label": jnp.asarray(examples.labels[:8])}
    state, step = start(model, precision, rate=1e-3)
    found = []
    for _ in range(5):
        state, metrics = step(state, batch)
        found.append((metrics["loss"], metrics["gradient_norm"]))
    return found


@pytest.fixture(scope="module")
def in_float32(network: Model, examples: ArrayData) -> list[Any]:
    return five_steps(network, examples, Precision())


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [(BFLOAT16, 0.1), (Precision(compute="float16"), 0.02)],
    ids=["bfloat16", "float16"],
)
def test_half_precision_is_float32_to_its_rounding(
    precision: Precision,
    tolerance: float,
    network: Model,
    examples: ArrayData,
    in_float32: list[Any],
) -> None:
    found = five_steps(network, examples, precision)
    np.testing.assert_allclose(found, in_float32, rtol=tolerance)


def test_parameters_in_half_precision_have_a_float32_average(
    staged: Model, batch: dict[str, jax.Array]
) -> None:
    precision = Precision("bfloat16", "bfloat16")
    state, step = start(staged, precision)
    state, _ = step(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.ema)} == {jnp.dtype(jnp.float32)}


# ---------------------------------------------------------------------------------------------
# The factor on the loss


def scaled(initial: float, interval: int = 2) -> Precision:
    how = LossScaling(initial, growth_interval=interval)
    return Precision(compute="float16", loss_scale=how)


def test_a_factor_that_is_too_large_shrinks_until_gradients_are_finite(
    staged: Model, batch: dict[str, jax.Array]
) -> None:
    state, step = start(staged, scaled(2.0**30, interval=100))
    skipped, factors = [], []
    for _ in range(20):
        before = jax.tree.map(np.asarray, state.trainable)
        state, metrics = step(state, batch)
        skipped.append(float(metrics["skipped"]))
        factors.append(float(metrics["loss_scale"]))
        same = jax.tree.map(np.array_equal, before, jax.tree.map(np.asarray, state.trainable))
        assert all(jax.tree.leaves(same)) == bool(skipped[-1])
    count = int(sum(skipped))
    assert 0 < count < 20 and skipped == [1.0] * count + [0.0] * (20 - count)
    assert factors == [2.0 ** (30 - min(i, count)) for i in range(20)]


def test_a_factor_grows_after_a_row_of_finite_steps(
    staged: Model, batch: dict[str, jax.Array]
) -> None:
    state, step = start(staged, scaled(8.0))
    factors = []
    for _ in range(5):
        state, metrics = step(state, batch)
        factors.append(float(metrics["loss_scale"]))
    assert factors == [8.0, 8.0, 16.0, 16.0, 32.0]


def test_a_factor_keeps_small_gradients_from_vanishing() -> None:
    def function(params: Any, inputs: jax.Array) -> jax.Array:
        return (inputs @ params["head"]["kernel"]) * jnp.asarray(1e-6, inputs.dtype)

    kernel = {"head": {"kernel": jnp.ones((4, 2))}}
    model = Model.from_function(function, kernel, head="head")
    batch = {"image": jnp.full((8, 4), 1e-2), "label": jnp.zeros(8, jnp.int32)}
    norms = {}
    for name, precision in (
        ("float32", Precision()),
        ("plain", Precision(compute="float16")),
        ("scaled", scaled(2.0**15)),
    ):
        state, step = start(model, precision)
        norms[name] = float(step(state, batch)[1]["gradient_norm"])
    assert norms["plain"] < 0.5 * norms["float32"]
    np.testing.assert_allclose(norms["scaled"], norms["float32"], rtol=0.1)


def test_state_and_step_must_agree_on_the_factor(
    staged: Model, batch: dict[str, jax.Array]
) -> None:
    state, _ = start(staged, FLOAT16)
    _, step = start(staged, Precision())
    with pytest.raises(TrainingError, match="only in the state; give init_state and make_train"):
        step(state, batch)
    with pytest.raises(TrainingError, match="only in the step"):
        start(staged, FLOAT16)[1](replace(state, loss_scale=None), batch)


@pytest.mark.parametrize("dtype", ["int8", "bfloat17", None, jnp.int32])
def test_a_dtype_that_is_none_of_floats_is_an_error(dtype: Any) -> None:
    with pytest.raises(TrainingError, match="dtype of floats for compute"):
        Precision(compute=dtype)


def test_all_that_is_wrong_with_a_scaling_is_said_at_once() -> None:
    with pytest.raises(TrainingError, match=r"initial.*growth_factor.*backoff_factor.*interval"):
        LossScaling(0.0, 1.0, 1.0, 0)


def test_attention_trains_in_half_precision(examples: ArrayData) -> None:
    sizes: dict[str, Any] = {"patch": 4, "width": 8, "depth": 1, "heads": 2}
    network = init("vit_ti16", in_channels=1, num_classes=3, input_size=(8, 8), **sizes)
    settings = Settings(steps=1, batch_size=4, precision=BFLOAT16)
    _, (record,) = train(network, examples, [full(network)], settings)
    assert record["skipped"] == 0 and np.isfinite(record["loss"])
