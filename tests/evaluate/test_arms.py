import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.evaluate.arms import Arm, as_arms, reinitialise, start_of_arm, with_head


@pytest.fixture(scope="module")
def source():
    model = jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=3)
    return model.with_labels(["1", "x", "0"])


class Net(nn.Module):
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(4, name="body")(x.reshape(len(x), -1)))
        return nn.Dense(self.classes, name="head")(x)


def linen(seed, classes=3):
    net = Net(classes)
    variables = net.init(jax.random.key(seed), jnp.zeros((1, 2, 2, 1)))
    return jt.Model.from_linen(net, variables, stages=("body", "head"))


class Graph(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(4, 4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.body(x.reshape(len(x), -1))))


def graph(seed):
    return jt.Model.from_nnx(Graph(nnx.Rngs(seed)))


def function(seed):
    keys = jax.random.split(jax.random.key(seed))
    params = {
        name: {"kernel": jax.random.normal(key, (4, width))}
        for name, key, width in zip(("body", "head"), keys, (4, 3), strict=True)
    }
    return jt.Model.from_function(forward, params, stages=("body", "head"))


def forward(params, x):
    return jax.nn.relu(x.reshape(len(x), -1) @ params["body"]["kernel"]) @ params["head"]["kernel"]


def test_scratch_has_nothing_of_the_source(source):
    classes = ("0", "1", "2")
    scratch, plans = start_of_arm(Arm(from_scratch=True), source, classes, seed=0)
    difference = jt.diff(source.params, scratch.params)
    kernels = [name for name in jt.select(source.params, "**/kernel") if "head" not in name]
    other_source = reinitialise(source, 7)
    assert set(kernels) <= set(jt.diff(other_source.params, scratch.params).changed)
    assert difference.reshaped == ()
    assert plans[0].name == "full"


@pytest.mark.parametrize("build", [linen, graph, function])
def test_a_network_of_ones_own_gets_the_random_weights_that_are_given(build):
    model = build(0)
    scratch, _ = start_of_arm(Arm(from_scratch=True), model, 5, 3, build)
    wanted = build(3)
    for name in jt.leaf_names(model.params):
        if name.startswith("body"):
            np.testing.assert_array_equal(
                jt.tree.flatten(scratch.params)[name], jt.tree.flatten(wanted.params)[name]
            )
    assert scratch.num_classes == 5
    # One forward pass for all seeds, so that the steps are compiled once.
    other, _ = start_of_arm(Arm(from_scratch=True), model, 5, 4, build)
    assert scratch.apply == other.apply


def test_a_network_that_is_not_in_the_catalog_needs_random_weights():
    with pytest.raises(ModelError, match="or initialise=.* or leave scratch arms out"):
        reinitialise(function(0), 0)


def test_random_weights_of_another_network_are_refused():
    with pytest.raises(ModelError) as raised:
        reinitialise(linen(0), 0, lambda seed: linen(seed, classes=4))
    assert " ~ params/head/kernel" in str(raised.value)
    with pytest.raises(ModelError, match="params/body/bias: is missing"):
        reinitialise(linen(0), 0, function)
    with pytest.raises(ModelError, match="to a Model, found dict"):
        reinitialise(linen(0), 0, lambda seed: {})


def test_known_rows_are_kept_where_they_shall_be(source):
    kept = with_head(source, ("0", "1", "2"), 0)
    new = with_head(source, ("0", "1", "2"), 0, reuse=False)
    old = np.asarray(source.params["head"]["kernel"])
    np.testing.assert_array_equal(kept.params["head"]["kernel"][:, :2], old[:, [2, 0]])
    assert not np.isin(np.asarray(new.params["head"]["kernel"]), old).any()
    assert with_head(source, 7, 0).num_classes == 7


def test_parameters_that_are_no_dicts_keep_a_head_that_fits():
    params = [jnp.ones((4, 3))]
    model = jt.Model.from_function(
        lambda params, x: x.reshape(len(x), -1) @ params[0], params, labels=("a", "b", "c")
    )
    assert with_head(model, ("a", "b", "c"), 0) is model
    with pytest.raises(ModelError, match="parameters in nested dicts"):
        with_head(model, ("a", "b"), 0)


PLAN = jt.Plan((jt.Group("**"),), name="mine")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("last(1)", ["last(1)"]),
        (PLAN, ["mine"]),
        ((PLAN, PLAN), ["mine", "mine"]),
        (jt.lp_ft, ["lp_ft: head", "lp_ft: all"]),
        (lambda model: "probe", ["probe"]),
        (Arm("full"), ["full"]),
    ],
)
def test_an_arm_may_be_given_in_many_ways(value, names):
    (arm,) = as_arms({"any": value}).values()
    assert arm is not None
    _, plans = start_of_arm(arm, linen(0), 3, 0)
    assert [plan.name for plan in plans] == names


def test_naive_and_scratch_are_known_by_name_and_by_value():
    arms = as_arms({"a": None, "b": "naive", "c": "scratch"})
    assert arms["a"] is None and arms["b"] is None
    assert arms["c"] == as_arms(["scratch"])["scratch"] == Arm(from_scratch=True)


@pytest.mark.parametrize("arms", ["probe", (), {}, {"a": 3}])
def test_what_is_no_arm_is_refused(arms):
    with pytest.raises(ModelError, match="expected arms"):
        as_arms(arms)


def test_an_arm_starts_from_its_own_source():
    one, other = linen(1), linen(2)
    start, _ = start_of_arm(Arm(source=other), one, 3, 0)
    assert start.params["body"] is other.params["body"]
    scratch, _ = start_of_arm(Arm(source=other, from_scratch=True), one, 3, 0, linen)
    assert scratch.params["body"] is not other.params["body"]


def test_settings_may_be_made_for_the_model_with_its_head():
    start, _ = start_of_arm(Arm(), linen(0), 5, 0)
    arm = Arm(settings=lambda model: {"regularisers": jt.l2_sp(model)})
    assert arm.kept(start)["regularisers"].source["body/kernel"] is start.params["body"]["kernel"]
    with pytest.raises(ModelError, match=r"found \['batch_size'\]"):
        Arm(settings={"batch_size": 3}).kept(start)
