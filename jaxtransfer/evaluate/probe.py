"""Linear probes: what a linear classifier on frozen features reaches, without a loop of training.

Both methods fit a kernel W of shape (channels, classes) and a bias b, which is not penalised, to
the features x and classes y of n examples:

*   "logistic", multinomial logistic regression: the mean over the examples of the cross-entropy of
    x W + b, plus l2 / 2 · Σ W². It is the objective of scikit-learn's `LogisticRegression` divided
    by C n, with l2 = 1 / (C n); as there, with two classes the penalty is on the difference of
    their two columns, l2 / 2 · Σ (W₁ - W₀)²
    (https://scikit-learn.org/stable/modules/linear_model.html#logistic-regression).
*   "ridge", least squares on one-hot targets t: 1 / (2 n) · Σ (x W + b - t)² + l2 / 2 · Σ W², that
    of scikit-learn's `Ridge` with alpha = l2 n. It has a closed form (Hoerl & Kennard 1970, "Ridge
    Regression: Biased Estimation for Nonorthogonal Problems").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxtransfer.data import stratified_split
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.features import Labelled, check_features, check_labelled
from jaxtransfer.evaluate.logistic import fit_logistic
from jaxtransfer.evaluate.metrics import accuracy
from jaxtransfer.evaluate.principal import PrincipalAxes, principal_axes

RELATIVE_L2 = {
    "logistic": tuple(10.0**power for power in range(1, -6, -1)),
    "ridge": tuple(10.0**power for power in range(2, -6, -1)),
}
"""What is tried by default, as shares of the features' mean variance: so units do not matter."""

MIDDLE_L2 = {"logistic": 1e-2, "ridge": 1e-1}
"""The share that is taken where nothing is left to choose one by."""

ABSENT = -30.0
"""A class without examples has this logit, where the others have a mean of 0: the likeliest one
has at least 0, and in float32 exp(-30) does not change a sum that is at least 1."""

