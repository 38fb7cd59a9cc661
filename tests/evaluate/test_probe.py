from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

import jaxtransfer as jt
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate import probe as probe_module
from jaxtransfer.evaluate.logistic import fit_logistic
from jaxtransfer.evaluate.probe import MIDDLE_L2, RELATIVE_L2

COUNT, CHANNELS = 90, 6


def clusters(classes: int, seed: int = 0, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters whose channels have scales from 1e-3 to 1e3, far from zero."""
    rng = np.random.default_rng(seed)
    labels = np.arange(COUNT) % classes
    means = rng.normal(size=(classes, CHANNELS))
    rows = means[labels] + spread * rng.normal(size=(COUNT, CHANNELS)) + 2
    return rows * np.geomspace(1e-3, 1e3, CHANNELS), labels


def objective(kernel: np.ndarray, bias: Any, rows: Any, labels: Any, l2: float) -> float:
    """As scikit-learn defines it, divided by C n; with two classes on their difference."""
    logits = rows @ kernel + bias
    logits = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    weights = kernel[:, 1] - kernel[:, 0] if kernel.shape[1] == 2 else kernel
    loss = -log_probabilities[np.arange(len(rows)), labels].mean()
    return float(loss + l2 / 2 * np.square(weights).sum())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("l2", [1e-1, 1e-4])
def test_logistic_is_scikit_learns(classes, l2):
    rows, labels = clusters(classes)
    rows = (rows / np.geomspace(1e-3, 1e3, CHANNELS)).astype(np.float32)
    reference = LogisticRegression(C=1 / (l2 * COUNT), tol=1e-8, max_iter=5000)
    reference.fit(rows.astype(np.float64), labels)
    weights, offset = reference.coef_.T, reference.intercept_
    if classes == 2:
        weights, offset = np.hstack([-weights, weights]) / 2, np.hstack([-offset, offset]) / 2
    probe = jt.linear_probe(rows, labels, l2=l2)
    best = objective(weights, offset, rows, labels, l2)
    assert objective(probe.kernel, probe.bias, rows, labels, l2) == pytest.approx(best, rel=1e-4)
    np.testing.assert_allclose(probe.kernel, weights, atol=0.01 * np.abs(weights).max())
    np.testing.assert_allclose(probe.bias, offset, atol=0.01 * np.abs(weights).max())
    assert np.mean(probe.predict(rows) == reference.predict(rows)) >= 0.98


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 5]), st.sampled_from([1e-5, 1e-2, 1.0]))
def test_logistic_is_at_the_minimum_whatever_the_scales(seed, classes, share):
    """The gradient of the objective in double precision vanishes next to what it was at zero."""
    rows, labels = clusters(classes, seed)
    l2 = share * rows.var(axis=0).mean()
    probe = jt.linear_probe(rows, labels, l2=l2)
    logits = probe.logits(rows)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    targets = np.eye(classes)[labels]
    penalty = 2 * l2 if classes == 2 else l2
    centred = (rows - rows.mean(axis=0)).T / COUNT
    gradient = centred @ (probabilities - targets) + penalty * probe.kernel
    # In units of each channel: by how much a step in it would change the loss.
    unit = np.sqrt(rows.var(axis=0) + penalty)[:, np.newaxis]
    assert np.abs(gradient / unit).max() < 5e-3
    assert np.abs((probabilities - targets).mean(axis=0)).max() < 5e-3


@pytest.mark.parametrize("count", [COUNT, 4])
def test_ridge_is_scikit_learns_for_many_and_for_few_examples(count):
    rows, labels = clusters(3)
    rows, labels, l2 = rows[:count], labels[:count], 0.3
    probe = jt.linear_probe(rows, labels, method="ridge", l2=l2)
    reference = Ridge(alpha=l2 * count, solver="svd").fit(rows, np.eye(3)[labels])
    np.testing.assert_allclose(probe.logits(rows), reference.predict(rows), atol=1e-6)
    assert np.abs(probe.kernel[-1] - reference.coef_.T[-1]).max() < 1e-6


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_the_regulariser_with_the_best_validation_is_fitted_to_all(method):
    rows, labels = clusters(3, spread=2.5)
    held_out = clusters(3, seed=0, spread=2.5)[0][::-1], labels[::-1]
    tried = [1e5, 1e1, 1e-3]
    probe = jt.linear_probe(rows, labels, method=method, l2=tried, validation=held_out)
    alone = {l2: jt.linear_probe(rows, labels, method=method, l2=l2) for l2 in tried}
    scores = {l2: np.mean(p.predict(held_out[0]) == held_out[1]) for l2, p in alone.items()}
    assert dict(probe.path) == pytest.approx(scores)
    assert scores[probe.l2] == max(scores.values()) and alone[1e1].path == ()
    np.testing.assert_allclose(probe.logits(rows), alone[probe.l2].logits(rows), atol=2e-3)
    assert probe.to_dict()["path"][0] == {"l2": 1e5, "accuracy": pytest.approx(scores[1e5])}


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_by_default_scales_and_seeds_are_what_they_are(method):
    rows, labels = clusters(3)
    probe = jt.linear_probe(rows, labels, method=method)
    assert len(probe.path) == len(RELATIVE_L2)
    larger = jt.linear_probe(1000 * rows, labels, method=method)
    assert larger.l2 == pytest.approx(1e6 * probe.l2)
    again = jt.linear_probe(rows, labels, method=method)
    assert np.array_equal(again.kernel, probe.kernel)


@pytest.mark.parametrize("scale", [1e-40, 1e30, 1e100])
def test_scales_beyond_single_precision_change_no_logits(scale):
    rows, labels = clusters(3)
    probe, scaled = (jt.linear_probe(s * rows, labels, l2=s**2 * 0.1) for s in (1.0, scale))
    np.testing.assert_allclose(scaled.logits(scale * rows), probe.logits(rows), atol=1e-4)


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_classes_without_examples_are_never_the_answer(method):
    rows, labels = clusters(2)
    probe = jt.linear_probe(rows, 1 + 2 * labels, method=method, l2=1e-3, num_classes=6)
    assert probe.kernel.shape == (CHANNELS, 6) and set(probe.predict(100 * rows)) <= {1, 3}
    two = jt.linear_probe(rows, labels, method=method, l2=1e-3)
    assert np.array_equal(probe.predict(rows), 1 + 2 * two.predict(rows))


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_one_example_a_class_and_channels_that_do_not_vary(method):
    rows = np.hstack([np.eye(3), np.full((3, 1), 7.0)])
    probe = jt.linear_probe(rows, [0, 1, 2], method=method)
    assert probe.predict(rows).tolist() == [0, 1, 2] and probe.path == ()
    assert np.abs(probe.kernel[3]).max() < 1e-6
    assert probe.l2 == pytest.approx(MIDDLE_L2[method] * rows.var(axis=0).mean())
    nothing = jt.linear_probe(np.ones((4, 2)), [0, 1, 1, 1], method=method)
    assert not nothing.kernel.any() and nothing.predict(np.ones((1, 2))).tolist() == [1]


@pytest.mark.parametrize("is_double", [False, True])
def test_double_precision_is_used_where_it_is_enabled(is_double, monkeypatch):
    rows, labels = clusters(3)
    fits = []

    def noted(*arguments):
        fits.append(fit_logistic(*arguments))
        return fits[-1]

    monkeypatch.setattr(probe_module, "fit_logistic", noted)
    with jax.enable_x64(is_double):
        jt.linear_probe(rows, labels, l2=1.0)
    assert [fit.coefficients.dtype for fit in fits] == [np.float64 if is_double else np.float32]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_other_numbers_are_taken_too(dtype):
    rows = jax.numpy.asarray([[0, 1], [1, 0], [5, 1], [4, 0]], dtype)
    assert jt.linear_probe(rows, [0, 0, 1, 1], method="ridge").predict(rows).tolist() == [
        0,
        0,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((4, 2), np.nan)}, "NaN or infinity in 4 of 4 rows, first in row 0"),
        ({"features": np.zeros((4, 2, 2))}, r"\(count, channels\), found float64 of shape"),
        ({"features": np.array([["a", "b"]] * 4)}, "expected numbers"),
        ({"labels": [0, 1, 1]}, "an integer label for each of 4 rows"),
        ({"labels": [0.0, 1.0, 1.0, 0.0]}, "found float64"),
        ({"labels": [0, 1, -1, 0]}, "labels from 0 to 1, found -1"),
        ({"num_classes": 1}, "labels from 0 to 0, found 0 to 1"),
        ({"labels": [0, 0, 0, 0]}, "at least two classes"),
        ({"method": "svm"}, "among .'logistic', 'ridge'."),
        ({"l2": 0}, "l2 above 0"),
        ({"l2": [1.0, float("inf")]}, "l2 above 0"),
        ({"l2": []}, "l2 above 0"),
        ({"l2": "small"}, "l2 above 0"),
        ({"validation": (np.zeros((2, 3)), [0, 1])}, "validation: expected 2 channels"),
        ({"validation": (np.zeros((2, 2)), [0, 2])}, "labels from 0 to 1, found 0 to 2"),
    ],
)
def test_what_is_no_data_is_refused(change, message):
    given = {"features": np.arange(8.0).reshape(4, 2), "labels": [0, 1, 1, 0]} | change
    with pytest.raises(DataError, match=message):
        jt.linear_probe(**given)


def test_new_features_are_checked():
    probe = jt.linear_probe([[0.0], [1.0]], [0, 1], method="ridge", l2=1.0)
    with pytest.raises(DataError, match="expected 1 channels"):
        probe.predict([[1.0, 2.0]])
    with pytest.raises(DataError, match="row 1"):
        probe.logits([[1.0], [np.inf]])
    assert probe.logits(np.zeros((0, 1))).shape == (0, 2)
