"""A network with its weights: one immutable value that is a pytree."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError, OutputError
from jaxtransfer.formats import sha256_of, write_weights
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.mapping import Receipt
from jaxtransfer.models.function import FunctionApply
from jaxtransfer.models.linen import LinenApply, stages_in_order
from jaxtransfer.models.nnx import split_nnx, text_keys
from jaxtransfer.models.spec import ModelSpec, Preprocess
from jaxtransfer.surgery import has_head
from jaxtransfer.surgery.layers import head_to_json, tasks_to_json
from jaxtransfer.tree import is_below, named_leaves, nearest, path_prefixes, subtree
from jaxtransfer.types import PyTree

# What people call the last layer, in the order in which a name is looked for.
HEAD_NAMES = ("head", "classifier", "fc", "logits", "output")

# The files of a saved model.
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
RECEIPT_FILE = "receipt.json"
# What weights and receipt are called until the config tells of them.
NEW_WEIGHTS_FILE = "model.new.safetensors"
NEW_RECEIPT_FILE = "receipt.new.json"

# A user's own network gets its images as they come, since nobody said otherwise.
AS_THEY_COME = Preprocess(scale=None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """A network with its weights: `params` and `stats` are the leaves, the rest is static.

    Attributes:
        spec: data about the network.
        apply: `apply(params, stats, inputs, *, train, rngs=None, start=None, stop=None,
            frozen_modules=frozenset()) -> (outputs, new_stats)`, a pure function. `start` and
            `stop` cut the forward pass at the entrance of a stage: inputs enter at `start`, and
            what would enter `stop` comes out. Modules whose paths are in `frozen_modules` run as in
            evaluation.
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
        `deterministic`, …), if it has one. BatchNorm and Dropout need no preparation to be frozen.

        Args:
            module: a Linen module whose call takes a batch of inputs.
            variables: what `module.init` returned: `params` and, if there are any, `batch_stats`.
            head: path of the last layer in the parameters; by default one of `HEAD_NAMES`, else the
                last dense layer at the top level.
            stages: top-level keys of the parameters from input to head. By default they are in the
                order in which the forward pass enters them where `input_shape` is given, else in
                their own.
            input_shape: (height, width, channels) of one input.
            labels: names of the classes in the order of the outputs.
            preprocess: what happens to images before they enter; by default nothing.

        Raises:
            ModelError: `variables` has collections other than `params` and `batch_stats`, `head` or
                `stages` are not in the parameters, or the labels are not as many as the outputs.
        """
        name = type(module).__name__
        if not isinstance(module, nn.Module) or not isinstance(variables, Mapping):
            raise ModelError(
                f"from_linen({name}): expected an instance of flax.linen.Module and its variables, "
                f"found {name} and {type(variables).__name__}; NNX modules enter by from_nnx"
            )
        others = set(variables) - {"params", "batch_stats"}
        if "params" not in variables or others:
            raise ModelError(
                f"from_linen({name}): expected the collections params and batch_stats, "
                f"found {sorted(variables)}; leave out those that are not weights"
            )
        params, stats = text_keys(variables["params"]), text_keys(variables.get("batch_stats", {}))
        if stages is None and input_shape is not None and len(input_shape) == 3:
            images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
            entered = stages_in_order(module, variables, images)
            # Parameters that belong to no submodule, such as a class token, go first.
            stages = (*(key for key in params if key not in entered), *entered)
        spec = _spec(name, params, head, stages, input_shape)
        return _labelled(cls(spec, LinenApply(module), params, stats, preprocess), labels)

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
        """A model from a Flax NNX module, which is not changed; arguments as for `from_linen`.

        Stages are by default in the order in which the module was given its attributes.

        Raises:
            ModelError: it is no NNX module, or `head` or `stages` are not in the parameters.
        """
        apply, params, stats = split_nnx(module)
        spec = _spec(type(module).__name__, params, head, stages, input_shape)
        return _labelled(cls(spec, apply, params, stats, preprocess), labels)

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
        """A model from a function and a tree of parameters.

        Args:
            apply: `(params, inputs) -> outputs`, or
                `(params, stats, inputs) -> (outputs, new_stats)`. Of the keywords `train`, `rngs`,
                `start`, `stop` and `frozen_modules` it is given those that it takes.
            params: any pytree of arrays; nested dicts where the head shall be replaced.
            stats: running statistics, if the function has any.
            head: path of the last layer in the parameters, as for `from_linen`.
            stages: top-level keys of the parameters from input to head; by default in their own
                order.
            input_shape: (height, width, channels) of one input.
            labels: names of the classes in the order of the outputs.
            preprocess: what happens to images before they enter; by default nothing.

        Raises:
            ModelError: there are no parameters, `head` or `stages` are not among them, or there are
                statistics that the function does not take.
        """
        function = FunctionApply(apply)
        stats = {} if stats is None else stats
        if jax.tree.leaves(stats) and not function.takes_stats:
            raise ModelError(
                f"from_function({function.name}): expected a function of (params, stats, inputs), "
                "found one without stats; add the argument, or leave the statistics out"
            )
        spec = _spec(function.name, params, head, stages, input_shape)
        return _labelled(cls(spec, function, params, stats, preprocess), labels)

    @property
    def num_classes(self) -> int | None:
        """How many outputs the head has, as labels, kernels or forward pass say, else `None`.

        A network without a head has none; one with heads for several tasks has no single number:
        each of `spec.task_heads` has its own `num_classes`.
        """
        if self.spec.task_heads:
            return None
        if self.labels is not None:
            return len(self.labels)
        if self.spec.head_layers:
            return getattr(self.spec.head_layers[-1], "features", None)
        if not isinstance(self.params, Mapping):
            return None
        if not has_head(self):
            return None  # the network gives features
        head = named_leaves(subtree(self.params, self.spec.head))
        kernels = [leaf for name, leaf in head if name.split("/")[-1] == "kernel"]
        if len(kernels) == 1:
            return kernels[0].shape[-1]
        if self.spec.input_size is None or self.spec.in_channels is None:
            return None  # which of several kernels is the last one, their names do not say
        image = jax.ShapeDtypeStruct((1, *self.spec.input_size, self.spec.in_channels), jnp.float32)
        forward = functools.partial(self.apply, train=False)
        return jax.eval_shape(forward, self.params, self.stats, image)[0].shape[-1]

    def with_labels(self, labels: Sequence[str]) -> Model:
        """The same model whose outputs have names.

        Raises:
            ModelError: the number of names is not that of the outputs, or there are several heads.
        """
        if self.spec.task_heads:
            tasks = ", ".join(head.task for head in self.spec.task_heads)
            raise ModelError(
                f"{self.spec.name}: expected a network with one head to give labels, found heads "
                f"for the tasks {tasks}; name their classes by replace_head(model, tasks=…)"
            )
        if self.num_classes not in (None, len(labels)):
            raise ModelError(
                f"{self.spec.name}: expected {self.num_classes} labels, found {len(labels)}; "
                "replace the head to tell other classes apart"
            )
        return replace(self, labels=tuple(labels))

    def save(self, folder: str | Path) -> Path:
        """Write the model to a folder, weights, config and receipt, from where `jt.load` reads it.

        The config, which holds the hash of the weights, is what puts a new model in the place of
        an earlier one. Until it is written the earlier one can be loaded, and from then on the new
        one, wherever the process or the machine stops.

        Args:
            folder: is made if it does not exist; a model that is there already is replaced.

        Returns:
            The folder.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        folder = Path(folder)
        make_folder(folder)
        new_weights, new_receipt = folder / NEW_WEIGHTS_FILE, folder / NEW_RECEIPT_FILE
        try:
            write_weights({"params": self.params, "stats": self.stats}, new_weights)
            write_text(self.receipt.to_json() + "\n", new_receipt)
            config = {
                "architecture": self.spec.name,
                "options": dict(self.spec.options),
                "in_channels": self.spec.in_channels,
                "input_size": self.spec.input_size,
                "truncated_after": self.spec.truncated_after,
                "head_layers": head_to_json(self.spec.head_layers),
                "task_heads": tasks_to_json(self.spec.task_heads),
                "labels": self.labels,
                "preprocess": self.preprocess.to_dict(),
                "sha256": sha256_of(new_weights),
            }
            text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
            write_text(text, folder / CONFIG_FILE)
        except Exception:
            new_weights.unlink(missing_ok=True)
            new_receipt.unlink(missing_ok=True)
            raise
        # The weights come last: as long as they have the new name, the receipt that belongs to them
        # is the new one if there is one, else the one that has its final name already.
        _rename(new_receipt, folder / RECEIPT_FILE)
        _rename(new_weights, folder / WEIGHTS_FILE)
        return folder