METHODS = ("logistic", "ridge")


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier on features; see `linear_probe`.

    Attributes:
        kernel: shape (channels, classes), float64.
        bias: shape (classes,), float64.
        method: "logistic" or "ridge".
        l2: the regulariser that it was fitted with.
        path: each regulariser that was tried with its accuracy on the validation examples, the
            strongest first; empty where there was no choice.
    """

    kernel: np.ndarray
    bias: np.ndarray
    method: str
    l2: float
    path: tuple[tuple[float, float], ...] = ()

    def logits(self, features: Any) -> np.ndarray:
        """Features times kernel, plus bias: shape (count, classes), float64.

        Args:
            features: shape (count, channels), finite numbers.

        Raises:
            DataError: the features are no such rows.
        """
        return check_features("linear_probe", features, len(self.kernel)) @ self.kernel + self.bias

    def predict(self, features: Any) -> np.ndarray:
        """The class with the highest logit; of equal ones the lowest. Shape (count,), integers."""
        return self.logits(features).argmax(axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """Method, regulariser and path as JSON can hold them."""
        path = [{"l2": l2, "accuracy": score} for l2, score in self.path]
        return {"method": self.method, "l2": self.l2, "path": path}


def linear_probe(
    features: Any,
    labels: Any,
    *,
    method: str = "logistic",
    l2: float | Sequence[float] | None = None,
    validation: tuple[Any, Any] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> LinearProbe:
    """The best linear classifier on features, its regulariser chosen on validation examples.

    The module's description says what is minimised. The kernel is a function of the features alone:
    they may be of any scale, and channels that do not vary get no weight. A class without examples
    is never the answer.

    Args:
        features: shape (count, channels), finite numbers, such as `jt.features` gives.
        labels: shape (count,), integers from 0; at least two classes.
        method: "logistic" or "ridge".
        l2: the regulariser, above 0; of several the one with the highest accuracy on the validation
            examples is taken, of equally good ones the middle one. By default several decades
            around the features' mean variance.
        validation: a pair of features and labels; by default a fifth of each class. With the
            regulariser that was chosen on them, all of `features` are fitted again.
        num_classes: how many classes there are; by default as many as the labels tell.
        seed: of the fifth.

    Raises:
        DataError: features or labels are not of that kind, there is a single class, or `method` or
            `l2` is none.

    >>> probe = linear_probe([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1], method="ridge", l2=0.1)
    >>> probe.predict([[2.0], [3.0]])
    array([0, 1])
    """
    train = check_labelled("linear_probe", features, labels, num_classes)
    if method not in METHODS or len(np.unique(train.labels)) < 2:
        raise DataError(
            f"linear_probe: expected a method among {METHODS} and labels of at least two classes, "
            f"found {method!r} and {len(np.unique(train.labels))}"
        )
    candidates = _candidates(l2, method, train)
    path: tuple[tuple[float, float], ...] = ()
    if len(candidates) == 1:
        (best,) = candidates
    else:
        kept, held_out = _held_out(train, validation, seed)
        if held_out is None:
            scale = float(train.features.var(axis=0, dtype=np.float64).mean()) or 1.0
            best = min(candidates, key=lambda one: abs(np.log(one / scale / MIDDLE_L2[method])))
        else:
            fits = _fits(kept, method, candidates)
            scores = [accuracy(held_out.features @ w + b, held_out.labels) for w, b in fits]
            path = tuple(zip(candidates, scores, strict=True))
            ties = [one for one, score in path if score == max(scores)]
            best = ties[(len(ties) - 1) // 2]
    ((kernel, bias),) = _fits(train, method, [best])
    return LinearProbe(kernel, bias, method, best, path)


def _candidates(l2: Any, method: str, train: Labelled) -> list[float]:
    """The regularisers to try, the strongest first."""
    if l2 is None:
        scale = float(train.features.var(axis=0, dtype=np.float64).mean()) or 1.0
        return [share * scale for share in RELATIVE_L2[method]]
    values = np.atleast_1d(np.asarray(l2, np.float64))
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise DataError(f"linear_probe: expected l2 above 0, one or several, found {l2!r}")
    return sorted(set(values.tolist()), reverse=True)


def _held_out(
    train: Labelled, validation: tuple[Any, Any] | None, seed: int
) -> tuple[Labelled, Labelled | None]:
    """What is fitted and what regularisers are chosen on, `None` where there is nothing for it."""
    if validation is not None:
        known = train.num_classes, train.features.shape[1]
        return train, check_labelled("linear_probe, validation", *validation, *known)
    # An only example is needed to learn its class from.
    has_several = np.bincount(train.labels)[train.labels] > 1
    several, single = np.flatnonzero(has_several), np.flatnonzero(~has_several)
    kept, held_out = stratified_split(train.labels[several], (0.8, 0.2), seed)
    rest = np.concatenate([several[kept], single])
    if not len(held_out) or len(np.unique(train.labels[rest])) < 2:
        return train, None
    return train.take(rest), train.take(several[held_out])


# ---------------------------------------------------------------------------------------------
# A path of regularisers


def _fits(
    train: Labelled, method: str, path: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel and bias for each regulariser; classes without examples are put in afterwards."""
    present, labels = np.unique(train.labels, return_inverse=True)
    solve: Callable[..., Any] = _logistic if method == "logistic" else _ridge
    axes = principal_axes(train.features)
    fits = []
    for coefficients, at_mean in solve(axes, labels, len(present), path):
        kernel = np.zeros((len(axes.mean), train.num_classes))
        bias = np.full(train.num_classes, ABSENT if method == "logistic" else 0.0)
        kernel[:, present] = axes.axes @ coefficients
        bias[present] = at_mean - axes.mean @ kernel[:, present]
        fits.append((kernel, bias))
    return fits


def _ridge(
    axes: PrincipalAxes, labels: np.ndarray, classes: int, path: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Coefficients along the axes, and logits of the mean features."""
    targets = np.eye(classes)[labels]
    shares = targets.mean(axis=0)
    products = axes.products(targets - shares) / len(labels)
    return [(products / (axes.variances + l2)[:, np.newaxis], shares) for l2 in path]


def _logistic(
    axes: PrincipalAxes, labels: np.ndarray, classes: int, path: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same; each fit begins where the one before it ended.

    The curvature of the cross-entropy is at most, and where all classes are as likely it is,
    (I - 11ᵀ / classes) / classes times the features' second moments (Böhning 1992, "Multinomial
    Logistic Regression Algorithm"): along the axes it is diagonal.
    """
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
    turned = axes.turned(dtype)
    columns = np.concatenate([turned, np.ones((len(turned), 1), dtype)], axis=1)
    counts = np.bincount(labels, minlength=classes)
    start = np.zeros((columns.shape[1], classes), dtype)
    start[-1] = np.log(counts / counts.sum())
    fits = []
    for l2 in path:
        # Two opposite columns have half the squares of their difference.
        penalties = np.append(np.full(turned.shape[1], 2 * l2 if classes == 2 else l2), 0)
        scales = 1 / np.sqrt(np.append(axes.variances, 1) / classes + penalties)
        with jax.default_matmul_precision("highest"):
            fit = fit_logistic(
                columns,
                labels.astype(np.int32),
                penalties.astype(dtype),
                scales.astype(dtype),
                start,
            )
        start = np.asarray(fit.coefficients)
        # The loss does not see what all classes share, and the penalty wants none of it.
        centred = start.astype(np.float64) - start.mean(axis=1, keepdims=True)
        fits.append((centred[:-1], centred[-1]))
    return fits
