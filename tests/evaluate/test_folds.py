import numpy as np
import pytest
from scipy import stats

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.folds import (
    fold_interval,
    fold_means,
    held_out_correct,
    paired_interval,
    probe_folds,
)


class Remembers:
    """Knows the labels of what it was fitted to, and answers -1 to anything else."""

    def __init__(self, features, labels):
        self.known = dict(zip(features[:, 0].tolist(), labels.tolist(), strict=True))

    def predict(self, features):
        return np.array([self.known.get(value, -1) for value in features[:, 0].tolist()])


def test_no_example_is_answered_by_a_probe_that_has_seen_it():
    labels = np.arange(20) % 2
    features = np.arange(20.0)[:, None]
    folds = probe_folds(labels, 5, seed=0)
    assert not held_out_correct(features, labels, Remembers, folds).any()
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(20))


def test_there_are_no_more_folds_than_examples_of_the_rarest_class():
    labels = np.array([0] * 10 + [1] * 3)
    folds = probe_folds(labels, 5, seed=0)
    assert len(folds) == 3
    assert all(set(labels[train]) == {0, 1} for train, _ in folds)
    correct = np.zeros(13, bool)
    correct[folds[0][1]] = True
    assert fold_means(correct, folds).tolist() == [1, 0, 0]


@pytest.mark.parametrize(("labels", "folds"), [([0, 0], 2), ([0, 0, 1], 2), ([0, 0, 1, 1], 1)])
def test_folds_that_cannot_be_are_refused(labels, folds):
    with pytest.raises(DataError, match="at least 2 folds of at least 2 classes"):
        probe_folds(np.array(labels), folds, seed=0)


def test_the_interval_over_folds_is_that_of_nadeau_and_bengio():
    values = np.array([0.7, 0.9, 0.8, 0.85, 0.75])
    found = fold_interval(values)
    # Each of 5 folds trains on 4 times as many examples as it holds out.
    error = np.sqrt((1 / 5 + 1 / 4) * values.var(ddof=1))
    expected = stats.t.interval(0.95, 4, loc=values.mean(), scale=error)
    np.testing.assert_allclose(found, [values.mean(), *expected])
    with pytest.raises(DataError, match="at least 2 folds"):
        fold_interval([0.5])


def test_the_paired_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 40)) < [[0.8], [0.6]]
    expected = stats.ttest_rel(first.astype(float), second.astype(float)).confidence_interval()
    np.testing.assert_allclose(paired_interval(first, second)[1:], expected)
