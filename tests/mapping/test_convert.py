from __future__ import annotations

import itertools
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import MappingError
from jaxtransfer.formats import read_weights, write_weights
from jaxtransfer.mapping import LAYOUTS, Layout, Receipt, Rule, convert, invert, with_prefix
from jaxtransfer.tree import diff, flatten, unflatten

DTYPES = ["float32", "float16", "int8", "int64", "bool", ml_dtypes.bfloat16]
RULES = (
    Rule("conv{i}.weight", "params/conv{i}/kernel", "conv"),
    Rule("bn{i}.weight", "params/bn{i}/scale"),
    Rule("bn{i}.bias", "params/bn{i}/bias"),
    Rule("bn{i}.running_mean", "stats/bn{i}/mean"),
    Rule("bn{i}.running_var", "stats/bn{i}/var"),
    Rule("fc.weight", "params/head/kernel", "dense"),
    Rule("fc.bias", "params/head/bias"),
)
IGNORE = "*.num_batches_tracked"


def network() -> dict[str, np.ndarray]:
    """A small network as torch would save it."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    flat = {"conv1.weight": normal(4, 3, 3, 3), "fc.weight": normal(5, 4), "fc.bias": normal(5)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        flat[f"bn1.{name}"] = normal(4)
    flat["bn1.num_batches_tracked"] = np.asarray(7)
    return flat


def like() -> dict[str, Any]:
    """The tree that such a network fills."""

    def build() -> dict[str, Any]:
        four = jnp.zeros(4)
        return {
            "params": {
                "conv1": {"kernel": jnp.zeros((3, 3, 3, 4))},
                "bn1": {"scale": four, "bias": four},
                "head": {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(5)},
            },
            "stats": {"bn1": {"mean": four, "var": four}},
        }

    return jax.eval_shape(build)


def problems_of(flat: Any, rules: Any = RULES, tree: Any = None, ignore: Any = IGNORE) -> str:
    with pytest.raises(MappingError) as caught:
        convert(flat, rules, like() if tree is None else tree, ignore, file="net.pth")
    return str(caught.value)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


@st.composite
def sources_and_rules(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], tuple[Rule, ...]]:
    """Families of tensors of random bits, one rule a family, in random order."""
    flat: dict[str, np.ndarray] = {}
    rules = []
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    for family in draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)):
        name = draw(st.sampled_from(sorted(LAYOUTS)))
        layout = Layout(name, tuple(draw(st.integers(1, 3)) for _ in LAYOUTS[name].arguments))
        shape = fitting_shape(draw, layout)
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        is_numbered = draw(st.booleans())
        pattern = f"{family}.{{i}}.w" if is_numbered else f"{family}.w"
        rules.append(Rule(pattern, "params/" + pattern.replace(".", "/"), str(layout)))
        for i in draw(st.lists(st.integers(0, 30), min_size=1, max_size=3, unique=True)):
            bits = random.integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
            bits = bits % 2 if dtype == np.bool_ else bits
            array = bits.view(dtype).reshape(shape)
            flat[pattern.replace("{i}", str(i))] = array.copy(order="F" if i % 2 else "C")
    return flat, tuple(draw(st.permutations(rules)))


def fitting_shape(draw: st.DrawFn, layout: Layout) -> tuple[int, ...]:
    kind = LAYOUTS[layout.name]
    if not kind.axes:
        return tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    sizes = {"1": 1, **dict(kind.sizes), **dict(zip(kind.arguments, layout.arguments, strict=True))}
    groups = re.findall(r"\([^)]*\)|\S+", kind.axes.split("->")[0])
    axes = [group.strip("()").split() for group in groups]
    for axis in itertools.chain(*axes):
        sizes.setdefault(axis, draw(st.integers(1, 3)))
    return tuple(math.prod(sizes[axis] for axis in group) for group in axes)


@given(sources_and_rules())
def test_convert_then_invert_is_the_identity_bit_for_bit(case):
    flat, rules = case
    before = {name: array.tobytes() for name, array in flat.items()}
    targets = {}
    for name, array in flat.items():
        rule = next(rule for rule in rules if rule.targets_for(name))
        shape = rule.transform.target_shape(array.shape)
        targets[rule.targets_for(name)[0]] = jax.ShapeDtypeStruct(shape, array.dtype)
    tree, receipt = convert(flat, rules, unflatten(targets))
    assert flatten(tree).keys() == targets.keys()
    for inverted in (invert(tree, rules), invert(tree, rules, receipt=receipt)):
        assert inverted.keys() == flat.keys()
        assert all(same_bits(inverted[name], flat[name]) for name in flat)
    again, _ = convert(invert(tree, rules), rules, tree)
    assert diff(tree, again).is_empty
    assert {name: array.tobytes() for name, array in flat.items()} == before
    assert receipt.parameters == sum(array.size for array in flat.values())
    assert Receipt.from_json(receipt.to_json()) == receipt


def test_a_network_is_loaded_whole_with_a_receipt():
    flat = network()
    tree, receipt = convert(
        flat, RULES, like(), IGNORE, file="net.pth", sha256="abc", format="torch"
    )
    assert jax.tree.structure(tree) == jax.tree.structure(like())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
    np.testing.assert_array_equal(tree["params"]["head"]["kernel"], flat["fc.weight"].T)
    np.testing.assert_array_equal(tree["stats"]["bn1"]["mean"], flat["bn1.running_mean"])
    assert [entry.target for entry in receipt.entries] == list(flatten(like()))
    assert receipt.ignored == ("bn1.num_batches_tracked",)
    assert (receipt.file, receipt.sha256, receipt.format) == ("net.pth", "abc", "torch")
    assert receipt.rules == RULES
    entry = next(entry for entry in receipt.entries if entry.source == "conv1.weight")
    assert (entry.source_shape, entry.target_shape) == ((4, 3, 3, 3), (3, 3, 3, 4))
    assert (entry.layout, entry.source_dtype, entry.target_dtype) == ("conv", "float32", "float32")
    assert "7 leaves filled (149 parameters), 1 source tensor ignored; from net.pth" in str(receipt)


def test_the_callers_dict_stays_as_it_is():
    flat = network()
    before = {name: (array, array.copy()) for name, array in flat.items()}
    convert(flat, RULES, like(), IGNORE)
    assert flat.keys() == before.keys()
    assert all(flat[name] is before[name][0] for name in flat)
    assert all(same_bits(*before[name]) for name in flat)


def test_what_a_file_gave_goes_back_to_a_file_bit_for_bit(tmp_path):
    flat = network()
    for name in ("net.safetensors", "net.npz"):
        write_weights(flat, tmp_path / name)
        tree, _ = convert(read_weights(tmp_path / name), RULES, like(), IGNORE)
        on_device = jax.tree.map(jnp.asarray, tree)
        write_weights(invert(on_device, RULES), tmp_path / f"back-{name}")
        back = read_weights(tmp_path / f"back-{name}")
        assert set(flat) - set(back) == {"bn1.num_batches_tracked"}
        assert all(same_bits(back[key], flat[key]) for key in back)


def test_arrays_of_jax_and_trees_that_are_no_dicts_do_as_well():
    class Pair(tuple):
        pass

    jax.tree_util.register_pytree_node(Pair, lambda pair: (tuple(pair), None), lambda _, c: Pair(c))
    tree, _ = convert(
        {"a": jnp.ones(2), "b": jnp.zeros(3)},
        [Rule("a", "0"), Rule("b", "1")],
        Pair((jnp.zeros(2), jnp.zeros(3))),
    )
    assert isinstance(tree, Pair)
    assert isinstance(tree[0], np.ndarray) and tree[0].sum() == 2


def test_a_network_of_flax_takes_what_is_converted():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(5, name="head")(
                nn.relu(nn.Conv(4, (3, 3), name="conv1")(x)).mean((1, 2))
            )

    x = jnp.ones((1, 6, 6, 3))
    variables = jax.eval_shape(Network().init, jax.random.key(0), x)
    flat = {name: array for name, array in network().items() if not name.startswith("bn")}
    flat["conv1.bias"] = np.zeros(4, np.float32)
    rules = (*RULES, Rule("conv{i}.bias", "params/conv{i}/bias"))
    tree, _ = convert(flat, rules, variables)
    assert Network().apply(tree, x).shape == (1, 5)  # pyright: ignore


# Dtypes.


def test_the_dtype_of_the_file_is_kept_and_both_are_told():
    rules = [Rule("w", "w")]
    wanted = {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float64, ml_dtypes.float8_e4m3fn):
        tree, receipt = convert({"w": np.ones(2).astype(dtype)}, rules, wanted)
        assert tree["w"].dtype == dtype
        assert receipt.entries[0].source_dtype == np.dtype(dtype).name
        assert receipt.entries[0].target_dtype == "float32"


@pytest.mark.parametrize(
    ("found", "expected"),
    [("int32", "float32"), ("float32", "int32"), ("bool", "float32"), ("complex64", "float32")],
)
def test_another_kind_of_dtype_is_an_error(found, expected):
    wanted = {"w": jax.ShapeDtypeStruct((2,), np.dtype(expected))}
    message = problems_of({"w": np.ones(2, found)}, [Rule("w", "w")], wanted)
    assert re.search(
        rf" ! w: from w .*expected .* values such as {expected}, found {found}", message
    )


# Problems.


def test_all_problems_are_told_at_once():
    flat = network()
    flat["fc.weight"] = flat["fc.weight"][:3]
    flat["conv1.weight"] = flat["conv1.weight"][0]
    flat["extra"] = np.ones(2)
    flat["bn2.weight"] = np.ones(2)
    flat["bn1.bias"] = np.ones(4, np.int32)
    del flat["bn1.weight"]
    lines = problems_of(flat).splitlines()
    assert lines[0].startswith(
        "weights net.pth: expected each of 8 tensors to fill one of 7 leaves"
    )
    assert "found 6 problems" in lines[0]
    assert [line[:3] for line in lines[1:7]] == [" - ", " + ", " + ", " ~ ", " ~ ", " ! "]
    message = "\n".join(lines)
    assert " - params/bn1/scale (4,): there is no tensor bn1.weight; nearest" in message
    assert " + extra: no rule matches; nearest" in message
    assert " + bn2.weight: leads to params/bn2/scale, which is no leaf; nearest leaves: " in message
    assert "params/bn1/scale" in message
    assert (
        " ~ params/head/kernel: from fc.weight (3, 4) by dense: expected (4, 5), found (4, 3)"
        in message
    )
    assert "by conv: expected (3, 3, 3, 4); layout conv: expected a source shape (o, i, h, w)" in (
        message
    )
    assert " ! params/bn1/bias: from bn1.bias (4,) by identity: expected floating-point" in message
    assert lines[-1].startswith("add or correct rules")


def test_one_problem_is_one_problem():
    flat = network() | {"extra": np.ones(2)}
    assert "found 1 problem (" in problems_of(flat)


def test_a_leaf_that_is_filled_twice_is_told_with_both_sources():
    flat = network() | {"head.weight": np.ones((5, 4), np.float32)}
    rules = (*RULES, Rule("head.weight", "params/head/kernel", "dense"))
    message = problems_of(flat, rules)
    assert (
        " ! params/head/kernel: filled twice, by fc.weight (rule fc.weight -> params/head/kernel "
        "[dense]) and head.weight (rule head.weight -> params/head/kernel [dense])"
    ) in message
    assert "found 1 problem (" in message


def test_a_leaf_that_no_rule_leads_to_is_told_so():
    assert " - params/head/bias (5,): no rule leads there" in problems_of(network(), RULES[:-1])


def test_a_leaf_whose_source_is_ignored_is_missing_and_says_why():
    message = problems_of(network(), ignore=[IGNORE, "fc.*"])
    assert message.count("is ignored") == 2
    assert " - params/head/bias (5,): its source fc.bias is ignored" in message
    assert " + " not in message.split("\n", 1)[1]


def test_what_is_ignored_is_left_out_even_where_a_rule_matches():
    tree = like()
    del tree["params"]["head"]
    converted, receipt = convert(network(), RULES, tree, [IGNORE, re.compile(r"fc\..+")])
    assert "head" not in converted["params"]
    assert set(receipt.ignored) == {"bn1.num_batches_tracked", "fc.weight", "fc.bias"}


def test_an_ignore_pattern_that_matches_nothing_is_no_error():
    flat = network()
    del flat["bn1.num_batches_tracked"]
    assert convert(flat, RULES, like(), IGNORE)[1].ignored == ()


def test_a_common_prefix_is_told_with_the_remedy_that_works():
    flat = {f"module.{name}": array for name, array in network().items()}
    assert "try with_prefix(rules, 'module.')" in problems_of(flat)
    tree, _ = convert(flat, with_prefix(RULES, "module."), like(), IGNORE)
    assert diff(tree, convert(network(), RULES, like(), IGNORE)[0]).is_empty


def test_the_first_matching_rule_wins():
    rules = [Rule("a0", "special"), Rule("a{i}", "params/{i}")]
    tree, _ = convert(
        {"a0": np.ones(1), "a1": np.ones(2)},
        rules,
        {"special": jnp.zeros(1), "params": {"1": jnp.zeros(2)}},
    )
    assert tree["special"].shape == (1,)
    assert invert(tree, rules).keys() == {"a0", "a1"}


def test_many_problems_are_told_in_little_time():
    flat = {f"backbone.stage{i}.weight": np.ones(2) for i in range(400)}
    rules = [Rule("layer{i}.weight", "params/layer{i}/kernel")]
    tree = {"params": {f"layer{i}": {"kernel": jnp.zeros(2)} for i in range(400)}}
    assert "found 800 problems" in problems_of(flat, rules, tree)


# Inverting.


def test_a_leaf_that_leads_to_no_source_is_an_error():
    tree = {
        "params": {"head": {"kernel": np.ones((2, 3)), "scale": np.ones(3)}, "neck": np.ones(2)}
    }
    with pytest.raises(MappingError) as caught:
        invert(tree, RULES)
    assert " - params/head/scale (3,): no rule leads there" in str(caught.value)
    assert " - params/neck (2,): no rule leads there" in str(caught.value)


def test_a_leaf_of_another_rank_is_an_error():
    with pytest.raises(MappingError, match=r" ~ params/head/kernel: for fc\.weight: layout dense"):
        invert({"params": {"head": {"kernel": np.ones((2, 3, 4))}}}, RULES)


def test_a_leaf_that_convert_never_fills_is_ambiguous():
    rules = [Rule("a0", "special"), Rule("a{i}", "params/{i}")]
    with pytest.raises(MappingError, match="ambiguous: a0 fills special by the earlier rule"):
        invert({"params": {"0": np.ones(1)}}, rules)


def test_of_two_names_for_one_leaf_the_first_is_written_unless_the_receipt_says_otherwise():
    rules = [Rule("gamma", "scale"), Rule("weight", "scale")]
    tree, receipt = convert({"weight": np.ones(2)}, rules, {"scale": jnp.zeros(2)})
    assert list(invert(tree, rules)) == ["gamma"]
    assert list(invert(tree, rules, receipt=receipt)) == ["weight"]


def test_two_leaves_for_one_source_are_an_error():
    _, receipt = convert({"a": np.ones(2)}, [Rule("a", "x")], {"x": jnp.zeros(2)})
    with pytest.raises(MappingError, match=" ! a: filled twice, the second time by y"):
        invert({"x": np.ones(2), "y": np.ones(2)}, [Rule("a", "y")], receipt=receipt)


def test_real_weights_come_back_bit_for_bit(real_data):
    path = real_data / "weights" / "silero_vad_safetensors_onnx" / "silero_vad_16k.safetensors"
    if not path.exists():
        pytest.skip(f"no {path.name} in {real_data}")
    flat = read_weights(path)
    layouts = {1: "identity", 2: "dense", 3: "conv1d"}
    rules = tuple(
        Rule(name, f"params/{name.replace('.', '/')}", layouts[array.ndim])
        for name, array in flat.items()
    )
    wanted = {
        rule.target: jax.ShapeDtypeStruct(
            rule.transform.target_shape(flat[rule.source].shape), jnp.float32
        )
        for rule in rules
    }
    tree, receipt = convert(flat, rules, unflatten(wanted), file=path.name, format="safetensors")
    assert receipt.parameters == 309_633
    with tempfile.TemporaryDirectory() as folder:
        write_weights(invert(tree, rules), Path(folder) / "back.safetensors")
        back = read_weights(Path(folder) / "back.safetensors")
    assert back.keys() == flat.keys()
    assert all(same_bits(back[name], flat[name]) for name in flat)
