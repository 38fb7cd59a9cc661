"""Compute once what is frozen below everything that trains, and train on it."""

from __future__ import annotations

import collections
import functools
import operator
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.compiling import jit
from jaxtransfer.data import (
    ArrayData,
    Data,
    Workers,
    batch_indices,
    evaluation_batches,
)
from jaxtransfer.data.targets import take_labels
from jaxtransfer.models import AS_THEY_COME, Model, Preprocess
from jaxtransfer.partition import Plan
from jaxtransfer.train.activations import Form, Store, room, stored_dtype
from jaxtransfer.train.cache import Cache, CacheReport
from jaxtransfer.train.evaluation import IN_FLIGHT
from jaxtransfer.train.losses import Batch
from jaxtransfer.train.precision import Precision, cast_floats, promotion
from jaxtransfer.train.prefix import BATCH, StartAt, depends_on, find_prefix
from jaxtransfer.train.program import largest_integer, preparation
from jaxtransfer.train.regularisers import Forward
from jaxtransfer.train.segments import ALL, forward
from jaxtransfer.train.settings import Augment, Settings
from jaxtransfer.train.sharding import Sharding
from jaxtransfer.train.step import with_float_images
from jaxtransfer.tree import fingerprint, split
from jaxtransfer.tree.summary import format_bytes
from jaxtransfer.types import PyTree

# Folded into the seed, so that views draw other numbers than the steps do.
VIEWS = 0x76696577

# ---------------------------------------------------------------------------------------------
# Whether a plan can be carried out on activations, and whether that pays


@dataclass(frozen=True)
class Kept:
    """What is kept for a plan, and where.

    Attributes:
        stage: that the activations enter.
        train: the form of the training examples' activations.
        validation: of those of the validation examples, `None` where there are none.
        where: the place.
    """

    stage: str
    train: Form
    validation: Form | None
    where: str


def what_to_keep(
    model: Model,
    plan: Plan,
    settings: Settings,
    steps: int,
    data: Data,
    validation: Data | None,
    cache: Cache,
    sharding: Sharding | None,
) -> Kept | str:
    """What of a network is computed once for a plan; or in words why nothing is.

    Args:
        model: the network; its arrays are not looked at.
        plan: what trains.
        settings: how the run is carried out.
        steps: of this plan.
        data: training examples, made ready for the model's preprocessing.
        validation: validation examples, made ready, or `None`.
        cache: what is asked for.
        sharding: the devices, or `None`.
    """
    if jax.process_count() > 1:
        return "several processes take part"
    if settings.augment is not None and cache.views == 1:
        return (
            "images are augmented anew in each step; jt.Cache(views=…) keeps as many augmented "
            "views of each"
        )
    batch = _shapes(data)
    try:
        inputs, changed = _augmented_shapes(model, settings, batch)
    # Whatever an augmentation makes of a single example, it can be run on batches in each step.
    except Exception as error:
        return f"the augmentation cannot be run on one example at a time: {error}"
    if changed:
        return f"the augmentation changes {', '.join(changed)}, not the image alone"
    stage, problem = find_prefix(model, plan, inputs, settings.precision)
    if stage is None:
        return problem
    problem = _looks_below(model, plan, settings, stage, inputs, batch)
    if problem:
        return problem
    views = views_of(cache, settings)
    if not cache.required and steps * settings.batch_size <= views * len(data):
        times = "once" if views == 1 else f"{views} times"
        return f"in {steps} steps the plan sees each example no more than {times}"
    cut = StageForms(model, settings, stage, cache.dtype, sharding)
    train = cut.form(data, inputs, settings.precision, views)
    held_out = None
    if validation is not None:
        held_out = cut.form(validation, _inputs(model, validation), None, 1)
    return _placed(stage, train, held_out, cache, gathering_device(sharding))


def views_of(cache: Cache, settings: Settings) -> int:
    """How many views there are: without an augmentation they would all be the same."""
    return cache.views if settings.augment is not None else 1


def gathering_device(sharding: Sharding | None) -> Any:
    """The device on which activations are kept and batches gathered; `None` for the default one.

    Arrays of the default device are bound to none, so that `jax.pmap` may spread them.
    """
    return None if sharding is None or not sharding.devices else sharding.devices[0]


