import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from jaxtransfer.errors import DataError
from jaxtransfer.ranking import gbc


def data(count=40, size=8, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    features = rng.normal(size=(count, size)) * (1 + labels / 4)[:, None]
    features[:, :3] += np.eye(3)[labels % 3]
    return features, labels


def by_definition(features, labels):
    """The Bhattacharyya distance of Gaussians with whole covariance matrices, pair by pair."""
    reduced = PCA(min(64, *features.shape), svd_solver="full").fit_transform(features)
    size, total = reduced.shape[1], 0.0
    for a, b in itertools.permutations(np.unique(labels), 2):
        means = [reduced[labels == c].mean(0) for c in (a, b)]
        matrices = [np.eye(size) * reduced[labels == c].var(0).mean() for c in (a, b)]
        middle = (matrices[0] + matrices[1]) / 2
        gap = means[0] - means[1]
        logs = [np.linalg.slogdet(m)[1] for m in (middle, *matrices)]
        distance = gap @ np.linalg.inv(middle) @ gap / 8 + (logs[0] - (logs[1] + logs[2]) / 2) / 2
        total -= np.exp(-distance)
    return total


@pytest.mark.parametrize("shape", [(40, 8), (20, 80), (100, 70)])
def test_it_is_the_sum_of_bhattacharyya_coefficients(shape):
    features, labels = data(*shape)
    assert gbc(features, labels) == pytest.approx(by_definition(features, labels), rel=1e-9)


def test_random_labels_score_lower_and_distant_classes_0():
    features, labels = data()
    shuffled = np.random.default_rng(1).permutation(labels)
    assert -6 < gbc(features, shuffled) < gbc(features, labels) < 0
    assert gbc(features + 99 * np.eye(8)[labels], labels) == pytest.approx(0, abs=1e-9)


def test_rotating_scaling_renaming_and_repeating_change_nothing():
    features, labels = data()
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))
    expected = pytest.approx(gbc(features, labels), rel=1e-9)
    assert gbc(50 * features @ rotation + 3, np.array([1, 2, 0])[labels]) == expected
    assert gbc(np.repeat(features, 2, axis=0), np.repeat(labels, 2)) == expected
    assert gbc(features, 4 * labels, num_classes=10) == expected


def test_degenerate_features_and_classes_are_finite():
    features, labels = data()
    assert gbc(np.ones_like(features), labels) == pytest.approx(-6)
    assert gbc(features, np.zeros_like(labels)) == 0
    single = np.where(np.arange(40) == 3, 2, labels % 2)
    assert -6 < gbc(features, single) < 0


def test_it_runs_inside_jit_and_vmap():
    features, labels = data()
    single = features.astype(np.float32)
    rows = jnp.stack([jnp.arange(40), jnp.arange(40)[::-1]])
    values = jax.jit(lambda x, y: jax.vmap(lambda i: gbc(x[i], y[i], num_classes=3))(rows))(
        single, labels
    )
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, gbc(single, labels), rtol=1e-4)


def test_bad_input_is_refused():
    features, labels = data()
    with pytest.raises(DataError, match="gbc: .*a label for each of 40"):
        gbc(features, labels[:3])
    with pytest.raises(DataError, match="gbc: .*labels from 0"):
        gbc(features, labels - 1)
