import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from jaxtransfer.errors import DataError
from jaxtransfer.ranking import leep, nce


def data(count=30, sources=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    logits = rng.normal(size=(count, sources))
    logits[:, 0] += labels
    powers = np.exp(logits)
    return powers / powers.sum(1, keepdims=True), labels


def by_definition(probabilities, labels):
    """Equations 1 and 2 of Nguyen et al. 2020, one example and one class at a time."""
    count, sources = probabilities.shape
    joint = {}
    for row, label in zip(probabilities, labels, strict=True):
        for z in range(sources):
            joint[label, z] = joint.get((label, z), 0) + row[z] / count
    marginal = [sum(joint[y, z] for y in set(labels)) for z in range(sources)]
    total = 0.0
    for row, label in zip(probabilities, labels, strict=True):
        total += np.log(sum(joint[label, z] / marginal[z] * row[z] for z in range(sources)))
    return total / count


def entropy(labels):
    shares = np.bincount(labels)[np.bincount(labels) > 0] / len(labels)
    return -np.sum(shares * np.log(shares))


def test_leep_is_what_the_paper_defines():
    probabilities, labels = data()
    assert leep(probabilities, labels) == pytest.approx(by_definition(probabilities, labels))


def test_nce_is_mutual_information_less_entropy():
    rng = np.random.default_rng(1)
    sources, labels = rng.integers(0, 5, 30), rng.integers(0, 3, 30)
    assert nce(sources, labels) == pytest.approx(
        mutual_info_score(sources, labels) - entropy(labels)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_leep_has_the_papers_bound_and_equals_nce_where_the_source_is_sure(seed):
    probabilities, labels = data(seed=seed)
    sources = probabilities.argmax(1)
    # Property 1 of Nguyen et al. 2020.
    bound = nce(sources, labels, num_source_classes=5) + np.mean(np.log(probabilities.max(1)))
    assert bound <= leep(probabilities, labels) <= 0
    sure = np.eye(5)[sources]
    assert leep(sure, labels) == pytest.approx(nce(sources, labels, num_source_classes=5))


def test_a_source_that_knows_the_classes_reaches_0_and_one_that_knows_nothing_the_entropy():
    _, labels = data()
    assert leep(np.eye(3)[labels], labels) == pytest.approx(0, abs=1e-12)
    assert nce(labels, labels) == pytest.approx(0, abs=1e-12)
    assert leep(np.full((30, 5), 0.2), labels) == pytest.approx(-entropy(labels))
    assert nce(np.zeros(30, int), labels) == pytest.approx(-entropy(labels))


def test_renaming_repeating_and_splitting_change_nothing():
    probabilities, labels = data()
    expected = pytest.approx(leep(probabilities, labels), rel=1e-12)
    assert leep(probabilities[:, ::-1], np.array([2, 0, 1])[labels]) == expected
    assert leep(np.repeat(probabilities, 2, 0), np.repeat(labels, 2)) == expected
    assert leep(probabilities, 2 * labels, num_classes=9) == expected
    # A source class that never occurs, and one cut in halves.
    wider = np.concatenate(
        [
            probabilities[:, :1] / 2,
            probabilities[:, :1] / 2,
            probabilities[:, 1:],
            np.zeros((30, 1)),
        ],
        axis=1,
    )
    assert leep(wider, labels) == expected
    sources = probabilities.argmax(1)
    same = nce(np.repeat(sources, 2) + 3, np.repeat(labels, 2))
    assert same == pytest.approx(nce(sources, labels))


def test_more_classes_than_source_classes_and_classes_of_one_are_finite():
    probabilities, _ = data(sources=2)
    labels = np.arange(30)
    assert leep(probabilities, labels) == pytest.approx(by_definition(probabilities, labels))
    assert nce(probabilities.argmax(1), labels) < 0
    assert leep(probabilities, np.zeros(30, int)) == pytest.approx(0, abs=1e-12)


def test_they_run_inside_jit_and_vmap():
    probabilities, labels = data()
    single = probabilities.astype(np.float32)
    rows = jnp.stack([jnp.arange(30), jnp.arange(30)[::-1]])

    def both(p, y):
        z = jnp.argmax(p, axis=1)
        return leep(p, y, num_classes=3), nce(z, y, num_classes=3, num_source_classes=5)

    first, second = jax.jit(lambda p, y: jax.vmap(lambda i: both(p[i], y[i]))(rows))(single, labels)
    np.testing.assert_allclose(first, leep(single, labels), rtol=1e-5)
    np.testing.assert_allclose(second, nce(single.argmax(1), labels), rtol=1e-5)
    assert first.dtype == second.dtype == jnp.float32


PROBABILITIES, LABELS = data()


def test_logits_are_refused():
    with pytest.raises(DataError, match="leep: expected rows of probabilities.*apply softmax"):
        leep(PROBABILITIES + 1, LABELS)
    with pytest.raises(DataError, match="lowest value of -0.5"):
        leep(np.array([[1.5, -0.5]] * 30), LABELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LABELS, LABELS[:4]), "as many source_labels as labels, found 30 and 4"),
        ((LABELS - 1, LABELS), "source_labels from 0 to 1, found -1 to 1"),
        ((PROBABILITIES, LABELS), "source_labels as integers of shape"),
    ],
)
def test_nce_refuses_what_are_no_labels(arguments, message):
    with pytest.raises(DataError, match=f"nce: expected {message}"):
        nce(*arguments)


def test_traced_source_labels_need_their_number():
    with pytest.raises(DataError, match="num_source_classes, since source_labels are traced"):
        jax.jit(lambda z: nce(z, LABELS))(LABELS)
