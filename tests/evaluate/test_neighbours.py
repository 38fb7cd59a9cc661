from __future__ import annotations

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate import nearest

rng = np.random.default_rng(0)
LABELS = rng.integers(0, 3, 40)
ROWS = rng.normal(size=(40, 5)) + np.eye(5)[LABELS]
QUERIES = rng.normal(size=(7, 5)).astype(np.float32)


def votes(k: int, temperature: float) -> np.ndarray:
    """The sums of exp(cos / T) by class, one query at a time."""
    sums = np.zeros((len(QUERIES), 3))
    for row, query in zip(sums, QUERIES.astype(float), strict=True):
        cosines = ROWS @ query / (np.linalg.norm(ROWS, axis=1) * np.linalg.norm(query))
        for i in sorted(range(len(ROWS)), key=lambda j: -cosines[j])[:k]:
            row[LABELS[i]] += np.exp(cosines[i] / temperature)
    return sums


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (9, 0.07), (9, 1e-2), (100, 0.5)])
def test_votes_are_those_of_the_nearest(k, temperature):
    found = jt.nearest_neighbours(ROWS, LABELS, k=k, temperature=temperature).logits(QUERIES)
    with np.errstate(divide="ignore"):
        expected = np.log(votes(k, temperature))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_a_low_temperature_overflows_nowhere():
    logits = jt.nearest_neighbours(ROWS, LABELS, k=40, temperature=1e-6).logits(QUERIES)
    assert np.isfinite(logits).all()
    nearest = jt.nearest_neighbours(ROWS, LABELS, k=1).predict(QUERIES)
    assert np.array_equal(logits.argmax(axis=1), nearest)


def test_blocks_do_not_change_the_votes(monkeypatch):
    fitted = jt.nearest_neighbours(ROWS, LABELS, k=9)
    whole = fitted.logits(QUERIES)
    monkeypatch.setattr(nearest, "REFERENCES", 16)
    monkeypatch.setattr(nearest, "QUERIES", 4)
    np.testing.assert_allclose(fitted.logits(QUERIES), whole, rtol=1e-5)


def test_lengths_do_not_matter_and_a_row_of_zeros_is_like_none():
    fitted = jt.nearest_neighbours(ROWS * np.geomspace(1e-30, 1e30, 40)[:, np.newaxis], LABELS, k=9)
    same = jt.nearest_neighbours(ROWS, LABELS, k=9)
    np.testing.assert_allclose(fitted.logits(QUERIES), same.logits(QUERIES), rtol=1e-4)
    assert np.isfinite(same.logits(np.zeros((1, 5)))).any()


@pytest.mark.parametrize("fit", [jt.nearest_neighbours, jt.nearest_mean])
def test_a_class_without_examples_and_no_queries(fit):
    fitted = fit(ROWS, LABELS, num_classes=5)
    logits = fitted.logits(QUERIES)
    assert logits.shape == (7, 5) and (logits[:, 3:] == -np.inf).all()
    assert fitted.predict(QUERIES).max() < 3
    assert fitted.logits(np.zeros((0, 5))).shape == (0, 5)
    with pytest.raises(DataError, match="expected 5 channels"):
        fitted.predict(np.zeros((1, 4)))


def test_euclidean_means_are_those_of_the_classes():
    means = np.stack([ROWS[LABELS == c].mean(axis=0) for c in range(3)])
    distances = np.square(QUERIES[:, np.newaxis].astype(float) - means).sum(axis=-1)
    fitted = jt.nearest_mean(ROWS, LABELS, metric="euclidean")
    logits = fitted.logits(QUERIES)
    np.testing.assert_allclose(logits, -distances, rtol=1e-6)
    far = jt.nearest_mean(ROWS + 1e6, LABELS, metric="euclidean")
    np.testing.assert_allclose(far.logits(QUERIES.astype(float) + 1e6), logits, rtol=1e-5)
    assert np.array_equal(fitted.predict(QUERIES), distances.argmin(axis=1))


def test_cosine_means_are_those_of_unit_rows():
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    means = np.stack([unit[LABELS == c].mean(axis=0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    queries = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    logits = jt.nearest_mean(ROWS, LABELS).logits(QUERIES)
    np.testing.assert_allclose(logits, queries @ means.T, atol=1e-6)


@pytest.mark.parametrize(
    "how", [{"k": 0}, {"k": 2.5}, {"temperature": 0.0}, {"temperature": float("inf")}]
)
def test_neighbours_refuse_what_is_out_of_range(how):
    with pytest.raises(DataError, match="k of at least 1 and a temperature above 0"):
        jt.nearest_neighbours(ROWS, LABELS, **how)


def test_an_unknown_metric_is_refused():
    with pytest.raises(DataError, match="among .'cosine', 'euclidean'."):
        jt.nearest_mean(ROWS, LABELS, metric="manhattan")
