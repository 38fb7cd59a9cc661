"""A network with its weights: one immutable value that is a pytree."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.formats import sha256_of, write_weights
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.mapping import Receipt
from jaxtransfer.models.function import FunctionApply
from jaxtransfer.models.linen import LinenApply
from jaxtransfer.models.nnx import split_nnx
from jaxtransfer.models.spec import ModelSpec, Preprocess
from jaxtransfer.surgery.head import head_to_json
from jaxtransfer.tree import flatten, leaf_names, named_leaves, subtree
from jaxtransfer.types import PyTree

# What people call the last layer, in the order in which a name is looked for.
HEAD_NAMES = ("head", "classifier", "fc", "logits", "output")

# The files of a saved model.
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
RECEIPT_FILE = "receipt.json"

# A user's own network gets its images as they come, since nobody said otherwise.
AS_THEY_COME = Preprocess(scale=None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """A network with its weights: `params` and `stats` are the leaves, the rest is static.

    Attributes:
        spec: data about the network.
        apply: `apply(params, stats, inputs, *, train, rngs=None, start=None, stop=None,
            frozen_modules=frozenset()) -> (outputs, new_stats)`, a pure function. `start` and `stop` cut
            the forward pass at the entrance of a stage: inputs enter at `start`, and what would enter
            `stop` comes out. Modules whose paths are in `frozen_modules` run as in evaluation.
        params: the parameters, nested dicts of arrays.
        stats: running statistics of BatchNorm, nested dicts of arrays with the modules' own paths.
        preprocess: what happens to images before they enter.
        labels: the names of the classes in the order of the outputs, `None` where they have none.
        receipt: where every leaf came from, and what surgery did since.
    """

    spec: ModelSpec = field(metadata={"static": True})
    apply: Callable[..., tuple[jax.Array, PyTree]] = field(metadata={"static": True})
    params: PyTree
    stats: PyTree
    preprocess: Preprocess = field(default=AS_THEY_COME, metadata={"static": True})
    labels: tuple[str, ...] | None = field(default=None, metadata={"static": True})
    receipt: Receipt = field(default_factory=Receipt, metadata={"static": True})

    @classmethod
    def from_linen(
        cls,
        module: Any,
        variables: Mapping[str, Any],
        *,
        head: str | None = None,
        stages: Sequence[str] | None = None,
        input_shape: tuple[int, int, int] | None = None,
        labels: Sequence[str] | None = None,
        preprocess: Preprocess = AS_THEY_COME,
    ) -> Model:
        """A model from a Flax Linen module and its variables.

        The module is called with the usual name of its mode argument (`train`, `training`,
        `deterministic`, …), if it has one. BatchNorm and Dropout need no preparation for freezing.

        Args:
            module: a Linen module whose call takes a batch of inputs.
            variables: what `module.init` returned: `params` and, if there are any, `batch_stats`.
            head: path of the last layer in the parameters; by default one of `HEAD_NAMES`, else the
                last of the stages.
            stages: top-level keys of the parameters from input to head; by default in their own order.
            input_shape: (height, width, channels) of one input.
            labels: names of the classes in the order of the outputs.
            preprocess: what happens to images before they enter; by default nothing.

        Raises:
            ModelError: `variables` has collections other than `params` and `batch_stats`, or `head`
                or `stages` are not in the parameters.
        """
        others = set(variables) - {"params", "batch_stats"}
        if "params" not in variables or others:
            raise ModelError(
                f"from_linen({type(module).__name__}): expected the collections params and batch_stats, "
                f"found {sorted(variables)}; leave out those that are not weights"
            )
        params, stats = variables["params"], variables.get("batch_stats", {})
        spec = _spec(type(module).__name__, params, head, stages, input_shape)
        return cls(spec, LinenApply(module), params, stats, preprocess, _tuple(labels))

    @classmethod
    def from_nnx(
        cls,
        module: Any,
        *,
        head: str | None = None,
        stages: Sequence[str] | None = None,
        input_shape: tuple[int, int, int] | None = None,
        labels: Sequence[str] | None = None,
        preprocess: Preprocess = AS_THEY_COME,
    ) -> Model:
        """A model from a Flax NNX module, which is not changed; arguments as for `from_linen`."""
        apply, params, stats = split_nnx(module)
        spec = _spec(type(module).__name__, params, head, stages, input_shape)
        return cls(spec, apply, params, stats, preprocess, _tuple(labels))

    @classmethod
    def from_function(
        cls,
        apply: Callable[..., Any],
        params: PyTree,
        stats: PyTree | None = None,
        *,
        head: str | None = None,
        stages: Sequence[str] | None = None,
        input_shape: tuple[int, int, int] | None = None,
        labels: Sequence[str] | None = None,
        preprocess: Preprocess = AS_THEY_COME,
    ) -> Model:
        """A model from a function and a tree of parameters; other arguments as for `from_linen`.

        Args:
            apply: `(params, inputs) -> outputs`, or `(params, stats, inputs) -> (outputs, new_stats)`.
                Of the keywords `train`, `rngs`, `start`, `stop` and `frozen_modules` it is given those
                that it takes.
            params: any pytree of arrays; nested dicts where the head shall be replaced.
            stats: running statistics, if the function has any.
        """
        name = getattr(apply, "__name__", type(apply).__name__)
        spec = _spec(name, params, head, stages, input_shape)
        return cls(spec, FunctionApply(apply), params, stats or {}, preprocess, _tuple(labels))

    @property
    def num_classes(self) -> int | None:
        """How many outputs the head has, as its labels or its last kernel say; `None` if neither does."""
        if self.labels is not None:
            return len(self.labels)
        if self.spec.head_layers:
            return getattr(self.spec.head_layers[-1], "features", None)
        if not isinstance(self.params, Mapping):
            return None
        kernels = [
            leaf
            for name, leaf in _leaves_below(self.params, self.spec.head)
            if name.split("/")[-1] == "kernel"
        ]
        return kernels[-1].shape[-1] if kernels else None

    def with_labels(self, labels: Sequence[str]) -> Model:
        """The same model whose outputs have names.

        Raises:
            ModelError: the number of names is not the number of outputs.
        """
        if self.num_classes not in (None, len(labels)):
            raise ModelError(
                f"{self.spec.name}: expected {self.num_classes} labels, found {len(labels)}"
            )
        return replace(self, labels=tuple(labels))

    def save(self, folder: str | Path) -> Path:
        """Write the model to a folder: weights, config with labels, and receipt; `jt.load` reads it back.

        Each file is written under another name first and renamed when it is whole. The config, which
        holds the hash of the weights, comes last.

        Args:
            folder: is made if it does not exist; a model that is there already is replaced.

        Returns:
            The folder.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        folder = Path(folder)
        make_folder(folder)
        weights = folder / WEIGHTS_FILE
        write_weights(flatten({"params": self.params, "stats": self.stats}), weights)
        config = {
            "architecture": self.spec.name,
            "options": dict(self.spec.options),
            "head_layers": head_to_json(self.spec.head_layers),
            "labels": self.labels,
            "preprocess": self.preprocess.to_dict(),
            "sha256": sha256_of(weights),
        }
        write_text(self.receipt.to_json() + "\n", folder / RECEIPT_FILE)
        write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", folder / CONFIG_FILE)
        return folder


