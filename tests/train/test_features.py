import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError, ModelError


def test_features_are_what_the_head_sees(network, examples):
    found = jt.features(network, examples.images)
    head = network.params["head"]
    logits = found @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(logits, jt.predict(network, examples.images), atol=1e-5)


def test_maps_of_a_stage_are_averaged_unless_asked_for(network, examples):
    maps = jt.features(network, examples, stage="layer2", pool=False)
    expected, _ = network.apply(
        network.params, network.stats, examples.images, train=False, stop="layer2"
    )
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    pooled = jt.features(network, examples, stage="layer2")
    np.testing.assert_allclose(pooled, maps.mean(axis=(1, 2)), atol=1e-5)


def test_batches_do_not_change_the_features(network, examples):
    whole = jt.features(network, examples)
    np.testing.assert_allclose(jt.features(network, examples, batch_size=7), whole, atol=1e-5)


def test_many_batches_come_in_their_order(plain, rows):
    inputs = np.concatenate([rows["image"]] * 3)
    one_by_one = jt.features(plain, inputs, stage="body", batch_size=2)
    np.testing.assert_allclose(one_by_one, jt.features(plain, inputs, stage="body"), atol=1e-6)


def test_an_unknown_stage_and_no_images_are_refused(network, examples):
    with pytest.raises(ModelError, match="layer9"):
        jt.features(network, examples, stage="layer9")
    with pytest.raises(DataError, match="at least one image"):
        jt.features(network, examples.images[:0])
