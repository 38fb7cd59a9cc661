from __future__ import annotations

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.classifiers import CLASSIFIERS
from jaxtransfer.evaluate.probing import probe_source
from jaxtransfer.models.calling import can_start

DIGITS = jt.load_digits()
FEW = DIGITS.take(np.flatnonzero(DIGITS.labels < 3)[:60])
TRAIN, TEST = FEW.take(np.arange(40)), FEW.take(np.arange(40, 60))


@pytest.fixture(scope="module")
def model() -> jt.Model:
    return jt.init("cifar_resnet8", width=4, input_size=(8, 8), in_channels=1, num_classes=3)


def test_one_pass_gives_what_features_gives_for_each_stage(model):
    found = jt.stage_features(model, TRAIN, batch_size=16)
    assert tuple(found) == model.spec.stages[1:]
    for stage in ("layer1", "layer3", "head"):
        np.testing.assert_allclose(
            found[stage], jt.features(model, TRAIN, stage=stage), atol=1e-5, rtol=1e-5
        )
    some = jt.stage_features(model, TRAIN.images, stages=["head", "layer2"], outputs=True)
    assert tuple(some) == ("layer2", "head", "outputs")
    np.testing.assert_allclose(some["outputs"], jt.predict(model, TRAIN), atol=1e-5, rtol=1e-5)


class TwoLayers(nn.Module):
    """A network of a user's own: it can stop at its layers, but not begin there."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.Dense(3, name="body")(nn.Dense(4, name="stem")(x)))


def test_a_network_that_cannot_begin_at_a_stage_is_run_up_to_each():
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    variables = TwoLayers().init(jax.random.key(0), rows)
    model = jt.Model.from_linen(TwoLayers(), variables, stages=("stem", "body", "head"))
    assert not can_start(model.apply)
    found, expected = jt.stage_features(model, rows), rows
    for stage, layer in (("body", "stem"), ("head", "body")):
        weights = model.params[layer]
        expected = expected @ weights["kernel"] + weights["bias"]
        np.testing.assert_allclose(found[stage], expected, atol=1e-5)
    outputs = jt.stage_features(model, rows, stages=["body"], outputs=True)["outputs"]
    np.testing.assert_allclose(outputs, jt.predict(model, rows), atol=1e-5)


def test_scores_are_those_of_a_classifier_on_each_stage(model):
    probes = jt.probe_stages(model, TRAIN, TEST, stages=["layer2", "head"], method="mean")
    for score in probes.scores:
        rows, others = (jt.features(model, part, stage=score.stage) for part in (TRAIN, TEST))
        right = jt.nearest_mean(rows, TRAIN.labels).predict(others) == TEST.labels
        assert score.accuracy.mean == np.mean(right) and score.channels == rows.shape[1]
        assert score.accuracy.low < np.mean(right) < score.accuracy.high or right.all()
    assert probes.best.accuracy.mean == max(one.accuracy.mean for one in probes.scores)
    written = json.loads(json.dumps(probes.to_dict()))
    assert [row["stage"] for row in written["scores"]] == ["layer2", "head"]


def test_names_of_classes_have_the_numbers_of_the_training_examples(model):
    names = np.array(["zero", "one", "two"])
    by_name = jt.probe_stages(
        model,
        (TRAIN.images, names[TRAIN.labels]),
        (TEST.images, names[TEST.labels]),
        stages=["head"],
        method="mean",
    )
    by_number = jt.probe_stages(model, TRAIN, TEST, stages=["head"], method="mean")
    assert by_name.scores == by_number.scores


@pytest.mark.parametrize("stages", [["layer9"], []])
def test_unknown_stages_and_none_are_refused(model, stages):
    with pytest.raises(ModelError, match="expected stages among stem"):
        jt.stage_features(model, TRAIN, stages=stages)


def test_no_images_and_unknown_methods_are_refused(model):
    with pytest.raises(DataError, match="at least one image"):
        jt.stage_features(model, TRAIN.images[:0])
    with pytest.raises(DataError, match="among logistic"):
        jt.probe_stages(model, TRAIN, TEST, method="svm")


def test_a_report_holds_what_the_parts_give(model):
    names = ("a network", "three digits")
    report = probe_source(model, TRAIN, TEST, names=names, methods=("mean",), stages=True, draws=2)
    rows, others = jt.features(model, TRAIN), jt.features(model, TEST)
    right = np.mean(jt.nearest_mean(rows, TRAIN.labels).predict(others) == TEST.labels)
    assert report.accuracies["mean"].mean == right
    assert report.curves[0].per_class == (1, 2, 5, 10)
    assert report.stages == jt.probe_stages(model, TRAIN, TEST, method="mean")
    assert (report.train_count, report.test_count) == (40, 20)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["source"] == "a network"
    with pytest.raises(DataError, match=", ".join(CLASSIFIERS)):
        probe_source(model, TRAIN, TEST, names=names, methods=("mean", "svm"))


# What ridge probes reach, as the data's description says; there it is one of many regularisers.
@pytest.mark.slow
@pytest.mark.pretrained
@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("squeezenet1_1", "squeezenet_v1.1_keras_notop", 0.928),
        ("mobilenet_v1_025", "mobilenet_v1_0.25_224_keras_notop", 0.895),
    ],
)
def test_a_ridge_probe_tells_ants_from_bees(name, folder, expected, real_data, tmp_path):
    import zipfile

    with zipfile.ZipFile(real_data / "datasets" / "hymenoptera_short256.zip") as archive:
        archive.extractall(tmp_path)
    (images,) = {path.parent for path in tmp_path.rglob("train")}
    (weights,) = (real_data / "weights" / folder).glob("*.h5")
    model = jt.load(name, weights)
    train, test = (jt.image_folder(images, split=part) for part in ("train", "val"))
    rows = jt.features(model, train)
    probe = jt.linear_probe(rows, train.labels, method="ridge", l2=float(rows.var(axis=0).mean()))
    reached = np.mean(probe.predict(jt.features(model, test)) == test.labels)
    # Three of 153 images more or less: what the regulariser can do.
    assert reached == pytest.approx(expected, abs=0.02)
