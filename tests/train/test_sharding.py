from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model, init
from jaxtransfer.partition import Group, Plan
from jaxtransfer.train import Sharding, TrainState, cross_entropy, init_state, make_train_step
from jaxtransfer.tree import flatten, split

FROZEN = Group("stem/**", frozen=True)
STEPS = 3
# The kernels of the test networks are small: all but biases and scales are cut.
SMALL = 100


def devices(count: int) -> tuple[jax.Device, ...]:
    return tuple(jax.devices()[:count])


def sharding(count: int = 8, **sizes: Any) -> Sharding:
    return Sharding(**{"min_size": SMALL, "devices": devices(count), **sizes})


# ---------------------------------------------------------------------------------------------
# The mesh


def test_by_default_all_devices_are_data() -> None:
    found = Sharding()
    assert found.sizes == {"data": 8, "fsdp": 1, "tensor": 1}
    assert found.mesh.devices.ravel().tolist() == jax.devices()


def test_data_is_what_the_other_axes_leave() -> None:
    found = Sharding(fsdp=2, tensor=2)
    assert Sharding(fsdp=np.int64(2), tensor=np.int32(2)) == found
    assert found.sizes == {"data": 2, "fsdp": 2, "tensor": 2}
    assert found.mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}


def test_the_compiler_chooses_the_layouts_of_what_is_computed() -> None:
    # Under `AxisType.Explicit`, lookups in an embedding are errors.
    assert Sharding().mesh.axis_types == (AxisType.Auto,) * 3


