from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import MappingError
from jaxtransfer.mapping.rule import Rule, with_prefix

RESNET = Rule("layer{i}.{j}.conv{k}.weight", "params/layer{i}/{j}/conv{k}/kernel", "conv")
INTEGERS = st.integers(0, 10**12).map(str)


@given(INTEGERS, INTEGERS, INTEGERS)
def test_placeholders_are_integers_of_any_length(i, j, k):
    source = f"layer{i}.{j}.conv{k}.weight"
    target = f"params/layer{i}/{j}/conv{k}/kernel"
    assert RESNET.targets_for(source) == (target,)
    assert RESNET.sources_for(target) == (source,)


@pytest.mark.parametrize(
    "name",
    [
        "layer4.0.conv2.bias",
        "layer4.0.conv.weight",
        "layerA.0.conv2.weight",
        "layer4.0.conv2.weights",
        "xlayer4.0.conv2.weight",
        "layer4x0xconv2xweight",
        "layer4.0.1.conv2.weight",
        "layer4.0.conv2.weight\n",
        "layer٤.0.conv2.weight",
        "layer-4.0.conv2.weight",
    ],
)
def test_a_rule_is_about_whole_names_with_digits_only(name):
    assert RESNET.targets_for(name) == ()


def test_digits_stay_as_they_are_written():
    rule = Rule("conv{i}_w", "params/conv{i}/kernel", "conv")
    assert rule.targets_for("conv007_w") == ("params/conv007/kernel",)
    assert rule.sources_for("params/conv007/kernel") == ("conv007_w",)


def test_a_placeholder_may_appear_twice_and_is_the_same_number_each_time():
    rule = Rule("block{i}/unit_{i}/w", "params/{i}/w")
    assert rule.targets_for("block12/unit_12/w") == ("params/12/w",)
    assert rule.targets_for("block12/unit_2/w") == ()
    assert rule.sources_for("params/3/w") == ("block3/unit_3/w",)


def test_digits_beside_one_placeholder_are_told_apart():
    rule = Rule("layer1{i}2.w", "params/a{i}")
    assert rule.targets_for("layer1222.w") == ("params/a22",)
    assert rule.sources_for("params/a22") == ("layer1222.w",)


def test_names_may_have_any_separators_and_special_characters():
    rule = Rule("net/layer_{i}:0*[x].(y)", "params/{i}")
    assert rule.targets_for("net/layer_3:0*[x].(y)") == ("params/3",)


def test_the_order_of_placeholders_may_differ():
    rule = Rule("{i}.{j}.w", "params/{j}/{i}")
    assert rule.targets_for("1.2.w") == ("params/2/1",)
    assert rule.sources_for("params/2/1") == ("1.2.w",)


@pytest.mark.parametrize(
    ("source", "target", "layout", "expected"),
    [
        ("layer{i}.w", "params/layer/w", "identity", r"\{i\} not in all"),
        ("layer.w", "params/{i}/w", "identity", r"\{i\} not in all"),
        ("layer{i+1}.w", "params/{i}/w", "identity", "each brace"),
        ("layer{}.w", "params/w", "identity", "each brace"),
        ("layer{.w", "params/w", "identity", "each brace"),
        ("layer}.w", "params/w", "identity", "each brace"),
        ("", "params/w", "identity", "found ''"),
        ("w", "", "identity", "found ''"),
        ("{i}{j}.w", "params/{i}/{j}", "identity", "cannot be told apart"),
        ("{i}1{j}.w", "params/{i}/{j}", "identity", "cannot be told apart"),
        ("{i}.{j}.w", "params/{i}{j}", "identity", "cannot be told apart"),
        ("w", "/params/w", "identity", "a target such as"),
        ("w", "params//w", "identity", "a target such as"),
        ("w", "params/w", "cnov", "layout 'cnov'"),
        ("w", "params/w", "split_heads", "layout split_heads"),
    ],
)
def test_a_rule_that_cannot_work_both_ways_is_an_error(source, target, layout, expected):
    with pytest.raises(MappingError, match=expected) as caught:
        Rule(source, target, layout)
    assert str(caught.value).startswith("rule ")


def test_a_rule_reads_well_and_is_a_value():
    assert str(RESNET) == (
        "layer{i}.{j}.conv{k}.weight -> params/layer{i}/{j}/conv{k}/kernel [conv]"
    )
    assert len({RESNET, Rule(RESNET.source, RESNET.target, RESNET.layout)}) == 1


def test_a_prefix_comes_before_every_source():
    rules = (RESNET, Rule("fc.bias", "params/head/bias"))
    prefixed = with_prefix(rules, "module.")
    assert [rule.source for rule in prefixed] == [f"module.{rule.source}" for rule in rules]
    assert [rule.target for rule in prefixed] == [rule.target for rule in rules]
    assert prefixed[0].targets_for("module.layer1.0.conv1.weight")
    assert prefixed[0].targets_for("layer1.0.conv1.weight") == ()
