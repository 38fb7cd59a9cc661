"""The optimizers that a plan knows by name, each composed as Optax composes it.

Most are a direction, to which weight decay is added before the learning rate is applied. Some are
not: LAMB scales direction and decay together, LARS has its momentum after the learning rate,
Adafactor multiplies by the size of the parameters, schedule-free methods keep a second sequence of
parameters, Prodigy estimates a step size from all leaves. So an optimizer here is a function of
what a plan adds, the rate and each leaf's decay and scale, that puts them where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxtransfer.types import PyTree

Transformation: TypeAlias = optax.GradientTransformation

DEFAULT_OPTIMIZER = "adamw"


@dataclass(frozen=True)
class Parts:
    """What a plan adds to an optimizer for a tree of leaves, which may be a single one.

    Attributes:
        rate: the learning rate of this step, float32, shape ().
        decays: of each leaf the weight decay, 0 for none; a tree of numbers.
        scales: of each leaf the factor on the learning rate; a tree of numbers, or of arrays that
            broadcast against the leaf.
    """

    rate: jax.Array
    decays: PyTree
    scales: PyTree

    @property
    def decay(self) -> Transformation:
        """Adds weight decay to a direction."""

        def one(update: jax.Array, value: jax.Array, decay: Any) -> jax.Array:
            return update + jnp.asarray(decay, value.dtype) * value if _may(decay) else update

        return optax.stateless(
            lambda updates, params: jax.tree.map(one, updates, params, self.decays)
        )

    @property
    def descend(self) -> Transformation:
        """Multiplies a direction by minus the learning rate and the leaf's factor."""
        return optax.stateless(
            lambda updates, _: jax.tree.map(
                lambda update, scale: update * (-self.rate * scale).astype(update.dtype),
                updates,
                self.scales,
            )
        )


def _may(decay: Any) -> bool:
    """Whether a decay may be other than 0; of one that is traced nobody knows yet."""
    return isinstance(decay, Tracer) or bool(decay)


Build: TypeAlias = Callable[[Parts], Transformation]


@dataclass(frozen=True)
class Optimizer:
    """How a plan's rate, decays and scales become a transformation.

    Attributes:
        build: gives the transformation.
        by_block: whether it looks at a leaf as a whole, at its norm or as a matrix; then leaves
            with an axis for the blocks of a scanned stage are taken apart along it.
        shared: whether its state is not one for each leaf but one for all, such as a step size that
            is estimated from all gradients.
        others: for an optimizer of matrices, what trains leaves that are none.
        radius: how far the parameters go uphill, along the gradient of length one, before the
            gradient that counts is taken; 0 for the gradient where they are.
    """

    build: Build
    by_block: bool = False
    shared: bool = False
    others: Build | None = None
    radius: float = 0.0


def after(direction: Callable[[], Transformation]) -> Build:
    """A direction, then weight decay, then the learning rate (Loshchilov & Hutter 2019)."""
    return lambda parts: optax.chain(direction(), parts.decay, parts.descend)


def as_optimizer(given: Callable[[], Transformation] | Optimizer) -> Optimizer:
    """Someone's own optimizer: a direction, whose state may be shared by the leaves."""
    return given if isinstance(given, Optimizer) else Optimizer(after(given), shared=True)


def _lamb(parts: Parts) -> Transformation:
    moments = optax.scale_by_adam(eps=1e-6)
    return optax.chain(moments, parts.decay, optax.scale_by_trust_ratio(), parts.descend)


def _lars(parts: Parts) -> Transformation:
    ratio = optax.scale_by_trust_ratio(trust_coefficient=0.001)
    return optax.chain(parts.decay, ratio, parts.descend, optax.trace(0.9))


def _adafactor(parts: Parts) -> Transformation:
    # The decay, which Optax does not multiply by the learning rate here, has no share in the
    # factor that the parameters' size is.
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        parts.decay,
        parts.descend,
    )


def _schedule_free(direction: Callable[[], Transformation]) -> Build:
    # As a function the rate takes the dtype of the state.
    return lambda parts: optax.contrib.schedule_free(
        after(direction)(parts), learning_rate=lambda _: parts.rate, b1=0.9
    )


def _rms_without_momentum() -> Transformation:
    """What `optax.contrib.schedule_free_adamw` uses: Adam without its first moment."""
    return optax.scale_by_rms(decay=0.999, eps=1e-8, eps_in_sqrt=False, bias_correction=True)