def _rename(old: Path, new: Path) -> None:
    try:
        old.replace(new)
    except OSError as error:
        raise OutputError(
            f"{new}: expected to write a file here, found: {error.strerror or error}; the folder "
            f"can be loaded as it is, for the model is in {old.name}; save again to tidy up"
        ) from error


def _labelled(model: Model, labels: Sequence[str] | None) -> Model:
    return model if labels is None else model.with_labels(labels)


def _spec(
    name: str,
    params: PyTree,
    head: str | None,
    stages: Sequence[str] | None,
    input_shape: tuple[int, int, int] | None,
) -> ModelSpec:
    """Data about a user's own network, as far as its parameters tell.

    Raises:
        ModelError: there are no parameters, or what is said of them is not so.
    """
    leaves = named_leaves(params)
    found = list(params) if isinstance(params, Mapping) else [path for path, _ in leaves]
    keys = list(dict.fromkeys(key.split("/")[0] for key in found))
    if not leaves:
        raise ModelError(f"{name}: expected a tree of parameters, found no leaves")
    if head is None:
        head = _guess_head(stages or keys, leaves, in_order=bool(stages))
    top = head.split("/")[0]
    ordered = tuple(stages) if stages else (*(key for key in keys if key != top), top)
    problems = []
    if not any(is_below(path, {head}) for path, _ in leaves):
        likely = ", ".join(
            nearest(head, {top for path, _ in leaves for top in path_prefixes(path)})
        )
        problems.append(
            f" - head {head!r}: no parameters are there; the nearest paths are {likely}"
        )
    missing = [key for key in keys if key not in ordered]
    if missing:
        problems.append(
            f" - stages {ordered}: {missing} of the parameters' keys are not among them"
        )
    if input_shape is not None and len(input_shape) != 3:
        problems.append(f" - input_shape {input_shape}: expected (height, width, channels)")
    if problems:
        raise ModelError(
            "\n".join([f"{name}: expected what fits the parameters, found", *problems])
        )
    return ModelSpec(
        name=name,
        stages=ordered,
        head=head,
        stem=ordered[0] if len(ordered) > 1 else None,
        input_size=None if input_shape is None else (input_shape[0], input_shape[1]),
        in_channels=None if input_shape is None else input_shape[2],
    )


def _guess_head(keys: Sequence[str], leaves: Sequence[tuple[str, Any]], *, in_order: bool) -> str:
    """A top-level key that people call the head, or else the last one with a kernel or a matrix."""
    known = [name for name in HEAD_NAMES if name in keys]
    if known:
        return known[0]
    matrices = [path.split("/") for path, leaf in leaves if getattr(leaf, "ndim", 0) > 1]
    kernels = [path[0] for path in matrices if path[1:] == ["kernel"]]
    last = [key for key in keys if key in (kernels or [path[0] for path in matrices] or keys)][-1]
    if in_order:
        return last
    # Sorted keys, as jit leaves them, have Dense_10 before Dense_9.
    siblings = [key for key in keys if key.rstrip("0123456789") == last.rstrip("0123456789")]
    return max(siblings, key=lambda key: (len(key), key))
