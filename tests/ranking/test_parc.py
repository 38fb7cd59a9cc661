import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxtransfer.errors import DataError
from jaxtransfer.ranking import parc


def data(count=24, sources=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    powers = np.exp(rng.normal(size=(count, sources)) + 2 * np.eye(sources)[labels])
    return powers / powers.sum(1, keepdims=True), labels


def by_definition(rows, labels):
    below = np.tril_indices(len(rows), -1)
    distances = 1 - np.corrcoef(rows)
    label_distances = 1 - np.corrcoef(np.eye(labels.max() + 1)[labels])
    return stats.spearmanr(distances[below], label_distances[below].round(9)).statistic


def test_it_is_spearmans_correlation_of_pearsons_distances():
    rows, labels = data()
    assert parc(rows, labels) == pytest.approx(by_definition(rows, labels), rel=1e-9)
    ties = np.eye(6)[np.random.default_rng(1).integers(0, 6, 24)]
    expected = stats.spearmanr(
        *[(y[:, None] != y[None])[np.tril_indices(24, -1)] for y in (ties.argmax(1), labels)]
    ).statistic
    assert parc(ties, labels) == pytest.approx(expected, abs=1e-9)


def test_the_labels_themselves_reach_1_and_random_ones_about_0():
    rows, labels = data()
    assert parc(np.eye(3)[labels], labels) == pytest.approx(1)
    shuffled = np.random.default_rng(2).permutation(labels)
    assert abs(parc(rows, shuffled)) < 0.2 < parc(rows, labels) < 1


def test_order_names_and_scale_change_nothing():
    rows, labels = data()
    expected = pytest.approx(parc(rows, labels), rel=1e-9)
    assert parc(7 * rows[:, ::-1] + 1, np.array([2, 0, 1])[labels]) == expected
    assert parc(rows[::-1], labels[::-1]) == expected
    assert parc(rows, 5 * labels, num_classes=20) == expected


def test_degenerate_rows_and_labels_are_0():
    rows, labels = data()
    assert parc(np.ones_like(rows), labels) == 0
    assert parc(rows, np.zeros_like(labels)) == 0
    assert parc(rows, np.arange(24)) == 0


def test_a_key_chooses_examples():
    rows, labels = data()
    first = parc(rows, labels, key=jax.random.key(0), examples=12)
    assert first == parc(rows, labels, key=jax.random.key(0), examples=12)
    assert first != parc(rows, labels, key=jax.random.key(1), examples=12)
    assert parc(rows, labels, key=jax.random.key(1)) == parc(rows, labels)
    with pytest.raises(DataError, match="a key to choose 12 of 24 examples"):
        parc(rows, labels, examples=12)


def test_it_runs_inside_jit_and_vmap():
    rows, labels = data()
    single = rows.astype(np.float32)
    order = jnp.stack([jnp.arange(24), jnp.arange(24)[::-1]])
    values = jax.jit(lambda x, y: jax.vmap(lambda i: parc(x[i], y[i]))(order))(single, labels)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, parc(single, labels), rtol=1e-4)
    keys = jax.random.split(jax.random.key(0), 2)
    several = jax.vmap(lambda key: parc(jnp.asarray(single), labels, key=key, examples=12))(keys)
    np.testing.assert_allclose(
        several[0], parc(single, labels, key=keys[0], examples=12), rtol=1e-4
    )


def test_bad_input_is_refused():
    rows, labels = data()
    with pytest.raises(DataError, match="parc: .*a label for each of 24"):
        parc(rows, labels[:3])
    with pytest.raises(DataError, match="parc: .*labels from 0"):
        parc(rows, labels - 1)
    with pytest.raises(DataError, match="two examples at least, found 1"):
        parc(rows[:1], labels[:1])
