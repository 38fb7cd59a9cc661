import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.errors import DataError
from jaxtransfer.ranking import transrate


def data(count=40, size=8, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(count, size)), rng.permutation(np.arange(count) % classes)
    features[:, 0] += 3 * labels
    return features, labels


def by_definition(features, labels, eps=1e-4):
    def rate(rows):
        matrix = np.eye(rows.shape[1]) + rows.T @ rows / (len(rows) * eps)
        return 0.5 * np.linalg.slogdet(matrix)[1]

    centred = features - features.mean(0)
    return rate(centred) - np.mean([rate(centred[labels == c]) for c in np.unique(labels)])


@pytest.mark.parametrize("shape", [(40, 8), (8, 20)])
@pytest.mark.parametrize("eps", [1e-4, 0.5])
def test_it_is_the_difference_of_coding_rates(shape, eps):
    features, labels = data(*shape)
    expected = by_definition(features, labels, eps)
    assert transrate(features, labels, eps=eps) == pytest.approx(expected, rel=1e-9)


def test_classes_of_different_sizes_count_alike():
    features, _ = data()
    labels = np.repeat([0, 1, 2, 3], [1, 2, 30, 7])
    expected = by_definition(features, labels)
    assert transrate(features, labels) == pytest.approx(expected, rel=1e-9)
    assert transrate(features, 2 * labels, num_classes=9) == pytest.approx(expected, rel=1e-9)


def test_random_labels_score_lower_than_classes_apart():
    features, labels = data()
    shuffled = np.random.default_rng(1).permutation(labels)
    assert transrate(features, shuffled) < transrate(features, labels)
    assert transrate(features, labels) < transrate(features + 9 * np.eye(8)[labels], labels)


def test_rotating_shifting_renaming_and_repeating_change_nothing():
    features, labels = data()
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))
    expected = pytest.approx(transrate(features, labels), rel=1e-9)
    assert transrate(features @ rotation + 5, np.array([1, 2, 0])[labels]) == expected
    assert transrate(np.repeat(features, 2, axis=0), np.repeat(labels, 2)) == expected


def test_degenerate_features_and_classes_are_finite():
    features, labels = data()
    assert transrate(np.ones_like(features), labels) == pytest.approx(0, abs=1e-9)
    assert transrate(features, np.zeros_like(labels)) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(transrate(features, np.arange(40)))


@pytest.mark.parametrize("shape", [(40, 8), (8, 20)])
def test_traced_labels_give_the_same_inside_jit_and_vmap(shape):
    features, labels = data(*shape)
    count = len(labels)
    rows = np.stack([np.arange(count), np.random.default_rng(3).integers(0, count, count)])
    with jax.enable_x64(True):
        values = jax.jit(
            lambda x, y: jax.vmap(lambda i: transrate(x[i], y[i], num_classes=3))(rows)
        )(features, labels)
    expected = [by_definition(features[i], labels[i]) for i in rows]
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    single = jax.jit(lambda x, y: transrate(x, y, num_classes=3))(jnp.asarray(features), labels)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected[0], rtol=1e-3)


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_an_eps_that_is_not_positive_is_refused(eps):
    with pytest.raises(DataError, match="transrate: expected an eps above 0"):
        transrate(*data(), eps=eps)


def test_bad_input_is_refused():
    features, labels = data()
    with pytest.raises(DataError, match="transrate: .*a label for each of 40"):
        transrate(features, labels[:3])
    with pytest.raises(DataError, match="transrate: .*labels from 0"):
        transrate(features, labels - 1)