def _tuple(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if labels is None else tuple(labels)


def _leaves_below(params: PyTree, path: str) -> list[tuple[str, Any]]:
    return named_leaves(subtree(params, path))


def _spec(
    name: str,
    params: PyTree,
    head: str | None,
    stages: Sequence[str] | None,
    input_shape: tuple[int, int, int] | None,
) -> ModelSpec:
    """Data about a user's own network, as far as its parameters tell."""
    keys = list(params) if isinstance(params, Mapping) else _first_segments(params)
    if not keys:
        raise ModelError(f"{name}: expected a tree of parameters, found no leaves")
    if head is None:
        known = [key for key in HEAD_NAMES if key in keys]
        head = known[0] if known else (list(stages) if stages else keys)[-1]
    top = head.split("/")[0]
    ordered = tuple(stages) if stages else (*(key for key in keys if key != top), top)
    if top not in keys:
        raise ModelError(
            f"{name}: expected the head among the top-level keys {keys}, found {head!r}"
        )
    return ModelSpec(
        name=name,
        stages=ordered,
        head=head,
        stem=ordered[0] if len(ordered) > 1 else None,
        input_size=None if input_shape is None else (input_shape[0], input_shape[1]),
        channels=None if input_shape is None else input_shape[2],
    )


def _first_segments(params: PyTree) -> list[str]:
    return list(dict.fromkeys(name.split("/")[0] for name in leaf_names(params)))
