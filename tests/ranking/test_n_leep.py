import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from jaxtransfer.errors import DataError
from jaxtransfer.ranking import leep, n_leep
from jaxtransfer.ranking.spectrum import principal_components

KEY = jax.random.key(0)


def data(count=60, size=8, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    features = rng.normal(size=(count, size))
    features[:, :3] += 12 * np.eye(3)[labels % 3]
    return features, labels


@pytest.mark.parametrize("shape", [(60, 8), (12, 30)])
def test_the_principal_components_are_scikit_learns(shape):
    features, _ = data(*shape)
    with jax.enable_x64(True):
        ours = np.asarray(principal_components(jnp.asarray(features), 0.8))
    ours = ours[:, np.any(ours != 0, axis=0)][:, ::-1]
    reference = PCA(0.8, svd_solver="full").fit_transform(features)
    assert ours.shape == reference.shape
    np.testing.assert_allclose(np.abs(ours), np.abs(reference), atol=1e-9)


def test_it_is_leep_of_a_mixture_on_principal_components():
    features, labels = data()
    # Two of the three clusters share a label: the mixture knows them, the labels do not.
    labels = np.minimum(labels, 1)
    noisy = np.where(np.arange(60) % 7 == 0, 1 - labels, labels)
    reduced = PCA(0.8, svd_solver="full").fit_transform(features)
    posteriors = (
        GaussianMixture(3, covariance_type="diag", random_state=0).fit(reduced)
    ).predict_proba(reduced)
    value = n_leep(features, noisy, key=KEY, components=3)
    assert value == pytest.approx(leep(posteriors, noisy), abs=1e-4)
    assert value < -0.2


def test_random_labels_score_lower():
    features, labels = data()
    shuffled = np.random.default_rng(1).permutation(labels)
    high = n_leep(features, labels, key=KEY, components=3)
    assert n_leep(features, shuffled, key=KEY, components=3) < high <= 0
    assert high == pytest.approx(0, abs=1e-6)


def test_rotating_scaling_and_renaming_change_nothing():
    features, labels = data()
    noisy = np.where(np.arange(60) % 7 == 0, (labels + 1) % 3, labels)
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))
    expected = pytest.approx(n_leep(features, noisy, key=KEY, components=3), abs=1e-6)
    moved = 30 * features @ rotation + 4
    assert n_leep(moved, np.array([1, 2, 0])[noisy], key=KEY, components=3) == expected


def test_five_components_a_class_unless_there_are_fewer_examples():
    features, labels = data(12, 30)
    default = n_leep(features, labels, key=KEY)
    assert default == n_leep(features, labels, key=KEY, components=12)
    features, labels = data()
    assert n_leep(features, labels, key=KEY) == n_leep(features, labels, key=KEY, components=15)


def test_degenerate_features_and_classes_are_finite():
    features, labels = data()
    entropy = -np.log(3)
    assert n_leep(np.ones_like(features), labels, key=KEY, components=3) == pytest.approx(entropy)
    assert n_leep(features, np.zeros_like(labels), key=KEY, components=3) == pytest.approx(0)
    single = np.where(np.arange(60) == 3, 2, labels % 2)
    assert -3 < n_leep(features, single, key=KEY, components=3) < 0


def test_it_runs_inside_jit_and_vmap():
    features, labels = data()
    noisy = np.where(np.arange(60) % 7 == 0, (labels + 1) % 3, labels)
    keys = jax.random.split(KEY, 2)
    values = jax.jit(
        lambda x, y, keys: jax.vmap(lambda key: n_leep(x, y, key=key, components=3, num_classes=3))(
            keys
        )
    )(features.astype(np.float32), noisy, keys)
    assert values.dtype == jnp.float32
    expected = [n_leep(features, noisy, key=key, components=3) for key in keys]
    np.testing.assert_allclose(values, expected, rtol=1e-2)


@pytest.mark.parametrize("components", [0, 61])
def test_a_number_of_components_that_cannot_be_is_refused(components):
    with pytest.raises(DataError, match=f"from 1 to 60 components.*found {components}"):
        n_leep(*data(), key=KEY, components=components)
