"""Models on disk: a folder with the weights, a config that builds the network again, and the receipt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxtransfer.errors import FormatError, ModelError, ReferenceNotFoundError
from jaxtransfer.formats import read_weights, sha256_of
from jaxtransfer.mapping import Receipt, Rule, convert
from jaxtransfer.models.catalog import CATALOG, build
from jaxtransfer.models.model import CONFIG_FILE, RECEIPT_FILE, WEIGHTS_FILE, Model
from jaxtransfer.models.spec import Preprocess
from jaxtransfer.surgery import replace_head
from jaxtransfer.surgery.head import head_from_json
from jaxtransfer.tree import leaf_names


def load_model(folder: str | Path, model: Model | None = None) -> Model:
    """The model that `Model.save` wrote, every leaf verified.

    Args:
        folder: what `save` was given.
        model: a model whose network the folder's weights belong to, for networks that are not in the
            catalog; its own weights are not used.

    Raises:
        ReferenceNotFoundError: the folder holds no model.
        FormatError: a file is damaged, or the weights are not those that the config names.
        ModelError: the network is not in the catalog and `model` was not given.
        MappingError: leaves are missing, left over or of another shape.
    """
    folder = Path(folder)
    config = _read_config(folder)
    weights = folder / WEIGHTS_FILE
    found = sha256_of(weights)
    if found != config["sha256"]:
        raise FormatError(
            f"{weights}: expected sha256 {config['sha256']} as {CONFIG_FILE} says, found {found}; the file is "
            "damaged or belongs to another model; save the model again"
        )
    template = _template(folder, config, model)
    like = {"params": template.params, "stats": template.stats}
    rules = tuple(Rule(name, name) for name in leaf_names(like))
    tree, receipt = convert(
        read_weights(weights),
        rules,
        like,
        file=f"{folder.name}/{WEIGHTS_FILE}",
        sha256=found,
        format="safetensors",
    )
    notes = Receipt.from_json(_read_text(folder / RECEIPT_FILE)).notes
    labels = config["labels"]
    return replace(
        template,
        params=jax.tree.map(jnp.asarray, tree["params"]),
        stats=jax.tree.map(jnp.asarray, tree["stats"]),
        preprocess=Preprocess.from_dict(config["preprocess"]),
        labels=None if labels is None else tuple(labels),
        receipt=replace(receipt, rules=(), notes=notes),
    )


def _template(folder: Path, config: dict[str, Any], model: Model | None) -> Model:
    """A model of the right structure, whatever its weights."""
    if model is None:
        if config["architecture"] not in CATALOG:
            raise ModelError(
                f"{folder}: expected a network of the catalog, found {config['architecture']!r}, a network of "
                "a user's own; give the network too: load(folder, model=Model.from_linen(…))"
            )
        model = build(config["architecture"], **_options(config["options"]))
    layers = head_from_json(config["head_layers"])
    if layers:
        size = getattr(layers[-1], "features", None)
        model = replace_head(model, size, hidden=layers[:-1], reuse=False)
    return model


def _options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path}: expected a text file, found {error}; save the model again"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ReferenceNotFoundError(
            f"{folder}: expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as Model.save writes, found no "
            f"{CONFIG_FILE}"
        )
    try:
        config = json.loads(_read_text(path))
        missing = {
            "architecture",
            "options",
            "head_layers",
            "labels",
            "preprocess",
            "sha256",
        } - set(config)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: expected JSON, found {error}; save the model again") from error
    if missing:
        raise FormatError(f"{path}: expected the keys {sorted(missing)} too; save the model again")
    return config
