"""The networks that can be built by name. A new family is one file and one line here."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.models import resnet
from jaxtransfer.models.linen import LinenApply
from jaxtransfer.models.model import Model
from jaxtransfer.models.spec import ModelSpec, Preprocess
from jaxtransfer.tree import nearest

Builder = Callable[..., tuple[ModelSpec, nn.Module, Preprocess]]

CATALOG: Mapping[str, Builder] = MappingProxyType(
    {
        **resnet.BUILDERS,
    }
)


def list_models(pattern: str = "*") -> list[str]:
    """The names in the catalog that match a glob.

    >>> list_models("resnet1*")
    ['resnet18', 'resnet101', 'resnet152']
    """
    return [name for name in CATALOG if fnmatch.fnmatchcase(name, pattern)]


def spec_of(name: str, **options: Any) -> ModelSpec:
    """Data about a network of the catalog, without a look at its leaves.

    Raises:
        ModelError: the name is unknown, or the family has no such option.

    >>> spec_of("resnet50").stages[:2]
    ('stem', 'layer1')
    """
    return _built(name, options)[0]


def build(name: str, **options: Any) -> Model:
    """A network of the catalog without weights: its leaves are `jax.ShapeDtypeStruct`.

    Nothing is computed, so that large networks can be looked at and filled from a file at no cost.

    Args:
        name: one of `list_models()`.
        **options: what the family's builder takes, such as `num_classes`, `channels`, `width`.

    Raises:
        ModelError: the name is unknown, or the family has no such option.

    >>> build("cifar_resnet8").params["head"]["kernel"].shape
    (64, 10)
    """
    spec, module, preprocess = _built(name, options)
    variables = jax.eval_shape(lambda key: _init(spec, module, key), jax.random.key(0))
    return _model(spec, module, preprocess, variables)


def init(name: str, seed: int = 0, num_classes: int | None = None, **options: Any) -> Model:
    """A network of the catalog with random weights.

    Args:
        name: one of `list_models()`.
        seed: the same seed gives the same weights.
        num_classes: how many classes the head tells apart; the family's default if `None`.
        **options: what the family's builder takes, such as `channels` and `width`.

    Raises:
        ModelError: the name is unknown, or the family has no such option.

    Example:
        `model = jt.init("resnet18", seed=1, num_classes=10)`
    """
    if num_classes is not None:
        options["num_classes"] = num_classes
    spec, module, preprocess = _built(name, options)
    variables = _compiled_init(spec, module, jax.random.key(seed))
    return _model(spec, module, preprocess, variables)


def _built(name: str, options: Mapping[str, Any]) -> tuple[ModelSpec, nn.Module, Preprocess]:
    if name not in CATALOG:
        likely = ", ".join(nearest(name, CATALOG))
        raise ModelError(
            f"expected a name in the catalog, found {name!r}; the nearest are {likely}"
        )
    builder = CATALOG[name]
    known = [key for key in inspect.signature(builder).parameters if key != "name"]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ModelError(f"{name}: expected options among {', '.join(known)}, found {unknown}")
    return builder(name, **options)


def _init(spec: ModelSpec, module: nn.Module, key: jax.Array) -> Any:
    assert spec.input_size is not None and spec.channels is not None  # every family states them
    return module.init(key, jnp.zeros((1, *spec.input_size, spec.channels)), train=False)


# Compiled once for each network, whatever the seed.
_compiled_init = jax.jit(_init, static_argnums=(0, 1))


def _model(spec: ModelSpec, module: nn.Module, preprocess: Preprocess, variables: Any) -> Model:
    return Model(
        spec=spec,
        apply=LinenApply(module),
        params=variables["params"],
        stats=variables.get("batch_stats", {}),
        preprocess=preprocess,
    )
