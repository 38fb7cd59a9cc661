"""Replace a network's head by one layer or several, keeping the rows of classes that it knows."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.tree import is_below, named_leaves, subtree, with_subtree
from jaxtransfer.types import PyTree

# ---------------------------------------------------------------------------------------------
# Layers of a head, as data


@dataclass(frozen=True)
class Dense:
    """A fully connected layer with `features` outputs, at least one."""

    features: int

    def __post_init__(self) -> None:
        if not _is_positive_integer(self.features):
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


HeadLayer: TypeAlias = Dense | LayerNorm | BatchNorm | Dropout | Activation

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "relu": nn.relu,
        "gelu": lambda x: nn.gelu(x, approximate=False),
        "silu": nn.silu,
        "tanh": jnp.tanh,
    }
)

_LAYER_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (Dense, LayerNorm, BatchNorm, Dropout, Activation)
}


def _is_positive_integer(value: Any) -> bool:
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
        kind = fields.get("layer") if isinstance(fields, Mapping) else fields
        if kind not in _LAYER_KINDS:
            raise ModelError(
                f"head: expected a layer among {', '.join(_LAYER_KINDS)}, found {kind!r}"
            )
        try:
            layers.append(_LAYER_KINDS[kind](**{k: v for k, v in fields.items() if k != "layer"}))
        except TypeError as error:
            raise ModelError(
                f"head: expected the fields of {kind}, found {dict(fields)}"
            ) from error
    return tuple(layers)


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


def _module(layers: tuple[HeadLayer, ...], frozen: frozenset[int] = frozenset()) -> nn.Module:
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
    module = _module(tuple(layers))
    variables: Any = module.init({"params": key}, jnp.zeros((1, features)), train=False)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables.get("params", {}))
    return params, variables.get("batch_stats", {})


# ---------------------------------------------------------------------------------------------
# A network whose head was replaced


@dataclass(frozen=True)
class HeadedApply:
    """A network's forward pass with the layers of another head in place of its own.

    Attributes:
        body: the forward pass of the network, which can stop at the head.
        path: where the head's parameters lie.
        layers: the layers of the new head.
    """

    body: Callable[..., Any]
    path: str
    layers: tuple[HeadLayer, ...]

    def __call__(
        self,
        params: PyTree,
        stats: PyTree,
        inputs: jax.Array,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        start: str | None = None,
        stop: str | None = None,
        frozen_modules: frozenset[str] = frozenset(),
    ) -> tuple[jax.Array, PyTree]:
        """The forward pass of `Model.apply`."""
        if start == self.path:
            features = inputs
        else:
            features, stats = self.body(
                params,
                stats,
                inputs,
                train=train,
                rngs=rngs,
                start=start,
                stop=self.path if stop is None else stop,
                frozen_modules=frozen_modules,
            )
        if stop is not None:
            return features, stats
        return self._apply_head(params, stats, features, train, rngs, frozen_modules)

    def _apply_head(
        self,
        params: PyTree,
        stats: PyTree,
        features: jax.Array,
        train: bool,
        rngs: Mapping[str, jax.Array] | None,
        frozen_modules: frozenset[str],
    ) -> tuple[jax.Array, PyTree]:
        positions = range(len(self.layers))
        frozen = frozenset(i for i in positions if is_below(f"{self.path}/{i}", frozen_modules))
        head_stats = _subtree_or_empty(stats, self.path)
        logits, updates = _module(self.layers, frozen).apply(
            {"params": subtree(params, self.path), "batch_stats": head_stats},
            features,
            train=train,
            rngs=dict(rngs or {}),
            mutable=["batch_stats"],
        )
        if head_stats and train:
            stats = with_subtree(stats, self.path, updates["batch_stats"])
        return logits, stats


def _subtree_or_empty(tree: PyTree, path: str) -> dict[str, Any]:
    node = tree
    for segment in path.split("/"):
        if segment not in node:
            return {}
        node = node[segment]
    return node


# ---------------------------------------------------------------------------------------------
# The surgery

AnyModel = TypeVar("AnyModel", bound=Any)
"""`jaxtransfer.Model`, which stands a floor above."""


def replace_head(
    model: AnyModel,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    hidden: Sequence[HeadLayer] = (),
    reuse: bool = True,
    key: jax.Array | int = 0,
) -> AnyModel:
    """A model with a new head; every leaf outside the head is the same array as before.

    The new head ends in a dense layer with one output a class. Where the old head is a single dense
    layer and so is the new one, the kernel columns and biases of classes whose names match exactly
    are copied; the receipt says which. A name that several old classes share tells none of them
    apart, and nothing is copied for it.

    What a network does after its head, such as a softmax, is not done after the new one.

    Args:
        model: a `Model`; it stays as it is.
        num_classes: how many classes the new head tells apart, if they have no names.
        classes: the names of the classes, in the order of the outputs.
        hidden: layers between the features and the last dense layer.
        reuse: whether rows of classes with matching names are copied.
        key: a random key, or a seed for one, for what is not copied.

    Raises:
        ModelError: neither or both of `num_classes` and `classes` are given, a class is named
            twice, there is no class, `hidden` holds something else than head layers, or the network
            cannot stop at its head.

    Example:
        `replace_head(model, classes=["ant", "bee"], hidden=[Dropout(0.2)], key=1)`
    """
    where = f"replace_head({model.spec.name})"
    names = _class_names(where, num_classes, classes)
    layers = (*_checked_layers(where, hidden), Dense(len(names) if names else num_classes or 0))
    path = model.spec.head
    body = model.apply.body if isinstance(model.apply, HeadedApply) else model.apply
    can_stop = getattr(body, "can_stop", True)
    old_head = _old_head(where, model, layers, can_stop)
    features = _features_at_head(where, model, body, can_stop)
    random_key = key if isinstance(key, jax.Array) else jax.random.key(int(key))
    params, stats = init_head(random_key, layers, features, _dtype_of(old_head))
    pairs = _matching_rows(model, old_head, names, layers, features) if reuse else []
    for new, old in pairs:
        for name in params.keys() & old_head.keys():
            params[name] = params[name].at[..., new].set(old_head[name][..., old])
    if not can_stop:  # the network's own forward pass goes on to read its head from these names
        params = {name: params[name] for name in old_head}
    return replace(
        model,
        spec=replace(model.spec, head_layers=layers),
        apply=HeadedApply(body, path, layers) if can_stop else body,
        params=with_subtree(model.params, path, params),
        stats=with_subtree(model.stats, path, stats or None),
        labels=names,
        receipt=model.receipt.with_note(_note(model, path, layers, names, pairs)),
    )


def _class_names(
    where: str, num_classes: int | None, classes: Sequence[str] | None
) -> tuple[str, ...] | None:
    if (num_classes is None) == (classes is None):
        raise ModelError(f"{where}: expected one of num_classes and classes, found both or none")
    if classes is None:
        if not _is_positive_integer(num_classes):
            raise ModelError(f"{where}: expected num_classes of at least 1, found {num_classes!r}")
        return None
    names = () if isinstance(classes, str) else tuple(classes)
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if not names or repeated:
        found = repeated or (f"the text {classes!r}" if isinstance(classes, str) else "no class")
        raise ModelError(f"{where}: expected a list of names, each once, found {found}")
    return names


def _checked_layers(where: str, hidden: Sequence[HeadLayer]) -> tuple[HeadLayer, ...]:
    others = [layer for layer in hidden if not isinstance(layer, HeadLayer)]
    if others:
        raise ModelError(
            f"{where}: expected hidden layers among {', '.join(_LAYER_KINDS)} of jaxtransfer, "
            f"found {others}; write Dense(64) for a layer of 64 features"
        )
    return tuple(hidden)


def _old_head(where: str, model: Any, layers: tuple[HeadLayer, ...], can_stop: bool) -> Any:
    """What lies at the head's path.

    Raises:
        ModelError: the new head cannot take its place.
    """
    if not isinstance(model.params, Mapping):
        raise ModelError(
            f"{where}: expected parameters in nested dicts, found {type(model.params).__name__}; "
            "build the network with the right number of outputs, and give it labels= where the "
            "classes have names"
        )
    old_head = subtree(model.params, model.spec.head)
    if not can_stop and (len(layers) > 1 or not _is_dense(old_head)):
        found = ", ".join(name for name, _ in named_leaves(old_head)) or "nothing"
        raise ModelError(
            f"{where}: expected a single dense layer in place of another one, with a kernel of "
            "shape (features, classes) and a bias or none, since the function cannot stop at "
            f"{model.spec.head!r}; found {found} there, and {len(layers)} new layers; let the "
            "function take start= and stop="
        )
    return old_head


def _is_dense(head: Any) -> bool:
    """Whether a subtree is a kernel of two axes and at most a bias."""
    return (
        isinstance(head, Mapping)
        and "kernel" in head
        and set(head) <= {"kernel", "bias"}
        and getattr(head["kernel"], "ndim", None) == 2
    )


def _dtype_of(head: Any) -> Any:
    floats = [x.dtype for x in jax.tree.leaves(head) if jnp.issubdtype(x.dtype, jnp.floating)]
    return floats[0] if floats else jnp.dtype(jnp.float32)


def _features_at_head(where: str, model: Any, body: Callable[..., Any], can_stop: bool) -> int:
    """How many features enter the head: from the forward pass, else from the first kernel there."""
    spec = model.spec
    if spec.input_size is not None and spec.in_channels is not None and can_stop:
        image = jax.ShapeDtypeStruct((1, *spec.input_size, spec.in_channels), jnp.float32)

        def features(params: PyTree, stats: PyTree, inputs: jax.Array) -> jax.Array:
            return body(params, stats, inputs, train=False, stop=spec.head)[0]

        return jax.eval_shape(features, model.params, model.stats, image).shape[-1]
    leaves = named_leaves(subtree(model.params, spec.head))
    kernels = [leaf for name, leaf in leaves if name.split("/")[-1] == "kernel" and leaf.ndim > 1]
    # The layers of a head that surgery made are in order; of others nobody knows which is first.
    if len(kernels) == 1 or (kernels and spec.head_layers):
        return kernels[0].shape[-2]
    raise ModelError(
        f"{where}: expected one kernel at {spec.head!r}, found {len(kernels)}; give the model its "
        "input_shape, so that the number of features can be computed"
    )


def _matching_rows(
    model: Any,
    old_head: Any,
    names: tuple[str, ...] | None,
    layers: tuple[HeadLayer, ...],
    features: int,
) -> list[tuple[int, int]]:
    """Pairs of positions (in the new head, in the old head) of classes with the same name."""
    if names is None or model.labels is None or len(layers) > 1 or not _is_dense(old_head):
        return []
    if old_head["kernel"].shape != (features, len(model.labels)):
        return []
    counts = Counter(model.labels)
    old_positions = {name: i for i, name in enumerate(model.labels) if counts[name] == 1}
    return [(new, old_positions[name]) for new, name in enumerate(names) if name in old_positions]


def _note(
    model: Any,
    path: str,
    layers: tuple[HeadLayer, ...],
    names: tuple[str, ...] | None,
    pairs: list[tuple[int, int]],
) -> str:
    layer_names = " > ".join(str(layer).removesuffix("()") for layer in layers)
    note = f"replace_head: {path} is now {layer_names}; "
    if not pairs or names is None:
        return note + "all rows are new"
    reused = ", ".join(names[new] for new, _ in pairs)
    return (
        note + f"{len(pairs)} of {len(names)} rows reused from {model.spec.name} by name: {reused}"
    )
