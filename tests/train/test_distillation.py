from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import ModelError, TrainingError
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.surgery import Activation, replace_head
from jaxtransfer.train.distillation import (
    distillation,
    keep_old_head,
    learning_without_forgetting,
)
from jaxtransfer.train.losses import cross_entropy
from jaxtransfer.train.regularisers import Forward
from jaxtransfer.tree import flatten

RNG = np.random.default_rng(0)


def batch_of(examples: ArrayData, size: int = 6) -> dict[str, Any]:
    return {
        "image": jnp.asarray(examples.images[:size]),
        "label": jnp.asarray(examples.labels[:size]),
    }


def linear(outputs: int = 3, seed: int = 0, **options: Any) -> Model:
    """Flattened images of 4x4 through one dense layer."""
    kernel = np.random.default_rng(seed).normal(0, 0.5, (16, outputs)).astype(np.float32)

    params = {"body": {"scale": jnp.ones(16)}, "head": {"kernel": jnp.asarray(kernel)}}
    params["head"]["bias"] = jnp.zeros(outputs)
    return Model.from_function(_linear, params, head="head", input_shape=(4, 4, 1), **options)


def _linear(params: Any, x: Any, *, start: Any = None, stop: Any = None) -> Any:
    if start != "head":
        x = jnp.tanh(x.reshape(len(x), -1) * params["body"]["scale"])
    return x if stop == "head" else x @ params["head"]["kernel"] + params["head"]["bias"]


def answers(logits: Any, images: Any = None, batch: Any = None) -> Forward:
    return Forward({}, {}, images, logits, {}, batch or {})


def softmax(logits: Any, temperature: float) -> np.ndarray:
    exps = np.exp(np.asarray(logits, np.float64) / temperature)
    return exps / exps.sum(axis=-1, keepdims=True)


IMAGES = jnp.asarray(RNG.random((5, 4, 4, 1)), jnp.float32)
LOGITS = jnp.asarray(RNG.normal(0, 2, (5, 3)), jnp.float32)


# ---------------------------------------------------------------------------------------------
# Distillation


def test_distillation_is_hintons_formula() -> None:
    teacher = linear(seed=1)
    logits, _ = teacher.apply(teacher.params, teacher.stats, IMAGES, train=False)
    p, q = softmax(logits, 3.0), softmax(LOGITS, 3.0)
    expected = 0.7 * 3.0**2 * np.sum(p * np.log(p / q), axis=-1)
    term = distillation(linear(), teacher, temperature=3.0, alpha=0.7)
    np.testing.assert_allclose(term(answers(LOGITS, IMAGES)), expected, rtol=1e-4)


