"""Small networks that the tests of surgery share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxtransfer as jt
from jaxtransfer.models.spec import PositionEmbedding, Preprocess

PREPROCESS = Preprocess((8, 8), 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return x + jnp.tanh(nn.Dense(x.shape[-1], name="dense")(y))


class Patches(nn.Module):
    """A convolution to tokens, and a position embedding that they are given."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(4, (2, 2), (2, 2), name="patch")(images)
        x = x.reshape(x.shape[0], -1, 4)
        token = self.param("class_token", nn.initializers.normal(), (1, 1, 4))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 4)), x], axis=1)
        normal = nn.initializers.normal(1)
        return x + self.param("position_embedding", normal, (1, *x.shape[1:]))


class Tokens(nn.Module):
    """Tokens of patches, equal blocks, one by one or scanned, and a head over their mean."""

    depth: int = 3
    input_size: tuple[int, int] = (8, 8)
    scan: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        blocks = ("blocks",) if self.scan else tuple(f"block{i}" for i in range(self.depth))
        return ("embed", *blocks, "pool", "head")

    @nn.compact
    def __call__(self, x, *, train: bool, start: str | None = None, stop: str | None = None):
        first = 0 if start is None else self.stages.index(start)
        last = len(self.stages) if stop is None else self.stages.index(stop)
        for stage in self.stages[first:last]:
            x = self.run(stage, x, train)
        return x

    def run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "embed":
            return Patches(name="embed")(x)
        if stage == "pool":
            return x.mean(1)
        if stage == "head":
            return nn.Dense(3, name="head")(x)
        if not self.scan:
            return Block(name=stage)(x, train)
        scanned = nn.scan(
            lambda block, x, _: (block(x, train), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        return scanned(Block(name="blocks"), x, None)[0]


def varied(tree: Any, seed: int = 0) -> Any:
    """The same tree with random numbers, so that no two leaves are alike."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype), tree
    )


def tokens(seed: int = 0, **fields: Any) -> jt.Model:
    module = Tokens(**fields)
    shapes = jax.eval_shape(
        lambda key: module.init(key, jnp.zeros((1, *module.input_size, 3)), train=False),
        jax.random.key(0),
    )
    model = jt.Model.from_linen(
        module,
        varied(shapes, seed),
        stages=module.stages,
        input_shape=(*module.input_size, 3),
        labels=["ant", "bee", "cat"],
        preprocess=PREPROCESS,
    )
    embedding = PositionEmbedding("embed/position_embedding", patch=2, prefix=1)
    return replace(
        model, spec=replace(model.spec, stem="embed/patch", position_embedding=embedding)
    )


def outputs(model: jt.Model, images: Any, **options: Any) -> Any:
    return model.apply(model.params, model.stats, images, **{"train": False, **options})[0]


def leaves(model: jt.Model) -> dict[str, Any]:
    return jt.tree.flatten({"params": model.params, "stats": model.stats})


def untouched(before: jt.Model, after: jt.Model, *changed: str) -> bool:
    """Whether all leaves but those that start so are there in both, and the very same arrays."""

    def kept(model: jt.Model) -> dict[str, int]:
        named = leaves(model).items()
        return {name: id(leaf) for name, leaf in named if not name.startswith(changed)}

    return kept(before) == kept(after)


def note_of(model: jt.Model) -> str:
    return model.receipt.notes[-1]