def _shapes(data: Data) -> Batch:
    """A batch of the data, as shapes."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((BATCH, *np.shape(leaf)[1:]), jnp.result_type(leaf)),
        data.read(np.arange(1)),
    )


def _inputs(model: Model, data: Data) -> Any:
    """What enters the network of unaugmented examples, as shapes."""
    prepare = preparation(model.preprocess, None, augments=False)
    return jax.eval_shape(prepare, _shapes(data)["image"])


def _augmented_shapes(model: Model, settings: Settings, batch: Batch) -> tuple[Any, list[str]]:
    """What enters the network, as shapes, and what beside the image an augmentation changes."""
    changed: list[str] = []

    def prepared(batch: Batch) -> Any:
        augment = settings.augment
        if augment is not None:
            one = jax.tree.map(lambda leaf: leaf[:1], with_float_images(batch))
            after = augment(jax.random.key(0), one)
            others = (set(one) | set(after)) - {"image"}
            changed.extend(name for name in sorted(others) if not _is_same(name, one, after))
        views = _Views(augment, model.preprocess, None)
        return views(batch, jnp.arange(BATCH), jnp.int32(0), jax.random.key(0))

    return jax.eval_shape(prepared, batch), changed


def _is_same(name: str, before: Batch, after: Batch) -> bool:
    """Whether the very arrays of a batch are there still, while it is traced."""
    if not (name in before and name in after):
        return False
    leaves = (jax.tree.leaves(before[name]), jax.tree.leaves(after[name]))
    return len(leaves[0]) == len(leaves[1]) and all(map(operator.is_, *leaves))


def _looks_below(
    model: Model, plan: Plan, settings: Settings, stage: str, inputs: Any, batch: Batch
) -> str:
    """Why the loss needs more than what enters the stage; empty where it does not."""
    stages, regularisers = model.spec.stages, settings.regularisers
    below = stages[: stages.index(stage)]
    for regulariser in regularisers:
        seen = [name for name in regulariser.stages if name in below]
        if seen:
            name = type(regulariser).__name__
            return f"{name} looks at what enters {', '.join(seen)}, before {stage}"
    modules = plan.frozen_modules(model.params, model.stats)
    wanted = tuple(dict.fromkeys(name for r in regularisers for name in r.stages))
    how = settings.precision

    def terms(params: PyTree, stats: PyTree, entering: Any, labels: Any, images: Any) -> Any:
        keys = {"dropout": jax.random.key(0)}
        whole = {**labels, "image": images[0]}
        with promotion(how):
            arguments = (cast_floats(params, how.compute), stats, entering, keys, modules)
            apply = StartAt(model.apply, stage)
            outputs, _, features = forward(apply, stages, wanted, (), *arguments)
        outputs, features = cast_floats((outputs, features), how.output)
        seen = Forward(split(params, plan)[0], params, images[1], outputs, features, whole)
        return settings.loss(outputs, whole), [regulariser(seen) for regulariser in regularisers]

    entering = entering_shape(model, stage, inputs, how)
    labels = {name: leaf for name, leaf in batch.items() if name != "image"}
    images = (batch["image"], inputs)
    used = depends_on(terms, *shapes_of((model.params, model.stats, entering, labels, images)))
    looks = any(used[-len(jax.tree.leaves(images)) :])
    return "the loss or a regulariser looks at the images" if looks else ""


@dataclass(frozen=True)
class StageForms:
    """The forms of what enters a stage."""

    model: Model
    settings: Settings
    stage: str
    dtype: str
    sharding: Sharding | None

    def form(self, data: Data, inputs: Any, precision: Precision | None, views: int) -> Form:
        """The form for some examples, which enter the network like `inputs`."""
        size, count = self.settings.batch_size, len(data)
        size = min(size, count) if self.sharding is None else size
        entering = entering_shape(self.model, self.stage, inputs, precision)
        stored = stored_dtype(self.dtype, entering.dtype)
        return Form(entering.shape[1:], entering.dtype, stored, count, views, size)


def entering_shape(model: Model, stage: str, inputs: Any, precision: Precision | None) -> Any:
    """What enters a stage, as a shape."""
    run = functools.partial(_activations, model.apply, stage, precision)
    return jax.eval_shape(run, *shapes_of((model.params, model.stats, inputs)))


def shapes_of(tree: PyTree) -> PyTree:
    """The tree with shapes in the place of arrays."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)), tree
    )


def _placed(
    stage: str, train: Form, validation: Form | None, cache: Cache, device: Any
) -> Kept | str:
    """What is kept in the first place that it fits in; or why it fits in none."""
    needed = train.bytes + (0 if validation is None else validation.bytes)
    places = ("device", "host", "disk") if cache.where == "auto" else (cache.where,)
    rooms = {place: room(place, device, cache.folder) for place in places}
    if cache.limit is not None:
        rooms = {place: min(cache.limit, there) for place, there in rooms.items()}
    where = next((place for place, there in rooms.items() if needed <= there), None)
    if where is None:
        found = ", ".join(f"{format_bytes(there)} ({place})" for place, there in rooms.items())
        return f"what enters {stage} takes {format_bytes(needed)}, and there may be {found}"
    return Kept(stage, train, validation, where)


