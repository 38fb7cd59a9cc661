"""The hallway: load a model, fine-tune it, and see whether the transfer helped."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jaxtransfer import hub
from jaxtransfer.data import ArrayData, Data, as_data, load_digits
from jaxtransfer.errors import MappingError, ModelError, TrainingError
from jaxtransfer.evaluate.comparison import (
    NAIVE,
    SCRATCH,
    TRANSFER_ARMS,
    Budget,
    Comparison,
    OnProgress,
    compare_arms,
)
from jaxtransfer.formats import inspect_weights
from jaxtransfer.formats.base import PathLike
from jaxtransfer.models import (
    Guess,
    Model,
    Weights,
    build,
    imagenet_classes,
    is_network,
    load_model,
    load_network,
    load_weights,
    recognise,
    spec_of,
)
from jaxtransfer.models.imagenet import BACKGROUND
from jaxtransfer.models.model import RECEIPT_FILE, WEIGHTS_FILE
from jaxtransfer.models.timm_config import read_timm_config
from jaxtransfer.models.weights import agrees
from jaxtransfer.partition import Plan, resolve_plans
from jaxtransfer.surgery import (
    adapt_stem,
    change_input_size,
    drop_background,
    has_head,
    replace_head,
)
from jaxtransfer.train import Checkpoints, Settings, train
from jaxtransfer.train.events import Callback
from jaxtransfer.train.loop import OnStep
from jaxtransfer.train.losses import Loss
from jaxtransfer.train.precision import FLOAT32, Precision
from jaxtransfer.train.progress import progress_bar
from jaxtransfer.train.regularisers import Regulariser
from jaxtransfer.train.settings import Augment, run_identity
from jaxtransfer.train.sharding import Sharding
from jaxtransfer.train.skipping import MAX_SKIPPED
from jaxtransfer.train.targets import Targets, loss_for, targets_of
from jaxtransfer.tree import place
from jaxtransfer.types import PyTree

EMBEDDED_SOURCE = "checkpoints/glyphs"
DIGITS = "handwritten digits"


@dataclass(frozen=True)
class Result:
    """What `finetune` gives.

    Attributes:
        model: the trained model; its receipt tells where it came from and what was done.
        history: for each step `step`, `plan`, `loss`, `gradient_norm` and `skipped`; after an
            evaluation also its scores, their names behind `validation/`.
        plans: what was carried out, in order.
    """

    model: Model
    history: list[dict[str, Any]]
    plans: tuple[Plan, ...]


def load(
    model: str | Path | Model,
    weights: str | Path | None = None,
    *,
    source: str | None = None,
    part: str = "",
    architecture: PathLike | None = None,
    sharding: PyTree | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    key: jax.Array | int = 0,
    **options: Any,
) -> Model:
    """A model with verified weights: the network first, its weights second.

    The file is loaded whole, whatever its numbers of classes and channels and its input size; where
    others are asked for, surgery follows, and the receipt tells of it.

    Args:
        model: a network: one of `list_models()`, or torchvision's or timm's name for it, or a model
            of the network, whose own weights are not used. Without `weights`, also a reference to
            weights, whose network is the one that a saved model names, or the one of the catalog
            that every tensor of the file fits.
        weights: a path, `checkpoints/NAME` for a model that comes with the package,
            `hf://ORGANISATION/NAME` for the Hugging Face hub, or `https://…#sha256=…`; see
            `jaxtransfer.hub.resolve`. By default the first published ones that are known of a
            network of the catalog.
        source: for a file, which rules of the network translate its names; by default those that
            match the most.
        part: for a file, the group of it to take, such as `ema`.
        architecture: for a file of Darknet or Caffe, the file that describes the network.
        sharding: where leaves go, see `place`; by default the default device.
        num_classes: where the file's head has another number, `replace_head` follows.
        in_channels: where the file's network takes another number, `adapt_stem` follows.
        input_size: where the file's network is for another size, `change_input_size` follows.
        key: a random key, or a seed for one, for a new head.
        **options: of the builder of a network of the catalog, such as `width`.

    A `config.json` of timm beside the weights, as in its repositories, tells the network where none
    is named, and the preprocessing.

    Raises:
        ReferenceNotFoundError: there are no weights there.
        FormatError, MappingError: the files are damaged, or do not fill the network exactly; the
            message names the network of the catalog that the file fits, if there is one.
        ModelError: it is not clear which network the weights belong to, an option is unknown, or
            no published weights of the network are known.

    Examples:
        `model = jt.load("checkpoints/glyphs")`

        `model = jt.load("resnet50", "resnet50-0676ba61.pth", num_classes=10)`
    """
    network, weights = _told_apart(model, weights)
    known = _published(network, weights)
    path = hub.resolve(weights)
    config = read_timm_config(path if path.is_dir() else path.parent)
    if network is None and config is not None and is_network(config.architecture):
        network = config.architecture
    loaded = _load(
        network,
        path,
        source=source or (known.source if known else None),
        part=part,
        architecture=architecture,
        sharding=sharding,
        **options,
    )
    if known is not None:
        loaded = _as_published(loaded, known)
    elif config is not None:
        size = loaded.spec.input_size
        loaded = replace(loaded, preprocess=replace(config.preprocess, size=size))
    return _adapted(loaded, num_classes, in_channels, input_size, key)


_HOW = frozenset(("source", "part", "architecture", "sharding"))


def _told_apart(
    model: str | Path | Model, weights: str | Path | None
) -> tuple[str | Model | None, str | Path]:
    """The network, `None` where the weights must tell, and the reference to the weights."""
    if isinstance(model, Model):
        if weights is None:
            raise ModelError(f"load({model.spec.name}): expected weights for it, found none")
        return model, weights
    if weights is not None:
        return str(model), weights
    name = str(model)
    if not is_network(name) or Path(name).exists():
        return None, model
    spec = spec_of(name)
    published = [
        known
        for known in spec.weights
        if agrees(spec.source(known.source), spec) and known.is_fetchable
    ]
    if not published:
        raise ModelError(
            f"load({name}): expected weights, found none, and no published ones are known that "
            "can be fetched by themselves; "
            f'give a file: load("{name}", FILE), or jt.init("{name}") for random ones'
        )
    return name, published[0].reference


def _published(network: str | Model | None, reference: str | Path) -> Weights | None:
    """What is known of the weights that a reference leads to."""
    if not isinstance(network, str) or not is_network(network):
        return None
    address = str(reference).partition("#")[0]
    known = spec_of(network).weights
    return next((w for w in known if w.reference.partition("#")[0] == address), None)


def _as_published(model: Model, weights: Weights) -> Model:
    """The model with the preprocessing and the names of classes that its weights come with."""
    if weights.preprocess is not None:
        size = weights.preprocess.size or model.spec.input_size
        # What was published of accuracy holds for the size that the weights were evaluated at.
        model = model if size is None else change_input_size(model, size)
        model = replace(model, preprocess=replace(weights.preprocess, size=size))
    names = imagenet_classes()
    if model.preprocess.label_offset == 1:
        names = (BACKGROUND, *names)
    if weights.has_imagenet_classes and model.num_classes == len(names):
        model = model.with_labels(names)
    return model


def _load(network: str | Model | None, path: Path, **how: Any) -> Model:
    if not isinstance(network, str) and how.keys() - _HOW:
        raise ModelError(
            f"load: expected options of a network's builder with the network's name, found "
            f"{sorted(how.keys() - _HOW)}"
        )
    folder = path if path.is_dir() else path.parent
    if path in (folder, folder / WEIGHTS_FILE) and (folder / RECEIPT_FILE).is_file():
        loaded = load_model(folder, build(network) if isinstance(network, str) else network)
        return loaded if how["sharding"] is None else place(loaded, how["sharding"])
    path = hub.weights_in(path)
    if network is None:
        guess = _recognised(path, how["part"], how["architecture"])
        return load_network(guess.architecture, path, **{**how, "source": guess.source})
    try:
        if isinstance(network, Model):
            return load_weights(network, path, **how)
        return load_network(network, path, **how)
    except MappingError as error:
        name = network.spec.name if isinstance(network, Model) else network
        raise _better_told(error, name, path, how["part"], how["architecture"]) from error


def _better_told(
    error: MappingError, name: str, path: Path, part: str, architecture: PathLike | None
) -> MappingError:
    """The error with the network that the file does fit, where there is one in the catalog."""
    guesses = recognise(inspect_weights(path, part=part, architecture=architecture))
    if not guesses:
        return error
    best = guesses[0]
    if best.is_exact and best.architecture != name:
        return MappingError(
            f"{path}: expected weights of {name}, found those of {best}; load them as "
            f"load({best.architecture!r}, FILE)"
        )
    return MappingError(f"{error}\nof the catalog the file is nearest to {best}")


def _recognised(path: Path, part: str, architecture: PathLike | None) -> Guess:
    """The one network of the catalog that a file's tensors fit.

    Raises:
        ModelError: none fits, or several do.
    """
    guesses = recognise(inspect_weights(path, part=part, architecture=architecture))
    exact = [guess for guess in guesses if guess.is_exact]
    if len(exact) != 1:
        found = "; ".join(map(str, exact or guesses[:3])) or "no network with such names"
        raise ModelError(
            f"{path}: expected tensors that fit one network of the catalog, found {found}; "
            "name the network: load(NAME, FILE)"
        )
    return exact[0]


def _adapted(
    model: Model,
    num_classes: int | None,
    in_channels: int | None,
    input_size: int | tuple[int, int] | None,
    key: jax.Array | int,
) -> Model:
    """The model with surgery where it is not as asked for."""
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    if in_channels not in (None, model.spec.in_channels):
        model = adapt_stem(model, in_channels)
    if size is not None and tuple(size) != model.spec.input_size:
        model = change_input_size(model, size)
    if num_classes not in (None, model.num_classes):
        model = replace_head(model, num_classes, key=key)
    return model


def finetune(
    model: Model,
    data: Any,
    plan: str | Plan | Sequence[Plan] = "full",
    *,
    validation: Any = None,
    epochs: float = 10,
    steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    optimizer: str = "adamw",
    schedule: str | Callable[[int], Any] = "warmup_cosine",
    clip_norm: float | None = None,
    carry_moments: bool = True,
    augment: Augment | None = None,
    regularisers: Sequence[Regulariser] | Regulariser = (),
    accumulate: int = 1,
    precision: Precision = FLOAT32,
    remat: Sequence[str] | str = (),
    ema_decay: float | None = None,
    metric: str = "loss",
    max_skipped: int = MAX_SKIPPED,
    parallel: str = "jit",
    sharding: Sharding | None = None,
    classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    targets: Targets | None = None,
    seed: int = 0,
    evaluate_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    on_step: OnStep | None = None,
    progress: bool = True,
    workers: int | None = None,
    checkpoint_folder: str | Path | None = None,
    save_every: int = 100,
    keep: int = 2,
    keep_best: int = 0,
    resume: bool = False,
) -> Result:
    """Train a model on labelled examples by a plan.

    The head is replaced where it does not fit: where the names of the classes are known and differ
    from the model's labels, or where integer labels ask for more classes than the head has, or for
    fewer than a head with named classes has. The receipt says so, and which rows were reused. An
    output for a background that labels do not count is dropped.

    Args:
        model: where training starts; it stays as it is.
        data: `(images, labels)`, or a `Data` such as an `ArrayData` or what `image_folder` gives.
            Images come as they are, the model's preprocessing is applied; labels are integers from
            0, or names, or what `targets` says.
        plan: "probe" (only the head trains), "full", another recipe's name, a `Plan`, or several in
            order.
        validation: examples like `data` that are evaluated as the run goes on.
        epochs: passes over the data, all plans together.
        steps: number of steps instead of epochs.
        batch_size: examples a step, over all devices; batches are always full, and straddle epochs.
        learning_rate: the highest one; each plan warms up to it and decays.
        weight_decay: decoupled weight decay of kernels.
        label_smoothing: share of the target spread over all classes, where labels are classes.
        loss: from outputs and batch to a loss for each example; by default cross-entropy of
            classes, binary cross-entropy of several labels an example, the squared error of values,
            and of several tasks the sum of theirs.
        optimizer: a name in `jaxtransfer.partition.OPTIMIZERS`.
        schedule: a name in `jaxtransfer.partition.SCHEDULES`, or a function from the number of a
            plan's steps to a factor on the learning rate at each of them.
        clip_norm: upper bound of the norm of all trainable gradients.
        carry_moments: whether a plan takes over the optimizer's moments of the plan before it.
        augment: `augment(key, batch) -> batch`, on the device; see `jaxtransfer.augment`.
        regularisers: terms that are added to the loss, or a single one, such as `l2_sp(model)`.
        accumulate: parts that a batch is cut into, one after the other, to save memory.
        precision: the dtypes of parameters and of what is computed, such as `BFLOAT16`.
        remat: stages whose activations are computed again for the gradient, to save memory, or
            "all".
        ema_decay: share of the old average in a moving average of the trainable parameters, which
            is then what is evaluated and returned; each plan averages anew.
        metric: the score on the validation examples that a plan's patience and `keep_best` look at.
        max_skipped: a step whose loss or gradient is not finite changes nothing; so many of them
            in a row end the run with an error.
        parallel: "jit", or "pmap".
        sharding: the devices, and who holds what; by default the default device, or where there are
            several processes, all devices.
        classes: names of the classes, where labels are integers; for tasks a dict of them.
        targets: what labels are: "classes"; "multi_label" for any number of labels an example, rows
            of 0 and 1 such as `multi_hot` makes; "values" for numbers to be predicted; or a dict of
            these by task, for a dict of labels and a model with `replace_head(model, tasks={…})`.
            By default classes, and of a `Data` what its labels look like.
        seed: of a new head, the order of the examples, augmentation and dropout.
        evaluate_every: steps between evaluations; by default an epoch.
        callbacks: functions that watch the run, and end it by returning `True`.
        on_step: called with the number of steps done and the state after each step.
        progress: whether a bar is shown, where there is a terminal or a notebook.
        workers: threads that read examples which are not in memory; measured where `None`.
        checkpoint_folder: where checkpoints are kept; `None` keeps none.
        save_every: steps between checkpoints.
        keep: how many of the newest checkpoints are kept.
        keep_best: how many checkpoints with the best `metric` are kept too; above 0, there is a
            checkpoint after each evaluation.
        resume: go on from the newest checkpoint in the folder, if there is one.

    Raises:
        DataError, PlanError, ModelError, TrainingError: what is given does not fit together.
        NonFiniteLossError: the loss or the gradient was not finite in too many steps in a row.
        CheckpointError: the folder holds another run, or a damaged checkpoint, or is in use.

    Example:
        `result = jt.finetune(model, (images, labels), plan="lp_ft", epochs=20)`
    """
    examples = as_data(data, classes, targets or "classes")
    held_out = None
    if validation is not None:
        held_out = as_data(validation, classes or examples.classes, targets or "classes")
    kinds = targets_of(examples.labels, targets)
    if keep_best and held_out is None:
        raise TrainingError(
            f"keep_best: expected validation examples, by whose {metric} checkpoints are compared, "
            "found none; give validation="
        )
    start = fit_head(model, examples, seed)
    plans = resolve_plans(plan, start)
    if steps is None:
        if not 0 < epochs < math.inf:
            raise TrainingError(f"finetune: expected epochs above 0, found {epochs}")
        # A batch size out of range is told by the settings.
        steps = max(math.ceil(epochs * len(examples) / max(batch_size, 1)), len(plans))
    settings = Settings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        optimizer=optimizer,
        schedule=schedule,
        clip_norm=clip_norm,
        carry_moments=carry_moments,
        loss=loss if loss is not None else loss_for(kinds, label_smoothing),
        augment=augment,
        regularisers=cast(Any, regularisers),
        accumulate=accumulate,
        precision=precision,
        remat=remat,
        ema_decay=ema_decay,
        metric=metric,
        max_skipped=max_skipped,
        parallel=parallel,
        seed=seed,
    )
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if checkpoint_folder is not None:
            identity = run_identity(start, examples, plans, settings)
            checkpoints = stack.enter_context(
                Checkpoints(
                    checkpoint_folder,
                    identity,
                    source=start,
                    resume=resume,
                    keep=keep,
                    keep_best=keep_best,
                    metric=metric,
                )
            )
        if progress:
            callbacks = (*callbacks, stack.enter_context(progress_bar()))
        tuned, history = train(
            start,
            examples,
            plans,
            settings,
            validation=held_out,
            targets=kinds,
            evaluate_every=evaluate_every,
            callbacks=callbacks,
            on_step=on_step,
            checkpoints=checkpoints,
            save_every=save_every,
            sharding=sharding,
            workers=workers,
        )
    return Result(_noted(tuned, plans, settings, len(examples)), history, plans)


def fit_head(model: Model, data: Data, seed: int = 0) -> Model:
    """The model itself where its head fits the labels, else with a new head; see `finetune`."""
    tasks = sorted(head.task for head in model.spec.task_heads)
    labelled = sorted(data.labels) if isinstance(data.labels, Mapping) else None
    if labelled and set(labelled) <= set(tasks):
        return model
    if tasks or labelled is not None:
        raise ModelError(
            f"{model.spec.name}: expected a head for each task that has labels, found heads for "
            f"{', '.join(tasks) or 'one task alone'} and labels of "
            f"{'one task alone' if labelled is None else ', '.join(labelled)}; give labels as a "
            "dict by task, and heads by replace_head(model, tasks={…})"
        )
    model = drop_background(model) if has_head(model) else model
    if data.classes is not None:
        if model.labels == data.classes:
            return model
        if model.labels is None and model.num_classes == len(data.classes):
            return model.with_labels(data.classes)
        return replace_head(model, classes=data.classes, key=seed)
    needed, is_exact = _outputs_for(data)
    found = model.num_classes
    if not has_head(model):
        return replace_head(model, needed, key=seed)
    if found is None or found == needed:
        return model
    if found > needed and model.labels is None and not is_exact:
        return model
    return replace_head(model, needed, key=seed)


def _outputs_for(data: Data) -> tuple[int, bool]:
    """How many outputs the labels ask for, and whether more of them would not do."""
    labels = np.asarray(data.labels)
    if labels.ndim > 1:
        return labels.shape[1], True
    if np.issubdtype(labels.dtype, np.floating):
        return 1, True
    return int(labels.max()) + 1, False


def _noted(model: Model, plans: tuple[Plan, ...], settings: Settings, count: int) -> Model:
    names = " then ".join(plan.name for plan in plans)
    note = (
        f"finetune: {names}; {settings.steps} steps of {settings.batch_size} of {count} examples, "
        f"{settings.optimizer} at {settings.learning_rate:g}, seed {settings.seed}"
    )
    return replace(model, receipt=model.receipt.with_note(note))


def compare(
    source: str | Path | Model = EMBEDDED_SOURCE,
    data: ArrayData | None = None,
    *,
    target: str = DIGITS,
    arms: Sequence[str] = (NAIVE, SCRATCH, *TRANSFER_ARMS),
    budget: Budget | None = None,
    seeds: int | Sequence[int] = 3,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Does transfer help? Train arms with and without it under one budget, over several seeds.

    See `jaxtransfer.evaluate.comparison.compare_arms` for the arms and the method, and
    `jaxtransfer.evaluate.curves` for what start, slope and asymptote are.

    Args:
        source: a model, or a reference to one.
        data: all labelled images of the target, with names of classes; by default scikit-learn's
            handwritten digits.
        target: what the data is called in reports.
        arms: which arms to run.
        budget: what every arm gets; by default `Budget()`.
        seeds: how many seeds, or which.
        on_progress: called after each training step.

    Example:
        `print(jt.compare(seeds=5).verdict)`
    """
    model = source if isinstance(source, Model) else load(source)
    return compare_arms(
        model,
        load_digits() if data is None else data,
        names=(model.spec.name if isinstance(source, Model) else str(source), target),
        arms=arms,
        budget=budget or Budget(),
        seeds=range(seeds) if isinstance(seeds, int) else seeds,
        on_progress=on_progress,
    )
