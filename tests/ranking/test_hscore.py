import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from jaxtransfer.errors import DataError
from jaxtransfer.ranking import h_score, regularised_h_score

BOTH = pytest.mark.parametrize("score", [h_score, regularised_h_score])


def data(count=40, size=8, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(count, size)), rng.permutation(np.arange(count) % classes)
    features[:, 0] += labels
    return features, labels


def class_means(features, labels):
    return np.stack([features[labels == label].mean(0) for label in labels])


def test_it_is_the_trace_of_the_definition():
    features, labels = data()
    inverse = np.linalg.pinv(np.cov(features, rowvar=False))
    between = np.cov(class_means(features, labels), rowvar=False)
    assert h_score(features, labels) == pytest.approx(np.trace(inverse @ between), rel=1e-10)


@pytest.mark.parametrize("shape", [(40, 8), (8, 20)])
def test_the_regularised_one_shrinks_as_scikit_learn_does(shape):
    features, labels = data(*shape)
    covariance, shrinkage = ledoit_wolf(features)
    between = np.cov(class_means(features, labels), rowvar=False, bias=True)
    expected = (1 - shrinkage) * np.trace(np.linalg.inv(covariance) @ between)
    assert 0.01 < shrinkage < 0.99
    assert regularised_h_score(features, labels) == pytest.approx(expected, rel=1e-9)


def test_directions_that_depend_on_others_add_nothing():
    features, labels = data()
    twice = np.concatenate([features, features @ np.ones((8, 1))], axis=1)
    assert h_score(twice, labels) == pytest.approx(h_score(features, labels), rel=1e-9)
    assert h_score(features + 1e4, labels) == pytest.approx(h_score(features, labels), rel=1e-6)


def test_copies_of_the_labels_reach_the_highest_score():
    _, labels = data()
    assert h_score(np.eye(3)[labels], labels) == pytest.approx(2)
    # As many features as examples fit any labels.
    features, few = data(8, 20)
    assert h_score(features, few) == pytest.approx(2)


@BOTH
def test_random_labels_score_lower(score):
    features, labels = data()
    shuffled = np.random.default_rng(1).permutation(labels)
    assert 0 < score(features, shuffled) < score(features, labels) < 2


@BOTH
def test_rotating_renaming_and_repeating_change_nothing(score):
    features, labels = data()
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))
    expected = pytest.approx(score(features, labels), rel=1e-9)
    assert score(features @ rotation, labels) == expected
    assert score(100 * features, np.array([1, 2, 0])[labels]) == expected
    assert score(features, 4 * labels, num_classes=10) == expected
    if score is h_score:
        assert score(np.repeat(features, 2, axis=0), np.repeat(labels, 2)) == expected


@BOTH
def test_degenerate_features_and_classes_are_finite(score):
    features, labels = data()
    assert score(np.ones_like(features), labels) == 0
    assert score(features, np.zeros_like(labels)) == pytest.approx(0, abs=1e-12)
    single = np.where(np.arange(40) == 3, 2, labels % 2)
    assert 0 < score(features, single) < 2


@BOTH
def test_it_runs_inside_jit_and_vmap(score):
    features, labels = data()
    single = features.astype(np.float32)
    rows = np.stack([np.arange(40), np.arange(40)[::-1]])
    many = jax.jit(
        lambda x, y: jax.vmap(lambda i: score(x[i], y[i], num_classes=3))(jnp.asarray(rows))
    )(single, labels)
    assert many.dtype == jnp.float32
    np.testing.assert_allclose(many, score(single, labels), rtol=1e-4)


@BOTH
def test_bad_input_is_refused_by_name(score):
    features, labels = data()
    with pytest.raises(DataError, match=f"^{score.__name__}: .*a label for each of 40"):
        score(features, labels[:3])
    with pytest.raises(DataError, match=f"^{score.__name__}: .*labels from 0"):
        score(features, labels - 1)
    with pytest.raises(DataError, match="integers"):
        score(features, labels.astype(float))