def _prodigy(parts: Parts) -> Transformation:
    """Prodigy with a decay for each leaf; that of Optax has one for all."""
    inner = optax.contrib.prodigy(parts.rate)
    beta1, beta2 = 0.9, 0.999

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        result: Any = inner.update(updates, state, params)
        moved, new_state = result
        # Optax divides by this sum, which is 0 until a gradient meets a learning rate, as it does
        # not in the first step of a warm-up.
        idle = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(new_state.grad_sum)) == 0
        moved = jax.tree.map(lambda move: jnp.where(idle, jnp.zeros_like(move), move), moved)
        found = jnp.where(idle, state.estim_lr, new_state.estim_lr)
        new_state = new_state._replace(estim_lr=found)
        steps = state.count + 1
        corrected = (1 - beta2**steps) ** 0.5 / (1 - beta1**steps)
        rate = state.estim_lr * parts.rate * corrected

        def one(move: jax.Array, value: jax.Array, decay: Any, scale: Any) -> jax.Array:
            move = move - (rate * decay).astype(value.dtype) * value if _may(decay) else move
            return move * jnp.asarray(scale, move.dtype)

        return jax.tree.map(one, moved, params, parts.decays, parts.scales), new_state

    return optax.GradientTransformation(inner.init, update)


def _momentum() -> Transformation:
    return optax.trace(decay=0.9)


OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "adamw": Optimizer(after(optax.scale_by_adam)),
        "sgd": Optimizer(after(_momentum)),
        "lion": Optimizer(after(optax.scale_by_lion)),
        "rmsprop": Optimizer(after(optax.scale_by_rms)),
        "lamb": Optimizer(_lamb, by_block=True),
        "lars": Optimizer(_lars, by_block=True),
        "adafactor": Optimizer(_adafactor, by_block=True),
        "muon": Optimizer(
            # With a learning rate of -1 an optimizer of Optax gives its direction.
            after(lambda: optax.contrib.muon(-1.0)),
            by_block=True,
            others=after(lambda: optax.scale_by_adam(nesterov=True)),
        ),
        "adopt": Optimizer(after(optax.contrib.scale_by_adopt)),
        "prodigy": Optimizer(_prodigy, shared=True),
        "schedule_free_adamw": Optimizer(_schedule_free(_rms_without_momentum)),
        "schedule_free_sgd": Optimizer(_schedule_free(optax.identity)),
        "sam": Optimizer(after(_momentum), radius=0.05),
        "sam_adamw": Optimizer(after(optax.scale_by_adam), radius=0.05),
    }
)
"""By name, the optimizers of a plan; constants are Optax's defaults where none are named.

Weight decay is decoupled: it is multiplied by the learning rate, and by what the optimizer makes of
it, and has no share in moments (in LARS it has one in the momentum).

| name | what it is |
|---|---|
| `adamw` | Loshchilov & Hutter 2019, arXiv 1711.05101 |
| `sgd` | with a momentum of 0.9 |
| `lion` | Chen et al. 2023, arXiv 2302.06675: takes a tenth of the learning rate of `adamw` |
| `rmsprop` | Tieleman & Hinton 2012, lecture 6.5 |
| `lamb` | You et al. 2020, arXiv 1904.00962: for large batches |
| `lars` | You et al. 2017, arXiv 1708.03888: for large batches |
| `adafactor` | Shazeer & Stern 2018, arXiv 1804.04235: little memory; the rate is relative |
| `muon` | Jordan et al. 2024, https://kellerjordan.github.io/posts/muon: matrices are made
  orthogonal; all that is no matrix trains by Adam with Nesterov's momentum |
| `adopt` | Taniguchi et al. 2024, arXiv 2411.02853 |
| `prodigy` | Mishchenko & Defazio 2024, arXiv 2306.06101: finds its step; the learning rate is 1 |
| `schedule_free_adamw`, `schedule_free_sgd` | Defazio et al. 2024, arXiv 2405.15682: takes a
  constant schedule with a warm-up; evaluate at `evaluation_params` |
| `sam`, `sam_adamw` | Foret et al. 2021, arXiv 2010.01412, with `sgd` and with `adamw`: two
  gradients a step, the second a distance of 0.05 uphill |
"""