# ---------------------------------------------------------------------------------------------
# Activations, computed once


@dataclass(frozen=True)
class _Views:
    """From a batch to what enters the network, each image augmented by a key of its own."""

    augment: Augment | None
    preprocess: Preprocess
    largest: int | None

    def __call__(self, batch: Batch, indices: jax.Array, view: jax.Array, root: jax.Array) -> Any:
        """What enters the network.

        Args:
            batch: the examples.
            indices: their positions among all, shape (batch,).
            view: the number of the view, shape ().
            root: the key that those of all examples and views are made from.
        """
        augment = self.augment
        prepare = preparation(self.preprocess, self.largest, augments=augment is not None)
        if augment is None:
            return prepare(batch["image"])

        def one(index: jax.Array, example: Batch) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(root, index), view)
            return augment(key, jax.tree.map(lambda leaf: leaf[None], example))["image"][0]

        return prepare(jax.vmap(one)(indices, with_float_images(batch)))


def _activations(
    apply: Callable[..., Any],
    stage: str,
    precision: Precision | None,
    params: PyTree,
    stats: PyTree,
    inputs: Any,
) -> jax.Array:
    """What enters a stage, in the dtypes of a training step, or of evaluation for `None`."""
    if precision is None:
        return apply(params, stats, inputs, train=False, stop=stage)[0]
    with promotion(precision):
        params, inputs = cast_floats((params, inputs), precision.compute)
        return apply(params, stats, inputs, train=False, stop=stage)[0]


@functools.lru_cache(maxsize=16)
def _program(
    apply: Callable[..., Any],
    stage: str,
    precision: Precision | None,
    views: _Views,
    sharding: Sharding | None,
) -> Callable[..., jax.Array]:
    """A jitted function from a batch of images to what enters a stage."""

    def compute(
        params: PyTree, stats: PyTree, batch: Batch, indices: Any, view: Any, root: Any
    ) -> jax.Array:
        params = params if sharding is None else sharding.gather(params)
        return _activations(
            apply, stage, precision, params, stats, views(batch, indices, view, root)
        )

    return jit(compute)


@dataclass(frozen=True, eq=False)
class CachedData:
    """Examples whose `image` is what enters a stage: a `Data`.

    Attributes:
        store: the activations, one view behind the other.
        others: what batches hold beside the image, by its name.
        labels: of the examples.
        classes: the names of the classes.
    """

    store: Store
    others: Batch
    labels: PyTree
    classes: Any
    in_memory: ClassVar[bool] = True

    def __len__(self) -> int:
        return self.store.form.count

    def take(self, indices: np.ndarray) -> ArrayData:
        """The examples at these positions, in this order, on the host."""
        images = np.asarray(self.store.read(indices))
        return ArrayData(images, take_labels(self.labels, indices), self.classes)

    def ready(self, preprocess: Preprocess) -> CachedData:
        """The examples themselves: activations are not preprocessed."""
        del preprocess
        return self

    def read(self, indices: np.ndarray, views: np.ndarray | int = 0) -> dict[str, Any]:
        """The examples at these positions as a batch, each in a view."""
        others = jax.tree.map(lambda leaf: leaf[indices], self.others)
        rows = np.asarray(indices) + views * self.store.form.stride
        return {"image": self.store.read(rows), **others}

    def fingerprint(self) -> str:
        """The hash of all activations of the first view, and of the labels."""
        images = np.asarray(self.store.read(np.arange(len(self))))
        return fingerprint({"images": images, "labels": self.labels})


@dataclass(frozen=True, eq=False)
class Cached:
    """What a plan is carried out with in place of the images, and of the whole network.

    Attributes:
        model: whose forward pass begins at the stage; its arrays are those of the whole network.
        settings: those of the run, without what concerns the images and the stages before.
        data: training examples.
        validation: validation examples, or `None`.
        report: what was done.
    """

    model: Model
    settings: Settings
    data: CachedData
    validation: CachedData | None
    report: CacheReport

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """The batches of the steps from `first` on and before `end`, in the order of a `Loader`."""
        size, seed, count = self.settings.batch_size, self.settings.seed, len(self.data)
        for step in range(first, end):
            epochs = np.arange(step * size, (step + 1) * size) // count
            views = epochs % self.data.store.form.views
            yield self.data.read(batch_indices(count, size, step, seed), views)


