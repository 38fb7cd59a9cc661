from __future__ import annotations

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.transfer import fit_head

rng = np.random.default_rng(0)


def fitted(features: int, classes: int = 4) -> jt.LinearProbe:
    kernel = rng.normal(size=(features, classes))
    return jt.LinearProbe(kernel, rng.normal(size=classes), "ridge", l2=1.0)


@pytest.fixture(scope="module")
def model() -> jt.Model:
    net = jt.init("cifar_resnet8", width=4, input_size=(8, 8), in_channels=1, num_classes=3)
    return net.with_labels(["0", "1", "2"])


IMAGES = rng.random((5, 8, 8, 1)).astype(np.float32)


def test_the_model_gives_the_probes_logits_also_when_it_is_loaded(model, tmp_path):
    rows = jt.features(model, IMAGES)
    probe = fitted(rows.shape[1])
    headed = jt.with_head(model, probe, classes=["a", "b", "c", "0"])
    logits = jt.predict(headed, IMAGES)
    np.testing.assert_allclose(logits, rows @ probe.kernel + probe.bias, atol=1e-4)
    assert (
        headed.labels == ("a", "b", "c", "0")
        and headed.params["head"]["kernel"].dtype == np.float32
    )
    assert headed.receipt.notes[-1].startswith("with_head: head is a linear classifier")
    others = [name for name in jt.leaf_names(model.params) if not name.startswith("head/")]
    assert set(jt.diff(model.params, headed.params).unchanged) == set(others)
    headed.save(tmp_path)
    np.testing.assert_array_equal(jt.predict(jt.load(tmp_path), IMAGES), logits)
    assert jt.with_head(model, probe).labels is None


def test_maps_are_averaged_before_the_head():
    headless = jt.truncate(
        jt.init("cifar_resnet8", width=4, input_size=(8, 8), in_channels=1), "layer2"
    )
    rows = jt.features(headless, IMAGES)
    probe = fitted(rows.shape[1])
    headed = jt.with_head(headless, probe)
    assert jt.Pool() in headed.spec.head_layers
    np.testing.assert_allclose(
        jt.predict(headed, IMAGES), rows @ probe.kernel + probe.bias, atol=1e-4
    )


def test_fine_tuning_begins_where_the_probe_ended(model):
    digits = jt.load_digits()
    some = digits.take(np.flatnonzero(digits.labels < 3)[:60])
    data = jt.ArrayData(some.images, some.labels, some.classes[:3])
    rows = jt.features(model, data)
    probe = jt.linear_probe(rows, data.labels, method="ridge")
    headed = jt.with_head(model, probe, classes=data.classes)
    assert fit_head(headed, data) is headed
    answers = jt.predict(headed, data).argmax(axis=1)
    assert np.mean(answers == probe.predict(rows)) > 0.98


def test_other_features_and_other_names_are_refused(model):
    with pytest.raises(ModelError, match="fit the probe to what enters the head"):
        jt.with_head(model, fitted(7))
    with pytest.raises(ModelError, match="names for the probe's 4 classes, found 1"):
        jt.with_head(model, fitted(16), classes=["a"])


def test_a_head_without_a_bias_has_no_place_for_one():
    params = {"stem": {"kernel": np.eye(2, dtype="f4")}, "head": {"kernel": np.ones((2, 3), "f4")}}

    def apply(params, inputs):
        return inputs @ params["stem"]["kernel"] @ params["head"]["kernel"]

    with pytest.raises(ModelError, match="and a bias, found {'kernel': \\(2, 4\\)}"):
        jt.with_head(jt.Model.from_function(apply, params), fitted(2))
