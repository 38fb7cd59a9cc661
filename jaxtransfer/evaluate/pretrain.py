"""Build a source model from the procedural task, and refuse one that is no better than naive."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.data import glyphs
from jaxtransfer.errors import SourceModelError
from jaxtransfer.evaluate.metrics import Interval, binomial_interval, majority_accuracy
from jaxtransfer.evaluate.predict import predict
from jaxtransfer.formats import sha256_of
from jaxtransfer.formats.output import write_text
from jaxtransfer.models import Model, init
from jaxtransfer.models.model import WEIGHTS_FILE
from jaxtransfer.partition import full, warmup_cosine
from jaxtransfer.train import cross_entropy, init_state, make_train_step
from jaxtransfer.tree import count_parameters
from jaxtransfer.tree.summary import format_bytes

HELD_OUT_COUNT = 5000
CARD_FILE = "README.md"


@dataclass(frozen=True)
class Recipe:
    """How a source model is trained.

    Attributes:
        architecture: a name in the catalog whose family takes `width`, `input_size` and `shortcut`.
        width: channels of the first stage.
        steps: number of training steps.
        batch_size: drawn images a step.
        learning_rate: the highest one, after a warm-up, before half a cosine down to 0.
        weight_decay: decoupled weight decay of kernels.
        label_smoothing: share of the target spread over all classes.
        seed: of the weights, and of all that is drawn.
    """

    architecture: str = "glyph_resnet8"
    width: int = 32
    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class SourceModel:
    """A model that is good enough to transfer from, and the proof.

    Attributes:
        model: the trained model.
        recipe: how it was trained.
        held_out: accuracy on fonts that were not trained on, with the exact binomial 99 % interval.
        naive: accuracy of the majority class there.
    """

    model: Model
    recipe: Recipe
    held_out: Interval
    naive: float

    def save(self, folder: str | Path) -> Path:
        """Write the model and its card; arguments and errors as for `Model.save`."""
        path = self.model.save(folder)
        write_text(_card(self, path), path / CARD_FILE)
        return path


def pretrain(
    recipe: Recipe = Recipe(), on_step: Callable[[int, float], None] | None = None
) -> SourceModel:
    """Train a network on characters drawn with fonts, and measure it on fonts that it has not seen.

    Args:
        recipe: how it is trained.
        on_step: called after each step with the number of steps done and the last known loss.

    Raises:
        SourceModelError: the lower end of the binomial 99 % interval of its held-out accuracy does
            not lie above the naive classifier's accuracy.
        ModelError: the architecture is unknown, or of a family without these options.
    """
    start = init(
        recipe.architecture,
        recipe.seed,
        num_classes=len(glyphs.CLASSES),
        in_channels=1,
        width=recipe.width,
        input_size=(glyphs.IMAGE_SIZE, glyphs.IMAGE_SIZE),
        shortcut="projection",
    ).with_labels(glyphs.CLASSES)
    model = _train(start, recipe, on_step)
    held_out, naive = _evaluate(model, recipe.seed)
    require_better_than_naive(held_out, naive)
    note = (
        f"pretrain: {recipe.steps} steps of {recipe.batch_size} drawn characters of "
        f"{len(glyphs.CLASSES)} classes, seed {recipe.seed}; accuracy on held-out fonts "
        f"{held_out.mean:.4f}"
    )
    return SourceModel(
        replace(model, receipt=model.receipt.with_note(note)), recipe, held_out, naive
    )


def require_better_than_naive(held_out: Interval, naive: float) -> None:
    """Refuse a source model that is not better than always answering the majority class.

    Args:
        held_out: the model's accuracy on held-out data, with its interval.
        naive: the naive classifier's accuracy there.

    Raises:
        SourceModelError: the interval's lower end does not lie above `naive`.
    """
    if not held_out.low > naive:
        raise SourceModelError(
            f"source model: expected a held-out accuracy above the naive classifier's {naive:.4f} "
            f"by more than the binomial 99 % interval, found {held_out.mean:.4f} "
            f"({held_out.low:.4f} to {held_out.high:.4f}); train for more steps, or better the "
            "recipe; nothing was written"
        )


_draw = jax.jit(glyphs.draw, static_argnames="batch_size")


@functools.lru_cache(maxsize=2)
def _masks(fonts: tuple[str, ...]) -> jax.Array:
    return jnp.asarray(glyphs.load_glyphs(fonts))


def _train(model: Model, recipe: Recipe, on_step: Callable[[int, float], None] | None) -> Model:
    plan = full(model)
    tx = plan.optimizer(
        recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        schedule=warmup_cosine(recipe.steps),
    )
    step = make_train_step(model.apply, cross_entropy(recipe.label_smoothing), tx, plan)
    state = init_state(model, plan, tx, recipe.seed)
    masks = _masks(glyphs.TRAINING_FONTS)
    key = jax.random.key(recipe.seed)
    loss = float("nan")
    for number in range(recipe.steps):
        images, labels = _draw(jax.random.fold_in(key, number), masks, recipe.batch_size)
        state, metrics = step(state, {"image": images, "label": labels})
        if on_step is not None:
            # Looking at each loss would make the device wait for the host.
            loss = float(metrics["loss"]) if number % 50 == 0 else loss
            on_step(number + 1, loss)
    return replace(model, params=state.params, stats=state.stats)


def _evaluate(model: Model, seed: int) -> tuple[Interval, float]:
    masks = _masks(glyphs.HELD_OUT_FONTS)
    # Training folds step numbers into this key; the number here is none of them.
    key = jax.random.fold_in(jax.random.key(seed), 2**31)
    images, labels = map(np.asarray, _draw(key, masks, HELD_OUT_COUNT))
    correct = int((predict(model, images).argmax(axis=-1) == labels).sum())
    return binomial_interval(correct, HELD_OUT_COUNT), majority_accuracy(labels, labels)


def _card(source: SourceModel, folder: Path) -> str:
    model, recipe, held_out = source.model, source.recipe, source.held_out
    options = (
        (name.replace("_", "-"), f"{value:g}" if isinstance(value, float) else value)
        for name, value in asdict(recipe).items()
    )
    command = " ".join(f"--{name} {value}" for name, value in options)
    weights = folder / WEIGHTS_FILE
    accuracy, low, high, naive = (f"{100 * value:.1f} %" for value in (*held_out, source.naive))
    size = f"{count_parameters(model.params):,} parameters, {format_bytes(weights.stat().st_size)}"
    side = glyphs.IMAGE_SIZE
    return f"""# {folder.name}