def test_neighbours_in_the_list_are_neighbours_on_the_last_axis() -> None:
    ids = [
        [[device.id for device in row] for row in block]
        for block in sharding(tensor=2).mesh.devices
    ]
    assert ids[:2] == [[[0, 1]], [[2, 3]]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 3}, "fsdp 3 x tensor 1 = 3 for 8 devices; .* divides"),
        ({"data": 2, "fsdp": 2}, "data 2 x fsdp 2 x tensor 1 = 4 for 8 devices; .* is the number"),
        ({"data": 16}, "data 16 x .* = 16 for 8 devices"),
        ({"data": 0, "tensor": -1}, "data 0, tensor -1; give whole numbers from 1"),
        ({"fsdp": 2.0}, "fsdp 2.0; give whole numbers"),
        ({"devices": ()}, "for 0 devices"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_an_error(sizes: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Sharding(**sizes)


def test_all_bad_rules_are_named_at_once() -> None:
    rules = (
        ("head/kernel", ("tensor", "tensor")),
        ("stem/**", ("model",)),
        ("norm/**", "data"),
        "head/**",
    )
    with pytest.raises(TrainingError) as error:
        Sharding(rules=rules)
    for text in ("'head/kernel': the axes", "'stem/**': the axes ['model']", "'norm/**', 'data')"):
        assert text in str(error.value)
    assert "rule 'head/**': no pair" in str(error.value)


def test_equal_shardings_are_one_key() -> None:
    first = Sharding(fsdp=2, rules=[["head/*", [None, ["data", "fsdp"]]]])
    second = Sharding(4, 2, rules=(("head/*", P(None, ("data", "fsdp"))),), devices=devices(8))
    assert first == second and hash(first) == hash(second) and first.mesh == second.mesh
    assert first != Sharding(fsdp=2) != Sharding(fsdp=4)


def test_a_description_is_json() -> None:
    rules = ((re.compile(".*bias"), ()), ("head/kernel", (("data", "fsdp"), "tensor")))
    found = Sharding(fsdp=2, tensor=2, rules=rules)
    assert json.loads(json.dumps(found.to_dict())) == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
        "rules": [[".*bias", []], ["head/kernel", [["data", "fsdp"], "tensor"]]],
        "min_size": 16384,
        "devices": ["cpu"],
        "processes": 1,
    }


# ---------------------------------------------------------------------------------------------
# Layouts


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def specs(sharding: Sharding, tree: Any) -> dict[str, P]:
    return {name: found.spec for name, found in flatten(sharding.of(tree)).items()}


def block(width: int, *more: int) -> dict[str, Any]:
    dense = {"kernel": shape(*more, width, width), "bias": shape(*more, width)}
    attention = {name: dense for name in ("query", "key", "value", "out")}
    return {"attention": attention, "mlp": {"dense1": dense, "dense2": dense}}


@pytest.mark.parametrize("more", [(), (3,)], ids=["a block", "scanned blocks"])
def test_attention_and_mlp_are_cut_by_columns_and_then_by_rows(more: tuple[int, ...]) -> None:
    # Shoeybi et al. 2019, figure 3: the first product by columns, the second one by rows.
    found = specs(sharding(tensor=8), block(16, *more))
    scanned = (None,) * len(more)
    columns, rows = P(*scanned, None, "tensor"), P(*scanned, "tensor")
    for name in ("attention/query", "attention/key", "attention/value", "mlp/dense1"):
        assert found[f"{name}/kernel"] == columns
    for name in ("attention/out", "mlp/dense2"):
        assert found[f"{name}/kernel"] == rows
    assert all(spec == P() for name, spec in found.items() if name.endswith("bias"))


def test_fsdp_cuts_the_largest_axis_that_it_divides() -> None:
    tree = {
        "wide": shape(12, 96),
        "tall": shape(96, 12),
        "odd": shape(99, 12),
        "prime": shape(11, 13),
        "small": shape(8, 8),
    }
    assert specs(sharding(fsdp=4), tree) == {
        "wide": P(None, "fsdp"),
        "tall": P("fsdp"),
        "odd": P(None, "fsdp"),
        "prime": P(),
        "small": P(),
    }
    assert set(specs(Sharding(fsdp=4), tree).values()) == {P()}  # 2**14 numbers and more


def test_fsdp_and_tensor_cut_different_axes() -> None:
    tree = {"mlp": {"dense1": {"kernel": shape(16, 64)}, "dense2": {"kernel": shape(64, 16)}}}
    assert specs(sharding(fsdp=2, tensor=2), tree) == {
        "mlp/dense1/kernel": P("fsdp", "tensor"),
        "mlp/dense2/kernel": P("tensor", "fsdp"),
    }


def test_what_tensor_does_not_divide_is_left_whole() -> None:
    assert specs(sharding(tensor=8), {"head": {"kernel": shape(64, 10)}}) == {"head/kernel": P()}


def test_the_first_rule_that_matches_wins_whatever_the_size() -> None:
    rules = (("head/kernel", ("tensor",)), ("**/kernel", ()), (re.compile(".*bias"), ("fsdp",)))
    tree = {name: {"kernel": shape(64, 64), "bias": shape(4)} for name in ("head", "stem")}
    assert specs(sharding(fsdp=2, tensor=2, rules=rules), tree) == {
        "head/kernel": P("tensor"),
        "stem/kernel": P(),
        "head/bias": P("fsdp"),
        "stem/bias": P("fsdp"),
    }


def test_axes_of_one_device_and_trailing_nones_are_no_part_of_a_layout() -> None:
    found = sharding(fsdp=2, rules=(("a", (("fsdp", "tensor"), None)), ("b", ("tensor", None))))
    assert specs(found, {"a": shape(4, 4), "b": shape(4, 4)}) == {"a": P("fsdp"), "b": P()}


def test_rules_that_do_not_fit_are_named_at_once_with_the_nearest_names() -> None:
    rules = (("haed/*", ()), ("head/kernel", (None, "fsdp")), ("head/bias", (None, None)))
    tree = {"head": {"kernel": shape(4, 3), "bias": shape(3)}}
    with pytest.raises(TrainingError) as error:
        sharding(fsdp=2, rules=rules).of(tree)
    message = str(error.value)
    assert "rule 'haed/*': matches no parameter; the nearest names are head/" in message
    assert "head/kernel: axis 1 of the shape (4, 3) in 2 parts along fsdp" in message
    assert "head/bias: a layout of 2 axes for the shape (3,)" in message


def test_a_rule_that_an_earlier_one_leaves_nothing_is_no_error() -> None:
    found = sharding(fsdp=2, rules=(("**", ()), ("head", ("fsdp",))))
    assert specs(found, {"head": shape(64, 64)}) == {"head": P()}


def test_fields_of_a_module_are_parts_of_names() -> None:
    linear = eqx.filter_eval_shape(eqx.nn.Linear, 16, 16, key=jax.random.key(0))
    found = sharding(fsdp=2, rules=(("weight", ("fsdp",)), ("bias", ())))
    assert specs(found, linear) == {"weight": P("fsdp"), "bias": P()}


# ---------------------------------------------------------------------------------------------
# States


PLAN = Plan((FROZEN, Group("**")))


@pytest.fixture(scope="module")
def state(network: Model) -> TrainState:
    tx = PLAN.optimizer(0.01, clip_norm=1.0)
    return init_state(network, PLAN, tx, with_ema=True)


def only(opt_state: Any, name: str) -> Any:
    """What a field of an optimizer's state holds, wherever it stands."""
    [(_, value)] = optax.tree.get_all_with_path(opt_state, name)
    return value


def test_moments_and_average_lie_as_their_parameters_do(state: TrainState) -> None:
    found = sharding(fsdp=2, tensor=4, rules=(("layer3/**/kernel", (None, None, "fsdp")),)).of(
        state
    )
    assert found.trainable["layer3"]["0"]["conv1"]["kernel"].spec == P(None, None, "fsdp")
    assert found.trainable["layer2"]["0"]["conv1"]["kernel"].spec == P(None, None, "fsdp", "tensor")
    for tree in (found.ema, only(found.opt_state, "mu"), only(found.opt_state, "nu")):
        assert tree == found.trainable
    rate = only(found.opt_state, "learning_rate")
    assert rate.spec == P()
    assert found.rng.spec == P()


def test_frozen_parameters_are_cut_and_statistics_are_not(state: TrainState) -> None:
    found = sharding(fsdp=2, rules=(("stem/conv/kernel", (None, None, None, "fsdp")),), min_size=1)
    placed = found.of(state)
    assert placed.frozen["stem"]["conv"]["kernel"].spec == P(None, None, None, "fsdp")
    assert placed.frozen["stem"]["bn"]["scale"].spec == P("fsdp")
    assert all(leaf.spec == P() for leaf in jax.tree.leaves(placed.stats))


def test_a_part_of_a_state_has_the_layouts_of_the_whole(state: TrainState) -> None:
    found = sharding(fsdp=2, rules=(("layer3/**/kernel", (None, None, "fsdp")),))
    whole = found.of(state)
    placed = jax.jit(found.constrain)(state.opt_state)
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == whole.opt_state


def test_parameters_are_gathered_for_use_and_stay_cut_by_tensor(state: TrainState) -> None:
    rules = (("head/kernel", (("fsdp", "tensor"),)), ("head/bias", ()))
    found = sharding(fsdp=2, tensor=2, rules=rules)
    used = flatten(jax.jit(found.gather)(found.place(state.params)))
    assert used["layer3/0/conv1/kernel"].sharding.spec == P(None, None, None, "tensor")
    assert used["head/kernel"].sharding.spec == P("tensor")
    assert used["head/bias"].sharding.spec == P()


def test_what_a_factored_moment_keeps_is_laid_out_by_its_own_shape() -> None:
    params = {"head": {"kernel": jnp.ones((256, 128))}}
    tx = optax.adafactor(0.1)
    model = Model.from_function(lambda *_, **__: None, params, {}, head="head")
    state = init_state(model, Plan((Group("**"),)), tx)
    found = sharding(fsdp=2, rules=(("head/kernel", (None, "fsdp")),)).of(state)
    factored = found.opt_state[0]
    assert found.trainable["head"]["kernel"].spec == P(None, "fsdp")
    assert factored.v_row["head"]["kernel"].spec == P("fsdp")
    assert factored.v["head"]["kernel"].spec == P()  # a placeholder of one number


def test_the_moments_of_several_optimizers_lie_as_their_parameters_do(network: Model) -> None:
    plan = Plan((FROZEN, Group("head/**", optimizer="sgd"), Group("**")))
    state = init_state(network, plan, plan.optimizer(0.01))
    found = sharding(fsdp=2, rules=(("layer3/**/kernel", (None, None, "fsdp")),)).of(state)
    expected, _ = split(found.trainable, lambda name: not name.startswith("head"))
    assert flatten(only(found.opt_state, "mu")) == flatten(expected)


def test_placed_values_are_the_same_and_each_device_has_its_part(state: TrainState) -> None:
    found = sharding(fsdp=8)
    placed = found.place(state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(host(a), host(b)), placed, state)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, placed)
    assert layouts == found.of(state)
    cut = [leaf for leaf in jax.tree.leaves(placed) if not leaf.sharding.is_fully_replicated]
    assert cut
    for leaf in cut:
        assert leaf.addressable_shards[0].data.size * 8 == leaf.size


