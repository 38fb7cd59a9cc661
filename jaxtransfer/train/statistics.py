"""Running statistics of BatchNorm, computed anew over data; parameters stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.compiling import jit
from jaxtransfer.data.arrays import batch_indices
from jaxtransfer.data.preprocess import preprocess_images
from jaxtransfer.data.source import Data
from jaxtransfer.errors import DataError, ModelError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan
from jaxtransfer.tree import flatten, is_below, map_with_names, path_prefixes, select
from jaxtransfer.types import PyTree, Selection

# So large that a batch's statistics vanish beside it, and a power of two, so that a product with it
# is exact: what an update makes of it is the momentum, to the bit.
HUGE = 2.0**60

# Below this, the ratio of two variances says that they are the same: such a module keeps the biased
# one, or has more than 100,000 values a channel, where the two do not differ in float32.
SAME = 4e-6

Totals = dict[str, np.ndarray]
Update = Callable[[PyTree, jax.Array], PyTree]


def recalibrate_stats(
    model: Model,
    data: Data,
    *,
    plan: Plan | None = None,
    paths: Selection | None = None,
    batch_size: int = 64,
    batches: int | None = None,
    seed: int = 0,
) -> Model:
    """A model whose BatchNorm modules have the statistics of data; its parameters are the same.

    In each batch the chosen modules normalise by the batch, as in training, and all others run as
    in evaluation, dropout included. The new mean and variance are those of all batches together: no
    decay, no dependence on the last batches. A variance is pooled: that within the batches and that
    of their means. Where a module keeps the unbiased variance, the new one is unbiased too.

    Only the running statistics are seen from outside, new = m * old + (1 - m) * batch. Two probes
    find the momentum m of each module and whether its variance is unbiased, so that the modules of
    the zoo, of Flax and of one's own serve alike.

    Args:
        model: a `Model`; it stays as it is.
        data: what the statistics are computed over; labels do not matter.
        plan: chooses the modules whose statistics it lets follow the data.
        paths: chooses the modules by the names of their statistics, such as `layer4/**`. Without
            `plan` and `paths` all modules are chosen.
        batch_size: examples a batch, by which the modules below normalise; the last batch may be
            smaller.
        batches: how many batches there are; `None` for all examples once.
        seed: of the order of the examples, since batches of one class would normalise otherwise.

    Raises:
        TrainingError: `batch_size` or `batches` is below 1, or `plan` and `paths` are both given.
        DataError: there are no examples, or they cannot be preprocessed for the model.
        ModelError: no module is chosen, half of one is, or a chosen one keeps no running mean and
            variance.
        PatternError, PlanError: `paths` or `plan` does not fit the model.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576), section 3.1,
    PreciseBN; `torch.optim.swa_utils.update_bn` takes the mean of the batches' variances instead.

    Example:
        `recalibrate_stats(model, data, paths="layer4/**")`
    """
    if batch_size < 1 or (batches is not None and batches < 1) or None not in (plan, paths):
        raise TrainingError(
            "recalibrate_stats: expected batch_size and batches of at least 1, plan or paths or "
            f"neither, found {batch_size}, {batches}, {plan and plan.name} and {paths!r}"
        )
    data = data.ready(model.preprocess)
    if not len(data):
        raise DataError("recalibrate_stats: expected at least one example, found none")
    modules = _chosen_modules(model, plan, paths)
    update = _update(model, modules)

    def images_of(indices: np.ndarray) -> jax.Array:
        return jnp.asarray(data.read(indices)["image"])

    kinds = _probe(model, modules, update, images_of(np.arange(min(2, len(data)))))
    zero = _with_chosen(model.stats, modules, 0.0)
    totals = {module: _Totals() for module in modules}
    for indices in _batches(len(data), batch_size, batches, seed):
        found = flatten(update(zero, images_of(indices)))
        for module, kind in kinds.items():
            mean, var = (kind.batch_value(found[f"{module}/{name}"]) for name in ("mean", "var"))
            totals[module].add(mean, var, kind.values(len(indices)), kind.is_unbiased)
    new = {}
    for module, kind in kinds.items():
        new[f"{module}/mean"], new[f"{module}/var"] = totals[module].result(kind.is_unbiased)
    stats = map_with_names(
        lambda name, old: jnp.asarray(new[name], old.dtype) if name in new else old, model.stats
    )
    return replace(model, stats=stats)


# ---------------------------------------------------------------------------------------------
# Which modules


def _chosen_modules(model: Model, plan: Plan | None, paths: Selection | None) -> tuple[str, ...]:
    """The paths of the modules whose statistics are computed anew.

    Raises:
        ModelError: as `recalibrate_stats` says.
    """
    if plan is not None:
        groups = plan.assign_stats(model.params, model.stats)
        names = tuple(name for name, group in groups.items() if not group.freezes_stats)
    else:
        names = select(model.stats, "**" if paths is None else paths) if model.stats else ()
    modules = tuple(dict.fromkeys(name.rpartition("/")[0] for name in names))
    whole = {
        module: sorted(n for n in flatten(model.stats) if is_below(n, {module}))
        for module in modules
    }
    others = [
        name
        for module, found in whole.items()
        if set(found) != {f"{module}/mean", f"{module}/var"} or not set(found) <= set(names)
        for name in found
    ]
    if not modules or others:
        raise ModelError(
            f"recalibrate_stats({model.spec.name}): expected modules with a running mean and var, "
            f"chosen together, found {', '.join(others) or 'none'}; choose other statistics"
        )
    return modules


class _AllBut(frozenset[str]):
    """The paths of all modules but some and those around them: the rest runs as in evaluation."""

    def __contains__(self, path: object) -> bool:
        return not super().__contains__(path)


def _around(modules: Collection[str]) -> _AllBut:
    return _AllBut(prefix for module in modules for prefix in path_prefixes(module))


# ---------------------------------------------------------------------------------------------
# What a module makes of its statistics


@dataclass(frozen=True)
class _Kind:
    """How a module keeps its statistics.

    Attributes:
        momentum: share of the old statistics that each batch leaves.
        positions: values that a channel has in each example, where the variance is unbiased.
    """

    momentum: float
    positions: int | None

    @property
    def is_unbiased(self) -> bool:
        return self.positions is not None

    def batch_value(self, updated: jax.Array) -> np.ndarray:
        """The batch's own statistic, from what an update makes of 0."""
        return np.asarray(updated, np.float64) / (1 - self.momentum)

    def values(self, examples: int) -> int:
        """How many values of a channel a batch has, as far as their ratio to others matters."""
        return examples * (self.positions or 1)


