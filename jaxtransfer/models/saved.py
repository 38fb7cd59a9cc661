"""Models on disk: a folder with the weights, a config that builds the network, and the receipt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtransfer.errors import FormatError, ModelError, ReferenceNotFoundError
from jaxtransfer.formats import read_weights, sha256_of
from jaxtransfer.mapping import Receipt, Rule, convert
from jaxtransfer.models.catalog import build, families
from jaxtransfer.models.model import (
    CONFIG_FILE,
    NEW_RECEIPT_FILE,
    NEW_WEIGHTS_FILE,
    RECEIPT_FILE,
    WEIGHTS_FILE,
    Model,
)
from jaxtransfer.models.spec import Preprocess
from jaxtransfer.surgery import Dense, adapt_stem, change_input_size, replace_head, truncate
from jaxtransfer.surgery.layers import head_from_json, tasks_from_json
from jaxtransfer.tree import leaf_names, place


def load_model(folder: str | Path, model: Model | None = None) -> Model:
    """The model that `Model.save` wrote, every leaf verified.

    Args:
        folder: what `save` was given.
        model: a model whose network the folder's weights belong to, for networks that are not in
            the catalog; its own weights are not used.

    Raises:
        ReferenceNotFoundError: the folder holds no model.
        FormatError: a file is damaged, or the weights are not those that the config names.
        ModelError: the network is not in the catalog and `model` was not given.
        MappingError: leaves are missing, left over or of another shape.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights, receipt_file = _find_files(folder, config["sha256"])
    template = _template(folder, config, model)
    like = {"params": template.params, "stats": template.stats}
    rules = tuple(Rule(name, name) for name in leaf_names(like))
    tree, receipt = convert(
        read_weights(weights),
        rules,
        like,
        file=f"{folder.name}/{WEIGHTS_FILE}",
        sha256=config["sha256"],
        format="safetensors",
    )
    placed = place(tree)
    notes = Receipt.from_json(_read_text(receipt_file)).notes
    labels = config["labels"]
    loaded = replace(
        template,
        params=placed["params"],
        stats=placed["stats"],
        preprocess=Preprocess.from_dict(config["preprocess"]),
        labels=None,
        receipt=replace(receipt, rules=(), notes=notes),
    )
    return loaded if labels is None else loaded.with_labels(labels)


def _template(folder: Path, config: dict[str, Any], model: Model | None) -> Model:
    """A model of the right structure, whatever its weights."""
    if model is None:
        if config["architecture"] not in families():
            raise ModelError(
                f"{folder}: expected a network of the catalog, found {config['architecture']!r}, a "
                "network of a user's own; give the network too: "
                "load(folder, model=Model.from_linen(…))"
            )
        model = build(config["architecture"], **_options(config["options"]))
    channels, size = config["in_channels"], config["input_size"]
    if channels not in (None, model.spec.in_channels):
        model = adapt_stem(model, channels, "repeat")
    if size is not None:
        model = change_input_size(model, size)
    if config["truncated_after"] not in (None, model.spec.truncated_after):
        model = truncate(model, config["truncated_after"])
    return _with_heads(folder, config, model)


def _with_heads(folder: Path, config: dict[str, Any], model: Model) -> Model:
    """The model with the head, or the heads of tasks, that the config describes."""
    layers = head_from_json(config["head_layers"])
    heads = tasks_from_json(config["task_heads"])
    if heads:
        layers = heads[0].layers
    if not layers:
        return model
    if not isinstance(layers[-1], Dense) or any(h.layers[:-1] != layers[:-1] for h in heads):
        raise FormatError(
            f"{folder / CONFIG_FILE}: expected Dense as the last layer of the head, and the same "
            f"layers before it for all tasks, found {heads or layers[-1]}; save the model again"
        )
    as_saved: Any = {"hidden": layers[:-1], "pool": False, "reuse": False}
    if not heads:
        return replace_head(model, layers[-1].features, **as_saved)
    tasks = {head.task: head.classes or head.num_classes for head in heads}
    return replace_head(model, tasks=tasks, **as_saved)


def _options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}


def _find_files(folder: Path, sha256: str) -> tuple[Path, Path]:
    """The weights of this hash and their receipt, under the names of a save that was cut short too.

    `Model.save` writes both under new names, then the config, and then renames the receipt before
    the weights.
    """
    weights, new_weights = folder / WEIGHTS_FILE, folder / NEW_WEIGHTS_FILE
    found = sha256_of(weights) if weights.is_file() else "no such file"
    if found == sha256:
        return weights, folder / RECEIPT_FILE
    if new_weights.is_file() and sha256_of(new_weights) == sha256:
        new_receipt = folder / NEW_RECEIPT_FILE
        return new_weights, new_receipt if new_receipt.is_file() else folder / RECEIPT_FILE
    raise FormatError(
        f"{weights}: expected sha256 {sha256} as {CONFIG_FILE} says, found {found}; the file is "
        "damaged or belongs to another model; save the model again"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path}: expected a text file, found {error}; save the model again"
        ) from error


# The keys of the config, and what JSON has for each.
_CONFIG_KEYS: dict[str, type | tuple[type, ...]] = {
    "architecture": str,
    "options": dict,
    "in_channels": (int, type(None)),
    "input_size": (list, type(None)),
    "truncated_after": (str, type(None)),
    "head_layers": list,
    "task_heads": list,
    "labels": (list, type(None)),
    "preprocess": dict,
    "sha256": str,
}

# What configs of earlier versions do not have, and its value there.
_NEWER_KEYS: dict[str, Any] = {
    "in_channels": None,
    "input_size": None,
    "truncated_after": None,
    "task_heads": [],
}


def read_config(folder: Path) -> dict[str, Any]:
    """The config that `Model.save` wrote in a folder.

    Raises:
        ReferenceNotFoundError: there is none.
        FormatError: it is damaged.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ReferenceNotFoundError(
            f"{folder}: expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as Model.save "
            f"writes them, found no {CONFIG_FILE}; check the path"
        )
    try:
        config = json.loads(_read_text(path))
    except ValueError as error:
        raise FormatError(f"{path}: expected JSON, found {error}; save the model again") from error
    found = {**_NEWER_KEYS, **config} if isinstance(config, dict) else {}
    wrong = [
        key
        for key, kind in _CONFIG_KEYS.items()
        if key not in found or not isinstance(found[key], kind)
    ]
    if wrong:
        raise FormatError(
            f"{path}: expected the keys {', '.join(_CONFIG_KEYS)}, found {', '.join(wrong)} absent "
            "or of another kind; save the model again"
        )
    return found