def host(leaf: Any) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def test_fsdp_takes_the_memory_that_it_says(state: TrainState) -> None:
    def bytes_here(tree: Any) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    whole, cut = Sharding(), sharding(fsdp=8, min_size=1)
    before, after = bytes_here(whole.place(state)), bytes_here(cut.place(state))
    assert after < 0.25 * before
    lines = cut.describe(state).splitlines()
    assert lines[-1] == f"{after / 1024:.1f} KiB on each device, {before / 1024:.1f} KiB in all"


def test_a_description_shows_each_leaf() -> None:
    tree = {"mlp": {"dense1": {"kernel": shape(64, 256), "bias": shape(256)}}}
    assert sharding(fsdp=2, tensor=2).describe(tree) == (
        "8 devices: data 2 × fsdp 2 × tensor 2\n"
        "leaf               shape   layout        bytes a device\n"
        "-----------------  ------  ------------  --------------\n"
        "mlp/dense1/bias    256     fsdp                     512\n"
        "mlp/dense1/kernel  64×256  fsdp, tensor           16384\n"
        "16.5 KiB on each device, 65.0 KiB in all"
    )


# ---------------------------------------------------------------------------------------------
# Batches


def test_a_batch_is_cut_along_data_and_fsdp(examples: ArrayData) -> None:
    found = Sharding(fsdp=2, tensor=2)
    batch = found.put_batch(examples.read(np.arange(8)))
    assert found.local_rows(8) == slice(0, 8)
    for name, values in batch.items():
        assert values.sharding == found.batch
        assert values.addressable_shards[0].data.shape[0] == 2
        np.testing.assert_array_equal(values, examples.read(np.arange(8))[name])