def compute_once(
    kept: Kept,
    model: Model,
    plan: Plan,
    settings: Settings,
    data: Data,
    validation: Data | None,
    *,
    workers: Workers | int,
    sharding: Sharding | None,
    file: Path | None,
) -> Cached:
    """Compute what enters a stage for all examples, and keep it.

    Args:
        kept: what `what_to_keep` found.
        model: the network, with the arrays that the plan starts with.
        plan: what trains.
        settings: how the run is carried out.
        data: training examples, made ready.
        validation: validation examples, made ready, or `None`.
        workers: who reads what is not in memory.
        sharding: the devices, or `None`.
        file: for a place on the disk.
    """
    began = time.perf_counter()
    views = _Views(settings.augment, model.preprocess, None)
    if settings.augment is not None:
        views = replace(views, largest=largest_integer(data))
    # Where a training step casts nothing, one program serves it and evaluation.
    inputs, _ = _augmented_shapes(model, settings, _shapes(data))
    if sharding is None:
        model = replace(model, params=_gathered(model.params), stats=_gathered(model.stats))
    casts = any(
        jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != settings.precision.compute
        for leaf in jax.tree.leaves((model.params, inputs))
    )
    precision = settings.precision if casts else None
    compute = functools.partial(_computed, kept, model, workers=workers, sharding=sharding)
    train, errors = compute(kept.train, data, precision, views, seed=settings.seed, file=file)
    held_out = None
    if validation is not None and kept.validation is not None:
        plain = _Views(None, model.preprocess, None)
        other = None if file is None else file.with_suffix(".validation")
        held_out, _ = compute(kept.validation, validation, None, plain, seed=0, file=other)
    examples = len(data) + (0 if validation is None else len(validation))
    report = CacheReport(
        plan=plan.name,
        stage=kept.stage,
        where=kept.where,
        dtype=str(kept.train.stored),
        views=kept.train.views,
        examples=examples,
        bytes=kept.train.bytes + (0 if kept.validation is None else kept.validation.bytes),
        seconds=time.perf_counter() - began,
        maximal_error=errors[0],
        mean_error=errors[1],
    )
    return Cached(
        replace(model, apply=StartAt(model.apply, kept.stage), preprocess=AS_THEY_COME),
        _from_stage_on(settings, model.spec.stages, kept.stage),
        train,
        held_out,
        report,
    )


def _gathered(tree: PyTree) -> PyTree:
    """Arrays that pmap has left on all devices on the default one, bound to none."""
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(np.asarray(leaf))
            if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
            else leaf
        ),
        tree,
    )


def _from_stage_on(settings: Settings, stages: tuple[str, ...], stage: str) -> Settings:
    """The settings without augmentation, and with `remat` of the stages that are left alone."""
    left, remat = stages[stages.index(stage) :], settings.remat
    wanted = stages if remat == ALL else (remat,) if isinstance(remat, str) else remat
    return replace(settings, augment=None, remat=tuple(name for name in wanted if name in left))


def _computed(
    kept: Kept,
    model: Model,
    form: Form,
    data: Data,
    precision: Precision | None,
    views: _Views,
    *,
    seed: int,
    file: Path | None,
    workers: Workers | int,
    sharding: Sharding | None,
) -> tuple[CachedData, tuple[float, float]]:
    """The activations of examples, and the errors of how they are kept."""
    program = _program(model.apply, kept.stage, precision, views, sharding)
    place = jax.device_put if sharding is None else sharding.put_batch
    store = Store(form, kept.where, gathering_device(sharding), file)
    root = jax.random.fold_in(jax.random.key(seed), VIEWS)
    names = set(data.read(np.arange(1))) - {"image"}
    found: list[Batch] = []
    on_the_way: collections.deque[tuple[int, jax.Array]] = collections.deque()
    for view in range(form.views):
        with evaluation_batches(data, form.block, workers=workers) as batches:
            for number, batch in enumerate(batches):
                batch = {name: leaf for name, leaf in batch.items() if name in {*names, "image"}}
                if view == 0:
                    found.append({name: batch[name] for name in names})
                first = number * form.block
                indices = np.arange(first, first + form.block, dtype=np.int32)
                placed = place(batch if views.augment is not None else {"image": batch["image"]})
                values = program(model.params, model.stats, placed, indices, np.int32(view), root)
                on_the_way.append((view * form.stride + first, values))
                if len(on_the_way) > IN_FLIGHT:
                    store.write(*on_the_way.popleft())
    while on_the_way:
        store.write(*on_the_way.popleft())
    errors = store.finish()
    others = jax.tree.map(lambda *parts: np.concatenate(parts)[: form.count], *found)
    return CachedData(store, others, data.labels, data.classes), errors
