from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtransfer.errors import PlanError
from jaxtransfer.partition import OPTIMIZERS, Group, Plan
from jaxtransfer.surgery import stack_blocks, unstack_blocks
from jaxtransfer.tree import flatten, leaf_names, named_leaves, split

ALL = Plan((Group("**"),))
RATE = 0.01
FACTOR = optax.cosine_decay_schedule(1.0, 6, 0.2)


def is_kernel(tree: Any) -> Any:
    """Which leaves of the test's tree weight decay is for."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


def reference(
    name: str, decay: float, rate: Any = RATE, mask: Any = is_kernel
) -> optax.GradientTransformation:
    """What Optax has of this name: its own functions where they take a mask or none is asked."""

    def at(step: Any) -> Any:
        return rate(step) if callable(rate) else rate

    def after(direction: optax.GradientTransformation) -> optax.GradientTransformation:
        decayed = optax.add_decayed_weights(decay, mask)
        return optax.chain(direction, decayed, optax.scale_by_learning_rate(rate))

    def averaged(direction: optax.GradientTransformation) -> optax.GradientTransformation:
        # Optax counts from 1 here, and from 0 in the step before it.
        return optax.contrib.schedule_free(after(direction), lambda step: at(step - 1), b1=0.9)

    def sharp(inner: optax.GradientTransformation) -> optax.GradientTransformation:
        uphill = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
        return optax.contrib.sam(inner, uphill, opaque_mode=True)

    adamw = functools.partial(optax.adamw, rate, weight_decay=decay, mask=mask)
    makers = {
        "adamw": adamw,
        "sgd": lambda: after(optax.trace(0.9)) if decay else optax.sgd(rate, momentum=0.9),
        "lion": lambda: optax.lion(rate, weight_decay=decay, mask=mask),
        "rmsprop": lambda: after(optax.scale_by_rms()) if decay else optax.rmsprop(rate),
        "lamb": lambda: optax.lamb(rate, weight_decay=decay, mask=mask),
        "lars": lambda: optax.lars(rate, decay, weight_decay_mask=True if mask is None else mask),
        "adafactor": lambda: optax.adafactor(
            rate, weight_decay_rate=lambda step: decay * at(step), weight_decay_mask=mask
        ),
        "muon": lambda: (
            optax.contrib.muon(rate, weight_decay=decay, adam_weight_decay=decay)
            if mask is None
            else after(optax.contrib.muon(-1.0))
        ),
        "adopt": lambda: (
            after(optax.contrib.scale_by_adopt()) if decay else optax.contrib.adopt(rate)
        ),
        "prodigy": lambda: optax.contrib.prodigy(rate, weight_decay=decay),
        "schedule_free_adamw": lambda: (
            averaged(optax.scale_by_rms(0.999, 1e-8, eps_in_sqrt=False, bias_correction=True))
            if callable(rate) or mask is not None
            else optax.contrib.schedule_free_adamw(rate, weight_decay=decay)
        ),
        "schedule_free_sgd": lambda: (
            averaged(optax.identity())
            if callable(rate) or mask is not None
            else optax.contrib.schedule_free_sgd(rate, weight_decay=decay)
        ),
        "sam": lambda: sharp(after(optax.trace(0.9))),
        "sam_adamw": lambda: sharp(adamw()),
    }
    return makers[name]()


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "body": {
            "conv": {"kernel": array(3, 3, 2, 4)},
            "bn": {"bias": array(4), "scale": array(4)},
        },
        "hole": {"kernel": None},
        "head": {"bias": array(5), "kernel": array(4, 5)},
    }


def gradients_of(tree: Any, step: Any) -> Any:
    """Gradients that depend on the leaf and the step alone."""
    step = jnp.asarray(step, jnp.float32)
    return jax.tree.map(lambda leaf: jnp.sin(leaf * jnp.float32(3) + step), tree)


def run(tx: optax.GradientTransformation, tree: Any, steps: int = 8) -> list[Any]:
    """The parameters after each step; the types of the state must stay what they were."""
    update = optax.with_extra_args_support(tx).update

    def step(carried: tuple[Any, Any], number: jax.Array) -> tuple[Any, Any]:
        tree, state = carried
        with jax.numpy_dtype_promotion("standard"):  # which Optax needs
            updates, state = update(
                gradients_of(tree, number),
                state,
                tree,
                grad_fn=lambda at, _: gradients_of(at, number),
            )
        tree = optax.apply_updates(tree, updates)
        return (tree, state), tree

    @jax.jit
    def scan(tree: Any) -> Any:
        return jax.lax.scan(step, (tree, tx.init(tree)), jnp.arange(steps))[1]

    trees = jax.tree.map(np.asarray, scan(tree))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], trees) for i in range(steps)]


def assert_close(ours: Any, theirs: Any) -> None:
    assert leaf_names(ours) == leaf_names(theirs)
    for (name, a), b in zip(named_leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7, err_msg=name)


# ---------------------------------------------------------------------------------------------
# The same as Optax


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_group_is_the_optimizer_of_optax(name: str, params: Any) -> None:
    plain = {**params, "large": {"kernel": jnp.ones((128, 130))}} if name == "adafactor" else params
    decay_all = name == "prodigy"  # that of Optax takes no mask
    plan = Plan((Group("**", decay_all=decay_all),))
    tx = plan.optimizer(RATE, optimizer=name, weight_decay=0.3, schedule=FACTOR)
    mask = None if decay_all else is_kernel
    theirs = reference(name, 0.3, lambda step: RATE * FACTOR(step), mask)
    for a, b in zip(run(tx, plain), run(theirs, plain), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", ["adopt", "muon", "rmsprop", "schedule_free_adamw"])
def test_weight_decay_of_all_leaves_is_that_of_optax_without_a_mask(name: str, params: Any) -> None:
    decay = 0.0 if name in ("adopt", "rmsprop") else 0.3  # of which Optax has none
    tx = Plan((Group("**", decay_all=True),)).optimizer(RATE, optimizer=name, weight_decay=decay)
    theirs = reference(name, decay, RATE, None)
    assert_close(run(tx, params)[-1], run(theirs, params)[-1])


@pytest.mark.parametrize(
    ("name", "other"),
    [("sgd", "lion"), ("muon", "adamw"), ("prodigy", "sgd"), ("sam", "schedule_free_sgd")],
)
def test_each_of_two_groups_is_its_own_optimizer_alone(name: str, other: str, params: Any) -> None:
    plan = Plan((Group("head/**", optimizer=name, weight_decay=0.2, decay_all=True), Group("**")))
    last = run(plan.optimizer(RATE, optimizer=other, weight_decay=0.1), params)[-1]
    assert_close(last["head"], run(reference(name, 0.2, mask=None), params["head"])[-1])
    assert_close(last["body"], run(reference(other, 0.1), params["body"])[-1])


@pytest.mark.parametrize(
    "name", ["adamw", "lamb", "lars", "adafactor", "prodigy", "schedule_free_sgd"]
)
def test_the_scale_of_a_group_is_a_factor_on_its_learning_rate(name: str, params: Any) -> None:
    plan = Plan((Group("head/**", lr_scale=0.25), Group("body/**", optimizer="sgd")))
    scaled = run(plan.optimizer(RATE, optimizer=name, weight_decay=0.3), params)[-1]
    slower = ALL.optimizer(RATE * 0.25, optimizer=name, weight_decay=0.3)
    assert_close(scaled["head"], run(slower, params["head"])[-1])


def test_prodigy_stands_still_until_a_gradient_meets_a_rate(params: Any) -> None:
    def warm_up(step: Any) -> Any:
        return jnp.where(step < 2, 0.0, 1.0)

    trees = run(ALL.optimizer(1.0, optimizer="prodigy", schedule=warm_up), params["head"])
    assert_close(trees[1], params["head"])
    assert np.isfinite(trees[-1]["kernel"]).all()
    assert np.abs(trees[-1]["kernel"] - params["head"]["kernel"]).max() > 0


def test_an_optimizer_of_ones_own_is_a_direction(params: Any) -> None:
    plan = Plan((Group("head/**", optimizer="mine"), Group("**")))
    tx = plan.optimizer(
        RATE, weight_decay=0.3, optimizers={"mine": lambda: optax.scale_by_yogi(b1=0.8)}
    )
    theirs = optax.chain(
        optax.scale_by_yogi(b1=0.8), optax.add_decayed_weights(0.3, is_kernel), optax.scale(-RATE)
    )
    last = run(tx, params)[-1]
    assert_close(last["head"], run(theirs, params["head"])[-1])
    assert_close(last["body"], run(reference("adamw", 0.3), params["body"])[-1])


def test_the_radius_of_sharpness_can_be_another(params: Any) -> None:
    wide = dataclasses.replace(OPTIMIZERS["sam"], radius=0.5)
    tx = ALL.optimizer(RATE, optimizer="wide", optimizers={"wide": wide})
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(0.5))
    theirs = optax.contrib.sam(optax.sgd(RATE, momentum=0.9), uphill, opaque_mode=True)
    assert_close(run(tx, params)[-1], run(theirs, params)[-1])


def test_the_gradient_uphill_is_the_one_that_is_clipped(params: Any) -> None:
    tx = ALL.optimizer(1.0, optimizer="sam", clip_norm=0.5)
    updates, _ = tx.update(
        gradients_of(params, 0),
        tx.init(params),
        params,
        grad_fn=lambda at, _: jax.tree.map(lambda leaf: leaf * jnp.float32(100), at),
    )
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5, rel=1e-5)


def test_sharpness_needs_a_second_gradient(params: Any) -> None:
    tx = ALL.optimizer(RATE, optimizer="sam")
    with pytest.raises(PlanError, match="grad_fn=…"):
        tx.update(gradients_of(params, 0), tx.init(params), params)


# ---------------------------------------------------------------------------------------------
# Scanned blocks


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "muon"])
def test_scanned_blocks_train_as_blocks_one_by_one(name: str, params: Any) -> None:
    names, scales = ("block0", "block1"), (0.25, 0.75)
    block = {**params["body"]["bn"], "kernel": params["head"]["kernel"]}
    tree = {
        "block0": block,
        "block1": jax.tree.map(lambda leaf: leaf * jnp.float32(3), block),
        "head": {"kernel": params["head"]["kernel"]},
    }
    apart = [Group(f"{b}/**", lr_scale=s) for b, s in zip(names, scales, strict=True)]
    ours, theirs = (
        run(
            Plan((*groups, Group("head/**"))).optimizer(RATE, optimizer=name, weight_decay=0.3),
            start,
        )[-1]
        for groups, start in (
            ([Group("blocks/**", lr_scale=scales)], stack_blocks(tree, names)),
            (apart, tree),
        )
    )
    assert_close(unstack_blocks(ours), theirs)


def test_there_must_be_as_many_blocks_as_factors(params: Any) -> None:
    plan = Plan((Group("head/bias", lr_scale=(0.5, 1.0)), Group("**")))
    with pytest.raises(PlanError, match=r"head/bias: 2 factors in lr_scale .* shape \(5,\)"):
        plan.optimizer(RATE).init(params)
    with pytest.raises(PlanError, match=r"head/bias: 2 factors in lr_scale .* shape \(5,\)"):
        plan.check(params, {})


def test_a_scale_of_zero_stands_still_without_being_frozen(params: Any) -> None:
    plan = Plan((Group("head/**", lr_scale=0.0), Group("**")))
    last = run(plan.optimizer(RATE, weight_decay=0.3), params)[-1]
    assert_close(last["head"], params["head"])
    assert plan.chooses(leaf_names(params)) == (True,) * 5


# ---------------------------------------------------------------------------------------------
# Weight decay and clipping


def test_weight_decay_touches_kernels_alone(params: Any) -> None:
    tx = ALL.optimizer(RATE, optimizer="sgd", weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    for name, update in named_leaves(updates):
        if name.endswith("kernel"):
            np.testing.assert_allclose(update, -RATE * 0.5 * flatten(params)[name], rtol=1e-6)
        else:
            assert not np.asarray(update).any(), name


def test_a_groups_weight_decay_replaces_the_common_one(params: Any) -> None:
    plan = Plan((Group("head/**", weight_decay=0.0), Group("**")))
    last = run(plan.optimizer(RATE, weight_decay=0.4), params)[-1]
    assert_close(last["head"], run(reference("adamw", 0.0), params["head"])[-1])
    assert_close(last["body"], run(reference("adamw", 0.4), params["body"])[-1])


def test_the_clip_norm_is_that_of_all_trainable_gradients(params: Any) -> None:
    plan = Plan((Group("head/**", optimizer="rmsprop"), Group("**/bn/*"), Group("**", frozen=True)))
    trainable, frozen = split(params, plan)
    gradients = jax.tree.map(lambda leaf: leaf * jnp.float32(100), trainable)
    norm = np.sqrt(sum(np.square(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(gradients)))
    scaled = jax.tree.map(lambda leaf: leaf * jnp.float32(0.5 / norm), gradients)
    clipping = plan.optimizer(1.0, optimizer="sgd", clip_norm=0.5)
    free = plan.optimizer(1.0, optimizer="sgd")
    clipped, _ = clipping.update(gradients, clipping.init(trainable), trainable)
    expected, _ = free.update(scaled, free.init(trainable), trainable)
    assert_close(clipped, expected)
    assert jax.tree.leaves(frozen)  # whose gradients, if there were any, would not count


def test_small_gradients_are_not_clipped(params: Any) -> None:
    clipped = run(ALL.optimizer(RATE, clip_norm=1e6), params)[-1]
    assert_close(clipped, run(ALL.optimizer(RATE), params)[-1])


# ---------------------------------------------------------------------------------------------
# The learning rate


def test_the_learning_rate_in_the_state_can_be_changed(params: Any) -> None:
    tx = ALL.optimizer(RATE, weight_decay=0.3)
    state = tx.init(params)
    assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(RATE)
    state = optax.tree.set(state, learning_rate=jnp.float32(RATE * 4))
    gradients = gradients_of(params, 0)
    with jax.numpy_dtype_promotion("standard"):
        changed, _ = tx.update(gradients, state, params)
        before, _ = tx.update(gradients, tx.init(params), params)
    assert_close(changed, jax.tree.map(lambda leaf: leaf * jnp.float32(4), before))


def test_the_schedule_is_a_factor_on_the_learning_rate(params: Any) -> None:
    def factor(step: Any) -> Any:
        return jnp.where(step < 3, 1.0, 0.0)

    trees = run(ALL.optimizer(RATE, weight_decay=0.3, schedule=factor), params)
    assert_close(trees[2], run(reference("adamw", 0.3), params, 3)[-1])
    assert_close(trees[-1], trees[2])


def test_the_learning_rate_may_be_a_schedule_itself(params: Any) -> None:
    schedule = optax.linear_schedule(RATE, 0.0, 5)
    ours = run(ALL.optimizer(schedule), params)[-1]
    assert_close(ours, run(optax.adamw(schedule, weight_decay=0.0), params)[-1])


# ---------------------------------------------------------------------------------------------
# The state, and errors


def test_the_state_holds_the_trainable_leaves_alone(params: Any) -> None:
    plan = Plan((Group("head/**"), Group("**/bn/*", optimizer="sgd"), Group("**", frozen=True)))
    trainable, _ = split(params, plan)
    state = plan.optimizer(RATE).init(trainable)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert shapes == [(4,), (4,), (4, 5), (4, 5), (5,), (5,)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_learning_rate_of_every_optimizer_is_in_the_state_once(name: str, params: Any) -> None:
    tx = ALL.optimizer(1.0, optimizer=name, schedule=FACTOR)
    state = optax.tree.set(tx.init(params), learning_rate=jnp.float32(RATE))
    (found,) = optax.tree.get_all_with_path(state, "learning_rate")
    assert found[1] == jnp.float32(RATE)
    kept = {id(leaf) for leaf in jax.tree.leaves(state)}
    assert not kept & {id(leaf) for leaf in jax.tree.leaves(params)}  # a step donates both


def test_the_rate_in_the_state_is_the_one_that_counts(params: Any) -> None:
    head = params["head"]
    tx, fixed = (
        ALL.optimizer(rate, optimizer="schedule_free_sgd", schedule=FACTOR) for rate in (1.0, RATE)
    )
    state = optax.tree.set(tx.init(head), learning_rate=jnp.float32(RATE))
    with jax.numpy_dtype_promotion("standard"):
        ours, _ = tx.update(gradients_of(head, 0), state, head)
        theirs, _ = fixed.update(gradients_of(head, 0), fixed.init(head), head)
    assert_close(ours, theirs)
    assert float(optax.tree.norm(ours)) > 0


@pytest.mark.parametrize("optimizers", [(None, None), ("adamw", "sgd")])
def test_a_tree_with_frozen_leaves_is_refused(optimizers: tuple[Any, Any], params: Any) -> None:
    plan = Plan(
        (
            Group("head/kernel", optimizer=optimizers[0]),
            Group("head/**", optimizer=optimizers[1]),
            Group("**", frozen=True),
        )
    )
    with pytest.raises(PlanError, match=r"freezes: \['body/bn/bias', .*take the first half"):
        plan.optimizer(RATE).init(params)


def test_a_tree_with_unknown_leaves_is_refused(params: Any) -> None:
    with pytest.raises(PlanError, match=r"in no group: \['body/bn/bias', .*first half of split"):
        Plan((Group("head/**"),)).optimizer(RATE).init(params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": "adam"},
            "adopt, prodigy, schedule_free_adamw, schedule_free_sgd, sam, sam_adamw, found adam;",
        ),
        ({"weight_decay": -1e-4}, "weight_decay: expected a number from 0, found -0.0001"),
        ({"weight_decay": float("nan")}, "weight_decay: expected a number from 0, found nan"),
        ({"clip_norm": 0.0}, "clip_norm: expected a number above 0 or None, found 0.0"),
        ({"clip_norm": float("inf")}, "clip_norm: expected a number above 0 or None, found inf"),
    ],
)
def test_an_option_out_of_range_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        ALL.optimizer(RATE, **options)


@pytest.mark.parametrize("name", ["adamw", "lars", "adafactor", "prodigy", "schedule_free_sgd"])
def test_weight_decays_that_are_traced_are_those_of_numbers(name: str) -> None:
    tree = {"head": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "bias": jnp.ones(3)}}
    slopes = jax.tree.map(lambda leaf: 0.5 * leaf + 0.1, tree)

    def moved(weight_decay: Any) -> Any:
        tx = ALL.optimizer(RATE, optimizer=name, weight_decay=weight_decay)
        # As a step does it: Optax raises floats to integer powers.
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = tx.update(slopes, tx.init(tree), tree)
        return optax.apply_updates(tree, updates)

    decays = (0.0, 0.3, 2.0)
    together = jax.vmap(moved)(jnp.asarray(decays))
    for number, decay in enumerate(decays):
        alone = named_leaves(moved(decay))
        for (_, leaf), (_, leaves) in zip(alone, named_leaves(together), strict=True):
            np.testing.assert_allclose(leaves[number], leaf, rtol=1e-5, atol=1e-7)
