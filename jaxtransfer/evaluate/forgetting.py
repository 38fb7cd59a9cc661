"""How much of its source task a network has forgotten after it was trained for another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from jaxtransfer.data import Data, as_data
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.answers import check_numbers
from jaxtransfer.evaluate.metrics import Interval, binomial_interval
from jaxtransfer.evaluate.predict import predict
from jaxtransfer.models import Model
from jaxtransfer.surgery import has_head
from jaxtransfer.tree import is_below, map_with_names, named_leaves
from jaxtransfer.types import PyTree

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Forgetting:
    """Accuracy on the source task before and after training for another one.

    Attributes:
        before: accuracy before, with the exact binomial 95 % interval.
        after: accuracy after, on the same examples, likewise.
        forgotten: accuracy before less accuracy after, above 0 where something was forgotten, with
            the 95 % interval of `paired_interval`.
        changed: the share of examples whose answer is another one.
        count: number of examples.
        head: whose head answered after: "old", that of before on the new backbone; "kept", its own,
            which answers for the same classes; or the task whose head it is.
    """

    before: Interval
    after: Interval
    forgotten: Interval
    changed: float
    count: int
    head: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        intervals = ("before", "after", "forgotten")
        return {**asdict(self), **{name: getattr(self, name).to_dict() for name in intervals}}


def forgetting(
    before: Model,
    after: Model,
    data: Data | tuple[Any, Any],
    *,
    old_head: bool | None = None,
    task: str | None = None,
    batch_size: int = 256,
) -> Forgetting:
    """Compare a network's accuracy on its source task before and after it learnt another one.

    Where the head was replaced, the old one is put on the new backbone, with the images
    preprocessed as the new backbone wants them: what then is lost, the features have lost. To train
    on from a network that forgets its task is called catastrophic forgetting (Goodfellow et al.
    2013, "An Empirical Investigation of Catastrophic Forgetting in Gradient-Based Neural Networks",
    arXiv 1312.6211; Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural
    networks", arXiv 1612.00796). A probe forgets nothing, since what is frozen stays to the bit.

    Args:
        before: the source model.
        after: the same network after training, with its head or another one.
        data: labelled examples of the source task that neither was trained on.
        old_head: whether the old head is put on the new backbone; by default where the new head
            has other names or shapes of leaves, or classes of other names.
        task: where `after` has heads for several tasks, the one for the source's classes, as
            `keep_old_head` makes it; `None` puts the old head on.
        batch_size: images that are computed at a time.

    Raises:
        DataError: there is no example, labels are no classes, or are not those of the source model.
        ModelError: `before` has no head, `after` is another network, or has no such task.

    Example:
        `jt.forgetting(source, jt.finetune(source, data).model, source_test).forgotten.mean`
    """
    examples = as_data(data)
    labels = _class_numbers(before, examples)
    if task is not None:
        answering, head = after, task
        _check_task(after, task)
    elif old_head if old_head is not None else _has_another_head(before, after):
        answering, head = _with_old_head(before, after), "old"
    else:
        answering, head = after, "kept"
    known = predict(before, examples, batch_size=batch_size)
    first, offset = known.argmax(axis=-1), before.preprocess.label_offset
    check_numbers("forgetting", labels, known.shape[-1] - offset)
    outputs = predict(answering, examples, batch_size=batch_size)
    second = (outputs if task is None else outputs[task]).argmax(axis=-1)
    was_right = first == labels + offset
    is_right = second == labels + answering.preprocess.label_offset
    count = len(labels)
    lost, gained = int((was_right & ~is_right).sum()), int((~was_right & is_right).sum())
    return Forgetting(
        before=binomial_interval(int(was_right.sum()), count, CONFIDENCE),
        after=binomial_interval(int(is_right.sum()), count, CONFIDENCE),
        forgotten=paired_interval(lost, gained, count),
        changed=float(np.mean(first != second)),
        count=count,
        head=head,
    )


def paired_interval(
    first_only: int, second_only: int, count: int, confidence: float = CONFIDENCE
) -> Interval:
    """The difference of two shares of successes in the same trials, and its interval.

    With p₁ = (first_only + 1) / (count + 2), p₂ likewise, and the normal quantile z it is
    p₁ - p₂ ± z √((p₁ + p₂ - (p₁ - p₂)²) / (count + 2)), cut off at -1 and 1; the difference itself
    is that of the shares as they are.

    Source: Bonett & Price 2012, "Adjusted Wald Confidence Interval for a Difference of Binomial
    Proportions Based on Paired Data", Journal of Educational and Behavioral Statistics 37(4).

    Args:
        first_only: trials in which the first one alone succeeded.
        second_only: trials in which the second one alone succeeded.
        count: number of trials, from 1.
        confidence: how often the interval holds the true difference.

    Raises:
        DataError: there is no trial, or the numbers are out of range.

    >>> [round(x, 3) for x in paired_interval(30, 10, 100)]
    [0.2, 0.078, 0.315]
    """
    from scipy import stats

    if count < 1 or min(first_only, second_only) < 0 or first_only + second_only > count:
        raise DataError(
            "paired_interval: expected numbers from 0 with a sum of at most count, found "
            f"{first_only}, {second_only} and {count}"
        )
    p, q = (first_only + 1) / (count + 2), (second_only + 1) / (count + 2)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    width = z * ((p + q - (p - q) ** 2) / (count + 2)) ** 0.5
    mean = (first_only - second_only) / count
    return Interval(mean, max(p - q - width, -1.0), min(p - q + width, 1.0))


def _class_numbers(before: Model, data: Data) -> np.ndarray:
    """The labels, checked against the outputs of the source model."""
    labels = np.asarray(data.labels) if not isinstance(data.labels, Mapping) else np.empty(0)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise DataError(
            "forgetting: expected at least one example and labels that are classes, integers of "
            f"shape (count,), found {labels.dtype} of shape {labels.shape}"
        )
    if not has_head(before) or before.spec.task_heads:
        raise ModelError(
            f"forgetting({before.spec.name}): expected a source model with one head, found "
            f"{'heads for several tasks' if before.spec.task_heads else 'none'}; give the model as "
            "it was trained on the source"
        )
    if None not in (before.labels, data.classes) and before.labels != data.classes:
        raise DataError(
            f"forgetting: expected the classes of the source model, {before.labels}, in this "
            f"order, found {data.classes}"
        )
    return labels


def _check_task(after: Model, task: str) -> None:
    known = [head.task for head in after.spec.task_heads]
    if task not in known:
        raise ModelError(
            f"forgetting({after.spec.name}): expected a task among {', '.join(known) or 'none'}, "
            f"found {task!r}"
        )


def _has_another_head(before: Model, after: Model) -> bool:
    """Whether the heads have other leaves, or answer for other classes."""
    mine, theirs = ({n: x.shape for n, x in _leaves(m, head=True).items()} for m in (before, after))
    renamed = None not in (before.labels, after.labels) and before.labels != after.labels
    return renamed or mine != theirs or before.spec.head_layers != after.spec.head_layers


def _with_old_head(before: Model, after: Model) -> Model:
    """The source model with the backbone of another one, and what its images go through."""
    wanted, found = _leaves(before, head=False), _leaves(after, head=False)
    differing = sorted(
        name
        for name in {*wanted, *found}
        if getattr(wanted.get(name), "shape", None) != getattr(found.get(name), "shape", None)
    )
    if differing:
        raise ModelError(
            f"forgetting({before.spec.name}): expected the backbone of the source model, found "
            f"{len(differing)} leaves of another shape or name, among them "
            f"{', '.join(differing[:4])}; the old head fits the backbone that it was trained on"
        )
    trees = map_with_names(lambda name, leaf: found.get(name, leaf), _trees(before))
    preprocess = replace(after.preprocess, label_offset=before.preprocess.label_offset)
    return replace(before, **trees, preprocess=preprocess)


def _trees(model: Model) -> dict[str, PyTree]:
    return {"params": model.params, "stats": model.stats}


def _leaves(model: Model, *, head: bool) -> dict[str, Any]:
    """The parameters and statistics of the head, or all others, by name."""
    paths = {f"{tree}/{model.spec.head}" for tree in ("params", "stats")}
    leaves = named_leaves(_trees(model))
    return {name: leaf for name, leaf in leaves if is_below(name, paths) == head}
