"""Fine-tune a network of your own: any Linen module, any NumPy arrays.

The source task has 2,000 images of stripes in eight directions, the target 25 of five others.

    python3 examples/finetune_your_own.py
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxtransfer as jt


class SmallNet(nn.Module):
    """Two convolutions, a norm and a dense head: nothing here knows of jaxtransfer."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (batch, height, width, 1) to logits (batch, num_classes)."""
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


def stripes(count: int, directions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy stripes of shape (count, 16, 16, 1) in [0, 1], and the number of their direction."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(directions, size=count)
    angle, phase = np.pi * labels / directions, rng.uniform(0, 2 * np.pi, count)
    y, x = np.mgrid[:16, :16]
    wave = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    images = 0.5 + 0.3 * np.sin(wave + phase[:, None, None]) + rng.normal(0, 0.3, (count, 16, 16))
    return np.clip(images, 0, 1)[..., None].astype(np.float32), labels


def accuracy(model: jt.Model, data: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of right answers."""
    images, labels = data
    return float((jt.predict(model, images).argmax(axis=-1) == labels).mean())


def main() -> dict[str, float]:
    """Train a source model on eight directions, transfer it to five, compare with scratch."""
    module = SmallNet(num_classes=8)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    fresh = jt.Model.from_linen(module, variables)

    source = jt.finetune(fresh, stripes(2000, 8, seed=1), plan="full", epochs=8, learning_rate=3e-3)
    target, test = stripes(25, 5, seed=2), stripes(1000, 5, seed=3)

    results = {}
    for name, start, plan in (
        ("scratch", fresh, "full"),
        ("probe", source.model, "probe"),
        ("lp_ft", source.model, "lp_ft"),
    ):
        start = jt.replace_head(start, num_classes=5, key=4)
        tuned = jt.finetune(start, target, plan=plan, epochs=160, learning_rate=3e-2)
        results[name] = accuracy(tuned.model, test)
        print(f"{name:8} {100 * results[name]:5.1f} %")
    return results


if __name__ == "__main__":
    main()
