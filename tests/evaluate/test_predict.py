import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError


@pytest.fixture(scope="module")
def model():
    return jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(11, 8, 8, 1)).astype(np.float32)


def test_logits_are_those_of_the_forward_pass(model, images):
    expected, _ = model.apply(model.params, model.stats, images, train=False)
    logits = jt.predict(model, images)
    assert isinstance(logits, np.ndarray)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_batches_do_not_change_the_answer(model, images):
    whole = jt.predict(model, images)
    np.testing.assert_allclose(jt.predict(model, images, batch_size=4), whole, atol=1e-5)
    np.testing.assert_allclose(jt.predict(model, images[:1]), whole[:1], atol=1e-5)


def test_bytes_and_floats_of_one_image_agree(model, images):
    as_bytes = np.round(255 * images).astype(np.uint8)
    floats = (as_bytes / 255).astype(np.float32)
    np.testing.assert_allclose(jt.predict(model, as_bytes), jt.predict(model, floats), atol=1e-5)


def test_the_models_own_preprocessing_is_applied(model, images):
    small = images[:, ::2, ::2]
    colour = np.repeat(images, 3, axis=-1)
    assert jt.predict(model, small).shape == (11, 3)
    np.testing.assert_allclose(jt.predict(model, colour), jt.predict(model, images), atol=1e-4)


def test_no_image_gives_no_logits(model, images):
    assert jt.predict(model, images[:0]).shape == (0, 3)


def test_floats_out_of_range_are_refused(model, images):
    with pytest.raises(DataError, match=r"floats in \[0, 1\], found \[0"):
        jt.predict(model, 255 * images)
