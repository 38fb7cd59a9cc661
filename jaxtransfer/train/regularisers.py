"""What is added to a loss so that training does not forget, or learns from, the source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan
from jaxtransfer.train.losses import Batch
from jaxtransfer.tree import is_below, leaf_names, named_leaves
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class Forward:
    """One forward pass of a training step, as a regulariser sees it.

    Attributes:
        trainable: the parameters that train, `None` in the holes.
        params: all parameters.
        inputs: what entered the network.
        outputs: what came out.
        features: by the name of a stage, what entered it; for the stages that were asked for.
        batch: the batch that the inputs were made from.
    """

    trainable: PyTree
    params: PyTree
    inputs: Any
    outputs: Any
    features: Mapping[str, jax.Array]
    batch: Batch


class Regulariser(Protocol):
    """A term of the loss; a registered pytree, so that arrays of its own enter the step as inputs.

    Attributes:
        stages: the stages whose entering features it looks at.
    """

    stages: tuple[str, ...]

    def __call__(self, forward: Forward) -> jax.Array:
        """The term: one value for the batch, shape (), or one for each example, shape (batch,).

        Where a batch is cut into micro-batches, one value is taken of each of them, and these are
        averaged by their weights: what is no mean over examples, such as singular values of a
        batch, then differs from that of the whole batch.
        """
        ...


# ---------------------------------------------------------------------------------------------
# Towards the parameters of the source


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class L2SP:
    """The distance of what trains to where it started: alpha/2 |w - w0|^2 + beta/2 |w_new|^2.

    It takes the place of weight decay, so train with a `weight_decay` of 0. The value has shape ().

    Source: Li, Grandvalet & Davoine 2018, "Explicit Inductive Bias for Transfer Learning with
    Convolutional Networks" (arXiv 1802.01483), section 3.

    Attributes:
        source: the parameters w0 by name, at least those outside the head that train.
        head: path below which parameters are new.
        alpha: weight of the distance.
        beta: weight of the new parameters' norm.
        kernels_only: whether biases and the scales of norms, leaves of fewer than two dimensions,
            are left alone.
        stages: none: it looks at no features.
    """

    source: dict[str, jax.Array]
    head: str = field(metadata={"static": True})
    alpha: float = field(default=0.1, metadata={"static": True})
    beta: float = field(default=0.01, metadata={"static": True})
    kernels_only: bool = field(default=True, metadata={"static": True})
    stages: tuple[str, ...] = field(default=(), metadata={"static": True})

    def __call__(self, forward: Forward) -> jax.Array:
        """The term for a forward pass, shape ().

        Raises:
            TrainingError: something trains of which the source has nothing.
        """
        leaves = named_leaves(forward.trainable)
        missing = [n for n, _ in leaves if n not in self.source and not is_below(n, {self.head})]
        if missing:
            raise TrainingError(
                f"L2SP: expected the source's value of what trains outside {self.head!r}, found "
                f"none for {missing}; build it for the plan that trains, or without a plan"
            )
        total = jnp.zeros((), jnp.float32)
        for name, leaf in leaves:
            if self.kernels_only and leaf.ndim < 2:
                continue
            if is_below(name, {self.head}):
                total += 0.5 * self.beta * squared_norm(leaf)
            else:
                total += 0.5 * self.alpha * squared_norm(leaf, self.source[name])
        return total


def l2_sp(
    model: Model,
    plan: Plan | None = None,
    *,
    alpha: float = 0.1,
    beta: float = 0.01,
    kernels_only: bool = True,
) -> L2SP:
    """L2-SP around the parameters that a model starts from; its head counts as new.

    Args:
        model: where training starts.
        plan: what trains, so that no other parameters are kept; `None` for all plans.
        alpha: weight of the distance to the start, which the paper chooses for each target task by
            cross-validation.
        beta: weight of the head's norm, 0.01 in the paper's code (run_classification/run_exp.py).
        kernels_only: whether biases and norms are left alone, as in mode 1, the usual one, of
            https://github.com/holyseven/TransferLearningClassification (model/network_base.py);
            `False` is its mode 101.

    Raises:
        TrainingError: a weight is not a number from 0.
        PlanError: the plan does not fit the model.

    Example:
        `make_train_step(model.apply, loss, tx, plan, regularisers=(l2_sp(model, plan),))`
    """
    check_weights("l2_sp", alpha=alpha, beta=beta)
    names = leaf_names(model.params)
    trains = plan.chooses(names) if plan is not None else [True] * len(names)
    source = {
        name: jnp.asarray(leaf)
        for (name, leaf), chosen in zip(named_leaves(model.params), trains, strict=True)
        if chosen and not is_below(name, {model.spec.head})
    }
    return L2SP(source, model.spec.head, float(alpha), float(beta), kernels_only)


# ---------------------------------------------------------------------------------------------
# Away from features that carry little


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchSpectralShrinkage:
    """The smallest singular values of a batch of features: eta times the sum of k squares.

    The features are those that enter the head, the mean over positions where they are maps or
    tokens. Only the values' own directions are differentiated, which is the exact gradient wherever
    there is one: that of a singular value decomposition has the differences of singular values in
    its denominators, and is infinite where two of them are equal. The value has shape ().

    Source: Chen et al. 2019, "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral
    Shrinkage for Safe Transfer Learning" (NeurIPS), section 4; k = 1 is the default of
    https://github.com/thuml/Batch-Spectral-Shrinkage and eta = 0.001 that of the paper.

    Attributes:
        stages: the stage whose entering features it looks at.
        eta: weight of the term.
        k: how many singular values are shrunk.
    """

    stages: tuple[str, ...] = field(metadata={"static": True})
    eta: float = field(default=0.001, metadata={"static": True})
    k: int = field(default=1, metadata={"static": True})

    def __call__(self, forward: Forward) -> jax.Array:
        """The term for a forward pass, shape ().

        Raises:
            TrainingError: the features have fewer than k singular values.
        """
        (stage,) = self.stages
        features = forward.features[stage].astype(jnp.float32)
        features = features.mean(axis=tuple(range(1, features.ndim - 1)))
        if min(features.shape) < self.k:
            raise TrainingError(
                f"BatchSpectralShrinkage: expected at least k = {self.k} singular values, found "
                f"{min(features.shape)} of features of shape {features.shape}; lower k"
            )
        left, _, _ = jnp.linalg.svd(jax.lax.stop_gradient(features), full_matrices=False)
        return self.eta * squared_norm(left[:, -self.k :].T @ features)


def batch_spectral_shrinkage(
    model: Model, *, eta: float = 0.001, k: int = 1
) -> BatchSpectralShrinkage:
    """Batch spectral shrinkage of the features that enter a model's head.

    Args:
        model: whose head it is.
        eta: weight of the term, from 0.
        k: how many singular values are shrunk, from 1.

    Raises:
        TrainingError: `eta` or `k` is out of range.
    """
    check_weights("batch_spectral_shrinkage", eta=eta)
    if k < 1:
        raise TrainingError(f"batch_spectral_shrinkage: expected k of at least 1, found {k}")
    return BatchSpectralShrinkage((head_stage(model),), float(eta), int(k))


# ---------------------------------------------------------------------------------------------
# What the regularisers of this room share


def squared_norm(leaf: jax.Array, origin: jax.Array | None = None) -> jax.Array:
    """The sum of squares of an array, or of its difference to another one, in float32."""
    values = leaf.astype(jnp.float32)
    if origin is not None:
        values = values - origin.astype(jnp.float32)
    return jnp.sum(jnp.square(values))


def head_stage(model: Model) -> str:
    """The stage that the head is, or is in."""
    head = model.spec.head
    return head if head in model.spec.stages else head.split("/")[0]


def check_weights(where: str, **weights: float) -> None:
    """Raise unless all weights of terms are finite numbers from 0.

    Raises:
        TrainingError: some are not.
    """
    wrong = {name: w for name, w in weights.items() if not (math.isfinite(w) and w >= 0)}
    if wrong:
        raise TrainingError(f"{where}: expected finite numbers from 0, found {wrong}")