@pytest.mark.parametrize("rows", [0, 6, 9])
def test_a_batch_that_the_devices_do_not_divide_is_an_error(rows: int) -> None:
    found = Sharding(fsdp=2, tensor=2)
    with pytest.raises(TrainingError, match=f"{rows} rows for 4 groups .* multiple of 4"):
        found.local_rows(rows)
    if rows:
        with pytest.raises(TrainingError, match="multiple of 4"):
            found.put_batch({"image": np.zeros((rows, 2))})


@pytest.mark.parametrize("label", [np.zeros(4), np.float32(0)], ids=["fewer rows", "no rows"])
def test_arrays_of_a_batch_have_the_same_number_of_rows(label: Any) -> None:
    with pytest.raises(TrainingError, match=r"'label': \((4,)?\)"):
        Sharding().put_batch({"image": np.zeros((8, 2)), "label": label})


# ---------------------------------------------------------------------------------------------
# A run on many devices is the run on one


@dataclass(frozen=True)
class Run:
    """What some steps gave: metrics, the last state, and the programs compiled after each step."""

    metrics: list[dict[str, float]]
    state: TrainState
    compiled: list[int]


@functools.lru_cache
def vit() -> Model:
    return init(
        "vit_s16",
        patch=4,
        width=16,
        depth=1,
        heads=4,
        hidden=32,
        input_size=(8, 8),
        in_channels=1,
        num_classes=3,
        dropout=0.1,
    )


# The gradient of a key's bias is 0 but for rounding, and Adam makes a full step of any rounding.
PLANS = {
    "resnet": Plan((FROZEN, Group("**"))),
    "vit": Plan((Group(("embed/patch/**", "**/key/bias"), frozen=True), Group("**"))),
}


