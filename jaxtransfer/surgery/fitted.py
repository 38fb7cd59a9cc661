"""Put a classifier that was fitted to a network's features in the place of its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import ModelError
from jaxtransfer.surgery.head import replace_head
from jaxtransfer.surgery.network import AnyModel
from jaxtransfer.tree import subtree, with_subtree


class FittedHead(Protocol):
    """What is asked of a classifier here, such as a `LinearProbe`."""

    @property
    def kernel(self) -> np.ndarray:
        """Shape (features, classes)."""
        ...

    @property
    def bias(self) -> np.ndarray:
        """Shape (classes,)."""
        ...


def with_head(
    model: AnyModel, probe: FittedHead, *, classes: Sequence[str] | None = None
) -> AnyModel:
    """A model whose head is a fitted linear classifier; all other leaves are the same arrays.

    The head is replaced as `replace_head` does it, and filled. So the model gives the probe's
    logits, in the dtype of the network; it is saved like any other, and fine-tuned from where the
    probe ended: the second half of Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features
    and Underperform Out-of-Distribution" (arXiv 2202.10054), section 3.1.

    Args:
        model: a `Model`; it stays as it is.
        probe: what `jt.linear_probe` fitted to `jt.features(model, images)`: a kernel of shape
            (features, classes) and a bias of shape (classes,).
        classes: the names of the classes, in the order of the probe's.

    Raises:
        ModelError: the kernel has other features than enter the head, the network's head has no
            place for the bias, or the head cannot be replaced.

    Example:
        `with_head(model, jt.linear_probe(jt.features(model, images), labels))`
    """
    where = f"with_head({model.spec.name})"
    count = probe.kernel.shape[1]
    if classes is not None and len(tuple(classes)) != count:
        raise ModelError(
            f"{where}: expected names for the probe's {count} classes, found {len(tuple(classes))}"
        )
    asked: dict[str, Any] = {"num_classes": count} if classes is None else {"classes": classes}
    new = replace_head(model, **asked, reuse=False)
    position = len(new.spec.head_layers) - 1
    path = new.spec.head if position < 1 else f"{new.spec.head}/{position}"
    dense = subtree(new.params, path)
    if set(dense) != {"kernel", "bias"} or dense["kernel"].shape != probe.kernel.shape:
        found = {name: tuple(leaf.shape) for name, leaf in dense.items()}
        raise ModelError(
            f"{where}: expected a dense layer at {path!r} with a kernel of the probe's shape "
            f"{probe.kernel.shape} and a bias, found {found}; fit the probe to what enters the "
            "head, jt.features(model, images)"
        )
    filled = {
        name: jnp.asarray(np.asarray(getattr(probe, name)), leaf.dtype)
        for name, leaf in dense.items()
    }
    note = f"with_head: {path} is a linear classifier that was fitted to features"
    return replace(
        new,
        params=with_subtree(new.params, path, filled),
        receipt=new.receipt.with_note(note),
    )
