"""In which dtypes a training step keeps, computes and gives, and how float16 keeps its gradients.

Half precision halves the memory of activations and doubles the speed of the units that are made for
it. Sums stay in float32: losses, the statistics of normalisations, metrics, and the copy of the
parameters that the optimizer moves (Micikevicius et al. 2018, "Mixed Precision Training",
arXiv 1710.03740, sections 3.1 and 3.3).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxtransfer.errors import TrainingError
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class LossScaling:
    """How the factor on the loss is chosen that keeps small gradients from vanishing in float16.

    It grows after a row of steps with finite gradients, and shrinks with each step whose gradients
    are not, which is skipped (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).

    Source: the names' meaning and the defaults are those of
    https://docs.pytorch.org/docs/stable/amp.html#torch.amp.GradScaler

    Attributes:
        initial: the first factor.
        growth_factor: by which it grows, above 1.
        backoff_factor: by which it shrinks, between 0 and 1.
        growth_interval: number of finite steps in a row after which it grows, from 1.

    Raises:
        TrainingError: a number is out of range; the message lists all that are.
    """

    initial: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        problems = [
            f"{name} {text}, found {getattr(self, name)}"
            for name, fits, text in (
                ("initial", self.initial > 0, "above 0"),
                ("growth_factor", self.growth_factor > 1, "above 1"),
                ("backoff_factor", 0 < self.backoff_factor < 1, "between 0 and 1"),
                ("growth_interval", self.growth_interval >= 1, "of at least 1"),
            )
            if not (fits and math.isfinite(getattr(self, name)))
        ]
        if problems:
            raise TrainingError(f"LossScaling: expected {'; '.join(problems)}")


@dataclass(frozen=True)
class Precision:
    """The dtypes of a training step.

    Attributes:
        parameters: in which the trainable parameters are kept and moved, and with them the
            optimizer's state. Frozen ones are kept as they are.
        compute: in which the network computes: its parameters and inputs are cast to it. Running
            statistics are not.
        output: to which outputs and features are cast before the loss sees them.
        loss_scale: how the loss is scaled, `None` for not at all.

    Raises:
        TrainingError: a dtype is not one of floats.

    >>> Precision(compute="bfloat16") == BFLOAT16
    True
    """

    parameters: Any = field(default="float32")
    compute: Any = field(default="float32")
    output: Any = field(default="float32")
    loss_scale: LossScaling | None = None

    def __post_init__(self) -> None:
        for name in ("parameters", "compute", "output"):
            given = getattr(self, name)
            try:
                dtype = None if given is None else jnp.dtype(given)
            except TypeError:
                dtype = None
            if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
                raise TrainingError(
                    f"Precision: expected a dtype of floats for {name}, such as 'bfloat16', "
                    f"found {given!r}"
                )
            object.__setattr__(self, name, dtype)


FLOAT32 = Precision()
"""Everything in float32."""

BFLOAT16 = Precision(compute="bfloat16")
"""Parameters in float32, the network in bfloat16, whose range is that of float32."""

FLOAT16 = Precision(compute="float16", loss_scale=LossScaling())
"""Parameters in float32, the network in float16, whose small range asks for a scaled loss."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossScale:
    """The factor on the loss, as a training state carries it.

    Attributes:
        factor: float32, shape ().
        finite_steps: number of finite steps since it last changed, int32, shape ().
    """

    factor: jax.Array
    finite_steps: jax.Array


def init_loss_scale(precision: Precision) -> LossScale | None:
    """The factor before the first step; `None` where the loss is not scaled."""
    if precision.loss_scale is None:
        return None
    return LossScale(jnp.float32(precision.loss_scale.initial), jnp.int32(0))


def next_loss_scale(scale: LossScale, finite: jax.Array, how: LossScaling) -> LossScale:
    """The factor after a step whose gradients were finite, or were not.

    >>> how = LossScaling(initial=8.0, growth_interval=2)
    >>> scale = LossScale(jnp.float32(8), jnp.int32(0))
    >>> factors = []
    >>> for finite in (True, True, False, True):
    ...     scale = next_loss_scale(scale, jnp.array(finite), how)
    ...     factors.append(float(scale.factor))
    >>> factors
    [8.0, 16.0, 8.0, 8.0]
    """
    steps = jnp.where(finite, scale.finite_steps + 1, 0)
    grows = steps >= how.growth_interval
    growth = jnp.where(grows, jnp.float32(how.growth_factor), jnp.float32(1))
    factor = scale.factor * jnp.where(finite, growth, jnp.float32(how.backoff_factor))
    return LossScale(factor, jnp.where(grows, 0, steps))


@contextlib.contextmanager
def promotion(precision: Precision) -> Iterator[None]:
    """How dtypes mix in a step: in half precision as layers need it, else as is set.

    Normalisations mix half precision with their float32 statistics, and attention with its float32
    weights, which strict promotion, where it is set, forbids: JAX looks at it when it traces, and
    again when it compiles.
    """
    is_half = precision.compute.itemsize < 4
    with jax.numpy_dtype_promotion("standard") if is_half else contextlib.nullcontext():
        yield


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """The tree with its floating-point leaves in a dtype; others, such as token ids, stay.

    >>> tree = cast_floats({"image": jnp.ones(2), "id": jnp.arange(2)}, jnp.bfloat16)
    >>> {name: str(leaf.dtype) for name, leaf in tree.items()}
    {'id': 'int32', 'image': 'bfloat16'}
    """

    def cast(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)
