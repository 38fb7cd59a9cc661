"""Where a network first differs from a reference, and which of the usual causes explains it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.compiling import jit
from jaxtransfer.data import preprocess_images
from jaxtransfer.errors import ModelError
from jaxtransfer.evaluate.rewriting import changes, rewritten
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.tree import named_leaves
from jaxtransfer.tree.summary import format_table
from jaxtransfer.types import PyTree

PREPROCESS = "preprocess"
"""What the step from images to the network's input is called."""


@dataclass(frozen=True)
class Trial:
    """What became of the difference when one thing was done otherwise.

    Attributes:
        cause: its kind, such as "padding", "epsilon" or "gelu form".
        detail: what was done instead.
        difference: what remained, as a share of the largest magnitude.
        removes: whether that is within the tolerance.
    """

    cause: str
    detail: str
    difference: float
    removes: bool


@dataclass(frozen=True)
class Divergence:
    """How a network compares with a reference, stage by stage.

    Attributes:
        stage: the first stage that differs, "preprocess" for the step before the network; `None`
            where none does.
        differences: for each stage up to that one the largest difference as a share of the
            reference's largest magnitude; infinite where the shapes differ.
        trials: what was tried on that stage, the smallest remaining difference first.
        found_shape: the shape of what leaves that stage here.
        expected_shape: its shape in the reference.
    """

    stage: str | None
    differences: tuple[tuple[str, float], ...]
    trials: tuple[Trial, ...] = ()
    found_shape: tuple[int, ...] = ()
    expected_shape: tuple[int, ...] = ()

    @property
    def causes(self) -> tuple[Trial, ...]:
        """The trials that remove the difference."""
        return tuple(trial for trial in self.trials if trial.removes)

    def __str__(self) -> str:
        rows = [[stage, f"{difference:.1e}"] for stage, difference in self.differences]
        table = format_table(["stage", "difference"], rows)
        if self.stage is None:
            return f"{table}\nno stage differs"
        shapes = (
            f", of shape {self.found_shape} instead of {self.expected_shape}"
            if self.found_shape != self.expected_shape
            else ""
        )
        lines = [table, f"{self.stage} is the first stage that differs{shapes}"]
        for trial in self.causes:
            lines.append(f"removed by {trial.cause}: {trial.detail} (left: {trial.difference:.1e})")
        if not self.causes:
            lines.append("none of the usual causes removes it; the trials that came nearest:")
            nearest = self.trials[:3]
            lines += [f"  {trial.detail}: {trial.difference:.1e}" for trial in nearest]
        return "\n".join(lines)


