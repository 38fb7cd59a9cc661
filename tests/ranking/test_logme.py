import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from jaxtransfer.errors import DataError
from jaxtransfer.ranking import logme


def data(count=40, size=8, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(count, size)), rng.permutation(np.arange(count) % classes)
    features[:, 0] += labels
    return features, labels


def evidence(features, target):
    """The density of y ~ N(0, XX'/alpha + I/beta), at its best over both precisions."""
    count = len(features)
    gram = features @ features.T

    def negative(logs):
        alpha, beta = np.exp(np.clip(logs, -30, 30))
        return -stats.multivariate_normal.logpdf(
            target, np.zeros(count), gram / alpha + np.eye(count) / beta
        )

    starts = [(-2.0, 1.0), (1.0, 2.0), (4.0, 3.0)]
    return (
        max(
            -optimize.minimize(negative, start, method="Nelder-Mead", options={"fatol": 1e-8}).fun
            for start in starts
        )
        / count
    )


@pytest.mark.parametrize("shape", [(40, 8), (20, 50)])
def test_it_is_the_best_log_density_of_the_labels_under_the_model(shape):
    features, labels = data(*shape)
    expected = np.mean([evidence(features, (labels == c).astype(float)) for c in range(3)])
    assert logme(features, labels) == pytest.approx(expected, rel=1e-6)


def test_regression_takes_one_output_or_several():
    features, _ = data()
    rng = np.random.default_rng(1)
    targets = features[:, :2] + 0.1 * rng.normal(size=(40, 2))
    each = [evidence(features, target) for target in targets.T]
    assert logme(features, targets) == pytest.approx(np.mean(each), rel=1e-6)
    assert logme(features, targets[:, 0]) == pytest.approx(each[0], rel=1e-6)
    assert logme(features, rng.normal(size=40)) < each[0]


def by_fixed_point(features, labels):
    """Algorithm 3 of You et al. 2022 by a loop over classes, for more examples than features."""
    count, size = features.shape
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    sigma, values = singular**2, []
    for number in range(labels.max() + 1):
        target = (labels == number).astype(float)
        parts = (left.T @ target) ** 2
        alpha = beta = 1.0
        t = 0.0
        while abs(alpha / beta - t) > 1e-9 * t:
            t = alpha / beta
            gamma = np.sum(sigma / (sigma + t))
            m2 = np.sum(sigma * parts / (t + sigma) ** 2)
            r2 = np.sum(parts / (1 + sigma / t) ** 2) + np.sum(target**2) - np.sum(parts)
            alpha, beta = gamma / m2, (count - gamma) / r2
        values.append(
            size / 2 * np.log(alpha)
            + count / 2 * np.log(beta / (2 * np.pi))
            - np.sum(np.log(alpha + beta * sigma)) / 2
            - beta / 2 * r2
            - alpha / 2 * m2
        )
    return np.mean(values) / count


def test_it_agrees_with_the_published_algorithm():
    features, labels = data()
    features[:, :3] += np.eye(3)[labels]  # Where a class leaves no trace, alpha grows for ever.
    assert logme(features, labels) == pytest.approx(by_fixed_point(features, labels), rel=1e-8)


def test_random_labels_score_lower_and_a_copy_of_the_labels_highest():
    features, labels = data()
    shuffled = np.random.default_rng(2).permutation(labels)
    perfect = logme(np.eye(3)[labels], labels)
    assert logme(features, shuffled) < logme(features, labels) < perfect
    assert np.isfinite(perfect)


def test_rotating_scaling_and_renaming_change_nothing():
    features, labels = data(40, 8)
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))
    expected = pytest.approx(logme(features, labels), rel=1e-9)
    assert logme(features @ rotation, labels) == expected
    assert logme(1000 * features, labels) == expected
    assert logme(features, np.array([2, 0, 1])[labels]) == expected
    assert logme(features, 3 * labels, num_classes=11) == expected


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_features_give_the_evidence_of_a_constant(value):
    _, labels = data()
    score = logme(np.full((40, 4), value), labels)
    constant = np.mean([evidence(np.full((40, 1), value), labels == c) for c in range(3)])
    assert score == pytest.approx(constant, rel=1e-6)


def test_few_examples_classes_of_one_and_equal_examples_are_finite():
    features, labels = data(8, 20, 5)
    assert np.isfinite(logme(features, labels))
    assert np.isfinite(logme(np.repeat(features[:2], 4, axis=0), np.repeat(labels[:2], 4)))
    assert np.isfinite(logme(features, np.zeros(8, int)))
    assert np.isfinite(logme(features, np.zeros(8)))


def test_a_large_mean_hides_no_small_details_in_float64():
    features, labels = data(40, 8)
    features = (features * np.logspace(0, -4, 8)).astype(np.float32) + np.float32(10)
    left, singular, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    rebuilt = left * singular  # The same spectrum without the rounding of X'X.
    assert logme(features, labels) == pytest.approx(logme(rebuilt, labels), rel=1e-8)


def test_it_runs_inside_jit_and_vmap():
    features, labels = data(40, 8)
    single = features.astype(np.float32)
    value = jax.jit(lambda x, y: logme(x, y, num_classes=3))(single, labels)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(logme(single, labels), rel=1e-4)
    rows = np.random.default_rng(4).integers(0, 40, (3, 40))
    with jax.enable_x64(True):
        many = jax.vmap(
            lambda i: logme(jnp.asarray(features)[i], jnp.asarray(labels)[i], num_classes=3)
        )(jnp.asarray(rows))
    assert many.dtype == jnp.float64
    expected = [logme(features[i], labels[i], num_classes=3) for i in rows]
    np.testing.assert_allclose(many, expected, rtol=1e-6)


def test_half_precision_and_integer_features_are_widened():
    features, labels = data(40, 8)
    half = jnp.asarray(features, jnp.bfloat16)
    assert logme(half, labels) == logme(np.asarray(half, np.float64), labels)
    rounded = features.round().astype(int)
    assert logme(rounded, labels) == logme(rounded.astype(float), labels)


FEATURES, LABELS = data(6, 2)
BAD = {
    "shape \\(6,\\)": (FEATURES[:, 0], LABELS, None),
    "shape \\(0, 2\\)": (FEATURES[:0], LABELS[:0], None),
    "a label for each of 6": (FEATURES, LABELS[:5], None),
    "1 values that are not": (np.where(np.arange(12).reshape(6, 2) == 3, np.nan, 1), LABELS, None),
    "found -1 to 1": (FEATURES, LABELS - 1, None),
    "from 0 to 1, found 0 to 2": (FEATURES, LABELS, 2),
    "integers of shape": (FEATURES, np.stack([LABELS, LABELS], 1), None),
    "finite labels": (FEATURES, np.full(6, np.inf), None),
    "\\(count, outputs\\)": (FEATURES, np.ones((6, 1, 1)), None),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message):
    features, labels, num_classes = BAD[message]
    with pytest.raises(DataError, match=f"logme: .*{message}"):
        logme(features, labels, num_classes=num_classes)


def test_traced_labels_need_the_number_of_classes():
    with pytest.raises(DataError, match="num_classes, since labels are traced"):
        jax.jit(logme)(FEATURES, LABELS)