def _update(model: Model, modules: Sequence[str]) -> Update:
    """From statistics and images to the statistics after one forward pass."""
    others = _around(modules)

    @jit
    def update(stats: PyTree, images: jax.Array) -> PyTree:
        inputs = preprocess_images(images, model.preprocess)
        rngs = {"dropout": jax.random.key(0)}
        _, new = model.apply(
            model.params, stats, inputs, train=True, rngs=rngs, frozen_modules=others
        )
        return new

    return update


def _with_chosen(stats: PyTree, modules: Collection[str], value: float) -> PyTree:
    return map_with_names(
        lambda name, old: jnp.full_like(old, value) if is_below(name, modules) else old, stats
    )


def _probe(
    model: Model, modules: Sequence[str], update: Update, images: jax.Array
) -> dict[str, _Kind]:
    """The momentum of each module, and whether its variance is unbiased.

    Raises:
        ModelError: a module's statistics are no running averages.
    """
    once = flatten(update(_with_chosen(model.stats, set(modules), 0.0), images))
    twice = flatten(
        update(_with_chosen(model.stats, set(modules), 0.0), jnp.concatenate([images, images]))
    )
    huge = flatten(update(_with_chosen(model.stats, set(modules), HUGE), images))
    kinds, problems = {}, []
    for module in modules:
        names = (f"{module}/mean", f"{module}/var")
        momenta = set().union(*(_momenta(huge[name]) for name in names))
        if len(momenta) != 1 or not 0 <= min(momenta) < 1:
            problems.append(f" - {module}: {sorted(momenta)[:3]}")
            continue
        positions = _positions(once[f"{module}/var"], twice[f"{module}/var"], len(images))
        kinds[module] = _Kind(momenta.pop(), positions)
    if problems:
        raise ModelError(
            f"recalibrate_stats({model.spec.name}): expected running averages with a share of the "
            "old from 0, below 1, found\n" + "\n".join(problems) + "\nchoose other statistics"
        )
    return kinds


def _momenta(updated: jax.Array) -> set[float]:
    """The momentum of each channel, from what an update makes of `HUGE`."""
    shares = np.unique(np.asarray(updated, np.float32) / np.float32(HUGE))
    # The shortest decimal that the number stands for is what someone wrote: 0.99, where 1 - 0.99 in
    # float32 has lost a hundred times the precision of 0.99. What is left of a share of 0 is the
    # batch's own statistic.
    return {float(str(share)) if abs(share) > 1e-9 else 0.0 for share in shares}


def _positions(once: jax.Array, twice: jax.Array, examples: int) -> int | None:
    """Values of a channel in an example, from its variance in a batch and in the batch twice over.

    Biased variances of the two are the same. Unbiased ones, of n values and of 2n, have the ratio
    (2n - 1) / (2n - 2).

    Returns:
        `None` for biased variances, and for values of which there are so many that it is the same.
    """
    single, double = (np.asarray(values, np.float64) for values in (once, twice))
    varies = double > 0
    if not varies.any():
        return None
    excess = float(np.median(single[varies] / double[varies])) - 1
    if excess < SAME:
        return None
    return max(round((1 + 1 / (2 * excess)) / examples), 1)


# ---------------------------------------------------------------------------------------------
# All batches together


class _Totals:
    """Mean and variance of several batches together, from those of each, in float64.

    The mean of all is the mean of the batches' means by their sizes; the squares around it are
    those around each batch's mean and those of the means around it (Chan, Golub & LeVeque 1983,
    "Algorithms for Computing the Sample Variance", equation 2.1).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, mean: np.ndarray, var: np.ndarray, count: int, is_unbiased: bool) -> None:
        """Take in a batch of `count` values."""
        away, whole = mean - self.mean, self.count + count
        # Of a single value both BatchNorms say the variance 0.
        self.squares = self.squares + var * (count - is_unbiased)
        self.squares = self.squares + np.square(away) * self.count * count / whole
        self.mean = self.mean + away * count / whole
        self.count = whole

    def result(self, is_unbiased: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance."""
        return self.mean, self.squares / max(self.count - is_unbiased, 1)


def _batches(count: int, batch_size: int, batches: int | None, seed: int) -> Iterator[np.ndarray]:
    """The positions of the examples of each batch; all of them once where `batches` is `None`."""
    if batches is not None:
        for number in range(batches):
            yield batch_indices(count, min(batch_size, count), number, seed)
        return
    order = batch_indices(count, count, 0, seed)
    for first in range(0, count, batch_size):
        yield order[first : first + batch_size]