def first_divergence(
    model: Model,
    reference_stages: Mapping[str, Any],
    *,
    tolerance: float = 1e-4,
    train: bool = False,
    channels_first: bool = False,
) -> Divergence:
    """The first stage of a network that gives others values than a reference, and why.

    Each stage gets what left the stage before it in the reference, so that differences do not add
    up. On the first stage that differs the usual causes are tried one at a time: padding of
    convolutions and poolings, ceil pooling, the epsilon of normalisations, the form of gelu,
    transposed and flipped kernels, the order of channels, and in the preprocessing the resizing.
    Each trial runs the stage once, so few images of moderate size are enough.

    Args:
        model: a network with weights whose forward pass can be cut at its stages.
        reference_stages: what leaves each stage in the reference, by the stage's name here; stages
            that are not known may be left out. Besides, `input` is what enters the first stage;
            `image` are the images before the preprocessing, as the model's users give them. One of
            both must be there.
        tolerance: the largest difference that counts as none, as a share of the largest magnitude
            in the stage.
        train: whether the stages run as in training.
        channels_first: whether the reference's maps are (batch, channels, height, width).

    Raises:
        ModelError: a name is no stage, or neither `input` nor `image` is given.

    Example:
        `print(jt.first_divergence(model, {"input": images, "stem": …, "layer1": …}))`
    """
    known = {*model.spec.stages, "input", "image"}
    unknown = [name for name in reference_stages if name not in known]
    if unknown or not {"input", "image"} & reference_stages.keys():
        raise ModelError(
            f"first_divergence({model.spec.name}): expected `input` or `image`, and stages among "
            f"{', '.join(model.spec.stages)}; found {', '.join(reference_stages) or 'nothing'}"
        )
    reference = {
        name: _channels_last(value) if channels_first else np.asarray(value)
        for name, value in reference_stages.items()
        if name != "image"
    }
    differences: list[tuple[str, float]] = []
    if "image" in reference_stages:
        images = jnp.asarray(reference_stages["image"])
        entering = preprocess_images(images, model.preprocess)
        if "input" in reference:
            differences.append((PREPROCESS, _difference(entering, reference["input"])))
            if differences[-1][1] > tolerance:
                trials = _preprocess_trials(images, model.preprocess, reference["input"], tolerance)
                return _diverged(differences, entering, reference["input"], trials)
    else:
        entering = jnp.asarray(reference["input"])
    values, start = jnp.asarray(reference.get("input", entering)), model.spec.stages[0]
    stages = model.spec.stages
    for stage, after in zip(stages, (*stages[1:], None), strict=True):
        if stage not in reference:
            continue
        segment = _segment(model, start, after, train)
        found = jit(segment)(model.params, model.stats, values)
        differences.append((stage, _difference(found, reference[stage])))
        if differences[-1][1] > tolerance:
            trials = _trials(model, segment, values, reference[stage], tolerance, start)
            return _diverged(differences, found, reference[stage], trials)
        values, start = jnp.asarray(reference[stage]), after
    return Divergence(None, tuple(differences))


def _channels_last(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _segment(
    model: Model, start: str | None, stop: str | None, train: bool
) -> Callable[[PyTree, PyTree, jax.Array], jax.Array]:
    def run(params: PyTree, stats: PyTree, values: jax.Array) -> jax.Array:
        return model.apply(params, stats, values, train=train, start=start, stop=stop)[0]

    return run


def _difference(found: Any, expected: np.ndarray) -> float:
    found = np.asarray(found, np.float64)
    if found.shape != expected.shape:
        return float("inf")
    largest = float(np.abs(expected).max(initial=0.0)) or 1.0
    difference = np.abs(found - expected.astype(np.float64)).max(initial=0.0) / largest
    return float(difference) if np.isfinite(difference) else float("inf")


def _diverged(
    differences: list[tuple[str, float]],
    found: jax.Array,
    expected: np.ndarray,
    trials: Iterator[Trial],
) -> Divergence:
    ordered = sorted(trials, key=lambda trial: trial.difference)
    return Divergence(
        differences[-1][0],
        tuple(differences),
        tuple(ordered),
        tuple(found.shape),
        tuple(expected.shape),
    )


# ---------------------------------------------------------------------------------------------
# Trials


def _trials(
    model: Model,
    segment: Callable[..., jax.Array],
    values: jax.Array,
    expected: np.ndarray,
    tolerance: float,
    start: str | None,
) -> Iterator[Trial]:
    def tried(cause: str, detail: str, run: Callable[[], Any]) -> Iterator[Trial]:
        try:
            difference = _difference(run(), expected)
        except (TypeError, ValueError, AssertionError):
            return  # what follows in the stage cannot take the other shape
        yield Trial(cause, detail, difference, difference <= tolerance)

    def runs(function: Callable[..., jax.Array], params: PyTree, inputs: jax.Array) -> Any:
        return lambda: function(params, model.stats, inputs)

    for change in changes():
        other = rewritten(segment, change.rewrite)
        yield from tried(change.cause, change.detail, runs(other, model.params, values))
    compiled = jit(segment)
    if start == model.spec.stages[0]:
        other = runs(compiled, model.params, values[..., ::-1])
        yield from tried("channel order", "the input's channels reversed", other)
    used = _used(segment, model, values)
    for detail, params in _other_kernels(model.params, used, values.shape):
        cause = "channel order" if "flattened" in detail else "transposed kernel"
        yield from tried(cause, detail, runs(compiled, params, values))


def _used(segment: Callable[..., jax.Array], model: Model, values: jax.Array) -> list[bool]:
    """For each leaf of the parameters, whether the stages of a segment read it."""
    jaxpr = jax.make_jaxpr(segment)(model.params, model.stats, values).jaxpr
    read = {id(atom) for equation in jaxpr.eqns for atom in equation.invars}
    count = len(jax.tree.leaves(model.params))
    return [id(variable) in read for variable in jaxpr.invars[:count]]


def _other_kernels(
    params: PyTree, used: list[bool], shape: tuple[int, ...]
) -> Iterator[tuple[str, PyTree]]:
    """Parameters with kernels in the layouts that conversions get wrong, all and one by one."""
    kinds: dict[str, Callable[[jax.Array], jax.Array | None]] = {
        "height and width of the kernels swapped": _swapped,
        "kernels flipped in height and width, as Theano has them": _flipped,
        "square matrices transposed": _transposed,
        "features flattened as (channels, height, width)": lambda k: _channels_first(k, shape),
    }
    names = [name for name, _ in named_leaves(params)]
    for detail, change in kinds.items():
        leaves, structure = jax.tree.flatten(params)
        others = [
            change(leaf) if is_used else None for leaf, is_used in zip(leaves, used, strict=True)
        ]
        changed = [index for index, other in enumerate(others) if other is not None]
        mixed = [
            leaf if other is None else other for leaf, other in zip(leaves, others, strict=True)
        ]
        if changed:
            yield detail, jax.tree.unflatten(structure, mixed)
        for index in itertools.islice(changed, 0, None if len(changed) > 1 else 0):
            one = [*leaves[:index], others[index], *leaves[index + 1 :]]
            yield f"{detail}, in {names[index]} alone", jax.tree.unflatten(structure, one)


def _swapped(kernel: jax.Array) -> jax.Array | None:
    is_square = kernel.ndim == 4 and kernel.shape[0] == kernel.shape[1] > 1
    return kernel.swapaxes(0, 1) if is_square else None


def _flipped(kernel: jax.Array) -> jax.Array | None:
    return kernel[::-1, ::-1] if kernel.ndim == 4 and max(kernel.shape[:2]) > 1 else None


def _transposed(kernel: jax.Array) -> jax.Array | None:
    return kernel.T if kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1] else None


