"""Does transfer help? The comparison of arms, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtransfer.data import as_data, load_digits
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.arms import DEFAULT_ARMS, Initialise
from jaxtransfer.evaluate.budget import Budget
from jaxtransfer.evaluate.comparison import compare_arms
from jaxtransfer.evaluate.results import Comparison
from jaxtransfer.evaluate.runs import OnProgress
from jaxtransfer.models import Model
from jaxtransfer.transfer.loading import EMBEDDED_SOURCE, load

DIGITS = "handwritten digits"


def compare(
    source: str | Path | Model = EMBEDDED_SOURCE,
    data: Any = None,
    *,
    test: Any = None,
    validation: Any = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    target: str | None = None,
    arms: Sequence[str] | Mapping[str, Any] = DEFAULT_ARMS,
    budget: Budget | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] = 3,
    initialise: Initialise | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Does transfer help? Train arms with and without it under one budget, over several seeds.

    See `jaxtransfer.evaluate.comparison.compare_arms` for the method, and
    `jaxtransfer.evaluate.curves` for what start, slope and asymptote are. Every measurement reads
    all test images: data that is not in memory is best taken there first, by its `load`.

    Args:
        source: a model, or a reference to one.
        data: all labelled images of the target: `(images, labels)`, or a `Data` such as
            `image_folder` or `tfds_data` gives; by default scikit-learn's handwritten digits.
        test: test images like `data`; by default, for each seed, those that are not trained on.
        validation: images like `data` that learning rates are chosen by; by default some of `data`.
        classes: names of the classes, where labels are integers.
        name: what the source is called in reports.
        target: what the data is called in reports.
        arms: which arms to run: names of recipes such as "probe" or "last(2)", "naive" and
            "scratch"; or a dict from names to these, to plans, or to `jt.Arm(…)`.
        budget: what every arm gets; by default `Budget()`.
        settings: fields of `jaxtransfer.train.Settings` for all arms, such as `augment`.
        seeds: how many seeds, or which.
        initialise: from a seed to the source's network with random weights, for a scratch arm of a
            network that is not in the catalog.
        on_progress: called after each training step.

    Raises:
        DataError, ModelError, PlanError, TrainingError: what is given does not fit together.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> import flax.linen as nn
    >>> import jaxtransfer as jt
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         x = nn.relu(nn.Dense(8, name="body")(x.reshape(len(x), -1)))
    ...         return nn.Dense(2, name="head")(x)
    >>> def random_net(seed):
    ...     variables = Net().init(jax.random.key(seed), jnp.zeros((1, 4, 4, 1)))
    ...     return jt.Model.from_linen(Net(), variables, stages=("body", "head"))
    >>> images = np.random.default_rng(0).random((80, 4, 4, 1), np.float32)
    >>> labels = (images.mean(axis=(1, 2, 3)) > 0.5).astype(int)
    >>> one, other = random_net(1), random_net(2)  # the two sources
    >>> comparison = jt.compare(
    ...     one,
    ...     (images, labels),
    ...     arms={
    ...         "naive": None,
    ...         "scratch": "scratch",
    ...         "one source": jt.Arm("last(2)"),
    ...         "the other": jt.Arm("last(2)", source=other, settings={"weight_decay": 0.0}),
    ...     },
    ...     budget=jt.Budget(per_class=8, steps=4, learning_rates=(1e-2,)),
    ...     initialise=random_net,
    ... )
    >>> sorted(comparison.arms)
    ['naive', 'one source', 'scratch', 'the other']
    >>> paired = comparison.difference("one source", "the other")
    >>> paired.low <= paired.mean <= paired.high
    True
    """
    model = source if isinstance(source, Model) else load(source)
    if data is None and (test is not None or validation is not None):
        raise DataError(
            "compare: expected data where there are test or validation images, found none"
        )
    examples = load_digits() if data is None else as_data(data, classes)
    others = [None if one is None else as_data(one, examples.classes) for one in (test, validation)]
    return compare_arms(
        model,
        examples,
        test=others[0],
        validation=others[1],
        names=(
            name or (model.spec.name if isinstance(source, Model) else str(source)),
            target or (DIGITS if data is None else "own data"),
        ),
        arms=arms,
        budget=budget,
        settings=settings,
        seeds=range(seeds) if isinstance(seeds, int) else seeds,
        initialise=initialise,
        on_progress=on_progress,
    )