A residual network ({recipe.architecture}, width {recipe.width}, {size})
that tells {len(glyphs.CLASSES)} drawn characters apart: a source to transfer from.

- **Task**: digits, capital and small letters, drawn with {len(glyphs.TRAINING_FONTS)} fonts that
  matplotlib ships under random slant, rotation, elastic deformation, stroke width, contrast and
  noise, most of them at the resolution of scikit-learn's handwritten digits. The images are made
  as training goes on; no two are the same.
- **Command**: `jaxtransfer pretrain {command}`
- **Fonts held out**: {", ".join(glyphs.HELD_OUT_FONTS)}
- **Accuracy on the held-out fonts**: {accuracy} of {HELD_OUT_COUNT:,} drawn characters (binomial
  99 % interval {low} to {high}; the majority class gives {naive}). Characters that look alike
  once they fill the frame, such as o, O and 0 or s and S, cannot all be told apart.
- **Input**: images with bright ink on a dark ground, one channel, resized to {side}x{side}; bytes
  are divided by 255.
- **sha256 of {WEIGHTS_FILE}**: `{sha256_of(weights)}`
- **Trained with**: JAX {jax.__version__} on {jax.devices()[0].platform}. The same command gives
  the same weights on the same machine and versions; elsewhere rounding differs.
- **Limits**: one centred character an image, upright within about 30 degrees; dark ink on a bright
  ground must be inverted first; only Latin letters without accents; never tested on photographs.
  The distortions were chosen in trials on splits of scikit-learn's digits, so that what transfer
  gains there is a little optimistic.
- **Licence**: Apache-2.0, as the package. The fonts (DejaVu, STIX, Computer Modern) are not part of
  it.
"""