@contextlib.contextmanager
def counted_compilations() -> Iterator[list[str]]:
    """What JAX says that it compiles; programs that it finds in its cache on disk too."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    handler.addFilter(lambda record: record.getMessage().startswith("Compiling"))
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield messages
    finally:
        logger.removeHandler(handler)


def run(model: Model, plan: Plan, optimizer: str, where: Sharding | None, data: ArrayData) -> Run:
    """Some steps with clipping and weighted examples."""
    tx = plan.optimizer(0.01, optimizer=optimizer, weight_decay=0.1, clip_norm=0.5)
    state = init_state(model, plan, tx, with_ema=True)
    state = state if where is None else where.place(state)
    step = make_train_step(model.apply, cross_entropy(), tx, plan, ema_decay=0.9, sharding=where)
    metrics, counts = [], []
    with counted_compilations() as compiled:
        for number in range(STEPS):
            rows = (np.arange(16) + 3 * number) % len(data)
            weight = np.where(np.arange(16) < 11, np.linspace(0.5, 2, 16), 0).astype(np.float32)
            batch = {**data.read(rows), "weight": weight}
            state, found = step(state, batch if where is None else where.put_batch(batch))
            metrics.append({name: float(value) for name, value in found.items()})
            counts.append(len(compiled))
    return Run(metrics, state, counts)


@pytest.fixture(scope="module")
def on_one_device(network: Model, examples: ArrayData) -> Any:
    """The run without a sharding, by network and optimizer."""
    models = {"resnet": network, "vit": vit()}
    return functools.lru_cache(
        lambda name, optimizer: run(models[name], PLANS[name], optimizer, None, examples)
    )


def assert_same(found: Run, expected: Run, atol: float) -> None:
    for mine, theirs in zip(found.metrics, expected.metrics, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            np.testing.assert_allclose(value, theirs[name], rtol=1e-5, err_msg=name)
    leaves, others = flatten(found.state), flatten(expected.state)
    assert leaves.keys() == others.keys()
    for name, leaf in leaves.items():
        np.testing.assert_allclose(
            host(leaf), host(others[name]), rtol=1e-5, atol=atol, err_msg=name
        )


SIZES = [
    (1, {}),
    (2, {"data": 2}),
    (4, {"fsdp": 4}),
    (8, {"tensor": 8, "data": 1}),
    (8, {"data": 2, "fsdp": 2, "tensor": 2}),
]
# SGD shows gradients as they are; how the states of AdamW lie matters most where all axes are cut.
CASES = [
    *((name, "sgd", *size) for name in ("resnet", "vit") for size in SIZES),
    *((name, "adamw", *SIZES[-1]) for name in ("resnet", "vit")),
]
QUICK = ("resnet", "sgd", *SIZES[-1])


@pytest.mark.parametrize(
    ("name", "optimizer", "count", "sizes"),
    [
        pytest.param(
            *case,
            id=" ".join([*map(str, case[:3]), *(f"{k}{v}" for k, v in case[3].items())]),
            marks=() if case == QUICK else pytest.mark.slow,
        )
        for case in CASES
    ],
)
def test_a_run_on_many_devices_is_the_run_on_one(
    name: str,
    optimizer: str,
    count: int,
    sizes: dict[str, int],
    network: Model,
    examples: ArrayData,
    on_one_device: Any,
) -> None:
    model = {"resnet": network, "vit": vit()}[name]
    where = sharding(count, **sizes)
    found = run(model, PLANS[name], optimizer, where, examples)
    assert found.compiled[0] >= 1 and len(set(found.compiled)) == 1  # all in the first step
    assert jax.tree.map(lambda leaf: leaf.sharding, found.state) == where.of(found.state)
    # Adam divides each gradient by its own size, and with it the rounding of those near 0: allowed
    # is a thousandth of a step, whose size is the learning rate.
    atol = 1e-5 if optimizer == "adamw" else 2e-6
    assert_same(found, on_one_device(name, optimizer), atol)
