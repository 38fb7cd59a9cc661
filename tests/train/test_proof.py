from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import FrozenError, PlanError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan, full
from jaxtransfer.train import TrainState, TrainStep, cross_entropy, init_state, make_train_step
from jaxtransfer.train.proof import Proof, prove_frozen
from jaxtransfer.tree import count_bytes, count_parameters, merge, split, with_subtree


class Small(nn.Module):
    """Two convolutions with BatchNorm, and a dense head."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="stem_bn")(x))
        x = nn.Conv(8, (3, 3), use_bias=False, name="body")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="body_bn")(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


# All but the stem train; it is frozen, its statistics included.
PLAN = Plan((Group(("body/**", "body_bn/**", "head/**")), Group("**", frozen=True)), name="top")
HEAD = Plan((Group("head/**"), Group("**", frozen=True)), name="head")


@dataclass(frozen=True)
class Run:
    """A model before, and the state after a step of `step` on `batch`."""

    model: Model
    after: TrainState
    step: TrainStep
    batch: Any

    def build(self, plan: Plan) -> tuple[optax.GradientTransformation, TrainStep]:
        """The optimizer and the step of a plan, as this run builds them."""
        tx = plan.optimizer(0.01, weight_decay=0.1)
        return tx, make_train_step(self.model.apply, cross_entropy(), tx, plan, ema_decay=0.9)


def one_step(model: Model, examples: ArrayData, plan: Plan) -> Run:
    batch = {"image": jnp.asarray(examples.images[:8]), "label": jnp.asarray(examples.labels[:8])}
    tx = plan.optimizer(0.01, weight_decay=0.1)
    step = make_train_step(model.apply, cross_entropy(), tx, plan, ema_decay=0.9)
    after, _ = step(init_state(model, plan, tx, with_ema=True), batch)
    return Run(model, after, step, batch)


@pytest.fixture(scope="module")
def model(examples: ArrayData) -> Model:
    module = Small()
    return Model.from_linen(module, module.init(jax.random.key(0), examples.images, train=False))


@pytest.fixture(scope="module")
def run(model: Model, examples: ArrayData) -> Run:
    return one_step(model, examples, PLAN)


@pytest.fixture(scope="module")
def proof(run: Run) -> Proof:
    return prove_frozen(run.model, run.after, run.step, run.batch, plan=PLAN, build=run.build)


# ---------------------------------------------------------------------------------------------
# A run that is as it should be


def test_a_run_that_froze_what_it_should_passes(run: Run, proof: Proof) -> None:
    trainable, frozen = split(run.model.params, PLAN)
    assert proof.frozen_leaves == len(jax.tree.leaves(frozen)) > 0
    assert proof.frozen_parameters == count_parameters(frozen)
    assert proof.trainable_parameters == count_parameters(trainable)
    assert proof.frozen_statistics == 2  # of the stem's norm


def test_the_figures_are_those_of_xla(run: Run, proof: Proof) -> None:
    compiled = run.step.lower(run.after, run.batch).compile()
    assert proof.step is not None and proof.unfrozen is not None
    assert proof.step.flops == compiled.cost_analysis()["flops"]
    assert proof.step.flops < 0.95 * proof.unfrozen.flops
    assert proof.step.optimizer_bytes == count_bytes(run.after.opt_state)
    # Adam's two moments of all parameters, and what is there once.
    moments = 2 * 4 * count_parameters(run.model.params)
    assert 0 < proof.unfrozen.optimizer_bytes - moments < 100
    assert proof.step.memory is not None and proof.unfrozen.memory is not None
    assert count_bytes(run.model.params) < proof.step.memory < proof.unfrozen.memory


def test_a_proof_can_be_read_and_written(proof: Proof) -> None:
    assert proof.unfrozen is not None
    assert json.loads(json.dumps(proof.to_dict()))["unfrozen"]["flops"] == proof.unfrozen.flops
    text = str(proof)
    assert (
        "plan top: 3 leaves with 44 parameters" in text and "are the same to the last bit" in text
    )
    assert "nothing frozen" in text and "this plan" in text


def test_models_are_compared_without_a_step(run: Run) -> None:
    trained = replace(run.model, params=run.after.params, stats=run.after.stats)
    found = prove_frozen(run.model, trained, plan=PLAN)
    assert found.step is None and found.frozen_leaves > 0
    assert "MFLOP" not in str(found)


def test_nothing_frozen_is_proved_as_well(model: Model, examples: ArrayData) -> None:
    state = one_step(model, examples, full(model)).after
    found = prove_frozen(model, state, plan=full(model))
    assert (found.frozen_leaves, found.frozen_statistics) == (0, 0)


def test_nan_that_stays_is_no_movement(run: Run) -> None:
    poisoned = with_subtree(run.model.params, "stem_bn/bias", jnp.full(4, jnp.nan))
    before = replace(run.model, params=poisoned)
    frozen = with_subtree(run.after.frozen, "stem_bn/bias", jnp.full(4, jnp.nan))
    assert prove_frozen(before, replace(run.after, frozen=frozen), plan=PLAN).frozen_leaves > 0


def test_what_cannot_train_is_frozen_in_the_unfrozen_step_too(examples: ArrayData) -> None:
    def forward(params: Any, x: Any) -> Any:
        chosen = x.reshape(len(x), -1)[:, params["table"]]
        return jnp.tanh(chosen @ params["body"]["kernel"]) @ params["head"]["kernel"]

    kernels = {name: {"kernel": jnp.ones((3, 3))} for name in ("body", "head")}
    model = Model.from_function(forward, {"table": jnp.array([5, 1, 9]), **kernels}, head="head")
    run = one_step(model, examples, HEAD)
    found = prove_frozen(model, run.after, run.step, run.batch, plan=HEAD, build=run.build)
    assert (found.frozen_parameters, found.trainable_parameters) == (12, 9)
    assert found.step is not None and found.unfrozen is not None
    assert found.step.optimizer_bytes < found.unfrozen.optimizer_bytes


# ---------------------------------------------------------------------------------------------
# Cheating


def test_a_frozen_leaf_that_moved_by_one_bit_is_found(run: Run) -> None:
    kernel = np.array(run.model.params["stem"]["kernel"])
    kernel.view(np.uint32)[1, 2, 0, 3] ^= 1
    frozen = with_subtree(run.after.frozen, "stem/kernel", jnp.asarray(kernel))
    with pytest.raises(FrozenError, match=r"\* stem/kernel: 1 of 36 numbers moved, by up to \d"):
        prove_frozen(run.model, replace(run.after, frozen=frozen), plan=PLAN)


def test_a_zero_that_changed_its_sign_is_found(run: Run) -> None:
    before = with_subtree(run.model.params, "stem_bn/bias", jnp.zeros(4))
    frozen = with_subtree(run.after.frozen, "stem_bn/bias", -jnp.zeros(4))
    with pytest.raises(FrozenError, match=r"stem_bn/bias: 4 of 4 numbers moved, by up to 0"):
        prove_frozen(
            replace(run.model, params=before), replace(run.after, frozen=frozen), plan=PLAN
        )


def test_a_frozen_statistic_that_moved_is_found(run: Run) -> None:
    stats = with_subtree(run.after.stats, "stem_bn/var", jnp.full(4, 1.5))
    with pytest.raises(
        FrozenError, match=r"\* stem_bn/var, a statistic: 4 of 4 numbers moved, by up to 0.5"
    ):
        prove_frozen(run.model, replace(run.after, stats=stats), plan=PLAN)


def test_all_problems_are_told_at_once(run: Run) -> None:
    frozen = with_subtree(run.after.frozen, "stem_bn/bias", jnp.full(4, jnp.nan))
    frozen = with_subtree(frozen, "stem_bn/scale", jnp.ones(5))
    frozen = with_subtree(frozen, "stem/kernel", None)
    stats = with_subtree(run.after.stats, "stem_bn/mean", jnp.zeros(4, jnp.bfloat16))
    with pytest.raises(FrozenError) as caught:
        prove_frozen(run.model, replace(run.after, frozen=frozen, stats=stats), plan=PLAN)
    for line in (
        " * stem_bn/bias: 4 of 4 numbers moved, by numbers that are not finite",
        " ~ stem_bn/scale: was (4,), is (5,)",
        " - stem/kernel: is missing",
        " - stem/kernel: is not in the state's frozen",
        " ~ stem_bn/mean, a statistic: was float32, is bfloat16",
    ):
        assert line in str(caught.value).splitlines()


def test_an_optimizer_state_of_frozen_leaves_is_found(run: Run) -> None:
    # What a mask over all gradients leaves behind: moments of everything.
    state = replace(run.after, opt_state=optax.scale_by_adam().init(run.model.params))
    with pytest.raises(FrozenError) as caught:
        prove_frozen(run.model, state, plan=PLAN)
    expected = " + stem/kernel: has an optimizer state, opt_state/mu/stem/kernel of shape"
    assert expected in str(caught.value)
    assert "body" not in str(caught.value)


def test_moments_under_other_names_are_found_where_the_optimizer_is_known(run: Run) -> None:
    flat, _ = jax.flatten_util.ravel_pytree(run.model.params)
    state = replace(run.after, opt_state=(run.after.opt_state, {"hidden": flat}))
    prove_frozen(run.model, state, plan=PLAN)  # by their names nobody could tell
    with pytest.raises(FrozenError, match=r"\+ opt_state/1/hidden: is in no optimizer of this pl"):
        prove_frozen(run.model, state, run.step, run.batch, plan=PLAN, build=run.build)


def test_a_moving_average_of_everything_is_found(run: Run) -> None:
    state = replace(run.after, ema=run.after.params)
    with pytest.raises(FrozenError, match=r"\+ stem/kernel: is in the state's ema"):
        prove_frozen(run.model, state, plan=PLAN)


@dataclass(frozen=True)
class GradientOfEverything:
    """A step that differentiates by everything, reads it, and updates what trains alone."""

    run: Run
    plan: Plan

    def lower(self, state: TrainState, batch: Any) -> Any:
        tx, model = self.plan.optimizer(0.01, weight_decay=0.1), self.run.model

        def step(state: TrainState) -> Any:
            def loss(params: Any) -> jax.Array:
                outputs, _ = model.apply(params, state.stats, batch["image"], train=False)
                return jnp.mean(cross_entropy()(outputs, batch))

            gradients = jax.grad(loss)(merge(state.trainable, state.frozen))
            chosen, _ = split(gradients, self.plan)
            with jax.numpy_dtype_promotion("standard"):
                updates, _ = tx.update(chosen, state.opt_state, state.trainable)
            return optax.apply_updates(state.trainable, updates), optax.tree.norm(gradients)

        return jax.jit(step).lower(state)


def test_a_gradient_through_everything_is_found(model: Model, examples: ArrayData) -> None:
    run = one_step(model, examples, HEAD)
    cheat: Any = GradientOfEverything(run, HEAD)
    with pytest.raises(
        FrozenError, match=r"\+ a gradient of what is frozen: a step costs .* MFLOP"
    ):
        prove_frozen(model, run.after, cheat, run.batch, plan=HEAD, build=run.build)
    found = prove_frozen(model, run.after, run.step, run.batch, plan=HEAD, build=run.build)
    assert found.step is not None and found.unfrozen is not None
    assert found.step.flops < 0.5 * found.unfrozen.flops


# ---------------------------------------------------------------------------------------------
# Questions that cannot be answered


def test_a_state_that_was_donated_is_refused(model: Model, examples: ArrayData) -> None:
    tx = PLAN.optimizer(0.01)
    step = make_train_step(model.apply, cross_entropy(), tx, PLAN)
    before = init_state(model, PLAN, tx)
    batch = {"image": jnp.asarray(examples.images[:8]), "label": jnp.asarray(examples.labels[:8])}
    after, _ = step(before, batch)
    with pytest.raises(TrainingError, match="found donated ones: .*give the model"):
        prove_frozen(replace(before, trainable=after.trainable), after, plan=PLAN)


def test_a_step_needs_what_it_is_measured_by(run: Run) -> None:
    with pytest.raises(TrainingError, match="with a step also a batch, .*NoneType, NoneType and T"):
        prove_frozen(run.model, run.after, run.step, plan=PLAN)


def test_a_plan_that_does_not_fit_is_refused(run: Run) -> None:
    with pytest.raises(PlanError, match="in no group"):
        prove_frozen(run.model, run.after, plan=Plan((Group("head/**"),)))
