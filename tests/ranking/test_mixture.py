import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from jaxtransfer.ranking.mixture import Mixture, fit_mixture, log_joint, seed_rows


def clusters(seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 8.0]])
    spread = np.array([[1.0, 0.5], [0.5, 1.0], [1.0, 1.0]])
    which = np.repeat([0, 1, 2], [20, 30, 50])
    return centres[which] + spread[which] * rng.normal(size=(100, 2)), which


@pytest.fixture(scope="module")
def fitted():
    features, _ = clusters()
    with jax.enable_x64(True):
        fit = jax.jit(fit_mixture, static_argnames="components")
        mixture = fit(jnp.asarray(features), jax.random.key(0), components=3)
    return features, Mixture(*map(np.asarray, mixture))


def test_it_ends_where_scikit_learn_does(fitted):
    features, mixture = fitted
    reference = GaussianMixture(3, covariance_type="diag", random_state=0).fit(features)
    order, expected = np.argsort(mixture.weights), np.argsort(reference.weights_)
    np.testing.assert_allclose(mixture.weights[order], reference.weights_[expected], rtol=1e-3)
    np.testing.assert_allclose(mixture.means[order], reference.means_[expected], atol=1e-2)
    np.testing.assert_allclose(
        mixture.variances[order], reference.covariances_[expected], rtol=1e-2
    )


def test_log_joint_is_weight_times_density(fitted):
    features, mixture = fitted
    with jax.enable_x64(True):
        logs = np.asarray(log_joint(jnp.asarray(features), Mixture(*map(jnp.asarray, mixture))))
    distances = features[:, None] - mixture.means
    densities = np.exp(-(distances**2) / (2 * mixture.variances)) / np.sqrt(
        2 * np.pi * mixture.variances
    )
    np.testing.assert_allclose(logs, np.log(mixture.weights * densities.prod(2)), rtol=1e-9)


def test_further_steps_change_nothing(fitted):
    features, mixture = fitted
    with jax.enable_x64(True):
        joint = log_joint(jnp.asarray(features), Mixture(*map(jnp.asarray, mixture)))
        shares = np.asarray(jax.nn.softmax(joint, axis=1))
    means = shares.T @ features / shares.sum(0)[:, None]
    np.testing.assert_allclose(mixture.means, means, atol=1e-2)
    assert np.sum(mixture.weights) == pytest.approx(1)


def test_seeds_lie_in_different_clusters_and_repeat_by_key():
    features, which = clusters()
    choose = jax.jit(seed_rows, static_argnames="components")
    far = (
        jnp.asarray(features * 10 ** np.arange(2), jnp.float32)
        + 1000 * jnp.asarray(which, jnp.float32)[:, None]
    )
    for seed in range(5):
        rows = choose(far, jax.random.key(seed), components=3)
        assert sorted(which[rows]) == [0, 1, 2]
        assert (rows == choose(far, jax.random.key(seed), components=3)).all()


def test_equal_examples_and_too_many_components_stay_finite():
    mixture = jax.jit(fit_mixture, static_argnames="components")(
        jnp.ones((10, 2)), jax.random.key(0), components=4
    )
    assert isinstance(mixture, Mixture)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in mixture)
    assert bool(jnp.isfinite(log_joint(jnp.ones((10, 2)), mixture)).all())
