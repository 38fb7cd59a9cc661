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

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxtransfer.data import k_folds
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.features import Labelled, check_features, check_labelled
from jaxtransfer.evaluate.logistic import fit_logistic
from jaxtransfer.evaluate.metrics import accuracy
from jaxtransfer.evaluate.principal import principal_axes

RELATIVE_L2 = tuple(10.0**power for power in range(1, -6, -1))
"""What is tried by default, as shares of the features' mean variance: so units do not matter."""

MIDDLE_L2 = {"logistic": 1e-2, "ridge": 1e-1}
"""The share that is taken where nothing is left to choose one by."""

ABSENT = -30.0
"""A class without examples has this logit, where the others have a mean of 0: the likeliest one
has at least 0, and in float32 exp(-30) does not change a sum that is at least 1."""

FOLDS = 5
ENOUGH = 200
"""A fifth of fewer examples says too little: each fifth has its turn, and the mean counts."""

METHODS = ("logistic", "ridge")

_Linear: TypeAlias = tuple[np.ndarray, np.ndarray]
_Solve: TypeAlias = Callable[[np.ndarray, Sequence[float]], list[_Linear]]


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
        validation: a pair of features and labels; by default a fifth of each class, or where that
            is fewer than 200 examples each fifth in turn. With the regulariser that was chosen on
            them, all of `features` are fitted again.
        num_classes: how many classes there are; by default as many as the labels tell.
        seed: of the fifths.

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
    solve: _Solve = (
        _Logistic(train).fits if method == "logistic" else functools.partial(_ridge, train)
    )
    scale = float(train.features.var(axis=0, dtype=np.float64).mean()) or 1.0
    candidates = _candidates(l2, scale)
    everything = np.ones(len(train.labels), bool)
    path: tuple[tuple[float, float], ...] = ()
    # Where nothing is left to choose by, or there is no choice.
    best = min(candidates, key=lambda one: abs(math.log(one / scale / MIDDLE_L2[method])))
    parts = _parts(train, validation, seed) if len(candidates) > 1 else []
    if parts:
        right = np.zeros(len(candidates))
        for kept, held_out in parts:
            fits = solve(kept, candidates)
            right += [accuracy(held_out.features @ w + b, held_out.labels) for w, b in fits]
        scores = (right / len(parts)).tolist()
        path = tuple(zip(candidates, scores, strict=True))
        ties = [one for one, score in path if score == max(scores)]
        best = ties[len(ties) // 2]
    ((kernel, bias),) = solve(everything, [best])
    return LinearProbe(kernel, bias, method, best, path)


def _candidates(l2: Any, scale: float) -> list[float]:
    """The regularisers to try, the strongest first."""
    if l2 is None:
        return [share * scale for share in RELATIVE_L2]
    values = np.asarray(l2).reshape(-1)
    is_number = values.dtype.kind in "fiu"
    if not is_number or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise DataError(f"linear_probe: expected l2 above 0, one or several, found {l2!r}")
    return sorted(set(values.astype(np.float64).tolist()), reverse=True)


def _parts(
    train: Labelled, validation: tuple[Any, Any] | None, seed: int
) -> list[tuple[np.ndarray, Labelled]]:
    """Which examples are fitted and what regularisers are chosen on, once or for each fifth."""
    everything = np.ones(len(train.labels), bool)
    if validation is not None:
        known = train.num_classes, train.features.shape[1]
        return [(everything, check_labelled("linear_probe, validation", *validation, *known))]
    # An only example is needed to learn its class from.
    several = np.flatnonzero(np.bincount(train.labels)[train.labels] > 1)
    if not len(several):
        return []
    folds = k_folds(train.labels[several], min(FOLDS, len(several)), seed)
    if len(several) >= FOLDS * ENOUGH:
        folds = folds[:1]
    parts = []
    for _, held_out in folds:
        kept = everything.copy()
        kept[several[held_out]] = False
        parts.append((kept, train.take(several[held_out])))
    return parts


# ---------------------------------------------------------------------------------------------
# Paths of regularisers


def _ridge(train: Labelled, kept: np.ndarray, path: Sequence[float]) -> list[_Linear]:
    """Kernel and bias for each regulariser, from one decomposition."""
    axes = principal_axes(train.features[kept])
    targets = np.eye(train.num_classes)[train.labels[kept]]
    shares = targets.mean(axis=0)
    products = axes.products(targets - shares) / len(targets)
    kernels = [axes.axes @ (products / (axes.variances + l2)[:, np.newaxis]) for l2 in path]
    return [(kernel, shares - axes.mean @ kernel) for kernel in kernels]


class _Logistic:
    """Fits to parts of the same examples, each beginning where the one before it ended.

    The features are turned once, by axes of all examples. Those that are left out have a weight of
    0, so that one program does for all.
    """

    def __init__(self, train: Labelled) -> None:
        self.axes = principal_axes(train.features)
        self.present, labels = np.unique(train.labels, return_inverse=True)
        self.num_classes, self.labels = train.num_classes, labels.astype(np.int32)
        self.dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        turned = self.axes.turned(self.dtype)
        ones = np.ones((len(turned), 1), self.dtype)
        self.columns = np.concatenate([turned, ones], axis=1)
        self.ended: dict[float, np.ndarray] = {}

    def fits(self, kept: np.ndarray, path: Sequence[float]) -> list[_Linear]:
        """Kernel and bias for each regulariser, the strongest first."""
        weights = (kept / kept.sum()).astype(self.dtype)
        counts = np.bincount(self.labels, weights=weights, minlength=len(self.present))
        start = np.zeros((self.columns.shape[1], len(self.present)), self.dtype)
        start[-1] = np.log(counts)
        fits = []
        for l2 in path:
            start = self._coefficients(weights, l2, self.ended.get(l2, start))
            self.ended[l2] = start
            fits.append(self._linear(start.astype(np.float64)))
        return fits

    def _coefficients(self, weights: np.ndarray, l2: float, start: np.ndarray) -> np.ndarray:
        """Along the axes, in their unit, so that float32 holds features of any scale.

        The curvature of the cross-entropy is about (I - 11ᵀ / C) / C times the second moments of
        the features where all C classes are as likely (Böhning 1992, "Multinomial Logistic
        Regression Algorithm", equation 2.3): along the axes it is diagonal.
        """
        classes = len(self.present)
        # Two opposite columns have half the squares of their difference.
        penalty = (2 * l2 if classes == 2 else l2) / self.axes.unit**2
        variances = np.append(self.axes.variances / self.axes.unit**2, 1)
        penalties = np.append(np.full(len(variances) - 1, penalty), 0)
        scales = 1 / np.sqrt(variances / classes + penalties)
        with jax.default_matmul_precision("highest"):
            fit = fit_logistic(
                self.columns,
                self.labels,
                weights,
                penalties.astype(self.dtype),
                scales.astype(self.dtype),
                start,
            )
        return np.asarray(fit.coefficients)

    def _linear(self, coefficients: np.ndarray) -> _Linear:
        # The loss does not see what all classes share, and the penalty wants none of it.
        coefficients -= coefficients.mean(axis=1, keepdims=True)
        kernel = np.zeros((len(self.axes.mean), self.num_classes))
        bias = np.full(self.num_classes, ABSENT)
        kernel[:, self.present] = self.axes.axes @ coefficients[:-1] / self.axes.unit
        bias[self.present] = coefficients[-1] - self.axes.mean @ kernel[:, self.present]
        return kernel, bias