def _channels_first(kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
    if kernel.ndim != 2 or len(shape) != 4 or kernel.shape[0] != np.prod(shape[1:]):
        return None
    height, width, channels = shape[1:]
    parts = kernel.reshape(channels, height, width, kernel.shape[1])
    return parts.transpose(1, 2, 0, 3).reshape(kernel.shape)


_STATISTICS = {
    "mean and deviation of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean and deviation of 0.5": ((0.5,), (0.5,)),
    "no mean and deviation": ((0.0,), (1.0,)),
}


def _preprocess_trials(
    images: jax.Array, how: Preprocess, expected: np.ndarray, tolerance: float
) -> Iterator[Trial]:
    order = "rgb" if how.channel_order == "bgr" else "bgr"
    others = [
        ("resize antialias", "no antialias", replace(how, antialias=False)),
        ("resize antialias", "antialias", replace(how, antialias=True)),
        ("channel order", f"channels as {order}", replace(how, channel_order=order)),
        *(
            ("interpolation", f"{name} resizing", replace(how, interpolation=name))
            for name in ("nearest", "bilinear", "bicubic", "lanczos3")
        ),
        *(
            ("scale", f"integers divided by {scale}", replace(how, scale=scale))
            for scale in (None, 255.0)
        ),
        *(
            ("normalisation", detail, replace(how, mean=mean, std=std))
            for detail, (mean, std) in _STATISTICS.items()
        ),
        *(
            ("crop", f"a crop of {share:g} of the side", replace(how, crop_fraction=share))
            for share in (0.875, 0.9, 0.95, 1.0)
        ),
    ]
    for cause, detail, other in others:
        if other != how:
            difference = _difference(preprocess_images(images, other), expected)
            yield Trial(cause, detail, difference, difference <= tolerance)
