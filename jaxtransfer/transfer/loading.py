"""A network and its weights, verified, with the surgery that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxtransfer import hub
from jaxtransfer.errors import MappingError, ModelError
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
from jaxtransfer.surgery import adapt_stem, change_input_size, replace_head
from jaxtransfer.tree import place
from jaxtransfer.types import PyTree

EMBEDDED_SOURCE = "checkpoints/glyphs"


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
