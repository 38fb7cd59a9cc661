import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.ranking.spectrum import gram, spectrum


@pytest.mark.parametrize("shape", [(20, 7), (7, 20)])
def test_it_is_the_singular_value_decomposition_with_targets(shape):
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=shape), rng.normal(size=(shape[0], 3))
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    with jax.enable_x64(True):
        variances, energies, rank = map(np.asarray, jax.jit(spectrum)(features, targets))
    np.testing.assert_allclose(variances[::-1], values**2, rtol=1e-9)
    np.testing.assert_allclose(energies[::-1], (left.T @ targets) ** 2, atol=1e-9)
    assert rank == 7


def test_directions_of_rounding_count_for_nothing():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 7))
    with jax.enable_x64(True):
        variances, energies, rank = map(np.asarray, jax.jit(spectrum)(features, np.ones((20, 1))))
    assert rank == 3
    assert (variances > 0).tolist() == 4 * [False] + 3 * [True]
    assert (energies[:4] == 0).all()


def test_the_product_of_wide_features_is_whole_and_symmetric():
    features = np.random.default_rng(2).integers(-9, 9, (5, 515)).astype(np.float32)
    product = np.asarray(jax.jit(gram)(jnp.asarray(features)))
    assert (product == features.T @ features).all()
    assert (product == product.T).all()
