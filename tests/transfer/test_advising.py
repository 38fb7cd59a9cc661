import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import few_shot_split
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.advice import SMALL_SIMILAR, UNHELPFUL
from jaxtransfer.models import Preprocess
from jaxtransfer.transfer.advising import _brightness, _known_data
from jaxtransfer.transfer.probing import with_random_weights


@pytest.fixture(scope="module")
def few():
    return few_shot_split(jt.load_digits(), 20, 0).train


@pytest.fixture(scope="module")
def advice(few):
    return jt.advise("checkpoints/glyphs", few, target="digits")


def test_glyphs_are_advised_for_digits(advice):
    assert advice.transfer and advice.case == SMALL_SIMILAR and advice.plan == "probe"
    assert [check.met for check in advice.checks] == [True, True, True]
    size, amount, features = (check.numbers for check in advice.checks)
    assert size["resize_factor"] == 2 and size["channels"] == 1
    assert amount == {"source_examples": 4000 * 64, "examples": 200}
    assert features["probe"] > 0.9 > features["majority"]
    assert list(advice.accuracies)[-3:] == ["head", "random weights", "majority answer"]
    assert (advice.source, advice.target, advice.classes) == ("checkpoints/glyphs", "digits", 10)


def test_random_weights_are_not(few):
    random = with_random_weights(jt.load("checkpoints/glyphs"), 0)
    advice = jt.advise(random, few)
    assert not advice.transfer and advice.case == UNHELPFUL
    assert advice.checks[1].met is None


def test_shuffled_labels_and_constant_images_show_that_features_do_not_help(few):
    shuffled = np.random.default_rng(0).permutation(few.labels)
    for images, labels in ((few.images, shuffled), (np.ones_like(few.images), few.labels)):
        advice = jt.advise("checkpoints/glyphs", (images, labels), random_networks=1)
        assert advice.checks[2].met is False and advice.plan == "scratch"
        assert "No probe beats the majority answer" in str(advice)


def test_amounts_are_of_all_images_and_probes_of_some_always_the_same(few):
    def run():
        return jt.advise(
            "checkpoints/glyphs",
            (few.images, few.labels.tolist()),
            source_examples=100,
            max_examples=60,
            random_networks=0,
        )

    advice = run()
    assert advice.to_dict() == run().to_dict()
    assert advice.examples == 200 and advice.checks[1].met is False
    assert "random weights" not in advice.accuracies


@pytest.mark.parametrize(
    ("labels", "others", "message"),
    [
        (np.zeros(4, int), {}, "at least 2 classes"),
        (np.array([0, 0, 1, 1]), {"folds": 1}, "at least 2 folds"),
        (np.array([0, 0, 1, 1]), {"max_examples": 3}, "max_examples"),
        (np.array([0, 0, 1, 1]), {"random_networks": -1}, "random_networks"),
        (np.array([0, 0, 1, 1]), {"source_examples": -1}, "source_examples"),
    ],
)
def test_what_cannot_be_advised_on_is_refused(labels, others, message):
    with pytest.raises(DataError, match=message):
        jt.advise("checkpoints/glyphs", (np.zeros((4, 8, 8, 1), np.float32), labels), **others)


def test_labels_must_be_one_class_an_example():
    data = jt.ArrayData(np.zeros((4, 8, 8, 1), np.float32), np.zeros((4, 2), np.float32))
    with pytest.raises(DataError, match="one class an example"):
        jt.advise("checkpoints/glyphs", data)


def test_a_network_of_ones_own_has_its_weights_mixed():
    params = {"head": {"kernel": np.arange(12.0, dtype=np.float32).reshape(4, 3)}}
    model = jt.Model.from_function(lambda params, x: x @ params["head"]["kernel"], params)
    mixed = with_random_weights(model, 0).params["head"]["kernel"]
    assert mixed.shape == (4, 3) and not np.array_equal(mixed, params["head"]["kernel"])
    assert sorted(mixed.ravel().tolist()) == list(range(12))


def test_the_mean_that_is_taken_away_is_the_expected_brightness():
    assert _brightness(Preprocess(mean=(0.4, 0.5, 0.6))) == pytest.approx(0.5)
    assert _brightness(Preprocess(scale=None, mean=(127.5,))) == 0.5
    assert _brightness(Preprocess()) is None


@pytest.mark.pretrained
@pytest.mark.parametrize(
    ("file", "known"),
    [
        ("cifar10_resnet/resnet20-12fca82f.th", (50_000, "CIFAR-10")),
        (
            "mobilenet_v1_0.25_224_keras_notop/mobilenet_2_5_224_tf_no_top.h5",
            (1_281_167, "ImageNet-1k"),
        ),
        ("mlperf_tiny_keras/vww_96.h5", (None, "")),
    ],
)
def test_the_receipt_tells_the_source_data(file, known, real_data):
    assert _known_data(jt.load(real_data / "weights" / file)) == known
