"""The networks that can be built by name. A new family is one file and one line here."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.compiling import jit
from jaxtransfer.errors import ModelError
from jaxtransfer.models.family import Family
from jaxtransfer.models.linen import LinenApply
from jaxtransfer.models.model import Model
from jaxtransfer.models.spec import ModelSpec, Preprocess, Source
from jaxtransfer.tree import nearest

# The modules of this package whose FAMILIES are the zoo, in the order of the lists. They are
# imported when the first network is asked for.
_MODULES = (
    "alexnet",
    "vgg",
    "googlenet",
    "inception",
    "resnet",
    "cifar_resnet",
    "regnet",
    "squeezenet",
    "densenet",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "efficientnet",
    "convnext",
    "vit",
    "deit",
    "dinov2",
    "clip",
    "swin",
    "mixer",
)


@functools.cache
def families() -> Mapping[str, Family]:
    """The family of each network, by the network's name, in the order of the catalog."""
    modules = [importlib.import_module(f"jaxtransfer.models.{name}") for name in _MODULES]
    return {
        variant: family
        for module in modules
        for family in module.FAMILIES
        for variant in family.parameters
    }


@functools.cache
def aliases() -> Mapping[str, tuple[str, Mapping[str, Any]]]:
    """For each name of another library, the network's name here and the options it stands for."""
    unique = {id(family): family for family in families().values()}
    return {alias: meant for family in unique.values() for alias, meant in family.aliases.items()}


def list_models(pattern: str = "*") -> list[str]:
    """The names in the catalog that match a glob.

    >>> list_models("resnet1*")
    ['resnet18', 'resnet101', 'resnet152']
    """
    return [name for name in families() if fnmatch.fnmatchcase(name, pattern)]


def is_network(name: str) -> bool:
    """Whether a network of the catalog has this name, or another library calls it so.

    >>> is_network("resnet50"), is_network("resnet51")
    (True, False)
    """
    return name in families() or name in aliases()


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
        name: one of `list_models()`, or torchvision's or timm's name for it.
        **options: what the family's builder takes: `num_classes`, `in_channels` and `input_size`
            (one number for a square), and others such as `width`.

    Raises:
        ModelError: the name is unknown, or the family has no such option.

    >>> build("cifar_resnet8").params["head"]["kernel"].shape
    (64, 10)
    """
    spec, module = _built(name, options)
    variables = jax.eval_shape(lambda key: _init(spec, module, key), jax.random.key(0))
    return _model(spec, module, variables)


def init(name: str, seed: int = 0, num_classes: int | None = None, **options: Any) -> Model:
    """A network of the catalog with random weights.

    Args:
        name: one of `list_models()`, or torchvision's or timm's name for it.
        seed: the same seed gives the same weights.
        num_classes: how many classes the head tells apart; the family's default if `None`.
        **options: what the family's builder takes; see `build`.

    Raises:
        ModelError: the name is unknown, or the family has no such option.

    Example:
        `model = jt.init("resnet18", seed=1, num_classes=10)`
    """
    if num_classes is not None:
        options["num_classes"] = num_classes
    spec, module = _built(name, options)
    variables = _compiled_init(spec, module, jax.random.key(seed))
    return _model(spec, module, variables)


def preprocess_for(spec: ModelSpec, source: Source | None) -> Preprocess:
    """What happens to images before a network with weights of a source.

    It is that of the source, with the network's input size. A network that takes other channels
    than the source's gets its images scaled to [0, 1] and no more.
    """
    channels = spec.in_channels if spec.in_channels in (1, 3) else None
    if source is None or source.preprocess.channels != spec.in_channels:
        return Preprocess(spec.input_size, channels)
    return replace(source.preprocess, size=spec.input_size)


def _built(name: str, options: Mapping[str, Any]) -> tuple[ModelSpec, nn.Module]:
    variant, meant = aliases().get(name, (name, {}))
    if variant not in families():
        likely = ", ".join(nearest(name, [*families(), *aliases()]))
        raise ModelError(
            f"expected a name in the catalog, found {name!r}; the nearest are {likely}"
        )
    family = families()[variant]
    signature = inspect.signature(family.build)
    known = [key for key in signature.parameters if key != "name"]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ModelError(f"{name}: expected options among {', '.join(known)}, found {unknown}")
    given = {**meant, **options}
    if (size := given.get("input_size")) is not None:
        given["input_size"] = (size, size) if isinstance(size, int) else tuple(size)
    bound = signature.bind(variant, **given)
    bound.apply_defaults()
    spec, module = family.build(variant, **given)
    # Where an option is left to the variant, the builder says what it is.
    arguments = {**bound.arguments, **dict(spec.options)}
    known = tuple((key, value) for key, value in arguments.items() if key != "name")
    return replace(spec, options=known, weights=family.weights.get(variant, ())), module


def _init(spec: ModelSpec, module: nn.Module, key: jax.Array) -> Any:
    assert spec.input_size is not None and spec.in_channels is not None  # every family states them
    return module.init(key, jnp.zeros((1, *spec.input_size, spec.in_channels)), train=False)


# Compiled once for each network, whatever the seed.
_compiled_init = jit(_init, quickly=True, static_argnums=(0, 1))


def _model(spec: ModelSpec, module: nn.Module, variables: Any) -> Model:
    return Model(
        spec=spec,
        apply=LinenApply(module, spec.stem),
        params=variables["params"],
        stats=variables.get("batch_stats", {}),
        preprocess=preprocess_for(spec, spec.sources[0] if spec.sources else None),
    )
