from __future__ import annotations

import json
from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.forgetting import paired_interval
from jaxtransfer.evaluate.metrics import binomial_interval
from jaxtransfer.models.catalog import build


def forward(params, x):
    hidden = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def network(seed=0, classes=2) -> jt.Model:
    rng = np.random.default_rng(seed)
    sizes = {"body": (4, 6), "head": (6, classes)}
    params = {
        name: {
            "kernel": jnp.asarray(rng.normal(size=size), jnp.float32),
            "bias": jnp.zeros(size[1], jnp.float32),
        }
        for name, size in sizes.items()
    }
    return jt.Model.from_function(forward, params, stages=("body", "head"), head="head")


def examples(feature: int, *, turned: bool = False, names=None) -> jt.ArrayData:
    """A class is the sign of a feature."""
    x = np.random.default_rng(feature).normal(size=(200, 4)).astype(np.float32)
    return jt.ArrayData(x, ((x[:, feature] > 0) != turned).astype(np.int32), names)


def tuned(model, data, plan="full"):
    return jt.finetune(
        model, data, plan=plan, steps=60, learning_rate=0.1, weight_decay=0, progress=False
    ).model


@pytest.fixture(scope="module")
def source():
    return tuned(network(), examples(0))


def test_the_opposite_answers_to_the_same_images_are_learnt_in_the_place_of_the_old(source):
    after = tuned(source, examples(0, turned=True))
    found = jt.forgetting(source, after, examples(0))
    assert found.head == "kept" and found.count == 200
    assert found.before.mean > 0.95 and found.after.mean < 0.05
    assert found.forgotten.low > 0.9
    assert found.forgotten.mean == pytest.approx(found.before.mean - found.after.mean)
    assert found.changed > 0.9


def test_a_probe_forgets_nothing_at_all(source):
    after = tuned(source, examples(1, names=("low", "high")), plan="probe")
    assert not np.array_equal(after.params["head"]["kernel"], source.params["head"]["kernel"])
    found = jt.forgetting(source, after, examples(0), old_head=True)
    assert found.head == "old"
    assert found.forgotten.mean == 0 and found.changed == 0
    assert found.after == found.before


def test_the_old_head_is_put_on_the_new_backbone_where_the_head_was_replaced(source):
    named = source.with_labels(("low", "high"))
    after = tuned(named, examples(1, names=("left", "right")))
    found = jt.forgetting(named, after, examples(0))
    params = {"body": after.params["body"], "head": source.params["head"]}
    answers = np.asarray(forward(params, examples(0).images)).argmax(axis=-1)
    assert found.head == "old"
    assert found.after.mean == float(np.mean(answers == examples(0).labels)) < found.before.mean
    wider = replace(jt.replace_head(after, 5), labels=None)
    assert jt.forgetting(named, wider, examples(0)).to_dict() == found.to_dict()


def test_statistics_of_the_new_backbone_go_with_it():
    start = jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=3)
    images = np.random.default_rng(0).random((30, 8, 8, 1)).astype(np.float32)
    shifted = replace(start, stats=jax.tree.map(lambda x: x + 1, start.stats))
    replaced = jt.replace_head(shifted, 7)
    data = jt.ArrayData(images, jt.predict(start, images).argmax(axis=-1).astype(np.int32))
    found = jt.forgetting(start, replaced, data)
    expected = np.mean(jt.predict(shifted, images).argmax(axis=-1) == data.labels)
    assert found.head == "old"
    assert found.before.mean == 1 and found.after.mean == expected < 1


def test_a_head_that_was_kept_beside_the_new_one_answers_for_its_task():
    model = jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=3)
    source = model.with_labels("abc")
    images = np.random.default_rng(0).random((30, 8, 8, 1)).astype(np.float32)
    data = jt.ArrayData(images, np.arange(30, dtype=np.int32) % 3, tuple("abc"))
    after = jt.keep_old_head(source, classes=["d", "e"], old="source", new="new")
    found = jt.forgetting(source, after, data, task="source")
    assert found.head == "source" and found.changed == 0 and found.forgotten.mean == 0
    with pytest.raises(ModelError, match="a task among source, new, found 'old'"):
        jt.forgetting(source, after, data, task="old")


def test_the_report_is_json(source):
    found = jt.forgetting(source, source, examples(0))
    report = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(report) == {"before", "after", "forgotten", "changed", "count", "head"}
    assert report["before"] == report["after"] == found.before.to_dict()
    right = round(200 * found.before.mean)
    assert found.before == binomial_interval(right, 200, 0.95)


@pytest.mark.parametrize(
    ("after", "data", "error", "message"),
    [
        (network(), (np.zeros((0, 4)), np.zeros(0, int)), DataError, "expected"),
        (network(), (np.zeros((2, 4)), np.zeros(2)), DataError, "expected"),
        (
            jt.Model.from_function(
                forward, {"body": {"kernel": np.ones((4, 3))}, "head": {"kernel": np.ones((3, 9))}}
            ),
            examples(0),
            ModelError,
            "backbone of the source model, found 2 leaves .* params/body/bias, params/body/kernel",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(after, data, error, message):
    with pytest.raises(error, match=message):
        jt.forgetting(network(), after, data)


def test_labels_above_the_source_models_outputs_are_refused():
    few = examples(0)
    with pytest.raises(DataError, match=r"forgetting: .* from 0 and below 2.*found \[5, 6\]"):
        jt.forgetting(network(), network(), replace(few, labels=few.labels + np.int32(5)))


def test_other_classes_than_the_source_models_are_refused():
    model = network().with_labels(("no", "yes"))
    with pytest.raises(DataError, match="expected the classes of the source model"):
        jt.forgetting(model, model, examples(0, names=("yes", "no")))


def test_a_source_model_without_a_head_is_refused():
    headless = build("cifar_resnet8", in_channels=1, input_size=(8, 8), num_classes=0)
    images = jt.ArrayData(np.zeros((2, 8, 8, 1), np.float32), np.array([0, 1], np.int32))
    with pytest.raises(ModelError, match="with one head, found none"):
        jt.forgetting(headless, headless, images)


@hypothesis.given(st.integers(0, 40), st.integers(0, 40), st.integers(80, 200))
def test_the_paired_interval_is_symmetric_and_holds_its_difference(first, second, count):
    found = paired_interval(first, second, count)
    turned = paired_interval(second, first, count)
    assert found.mean == pytest.approx((first - second) / count)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_the_paired_interval_holds_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.multinomial(60, (0.2, 0.05, 0.75), size=2000)
    found = [paired_interval(int(a), int(b), 60) for a, b, _ in draws]
    assert np.mean([one.low <= 0.15 <= one.high for one in found]) > 0.94


@pytest.mark.parametrize("numbers", [(0, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_numbers_that_cannot_be_are_refused(numbers):
    with pytest.raises(DataError, match="paired_interval"):
        paired_interval(*numbers)
