from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxtransfer.errors import PlanError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan, freeze_until, full, last, norm_only, probe
from jaxtransfer.surgery import replace_head
from jaxtransfer.train.precision import BFLOAT16
from jaxtransfer.train.prefix import StartAt, depends_on, find_prefix, frozen_prefix

FROZEN = Group("**", frozen=True)
IMAGES = jax.ShapeDtypeStruct((2, 4), jnp.float32)


# ---------------------------------------------------------------------------------------------
# Plans of all kinds


@pytest.mark.parametrize(
    ("plan", "stage"),
    [
        (probe, "head"),
        (lambda model: last(model, 2), "neck"),
        (lambda model: freeze_until(model, "body"), "body"),
        (full, None),
        (norm_only, None),
        # Frozen in the middle only: what is below trains.
        (lambda model: Plan((Group("body/**", frozen=True), Group("**"))), None),
        # Parameters frozen, statistics not: what enters the next stage depends on the batch.
        (lambda model: Plan((Group("head/**"), Group("**", frozen=True, stats="update"))), None),
        (
            lambda model: Plan(
                (Group("head/**"), Group("neck/**", frozen=True, stats="update"), FROZEN)
            ),
            "neck",
        ),
    ],
)
def test_what_is_below_the_stage_is_left_alone(staged: Model, plan: Any, stage: str) -> None:
    assert frozen_prefix(staged, plan(staged), IMAGES) == stage


def test_the_reason_names_the_stage_that_ends_it(staged: Model) -> None:
    updating = Plan((Group("head/**"), Group("**", frozen=True, stats="update")))
    assert find_prefix(staged, full(staged), IMAGES) == (None, "stem trains")
    assert find_prefix(staged, updating, IMAGES)[1] == "stem has statistics that follow the data"


def test_dropout_of_frozen_modules_is_off(staged_with_dropout: Model) -> None:
    assert frozen_prefix(staged_with_dropout, probe(staged_with_dropout), IMAGES) == "head"


def test_dropout_that_acts_ends_the_prefix() -> None:
    """A frozen parameter whose dropout is not in a frozen module: the network itself drops."""

    def apply(
        params: Any,
        inputs: Any,
        *,
        train: bool,
        rngs: Any = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> Any:
        for stage in ("stem", "body", "head")[("stem", "body", "head").index(start or "stem") :]:
            if stage == stop:
                return inputs
            inputs = inputs @ params[stage]
            if stage == "body" and train:
                kept = jax.random.bernoulli(rngs["dropout"], 0.5, inputs.shape)
                inputs = jnp.where(kept, inputs, 0)
        return inputs

    params = {stage: jnp.ones((4, 4)) for stage in ("stem", "body", "head")}
    model = Model.from_function(apply, params, head="head", stages=tuple(params))
    plan = Plan((Group("head"), FROZEN))
    assert find_prefix(model, plan, IMAGES) == ("body", "body has dropout or drop path, which acts")


def test_what_differs_in_training_without_chance_ends_the_prefix() -> None:
    """Normalising by the batch needs neither statistics nor a random key."""

    def apply(
        params: Any,
        inputs: Any,
        *,
        train: bool,
        start: str | None = None,
        stop: str | None = None,
    ) -> Any:
        if start is None:
            inputs = inputs @ params["stem"]
            inputs = inputs - inputs.mean(0) if train else inputs
        return inputs if stop == "head" else inputs @ params["head"]

    params = {"stem": jnp.ones((4, 4)), "head": jnp.ones((4, 2))}
    model = Model.from_function(apply, params, head="head", stages=("stem", "head"))
    found, reason = find_prefix(model, Plan((Group("head"), FROZEN)), IMAGES)
    assert found is None and reason == "stem computes in training what it does not in evaluation"


# ---------------------------------------------------------------------------------------------
# Networks of all kinds


class Uncut(nn.Module):
    """A network that knows no stages."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.tanh(nn.Dense(5, name="stem")(x))
        return nn.Dense(3, name="head")(x)


@pytest.fixture(scope="module")
def uncut() -> Model:
    variables = Uncut().init(jax.random.key(0), jnp.ones((1, 4)), train=False)
    return Model.from_linen(Uncut(), variables, stages=("stem", "head"))


def test_a_network_that_cannot_be_cut_has_none(uncut: Model) -> None:
    found, reason = find_prefix(uncut, probe(uncut), IMAGES)
    assert found is None
    assert reason == "the network cannot begin its forward pass at a stage, by start="


def test_a_head_of_surgery_begins_by_itself(uncut: Model) -> None:
    model = replace_head(uncut, 2)
    assert frozen_prefix(model, probe(model), IMAGES) == "head"
    assert frozen_prefix(model, full(model), IMAGES) is None


class ByNnx(nnx.Module):
    """Two stages that can be cut, with dropout between."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.stem = nnx.Linear(4, 5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x: Any, start: str | None = None, stop: str | None = None) -> Any:
        x = self.stem(x) if start is None else x
        return x if stop == "head" else self.head(self.drop(x))


def test_a_network_of_nnx() -> None:
    model = Model.from_nnx(ByNnx())
    assert frozen_prefix(model, probe(model), IMAGES) == "head"


def test_a_network_that_fails_to_be_cut_has_none() -> None:
    def apply(
        params: Any, inputs: Any, *, start: str | None = None, stop: str | None = None
    ) -> Any:
        raise KeyError(stop)

    model = Model.from_function(apply, {"stem": jnp.ones(2), "head": jnp.ones(2)}, head="head")
    found, reason = find_prefix(model, Plan((Group("head"), FROZEN)), IMAGES)
    assert found is None and reason == "the network cannot be cut before head: 'head'"


def test_the_spec_says_what_enters(network: Model) -> None:
    assert frozen_prefix(network, probe(network)) == "head"
    assert frozen_prefix(network, last(network, 2), precision=BFLOAT16) == "layer3"


def test_without_a_size_inputs_are_asked_for(staged: Model) -> None:
    with pytest.raises(TrainingError, match="expected inputs for Staged"):
        frozen_prefix(staged, probe(staged))


def test_a_plan_that_does_not_fit_is_an_error(staged: Model) -> None:
    with pytest.raises(PlanError, match="nothing"):
        frozen_prefix(staged, Plan((Group("nothing/**"), FROZEN)), IMAGES)


# ---------------------------------------------------------------------------------------------
# The parts


def test_the_rest_of_a_network_gives_what_the_whole_does(staged: Model) -> None:
    images = jax.random.normal(jax.random.key(1), (3, 4))
    arrays = (staged.params, staged.stats)
    whole, _ = staged.apply(*arrays, images, train=False)
    entering, _ = staged.apply(*arrays, images, train=False, stop="neck")
    rest = StartAt(staged.apply, "neck")
    assert jnp.array_equal(rest(*arrays, entering, train=False)[0], whole)
    assert rest(*arrays, entering, train=False, stop="neck")[0] is entering
    head, _ = rest(*arrays, entering, train=False, stop="head")
    assert jnp.array_equal(rest(*arrays, head, train=False, start="head")[0], whole)


def test_dependence_is_seen_through_calls() -> None:
    @jax.jit
    def inner(x: Any, y: Any, z: Any) -> Any:
        return x + 1, y * z

    found = depends_on(lambda tree, z: inner(tree["x"], tree["y"], z)[0], {"x": 1.0, "y": 2.0}, 3.0)
    assert found == [True, False, False]
