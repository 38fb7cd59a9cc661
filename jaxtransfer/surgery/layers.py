"""The layers of a head as data, and the modules that compute them."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.tree.names import SEPARATOR

# ---------------------------------------------------------------------------------------------
# Layers as data


@dataclass(frozen=True)
class Dense:
    """A fully connected layer with `features` outputs, at least one."""

    features: int

    def __post_init__(self) -> None:
        if not is_positive_integer(self.features):
            raise ModelError(f"Dense: expected features of at least 1, found {self.features!r}")
        object.__setattr__(self, "features", int(self.features))


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation over the features of each example (Ba et al. 2016, arXiv 1607.06450)."""


@dataclass(frozen=True)
class BatchNorm:
    """Normalisation over the batch, by running statistics in evaluation.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167.
    """


@dataclass(frozen=True)
class Dropout:
    """In training, a share `rate` < 1 of the features is set to zero and the rest scaled up."""

    rate: float

    def __post_init__(self) -> None:
        if not isinstance(self.rate, numbers.Real) or not 0 <= self.rate < 1:
            raise ModelError(f"Dropout: expected a rate from 0, below 1, found {self.rate!r}")
        object.__setattr__(self, "rate", float(self.rate))


@dataclass(frozen=True)
class Activation:
    """An elementwise function: one of the names in `ACTIVATIONS`."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in ACTIVATIONS:
            raise ModelError(
                f"Activation: expected one of {', '.join(ACTIVATIONS)}, found {self.name!r}"
            )


@dataclass(frozen=True)
class Pool:
    """The mean over all positions of maps or tokens.

    It takes (batch, height, width, features) or (batch, tokens, features) to (batch, features), and
    leaves features without positions as they are.

    Source: Lin et al. 2014, "Network in Network" (arXiv 1312.4400), section 3.2.
    """


HeadLayer: TypeAlias = Dense | LayerNorm | BatchNorm | Dropout | Activation | Pool

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "relu": nn.relu,
        "gelu": lambda x: nn.gelu(x, approximate=False),
        "silu": nn.silu,
        "tanh": jnp.tanh,
    }
)

LAYER_KINDS: Mapping[str, type] = MappingProxyType(
    {kind.__name__: kind for kind in get_args(HeadLayer)}
)


def is_positive_integer(value: Any) -> bool:
    """Whether a value is an integer of at least 1, of Python's or of NumPy's."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_integer and int(value) >= 1


def head_to_json(layers: Sequence[HeadLayer]) -> list[dict[str, Any]]:
    """Head layers as JSON can hold them.

    >>> head_to_json([Dense(3)])
    [{'layer': 'Dense', 'features': 3}]
    """
    return [{"layer": type(layer).__name__, **asdict(layer)} for layer in layers]


def head_from_json(described: Sequence[Mapping[str, Any]]) -> tuple[HeadLayer, ...]:
    """The layers that `head_to_json` described.

    Raises:
        ModelError: a layer's kind is unknown, or its fields are not those of its kind.
    """
    layers = []
    for fields in described:
        kind: Any = fields.get("layer") if isinstance(fields, Mapping) else fields
        if kind not in LAYER_KINDS:
            raise ModelError(
                f"head: expected a layer among {', '.join(LAYER_KINDS)}, found {kind!r}"
            )
        try:
            layers.append(LAYER_KINDS[kind](**{k: v for k, v in fields.items() if k != "layer"}))
        except TypeError as error:
            raise ModelError(
                f"head: expected the fields of {kind}, found {dict(fields)}"
            ) from error
    return tuple(layers)


@dataclass(frozen=True)
class TaskHead:
    """The head of one of several tasks that share a network.

    Attributes:
        task: the task's name, by which its parameters and its logits are found.
        layers: from the features to the logits; the last one is dense.
        classes: the names of the classes in the order of the logits, `None` where they have none.
    """

    task: str
    layers: tuple[HeadLayer, ...]
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.task, str) or not self.task or SEPARATOR in self.task:
            problems.append(f"a name without {SEPARATOR!r} for the task")
        if not self.layers or not isinstance(self.layers[-1], Dense):
            problems.append("Dense as the last layer")
        elif self.classes is not None and len(self.classes) != self.num_classes:
            problems.append(f"{self.num_classes} classes")
        if problems:
            raise ModelError(f"TaskHead: expected {', '.join(problems)}, found {self}")

    @property
    def num_classes(self) -> int:
        """How many logits the task has."""
        last = self.layers[-1]
        return last.features if isinstance(last, Dense) else 0