def test_the_gradient_of_distillation_is_the_difference_of_the_answers() -> None:
    # Section 2, equation 2: dC/dz = 1/T (q - p), here times alpha T^2.
    teacher = linear(seed=1)
    logits, _ = teacher.apply(teacher.params, teacher.stats, IMAGES, train=False)
    term = distillation(linear(), teacher, temperature=4.0, alpha=1.5)
    found = jax.grad(lambda z: jnp.sum(term(answers(z, IMAGES))))(LOGITS)
    expected = 1.5 * 4.0 * (softmax(LOGITS, 4.0) - softmax(logits, 4.0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_distillation_is_0_where_both_agree() -> None:
    teacher = linear(seed=1)
    logits, _ = teacher.apply(teacher.params, teacher.stats, IMAGES, train=False)
    found = distillation(linear(), teacher)(answers(logits + jnp.float32(5), IMAGES))
    np.testing.assert_allclose(found, 0, atol=1e-5)


def test_a_teacher_prepares_images_in_its_own_way() -> None:
    half = Preprocess(mean=(0.5,), std=(0.5,))
    teacher = linear(seed=1, preprocess=half)
    student = linear(preprocess=Preprocess(mean=(0.25,)))
    logits, _ = teacher.apply(teacher.params, {}, (IMAGES - 0.5) / 0.5, train=False)
    expected = distillation(linear(), linear(seed=1))(
        answers(LOGITS, (IMAGES - jnp.float32(0.5)) / jnp.float32(0.5))
    )
    term = distillation(student, teacher)
    found = term(answers(LOGITS, IMAGES - jnp.float32(0.25), {"image": IMAGES}))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.isfinite(logits).all()


def test_a_student_learns_the_teachers_answers_without_labels() -> None:
    student, teacher = linear(), linear(seed=1)
    term = distillation(student, teacher)
    images = jnp.asarray(RNG.normal(size=(32, 4, 4, 1)), jnp.float32)

    def loss(params: Any) -> jax.Array:
        return jnp.mean(term(answers(_linear(params, images), images)))

    params, step = student.params, jax.jit(jax.value_and_grad(loss))
    first, _ = step(params)
    for _ in range(100):
        _, gradient = step(params)
        params = jax.tree.map(lambda x, g: x - jnp.float32(0.5) * g, params, gradient)
    assert float(step(params)[0]) < 0.2 * float(first)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (linear(4), "outputs: 3 and 4"),
        (linear(labels=("b", "a", "c")), "classes: other names"),
        (linear(preprocess=Preprocess(scale=255.0)), "preprocess.scale: None and 255.0"),
        (linear(preprocess=Preprocess(scale=None, label_offset=1)), "label_offset: 0 and 1"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher: Model, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        distillation(linear(labels=("a", "b", "c")), teacher)


def test_a_temperature_of_0_is_refused() -> None:
    with pytest.raises(TrainingError, match="a temperature above 0, found 0"):
        distillation(linear(), linear(), temperature=0)
    with pytest.raises(TrainingError, match="finite numbers from 0, found {'alpha': -1}"):
        distillation(linear(), linear(), alpha=-1)


def test_the_teachers_arrays_are_leaves(network: Model) -> None:
    term = distillation(network, network)
    assert len(jax.tree.leaves(term)) == len(flatten(network.params)) + len(flatten(network.stats))


# ---------------------------------------------------------------------------------------------
# Learning without forgetting


def test_the_old_heads_answers_are_the_sources(network: Model, examples: ArrayData) -> None:
    model = keep_old_head(network, classes=("dark", "bright"))
    outputs, _ = model.apply(model.params, model.stats, examples.images, train=False)
    expected, _ = network.apply(network.params, network.stats, examples.images, train=False)
    assert outputs["new"].shape == (20, 2)
    np.testing.assert_array_equal(outputs["old"], expected)


def test_the_old_classes_keep_their_names_even_if_two_share_one() -> None:
    source = linear(labels=("crane", "crane", "maillot"))
    model = keep_old_head(source, 2, old="before", new="after")
    assert [(h.task, h.classes) for h in model.spec.task_heads] == [
        ("before", ("crane", "crane", "maillot")),
        ("after", None),
    ]
    np.testing.assert_array_equal(
        model.params["head"]["before"]["kernel"], source.params["head"]["kernel"]
    )


def test_a_head_of_several_layers_cannot_be_kept(network: Model) -> None:
    deep = replace_head(network, 3, hidden=[Activation("relu"), Activation("tanh")])
    with pytest.raises(
        ModelError, match="expected a head of one dense layer with a bias at 'head'"
    ):
        keep_old_head(deep, 2)
    with pytest.raises(ModelError, match="one of num_classes and classes, found neither"):
        keep_old_head(network)


def test_lwf_is_the_papers_formula() -> None:
    source = linear(seed=2)
    model = keep_old_head(source, 2)
    logits, _ = source.apply(source.params, {}, IMAGES, train=False)
    term = learning_without_forgetting(model, source, lambda_o=0.5)
    # p^(1/T), normalised, as the paper writes it.
    p, q = (softmax(x, 1.0) ** (1 / 2) for x in (logits, LOGITS))
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    found = term(answers({"old": LOGITS, "new": LOGITS}, IMAGES))
    np.testing.assert_allclose(found, -0.5 * np.sum(p * np.log(q), axis=-1), rtol=1e-4)
    gradient = jax.grad(lambda z: jnp.sum(term(answers({"old": z}, IMAGES))))(LOGITS)
    np.testing.assert_allclose(gradient, 0.5 / 2 * (q - p), rtol=1e-3, atol=1e-5)


def test_with_lwf_the_old_task_is_forgotten_less() -> None:
    source = linear(seed=3)
    model = keep_old_head(source, 2, key=1)
    images = jnp.asarray(np.random.default_rng(5).normal(size=(24, 4, 4, 1)), jnp.float32)
    batch = {"label": jnp.asarray(images[:, 0, 0, 0] * images[:, 1, 1, 0] > 0, jnp.int32)}
    recorded, _ = source.apply(source.params, {}, images, train=False)

    @jax.jit
    def step(params: Any, terms: Any) -> Any:
        def total(params: Any) -> Any:
            outputs, _ = model.apply(params, {}, images, train=False)
            forward = Forward(params, params, images, outputs, {}, batch)
            new = jnp.mean(cross_entropy()(outputs["new"], batch))
            return new + sum(jnp.mean(term(forward)) for term in terms), new

        (_, new), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return jax.tree.map(lambda x, g: x - jnp.float32(0.5) * g, params, gradient), new

    forgotten, losses = [], []
    for terms in ((), (learning_without_forgetting(model, source),)):
        params = model.params
        for _ in range(60):
            params, new = step(params, terms)
            losses.append(float(new))
        outputs, _ = model.apply(params, {}, images, train=False)
        p, q = softmax(recorded, 1.0), softmax(outputs["old"], 1.0)
        forgotten.append(float(np.mean(np.sum(p * np.log(p / q), axis=-1))))
    assert forgotten[1] < 0.3 * forgotten[0]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", ["no such head", "other classes", "other images"])
def test_a_model_without_the_old_head_is_refused(kind: str, network: Model) -> None:
    model, source = keep_old_head(network, 2), network
    if kind == "no such head":
        model = network
    elif kind == "other classes":
        source = replace_head(network, 5)
    else:
        source = replace(network, preprocess=replace(network.preprocess, mean=(0.25,)))
    with pytest.raises(ModelError, match="expected a model with a head 'old' .*by keep_old_head"):
        learning_without_forgetting(model, source)
