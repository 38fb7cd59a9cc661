"""Answers of another network as targets: distillation, and learning without forgetting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.data.preprocess import preprocess_images
from jaxtransfer.errors import ModelError, TrainingError
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.surgery import replace_head
from jaxtransfer.train.regularisers import Forward, check_weights
from jaxtransfer.tree import leaf_names, named_leaves, subtree
from jaxtransfer.types import PyTree

OLD_TASK = "old"
NEW_TASK = "new"


# ---------------------------------------------------------------------------------------------
# Distillation


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Distillation:
    """alpha T^2 times the divergence of a student's softened answers from a teacher's.

    The divergence is KL(softmax(teacher / T) || softmax(student / T)), in nats, whose gradient is
    that of the cross-entropy with soft targets; T^2 keeps its size whatever T. The teacher runs in
    evaluation, inside the step. The value has shape (batch,).

    Source: Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv
    1503.02531), section 2.

    Attributes:
        params: the teacher's parameters.
        stats: its running statistics.
        apply: its forward pass.
        preprocess: how the teacher gets the batch's images; `None` where it takes the student's
            inputs.
        temperature: T.
        alpha: weight of the term beside a loss on labels of weight 1.
        stages: none: it looks at no features.
    """

    params: PyTree
    stats: PyTree
    apply: Callable[..., Any] = field(metadata={"static": True})
    preprocess: Preprocess | None = field(default=None, metadata={"static": True})
    temperature: float = field(default=2.0, metadata={"static": True})
    alpha: float = field(default=2.0, metadata={"static": True})
    stages: tuple[str, ...] = field(default=(), metadata={"static": True})

    def __call__(self, forward: Forward) -> jax.Array:
        """The term for a forward pass, shape (batch,)."""
        inputs = forward.inputs
        if self.preprocess is not None:
            inputs = preprocess_images(forward.batch["image"], self.preprocess)
        teacher, _ = self.apply(self.params, self.stats, inputs, train=False)
        soft = _softened(teacher, self.temperature)
        divergence = jnp.exp(soft) * (soft - _softened(forward.outputs, self.temperature))
        return self.alpha * self.temperature**2 * jnp.sum(divergence, axis=-1)


def distillation(
    student: Model, teacher: Model, *, temperature: float = 2.0, alpha: float = 2.0
) -> Distillation:
    """Distillation of a teacher into a student with the same classes.

    Where both prepare images alike, the teacher gets the very inputs of the student. Otherwise it
    prepares the batch's images, augmented ones included, in its own way.

    Args:
        student: what is trained.
        teacher: any model with as many outputs.
        temperature: T, above 0; the default is the best one of the paper's section 3.
        alpha: weight of the term beside a loss on labels of weight 1: the default is the paper's
            "relative weight of 0.5 on the cross-entropy for the hard targets" (section 3). For
            (1 - a) times the one plus a times the other, take a / (1 - a).

    Raises:
        TrainingError: `temperature` or `alpha` is out of range.
        ModelError: the outputs are not as many, the classes have other names, the labels have
            another offset, or one of the two takes bytes and the other numbers in [0, 1].
    """
    _check_temperature("distillation", temperature, alpha=alpha)
    problems = []
    if None not in (student.num_classes, teacher.num_classes):
        if student.num_classes != teacher.num_classes:
            problems.append(f"outputs: {student.num_classes} and {teacher.num_classes}")
        elif student.labels and teacher.labels and student.labels != teacher.labels:
            problems.append("classes: other names, or the same in another order")
    mine, other = student.preprocess, teacher.preprocess
    if mine.label_offset != other.label_offset:
        problems.append(f"label_offset: {mine.label_offset} and {other.label_offset}")
    if mine != other and (mine.scale is None) != (other.scale is None):
        problems.append(f"preprocess.scale: {mine.scale} and {other.scale}")
    if problems:
        raise ModelError(
            "distillation: expected a student and a teacher with the same classes that can share "
            "a batch of images, found\n - " + "\n - ".join(problems) + "\nreplace the head, or "
            "give one of the two another Preprocess"
        )
    return Distillation(
        params=jax.tree.map(jnp.asarray, teacher.params),
        stats=jax.tree.map(jnp.asarray, teacher.stats),
        apply=teacher.apply,
        preprocess=None if mine == other else other,
        temperature=float(temperature),
        alpha=float(alpha),
    )


# ---------------------------------------------------------------------------------------------
# Learning without forgetting


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LearningWithoutForgetting:
    """lambda_o times the cross-entropy of the old head's answers with those of the source network.

    Both are softened by the temperature: p^(1/T), normalised. The old head is one of the network's
    tasks and trains with the rest. The source network runs on the same inputs, in evaluation, so
    its responses are those that one would have recorded, augmented images included. The value has
    shape (batch,).

    Source: Li & Hoiem 2016, "Learning without Forgetting" (arXiv 1606.09282), section 3.

    Attributes:
        params: the source network's parameters.
        stats: its running statistics.
        apply: its forward pass.
        task: the name of the old head among the network's outputs.
        temperature: T.
        lambda_o: weight of the old task.
        stages: none: it looks at no features.
    """

    params: PyTree
    stats: PyTree
    apply: Callable[..., Any] = field(metadata={"static": True})
    task: str = field(default=OLD_TASK, metadata={"static": True})
    temperature: float = field(default=2.0, metadata={"static": True})
    lambda_o: float = field(default=1.0, metadata={"static": True})
    stages: tuple[str, ...] = field(default=(), metadata={"static": True})

    def __call__(self, forward: Forward) -> jax.Array:
        """The term for a forward pass, shape (batch,)."""
        recorded, _ = self.apply(self.params, self.stats, forward.inputs, train=False)
        targets = jnp.exp(_softened(recorded, self.temperature))
        answers = _softened(forward.outputs[self.task], self.temperature)
        return -self.lambda_o * jnp.sum(targets * answers, axis=-1)


def learning_without_forgetting(
    model: Model,
    source: Model,
    *,
    task: str = OLD_TASK,
    temperature: float = 2.0,
    lambda_o: float = 1.0,
) -> LearningWithoutForgetting:
    """Learning without forgetting of what a source network answers.

    Args:
        model: what is trained, such as `keep_old_head(source, …)`. The paper trains the new head
            alone first, as the plans of `lp_ft` do.
        source: the network before; its answers are kept.
        task: which of the model's heads has the source's classes.
        temperature: T, above 0, 2 in the paper's section 3.
        lambda_o: weight of the old task, 1 in the paper's section 3.

    Raises:
        TrainingError: `temperature` or `lambda_o` is out of range.
        ModelError: the model has no such head, its classes are not as many as the source's, or the
            two prepare images in different ways.
    """
    _check_temperature("learning_without_forgetting", temperature, lambda_o=lambda_o)
    counts = {head.task: head.num_classes for head in model.spec.task_heads}
    wanted = _count_outputs(source)
    same_images = replace(source.preprocess, label_offset=0) == replace(
        model.preprocess, label_offset=0
    )
    if counts.get(task) != wanted or not same_images:
        raise ModelError(
            f"learning_without_forgetting: expected a model with a head {task!r} for the source's "
            f"{wanted} classes and the source's preprocessing, found heads {counts} and "
            f"{'the same' if same_images else 'another'} preprocessing; make it by keep_old_head"
        )
    return LearningWithoutForgetting(
        params=jax.tree.map(jnp.asarray, source.params),
        stats=jax.tree.map(jnp.asarray, source.stats),
        apply=source.apply,
        task=task,
        temperature=float(temperature),
        lambda_o=float(lambda_o),
    )


def keep_old_head(
    source: Model,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    old: str = OLD_TASK,
    new: str = NEW_TASK,
    key: jax.Array | int = 0,
) -> Model:
    """A model with the source's head beside a new one, on shared features.

    Its outputs are a dict from task to logits; those of the old task are the source's.

    Args:
        source: the network before; its head is a dense layer.
        num_classes: how many classes the new task has, if they have no names.
        classes: the names of the new task's classes.
        old: what the old task is called.
        new: what the new task is called.
        key: a random key, or a seed for one, for the new head.

    Raises:
        ModelError: not one of `num_classes` and `classes` is given, or the source's head is
            something else than one dense layer.
    """
    wanted = num_classes if classes is None else tuple(classes)
    if wanted is None or (num_classes is not None and classes is not None):
        raise ModelError(
            "keep_old_head: expected one of num_classes and classes, found "
            f"{'neither' if wanted is None else 'both'}"
        )
    # Rows are copied by name, and the names of ImageNet's classes are not all different.
    numbers = tuple(map(str, range(_count_outputs(source) or 0)))
    numbered = replace(source, labels=numbers)
    model = replace_head(numbered, tasks={old: numbers, new: wanted}, key=key)
    kept = [np.ravel(leaf) for _, leaf in named_leaves(subtree(model.params, model.spec.head)[old])]
    had = [np.ravel(leaf) for _, leaf in named_leaves(subtree(source.params, source.spec.head))]
    if len(kept) != len(had) or not all(map(np.array_equal, kept, had)):
        found = ", ".join(leaf_names(subtree(source.params, source.spec.head)))
        raise ModelError(
            f"keep_old_head({source.spec.name}): expected a head of one dense layer with a bias at "
            f"{source.spec.head!r}, found {found}; give the source such a head and train it first"
        )
    heads = tuple(
        replace(head, classes=source.labels)
        if head.task == old and source.labels and len(source.labels) == head.num_classes
        else head
        for head in model.spec.task_heads
    )
    return replace(model, spec=replace(model.spec, task_heads=heads))


# ---------------------------------------------------------------------------------------------


def _softened(logits: jax.Array, temperature: float) -> jax.Array:
    """The logarithms of softmax(logits / T), in float32."""
    return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)


def _count_outputs(source: Model) -> int | None:
    """How many outputs there are, an output for a background included."""
    return replace(source, labels=None).num_classes


def _check_temperature(where: str, temperature: float, **weights: float) -> None:
    check_weights(where, **weights)
    if not (np.isfinite(temperature) and temperature > 0):
        raise TrainingError(f"{where}: expected a temperature above 0, found {temperature}")