def tasks_to_json(heads: Sequence[TaskHead]) -> list[dict[str, Any]]:
    """The heads of several tasks as JSON can hold them.

    >>> tasks_to_json([TaskHead("colour", (Dense(3),))])
    [{'task': 'colour', 'layers': [{'layer': 'Dense', 'features': 3}], 'classes': None}]
    """
    return [
        {"task": head.task, "layers": head_to_json(head.layers), "classes": head.classes}
        for head in heads
    ]


def tasks_from_json(described: Sequence[Mapping[str, Any]]) -> tuple[TaskHead, ...]:
    """The heads that `tasks_to_json` described.

    Raises:
        ModelError: what is described is no head of a task.
    """
    heads = []
    for fields in described:
        if not isinstance(fields, Mapping) or set(fields) != {"task", "layers", "classes"}:
            raise ModelError(f"heads: expected task, layers and classes of each, found {fields!r}")
        classes = fields["classes"]
        layers = head_from_json(fields["layers"])
        heads.append(TaskHead(fields["task"], layers, None if classes is None else tuple(classes)))
    return tuple(heads)


# ---------------------------------------------------------------------------------------------
# Modules


class _Head(nn.Module):
    """The layers one after the other, each named by its position; some may run as in evaluation."""

    layers: tuple[HeadLayer, ...]
    frozen: frozenset[int] = frozenset()

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        for position, layer in enumerate(self.layers):
            name = str(position)
            trains = train and position not in self.frozen
            match layer:
                case Dense(size):
                    features = nn.Dense(size, name=name)(features)
                case LayerNorm():
                    features = nn.LayerNorm(epsilon=1e-5, name=name)(features)
                case BatchNorm():
                    norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, name=name)
                    features = norm(features, use_running_average=not trains)
                case Dropout(rate):
                    features = nn.Dropout(rate, name=name)(features, deterministic=not trains)
                case Activation(function):
                    features = ACTIVATIONS[function](features)
                case Pool():
                    features = features.mean(axis=tuple(range(1, features.ndim - 1)))
        return features


class _DenseHead(nn.Module):
    """One dense layer with its kernel and bias at the head's own path, as in untouched networks."""

    features: int

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        del train
        dense = nn.Dense(self.features)
        nn.share_scope(self, dense)
        return dense(features)


def head_module(layers: tuple[HeadLayer, ...], frozen: frozenset[int] = frozenset()) -> nn.Module:
    """The module that computes the layers; those at the positions `frozen` run as in evaluation."""
    if len(layers) == 1 and isinstance(layers[0], Dense):
        return _DenseHead(layers[0].features)
    return _Head(layers, frozen)


def init_head(
    key: jax.Array, layers: Sequence[HeadLayer], features: int, dtype: Any = jnp.float32
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fresh parameters and statistics for a head: LeCun normal kernels, zero biases.

    Args:
        key: a random key; the same key gives the same head.
        layers: from the features to the logits.
        features: how many features enter.
        dtype: of the parameters; statistics are always float32.

    Returns:
        Parameters and statistics as nested dicts. A single dense layer gives `kernel` and `bias`,
        several layers give `0/kernel`, `0/bias`, `1/scale` and so on, by position.

    >>> params, stats = init_head(jax.random.key(0), [Dense(3)], features=8)
    >>> params["kernel"].shape, params["bias"].shape, stats
    ((8, 3), (3,), {})
    """
    module = head_module(tuple(layers))
    variables: Any = module.init({"params": key}, jnp.zeros((1, features)), train=False)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables.get("params", {}))
    return params, variables.get("batch_stats", {})
